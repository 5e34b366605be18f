//! The Burn Llama on small random models: against naive `f64` code, against itself, and what it refuses.
#![cfg(any(feature = "flex", feature = "ndarray"))]

mod tiny;

use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use hira_attention::{
    AttentionError, AttentionProcessor, AttentionReport, HiraAttention, HiraAttentionConfig,
    HiraBackend, HiraCache, PlanPolicy,
};
use hira_examples::device::is_flex;
use hira_examples::element::Element;
use hira_examples::llama::{
    AttentionChoice, BurnAttention, CHUNK, Llama, LlamaCache, LlamaError, WeightPrecision,
};
use hira_examples::weights::{ModelConfig, RopeScaling};
use tiny::Tiny;

fn load<B: HiraBackend>(source: &Tiny) -> Llama<B> {
    Llama::load(source, &B::Device::default(), &mut |_, _| {}).expect("the model loads")
}

fn ids(len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (i * 37 + i * i % 11) % 61)
        .collect()
}

/// The largest difference, relative to the largest magnitude on the right.
fn difference<L: Copy + Into<f64>, R: Copy + Into<f64>>(left: &[L], right: &[R]) -> f64 {
    assert_eq!(left.len(), right.len());
    let pairs = || {
        left.iter()
            .zip(right)
            .map(|(l, r)| ((*l).into(), (*r).into()))
    };
    let scale = pairs()
        .map(|(_, r): (f64, f64)| r.abs())
        .fold(0.0, f64::max);
    pairs().map(|(l, r)| (l - r).abs()).fold(0.0, f64::max) / scale
}

fn agrees_with_naive<B: HiraBackend>(change: impl FnOnce(&mut ModelConfig)) {
    let source = Tiny::new().with(change);
    let (model, ids) = (load::<B>(&source), ids(40));
    let mut cache = model.new_cache(ids.len()).expect("the cache fits");
    let logits = model.forward_all(&mut cache, &ids).expect("the model runs");
    for (position, (ours, naive)) in logits.iter().zip(source.logits_naive(&ids)).enumerate() {
        let worst = difference(ours, &naive);
        assert!(worst < 1e-4, "position {position} is off by {worst}");
    }
}

fn every_shape_agrees_with_naive<B: HiraBackend>() {
    agrees_with_naive::<B>(|_| {});
    agrees_with_naive::<B>(|config| config.tie_word_embeddings = false);
    agrees_with_naive::<B>(|config| config.attention_bias = true);
    agrees_with_naive::<B>(|config| config.num_key_value_heads = 4);
    agrees_with_naive::<B>(|config| config.num_key_value_heads = 1);
    agrees_with_naive::<B>(|config| config.sliding_window = Some(7));
    agrees_with_naive::<B>(|config| config.head_dim = 6);
}

fn every_rope_scaling_agrees_with_naive<B: HiraBackend>() {
    agrees_with_naive::<B>(|config| config.rope_scaling = RopeScaling::Linear { factor: 4.0 });
    agrees_with_naive::<B>(|config| config.rope_scaling = RopeScaling::Ntk { factor: 4.0 });
    agrees_with_naive::<B>(|config| {
        config.rope_scaling = RopeScaling::Dynamic {
            factor: 2.0,
            original_max_position_embeddings: 320,
        }
    });
    agrees_with_naive::<B>(|config| config.rope_scaling = RopeScaling::yarn(2.0, 320));
    agrees_with_naive::<B>(|config| {
        config.rope_scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 128,
        }
    });
    agrees_with_naive::<B>(|config| {
        config.rope_scaling = RopeScaling::Factors((0..8).map(|i| 1.0 + i as f32).collect())
    });
}

fn one_call_is_token_by_token<B: HiraBackend>() {
    let model = load::<B>(&Tiny::new());
    let ids = ids(CHUNK + 9);
    let mut steps = Vec::new();
    let mut at_once = model.new_cache(ids.len()).expect("the cache fits");
    let progress = &mut |done, total| steps.push((done, total));
    let prefilled = model
        .forward(&mut at_once, &ids, progress)
        .expect("the model runs");
    let (half, all) = ((CHUNK + 9).div_ceil(2), CHUNK + 9);
    assert_eq!(steps, [(half, all), (all, all)]);
    assert_eq!(at_once.len(), ids.len());

    let mut one_by_one = model.new_cache(ids.len()).expect("the cache fits");
    let mut last = Vec::new();
    for id in &ids {
        last = model
            .forward(&mut one_by_one, &[*id], &mut |_, _| {})
            .expect("the model runs");
    }
    assert!(difference(&prefilled, &last) < 1e-4);

    at_once.truncate(100).expect("nothing is evicted");
    let again = model
        .forward(&mut at_once, &ids[100..], &mut |_, _| {})
        .expect("the model runs");
    assert!(difference(&again, &last) < 1e-4);
    at_once.reset();
    assert!(at_once.is_empty());
}

