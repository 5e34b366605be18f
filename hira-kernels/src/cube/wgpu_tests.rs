//! Every kernel against the host and against f64, on whatever Vulkan driver wgpu finds.
//!
//! The names of these tests hold the name of the device, so that they run where there is one.

use std::collections::BTreeSet;

use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::wgpu::{WgpuDevice, WgpuRuntime};
use proptest::prelude::*;

use super::scan::CONSTANTS;
use super::threshold::CUT;
use super::{DecodeParams, DeviceCertificate, DeviceError, DeviceFaults, DeviceLayer, DeviceRows, DeviceRule, DeviceShape, DeviceWorkspace};
use crate::{Kernel, Precision};

type Client = ComputeClient<WgpuRuntime>;

fn client() -> Client {
    WgpuRuntime::client(&WgpuDevice::default())
}

/// Values that a test can repeat, about normal.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (uniform() + uniform() + uniform()) * 2.0).collect()
}

/// Rows as a caller has them, and what is expected of them.
#[derive(Clone)]
struct Data {
    shape: DeviceShape,
    heads_per_batch: usize,
    len: usize,
    /// `[heads][len][dim]`, not rounded.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[heads][group][dim]`.
    queries: Vec<f32>,
}

const fn shape(heads: usize, group: usize, dim: usize, value_dim: usize, precision: Precision) -> DeviceShape {
    DeviceShape { heads, group, dim, value_dim, precision }
}

impl Data {
    fn new(shape: DeviceShape, len: usize, seed: u64) -> Self {
        let mut keys = noise(seed, shape.heads * len * shape.dim);
        // A mean that the centre takes out, and dimensions of different sizes.
        for (i, key) in keys.iter_mut().enumerate() {
            let d = i % shape.dim;
            *key = *key * (0.3 + 1.7 * (d as f32 * 0.7).sin().abs()) + (d as f32).cos();
        }
        Self {
            shape,
            heads_per_batch: shape.heads,
            len,
            keys,
            values: noise(seed + 1, shape.heads * len * shape.value_dim),
            queries: noise(seed + 2, shape.heads * shape.group * shape.dim),
        }
    }

    fn stored(&self, rows: &[f32], dim: usize, head: usize, position: usize) -> Vec<f32> {
        let row = &rows[(head * self.len + position) * dim..][..dim];
        row.iter().map(|&x| self.shape.precision.round(x)).collect()
    }

    fn key(&self, head: usize, position: usize) -> Vec<f32> {
        self.stored(&self.keys, self.shape.dim, head, position)
    }

    fn value(&self, head: usize, position: usize) -> Vec<f32> {
        self.stored(&self.values, self.shape.value_dim, head, position)
    }

    fn query(&self, query: usize) -> &[f32] {
        &self.queries[query * self.shape.dim..][..self.shape.dim]
    }

    /// The host's canonical scores.
    fn scores(&self, query: usize) -> Vec<f32> {
        let head = query / self.shape.group;
        (0..self.len).map(|i| Kernel::best().score(self.query(query), &self.key(head, i)[..])).collect()
    }

    fn exact_scores(&self, query: usize) -> Vec<f64> {
        let head = query / self.shape.group;
        let dot = |key: Vec<f32>| key.iter().zip(self.query(query)).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum();
        (0..self.len).map(|i| dot(self.key(head, i))).collect()
    }

    /// Exact attention to the positions that `keep` admits, and the mass of the others.
    fn attention(&self, query: usize, scale: f32, keep: impl Fn(usize) -> bool) -> (Vec<f64>, f64) {
        let scores = self.exact_scores(query);
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let (mut out, mut kept, mut dropped) = (vec![0.0; self.shape.value_dim], 0.0, 0.0);
        for (i, score) in scores.iter().enumerate() {
            let weight = (f64::from(scale) * (score - largest)).exp();
            if keep(i) {
                kept += weight;
                for (out, v) in out.iter_mut().zip(self.value(query / self.shape.group, i)) {
                    *out += weight * f64::from(v);
                }
            } else {
                dropped += weight;
            }
        }
        out.iter_mut().for_each(|x| *x /= kept);
        (out, dropped / (kept + dropped))
    }

