//! A rule of one's own: keep the keys that would weigh something in a softmax.
//!
//! The rule looks at the scores of the sample that every index keeps, takes the best of them, and asks for keys that weigh
//! at least a thousandth of it. Whatever a rule answers, the search returns exactly the keys that its answer describes.

use std::error::Error;

use hira_index::{HierarchicalIndex, IndexConfig};
use hira_search::{HalfspaceSearcher, SearchConfig, search_naive};
use hira_threshold::{Cut, RuleInput, Threshold, ThresholdError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Keys with `exp(scale * score) >= share * exp(scale * best sampled score)`.
struct Noticeable {
    share: f32,
    scale: f32,
}

impl Threshold for Noticeable {
    fn validate(&self) -> Result<(), ThresholdError> {
        if self.share > 0.0 && self.share <= 1.0 {
            Ok(())
        } else {
            Err(ThresholdError::Weight { weight: self.share })
        }
    }

    fn needs_sample(&self) -> bool {
        true
    }

    fn cut(&self, input: &RuleInput<'_>) -> Cut {
        // Without a sample there is nothing to compare with: `f32::MIN` keeps every key.
        let best = input.sample.iter().copied().reduce(f32::max);
        Cut::AtLeast {
            tau: best.map_or(f32::MIN, |best| best + self.share.ln() / self.scale),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (dim, len) = (64, 20_000);
    let mut rng = StdRng::seed_from_u64(1);
    let mut row = |spread: f32| -> Vec<f32> {
        (0..dim)
            .map(|_| rng.random_range(-spread..spread))
            .collect()
    };
    let keys: Vec<f32> = (0..len).flat_map(|_| row(1.7)).collect();
    let mut index = HierarchicalIndex::new(IndexConfig::new(dim))?;
    index.append(&keys)?;

    let searcher = HalfspaceSearcher::new(SearchConfig::default())?;
    let rule = Noticeable {
        share: 1e-3,
        scale: 0.125,
    };
    println!(
        "{len} keys of dimension {dim}; kept: keys that weigh 1/1000 of the best sampled key or more\n"
    );
    println!("queries     selected  scored exactly  as brute force");
    for (name, spread) in [("flat", 1.0), ("ordinary", 8.0), ("sharp", 24.0)] {
        let query = row(spread);
        let found = searcher.search(&index, &query, &rule)?;
        let (expected, _) = search_naive(&index, &query, len, &rule)?;
        let same = if found.positions == expected {
            "yes"
        } else {
            "NO"
        };
        let stats = found.stats;
        println!(
            "{name:<10} {:>9} {:>15}  {same}",
            stats.selected, stats.survivors
        );
    }
    println!(
        "\nThe longer the query, the further its scores lie apart, and the fewer keys are worth keeping."
    );
    Ok(())
}
