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
use super::{
    Attended, DecodeParams, DeviceCertificate, DeviceError, DeviceFaults, DeviceLayer, DeviceRows,
    DeviceRule, DeviceShape, DeviceWorkspace,
};
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
    (0..count)
        .map(|_| (uniform() + uniform() + uniform()) * 2.0)
        .collect()
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

const fn shape(
    heads: usize,
    group: usize,
    dim: usize,
    value_dim: usize,
    precision: Precision,
) -> DeviceShape {
    DeviceShape {
        heads,
        group,
        dim,
        value_dim,
        precision,
    }
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
        (0..self.len)
            .map(|i| Kernel::best().score(self.query(query), &self.key(head, i)[..]))
            .collect()
    }

    fn exact_scores(&self, query: usize) -> Vec<f64> {
        let head = query / self.shape.group;
        let dot = |key: Vec<f32>| {
            key.iter()
                .zip(self.query(query))
                .map(|(&k, &q)| f64::from(k) * f64::from(q))
                .sum()
        };
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
        heads
            .flat_map(|head| head[from * dim..to * dim].iter().copied())
            .collect()
    }

    /// A layer that was appended to in these steps.
    fn layer(&self, client: &Client, steps: &[usize], capacity: usize) -> DeviceLayer<WgpuRuntime> {
        let mut layer = DeviceLayer::new(client, self.shape, capacity).expect("a shape");
        self.fill(client, &mut layer, steps);
        assert_eq!(layer.len(), self.len);
        layer
    }

    /// The same with exact rows in main memory.
    fn layer_on_host(&self, client: &Client, steps: &[usize]) -> DeviceLayer<WgpuRuntime> {
        let mut layer = DeviceLayer::with_host_rows(client, self.shape, 1).expect("a shape");
        self.fill(client, &mut layer, steps);
        assert_eq!(layer.len(), self.len);
        layer
    }

    /// Appends in these steps what comes after what is stored.
    fn fill(&self, client: &Client, layer: &mut DeviceLayer<WgpuRuntime>, steps: &[usize]) {
        let mut at = layer.len();
        for &step in steps {
            let rows = |rows: &[f32], dim| {
                let part = self.part(rows, dim, at, at + step);
                DeviceRows::contiguous(
                    upload(client, &part),
                    f32_element(),
                    self.heads_per_batch,
                    step,
                    dim,
                )
            };
            let (keys, values) = (
                rows(&self.keys, self.shape.dim),
                rows(&self.values, self.shape.value_dim),
            );
            layer.append(client, &keys, &values, step).expect("room");
            at += step;
        }
    }

    fn query_rows(&self, client: &Client) -> DeviceRows {
        let dim = self.shape.group * self.shape.dim;
        DeviceRows::contiguous(
            upload(client, &self.queries),
            f32_element(),
            self.heads_per_batch,
            1,
            dim,
        )
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

fn answer(
    client: &Client,
    data: &Data,
    layer: &mut DeviceLayer<WgpuRuntime>,
    params: &DecodeParams,
) -> Answer {
    let shape = data.shape;
    let mut work = DeviceWorkspace::new(client, shape, layer.len()).expect("a shape");
    let out = client.empty(shape.queries() * shape.value_dim * 4);
    let out_rows = DeviceRows::contiguous(
        out.clone(),
        f32_element(),
        data.heads_per_batch,
        1,
        shape.group * shape.value_dim,
    );
    let attended = super::decode(
        client,
        layer,
        &mut work,
        &data.query_rows(client),
        &out_rows,
        params,
    );
    assert_eq!(attended, Ok(Attended::Selected));
    let words = |handle| u32::from_bytes(&client.read_one_unchecked(handle)).to_vec();
    let [estimates, scores, positions, counts, cuts, constants] = work.handles();
    let (scores, cuts) = (floats(client, scores), floats(client, cuts));
    let (positions, counts) = (words(positions), words(counts));
    let splits = super::splits::Splits::new(&shape, layer.len());
    let splits = (splits.count, splits.keys());
    let mut survivors = vec![Vec::new(); shape.queries()];
    for (query, survivors) in survivors.iter_mut().enumerate() {
        for (split, &count) in counts[query * splits.0..][..splits.0].iter().enumerate() {
            let first = query * work.capacity() + split * splits.1;
            let run = first..first + count as usize;
            survivors.extend(
                positions[run.clone()]
                    .iter()
                    .copied()
                    .zip(scores[run].iter().copied()),
            );
        }
    }
    let window = layer.len().saturating_sub(params.window);
    let selected = survivors
        .iter()
        .zip(cuts.as_chunks::<CUT>().0)
        .map(|(survivors, cut)| {
            let reached = |&&(position, score): &&(u32, f32)| {
                score > cut[1]
                    || (score == cut[1] && position <= cut[2].to_bits())
                    || (position as usize) < params.sinks
                    || position as usize >= window
            };
            survivors
                .iter()
                .filter(reached)
                .map(|&(position, _)| position as usize)
                .collect()
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
    a.iter()
        .zip(b)
        .map(|(&a, b)| (f64::from(a) - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Everything that must hold of an answer, whatever the data.
fn check(
    data: &Data,
    params: &DecodeParams,
    layer: &mut DeviceLayer<WgpuRuntime>,
    client: &Client,
) -> Answer {
    let shape = data.shape;
    let answer = answer(client, data, layer, params);
    let parameters = u32::from_bytes(&client.read_one_unchecked(layer.parameter_handle())).to_vec();
    let always = |i: usize| i < params.sinks || i >= data.len.saturating_sub(params.window);
    for query in 0..shape.queries() {
        let head = query / shape.group;
        let (scores, exact) = (data.scores(query), data.exact_scores(query));
        // Intervals hold both the canonical score and the exact one.
        let [norm, slack, ..] = answer.constants[query * CONSTANTS..][..CONSTANTS] else {
            unreachable!()
        };
        for i in 0..data.len {
            let residual = f32::from_bits(parameters[head * layer.capacity() + i] << 16);
            let half = f64::from(norm) * f64::from(residual) + f64::from(slack);
            let estimate = f64::from(answer.estimates[query * answer.work_capacity + i]);
            let (low, high) = (estimate - half, estimate + half);
            assert!(
                low <= exact[i] && exact[i] <= high,
                "query {query} key {i}: {low} {} {high}",
                exact[i]
            );
            let score = f64::from(scores[i]);
            assert!(
                low <= score && score <= high,
                "query {query} key {i}: {low} {score} {high}"
            );
        }
        // Survivors ascend, and their scores are the host's up to rounding.
        let survivors = &answer.survivors[query];
        assert!(survivors.is_sorted_by(|a, b| a.0 < b.0));
        let key_norm = (0..data.len)
            .map(|i| norm_of(&data.key(head, i)))
            .fold(0.0, f64::max);
        let slip =
            shape.dim as f64 / f64::exp2(22.0) * norm_of(data.query(query)) * key_norm + 1e-30;
        for &(position, score) in survivors {
            let host = f64::from(scores[position as usize]);
            assert!((f64::from(score) - host).abs() <= slip, "{score} {host}");
        }
        // The selected set is the rule's, up to scores that are within rounding of the cut.
        let selected = &answer.selected[query];
        let expected: BTreeSet<usize> = match params.rule {
            DeviceRule::AtLeast(tau) => (0..data.len)
                .filter(|&i| scores[i] >= tau || always(i))
                .collect(),
            DeviceRule::Top(k) => {
                let mut order: Vec<usize> = (0..data.len).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
                order
                    .iter()
                    .take(k)
                    .copied()
                    .chain((0..data.len).filter(|&i| always(i)))
                    .collect()
            }
            DeviceRule::Mass(_) => {
                let tau = answer.certificates[query].tau;
                (0..data.len)
                    .filter(|&i| scores[i] >= tau || always(i))
                    .collect()
            }
        };
        let cut = f64::from(answer.certificates[query].tau);
        for &i in selected.symmetric_difference(&expected) {
            let off = (f64::from(scores[i]) - cut).abs();
            assert!(
                off <= 2.0 * slip,
                "query {query} key {i} of {:?}: {} {cut}",
                params.rule,
                scores[i]
            );
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
                assert!(
                    distance(out, &kept) <= limit,
                    "query {query}: {} {limit}",
                    distance(out, &kept)
                );
            }
        }
        let bound = f64::from(certificate.output_error_bound);
        assert!(
            distance(out, &dense) <= bound,
            "query {query}: {} {bound}",
            distance(out, &dense)
        );
        if let DeviceRule::Mass(share) = params.rule {
            assert!(dropped <= f64::from(share.max(0.0)), "{dropped} {share}");
        }
    }
    answer
}

/// The norm of one row, or the largest component's of many: what an error is held against.
fn norm_of(row: &[f32]) -> f64 {
    match row.len() {
        0..=256 => row
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt(),
        _ => 16.0 * row.iter().map(|&x| f64::from(x).abs()).fold(0.0, f64::max),
    }
}

fn params(rule: DeviceRule, dim: usize) -> DecodeParams {
    DecodeParams {
        rule,
        scale: 1.0 / (dim as f32).sqrt(),
        sinks: 0,
        window: 0,
        compensate: false,
    }
}

#[test]
fn wgpu_top_k_of_every_precision() {
    let client = client();
    for precision in Precision::ALL {
        let data = Data::new(shape(2, 3, 64, 64, precision), 1500, 7);
        let mut layer = data.layer(&client, &[1400, 99, 1], 64);
        assert_eq!(layer.faults(&client), DeviceFaults::default());
        let answer = check(&data, &params(DeviceRule::Top(48), 64), &mut layer, &client);
        for certificate in &answer.certificates {
            assert_eq!(certificate.selected, 48);
            assert!(
                certificate.survivors < 200,
                "the sketch rules out most keys: {certificate:?}"
            );
        }
    }
}

#[test]
fn wgpu_head_dimensions_and_groups() {
    let client = client();
    for (dim, value_dim, group) in [
        (80, 80, 5),
        (96, 96, 4),
        (128, 128, 8),
        (256, 256, 16),
        (16, 48, 1),
    ] {
        let data = Data::new(
            shape(1, group, dim, value_dim, Precision::Bf16),
            600,
            dim as u64,
        );
        let mut layer = data.layer(&client, &[600], 600);
        let with = DecodeParams {
            sinks: 3,
            window: 10,
            ..params(DeviceRule::Top(20), dim)
        };
        check(&data, &with, &mut layer, &client);
        dense_is_attention(&client, &data, &mut layer);
    }
}

/// The dense plan against f64.
fn dense_is_attention(client: &Client, data: &Data, layer: &mut DeviceLayer<WgpuRuntime>) {
    let shape = data.shape;
    let scale = 1.0 / (shape.dim as f32).sqrt();
    let mut work = DeviceWorkspace::new(client, shape, 1).expect("a shape");
    let out = client.empty(shape.queries() * shape.value_dim * 4);
    let out_rows = DeviceRows::contiguous(
        out.clone(),
        f32_element(),
        data.heads_per_batch,
        1,
        shape.group * shape.value_dim,
    );
    super::decode_dense(
        client,
        layer,
        &mut work,
        &data.query_rows(client),
        &out_rows,
        scale,
    )
    .expect("a step");
    let out = floats(client, out);
    for (query, certificate) in work.certificates(client).into_iter().enumerate() {
        let (dense, _) = data.attention(query, scale, |_| true);
        let out = &out[query * shape.value_dim..][..shape.value_dim];
        let off = distance(out, &dense);
        assert!(off <= 2e-5 * norm_of(&data.values), "{off}");
        assert!(off <= f64::from(certificate.output_error_bound));
        assert_eq!(
            (certificate.dropped_mass_bound, certificate.selected),
            (0.0, data.len)
        );
        let scores = data.exact_scores(query);
        let exact = scores
            .iter()
            .map(|s| (s * f64::from(scale)).exp())
            .sum::<f64>()
            .ln();
        assert!((f64::from(certificate.log_sum_exp) - exact).abs() < 1e-3);
    }
}

#[test]
fn wgpu_rules_with_sinks_window_and_means() {
    let client = client();
    let data = Data::new(shape(2, 2, 64, 64, Precision::F32), 2500, 11);
    let mut layer = data.layer(&client, &[2500], 4096);
    dense_is_attention(&client, &data, &mut layer);
    let some = data.scores(0)[17];
    let rules = [
        DeviceRule::AtLeast(some),
        DeviceRule::AtLeast(f32::NEG_INFINITY),
        DeviceRule::AtLeast(f32::INFINITY),
        DeviceRule::Top(0),
        DeviceRule::Top(1),
        DeviceRule::Top(25),
        DeviceRule::Top(700),
        DeviceRule::Top(2499),
        DeviceRule::Top(5000),
        DeviceRule::Mass(0.0),
        DeviceRule::Mass(0.01),
        DeviceRule::Mass(0.3),
        DeviceRule::Mass(1.0),
    ];
    for rule in rules {
        for (sinks, window, compensate) in [(0, 0, false), (4, 100, true)] {
            check(
                &data,
                &DecodeParams {
                    sinks,
                    window,
                    compensate,
                    ..params(rule, 64)
                },
                &mut layer,
                &client,
            );
        }
    }
    let mut selected =
        |rule| check(&data, &params(rule, 64), &mut layer, &client).certificates[0].selected;
    assert_eq!(selected(DeviceRule::Mass(0.0)), data.len);
    let (few, more) = (
        selected(DeviceRule::Mass(0.3)),
        selected(DeviceRule::Mass(0.01)),
    );
    assert!(few < more && more < data.len, "{few} {more}");
}

/// What a step answered: outputs, certificates, and which keys, with their scores.
fn same(a: &Answer, b: &Answer, about: &str) {
    assert!(a.selected == b.selected, "{about}: selected");
    assert!(a.survivors == b.survivors, "{about}: survivors");
    assert_eq!(a.certificates, b.certificates, "{about}");
    assert_eq!(a.out, b.out, "{about}");
}

#[test]
fn wgpu_rows_in_main_memory_change_no_answer() {
    let client = client();
    let data = Data::new(shape(2, 2, 64, 64, Precision::F32), 2500, 11);
    let mut on_device = data.layer(&client, &[1500, 1000], 4096);
    // as many tokens first, of which the centre is the mean; pieces, blocks that begin in one call and end in another, and tokens that wait for the step
    let mut on_host = data.layer_on_host(&client, &[1500, 985, 9, 5, 1]);
    let bytes = on_host.bytes_by_part();
    assert_eq!((bytes.keys, bytes.host_keys), (0, 2 * 3072 * 64 * 4));
    assert_eq!(on_device.bytes_by_part().host_values, 0);
    let with = |rule, compensate| DecodeParams {
        sinks: 4,
        window: 100,
        compensate,
        ..params(rule, 64)
    };
    for rule in [
        DeviceRule::AtLeast(data.scores(0)[17]),
        DeviceRule::Top(25),
        DeviceRule::Top(2000),
        DeviceRule::Mass(0.1),
    ] {
        for compensate in [true, false] {
            let params = with(rule, compensate);
            let expected = answer(&client, &data, &mut on_device, &params);
            let received = check(&data, &params, &mut on_host, &client);
            same(&received, &expected, &format!("{rule:?}"));
        }
    }
    dense_is_attention(&client, &data, &mut on_host);
    let nothing = params(DeviceRule::AtLeast(f32::INFINITY), 64);
    let received = answer(&client, &data, &mut on_host, &nothing);
    assert!(received.certificates.iter().all(|one| one.selected == 0));

    // forks go their own ways, tokens come back, rows move: the means too are what they would be
    let params = with(DeviceRule::Top(40), true);
    let expected = answer(&client, &data, &mut on_device, &params);
    let mut fork = on_host.fork(&client);
    on_host.truncate(2111);
    data.fill(&client, &mut on_host, &[3, 86, 300]);
    for layer in [&mut fork, &mut on_host] {
        same(
            &answer(&client, &data, layer, &params),
            &expected,
            "after a fork",
        );
    }
    on_host.rows_to_device(&client).expect("a device");
    assert_eq!(on_host.bytes_by_part(), {
        let shape = data.shape;
        shape.bytes(on_host.capacity(), true).expect("a capacity")
    });
    same(
        &answer(&client, &data, &mut on_host, &params),
        &expected,
        "back on the device",
    );
    on_device.truncate(2490);
    on_device.rows_to_host(&client).expect("a device");
    data.fill(&client, &mut on_device, &[10]);
    assert!(on_device.has_host_rows());
    same(
        &answer(&client, &data, &mut on_device, &params),
        &expected,
        "moved to main memory",
    );
}

#[test]
fn wgpu_too_many_rows_in_main_memory_are_attended_to_densely() {
    let client = client();
    let data = Data::new(shape(2, 2, 64, 64, Precision::F32), 4300, 12);
    let mut layer = data.layer_on_host(&client, &[4300]);
    let mut work = DeviceWorkspace::new(&client, data.shape, 1).expect("a shape");
    let out = client.empty(data.shape.queries() * 64 * 4);
    let rows = DeviceRows::contiguous(out.clone(), f32_element(), 2, 1, 2 * 64);
    let attended = super::decode(
        &client,
        &mut layer,
        &mut work,
        &data.query_rows(&client),
        &rows,
        &params(DeviceRule::Mass(0.0), 64),
    );
    assert_eq!(attended, Ok(Attended::Everything));
    let out = floats(&client, out);
    for (query, certificate) in work.certificates(&client).into_iter().enumerate() {
        assert_eq!(certificate.dropped_mass_bound, 0.0);
        assert_eq!(certificate.selected, data.len);
        let (dense, _) = data.attention(query, 0.125, |_| true);
        let off = distance(&out[query * 64..][..64], &dense);
        assert!(off <= f64::from(certificate.output_error_bound), "{off}");
        assert!(off < 1e-4, "{off}");
    }
}

#[test]
fn wgpu_means_stand_for_the_tail() {
    let client = client();
    let mut data = Data::new(shape(1, 4, 64, 64, Precision::F32), 4096, 5);
    // Values that their blocks have in common, as a text's topics do.
    for (i, value) in data.values.iter_mut().enumerate() {
        *value = 0.3 * *value + ((i / 64 / 64) as f32 * 1.3 + (i % 64) as f32).sin();
    }
    let mut layer = data.layer(&client, &[4096], 4096);
    let rule = params(DeviceRule::Top(256), 64);
    let mut off = |compensate| {
        let answer = check(
            &data,
            &DecodeParams { compensate, ..rule },
            &mut layer,
            &client,
        );
        let of = |query: usize| {
            distance(
                &answer.out[query * 64..][..64],
                &data.attention(query, rule.scale, |_| true).0,
            )
        };
        (0..4).map(of).sum::<f64>()
    };
    let (without, with) = (off(false), off(true));
    assert!(with < 0.7 * without, "{with} {without}");
}

#[test]
fn wgpu_ties_zeros_and_one_huge_key() {
    let client = client();
    let base = Data::new(shape(1, 2, 64, 64, Precision::F32), 1300, 3);
    let all = |f: &dyn Fn(usize, usize, f32) -> f32| {
        let mut data = base.clone();
        for (i, key) in data.keys.iter_mut().enumerate() {
            *key = f(i / 64, i % 64, *key);
        }
        data
    };
    let cases = [
        ("zeros", all(&|_, _, _| 0.0)),
        ("equal", all(&|_, d, _| d as f32 - 20.0)),
        (
            "three kinds",
            all(&|i, d, _| ((i % 3 * 64 + d) as f32).sin()),
        ),
        (
            "one huge",
            all(&|i, _, key| if i == 700 { key * 1e6 } else { key }),
        ),
        ("tiny", all(&|_, _, key| key * 1e-25)),
        ("large", all(&|_, _, key| key * 1e10)),
        ("signs", all(&|i, _, _| if i % 2 == 0 { 0.0 } else { -0.0 })),
    ];
    for (name, data) in cases {
        let mut layer = data.layer(&client, &[1200, 100], 1300);
        for rule in [
            DeviceRule::Top(100),
            DeviceRule::Top(400),
            DeviceRule::Mass(0.1),
            DeviceRule::AtLeast(0.0),
        ] {
            for compensate in [false, true] {
                let answer = check(
                    &data,
                    &DecodeParams {
                        compensate,
                        ..params(rule, 64)
                    },
                    &mut layer,
                    &client,
                );
                if let (DeviceRule::Top(k), "zeros" | "equal" | "signs") = (rule, name) {
                    assert_eq!(
                        answer.selected[0],
                        (0..k).collect(),
                        "{name}: ties go to the lower positions"
                    );
                }
            }
        }
    }
}

#[test]
fn wgpu_strided_rows_truncation_and_growth() {
    let client = client();
    let data = Data::new(shape(4, 1, 64, 64, Precision::F16), 1100, 21);
    let mut layer = data.layer(&client, &[64, 900, 136], 1);
    assert_eq!(layer.capacity(), 2048);
    let expected = check(&data, &params(DeviceRule::Top(30), 64), &mut layer, &client).out;

    // The same tokens as `[B, L, Hkv, D]` with two sequences, as a model's projection has them, after others that are forgotten.
    let transpose = |rows: &[f32]| {
        let mut out = vec![0.0; rows.len()];
        for (i, &x) in rows.iter().enumerate() {
            let (head, token, d) = (i / 64 / 1100, i / 64 % 1100, i % 64);
            out[((head / 2 * 1100 + token) * 2 + head % 2) * 64 + d] = x;
        }
        out
    };
    let strided = |rows: &[f32], first: usize| DeviceRows {
        handle: upload(&client, &transpose(rows)).offset_start((first * 2 * 64 * 4) as u64),
        element: f32_element(),
        heads_per_batch: 2,
        strides: [1100 * 2 * 64, 64, 2 * 64],
    };
    let mut other = DeviceLayer::new(&client, data.shape, 5000).expect("a shape");
    other
        .append(
            &client,
            &strided(&data.keys, 0),
            &strided(&data.values, 0),
            500,
        )
        .expect("room");
    other
        .append(
            &client,
            &strided(&data.values, 0),
            &strided(&data.keys, 0),
            300,
        )
        .expect("room");
    other.truncate(500);
    other
        .append(
            &client,
            &strided(&data.keys, 500),
            &strided(&data.values, 500),
            600,
        )
        .expect("room");
    let answer = check(&data, &params(DeviceRule::Top(30), 64), &mut other, &client).out;
    let off = answer
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(off < 1e-5, "{off}");
}

#[test]
fn wgpu_what_cannot_be_stored_is_noted() {
    let client = client();
    let shape = shape(2, 1, 64, 64, Precision::Bf16);
    let mut data = Data::new(shape, 200, 2);
    data.keys[(200 + 150) * 64 + 7] = f32::NAN;
    data.keys[(200 + 180) * 64] = f32::INFINITY;
    data.values[120 * 64 + 63] = 1e30;
    let mut layer = data.layer(&client, &[100, 100], 200);
    assert_eq!(
        layer.faults(&client),
        DeviceFaults {
            key: Some(150),
            value: Some(120)
        }
    );
    // Such tokens are zeros, so everything else still holds.
    for (head, position) in [(1, 150), (1, 180), (0, 120)] {
        data.keys[(head * 200 + position) * 64..][..64].fill(0.0);
        data.values[(head * 200 + position) * 64..][..64].fill(0.0);
    }
    check(&data, &params(DeviceRule::Top(20), 64), &mut layer, &client);
    layer.reset(&client);
    assert_eq!(
        (layer.len(), layer.faults(&client)),
        (0, DeviceFaults::default())
    );

    let mut work = DeviceWorkspace::new(&client, shape, 10).expect("a shape");
    let rows = data.query_rows(&client);
    let refused = super::decode(
        &client,
        &mut layer,
        &mut work,
        &rows,
        &rows,
        &params(DeviceRule::Top(1), 64),
    );
    assert_eq!(refused, Err(DeviceError::Empty));
    let short = DeviceRows::contiguous(upload(&client, &[0.0; 64]), f32_element(), 2, 1, 64);
    assert!(matches!(
        layer.append(&client, &short, &short, 1),
        Err(DeviceError::Buffer {
            expected: 512,
            received: 256
        })
    ));
    assert!(DeviceLayer::<WgpuRuntime>::new(&client, DeviceShape { dim: 72, ..shape }, 1).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn wgpu_any_lengths_and_rules(
        seed in 0u64..1_000_000,
        steps in prop::collection::vec(1usize..900, 1..4),
        magnitude in -6i32..7,
        kind in 0usize..3,
        amount in 0.0f64..1.0,
        sinks in 0usize..70,
        window in 0usize..200,
        compensate: bool,
    ) {
        let client = client();
        let len = steps.iter().sum();
        let mut data = Data::new(shape(2, 2, 64, 64, Precision::Bf16), len, seed);
        data.keys.iter_mut().for_each(|key| *key *= 10f32.powi(magnitude));
        let mut layer = data.layer(&client, &steps, 1);
        let rule = match kind {
            0 => DeviceRule::Top((amount * 1.2 * len as f64) as usize),
            1 => DeviceRule::AtLeast(data.scores(0)[(amount * (len - 1) as f64) as usize]),
            _ => DeviceRule::Mass(amount as f32),
        };
        check(&data, &DecodeParams { sinks, window, compensate, ..params(rule, 64) }, &mut layer, &client);
    }
}
