//! The Burn module on every backend that is compiled in, against the engine on slices.

use burn::tensor::{Tensor, TensorData, module::attention, ops::AttentionModuleOptions};
use hira_attention::{
    AttentionError, CacheShape, HiraAttention, HiraAttentionConfig, HiraBackend, PartKeys,
    PlanPolicy,
};
#[cfg(feature = "wgpu")]
use hira_memory::MemoryPolicy;

use crate::common::{Problem, Rows, Shape, distance};

const SHAPE: Shape = Shape {
    sequences: 2,
    heads: 4,
    kv_heads: 2,
    dim: 16,
    value_dim: 16,
};

/// One layer with room for so many tokens of [`SHAPE`].
fn cache_shape(max_len: usize) -> CacheShape {
    CacheShape {
        layers: 1,
        sequences: SHAPE.sequences,
        kv_heads: SHAPE.kv_heads,
        head_dim: SHAPE.dim,
        value_dim: SHAPE.value_dim,
        max_len,
    }
}

fn tensor<B: HiraBackend>(
    rows: &Rows,
    range: std::ops::Range<usize>,
    device: &B::Device,
) -> Tensor<B, 4> {
    let shape = [SHAPE.sequences, rows.heads, range.len(), rows.dim];
    // made as a model makes it: [B, L, H, D] with two dimensions swapped, so that strides are not row-major
    let data = TensorData::new(rows.slice(range), shape);
    Tensor::<B, 4>::from_data(data, device)
        .swap_dims(1, 2)
        .mul_scalar(1.0)
        .swap_dims(1, 2)
}