fn hira_that_selects_every_key_is_dense<B: HiraBackend>() {
    let mut model = load::<B>(&Tiny::new().with(|config| config.attention_bias = true));
    let ids = ids(80);
    let mut cache = model.new_cache(ids.len()).expect("the cache fits");
    let dense = model.forward_all(&mut cache, &ids).expect("dense runs");
    assert_eq!(cache.metrics().density(), 1.0);

    let mut everything = HiraAttentionConfig::new()
        .with_threshold(f32::NEG_INFINITY)
        .with_plan(PlanPolicy::Sparse)
        .with_sinks_and_window(0, 0);
    everything.use_hira_during_prefill = true;
    let mut narrow = everything.clone().with_top_k(8);
    narrow.min_sparse_len = 0;
    model
        .set_attention(AttentionChoice::Hira(Box::new(everything)))
        .expect("the configuration is valid");
    cache.reset();
    let hira = model.forward_all(&mut cache, &ids).expect("hira runs");
    assert_eq!(cache.metrics().density(), 1.0);
    assert_eq!(cache.metrics().dense_queries, 0);
    for (hira, dense) in hira.iter().zip(&dense) {
        assert!(difference(hira, dense) < 1e-4);
    }

    model
        .set_attention(AttentionChoice::Hira(Box::new(narrow)))
        .expect("the configuration is valid");
    cache.reset();
    model.forward_all(&mut cache, &ids).expect("hira runs");
    // In tiles of 16: the 8 best of the keys before a tile, and every key of it up to one's own.
    let attended = |position: usize| 8.min(position - position % 16) + position % 16 + 1;
    let attended: usize = (0..80).map(attended).sum();
    let visible = 80 * 81 / 2;
    let expected = attended as f64 / visible as f64;
    assert!(
        (cache.metrics().density() - expected).abs() < 1e-9,
        "{:?}",
        cache.metrics()
    );
    assert!(cache.metrics().worst().dropped_mass_bound > 0.0);
}

/// A layer, and the shapes of queries and keys.
type Call = (usize, [usize; 4], [usize; 4]);

/// Dense attention that notes the layer and the shapes of what it is given.
#[derive(Debug)]
struct Noting<B: HiraBackend> {
    inner: HiraAttention<B>,
    seen: Arc<Mutex<Vec<Call>>>,
}

impl<B: HiraBackend> AttentionProcessor<B> for Noting<B> {
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        self.seen
            .lock()
            .expect("no thread panicked")
            .push((layer, q.dims(), k.dims()));
        self.inner.process(q, k, v, cache, layer)
    }
}

fn an_attention_of_ones_own_serves_every_layer<B: HiraBackend>() {
    let mut model = load::<B>(&Tiny::new());
    let mut cache = model.new_cache(8).expect("the cache fits");
    let dense = model
        .forward(&mut cache, &ids(5), &mut |_, _| {})
        .expect("the model runs");
    let seen = Arc::default();
    model.set_processor(Box::new(Noting {
        inner: HiraAttentionConfig::dense()
            .init(&B::Device::default())
            .expect("it is valid"),
        seen: Arc::clone(&seen),
    }));
    cache.reset();
    let noted = model
        .forward(&mut cache, &ids(5), &mut |_, _| {})
        .expect("the model runs");
    assert_eq!(noted, dense);
    let expected = [0, 1].map(|layer| (layer, [1, 4, 5, 16], [1, 2, 5, 16]));
    assert_eq!(*seen.lock().expect("no thread panicked"), expected);
}

fn burns_attention_is_dense<B: HiraBackend>() {
    let mut model = load::<B>(&Tiny::new());
    // enough steps that the newest tokens are joined with the rest
    let (ids, prompt) = (ids(300), 20);
    let mut cache = model.new_cache(ids.len()).expect("the cache fits");
    let steps = |model: &Llama<B>, cache: &mut LlamaCache| -> Vec<Vec<f32>> {
        let quiet = &mut |_, _| {};
        let from = cache.len().max(prompt);
        if cache.is_empty() {
            model
                .forward(cache, &ids[..prompt], quiet)
                .expect("the prompt runs");
        }
        let steps = ids[from..].iter();
        steps
            .map(|id| model.forward(cache, &[*id], quiet).expect("the step runs"))
            .collect()
    };
    let dense = steps(&model, &mut cache);
    let burn = BurnAttention::new(2, &B::Device::default()).expect("it is valid");
    model.set_processor(Box::new(burn.clone()));
    cache.reset();
    let ours = steps(&model, &mut cache);
    assert_eq!((cache.len(), cache.store().len()), (ids.len(), prompt));
    for (ours, dense) in ours.iter().zip(&dense) {
        assert!(difference(ours, dense) < 1e-4);
    }
    let len = ids.len() - 10;
    burn.truncate(len);
    cache.truncate(len).expect("nothing is evicted");
    let again = steps(&model, &mut cache);
    assert_eq!(again.len(), 10);
    for (again, dense) in again.iter().zip(&dense[len - prompt..]) {
        assert!(difference(again, dense) < 1e-4);
    }
}

