//! What was measured, as a table.

use std::{collections::HashMap, fmt::Write};

use crate::bench::Spread;

/// A measured case; times in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Keys.
    pub context: usize,
    /// Sequences.
    pub batch: usize,
    /// Copies that the steps rotated over.
    pub copies: usize,
    /// A step: append, threshold, search, values.
    pub step: Spread,
    /// A dense step of the same engine.
    pub dense: Spread,
    /// The append alone.
    pub append: Spread,
    /// Storing and sketching the whole context.
    pub build_us: f64,
    /// Burn's own attention over the same keys: which, and its time. `None` where none gave the right answer.
    pub burn: Option<(String, Spread)>,
    /// Keys attended to.
    pub density: f64,
    /// Keys scored exactly.
    pub scanned: f64,
    /// Largest proven bound on the dropped mass.
    pub dropped: f32,
    /// Bytes of the layer's state that a step has to read.
    pub bytes: usize,
}

/// The fastest of PyTorch's backends by context and batch: its name and microseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sdpa(HashMap<(usize, usize), (String, f64)>);

/// Everything that one run has measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The device and its runtime.
    pub device: String,
    /// GB/s of a copy, read and written bytes counted.
    pub copy: f64,
    /// A line each.
    pub outcomes: Vec<Outcome>,
}

const COLUMNS: &str = "device,copy_gb_s,context,batch,copies,hira_us,hira_q1,hira_q3,dense_us,dense_q1,dense_q3,append_us,append_q1,append_q3,index_us,burn,burn_us,burn_q1,burn_q3,density,scanned,dropped_mass_bound,bytes,sdpa,sdpa_us";

impl Sdpa {
    /// Reads what `benches/gpu/sdpa.py` prints; lines that are none of its own are passed over.
    pub fn parse(csv: &str) -> Self {
        let mut fastest = HashMap::new();
        for line in csv.lines() {
            let fields: Vec<&str> = line.split(',').collect();
            let [_, _, context, batch, backend, layout, micros, _] = fields[..] else {
                continue;
            };
            let numbers = (context.parse(), batch.parse(), micros.parse::<f64>());
            let (Ok(context), Ok(batch), Ok(micros)) = numbers else {
                continue;
            };
            let entry = fastest
                .entry((context, batch))
                .or_insert_with(|| (String::new(), f64::INFINITY));
            if micros < entry.1 {
                *entry = (format!("{backend} ({layout})"), micros);
            }
        }
        Self(fastest)
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, outcome: &Outcome) -> Option<&(String, f64)> {
        self.0.get(&(outcome.context, outcome.batch))
    }
}