    /// Part `from..to` of every head's rows, contiguous.
    fn part(&self, rows: &[f32], dim: usize, from: usize, to: usize) -> Vec<f32> {
        let heads = rows.chunks_exact(self.len * dim);
        heads.flat_map(|head| head[from * dim..to * dim].iter().copied()).collect()
    }

    /// A layer that was appended to in these steps.
    fn layer(&self, client: &Client, steps: &[usize], capacity: usize) -> DeviceLayer<WgpuRuntime> {
        let mut layer = DeviceLayer::new(client, self.shape, capacity).expect("a shape");
        let mut at = 0;
        for &step in steps {
            let rows = |rows: &[f32], dim| {
                let part = self.part(rows, dim, at, at + step);
                DeviceRows::contiguous(upload(client, &part), f32_element(), self.heads_per_batch, step, dim)
            };
            let (keys, values) = (rows(&self.keys, self.shape.dim), rows(&self.values, self.shape.value_dim));
            layer.append(client, &keys, &values, step).expect("room");
            at += step;
        }
        assert_eq!((at, layer.len()), (self.len, self.len));
        layer
    }

    fn query_rows(&self, client: &Client) -> DeviceRows {
        let dim = self.shape.group * self.shape.dim;
        DeviceRows::contiguous(upload(client, &self.queries), f32_element(), self.heads_per_batch, 1, dim)
    }
}

fn f32_element() -> cubecl::ir::StorageType {
    f32::as_type_native_unchecked().storage_type()
}

fn upload(client: &Client, values: &[f32]) -> Handle {
    client.create_from_slice(f32::as_bytes(values))
}

fn floats(client: &Client, handle: Handle) -> Vec<f32> {
    f32::from_bytes(&client.read_one_unchecked(handle)).to_vec()
}

/// What a step left behind.
struct Answer {
    out: Vec<f32>,
    certificates: Vec<DeviceCertificate>,
    /// Per query: the positions that were scored, with their scores.
    survivors: Vec<Vec<(u32, f32)>>,
    /// Per query: the positions that were attended to.
    selected: Vec<BTreeSet<usize>>,
    estimates: Vec<f32>,
    constants: Vec<f32>,
    work_capacity: usize,
}

fn answer(client: &Client, data: &Data, layer: &DeviceLayer<WgpuRuntime>, params: &DecodeParams) -> Answer {
    let shape = data.shape;
    let mut work = DeviceWorkspace::new(client, shape, layer.len()).expect("a shape");
    let out = client.empty(shape.queries() * shape.value_dim * 4);
    let out_rows = DeviceRows::contiguous(out.clone(), f32_element(), data.heads_per_batch, 1, shape.group * shape.value_dim);
    super::decode(client, layer, &mut work, &data.query_rows(client), &out_rows, params).expect("a step");
    let words = |handle| u32::from_bytes(&client.read_one_unchecked(handle)).to_vec();
    let [estimates, scores, positions, counts, cuts, constants] = work.handles();
    let (scores, cuts) = (floats(client, scores), floats(client, cuts));
    let (positions, counts) = (words(positions), words(counts));
    let splits = super::decode::splits_of(&shape, layer.len());
    let mut survivors = vec![Vec::new(); shape.queries()];
    for (query, survivors) in survivors.iter_mut().enumerate() {
        for (split, &count) in counts[query * splits.0..][..splits.0].iter().enumerate() {
            let first = query * work.capacity() + split * splits.1;
            let run = first..first + count as usize;
            survivors.extend(positions[run.clone()].iter().copied().zip(scores[run].iter().copied()));
        }
    }
    let window = layer.len().saturating_sub(params.window);
    let selected = survivors.iter().zip(cuts.as_chunks::<CUT>().0).map(|(survivors, cut)| {
        let reached = |&&(position, score): &&(u32, f32)| {
            score > cut[1]
                || (score == cut[1] && position <= cut[2].to_bits())
                || (position as usize) < params.sinks
                || position as usize >= window
        };
        survivors.iter().filter(reached).map(|&(position, _)| position as usize).collect()
    });
    Answer {
        out: floats(client, out),
        certificates: work.certificates(client),
        selected: selected.collect(),
        survivors,
        estimates: floats(client, estimates),
        constants: floats(client, constants),
        work_capacity: work.capacity(),
    }
}