/// A model with a sliding window, token by token: dense Hira, Hira that searches, and Burn's attention agree with naive `f64`, and what no token
/// sees any more is forgotten.
fn every_attention_sees_the_window<B: HiraBackend>() {
    let window = 33;
    let source = Tiny::new().with(|config| config.sliding_window = Some(window));
    let mut model = load::<B>(&source);
    let (ids, prompt) = (ids(180), 50);
    let naive = source.logits_naive(&ids);
    let config = HiraAttentionConfig {
        plan: PlanPolicy::Sparse,
        segment_len: 32,
        ..HiraAttentionConfig::new().with_top_k(window)
    };
    let burn = BurnAttention::new(2, &B::Device::default()).expect("it is valid");
    for attention in 0..3 {
        match attention {
            0 => {}
            1 => model
                .set_attention(AttentionChoice::Hira(Box::new(config.clone())))
                .expect("it is valid"),
            _ => model.set_processor(Box::new(burn.clone())),
        }
        let mut cache = model.new_cache(ids.len()).expect("the cache fits");
        let quiet = &mut |_, _| {};
        model
            .forward(&mut cache, &ids[..prompt], quiet)
            .expect("the prompt runs");
        for (position, id) in ids.iter().enumerate().skip(prompt) {
            let logits = model
                .forward(&mut cache, &[*id], quiet)
                .expect("the step runs");
            let worst = difference(&logits, &naive[position]);
            assert!(worst < 1e-4, "{attention}: {position} is off by {worst}");
        }
        if attention == 1 {
            let layer = cache.store().layer(1).expect("there are two layers");
            assert!(layer.evicted() >= ids.len() - window - 64);
            let refused = cache.truncate(prompt);
            assert!(matches!(refused, Err(LlamaError::Attention(_))));
            assert_eq!(cache.len(), ids.len());
        }
    }
}

fn half_precision_is_close_on_flex_and_refused_elsewhere<B: HiraBackend>() {
    for change in [false, true] {
        let source = Tiny::new().with(|config| {
            config.tie_word_embeddings = change;
            config.attention_bias = change;
        });
        let mut model = load::<B>(&source);
        let set = model.set_weights(WeightPrecision::F16);
        if !is_flex::<B>() {
            assert!(matches!(set, Err(LlamaError::HalfPrecision)), "{set:?}");
            return;
        }
        set.expect("flex has half precision");
        let ids = ids(40);
        let mut cache = model.new_cache(ids.len()).expect("the cache fits");
        for (id, naive) in ids.iter().zip(source.logits_naive(&ids)) {
            let logits = model
                .forward(&mut cache, &[*id], &mut |_, _| {})
                .expect("the model runs");
            let off = difference(&logits, &naive);
            assert!((1e-6..2e-2).contains(&off), "off by {off}");
        }
    }

    let mut spoiled = Tiny::new();
    spoiled.spoiled = Some(("model.layers.1.mlp.down_proj.weight", 1e30));
    let mut model = load::<B>(&spoiled);
    model
        .set_weights(WeightPrecision::F16)
        .expect("flex has half precision");
    let mut cache = model.new_cache(4).expect("the cache fits");
    let overflow = model.forward(&mut cache, &[1], &mut |_, _| {});
    assert!(
        matches!(overflow, Err(LlamaError::NotFinite)),
        "{overflow:?}"
    );
    assert!(cache.is_empty() && cache.store().is_empty());
    model
        .set_weights(WeightPrecision::F32)
        .expect("every backend has it");
    assert!(model.forward(&mut cache, &[1], &mut |_, _| {}).is_ok());
}

