//! The device engine against attention in f64 and against the host engine, on the device of a backend.

use burn::tensor::Tensor;
use hira_attention::{
    AttentionError, AttentionReport, CacheShape, HiraAttention, HiraAttentionConfig, HiraBackend,
    HiraCache, PlanPolicy, Precision,
};
use hira_index::RowPlace;
use hira_index::burn::{DeviceEngineError, DeviceLayout, device_append, with_host};
use hira_memory::MemoryPolicy;
use hira_threshold::ThresholdRule;

use super::finding::{CheckError, Finding};
use super::reference::{LayerShape, Reference, distance, norm};
use crate::element::Element;

/// Relative error of softmax and sums in f32, with room: a few units of 2^-24 a key.
const SUMS: f64 = 1e-4;

/// Sinks and window of every check.
const ALWAYS: (usize, usize) = (2, 5);

/// Which keys are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// So many of the largest scores.
    TopK,
    /// A share of the keys.
    Percentile,
    /// Scores from a number on.
    Fixed,
    /// A share of the softmax mass.
    Mass,
}

/// What a check does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Decodes by a rule, with or without compensation.
    Decode(RuleKind, bool),
    /// Grows past its first capacity and past twice that.
    Grow,
    /// Forks, goes separate ways, truncates, and decodes the same again.
    Fork,
    /// Keeps exact rows in main memory, and answers as with all on the device.
    HostRows,
    /// The same calls on the host engine.
    Host,
    /// Says of a row that is not finite where it is.
    NonFinite,
}

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Heads and dimensions.
    pub shape: LayerShape,
    /// What tensors are of.
    pub element: Element,
    /// What the cache is asked to store f32 tensors in.
    pub stored: Element,
    /// What is done.
    pub task: Task,
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.task {
            Task::Decode(rule, compensated) => {
                let rule = match rule {
                    RuleKind::TopK => "top-k",
                    RuleKind::Percentile => "percentile",
                    RuleKind::Fixed => "fixed",
                    RuleKind::Mass => "mass",
                };
                let compensated = if compensated { ", compensated" } else { "" };
                write!(f, "{rule}{compensated}")?;
            }
            Task::Grow => f.write_str("growth")?,
            Task::Fork => f.write_str("fork and truncate")?,
            Task::HostRows => f.write_str("rows in main memory")?,
            Task::Host => f.write_str("as the host engine")?,
            Task::NonFinite => f.write_str("rows that are not finite")?,
        }
        let LayerShape {
            dim,
            value_dim,
            group,
            ..
        } = self.shape;
        write!(
            f,
            "; D {dim}, Dv {value_dim}, group {group}, {}",
            self.element
        )?;
        if self.stored != self.element {
            write!(f, " stored as {}", self.stored)?;
        }
        Ok(())
    }
}