fn distance(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt()
}

/// Everything that must hold of an answer, whatever the data.
fn check(data: &Data, params: &DecodeParams, layer: &DeviceLayer<WgpuRuntime>, client: &Client) -> Answer {
    let shape = data.shape;
    let answer = answer(client, data, layer, params);
    let parameters = u32::from_bytes(&client.read_one_unchecked(layer.parameter_handle())).to_vec();
    let always = |i: usize| i < params.sinks || i >= data.len.saturating_sub(params.window);
    for query in 0..shape.queries() {
        let head = query / shape.group;
        let (scores, exact) = (data.scores(query), data.exact_scores(query));
        // Intervals hold both the canonical score and the exact one.
        let [norm, slack, ..] = answer.constants[query * CONSTANTS..][..CONSTANTS] else { unreachable!() };
        for i in 0..data.len {
            let residual = f32::from_bits(parameters[head * layer.capacity() + i] << 16);
            let half = f64::from(norm) * f64::from(residual) + f64::from(slack);
            let estimate = f64::from(answer.estimates[query * answer.work_capacity + i]);
            let (low, high) = (estimate - half, estimate + half);
            assert!(low <= exact[i] && exact[i] <= high, "query {query} key {i}: {low} {} {high}", exact[i]);
            let score = f64::from(scores[i]);
            assert!(low <= score && score <= high, "query {query} key {i}: {low} {score} {high}");
        }
        // Survivors ascend, and their scores are the host's up to rounding.
        let survivors = &answer.survivors[query];
        assert!(survivors.is_sorted_by(|a, b| a.0 < b.0));
        let key_norm = (0..data.len).map(|i| norm_of(&data.key(head, i))).fold(0.0, f64::max);
        let slip = shape.dim as f64 / f64::exp2(22.0) * norm_of(data.query(query)) * key_norm + 1e-30;
        for &(position, score) in survivors {
            let host = f64::from(scores[position as usize]);
            assert!((f64::from(score) - host).abs() <= slip, "{score} {host}");
        }
        // The selected set is the rule's, up to scores that are within rounding of the cut.
        let selected = &answer.selected[query];
        let expected: BTreeSet<usize> = match params.rule {
            DeviceRule::AtLeast(tau) => (0..data.len).filter(|&i| scores[i] >= tau || always(i)).collect(),
            DeviceRule::Top(k) => {
                let mut order: Vec<usize> = (0..data.len).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
                order.iter().take(k).copied().chain((0..data.len).filter(|&i| always(i))).collect()
            }
            DeviceRule::Mass(_) => {
                let tau = answer.certificates[query].tau;
                (0..data.len).filter(|&i| scores[i] >= tau || always(i)).collect()
            }
        };
        let cut = f64::from(answer.certificates[query].tau);
        for &i in selected.symmetric_difference(&expected) {
            let off = (f64::from(scores[i]) - cut).abs();
            assert!(off <= 2.0 * slip, "query {query} key {i} of {:?}: {} {cut}", params.rule, scores[i]);
        }
        if let DeviceRule::Top(k) = params.rule {
            let free = selected.iter().filter(|&&i| !always(i)).count();
            assert!(free <= k && selected.len() >= k.min(data.len), "{k} {free}");
        }
        // The answer.
        let certificate = answer.certificates[query];
        assert_eq!(certificate.selected, selected.len());
        assert_eq!(certificate.survivors, survivors.len());
        let (dense, _) = data.attention(query, params.scale, |_| true);
        let (kept, dropped) = data.attention(query, params.scale, |i| selected.contains(&i));
        let out = &answer.out[query * shape.value_dim..][..shape.value_dim];
        if selected.is_empty() {
            assert_eq!(certificate.dropped_mass_bound, 1.0);
        } else {
            let bound = f64::from(certificate.dropped_mass_bound);
            assert!(bound >= dropped, "query {query}: {bound} {dropped}");
            if !params.compensate {
                let spread = f64::from(params.scale) * slip;
                let limit = (2e-5 + 2.0 * spread.min(1.0)) * (norm_of(&data.values[..]) + 1e-20);
                assert!(distance(out, &kept) <= limit, "query {query}: {} {limit}", distance(out, &kept));
            }
        }
        let bound = f64::from(certificate.output_error_bound);
        assert!(distance(out, &dense) <= bound, "query {query}: {} {bound}", distance(out, &dense));
        if let DeviceRule::Mass(share) = params.rule {
            assert!(dropped <= f64::from(share.max(0.0)), "{dropped} {share}");
        }
    }
    answer
}

