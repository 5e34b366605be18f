//! What was measured, as Markdown tables and comma-separated values.

use std::fmt::Write;

use super::record::{STRETCH, between};
use super::{DecodingRecord, LayerRecall, LayerSums, Record, ScoreSums, TextRecord, densities};

/// Everything that one rule's readings of the text came to.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The rule.
    pub rule: String,
    /// Scores by position, from `start` on, in stretches of 256.
    pub stretches: Vec<ScoreSums>,
    /// The first position that counts.
    pub start: usize,
    /// Reports by layer and head.
    pub layers: LayerSums,
    /// The answers that were held against dense attention, by layer.
    pub recalls: Vec<LayerRecall>,
    /// Seconds in all.
    pub seconds: f64,
    /// Windows.
    pub windows: usize,
}

impl Summary {
    /// Summaries of windows of `len` tokens with these positions, rules in the order of their first record.
    pub fn of(records: &[Record], positions: &str, len: usize) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for record in records {
            if let Record::Text(one) = record
                && one.len == len
                && one.positions == positions
            {
                match all.iter_mut().find(|known| known.rule == one.rule) {
                    Some(known) => known.add(one),
                    None => {
                        let mut new = Self {
                            rule: one.rule.clone(),
                            stretches: Vec::new(),
                            start: one.start,
                            layers: LayerSums::new(),
                            recalls: Vec::new(),
                            seconds: 0.0,
                            windows: 0,
                        };
                        new.add(one);
                        all.push(new);
                    }
                }
            }
        }
        all
    }

    fn add(&mut self, one: &TextRecord) {
        let most = self.stretches.len().max(one.stretches.len());
        self.stretches.resize(most, ScoreSums::default());
        for (sums, other) in self.stretches.iter_mut().zip(&one.stretches) {
            sums.join(other);
        }
        densities::join(&mut self.layers, &one.layers);
        for recall in &one.recalls {
            match self
                .recalls
                .iter_mut()
                .find(|known| known.layer == recall.layer)
            {
                Some(known) => known.join(recall),
                None => self.recalls.push(*recall),
            }
        }
        self.seconds += one.seconds;
        self.windows += 1;
    }

    /// Scores of tokens that have half a context to a context before them.
    pub fn at(&self, context: usize) -> ScoreSums {
        between(&self.stretches, self.start, (context / 2, context))
    }

    /// All layers' answers that were held against dense attention; none of dense attention itself.
    pub fn recall(&self) -> LayerRecall {
        let mut total = LayerRecall::default();
        self.recalls.iter().for_each(|layer| total.join(layer));
        total
    }

    /// Keys attended to / visible keys.
    pub fn density(&self) -> f64 {
        densities::total(&self.layers).density()
    }
}

/// Perplexity at each context, and how far the last one is from dense attention.
pub(super) fn perplexity_markdown(summaries: &[Summary], contexts: &[usize]) -> String {
    let mut text = String::from(
        "| rule | keys attended to | dropped mass, proven (mean) | mass kept | output error |",
    );
    for context in contexts {
        write_to(
            &mut text,
            format_args!(" perplexity at {} |", short(*context)),
        );
    }
    text.push_str(" over dense | KL, mean | KL, worst | same argmax |\n|---|--:|--:|--:|--:|");
    text.push_str(&"--:|".repeat(contexts.len() + 4));
    text.push('\n');
    for one in summaries {
        let total = densities::total(&one.layers);
        write_to(
            &mut text,
            format_args!(
                "| {} | {:.2} % | {:.4} |",
                one.rule,
                100.0 * total.density(),
                total.dropped_mass_mean()
            ),
        );
        let recall = one.recall();
        match recall.queries {
            0 => text.push_str(" | |"),
            _ => write_to(
                &mut text,
                format_args!(
                    " {:.4} | {:.4} |",
                    recall.kept_mass_mean(),
                    recall.relative_error_mean()
                ),
            ),
        }
        for context in contexts {
            let sums = one.at(*context);
            match sums.tokens {
                0 => text.push_str(" |"),
                _ => write_to(&mut text, format_args!(" {:.3} |", sums.perplexity())),
            }
        }
        let last = one.at(contexts.last().copied().unwrap_or(0));
        let (excess, error) = last.excess();
        write_to(
            &mut text,
            format_args!(
                " {:+.2} % ± {:.2} | {:.2e} | {:.2} | {:.2} % |\n",
                100.0 * excess,
                100.0 * error,
                last.kl_mean(),
                last.kl_max,
                100.0 * last.agreement()
            ),
        );
    }
    text
}

