//! A prompt's dense causal attention on a device, by Burn's tensor operations.

use burn::tensor::{Bool, DType, Tensor, activation::softmax};
use hira_index::DeviceStore;
use hira_index::burn::{HiraBackend, device_rows};

use crate::AttentionError;

/// Most scores that are alive at a time: half a gigabyte of f32.
const SCORES: usize = 1 << 27;

/// Attention of the queries of positions from `before` on, each over the keys up to its own, which the store holds already.
///
/// # Shapes
///
/// `q` `[B, Hq, L, D]` to `[B, Hq, L, Dv]`.
///
/// # Numerics
///
/// Keys and values as they are stored, widened to f32; scores, softmax and sums by Burn's f32 operations.
pub(crate) fn dense<B: HiraBackend>(
    store: &dyn DeviceStore,
    q: Tensor<B, 4>,
    before: usize,
    scale: f32,
) -> Result<Tensor<B, 4>, AttentionError> {
    let [sequences, heads, tokens, dim] = q.dims();
    let element = q.dtype();
    let [keys, values] = device_rows::<B>(store)?.map(|rows| wide(rows));
    let [_, kv_heads, stored, value_dim] = values.dims();
    let group = heads / kv_heads;
    let keys = keys.swap_dims(2, 3);
    let chunk = (SCORES / (sequences * heads * stored).max(1)).clamp(1, tokens.max(1));
    let mut outs = Vec::with_capacity(tokens.div_ceil(chunk));
    for start in (0..tokens).step_by(chunk) {
        let len = chunk.min(tokens - start);
        let visible = before + start + len;
        let rows = wide(q.clone().narrow(2, start, len)).mul_scalar(scale);
        let rows = rows.reshape([sequences, kv_heads, group * len, dim]);
        let scores = rows.matmul(keys.clone().narrow(3, 0, visible));
        // token `start + i` does not see the last `len - 1 - i` of these keys
        let unseen = Tensor::<B, 2, Bool>::tril_mask(
            [len, visible],
            (before + start) as i64,
            &scores.device(),
        );
        let unseen = unseen.reshape([1, 1, len, visible]);
        let scores = scores
            .reshape([sequences, kv_heads * group, len, visible])
            .mask_fill(unseen.expand([sequences, heads, len, visible]), f32::MIN);
        let weights = softmax(scores, 3).reshape([sequences, kv_heads, group * len, visible]);
        let out = weights.matmul(values.clone().narrow(2, 0, visible));
        outs.push(out.reshape([sequences, heads, len, value_dim]));
    }
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

/// The same numbers in f32.
fn wide<B: HiraBackend>(tensor: Tensor<B, 4>) -> Tensor<B, 4> {
    match tensor.dtype() {
        DType::F32 => tensor,
        _ => tensor.cast(DType::F32),
    }
}
