//! The rule by mass that keeps as many keys as the best `k` are.

use hira_index::{HierarchicalIndex, IndexConfig, IndexError};
use hira_search::{HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, Selection};
use hira_threshold::ThresholdRule;

use super::{ContenderError, Problem};

/// The share of the mass, to three digits, for which searches keep nearly `k` keys in the mean over the heads of every row but the first, which is not
/// timed. What is certified is kept: a little more than would be enough.
///
/// # Errors
///
/// [`ContenderError`] if an index or a search refuses the rows.
pub(super) fn mass_of_best(problem: &Problem, k: usize) -> Result<f32, ContenderError> {
    let dim = problem.dim;
    let index = |keys: &[f32]| -> Result<HierarchicalIndex, IndexError> {
        let mut index = HierarchicalIndex::new(IndexConfig::new(dim))?;
        index.append(keys)?;
        Ok(index)
    };
    let heads = problem.keys.chunks_exact(problem.len * dim);
    let indexes: Vec<_> = heads.map(index).collect::<Result<_, _>>()?;
    let scan = PlanChoice::Force(Plan::SketchScan);
    let searcher = HalfspaceSearcher::new(SearchConfig::default().with_plan(scan))?;
    let scale = 1.0 / (dim as f32).sqrt();
    let (mut scratch, mut out) = (Scratch::new(), vec![Selection::default(); problem.group]);
    let rows = 1..problem.rows;
    let wanted = k * rows.len() * problem.heads();
    let (mut low, mut high) = (1, 999);
    while low < high {
        let middle = (low + high + 1) / 2;
        let rule = ThresholdRule::Mass {
            mass: middle as f32 / 1e3,
        };
        let mut kept = 0;
        for row in rows.clone() {
            let queries = problem.queries_of(row).chunks_exact(problem.group * dim);
            for (index, queries) in indexes.iter().zip(queries) {
                let visible = problem.visible(row);
                searcher.search_group_with(
                    index,
                    queries,
                    visible,
                    &rule,
                    scale,
                    &mut scratch,
                    &mut out,
                )?;
                kept += out.iter().map(Selection::len).sum::<usize>();
            }
        }
        if kept <= wanted {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(low as f32 / 1e3)
}
