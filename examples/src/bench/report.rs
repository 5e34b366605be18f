//! `results.md`: sections that can be pasted into a document.

use super::{
    Ceilings, Outcome, Work,
    outcome::{markdown, summary},
    scenario::all,
    target::targets,
};

/// What holds for the whole run.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The kernel.
    pub kernel: &'static str,
    /// Threads of rayon's pool.
    pub threads: usize,
    /// The device of Burn's tensors.
    pub device: String,
    /// Bytes of the last-level cache.
    pub cache: usize,
    /// Whether it was the short run.
    pub quick: bool,
}

/// The whole report.
pub fn report(
    conditions: &Conditions,
    ceilings: Option<&Ceilings>,
    outcomes: &[Outcome],
) -> String {
    let mut text = header(conditions, outcomes);
    if let Some(ceilings) = ceilings {
        text.push_str(&format!("\n## Ceilings\n\n{}", ceilings.markdown()));
    }
    let held = targets(outcomes);
    if held.lines().count() > 2 {
        text.push_str(&format!("\n## Targets\n\n{held}"));
    }
    let searches: Vec<String> = all()
        .iter()
        .filter(|scenario| scenario.work == Work::Search)
        .map(|scenario| scenario.name())
        .collect();
    let (search, steps): (Vec<_>, Vec<_>) = outcomes
        .iter()
        .cloned()
        .partition(|one| searches.contains(&one.scenario));
    if !steps.is_empty() {
        text.push_str(&format!(
            "\n## Context by context\n\n{}\n## Decode steps\n\n{}{}",
            summary(&steps),
            scenarios(&steps),
            markdown(&steps)
        ));
    }
    if !search.is_empty() {
        let of = |threads| {
            let chosen: Vec<_> = search
                .iter()
                .filter(|one| one.threads == threads)
                .cloned()
                .collect();
            markdown(&chosen)
        };
        let mut counts: Vec<_> = search.iter().map(|one| one.threads).collect();
        counts.sort_unstable();
        counts.dedup();
        text.push_str(&format!(
            "\n## One head, one query\n\n{}",
            scenarios(&search)
        ));
        for threads in counts {
            text.push_str(&format!("\nThreads: {threads}.\n\n{}", of(threads)));
        }
    }
    text
}

fn header(conditions: &Conditions, outcomes: &[Outcome]) -> String {
    let samples = outcomes.iter().map(|one| one.samples);
    format!(
        "# Attention bench{}\n\n\
         Kernel {}, {} threads, tensors on {}, last-level cache {} MiB. Medians of {} to {} calls a contender, in turns within one loop. Everything is \
         inside the timed region: append (hira, dense (ours)), threshold, search, exact scores, softmax, values, certificate, tensors in and out. Every \
         timed answer was compared with brute force. Over generated rows no head goes dense for the mass that its rule drops (`max_dropped_mass` 1).\n\
         \"over best dense\" is the median of the fastest dense contender of the same precision over this one's, \"over Burn\" that of Burn's faster one.\n",
        if conditions.quick { " (short run)" } else { "" },
        conditions.kernel,
        conditions.threads,
        conditions.device,
        conditions.cache >> 20,
        samples.clone().min().unwrap_or(0),
        samples.max().unwrap_or(0),
    )
}

/// What the scenarios of some outcomes are, a line each.
fn scenarios(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut before = None;
    for one in outcomes {
        if before.replace(&one.scenario) == Some(&one.scenario) {
            continue;
        }
        let state = match (one.warm, one.copies) {
            (true, _) => "warm: the same copy again".to_owned(),
            (false, 1) => "cold: one copy, many times the cache".to_owned(),
            (false, copies) => format!("cold: rotating over {copies} copies"),
        };
        text.push_str(&format!(
            "* `{}`: rows {}; {state}\n",
            one.scenario, one.source
        ));
    }
    text.push('\n');
    text
}

impl Ceilings {
    /// As Markdown tables.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| what | threads | measured |\n|---|--:|--:|\n");
        for (threads, rate) in &self.stream {
            text.push_str(&format!(
                "| plain read of memory | {threads} | {rate:.1} GB/s |\n"
            ));
        }
        if let Some(rate) = self.int8 {
            text.push_str(&format!(
                "| int8 multiply-adds, sketch in L1 | 1 | {rate:.0} G/s |\n"
            ));
        }
        for row in &self.rows {
            text.push_str(&format!(
                "| cold rows of {} bytes, 256 of 8,192 ascending | {} | {:.1} ns a row |\n",
                row.bytes, row.threads, row.ns
            ));
        }
        text.push_str(
            "\n| cold sketch scan, D 64 | threads | ns a key | GB/s | of memory | G int8/s | of int8 | binding | achieved |\n\
             |---|--:|--:|--:|--:|--:|--:|---|--:|\n",
        );
        for scan in &self.scans {
            let (achieved, binding) = scan.achieved();
            text.push_str(&format!(
                "| G {}{} | {} | {:.2} | {:.1} | {:.0} % | {:.0} | {} | {binding} | {:.0} % |\n",
                scan.group,
                if scan.tail { ", tail" } else { "" },
                scan.threads,
                scan.ns_per_key,
                scan.gb_per_s,
                100.0 * scan.of_memory,
                scan.products,
                scan.of_int8
                    .map(|share| format!("{:.0} %", 100.0 * share))
                    .unwrap_or_default(),
                100.0 * achieved,
            ));
        }
        text
    }
}