/// Perplexity by position, in stretches of `width` positions.
pub(super) fn position_markdown(summaries: &[Summary], width: usize) -> String {
    let Some(first) = summaries.first() else {
        return String::new();
    };
    let end = first.start + first.stretches.len() * STRETCH;
    let bounds: Vec<_> = (0..end.div_ceil(width))
        .map(|i| ((i * width).max(first.start), ((i + 1) * width).min(end)))
        .filter(|(from, to)| from < to)
        .collect();
    let mut text = String::from("| positions |");
    for one in summaries {
        write_to(&mut text, format_args!(" {} |", one.rule));
    }
    text.push_str("\n|---|");
    text.push_str(&"--:|".repeat(summaries.len()));
    text.push('\n');
    for bound in bounds {
        write_to(&mut text, format_args!("| {} to {} |", bound.0, bound.1));
        for one in summaries {
            let sums = between(&one.stretches, one.start, bound);
            write_to(&mut text, format_args!(" {:.2} |", sums.perplexity()));
        }
        text.push('\n');
    }
    text
}

/// What tokens decoded to the end of a window of `len` tokens came to; empty if none were.
pub(super) fn decoding_markdown(records: &[Record], positions: &str, len: usize) -> String {
    let ours = |one: &&DecodingRecord| one.positions == positions && one.prompt + one.tokens == len;
    if !decodings(records).any(|one| ours(&one)) {
        return String::new();
    }
    let mut text = String::from(
        "| rule | keys attended to | dropped mass, proven (mean) | same tokens, free | equal before the first other | same token, same past | KL, mean |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
    );
    for one in decodings(records).filter(ours) {
        write_to(
            &mut text,
            format_args!(
                "| {} | {:.2} % | {:.4} | {} of {} | {} | {} of {} | {:.2e} |\n",
                one.rule,
                100.0 * one.density,
                one.dropped_mass_bound,
                one.equal,
                one.tokens,
                one.equal_prefix,
                one.same_past.agreeing,
                one.same_past.tokens,
                one.same_past.kl_mean()
            ),
        );
    }
    text
}

fn decodings(records: &[Record]) -> impl Iterator<Item = &DecodingRecord> {
    records.iter().filter_map(|record| match record {
        Record::Decoding(one) => Some(one),
        _ => None,
    })
}

/// Scores by rule and stretch of positions.
pub(super) fn positions_csv(summaries: &[Summary]) -> String {
    let mut text = String::from(
        "rule,windows,from,to,tokens,perplexity,dense_perplexity,kl_mean,kl_max,agreement\n",
    );
    for one in summaries {
        for (i, sums) in one.stretches.iter().enumerate() {
            let from = one.start + i * STRETCH;
            write_to(
                &mut text,
                format_args!(
                    "{},{},{from},{},{},{:.5},{:.5},{:.6e},{:.5},{:.5}\n",
                    one.rule,
                    one.windows,
                    from + STRETCH,
                    sums.tokens,
                    sums.perplexity(),
                    sums.dense_perplexity(),
                    sums.kl_mean(),
                    sums.kl_max,
                    sums.agreement()
                ),
            );
        }
    }
    text
}

/// Scores by rule and context.
pub(super) fn perplexity_csv(summaries: &[Summary], contexts: &[usize]) -> String {
    let mut text = String::from(
        "rule,context,tokens,density,dropped_mass_bound,perplexity,dense_perplexity,excess,excess_error,kl_mean,kl_max,agreement,seconds\n",
    );
    for one in summaries {
        let total = densities::total(&one.layers);
        for context in contexts {
            let sums = one.at(*context);
            let (excess, error) = sums.excess();
            write_to(
                &mut text,
                format_args!(
                    "{},{context},{},{:.6},{:.6},{:.5},{:.5},{excess:.6},{error:.6},{:.6e},{:.5},{:.5},{:.1}\n",
                    one.rule,
                    sums.tokens,
                    total.density(),
                    total.dropped_mass_mean(),
                    sums.perplexity(),
                    sums.dense_perplexity(),
                    sums.kl_mean(),
                    sums.kl_max,
                    sums.agreement(),
                    one.seconds
                ),
            );
        }
    }
    text
}

/// Densities by rule, layer and head.
pub(super) fn densities_csv(summaries: &[Summary]) -> String {
    let mut text = String::from("rule,layer,head,queries,density,dropped_mass_bound\n");
    for one in summaries {
        for (layer, heads) in one.layers.iter().enumerate() {
            for (head, sums) in heads.iter().enumerate() {
                write_to(
                    &mut text,
                    format_args!(
                        "{},{layer},{head},{},{:.6},{:.6}\n",
                        one.rule,
                        sums.queries,
                        sums.density(),
                        sums.dropped_mass_mean()
                    ),
                );
            }
        }
    }
    text
}