/// The norm of one row, or the largest component's of many: what an error is held against.
fn norm_of(row: &[f32]) -> f64 {
    match row.len() {
        0..=256 => row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt(),
        _ => 16.0 * row.iter().map(|&x| f64::from(x).abs()).fold(0.0, f64::max),
    }
}

fn params(rule: DeviceRule, dim: usize) -> DecodeParams {
    DecodeParams { rule, scale: 1.0 / (dim as f32).sqrt(), sinks: 0, window: 0, compensate: false }
}

#[test]
fn wgpu_top_k_of_every_precision() {
    let client = client();
    for precision in Precision::ALL {
        let data = Data::new(shape(2, 3, 64, 64, precision), 1500, 7);
        let layer = data.layer(&client, &[1400, 99, 1], 64);
        assert_eq!(layer.faults(&client), DeviceFaults::default());
        let answer = check(&data, &params(DeviceRule::Top(48), 64), &layer, &client);
        for certificate in &answer.certificates {
            assert_eq!(certificate.selected, 48);
            assert!(certificate.survivors < 200, "the sketch rules out most keys: {certificate:?}");
        }
    }
}

#[test]
fn wgpu_head_dimensions_and_groups() {
    let client = client();
    for (dim, value_dim, group) in [(64, 64, 1), (80, 80, 5), (96, 96, 4), (128, 128, 8), (256, 256, 16), (16, 48, 2), (128, 64, 7)] {
        let data = Data::new(shape(1, group, dim, value_dim, Precision::Bf16), 600, dim as u64);
        let layer = data.layer(&client, &[600], 600);
        let with = DecodeParams { sinks: 3, window: 10, ..params(DeviceRule::Top(20), dim) };
        check(&data, &with, &layer, &client);
        dense_is_attention(&client, &data, &layer);
    }
}

/// The dense plan against f64.
fn dense_is_attention(client: &Client, data: &Data, layer: &DeviceLayer<WgpuRuntime>) {
    let shape = data.shape;
    let scale = 1.0 / (shape.dim as f32).sqrt();
    let mut work = DeviceWorkspace::new(client, shape, 1).expect("a shape");
    let out = client.empty(shape.queries() * shape.value_dim * 4);
    let out_rows = DeviceRows::contiguous(out.clone(), f32_element(), data.heads_per_batch, 1, shape.group * shape.value_dim);
    super::decode_dense(client, layer, &mut work, &data.query_rows(client), &out_rows, scale).expect("a step");
    let out = floats(client, out);
    for (query, certificate) in work.certificates(client).into_iter().enumerate() {
        let (dense, _) = data.attention(query, scale, |_| true);
        let out = &out[query * shape.value_dim..][..shape.value_dim];
        let off = distance(out, &dense);
        assert!(off <= 2e-5 * norm_of(&data.values), "{off}");
        assert!(off <= f64::from(certificate.output_error_bound));
        assert_eq!((certificate.dropped_mass_bound, certificate.selected), (0.0, data.len));
        let scores = data.exact_scores(query);
        let exact = scores.iter().map(|s| (s * f64::from(scale)).exp()).sum::<f64>().ln();
        assert!((f64::from(certificate.log_sum_exp) - exact).abs() < 1e-3);
    }
}