impl Check {
    /// Every check for tensors of these types; `quick` leaves out most combinations, not any rule, dimension or task.
    pub fn all(elements: &[Element], quick: bool) -> Vec<Self> {
        use RuleKind::{Fixed, Mass, Percentile, TopK};
        let mut types: Vec<[Element; 2]> = elements.iter().map(|&element| [element; 2]).collect();
        types.extend([Element::F16, Element::Bf16].map(|stored| [Element::F32, stored]));
        let rules = [TopK, Percentile, Fixed, Mass]
            .map(|rule| [true, false].map(|c| Task::Decode(rule, c)));
        let rules = rules.as_flattened();
        let mut checks = Vec::new();
        for (i, (dim, value_dim, group)) in [
            (64, 64, 3),
            (80, 80, 1),
            (96, 64, 4),
            (128, 128, 4),
            (256, 256, 8),
        ]
        .into_iter()
        .enumerate()
        {
            let shape = LayerShape {
                sequences: 2,
                kv_heads: 2,
                group,
                dim,
                value_dim,
            };
            for (j, &[element, stored]) in types.iter().enumerate() {
                let of = |task| Self {
                    shape,
                    element,
                    stored,
                    task,
                };
                if quick {
                    // each dimension and each type has some rules, together all of them
                    checks.extend((0..2).map(|k| of(rules[(3 * i + 2 * j + 5 * k) % rules.len()])));
                } else {
                    checks.extend(rules.iter().copied().map(of));
                }
                if !quick || i == j % 5 {
                    checks.push(of(Task::Host));
                }
            }
            for task in [Task::Grow, Task::Fork, Task::HostRows, Task::NonFinite] {
                let [element, stored] = types[i % types.len()];
                if !quick || task == Task::Fork || i == 0 {
                    checks.push(Self {
                        shape,
                        element,
                        stored,
                        task,
                    });
                }
            }
        }
        checks
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// [`CheckError`] for the first thing that is wrong.
    pub fn run<B: HiraBackend>(&self, device: &B::Device) -> Result<Finding, CheckError> {
        let layer = |tokens| Trial::<B>::new(*self, tokens, device);
        match self.task {
            Task::Decode(rule, compensated) => {
                let trial = layer(643)?;
                let config = trial.config(rule).with_tail_compensation(compensated);
                trial.decode(&config, 600, &[600, 601, 639, 642])
            }
            Task::Grow => {
                let trial = layer(2100)?;
                let config = trial.config(RuleKind::TopK).with_tail_compensation(false);
                trial.decode(&config, 1020, &[1020, 1023, 1024, 1030, 2099])
            }
            Task::Fork => layer(60)?.fork(),
            Task::HostRows => layer(643)?.host_rows(),
            Task::Host => layer(300)?.as_host(),
            Task::NonFinite => layer(40)?.non_finite(),
        }
    }
}

/// A check with its rows.
struct Trial<'a, B: HiraBackend> {
    check: Check,
    rows: Reference,
    scale: f64,
    device: &'a B::Device,
}

impl<'a, B: HiraBackend> Trial<'a, B> {
    fn new(check: Check, tokens: usize, device: &'a B::Device) -> Result<Self, CheckError> {
        let of = [check.element, check.stored];
        Ok(Self {
            check,
            rows: Reference::random(tokens as u64, check.shape, tokens, of),
            // logits spread by about 2: elements have a standard deviation of 1.15, or 3.5
            scale: f64::from(1.5 / (check.shape.dim as f32).sqrt()),
            device,
        })
    }

    fn config(&self, rule: RuleKind) -> HiraAttentionConfig {
        // one key in ten or so reaches the score
        let tau = 2.5 * (self.check.shape.dim as f32).sqrt();
        let config = HiraAttentionConfig::new()
            .with_plan(PlanPolicy::Sparse)
            .with_scale(self.scale as f32)
            .with_sinks_and_window(ALWAYS.0, ALWAYS.1)
            .with_precision(match self.check.stored {
                Element::F32 => Precision::F32,
                Element::F16 => Precision::F16,
                Element::Bf16 => Precision::Bf16,
            });
        match rule {
            RuleKind::TopK => config.with_top_k(23),
            RuleKind::Percentile => config.with_percentile(6.0),
            RuleKind::Fixed => config.with_threshold(tau),
            RuleKind::Mass => config.with_mass(0.9),
        }
    }

    fn cache(&self, config: &HiraAttentionConfig) -> Result<HiraCache, CheckError> {
        let shape = self.check.shape;
        Ok(config.init_cache(CacheShape {
            layers: 1,
            sequences: shape.sequences,
            kv_heads: shape.kv_heads,
            head_dim: shape.dim,
            value_dim: shape.value_dim,
            max_len: self.rows.tokens,
        })?)
    }

    fn tensors(&self, range: std::ops::Range<usize>) -> [Tensor<B, 4>; 3] {
        let Reference { q, k, v, .. } = &self.rows;
        [q, k, v].map(|rows| {
            let shape = [
                self.check.shape.sequences,
                rows.heads,
                range.len(),
                rows.dim,
            ];
            let slice = rows.slice(range.clone());
            self.check.element.tensor(slice, shape, self.device)
        })
    }

    fn call(
        &self,
        attention: &HiraAttention<B>,
        cache: &mut HiraCache,
        range: std::ops::Range<usize>,
    ) -> Result<(Vec<f32>, AttentionReport), CheckError> {
        let [q, k, v] = self.tensors(range);
        let (out, report) = attention.try_forward(q, k, v, cache, 0)?;
        Ok((with_host(out, <[f32]>::to_vec)?, report))
    }