/// Answers that were held against dense attention, by rule and layer.
pub(super) fn layers_csv(summaries: &[Summary]) -> String {
    let mut text =
        String::from("rule,layer,queries,kept_mass,relative_error,worst_dropped,violations\n");
    for one in summaries {
        for recall in &one.recalls {
            write_to(
                &mut text,
                format_args!(
                    "{},{},{},{:.6},{:.6},{:.6},{}\n",
                    one.rule,
                    recall.layer,
                    recall.queries,
                    recall.kept_mass_mean(),
                    recall.relative_error_mean(),
                    recall.worst_dropped,
                    recall.violations
                ),
            );
        }
    }
    text
}

/// A context as people say it.
pub(super) fn short(context: usize) -> String {
    match context {
        0..1024 => context.to_string(),
        _ if context.is_multiple_of(1024) => format!("{}k", context / 1024),
        _ => format!("{:.1}k", context as f64 / 1024.0),
    }
}

/// Writing to a `String` cannot fail.
fn write_to(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _never = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::HeadSums;

    fn text(rule: &str, window: usize, nll: f64) -> Record {
        let sums = ScoreSums {
            tokens: 10,
            dense_nll: 10.0 * 2f64.ln(),
            nll: 10.0 * nll,
            nll_difference_squared: 0.0,
            kl: 1.0,
            kl_max: 0.5,
            agreeing: 9,
        };
        Record::Text(TextRecord {
            positions: "own".to_owned(),
            rule: rule.to_owned(),
            window,
            len: 2048,
            stretches: vec![sums; 4],
            start: 1024,
            layers: vec![vec![HeadSums {
                queries: 40,
                attended: 1,
                visible: 4,
                dropped_mass: 10.0,
            }]],
            recalls: vec![LayerRecall {
                layer: 0,
                queries: 2,
                kept_mass: 1.5,
                relative_error: 0.5,
                ..LayerRecall::default()
            }],
            seconds: 1.0,
        })
    }

    #[test]
    fn windows_of_a_rule_are_one_row() {
        let records = [
            text("dense", 0, 2f64.ln()),
            text("mass=0.9", 0, 4f64.ln()),
            text("mass=0.9", 1, 4f64.ln()),
        ];
        let summaries = Summary::of(&records, "own", 2048);
        assert_eq!(summaries.len(), 2);
        assert_eq!(
            (summaries[1].windows, summaries[1].at(2048).tokens),
            (2, 80)
        );
        assert_eq!(summaries[1].at(1024).tokens, 0);
        assert!(Summary::of(&records, "own", 4096).is_empty());
        let table = perplexity_markdown(&summaries, &[1024, 2048]);
        let row = table.lines().nth(3).expect("a row");
        assert_eq!(
            row,
            "| mass=0.9 | 25.00 % | 0.2500 | 0.7500 | 0.2500 | | 4.000 | +100.00 % ± 0.00 | 1.00e-1 | 0.50 | 90.00 % |"
        );
        let cells = table.lines().map(|line| line.matches('|').count());
        assert!(
            cells
                .clone()
                .all(|count| Some(count) == cells.clone().next())
        );
        let csv = perplexity_csv(&summaries, &[2048]);
        assert!(
            csv.contains("\nmass=0.9,2048,80,0.250000,0.250000,4.00000,2.00000,1.000000,"),
            "{csv}"
        );
        assert_eq!(positions_csv(&summaries).lines().count(), 9);
        assert_eq!(densities_csv(&summaries).lines().count(), 3);
        assert!(layers_csv(&summaries).contains("mass=0.9,0,4,0.750000,0.250000,0.000000,0"));
        let positions = position_markdown(&summaries, 512);
        assert!(
            positions.contains("| 1024 to 1536 | 2.00 | 4.00 |"),
            "{positions}"
        );
    }

    #[test]
    fn tokens_decoded_in_other_windows_are_left_out() {
        let decoded = |positions: &str, prompt| {
            Record::Decoding(DecodingRecord {
                positions: positions.to_owned(),
                rule: "mass=0.9".to_owned(),
                prompt,
                tokens: 8,
                equal: 6,
                equal_prefix: 5,
                same_past: ScoreSums::default(),
                density: 0.25,
                dropped_mass_bound: 0.0625,
            })
        };
        let records = [
            decoded("own", 504),
            decoded("own", 2040),
            decoded("yarn=2", 504),
        ];
        let table = decoding_markdown(&records, "own", 512);
        assert_eq!(table.lines().count(), 3);
        assert!(
            table.contains("| mass=0.9 | 25.00 % | 0.0625 | 6 of 8 | 5 |"),
            "{table}"
        );
        assert!(decoding_markdown(&records, "own", 1024).is_empty());
    }

    #[test]
    fn contexts_have_short_names() {
        assert_eq!([512, 2048, 7680].map(short), ["512", "2k", "7.5k"]);
    }
}
