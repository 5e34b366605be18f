use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use hira_index::burn::HiraBackend;

use super::rope::{Rotary, RotarySpan};

/// What every layer needs for one run of tokens, made once.
pub(super) struct Pass<B: HiraBackend> {
    /// The rotary angles of the run.
    pub(super) span: RotarySpan<B>,
    /// From rows of half a head, token by token, to head-major order: first halves of the rotated heads, second halves, values.
    pub(super) split: Tensor<B, 1, Int>,
    /// From rows of one head, head by head, to token-major order.
    pub(super) merge: Tensor<B, 1, Int>,
}

impl<B: HiraBackend> Pass<B> {
    /// The run of `len` tokens from position `start`, for this many query and key/value heads.
    pub(super) fn new(
        rotary: &Rotary<B>,
        (start, len): (usize, usize),
        (query_heads, heads): (usize, usize),
        device: &B::Device,
    ) -> Self {
        let rotated = query_heads + heads;
        let row = |token: usize, half: usize| token * 2 * (rotated + heads) + half;
        let mut split = Vec::with_capacity(2 * (rotated + heads) * len);
        for half in 0..2 {
            for head in 0..rotated {
                split.extend((0..len).map(|token| row(token, 2 * head + half)));
            }
        }
        for head in rotated..rotated + heads {
            for token in 0..len {
                split.extend([row(token, 2 * head), row(token, 2 * head + 1)]);
            }
        }
        let merge = (0..len)
            .flat_map(|token| (0..query_heads).map(move |head| head * len + token))
            .collect();
        Self {
            span: rotary.span(start, len),
            split: indices(split, device),
            merge: indices(merge, device),
        }
    }
}

/// A tensor of indices, in the backend's own integer type.
pub(super) fn indices<B: HiraBackend>(values: Vec<usize>, device: &B::Device) -> Tensor<B, 1, Int> {
    let len = values.len();
    let values: Vec<B::IntElem> = values.into_iter().map(|i| (i as i64).elem()).collect();
    Tensor::from_data(TensorData::new(values, [len]), device)
}