    /// Stores some tokens, of a prompt whose attention is not in question.
    fn store(
        &self,
        cache: &mut HiraCache,
        range: std::ops::Range<usize>,
    ) -> Result<(), CheckError> {
        let shape = self.check.shape;
        let layout = DeviceLayout {
            sequences: shape.sequences,
            heads: shape.heads(),
            kv_heads: shape.kv_heads,
            head_dim: shape.dim,
            value_dim: shape.value_dim,
            max_len: self.rows.tokens,
            precision: cache.config().index.precision,
            rows: RowPlace::default(),
        };
        if !cache.prepare_device::<B>(0, &layout, self.check.element.dtype(), self.device)? {
            return Err(CheckError::state("a backend with a device engine"));
        }
        let [_, k, v] = self.tensors(range);
        device_append::<B>(cache.device_store_mut(0)?, k, v).map_err(AttentionError::from)?;
        Ok(())
    }

    /// A prompt up to `from`, then the tokens of `checked`, which are held against f64, and what lies between.
    fn decode(
        &self,
        config: &HiraAttentionConfig,
        from: usize,
        checked: &[usize],
    ) -> Result<Finding, CheckError> {
        let attention: HiraAttention<B> = config.init(self.device).map_err(AttentionError::from)?;
        let mut cache = self.cache(config)?;
        self.store(&mut cache, 0..from)?;
        let mut finding = Finding::default();
        let mut at = from;
        for &token in checked {
            if at < token {
                self.store(&mut cache, at..token)?;
            }
            at = token + 1;
            let (out, mut report) = self.call(&attention, &mut cache, token..at)?;
            if !report.is_pending() {
                return Err(CheckError::state(
                    "a report that is pending: the device engine",
                ));
            }
            let attended = report
                .attended()?
                .ok_or(CheckError::state("a sparse step"))?;
            report.fetch()?;
            self.compare(config, token, &out, &report, &attended, &mut finding)?;
        }
        Ok(finding)
    }

    fn compare(
        &self,
        config: &HiraAttentionConfig,
        token: usize,
        out: &[f32],
        report: &AttentionReport,
        attended: &[Vec<u32>],
        finding: &mut Finding,
    ) -> Result<(), CheckError> {
        let shape = self.check.shape;
        let rule = config.rule().map_err(AttentionError::from)?;
        let always = |j: usize| j < ALWAYS.0 || j + ALWAYS.1 > token;
        for (row, attended) in attended.iter().enumerate() {
            let count = |what, expected: usize, received: usize| match expected == received {
                true => Ok(()),
                false => Err(CheckError::Count {
                    what,
                    row,
                    token,
                    expected,
                    received,
                }),
            };
            let at = [row / shape.heads(), row % shape.heads()];
            let (head, certificate) = (report.heads[row], report.certificates[row]);
            count("visible keys", token + 1, head.visible as usize)?;
            count("attended keys", attended.len(), head.attended as usize)?;
            let scores = self.rows.scores(at[0], at[1], token);
            let tau = match rule.count(token + 1) {
                Some(k) => {
                    let mut sorted = scores.exact.clone();
                    sorted.sort_by(|a, b| b.total_cmp(a));
                    Some(sorted[k - 1])
                }
                None => rule.tau().map(f64::from),
            };
            let has = |j: usize| attended.binary_search(&(j as u32)).is_ok();
            let slack = 2.0 * scores.rounding;
            if let Some(tau) = tau {
                let reaches = |j: &usize| always(*j) || scores.exact[*j] > tau + slack;
                let missed = (0..=token).filter(|&j| !has(j)).filter(reaches);
                count("missed keys", 0, missed.count())?;
                let extra = attended.iter().map(|&j| j as usize);
                let extra = extra.filter(|&j| !always(j) && scores.exact[j] < tau - slack);
                count("keys below the threshold", 0, extra.count())?;
            }
            let (of_attended, largest, dropped) = self.rows.attend(at, &scores, self.scale, has);
            let (dense, ..) = self.rows.attend(at, &scores, self.scale, |_| true);
            let mut limit =
                |what, limit, received| finding.hold(what, (row, token), limit, received);
            let out = &out[row * shape.value_dim..(row + 1) * shape.value_dim];
            let rounding = self.check.element.rounding();
            limit(
                "the error against dense attention",
                f64::from(certificate.output_error_bound) + rounding * norm(&dense) + 1e-6,
                distance(out, &dense),
            )?;
            if !config.tail_compensation {
                limit(
                    "the error against attention to the selected keys",
                    (SUMS + rounding) * largest,
                    distance(out, &of_attended),
                )?;
            }
            let bound = f64::from(certificate.dropped_mass_bound);
            limit("the dropped mass", bound + 1e-6, dropped)?;
            if let ThresholdRule::Mass { mass } = rule {
                limit("the bound on it", 1.0 - f64::from(mass) + 1e-6, bound)?;
            }
            finding.keys += token + 1;
            finding.attended += attended.len();
        }
        Ok(())
    }