impl Table {
    /// For people.
    pub fn markdown(&self, sdpa: &Sdpa) -> String {
        let mut out = format!("{}, copy {:.0} GB/s\n\n", self.device, self.copy);
        out += "| context | batch | Hira us | dense us | append us | index ms | Burn | Burn us | over Burn | SDPA | SDPA us | over SDPA | GB/s | of copy | density | scanned | dropped <= |\n";
        out += &"|---".repeat(17);
        out += "|\n";
        let spread = |spread: &Spread| {
            let Spread {
                lower,
                median,
                upper,
            } = spread;
            format!("{median:.1} ({lower:.1} to {upper:.1})")
        };
        for one in &self.outcomes {
            let speed = one.bytes as f64 / one.step.median / 1e3;
            let ratio = |micros: f64| format!("{:.2}x", micros / one.step.median);
            let none = || ["not measured", "-", "-"].map(str::to_owned);
            let [burn, burn_us, over_burn] = match &one.burn {
                Some((name, time)) => [name.clone(), spread(time), ratio(time.median)],
                None => none(),
            };
            let [name, sdpa_us, over_sdpa] = match sdpa.of(one) {
                Some((name, micros)) => [name.clone(), format!("{micros:.1}"), ratio(*micros)],
                None => none(),
            };
            // writing to a string cannot fail
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {:.2} | {burn} | {burn_us} | {over_burn} | {name} | {sdpa_us} | {over_sdpa} | {speed:.0} | {:.0} % | {:.4} | {:.4} | {:.2e} |",
                one.context,
                one.batch,
                spread(&one.step),
                spread(&one.dense),
                spread(&one.append),
                one.build_us / 1e3,
                100.0 * speed / self.copy,
                one.density,
                one.scanned,
                one.dropped,
            );
        }
        out
    }

    /// For programs, and for [`Table::parse`].
    pub fn csv(&self, sdpa: &Sdpa) -> String {
        let mut out = format!("{COLUMNS}\n");
        let spread =
            |spread: &Spread| format!("{},{},{}", spread.median, spread.lower, spread.upper);
        for one in &self.outcomes {
            let burn = match &one.burn {
                Some((name, time)) => format!("{name},{}", spread(time)),
                None => ",,,".to_owned(),
            };
            let sdpa = match sdpa.of(one) {
                Some((name, micros)) => format!("{name},{micros}"),
                None => ",".to_owned(),
            };
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{},{},{burn},{},{},{},{},{sdpa}",
                self.device.replace(',', " "),
                self.copy,
                one.context,
                one.batch,
                one.copies,
                spread(&one.step),
                spread(&one.dense),
                spread(&one.append),
                one.build_us,
                one.density,
                one.scanned,
                one.dropped,
                one.bytes,
            );
        }
        out
    }

    /// Reads [`Table::csv`], but for PyTorch's columns; `None` if it is something else or has no line.
    pub fn parse(csv: &str) -> Option<Self> {
        let mut lines = csv.lines();
        if lines.next()? != COLUMNS {
            return None;
        }
        let mut table: Option<Self> = None;
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
            let count = |at: usize| fields.get(at)?.parse::<usize>().ok();
            let spread = |at: usize| {
                Some(Spread {
                    median: number(at)?,
                    lower: number(at + 1)?,
                    upper: number(at + 2)?,
                })
            };
            let outcome = Outcome {
                context: count(2)?,
                batch: count(3)?,
                copies: count(4)?,
                step: spread(5)?,
                dense: spread(8)?,
                append: spread(11)?,
                build_us: number(14)?,
                burn: spread(16).map(|time| (fields[15].to_owned(), time)),
                density: number(19)?,
                scanned: number(20)?,
                dropped: number(21)? as f32,
                bytes: count(22)?,
            };
            let copy = number(1)?;
            let table = table.get_or_insert_with(|| Self {
                device: fields[0].to_owned(),
                copy,
                outcomes: Vec::new(),
            });
            table.outcomes.push(outcome);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let spread = |median: f64| Spread {
            lower: median - 0.5,
            median,
            upper: median + 0.25,
        };
        let outcome = Outcome {
            context: 8192,
            batch: 1,
            copies: 4,
            step: spread(5.0),
            dense: spread(9.0),
            append: spread(1.0),
            build_us: 1000.0,
            burn: Some(("products".to_owned(), spread(50.0))),
            density: 0.03125,
            scanned: 0.0625,
            dropped: 0.125,
            bytes: 1_000_000,
        };
        let unlike = Outcome {
            batch: 2,
            burn: None,
            ..outcome.clone()
        };
        Table {
            device: "card (runtime)".to_owned(),
            copy: 400.0,
            outcomes: vec![outcome, unlike],
        }
    }

    #[test]
    fn the_fastest_backend_of_a_case_is_compared_with() {
        let sdpa = Sdpa::parse(
            "device,torch,context,batch,backend,layout,us,error\n\
             card,2.9,8192,1,flash,gqa,20.0,1e-3\ncard,2.9,8192,1,cudnn,gqa,10.0,1e-3\nnoise\n",
        );
        let markdown = table().markdown(&sdpa);
        assert!(
            markdown.contains("| 10.00x | cudnn (gqa) | 10.0 | 2.00x | 200 | 50 % |"),
            "{markdown}"
        );
        assert!(markdown.contains("| not measured | - | - | not measured | - | - |"));
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let table = table();
        assert_eq!(Table::parse(&table.csv(&Sdpa::default())), Some(table));
        assert_eq!(Table::parse("a,b\n1,2\n"), None);
        assert_eq!(Table::parse(&format!("{COLUMNS}\n")), None);
    }
}
