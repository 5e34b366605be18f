//! Quest: pages of keys, ranked by the largest score that their box allows.

use hira_kernels::Kernel;

/// Keys of a page.
pub const PAGE: usize = 16;

/// The element-wise least and largest of the keys of each whole page, `[pages, D]`.
///
/// The keys of a page that is not full change what its box is, query by query: [`Pages::select`] looks at those themselves.
#[derive(Debug, Default)]
pub(super) struct Pages {
    lo: Vec<f32>,
    hi: Vec<f32>,
}

/// Room for the page choice of one query.
#[derive(Debug, Default)]
pub(super) struct PageScratch {
    bounds: Vec<f32>,
    order: Vec<u32>,
    lo: Vec<f32>,
    hi: Vec<f32>,
}

impl Pages {
    /// The boxes of `keys` `[N, D]`.
    pub(super) fn of(keys: &[f32], dim: usize) -> Self {
        let mut pages = Self::default();
        for page in keys.chunks_exact(PAGE * dim) {
            corners(page, dim, &mut pages.lo, &mut pages.hi);
        }
        pages
    }

    /// The positions of the keys of the best `ceil(budget / 16)` pages among the visible keys, ascending; of equal bounds the lower page.
    ///
    /// `keys` `[visible, D]`. The last page may be short: it counts as one page, with the box of its visible keys.
    pub(super) fn select(
        &self,
        kernel: Kernel,
        query: &[f32],
        keys: &[f32],
        budget: usize,
        scratch: &mut PageScratch,
        positions: &mut Vec<u32>,
    ) {
        let dim = query.len();
        let visible = keys.len() / dim;
        let whole = visible / PAGE;
        let pages = visible.div_ceil(PAGE);
        let bounds = &mut scratch.bounds;
        bounds.resize(whole, 0.0);
        let rows = whole * dim;
        kernel.box_sums_into(query, &self.lo[..rows], &self.hi[..rows], bounds);
        if whole < pages {
            scratch.lo.clear();
            scratch.hi.clear();
            let rest = &keys[whole * PAGE * dim..];
            corners(rest, dim, &mut scratch.lo, &mut scratch.hi);
            let mut last = [0.0];
            kernel.box_sums_into(query, &scratch.lo, &scratch.hi, &mut last);
            bounds.extend(last);
        }
        let order = &mut scratch.order;
        order.clear();
        order.extend(0..pages as u32);
        let kept = budget.div_ceil(PAGE);
        if kept < pages {
            order.select_nth_unstable_by(kept, |&a, &b| {
                let higher = bounds[b as usize].total_cmp(&bounds[a as usize]);
                higher.then(a.cmp(&b))
            });
            order.truncate(kept);
            order.sort_unstable();
        }
        positions.clear();
        for &page in &*order {
            let start = page as usize * PAGE;
            positions.extend(start as u32..(start + PAGE).min(visible) as u32);
        }
    }
}

/// Appends the corners of the box of some rows.
fn corners(rows: &[f32], dim: usize, lo: &mut Vec<f32>, hi: &mut Vec<f32>) {
    let start = lo.len();
    lo.extend_from_slice(&rows[..dim]);
    hi.extend_from_slice(&rows[..dim]);
    for row in rows.chunks_exact(dim).skip(1) {
        for ((lo, hi), &x) in lo[start..].iter_mut().zip(&mut hi[start..]).zip(row) {
            *lo = lo.min(x);
            *hi = hi.max(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// Every page's bound from its definition, in f64, and all pages sorted.
    fn select_naive(query: &[f32], keys: &[f32], visible: usize, budget: usize) -> Vec<u32> {
        let dim = query.len();
        let bound = |page: usize| -> f64 {
            let rows = page * PAGE..((page + 1) * PAGE).min(visible);
            (0..dim)
                .map(|i| {
                    let column = rows.clone().map(|row| f64::from(keys[row * dim + i]));
                    let products = column.map(|x| x * f64::from(query[i]));
                    products.fold(f64::NEG_INFINITY, f64::max)
                })
                .sum()
        };
        let mut pages: Vec<usize> = (0..visible.div_ceil(PAGE)).collect();
        pages.sort_by(|&a, &b| bound(b).total_cmp(&bound(a)));
        pages.truncate(budget.div_ceil(PAGE));
        pages.sort_unstable();
        let keys = pages
            .into_iter()
            .flat_map(|page| page * PAGE..page * PAGE + PAGE);
        keys.filter(|&key| key < visible)
            .map(|key| key as u32)
            .collect()
    }

    #[test]
    fn the_best_pages_by_box_are_taken() {
        let mut rng = StdRng::seed_from_u64(5);
        let dim = 20;
        let keys: Vec<f32> = (0..150 * dim)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let pages = Pages::of(&keys, dim);
        let mut scratch = PageScratch::default();
        let mut positions = Vec::new();
        for visible in [1, 15, 16, 17, 31, 100, 144, 150] {
            for budget in [16, 17, 48, 400] {
                let query: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
                pages.select(
                    Kernel::best(),
                    &query,
                    &keys[..visible * dim],
                    budget,
                    &mut scratch,
                    &mut positions,
                );
                assert_eq!(positions, select_naive(&query, &keys, visible, budget));
            }
        }
    }
}