    /// The answer after a fork and after a truncation is the same, bit for bit.
    fn fork(&self) -> Result<Finding, CheckError> {
        let config = self.config(RuleKind::TopK).with_top_k(8);
        let attention: HiraAttention<B> = config.init(self.device).map_err(AttentionError::from)?;
        let mut cache = self.cache(&config)?;
        let step = |cache: &mut HiraCache, range| {
            Ok::<_, CheckError>(self.call(&attention, cache, range)?.0)
        };
        self.store(&mut cache, 0..50)?;
        let mut fork = cache.clone();
        let first = step(&mut cache, 50..51)?;
        step(&mut fork, 55..56)?;
        if (cache.seq_len(0), fork.seq_len(0)) != (51, 51) {
            return Err(CheckError::state("51 tokens on either side of a fork"));
        }
        for side in [&mut fork, &mut cache] {
            side.truncate(50)?;
            if step(side, 50..51)? != first {
                return Err(CheckError::state(
                    "the same answer after a fork and a truncation",
                ));
            }
        }
        cache.reset();
        self.store(&mut cache, 0..50)?;
        if cache.seq_len(0) != 50 || step(&mut cache, 50..51)? != first {
            return Err(CheckError::state("the same answer after a reset"));
        }
        Ok(Finding::default())
    }

    /// Right with rows in main memory, and nothing but the order of sums differs from rows on the device.
    fn host_rows(&self) -> Result<Finding, CheckError> {
        let config = self.config(RuleKind::TopK);
        let policy = MemoryPolicy::Hybrid { num_fast_levels: 1 };
        let hybrid = config.clone().with_memory_policy(policy);
        let mut finding = self.decode(&hybrid, 600, &[600, 601, 639, 642])?;
        let attention: HiraAttention<B> = config.init(self.device).map_err(AttentionError::from)?;
        let mut caches = [self.cache(&config)?, self.cache(&hybrid)?];
        // a prompt, tokens at once, a token
        for range in [0..150, 150..154, 154..155] {
            let mut answers = Vec::new();
            for cache in &mut caches {
                let (out, mut report) = self.call(&attention, cache, range.clone())?;
                let attended = report.attended()?;
                report.fetch()?;
                answers.push((out, attended, report.heads, report.certificates));
            }
            let [ours, theirs] = &answers[..] else {
                return Err(CheckError::state("two answers"));
            };
            if (&ours.1, &ours.2, &ours.3) != (&theirs.1, &theirs.2, &theirs.3) {
                return Err(CheckError::state(
                    "the keys and bounds of rows on the device",
                ));
            }
            let at = |row: usize| (row / range.len(), range.start + row % range.len());
            let what = "the distance from the answer of rows on the device";
            self.hold_near(what, &ours.0, &theirs.0, at, &mut finding)?;
        }
        Ok(finding)
    }

    /// Holds the rows of an answer against those of another that is as right.
    fn hold_near(
        &self,
        what: &'static str,
        ours: &[f32],
        theirs: &[f32],
        at: impl Fn(usize) -> (usize, usize),
        finding: &mut Finding,
    ) -> Result<(), CheckError> {
        let rounding = self.check.element.rounding();
        let width = self.check.shape.value_dim;
        for (row, (ours, theirs)) in ours.chunks(width).zip(theirs.chunks(width)).enumerate() {
            let theirs: Vec<f64> = theirs.iter().map(|&x| f64::from(x)).collect();
            let limit = (rounding + SUMS) * (norm(&theirs) + 1.0);
            finding.hold(what, at(row), limit, distance(ours, &theirs))?;
        }
        Ok(())
    }

