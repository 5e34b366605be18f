//! A prompt's dense causal attention on a device, by Burn's tensor operations.

use burn::tensor::{Bool, DType, Tensor};
use hira_index::burn::{HiraBackend, device_rows};
use hira_index::{DeviceStore, RowPlace};

use crate::AttentionError;

/// Most scores that are alive at a time: half a gigabyte of f32.
const SCORES: usize = 1 << 27;

/// Keys of rows in main memory that are brought at a time.
const BROUGHT: usize = 8192;

/// Queries whose scores are alive at the same time, `[B, Hkv, G * len, D]`, and what the keys so far came to.
struct Chunk<B: HiraBackend> {
    rows: Tensor<B, 4>,
    start: usize,
    len: usize,
    sums: Option<Sums<B>>,
}

/// A softmax that is not finished: each query's largest score, the sum of its weights relative to that, and its weighted values.
struct Sums<B: HiraBackend> {
    largest: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    values: Tensor<B, 4>,
}

/// Attention of the queries of positions from `before` on, each over the keys up to its own, which the store holds already.
///
/// Exact rows that lie in main memory are brought [`BROUGHT`] keys of a head at a time, once.
///
/// # Shapes
///
/// `q` `[B, Hq, L, D]` to `[B, Hq, L, Dv]`.
///
/// # Numerics
///
/// Keys and values as they are stored, widened to f32; scores, softmax and sums by Burn's f32 operations.
pub(crate) fn dense<B: HiraBackend>(
    store: &mut dyn DeviceStore,
    q: Tensor<B, 4>,
    before: usize,
    scale: f32,
) -> Result<Tensor<B, 4>, AttentionError> {
    let [sequences, heads, tokens, dim] = q.dims();
    let element = q.dtype();
    let stored = store.len();
    let keys_each = match store.rows() {
        RowPlace::Device => stored,
        RowPlace::Host => BROUGHT.min(stored),
    };
    let keys_each = keys_each.max(1);
    let queries_each = (SCORES / (sequences * heads * keys_each).max(1)).clamp(1, tokens.max(1));
    let mut chunks: Vec<Chunk<B>> = Vec::with_capacity(tokens.div_ceil(queries_each));
    for first in (0..stored).step_by(keys_each) {
        let end = (first + keys_each).min(stored);
        let [keys, values] = device_rows::<B>(store, first..end)?.map(|rows| wide(rows));
        let kv_heads = values.dims()[1];
        let keys = keys.swap_dims(2, 3);
        if chunks.is_empty() {
            let starts = (0..tokens).step_by(queries_each);
            chunks.extend(starts.map(|start| {
                let len = queries_each.min(tokens - start);
                let rows = wide(q.clone().narrow(2, start, len)).mul_scalar(scale);
                let group = heads / kv_heads;
                Chunk {
                    rows: rows.reshape([sequences, kv_heads, group * len, dim]),
                    start: before + start,
                    len,
                    sums: None,
                }
            }));
        }
        for chunk in &mut chunks {
            chunk.add(&keys, &values, first);
        }
    }
    let mut outs: Vec<_> = chunks
        .into_iter()
        .filter_map(|chunk| {
            let Sums { weight, values, .. } = chunk.sums?;
            let out = values / weight;
            let value_dim = out.dims()[3];
            Some(out.reshape([sequences, heads, chunk.len, value_dim]))
        })
        .collect();
    let out = match outs.len() {
        1 => outs.remove(0),
        _ => Tensor::cat(outs, 2),
    };
    Ok(if element == DType::F32 {
        out
    } else {
        out.cast(element)
    })
}

impl<B: HiraBackend> Chunk<B> {
    /// Adds keys `[B, Hkv, D, N]` and values `[B, Hkv, N, Dv]` of positions from `first` on, as far as the queries see them. The first keys of all
    /// come first: of those every query sees one.
    fn add(&mut self, keys: &Tensor<B, 4>, values: &Tensor<B, 4>, first: usize) {
        let seen = (self.start + self.len).saturating_sub(first);
        let seen = seen.min(values.dims()[2]);
        if seen == 0 {
            return;
        }
        let scores = self.rows.clone().matmul(keys.clone().narrow(3, 0, seen));
        let [sequences, kv_heads, rows, _] = scores.dims();
        let group = rows / self.len;
        let scores = if first + seen > self.start + 1 {
            // token `start + i` sees the keys up to its own
            let unseen = Tensor::<B, 2, Bool>::tril_mask(
                [self.len, seen],
                self.start as i64 - first as i64,
                &scores.device(),
            );
            let by_token = [sequences, kv_heads * group, self.len, seen];
            let unseen = unseen.reshape([1, 1, self.len, seen]).expand(by_token);
            let scores = scores.reshape(by_token).mask_fill(unseen, f32::MIN);
            scores.reshape([sequences, kv_heads, rows, seen])
        } else {
            scores
        };
        let largest = scores.clone().max_dim(3);
        let values = values.clone().narrow(2, 0, seen);
        let sums = match self.sums.take() {
            None => {
                let weights = (scores - largest.clone()).exp();
                Sums {
                    largest,
                    weight: weights.clone().sum_dim(3),
                    values: weights.matmul(values),
                }
            }
            Some(old) => {
                let largest = largest.max_pair(old.largest.clone());
                let factor = (old.largest - largest.clone()).exp();
                let weights = (scores - largest.clone()).exp();
                Sums {
                    largest,
                    weight: old.weight * factor.clone() + weights.clone().sum_dim(3),
                    values: old.values * factor + weights.matmul(values),
                }
            }
        };
        self.sums = Some(sums);
    }
}

/// The same numbers in f32.
fn wide<B: HiraBackend>(tensor: Tensor<B, 4>) -> Tensor<B, 4> {
    match tensor.dtype() {
        DType::F32 => tensor,
        _ => tensor.cast(DType::F32),
    }
}
