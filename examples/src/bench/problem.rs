//! Keys, values and queries of one layer.

use std::path::Path;

use anyhow::Context;
use hira_kernels::Precision;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rayon::prelude::*;

use super::{Data, Generator, Scenario, Shape, TooFewRows};
use crate::capture::Capture;

/// Layers whose heads, side by side two by two, stand for heads of dimension 128.
const PAIRED_LAYERS: [usize; 3] = [3, 14, 26];

/// The layer that keys are generated from at dimension 64.
const FITTED_LAYER: usize = 14;

/// Where a group has more query heads than the captured one: they are its query heads again, so many tokens earlier.
const EARLIER: usize = 16;

/// Recorded layers of one model.
#[derive(Debug, Clone, Default)]
pub struct Library {
    layers: Vec<(usize, Capture)>,
}

impl Library {
    /// Captures by layer; those without values are of no use and left out.
    pub fn new(layers: impl IntoIterator<Item = (usize, Capture)>) -> Self {
        let usable = |(_, capture): &(usize, Capture)| {
            capture.values(0).is_some()
                && (capture.kv_heads, capture.group, capture.dim) == (3, 3, 64)
        };
        Self {
            layers: layers.into_iter().filter(usable).collect(),
        }
    }

    /// The captures of a folder, by the layer that their names end in; none if there is no such folder.
    ///
    /// # Errors
    ///
    /// One that names a file that is no capture.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let Ok(entries) = std::fs::read_dir(folder) else {
            eprintln!("no captures in {}: rows are synthetic", folder.display());
            return Ok(Self::default());
        };
        let mut layers = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let number = stem
                .rsplit_once("layer")
                .and_then(|(_, number)| number.parse().ok());
            let is_tensors = path.extension().is_some_and(|kind| kind == "safetensors");
            if let (Some(layer), true) = (number, is_tensors) {
                let capture = Capture::read(&path)
                    .with_context(|| format!("cannot use {}", path.display()))?;
                layers.push((layer, capture));
            }
        }
        let library = Self::new(layers);
        if library.is_empty() {
            eprintln!("no captures in {}: rows are synthetic", folder.display());
        }
        Ok(library)
    }

    /// Whether there is no layer.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    fn layer(&self, layer: usize) -> Option<&Capture> {
        let found = self.layers.iter().find(|(number, _)| *number == layer);
        found.map(|(_, capture)| capture)
    }

    /// The recorded heads of a shape, `None` if a layer that it needs is missing.
    fn heads(&self, shape: Shape, layer: usize) -> Option<Vec<Head>> {
        let all = |capture| (0..3).map(move |head| Head::of(capture, head));
        match shape {
            Shape::SmolLm2 => Some(all(self.layer(layer)?).collect()),
            Shape::OneHead(group) => Some(vec![Head::of(self.layer(layer)?, 0).with_group(group)]),
            Shape::Llama3 => {
                let mut single = Vec::new();
                for layer in PAIRED_LAYERS {
                    single.extend(all(self.layer(layer)?));
                }
                let pairs = single.iter().zip(&single[1..]);
                Some(pairs.map(|(a, b)| Head::side_by_side(a, b)).collect())
            }
        }
    }
}

/// Generated rows begin with as many recorded ones, and end with [`LAST`] of them.
const FIRST: usize = 4;

/// The rows before the queries, which these attend to most.
const LAST: usize = 256;

/// Puts the recorded first and last rows in the place of generated ones: the sinks, and what the queries were recorded beside.
fn keep_ends(rows: &mut [f32], recorded: &[f32], dim: usize) {
    let (first, last) = (FIRST * dim, LAST * dim);
    if rows.len() < first + last || recorded.len() < first + last {
        return;
    }
    rows[..first].copy_from_slice(&recorded[..first]);
    let (to, from) = (rows.len() - last, recorded.len() - last);
    rows[to..].copy_from_slice(&recorded[from..]);
}

/// One recorded KV head.
struct Head {
    dim: usize,
    /// `[N, D]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Of each query head the rows of the last tokens, `[R, D]`.
    queries: Vec<Vec<f32>>,
}

impl Head {
    fn of(capture: &Capture, head: usize) -> Self {
        let rows = |query: usize| {
            let rows = (0..capture.rows).flat_map(move |row| capture.query(query, row));
            rows.copied().collect()
        };
        Self {
            dim: capture.dim,
            keys: capture.keys(head).to_vec(),
            values: capture.values(head).unwrap_or_default().to_vec(),
            queries: (head * capture.group..(head + 1) * capture.group)
                .map(rows)
                .collect(),
        }
    }

    fn with_group(mut self, group: usize) -> Self {
        let recorded = std::mem::take(&mut self.queries);
        self.queries = (0..group)
            .map(|g| {
                let rows = &recorded[g % recorded.len()];
                let earlier = EARLIER * self.dim * (g / recorded.len());
                rows[..rows.len() - earlier].to_vec()
            })
            .collect();
        self
    }