    /// A prompt, another prompt, some tokens at once, single tokens: outputs and numbers of keys are the host engine's.
    fn as_host(&self) -> Result<Finding, CheckError> {
        let shape = self.check.shape;
        let mut finding = Finding::default();
        for config in [
            self.config(RuleKind::TopK).with_tail_compensation(false),
            HiraAttentionConfig::dense()
                .with_scale(self.scale as f32)
                .with_precision(self.config(RuleKind::TopK).precision),
        ] {
            let attention: HiraAttention<B> =
                config.init(self.device).map_err(AttentionError::from)?;
            let [mut cache, mut on_host] = [self.cache(&config)?, self.cache(&config)?];
            for range in [0..150, 150..290, 290..294, 294..295, 295..296] {
                let (out, mut report) = self.call(&attention, &mut cache, range.clone())?;
                report.fetch()?;
                let Reference { q, k, v, .. } = &self.rows;
                let [q, k, v] = [q, k, v].map(|rows| rows.slice(range.clone()));
                let mut expected = vec![0.0; out.len()];
                let engine = attention.engine();
                let theirs = engine.forward_into(
                    shape.heads(),
                    &q,
                    &k,
                    &v,
                    &mut on_host,
                    0,
                    &mut expected,
                )?;
                let at = |row: usize| (row / range.len(), range.start + row % range.len());
                let what = "the distance from the host engine's answer";
                self.hold_near(what, &out, &expected, at, &mut finding)?;
                for (row, (ours, theirs)) in report.heads.iter().zip(&theirs.heads).enumerate() {
                    if (ours.attended, ours.visible) != (theirs.attended, theirs.visible) {
                        return Err(CheckError::Count {
                            what: "attended keys, as on the host",
                            row,
                            token: range.end - 1,
                            expected: theirs.attended as usize,
                            received: ours.attended as usize,
                        });
                    }
                    finding.keys += ours.visible as usize;
                    finding.attended += ours.attended as usize;
                }
            }
        }
        Ok(finding)
    }

    /// A row with an infinity or NaN among keys, values or queries is named by what is read later.
    fn non_finite(&self) -> Result<Finding, CheckError> {
        let config = self.config(RuleKind::TopK).with_top_k(8);
        let attention: HiraAttention<B> = config.init(self.device).map_err(AttentionError::from)?;
        for (what, wrong) in [("queries", 0), ("keys", 1), ("values", 2)] {
            let mut cache = self.cache(&config)?;
            self.store(&mut cache, 0..30)?;
            let mut rows = self.rows.clone();
            let of = [&mut rows.q, &mut rows.k, &mut rows.v]
                .into_iter()
                .nth(wrong);
            let of = of.ok_or(CheckError::state("three kinds of rows"))?;
            let element = if wrong == 1 { f32::NAN } else { f32::INFINITY };
            // of token 30, the first head
            of.data[30 * of.dim + 3] = element;
            let trial = Self { rows, ..*self };
            let (_, mut report) = trial.call(&attention, &mut cache, 30..31)?;
            match report.fetch() {
                Err(AttentionError::Device(DeviceEngineError::NonFinite {
                    what: named,
                    position: 30,
                })) if named == what => {}
                _ => {
                    return Err(CheckError::state(
                        "an error that names the row which is not finite",
                    ));
                }
            }
        }
        Ok(Finding::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_has_every_rule_dimension_type_and_task() {
        let elements = [Element::F32, Element::F16, Element::Bf16];
        let all = Check::all(&elements, false);
        let quick = Check::all(&elements, true);
        assert!(
            quick.len() * 3 < all.len(),
            "{} of {}",
            quick.len(),
            all.len()
        );
        for check in all {
            let has =
                |same: fn(&Check, &Check) -> bool| quick.iter().any(|quick| same(quick, &check));
            assert!(has(|a, b| a.task == b.task), "{check}");
            assert!(has(|a, b| a.shape == b.shape), "{check}");
            assert!(
                has(|a, b| (a.element, a.stored) == (b.element, b.stored)),
                "{check}"
            );
        }
    }
}
