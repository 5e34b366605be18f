//! What attention reported, by layer and head.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use hira_attention::{AttentionError, AttentionProcessor, AttentionReport, HiraBackend, HiraCache};
use serde::{Deserialize, Serialize};

/// The reports of one query head of one layer, added up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct HeadSums {
    /// Queries.
    pub queries: u64,
    /// Keys attended to.
    pub attended: u64,
    /// Visible keys.
    pub visible: u64,
    /// Sum of the proven bounds on the dropped mass.
    pub dropped_mass: f64,
}

impl HeadSums {
    /// Adds another head's.
    pub fn join(&mut self, other: &Self) {
        self.queries += other.queries;
        self.attended += other.attended;
        self.visible += other.visible;
        self.dropped_mass += other.dropped_mass;
    }

    /// Keys attended to / visible keys; 1 if there was no query.
    pub fn density(&self) -> f64 {
        match self.visible {
            0 => 1.0,
            visible => self.attended as f64 / visible as f64,
        }
    }

    /// Mean over queries of the proven bound on the dropped mass.
    pub fn dropped_mass_mean(&self) -> f64 {
        self.dropped_mass / self.queries.max(1) as f64
    }
}

/// Sums by layer and query head.
pub type LayerSums = Vec<Vec<HeadSums>>;

/// The sum over all layers and heads.
pub(super) fn total(layers: &LayerSums) -> HeadSums {
    let mut total = HeadSums::default();
    layers.iter().flatten().for_each(|head| total.join(head));
    total
}

/// Adds sums head by head; those of a shape that is not there yet are taken as they are.
pub(super) fn join(into: &mut LayerSums, other: &LayerSums) {
    into.resize_with(into.len().max(other.len()), Vec::new);
    for (heads, others) in into.iter_mut().zip(other) {
        heads.resize(heads.len().max(others.len()), HeadSums::default());
        heads
            .iter_mut()
            .zip(others)
            .for_each(|(head, other)| head.join(other));
    }
}

/// An attention whose reports are kept: of the calls whose first query is at position `from` or later.
#[derive(Debug)]
pub struct Reported<B: HiraBackend> {
    inner: Box<dyn AttentionProcessor<B>>,
    from: usize,
    layers: Arc<Mutex<LayerSums>>,
}

impl<B: HiraBackend> Reported<B> {
    /// Around another attention. The second value is where the sums are.
    pub fn new(
        inner: Box<dyn AttentionProcessor<B>>,
        from: usize,
    ) -> (Self, Arc<Mutex<LayerSums>>) {
        let layers = Arc::new(Mutex::new(LayerSums::new()));
        let shared = Arc::clone(&layers);
        (
            Self {
                inner,
                from,
                layers,
            },
            shared,
        )
    }
}

/// Takes what was summed out of what is shared with a [`Reported`].
pub(super) fn take(shared: &Mutex<LayerSums>) -> LayerSums {
    std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner))
}

impl<B: HiraBackend> AttentionProcessor<B> for Reported<B> {
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let before = cache.layer(layer)?.len();
        let (out, report) = self.inner.process(q, k, v, cache, layer)?;
        if before >= self.from {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            if layers.len() <= layer {
                layers.resize_with(layer + 1, Vec::new);
            }
            let heads = report.heads.iter().map(|head| HeadSums {
                queries: head.queries,
                attended: head.attended,
                visible: head.visible,
                dropped_mass: head.dropped_mass_sum,
            });
            let one: LayerSums = (0..layer)
                .map(|_| Vec::new())
                .chain([heads.collect()])
                .collect();
            join(&mut layers, &one);
        }
        Ok((out, report))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn_flex::Flex;
    use hira_attention::{CacheShape, HiraAttentionConfig, PlanPolicy};

    #[test]
    fn sums_are_those_of_the_calls_from_a_position_on() {
        let device = Default::default();
        let config = HiraAttentionConfig {
            plan: PlanPolicy::Sparse,
            ..HiraAttentionConfig::new()
                .with_top_k(2)
                .with_sinks_and_window(0, 0)
        };
        let shape = CacheShape {
            layers: 2,
            sequences: 1,
            kv_heads: 1,
            head_dim: 4,
            value_dim: 4,
            max_len: 16,
        };
        let mut cache = config.init_cache(shape).expect("a cache");
        let inner = config.init::<Flex>(&device).expect("attention");
        let (attention, sums) = Reported::new(Box::new(inner), 3);
        for (start, tokens) in [(0usize, 3usize), (3, 2)] {
            for layer in 0..2 {
                let row = |i: usize| ((i * 7 + start) % 5) as f32 - 2.0;
                let values: Vec<f32> = (0..tokens * 4).map(row).collect();
                let kv = Tensor::<Flex, 1>::from_floats(values.as_slice(), &device)
                    .reshape([1, 1, tokens, 4]);
                let q = Tensor::cat(vec![kv.clone(), kv.clone()], 1);
                attention
                    .process(q, kv.clone(), kv, &mut cache, layer)
                    .expect("it attends");
            }
        }
        let layers = take(&sums);
        assert_eq!((layers.len(), layers[1].len()), (2, 2));
        // tokens 3 and 4 see 4 and 5 keys and attend to 2 each
        let head = layers[1][1];
        assert_eq!((head.queries, head.visible, head.attended), (2, 9, 4));
        assert_eq!(total(&layers).attended, 16);
        assert!((total(&layers).density() - 4.0 / 9.0).abs() < 1e-12);
        assert!(take(&sums).is_empty());
    }
}