fn floats<B: HiraBackend>(tensor: Tensor<B, 4>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

fn parts_merge_to_one_attention<B: HiraBackend>(device: &B::Device, tolerance: f64) {
    let problem = Problem::random(13, SHAPE, 60);
    let config = HiraAttentionConfig::dense();
    let attention: HiraAttention<B> = config.init(device).unwrap();
    let mut cache = config.init_cache(cache_shape(60)).unwrap();
    let (k, v) = (problem.k.slice(0..60), problem.v.slice(0..60));
    cache.append(0, &k, &v).unwrap();
    let q = tensor::<B>(&problem.q, 59..60, device);
    let parts = [0..20, 20..21, 21..60].map(|positions| {
        let keys = PartKeys::new(positions);
        attention
            .try_partial(q.clone(), &mut cache, 0, &keys)
            .unwrap()
    });
    let (out, report) = attention.try_merge(&parts, device).unwrap();
    assert_eq!(
        out.dims(),
        [SHAPE.sequences, SHAPE.heads, 1, SHAPE.value_dim]
    );
    assert_eq!(report.density(), 1.0);
    for (row, out) in floats(out).chunks_exact(SHAPE.value_dim).enumerate() {
        let (sequence, head) = (row / SHAPE.heads, row % SHAPE.heads);
        let (expected, _) = problem.attend(sequence, head, 59, 0.25, |_, _| true);
        let error = distance(out, &expected);
        assert!(error < tolerance, "{sequence} {head}: {error}");
    }
    // one sequence of two
    let wrong = tensor::<B>(&problem.v, 0..1, device).narrow(0, 0, 1);
    let keys = PartKeys::new(0..60);
    let refused = attention.try_partial(wrong, &mut cache, 0, &keys);
    assert!(matches!(
        refused,
        Err(AttentionError::Shape { what: "q", .. })
    ));
}

fn agrees_with_the_oracle<B: HiraBackend>(device: &B::Device, tolerance: f64) {
    let problem = Problem::random(11, SHAPE, 130);
    for config in [
        HiraAttentionConfig::dense(),
        HiraAttentionConfig::new()
            .with_plan(PlanPolicy::Sparse)
            .with_top_k(200),
    ] {
        let attention: HiraAttention<B> = config.init(device).unwrap();
        let mut cache = config.init_cache(cache_shape(130)).unwrap();
        for range in [0..100, 100..110, 110..111, 111..130] {
            let (out, report) = attention.forward(
                tensor::<B>(&problem.q, range.clone(), device),
                tensor::<B>(&problem.k, range.clone(), device),
                tensor::<B>(&problem.v, range.clone(), device),
                &mut cache,
                0,
            );
            assert_eq!(report.heads.len(), SHAPE.sequences * SHAPE.heads);
            assert_eq!(
                out.dims(),
                [SHAPE.sequences, SHAPE.heads, range.len(), SHAPE.value_dim]
            );
            let out = floats(out);
            for (row, out) in out.chunks_exact(SHAPE.value_dim).enumerate() {
                let token = range.start + row % range.len();
                let head = row / range.len() % SHAPE.heads;
                let sequence = row / range.len() / SHAPE.heads;
                let (expected, _) = problem.attend(sequence, head, token, 0.25, |_, _| true);
                let error = distance(out, &expected);
                assert!(error < tolerance, "{sequence} {head} {token}: {error}");
            }
        }
        assert_eq!(cache.seq_len(0), 130);
    }
}

/// Burn's own causal attention, where keys and queries are as many.
fn agrees_with_burn<B: HiraBackend>(device: &B::Device, tolerance: f64) {
    let shape = Shape {
        sequences: 2,
        heads: 4,
        kv_heads: 4,
        ..SHAPE
    };
    let problem = Problem::random(12, shape, 40);
    let (q, k, v) = (
        tensor::<B>(&problem.q, 0..40, device),
        tensor::<B>(&problem.k, 0..40, device),
        tensor::<B>(&problem.v, 0..40, device),
    );
    let config = HiraAttentionConfig::new();
    let mut cache = config
        .init_cache(CacheShape {
            layers: 1,
            sequences: 2,
            kv_heads: 4,
            head_dim: 16,
            value_dim: 16,
            max_len: 40,
        })
        .unwrap();
    let hira: HiraAttention<B> = config.init(device).unwrap();
    let (ours, _) = hira.forward(q.clone(), k.clone(), v.clone(), &mut cache, 0);
    let options = AttentionModuleOptions {
        is_causal: true,
        ..Default::default()
    };
    let theirs = floats(attention(q, k, v, None, None, options));
    let theirs: Vec<f64> = theirs.into_iter().map(f64::from).collect();
    let ours = floats(ours);
    for (ours, theirs) in ours.chunks_exact(16).zip(theirs.chunks_exact(16)) {
        assert!(distance(ours, theirs) < tolerance);
    }
}

/// The bits of the call on slices; padding is neither read nor answered.
fn ragged_calls_agree_with_slices<B: HiraBackend>(device: &B::Device) {
    let problem = Problem::random(14, SHAPE, 60);
    let config = HiraAttentionConfig::new()
        .with_top_k(20)
        .with_plan(PlanPolicy::Sparse);
    let shape = cache_shape(60);
    let attention: HiraAttention<B> = config.init(device).unwrap();
    let (mut tensors, mut slices) = (
        config.init_cache(shape).unwrap(),
        config.init_cache(shape).unwrap(),
    );
    for (range, lens) in [(0..48, [48, 30]), (48..50, [1, 2]), (50..51, [0, 1])] {
        let [q, k, v] = [&problem.q, &problem.k, &problem.v];
        let padded = |rows: &Rows| {
            let mut all = rows.slice(range.clone());
            let sequence = rows.heads * range.len() * rows.dim;
            for (b, len) in lens.into_iter().enumerate() {
                let of_sequence = &mut all[b * sequence..(b + 1) * sequence];
                for head in of_sequence.chunks_exact_mut(range.len() * rows.dim) {
                    head[len * rows.dim..].fill(f32::NAN);
                }
            }
            all
        };
        let tensor = |rows: &Rows| {
            let shape = [SHAPE.sequences, rows.heads, range.len(), rows.dim];
            Tensor::<B, 4>::from_data(TensorData::new(padded(rows), shape), device)
        };
        let (out, report) = attention
            .try_forward_ragged(tensor(q), tensor(k), tensor(v), &lens, &mut tensors, 0)
            .unwrap();
        let (q, k, v) = (padded(q), padded(k), padded(v));
        let mut expected = vec![f32::NAN; q.len() / SHAPE.dim * SHAPE.value_dim];
        let expected_report = attention
            .engine()
            .forward_ragged_into(
                SHAPE.heads,
                &q,
                &k,
                &v,
                &lens,
                &mut slices,
                0,
                &mut expected,
            )
            .unwrap();
        assert_eq!(floats(out), expected);
        assert_eq!(report.density(), expected_report.density());
    }
    let lens: Vec<usize> = tensors.layer(0).unwrap().lens().collect();
    assert_eq!(lens, [49, 33]);
    let zeros = |heads| Tensor::<B, 4>::zeros([SHAPE.sequences, heads, 2, SHAPE.dim], device);
    for lens in [&[1][..], &[1, 3]] {
        let refused =
            attention.try_forward_ragged(zeros(4), zeros(2), zeros(2), lens, &mut tensors, 0);
        assert!(
            matches!(refused, Err(AttentionError::Cache(_))),
            "{refused:?}"
        );
    }
}

fn refuses_wrong_shapes<B: HiraBackend>(device: &B::Device) {
    let config = HiraAttentionConfig::new();
    let attention: HiraAttention<B> = config.init(device).unwrap();
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads: 2,
        head_dim: 8,
        value_dim: 4,
        max_len: 9,
    };
    let mut cache = config.init_cache(shape).unwrap();
    let zeros = |shape: [usize; 4]| Tensor::<B, 4>::zeros(shape, device);
    let good = ([1, 4, 3, 8], [1, 2, 3, 8], [1, 2, 3, 4]);
    for (what, q, k, v) in [
        ("q", [1, 4, 3, 7], good.1, good.2),
        ("q", [2, 4, 3, 8], good.1, good.2),
        ("k", good.0, [1, 2, 2, 8], good.2),
        ("k", good.0, [1, 1, 3, 8], good.2),
        ("v", good.0, good.1, [1, 2, 3, 8]),
    ] {
        let result = attention.try_forward(zeros(q), zeros(k), zeros(v), &mut cache, 0);
        match result {
            Err(AttentionError::Shape { what: named, .. }) => assert_eq!(named, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    let heads = attention.try_forward(
        zeros([1, 3, 3, 8]),
        zeros(good.1),
        zeros(good.2),
        &mut cache,
        0,
    );
    assert!(matches!(
        heads,
        Err(AttentionError::Heads {
            kv_heads: 2,
            heads: 3
        })
    ));
    assert_eq!(cache.seq_len(0), 0);
    let ok = attention.try_forward(zeros(good.0), zeros(good.1), zeros(good.2), &mut cache, 0);
    assert_eq!(ok.unwrap().0.dims(), [1, 4, 3, 4]);
    assert_eq!(cache.seq_len(0), 3);
}

macro_rules! on_backend {
    ($name:ident, $backend:ty) => {
        mod $name {
            #[test]
            fn agrees_with_the_oracle() {
                super::agrees_with_the_oracle::<$backend>(&Default::default(), 1e-4);
            }
            #[test]
            fn parts_merge_to_one_attention() {
                super::parts_merge_to_one_attention::<$backend>(&Default::default(), 1e-4);
            }
            #[test]
            fn agrees_with_burn() {
                super::agrees_with_burn::<$backend>(&Default::default(), 1e-4);
            }
            #[test]
            fn ragged_calls_agree_with_slices() {
                super::ragged_calls_agree_with_slices::<$backend>(&Default::default());
            }
            #[test]
            fn refuses_wrong_shapes() {
                super::refuses_wrong_shapes::<$backend>(&Default::default());
            }
        }
    };
}

#[cfg(feature = "flex")]
on_backend!(flex, burn_flex::Flex);
#[cfg(feature = "ndarray")]
on_backend!(ndarray, burn_ndarray::NdArray);
#[cfg(all(feature = "flex", feature = "autodiff"))]
on_backend!(autodiff, burn::backend::Autodiff<burn_flex::Flex>);

/// On wgpu with everything in main memory only transfers and the host engine run. The device engine: `on_device.rs`.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_agrees_with_the_engine_on_slices() {
    type Gpu = burn_wgpu::Wgpu;
    let device = Default::default();
    let problem = Problem::random(13, SHAPE, 60);
    let mut config = HiraAttentionConfig::new()
        .with_top_k(20)
        .with_plan(PlanPolicy::Sparse);
    config.memory_policy = MemoryPolicy::AllHost;
    let shape = cache_shape(60);
    let (mut on_device, mut on_host) = (
        config.init_cache(shape).unwrap(),
        config.init_cache(shape).unwrap(),
    );
    let attention: HiraAttention<Gpu> = config.init(&device).unwrap();
    for range in [0..48, 48..49, 49..60] {
        let tensor = |rows: &Rows| {
            let shape = [SHAPE.sequences, rows.heads, range.len(), rows.dim];
            Tensor::<Gpu, 4>::from_data(TensorData::new(rows.slice(range.clone()), shape), &device)
        };
        let (out, _) = attention.forward(
            tensor(&problem.q),
            tensor(&problem.k),
            tensor(&problem.v),
            &mut on_device,
            0,
        );
        let mut expected = vec![0.0; SHAPE.sequences * SHAPE.heads * range.len() * SHAPE.value_dim];
        attention
            .engine()
            .forward_into(
                SHAPE.heads,
                &problem.q.slice(range.clone()),
                &problem.k.slice(range.clone()),
                &problem.v.slice(range.clone()),
                &mut on_host,
                0,
                &mut expected,
            )
            .unwrap();
        assert_eq!(floats(out), expected);
    }
}
