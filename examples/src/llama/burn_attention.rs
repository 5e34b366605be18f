use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Tensor, activation::softmax};
use hira_attention::{
    AttentionError, AttentionProcessor, AttentionReport, HiraAttention, HiraAttentionConfig,
};
use hira_cache::{CacheError, HiraCache};
use hira_index::burn::HiraBackend;

/// New tokens that are kept apart from the rest, so that appending one copies no more than these.
const TAIL: usize = 128;

/// Attention by Burn's own tensor operations over plain key and value tensors, to compare with.
///
/// It is the fastest that Burn 0.21 offers on Flex: `softmax(Q K^T) V` with the queries of a group as rows, so that keys and values
/// are read once a group (`module::attention` is not faster, and wants the whole cache in one piece). `slice_assign` copies the
/// whole tensor there and `cat` too, so the newest tokens are a tensor of their own.
///
/// Prompts run through dense Hira attention, which stores them in the cache, and are kept here too. Decode steps of one token
/// leave the cache alone, but for the sliding window of the layer, which is the cache's. Clones share their keys and values.
#[derive(Debug, Clone)]
pub struct BurnAttention<B: HiraBackend> {
    prompts: HiraAttention<B>,
    layers: Arc<Mutex<Vec<Blocks<B>>>>,
}

/// Keys and values of one layer, `[1, Hkv, n, D]`: what is old, and the newest tokens.
#[derive(Debug, Default)]
struct Blocks<B: HiraBackend>(Vec<[Tensor<B, 4>; 2]>);

impl<B: HiraBackend> BurnAttention<B> {
    /// An empty one for a model of this many layers.
    ///
    /// # Errors
    ///
    /// As [`HiraAttentionConfig::init`].
    pub fn new(layers: usize, device: &B::Device) -> Result<Self, AttentionError> {
        let layers = (0..layers).map(|_| Blocks(Vec::new())).collect();
        Ok(Self {
            prompts: HiraAttentionConfig::dense().init(device)?,
            layers: Arc::new(Mutex::new(layers)),
        })
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&self, len: usize) {
        for layer in self.layers().iter_mut() {
            layer.truncate(len);
        }
    }

    fn layers(&self) -> MutexGuard<'_, Vec<Blocks<B>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: HiraBackend> AttentionProcessor<B> for BurnAttention<B> {
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let mut layers = self.layers();
        let (received, count) = (layer, layers.len());
        let Some(blocks) = layers.get_mut(layer) else {
            let layers = count;
            return Err(CacheError::Layer { layers, received }.into());
        };
        if q.dims()[2] > 1 {
            let answer = self
                .prompts
                .process(q, k.clone(), v.clone(), cache, layer)?;
            blocks.join([k, v]);
            return Ok(answer);
        }
        blocks.push([k, v]);
        let window = cache.layer(layer)?.window().unwrap_or(usize::MAX);
        let out = blocks.seen(window).attend(q);
        Ok((out, AttentionReport::new(layer, blocks.len())))
    }
}

impl<B: HiraBackend> Blocks<B> {
    fn len(&self) -> usize {
        self.0.iter().map(|[keys, _]| keys.dims()[2]).sum()
    }

    /// Appends one token.
    fn push(&mut self, token: [Tensor<B, 4>; 2]) {
        match self.0.as_mut_slice() {
            [_, tail] if tail[0].dims()[2] < TAIL => append(tail, token),
            [_, _] => {
                self.join_all();
                self.0.push(token);
            }
            _ => self.0.push(token),
        }
    }

    /// Appends a prompt to what is old.
    fn join(&mut self, prompt: [Tensor<B, 4>; 2]) {
        self.0.push(prompt);
        self.join_all();
    }

    fn join_all(&mut self) {
        let mut blocks = std::mem::take(&mut self.0).into_iter();
        if let Some(mut first) = blocks.next() {
            blocks.for_each(|block| append(&mut first, block));
            self.0.push(first);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.join_all();
        for tensor in self.0.iter_mut().flatten() {
            let [_, heads, stored, dim] = tensor.dims();
            *tensor = tensor
                .clone()
                .slice([0..1, 0..heads, 0..len.min(stored), 0..dim]);
        }
    }

    /// The newest `window` tokens.
    fn seen(&self, window: usize) -> Self {
        let mut hidden = self.len().saturating_sub(window);
        let mut seen = Vec::with_capacity(self.0.len());
        for block in &self.0 {
            let len = block[0].dims()[2];
            if hidden >= len {
                hidden -= len;
                continue;
            }
            let from = std::mem::take(&mut hidden);
            seen.push(block.clone().map(|tensor| {
                let [_, heads, len, dim] = tensor.dims();
                match from {
                    0 => tensor,
                    _ => tensor.slice([0..1, 0..heads, from..len, 0..dim]),
                }
            }));
        }
        Self(seen)
    }

    /// `[1, Hq, 1, D]` to `[1, Hq, 1, D]`.
    fn attend(&self, q: Tensor<B, 4>) -> Tensor<B, 4> {
        let [_, heads, _, dim] = q.dims();
        let kv_heads = self.0[0][0].dims()[1];
        let group = heads / kv_heads;
        let q = q.reshape([1, kv_heads, group, dim]) / (dim as f64).sqrt();
        let scores = |keys: &Tensor<B, 4>| q.clone().matmul(keys.clone().swap_dims(2, 3));
        let scores = self.0.iter().map(|[keys, _]| scores(keys)).collect();
        let weights = softmax(Tensor::cat(scores, 3), 3);
        let mut start = 0;
        let addends = self.0.iter().map(|[_, values]| {
            let range = start..start + values.dims()[2];
            start = range.end;
            let weights = weights.clone().slice([0..1, 0..kv_heads, 0..group, range]);
            weights.matmul(values.clone())
        });
        let sum = addends.reduce(|sum, addend| sum + addend);
        sum.unwrap_or(q).reshape([1, heads, 1, dim])
    }
}

fn append<B: HiraBackend>(block: &mut [Tensor<B, 4>; 2], more: [Tensor<B, 4>; 2]) {
    for (tensor, more) in block.iter_mut().zip(more) {
        *tensor = Tensor::cat(vec![tensor.clone(), more], 2);
    }
}
