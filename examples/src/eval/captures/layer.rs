//! One recorded layer: every contender answers the same queries, then each answer is held against dense attention.

use anyhow::{Context, ensure};
use hira_attention::{CacheShape, Certificate, HostAttention};
use hira_cache::HiraCache;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Contender, MEASURED};
use crate::capture::Capture;
use crate::eval::compare::{ComparisonHost, Selections};
use crate::eval::{DenseTruth, EvalRule};

/// One query under one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureRow {
    /// The capture's last word, `layer14`.
    pub layer: String,
    /// Query head.
    pub head: usize,
    /// Position of the query.
    pub position: usize,
    /// The contender.
    pub rule: String,
    /// Keys that the query sees.
    pub visible: usize,
    /// Keys that it attended to.
    pub kept: usize,
    /// Softmax mass of the others, in f64.
    pub dropped: f64,
    /// Euclidean distance from dense attention in f64, over the norm of that.
    pub relative_error: f64,
    /// The same, not divided.
    pub error: f64,
    /// The certified bound on `dropped`; none for rules that certify nothing.
    pub mass_bound: Option<f64>,
    /// The certified bound on `error`.
    pub error_bound: Option<f64>,
    /// The fewest keys that keep the mass which the rule asks for; none for other rules than mass.
    pub fewest: Option<usize>,
}

/// A contender's answers to the measured rows.
struct Answers {
    /// `[rows, Hq, D]`.
    out: Vec<f32>,
    /// `[rows, Hq]`: keys attended to, and what is certified.
    heads: Vec<(usize, Certificate)>,
    /// By row, of rules that certify nothing.
    selections: Vec<Selections>,
}

/// The engine of either kind.
enum Engine {
    Hira(Box<HostAttention>),
    Comparison(Box<ComparisonHost>),
}

/// The softmax scale of a head dimension: captures are of models that have no other.
fn scale(capture: &Capture) -> f32 {
    1.0 / (capture.dim as f32).sqrt()
}

/// The rows of a layer under every contender.
pub(super) fn measure(
    layer: &str,
    capture: &Capture,
    contenders: &[Contender],
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<CaptureRow>> {
    ensure!(
        capture.values(0).is_some(),
        "{layer}: the capture has no values"
    );
    ensure!(
        capture.rows > MEASURED,
        "{layer}: {} query rows, more than {MEASURED} are needed",
        capture.rows
    );
    let mut answers = Vec::new();
    for contender in contenders {
        let answer = answer(capture, contender).with_context(|| contender.to_string())?;
        answers.push(answer);
        progress(&contender.to_string());
    }
    let heads = capture.kv_heads * capture.group;
    let first = capture.rows - MEASURED;
    let queries = (0..MEASURED * heads).into_par_iter();
    let rows = queries.flat_map_iter(|i| {
        let (row, head) = (i / heads, i % heads);
        let visible = capture.visible(first + row);
        let keys = &capture.keys(head / capture.group)[..visible * capture.dim];
        let values = capture.values(head / capture.group).unwrap_or_default();
        let values = &values[..visible * capture.dim];
        let query = capture.query(head, first + row);
        let truth = DenseTruth::of(query, keys, values, f64::from(scale(capture)));
        let measured: Vec<CaptureRow> = contenders
            .iter()
            .zip(&answers)
            .map(|(contender, answers)| {
                let out = &answers.out[i * capture.dim..(i + 1) * capture.dim];
                let (kept, certificate) = answers.heads[i];
                let is_hira = !matches!(contender.rule, EvalRule::Comparison(_));
                let dropped = match is_hira {
                    true => truth.dropped(&truth.reaching(kept, contender.sinks, contender.window)),
                    false => truth.dropped(&answers.selections[row][head]),
                };
                CaptureRow {
                    layer: layer.to_owned(),
                    head,
                    position: visible - 1,
                    rule: contender.to_string(),
                    visible,
                    kept,
                    dropped,
                    relative_error: truth.relative_error(out),
                    error: truth.error(out),
                    mass_bound: is_hira.then_some(f64::from(certificate.dropped_mass_bound)),
                    error_bound: is_hira.then_some(f64::from(certificate.output_error_bound)),
                    fewest: contender.rule.eps().map(|eps| truth.fewest(eps)),
                }
            })
            .collect();
        measured.into_iter()
    });
    Ok(rows.collect())
}

/// Stores the keys before the recorded queries, reads the first of these as a dense prompt, then the measured ones token by token.
fn answer(capture: &Capture, contender: &Contender) -> anyhow::Result<Answers> {
    let (dim, heads) = (capture.dim, capture.kv_heads * capture.group);
    let base = contender.base(scale(capture));
    let mut cache = contender.rule.config(&base).init_cache(CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads: capture.kv_heads,
        head_dim: dim,
        value_dim: dim,
        max_len: capture.len,
    })?;
    let engine = match contender.rule {
        EvalRule::Comparison(rule) => {
            Engine::Comparison(Box::new(ComparisonHost::new(rule, &base)?))
        }
        rule => Engine::Hira(Box::new(rule.config(&base).init_host()?)),
    };
    let unseen = capture.len - capture.rows;
    let (k, v) = tokens(capture, 0..unseen);
    cache.append(0, &k, &v)?;
    let mut answers = Answers {
        out: Vec::new(),
        heads: Vec::new(),
        selections: Vec::new(),
    };
    let first = capture.rows - MEASURED;
    let calls = std::iter::once(0..first).chain((first..capture.rows).map(|row| row..row + 1));
    for rows in calls {
        let (k, v) = tokens(capture, unseen + rows.start..unseen + rows.end);
        let q: Vec<f32> = (0..heads)
            .flat_map(|head| rows.clone().map(move |row| (head, row)))
            .flat_map(|(head, row)| capture.query(head, row))
            .copied()
            .collect();
        let mut out = vec![0.0; q.len()];
        let report = engine.forward(heads, &q, &k, &v, &mut cache, &mut out)?;
        if rows.start < first {
            continue;
        }
        answers.out.extend(out);
        let heads = report.heads.iter();
        answers
            .heads
            .extend(heads.map(|head| (head.attended as usize, head.worst)));
        if let Engine::Comparison(host) = &engine {
            answers.selections.push(host.selections());
        }
    }
    Ok(answers)
}

impl Engine {
    fn forward(
        &self,
        heads: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        cache: &mut HiraCache,
        out: &mut [f32],
    ) -> Result<hira_attention::AttentionReport, hira_attention::AttentionError> {
        match self {
            Self::Hira(host) => host.forward_into(heads, q, k, v, cache, 0, out),
            Self::Comparison(host) => host.forward_into(heads, q, k, v, cache, 0, out),
        }
    }
}

/// Keys and values of some positions, `[Hkv, L, D]` each.
fn tokens(capture: &Capture, positions: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
    let span = positions.start * capture.dim..positions.end * capture.dim;
    let all = |rows: &dyn Fn(usize) -> Vec<f32>| (0..capture.kv_heads).flat_map(rows).collect();
    (
        all(&|head| capture.keys(head)[span.clone()].to_vec()),
        all(&|head| capture.values(head).unwrap_or_default()[span.clone()].to_vec()),
    )
}
