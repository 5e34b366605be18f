//! Keys, values and queries of one layer, and the right answers.

use hira_attention::HiraAttentionConfig;
use hira_kernels::Kernel;
use hira_threshold::ThresholdRule;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::capture::Capture;

/// Where the data comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A capture of a real model, by its name.
    Capture(String),
    /// [`Problem::synthetic`].
    Synthetic,
}

/// One layer's keys and values, and the queries of its last tokens.
///
/// # Shapes
///
/// `keys`, `values` `[Hkv, N, D]`; `queries` `[R, Hq, D]`: those of token `N - R + r`.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Where the data comes from.
    pub source: Source,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Keys of a KV head.
    pub len: usize,
    /// Dimension of keys and values.
    pub dim: usize,
    /// Tokens with queries.
    pub rows: usize,
    /// Keys.
    pub keys: Vec<f32>,
    /// Values.
    pub values: Vec<f32>,
    /// Queries.
    pub queries: Vec<f32>,
}

impl Problem {
    /// The last `len` keys of a capture; `None` if it has fewer, or no values.
    pub fn from_capture(name: &str, capture: &Capture, len: usize, rows: usize) -> Option<Self> {
        let first = capture.len.checked_sub(len)?;
        let first_row = capture.rows.checked_sub(rows)?;
        let dim = capture.dim;
        let mut keys = Vec::new();
        let mut values = Vec::new();
        for head in 0..capture.kv_heads {
            keys.extend_from_slice(&capture.keys(head)[first * dim..]);
            values.extend_from_slice(&capture.values(head)?[first * dim..]);
        }
        let heads = capture.kv_heads * capture.group;
        let queries = (first_row..capture.rows)
            .flat_map(|row| (0..heads).flat_map(move |head| capture.query(head, row)))
            .copied()
            .collect();
        Some(Self {
            source: Source::Capture(name.to_owned()),
            kv_heads: capture.kv_heads,
            group: capture.group,
            len,
            dim,
            rows,
            keys,
            values,
            queries,
        })
    }

    /// Keys around 64 random centres, queries that look for one of them: for machines without captures, and not a substitute.
    pub fn synthetic(kv_heads: usize, group: usize, len: usize, dim: usize, rows: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(len as u64);
        // a sum of uniforms is close enough to normal
        let mut normal = move || (0..6).map(|_| rng.random_range(-0.7..0.7_f32)).sum::<f32>();
        let centres: Vec<f32> = (0..64 * dim).map(|_| 1.5 * normal()).collect();
        let mut around = |i: usize, spread: f32| -> Vec<f32> {
            let centre = &centres[(i % 64) * dim..][..dim];
            centre.iter().map(|x| x + spread * normal()).collect()
        };
        let keys = (0..kv_heads * len)
            .flat_map(|i| around(i * 29, 1.0))
            .collect();
        let values = (0..kv_heads * len)
            .flat_map(|i| around(i * 31, 1.0))
            .collect();
        let heads = kv_heads * group;
        let queries = (0..rows * heads)
            .flat_map(|i| around(i * 37, 1.0))
            .collect();
        Self {
            source: Source::Synthetic,
            kv_heads,
            group,
            len,
            dim,
            rows,
            keys,
            values,
            queries,
        }
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// The queries of token `len - rows + row`, `[Hq, D]`.
    pub fn queries_of(&self, row: usize) -> &[f32] {
        let size = self.heads() * self.dim;
        &self.queries[row * size..(row + 1) * size]
    }

    /// Rows `range` of every KV head, `[Hkv, len, D]`.
    pub fn tokens(&self, data: &[f32], range: std::ops::Range<usize>) -> Vec<f32> {
        let heads = data.chunks_exact(self.len * self.dim);
        heads
            .flat_map(|head| &head[range.start * self.dim..range.end * self.dim])
            .copied()
            .collect()
    }

    /// Keys that a query of `row` sees.
    pub fn visible(&self, row: usize) -> usize {
        self.len - self.rows + row + 1
    }

    /// Brute force: attention of the queries of `row`, in f64 over the canonical scores, `[Hq, D]`.
    ///
    /// With a configuration: over the rule's selection, the sinks and the window. Without: over every key of the problem.
    pub fn answer(&self, row: usize, config: Option<&HiraAttentionConfig>) -> Vec<f64> {
        let visible = config.map_or(self.len, |_| self.visible(row));
        let scale = 1.0 / (self.dim as f64).sqrt();
        let mut out = Vec::with_capacity(self.heads() * self.dim);
        for (head, query) in self.queries_of(row).chunks_exact(self.dim).enumerate() {
            let first = head / self.group * self.len * self.dim;
            let keys = &self.keys[first..first + visible * self.dim];
            let values = &self.values[first..first + visible * self.dim];
            let mut scores = vec![0.0; visible];
            Kernel::Scalar.scores_into(query, keys, &mut scores);
            let keep = config.map_or_else(|| vec![true; visible], |config| kept(&scores, config));
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            let mut acc = vec![0.0; self.dim];
            for ((&score, value), _) in scores
                .iter()
                .zip(values.chunks_exact(self.dim))
                .zip(&keep)
                .filter(|(_, keep)| **keep)
            {
                let weight = (scale * f64::from(score - max)).exp();
                sum += weight;
                acc.iter_mut()
                    .zip(value)
                    .for_each(|(acc, &x)| *acc += weight * f64::from(x));
            }
            out.extend(acc.iter().map(|acc| acc / sum));
        }
        out
    }
}

/// Which keys the rule selects by brute force, with sinks and window.
fn kept(scores: &[f32], config: &HiraAttentionConfig) -> Vec<bool> {
    let n = scores.len();
    let rule = config.rule().unwrap_or(ThresholdRule::Fixed {
        tau: f32::NEG_INFINITY,
    });
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let tau = rule.tau().unwrap_or(f32::NEG_INFINITY);
    let mut keep = vec![false; n];
    for &i in order.iter().take(rule.count(n).unwrap_or(n)) {
        keep[i] = scores[i] >= tau;
    }
    keep.iter_mut()
        .take(config.sink_tokens)
        .for_each(|keep| *keep = true);
    keep.iter_mut()
        .skip(n.saturating_sub(config.recent_window))
        .for_each(|keep| *keep = true);
    keep
}