fn refusals_leave_the_cache_as_it_was<B: HiraBackend>() {
    let quiet = &mut |_, _| {};
    let model = load::<B>(&Tiny::new());
    let mut cache = model.new_cache(8).expect("the cache fits");
    model
        .forward(&mut cache, &[1, 2], quiet)
        .expect("the model runs");
    let before = cache.metrics().clone();
    assert!(matches!(
        model.forward(&mut cache, &[], quiet),
        Err(LlamaError::NoTokens)
    ));
    assert!(matches!(
        model.forward(&mut cache, &[3, 61], quiet),
        Err(LlamaError::Token {
            index: 1,
            id: 61,
            vocab_size: 61
        })
    ));
    assert!(matches!(
        model.forward(&mut cache, &[0; 7], quiet),
        Err(LlamaError::Positions {
            requested: 9,
            limit: 8
        })
    ));
    assert_eq!((cache.len(), cache.metrics()), (2, &before));
    assert!(matches!(
        model.new_cache(641),
        Err(LlamaError::Positions {
            requested: 641,
            limit: 640
        })
    ));
    assert!(matches!(model.new_cache(0), Err(LlamaError::Attention(_))));

    let other = load::<B>(&Tiny::new().with(|config| config.num_key_value_heads = 4));
    assert!(matches!(
        other.forward(&mut cache, &[1], quiet),
        Err(LlamaError::Cache {
            what: "KV heads",
            expected: 4,
            received: 2
        })
    ));

    // keys of the second layer are too large: the first layer has stored its own by then
    let mut spoiled = Tiny::new();
    spoiled.spoiled = Some(("model.layers.1.self_attn.k_proj.weight", 1e30));
    let model = load::<B>(&spoiled);
    let refused = model.forward(&mut cache, &[1], quiet);
    assert!(
        matches!(refused, Err(LlamaError::Attention(_))),
        "{refused:?}"
    );
    assert_eq!((cache.store().seq_len(0), cache.store().seq_len(1)), (2, 2));
    assert_eq!(cache.metrics(), &before);
}

fn impossible_models_and_attentions_are_refused<B: HiraBackend>() {
    let refused = |source: &Tiny| {
        Llama::<B>::load(source, &B::Device::default(), &mut |_, _| {}).expect_err("it cannot load")
    };
    let odd = refused(&Tiny::new().with(|config| config.head_dim = 7));
    assert!(matches!(
        odd,
        LlamaError::Config {
            key: "head_dim",
            ..
        }
    ));
    let heads = refused(&Tiny::new().with(|config| config.num_key_value_heads = 3));
    assert!(matches!(
        heads,
        LlamaError::Config {
            key: "num_key_value_heads",
            ..
        }
    ));

    let mut model = load::<B>(&Tiny::new());
    let nothing = HiraAttentionConfig::new().with_top_k(0);
    assert!(matches!(
        model.set_attention(AttentionChoice::Hira(Box::new(nothing))),
        Err(LlamaError::Attention(_))
    ));
    assert_eq!(*model.attention(), AttentionChoice::Dense);
}

#[test]
fn loading_reports_every_tensor() {
    for (bias, tied, total) in [(false, true, 20), (true, false, 27)] {
        let source = Tiny::new().with(|config| {
            config.attention_bias = bias;
            config.tie_word_embeddings = tied;
        });
        let mut seen = Vec::new();
        let progress = &mut |done, all| seen.push((done, all));
        Llama::<Backend>::load(&source, &Default::default(), progress).expect("the model loads");
        assert_eq!(
            seen,
            (1..=total).map(|done| (done, total)).collect::<Vec<_>>()
        );
    }
}

/// Weights and activations of 16 bits. `llama` offers them on devices only, but Flex computes with them too.
#[cfg(feature = "flex")]
#[test]
fn sixteen_bits_are_near_f64() {
    let (source, ids) = (Tiny::new(), ids(40));
    for (element, near) in [(Element::F16, 2e-2), (Element::Bf16, 1e-1)] {
        let on = (&Default::default(), element);
        let model = Llama::<Backend>::load_as(&source, on, &mut |_, _| {}).expect("it loads");
        let mut cache = model.new_cache(ids.len()).expect("the cache fits");
        let logits = model.forward_all(&mut cache, &ids).expect("the model runs");
        for (position, (ours, naive)) in logits.iter().zip(source.logits_naive(&ids)).enumerate() {
            let worst = difference(ours, &naive);
            assert!(
                worst < near,
                "{element}: position {position} is off by {worst}"
            );
            assert!(ours.iter().all(|&x| element.round(x) == x), "{element}");
        }
    }
}

#[cfg(feature = "flex")]
type Backend = burn_flex::Flex;
#[cfg(not(feature = "flex"))]
type Backend = burn_ndarray::NdArray;

macro_rules! on_every_backend {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $name() { super::$name::<burn_flex::Flex>(); })+
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $name() { super::$name::<burn_ndarray::NdArray>(); })+
        }
    };
}

on_every_backend!(
    every_shape_agrees_with_naive,
    every_rope_scaling_agrees_with_naive,
    one_call_is_token_by_token,
    hira_that_selects_every_key_is_dense,
    an_attention_of_ones_own_serves_every_layer,
    burns_attention_is_dense,
    every_attention_sees_the_window,
    half_precision_is_close_on_flex_and_refused_elsewhere,
    refusals_leave_the_cache_as_it_was,
    impossible_models_and_attentions_are_refused,
);
