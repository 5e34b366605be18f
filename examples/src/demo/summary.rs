use hira_memory::Part;
use serde_json::{Value, json};

use super::{Comparison, Decoding, Table};
use crate::bench::Spread;

impl Comparison {
    /// The figures for a reader.
    pub fn table(&self, prompt_tokens: usize) -> Table {
        let mut table = Table::default();
        let ms = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
        let [dense, hira] = [self.dense.spread(), self.hira.spread()];
        let both = |of: &dyn Fn(Spread) -> String| [of(dense), of(hira)];
        table.pair("", "dense", "Hira");
        table.line();
        table.one(
            "prefill, shared",
            format!("{prompt_tokens} tokens in {:.1} s", self.prefill_s),
        );
        let mut pair = |label: &str, of: &dyn Fn(Spread) -> String| {
            let [dense, hira] = both(of);
            table.pair(label, dense, hira);
        };
        pair("decode, one token (median)", &|spread| ms(spread.median));
        pair("  quartiles", &|spread| {
            format!("{:.1}-{:.1} ms", 1e3 * spread.lower, 1e3 * spread.upper)
        });
        pair("  of which attention*", &|spread| {
            above(spread, self.empty_step).map_or("in the noise".into(), ms)
        });
        pair("tokens per second", &|spread| {
            format!("{:.1}", 1.0 / spread.median)
        });
        table.line();
        let agreement = self.agreement;
        let place = match agreement.first_difference {
            Some(at) => format!("; the first other one is number {}", at + 1),
            None => String::new(),
        };
        table.one(
            "same greedy tokens",
            format!("{} of {}{place}", agreement.equal, agreement.tokens),
        );
        let divergence = self.divergence;
        table.one(
            "  after the same past",
            format!("{} of {}", divergence.same_argmax, divergence.steps),
        );
        table.one(
            "KL(dense || Hira), nats",
            format!(
                "mean {:.2e}, largest {:.2e}",
                divergence.mean(),
                divergence.max
            ),
        );
        let metrics = &self.hira.metrics;
        let percent = |share: f64| format!("{:.2} % of the keys", 100.0 * share);
        table.one("keys attended to", percent(metrics.density()));
        table.one("keys scored exactly", percent(metrics.scanned_fraction()));
        let dense_share = metrics.dense_queries as f64 / metrics.queries.max(1) as f64;
        table.one(
            "heads that went dense",
            format!("{:.1} %", 100.0 * dense_share),
        );
        let bound = |mean: f64, worst: f32| format!("mean {mean:.4}, worst {worst:.4}");
        let worst = metrics.worst();
        table.one(
            "proven: dropped mass at most",
            bound(metrics.dropped_mass_bound_mean(), worst.dropped_mass_bound),
        );
        table.one(
            "proven: output error at most",
            bound(metrics.output_error_bound_mean(), worst.output_error_bound),
        );
        table.line();
        let memory = Memory::of(self);
        let mb = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
        table.one("memory of keys and values", mb(memory.keys + memory.values));
        table.one(
            "memory of the index",
            format!("{} more", mb(memory.sketch + memory.levels)),
        );
        table.line();
        table.one(
            "* the median less that of a step with an empty cache",
            ms(self.empty_step.median),
        );
        table
    }

    /// The figures for a program.
    pub fn json(&self, prompt_tokens: usize) -> Value {
        let metrics = &self.hira.metrics;
        let memory = Memory::of(self);
        json!({
            "prompt_tokens": prompt_tokens,
            "prefill_s": self.prefill_s,
            "first_token": self.first,
            "dense": of_decoding(&self.dense),
            "hira": of_decoding(&self.hira),
            "empty_step_s": self.empty_step.median,
            "agreement": {
                "tokens": self.agreement.tokens,
                "equal": self.agreement.equal,
                "first_difference": self.agreement.first_difference,
            },
            "forced": {
                "steps": self.divergence.steps,
                "same_argmax": self.divergence.same_argmax,
                "kl_mean": self.divergence.mean(),
                "kl_max": self.divergence.max,
            },
            "density": metrics.density(),
            "scanned_fraction": metrics.scanned_fraction(),
            "queries": metrics.queries,
            "dense_queries": metrics.dense_queries,
            "dropped_mass_bound": {
                "mean": metrics.dropped_mass_bound_mean(),
                "worst": metrics.worst().dropped_mass_bound,
            },
            "output_error_bound": {
                "mean": metrics.output_error_bound_mean(),
                "worst": metrics.worst().output_error_bound,
            },
            "memory": {
                "keys": memory.keys,
                "values": memory.values,
                "sketch": memory.sketch,
                "levels": memory.levels,
            },
        })
    }
}

/// How much longer a step is than another by their medians, unless that is less than the other's own spread.
fn above(step: Spread, empty: Spread) -> Option<f64> {
    let more = step.median - empty.median;
    (more > empty.upper - empty.lower).then_some(more)
}

fn of_decoding(decoding: &Decoding) -> Value {
    let spread = decoding.spread();
    json!({
        "tokens": decoding.tokens,
        "decode_s_per_token": spread.median,
        "decode_s_lower": spread.lower,
        "decode_s_upper": spread.upper,
    })
}

/// Bytes of the cache after the answer.
struct Memory {
    keys: usize,
    values: usize,
    sketch: usize,
    levels: usize,
}

impl Memory {
    fn of(comparison: &Comparison) -> Self {
        let memory = &comparison.cache.memory;
        let [keys, values, sketch] =
            [Part::Keys, Part::Values, Part::Sketch].map(|part| memory.of(part));
        Self {
            keys,
            values,
            sketch,
            levels: memory.total() - keys - values - sketch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_within_the_spread_is_none() {
        let spread = |lower, median, upper| Spread {
            lower,
            median,
            upper,
        };
        let empty = spread(0.9, 1.0, 1.2);
        assert!(above(spread(1.2, 1.25, 1.3), empty).is_none());
        let more = above(spread(1.9, 2.0, 2.1), empty);
        assert!(more.is_some_and(|more| (more - 1.0).abs() < 1e-12));
    }
}
