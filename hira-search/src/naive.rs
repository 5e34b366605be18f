//! The oracle: brute force over the canonical score.

use hira_index::HierarchicalIndex;
use hira_kernels::Kernel;
use hira_threshold::{Cut, RuleInput, Threshold};

use crate::error::SearchError;
use crate::positions::Positions;

/// The positions (ascending) and canonical scores that `query` selects among the `visible` keys (a number: the first so many), by sorting every score.
///
/// Shares nothing with the plans but the scalar kernel's canonical score, the rule and the positions of the index's sample; use it to
/// check them.
///
/// # Errors
/// [`SearchError::Visible`], [`SearchError::Evicted`], [`SearchError::Dimension`], an invalid rule, one that resolves to NaN or one by mass.
///
/// # Complexity
/// O(visible * (D + log visible)).
///
/// # Examples
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig};
/// use hira_search::{HalfspaceSearcher, SearchConfig, search_naive};
/// use hira_threshold::ThresholdRule;
///
/// let mut index = HierarchicalIndex::new(IndexConfig::new(2))?;
/// index.append(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?;
/// let rule = ThresholdRule::TopK { k: 2 };
/// let (positions, scores) = search_naive(&index, &[1.0, 0.0], 3, &rule)?;
/// assert_eq!((positions.as_slice(), scores.as_slice()), (&[0, 2][..], &[1.0, 1.0][..]));
/// let searcher = HalfspaceSearcher::new(SearchConfig::default())?;
/// assert_eq!(searcher.search(&index, &[1.0, 0.0], &rule)?.positions, positions);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn search_naive(
    index: &HierarchicalIndex,
    query: &[f32],
    visible: impl Into<Positions>,
    rule: &dyn Threshold,
) -> Result<(Vec<u32>, Vec<f32>), SearchError> {
    rule.validate()?;
    if query.len() != index.dim() {
        return Err(SearchError::Dimension {
            expected: index.dim(),
            received: query.len(),
        });
    }
    let positions: Positions = visible.into();
    positions.check(index)?;
    let mut keys: Vec<(u32, f32)> = (positions.first..positions.end)
        .filter_map(|position| {
            let key = index.key(position)?;
            Some((position as u32, Kernel::Scalar.score(query, key)))
        })
        .collect();
    if keys.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut sampled = Vec::new();
    if rule.needs_sample() {
        index.sample_range(positions.first..positions.end, &mut sampled);
    }
    let scores = |&at: &u32| keys[at as usize - positions.first].1;
    let sample: Vec<f32> = sampled.iter().map(scores).collect();
    let input = RuleInput {
        visible: positions.len(),
        sample: &sample,
    };
    match rule.cut(&input) {
        Cut::AtLeast { tau } if tau.is_nan() => return Err(SearchError::RuleNan { query: 0 }),
        Cut::Mass { .. } => {
            return Err(SearchError::Config {
                key: "rule",
                requirement: "one that scores decide: a mass is certified from bounds",
            });
        }
        Cut::AtLeast { tau } => keys.retain(|&(_, score)| score >= tau),
        Cut::Top { k } => {
            // Adding 0.0 makes the two zeros one score; the sort is stable, so ties stay in order of position.
            keys.sort_by(|a, b| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)));
            keys.truncate(k);
            keys.sort_by_key(|&(position, _)| position);
        }
    }
    Ok(keys.into_iter().unzip())
}
