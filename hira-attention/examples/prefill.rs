//! Times a prefill, dense beside sparse, on a recorded layer.
//!
//! ```sh
//! cargo run --release -p hira-attention --no-default-features --example prefill -- CAPTURE.safetensors [--rule top-k=256] [--rounds 5] [--times 1]
//! ```
//!
//! Two workloads: the last 128 tokens after all the others, whose queries were recorded; and the whole prompt in one call, for which the
//! recorded queries are repeated along it, as there are no others. With `--times 4` the recorded keys and values are repeated to four times the length, and only
//! the last tokens are timed. Each is the time of a call with everything in it, dense and sparse by turns.

use std::{path::PathBuf, time::Instant};

use hira_attention::{CacheShape, HiraAttentionConfig, PlanPolicy};
use hira_threshold::ThresholdRule;
use safetensors::{Dtype, SafeTensors};

type Error = Box<dyn std::error::Error>;

/// `[heads, rows, dim]` and the elements.
struct Rows {
    shape: [usize; 3],
    data: Vec<f32>,
}

impl Rows {
    fn read(file: &SafeTensors<'_>, name: &str) -> Result<Self, Error> {
        let tensor = file.tensor(name)?;
        let shape = tensor.shape().try_into()?;
        let bytes = tensor.data();
        let data = match tensor.dtype() {
            Dtype::F16 => bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            Dtype::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            other => return Err(format!("{name} holds {other:?}").into()),
        };
        Ok(Self { shape, data })
    }

    /// `count` rows of every head from row `first` on, cyclic.
    fn rows(&self, first: usize, count: usize) -> Vec<f32> {
        let [heads, rows, dim] = self.shape;
        let row = |head: usize, i: usize| {
            let at = (head * rows + (first + i) % rows) * dim;
            &self.data[at..at + dim]
        };
        let all = (0..heads).flat_map(|head| (0..count).flat_map(move |i| row(head, i)));
        all.copied().collect()
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Error> {
    let mut path = None;
    let (mut rule, mut rounds, mut times) = (ThresholdRule::TopK { k: 256 }, 5, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rule" => rule = arguments.next().ok_or("--rule takes a rule")?.parse()?,
            "--rounds" => rounds = arguments.next().ok_or("--rounds takes a number")?.parse()?,
            "--times" => times = arguments.next().ok_or("--times takes a number")?.parse()?,
            _ => path = Some(PathBuf::from(argument)),
        }
    }
    let bytes = std::fs::read(path.ok_or("the path of a capture is needed")?)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let [q, k, v] = ["q", "k", "v"].map(|name| Rows::read(&file, name));
    let (q, k, v) = (q?, k?, v?);
    let [kv_heads, stored, head_dim] = k.shape;
    let (len, repeated) = (stored * times, times > 1);
    let [heads, recorded, _] = q.shape;
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads,
        head_dim,
        value_dim: v.shape[2],
        max_len: len,
    };
    let base = HiraAttentionConfig {
        use_hira_during_prefill: true,
        ..HiraAttentionConfig::new().with_rule(rule)
    };
    let plans = [
        ("dense", base.clone().with_plan(PlanPolicy::Dense)),
        ("auto", base.clone()),
        ("sparse", base.with_plan(PlanPolicy::Sparse)),
    ];
    println!("{rule}, {heads} heads on {kv_heads}, D {head_dim}, {len} keys; medians of {rounds}");
    let workloads = [
        ("last tokens, recorded queries", recorded, 4 * rounds),
        ("whole prompt, repeated queries", len, rounds),
    ];
    let count = if repeated { 1 } else { 2 };
    for (name, tokens, rounds) in workloads.into_iter().take(count) {
        let before = len - tokens;
        let (queries, keys, values) = (
            q.rows(before % recorded, tokens),
            k.rows(before, tokens),
            v.rows(before, tokens),
        );
        let mut out = vec![0.0; heads * tokens * v.shape[2]];
        let mut times = [const { Vec::new() }; 3];
        let mut lines: [String; 3] = Default::default();
        for round in 0..rounds + 1 {
            for (i, (_, config)) in plans.iter().enumerate() {
                let attention = config.init_host()?;
                let mut cache = config.init_cache(shape)?;
                cache.append(0, &k.rows(0, before), &v.rows(0, before))?;
                let start = Instant::now();
                let report = attention
                    .forward_into(heads, &queries, &keys, &values, &mut cache, 0, &mut out)?;
                if round > 0 {
                    times[i].push(start.elapsed().as_secs_f64());
                }
                let dense: u64 = report.heads.iter().map(|head| head.dense_queries).sum();
                lines[i] = format!(
                    "density {:.3}, survivors {:.3}, dense queries {:.3}, dropped mass at most {:.3}",
                    report.density(),
                    report.scanned_fraction(),
                    dense as f64 / (heads * tokens) as f64,
                    report.dropped_mass_bound()
                );
            }
        }
        println!("{name}: {tokens} after {before}");
        let dense = median(&mut times[0]);
        for ((plan, _), (times, line)) in plans.iter().zip(times.iter_mut().zip(lines)) {
            let time = median(times);
            let query = time * 1e9 / (heads * tokens) as f64;
            println!(
                "  {plan:6} {:9.2} ms, {:7.0} ns a query, {:.2} x dense; {line}",
                time * 1e3,
                query,
                dense / time
            );
        }
    }
    Ok(())
}
