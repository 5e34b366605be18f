//! Tables of scores, beside dense attention on the same samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Task, TaskScore};

/// What scores of one rule come to.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    samples: usize,
    tokens: usize,
    nll: f64,
    dense_nll: f64,
    worst: f64,
    exact: usize,
    dense_exact: usize,
    same_argmax: usize,
    kl: f64,
    density: f64,
}

impl Sums {
    fn add(&mut self, score: &TaskScore) {
        self.samples += 1;
        self.tokens += score.tokens;
        self.nll += score.nll;
        self.dense_nll += score.dense_nll;
        let difference = score.nll - score.dense_nll;
        self.worst = match self.samples {
            1 => difference,
            _ => self.worst.max(difference),
        };
        self.exact += usize::from(score.exact);
        self.dense_exact += usize::from(score.dense_exact);
        self.same_argmax += score.same_argmax;
        self.kl += score.kl;
        self.density += score.density;
    }

    fn cells(&self) -> String {
        let mean = |sum: f64| sum / self.samples as f64;
        format!(
            "{} | {:.3} | {:.3} | {:+.3} | {:+.2} | {}/{} | {:.1} % | {:.4} | {:.3} |",
            self.samples,
            mean(self.nll),
            mean(self.dense_nll),
            mean(self.nll - self.dense_nll),
            self.worst,
            self.exact,
            self.dense_exact,
            100.0 * self.same_argmax as f64 / self.tokens as f64,
            mean(self.kl),
            mean(self.density),
        )
    }
}

const COLUMNS: &str = "samples | NLL | dense NLL | difference | worst | exact (rule/dense) | same token as dense | KL(dense, rule) | density |";
const LEGEND: &str = "The context is read densely, question and answer by the rule. NLL: mean negative log-likelihood of the answer's tokens in nats; exact: each of them is the most probable one.";
const LINE: &str = "---|---|---|---|---|---|---|---|---|";

/// Every rule over all samples, every task by rule, and the passkey by depth and length: means over samples.
///
/// NLL is the mean negative log-likelihood of an answer's tokens in nats; exact is that each of them is the most probable one.
pub fn markdown(scores: &[TaskScore]) -> String {
    let mut rules: Vec<&str> = Vec::new();
    for score in scores {
        if !rules.contains(&score.rule.as_str()) {
            rules.push(&score.rule);
        }
    }
    let of = |rule: &str, keep: &dyn Fn(&TaskScore) -> bool| {
        let mut sums = Sums::default();
        let chosen = scores.iter().filter(|one| one.rule == rule && keep(one));
        chosen.for_each(|one| sums.add(one));
        (sums.samples > 0).then_some(sums)
    };
    let mut text = format!("{LEGEND}\n\n| rule | {COLUMNS}\n|---|{LINE}\n");
    for rule in &rules {
        if let Some(sums) = of(rule, &|_| true) {
            let _ = writeln!(text, "| {rule} | {}", sums.cells());
        }
    }
    let _ = write!(
        text,
        "\n| task | tokens | rule | {COLUMNS}\n|---|---|---|{LINE}\n"
    );
    let mut groups = BTreeMap::new();
    for score in scores {
        groups.insert((score.sample.task, score.sample.length), ());
    }
    for &(task, length) in groups.keys() {
        for rule in &rules {
            let sums = of(rule, &|one| {
                (one.sample.task, one.sample.length) == (task, length)
            });
            if let Some(sums) = sums {
                let _ = writeln!(text, "| {task} | {length} | {rule} | {}", sums.cells());
            }
        }
    }
    passkey(&mut text, scores, &rules);
    text
}

/// NLL of the passkey less that of dense attention, by depth and length.
fn passkey(text: &mut String, scores: &[TaskScore], rules: &[&str]) {
    let passkeys: Vec<&TaskScore> = scores
        .iter()
        .filter(|score| score.sample.task == Task::Passkey)
        .collect();
    let mut depths: Vec<usize> = passkeys.iter().map(|one| one.sample.depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let mut lengths: Vec<usize> = passkeys.iter().map(|one| one.sample.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    if depths.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\nPasskey: NLL less dense NLL (exact), by depth.\n\n| rule | tokens |"
    );
    for depth in &depths {
        let _ = write!(text, " {depth} % |");
    }
    let _ = writeln!(text, "\n|---|---|{}", "---|".repeat(depths.len()));
    for rule in rules {
        for &length in &lengths {
            let _ = write!(text, "| {rule} | {length} |");
            for &depth in &depths {
                let mut sums = Sums::default();
                let chosen = passkeys.iter().filter(|one| {
                    one.rule == *rule && (one.sample.length, one.sample.depth) == (length, depth)
                });
                chosen.for_each(|one| sums.add(one));
                let difference = (sums.nll - sums.dense_nll) / sums.samples.max(1) as f64;
                let _ = write!(
                    text,
                    " {difference:+.3} ({}/{}) |",
                    sums.exact, sums.samples
                );
            }
            text.push('\n');
        }
    }
}

/// Every score, as comma-separated values.
pub fn task_csv(scores: &[TaskScore]) -> String {
    let mut text = String::from(
        "task,length,depth,seed,rule,prompt,tokens,nll,dense_nll,exact,dense_exact,same_argmax,kl,density\n",
    );
    for score in scores {
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            score.sample.task,
            score.sample.length,
            score.sample.depth,
            score.sample.seed,
            score.rule,
            score.prompt,
            score.tokens,
            score.nll,
            score.dense_nll,
            score.exact,
            score.dense_exact,
            score.same_argmax,
            score.kl,
            score.density
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::Sample;

    #[test]
    fn tables_hold_rules_tasks_and_depths() {
        let score = |task, depth, rule: &str, nll| TaskScore {
            sample: Sample {
                task,
                length: 1024,
                depth,
                seed: 0,
            },
            rule: rule.into(),
            prompt: 1000,
            tokens: 4,
            nll,
            dense_nll: 1.0,
            exact: nll < 1.5,
            dense_exact: true,
            same_argmax: 3,
            kl: 0.125,
            density: 0.25,
        };
        let scores = [
            score(Task::Passkey, 0, "top-k=64", 1.25),
            score(Task::Passkey, 50, "top-k=64", 2.0),
            score(Task::Needle, 0, "top-k=64", 0.75),
        ];
        let text = markdown(&scores);
        for wanted in [
            "| top-k=64 | 3 | 1.333 | 1.000 | +0.333 | +1.00 | 2/3 | 75.0 % | 0.1250 | 0.250 |",
            "| passkey | 1024 | top-k=64 | 2 | 1.625 |",
            // the worst of one sample is that sample's, also where the rule does better than dense attention
            "| needle | 1024 | top-k=64 | 1 | 0.750 | 1.000 | -0.250 | -0.25 |",
            "| top-k=64 | 1024 | +0.250 (1/1) | +1.000 (0/1) |",
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
        assert_eq!(task_csv(&scores).lines().count(), 4);
    }
}