    /// Keys, values and queries of dimension `2 D`; four query heads of the nine pairs that there are.
    fn side_by_side(a: &Self, b: &Self) -> Self {
        let dim = a.dim;
        let joined = |a: &[f32], b: &[f32]| -> Vec<f32> {
            let rows = a.chunks_exact(dim).zip(b.chunks_exact(dim));
            rows.flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let pairs = [(0, 0), (1, 1), (2, 2), (0, 1)];
        Self {
            dim: 2 * dim,
            keys: joined(&a.keys, &b.keys),
            values: joined(&a.values, &b.values),
            queries: pairs
                .iter()
                .map(|&(i, j)| joined(&a.queries[i], &b.queries[j]))
                .collect(),
        }
    }
}

/// One layer's keys and values, and the queries of its last tokens.
///
/// # Shapes
///
/// `keys`, `values` `[Hkv, N, D]`; `queries` `[R, Hq, D]`: those of token `N - R + r`.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Where the rows come from, in a few words.
    pub source: &'static str,
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
    /// The rows of a scenario, with queries of the last `rows` tokens (or as many as there are).
    ///
    /// Queries are recorded ones in any case. Without the captures that it needs: [`Problem::synthetic`].
    ///
    /// # Errors
    ///
    /// [`TooFewRows`] if a capture is too short to be fitted.
    pub fn of(scenario: &Scenario, library: &Library, rows: usize) -> Result<Self, TooFewRows> {
        let shape = scenario.shape;
        let (layer, recorded) = match scenario.data {
            Data::Layer(layer) => (layer, true),
            Data::Generated => (FITTED_LAYER, false),
        };
        let rows = rows.min(scenario.len);
        let heads = library.heads(shape, layer).filter(|heads| {
            let long = |head: &Head| head.keys.len() >= scenario.len * head.dim;
            !recorded || heads.iter().all(long)
        });
        let Some(heads) = heads else {
            let synthetic = Self::synthetic(shape, scenario.len, rows);
            return Ok(synthetic.rounded(scenario.precision));
        };
        let available = heads.iter().flat_map(|head| &head.queries);
        let available = available.map(|rows| rows.len() / shape.dim()).min();
        let rows = rows.min(available.unwrap_or(rows));
        let (keys, values) = if recorded {
            let last = |rows: &[f32]| rows[rows.len() - scenario.len * shape.dim()..].to_vec();
            let heads = || heads.iter();
            (
                heads().flat_map(|head| last(&head.keys)).collect(),
                heads().flat_map(|head| last(&head.values)).collect(),
            )
        } else {
            let of = |head: &Head, what: &[f32], seed| {
                let mut rows = Generator::fit(what, head.dim)?.draw(scenario.len, seed);
                keep_ends(&mut rows, what, head.dim);
                Ok(rows)
            };
            let indexed = || heads.par_iter().enumerate();
            let keys = indexed().map(|(i, head)| of(head, &head.keys, 2 * i as u64));
            let keys: Vec<Vec<f32>> = keys.collect::<Result<_, _>>()?;
            let keys = keys.concat();
            let values = indexed().map(|(i, head)| of(head, &head.values, 2 * i as u64 + 1));
            let values: Vec<Vec<f32>> = values.collect::<Result<_, _>>()?;
            (keys, values.concat())
        };
        let dim = shape.dim();
        let queries = (0..rows)
            .flat_map(|row| {
                heads
                    .iter()
                    .flat_map(move |head| head.queries.iter().map(move |rows| (row, rows)))
            })
            .flat_map(|(row, queries)| {
                let first = queries.len() - (rows - row) * dim;
                &queries[first..first + dim]
            })
            .copied()
            .collect();
        let problem = Self {
            source: match (recorded, shape) {
                (true, _) => "captured",
                (false, Shape::Llama3) => "generated, fitted to pairs of heads of layers 3, 14, 26",
                (false, _) => "generated, fitted to layer 14",
            },
            kv_heads: shape.kv_heads(),
            group: shape.group(),
            len: scenario.len,
            dim,
            rows,
            keys,
            values,
            queries,
        };
        Ok(problem.rounded(scenario.precision))
    }

    /// Keys and values as they are stored.
    fn rounded(mut self, precision: Precision) -> Self {
        if precision != Precision::F32 {
            let rows = self.keys.iter_mut().chain(&mut self.values);
            rows.for_each(|value| *value = precision.round(*value));
        }
        self
    }

    /// Keys around 64 random centres, queries that look for one of them: for machines without captures, and not a substitute.
    pub fn synthetic(shape: Shape, len: usize, rows: usize) -> Self {
        let (kv_heads, group, dim) = (shape.kv_heads(), shape.group(), shape.dim());
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
            source: "synthetic: no captures",
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
}
