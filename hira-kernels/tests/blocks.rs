//! Tails by blocks of keys: every kernel against a sum in `f64`, and against the scalar kernel bit for bit.

#[allow(dead_code, reason = "shared by several test files")]
mod common;

use std::ops::Range;

use common::{Sketch, awkward, mean, values};
use hira_kernels::{BlockTail, Candidates, Kernel, ScanQuery, TILE};
use proptest::prelude::*;

/// One call for all tiles.
fn whole(tiles: usize) -> Vec<Range<usize>> {
    std::iter::once(0..tiles).collect()
}

/// One scan in several calls.
struct Problem {
    sketch: Sketch,
    rows: Vec<f32>,
    queries: Vec<ScanQuery>,
    base: u32,
    calls: Vec<Range<usize>>,
}

impl Problem {
    fn scan(&self, kernel: Kernel) -> Vec<Candidates> {
        let (group, offsets) = self.sketch.queries(kernel, &self.rows);
        let mut out = vec![Candidates::default(); group.len()];
        for tiles in &self.calls {
            kernel.scan_into(
                self.sketch.view(),
                tiles.clone(),
                self.base,
                &group,
                &offsets,
                &self.queries,
                &mut out,
            );
        }
        out
    }

    /// For each query what the blocks must be: block, sum over the keys that are no candidates, their number, and the largest width of all keys
    /// of the call's part of the block.
    fn expected(&self) -> Vec<Vec<(u32, f64, usize, f64)>> {
        let (lower, upper) = self.sketch.intervals(Kernel::Scalar, &self.rows);
        let slots = self.sketch.tiles() * TILE;
        let of_query = |(g, query): (usize, &ScanQuery)| {
            let mut blocks = Vec::new();
            if query.tail_scale == 0.0 {
                return blocks;
            }
            for tiles in &self.calls {
                let slots_of_call = tiles.start * TILE..self.sketch.len.min(tiles.end * TILE);
                let mut first_slot = slots_of_call.start;
                while first_slot < slots_of_call.end {
                    let block = (self.base as usize + first_slot) / query.block_keys;
                    let end = (block + 1) * query.block_keys - self.base as usize;
                    let (mut sum, mut others, mut widest) = (0.0, 0, 0.0f64);
                    for slot in first_slot..end.min(slots_of_call.end) {
                        let bounds = [lower[g * slots + slot], upper[g * slots + slot]];
                        let [low, high] = bounds.map(f64::from);
                        widest = widest.max(high - low);
                        if bounds[1] < query.tau {
                            let logit = f64::from(query.tail_scale) * (high - f64::from(query.tau));
                            sum += logit.exp();
                            others += 1;
                        }
                    }
                    blocks.push((block as u32, sum, others, widest));
                    first_slot = end;
                }
            }
            blocks
        };
        self.queries.iter().enumerate().map(of_query).collect()
    }

    /// Asserts everything that the blocks promise, for every kernel.
    fn check(&self) {
        let expected = self.expected();
        let reference = self.scan(Kernel::Scalar);
        for kernel in Kernel::available() {
            let found = self.scan(kernel);
            assert_eq!(found, reference, "{}", kernel.name());
        }
        for (found, expected) in reference.iter().zip(&expected) {
            assert_eq!(found.blocks.len(), expected.len());
            let mut total = 0.0;
            for (tail, &(block, sum, others, width)) in found.blocks.iter().zip(expected) {
                assert_eq!(tail.block, block);
                let (found, found_width) = (f64::from(tail.sum), f64::from(tail.width));
                assert!(found >= sum, "{found:e} is below {sum:e}");
                assert_eq!(found > 0.0, others > 0);
                assert!(found <= sum * 1.000_22 + 1024.0 * 2f64.powi(-124));
                assert!(found_width >= width, "{found_width:e} below {width:e}");
                total += found;
            }
            // Both are within 2.2e-4 above the same sum.
            assert!(total >= found.tail / 1.000_23 && total <= found.tail * 1.000_23 + 1e-30);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn blocks_bound_the_keys_that_were_not_kept(
        seed in any::<u64>(),
        dim in prop::sample::select(&[1usize, 3, 16, 64, 80][..]),
        count in 1usize..1400,
        queries in 1usize..6,
        block_keys in prop::sample::select(&[16usize, 32, 48, 64, 128, 1024][..]),
        base in 0u32..3,
        (centred, kind) in (any::<bool>(), any::<bool>()),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 9),
        exponents in prop::collection::vec(-8f32..3.0, 5),
    ) {
        let keys = if kind { awkward(seed, count, dim, 2.0) } else { values(seed, count * dim, 2.0) };
        let centre = if centred { mean(&keys, dim) } else { vec![0.0; dim] };
        let sketch = Sketch::new(Kernel::Scalar, &keys, &centre);
        let rows = values(seed ^ 1, queries * dim, 3.0);
        let (_, upper) = sketch.intervals(Kernel::Scalar, &rows);
        let tiles = sketch.tiles();
        let queries = (0..queries).map(|g| {
            let pick = picks[g].index(count + 2);
            ScanQuery {
                // Most often a bound of a key, so that ties are there; sometimes all keys or none.
                tau: match pick.checked_sub(2) {
                    Some(slot) => upper[g * tiles * TILE + slot],
                    None if pick == 0 => f32::NEG_INFINITY,
                    None => 1e4,
                },
                tail_scale: if exponents[g] < -7.0 { 0.0 } else { exponents[g].exp2() },
                block_keys,
            }
        });
        // Cut anywhere, with a gap or an overlap.
        let [a, b] = [picks[5].index(tiles + 1), picks[6].index(tiles + 1)];
        let c = picks[7].index(b + 1);
        let problem = Problem {
            queries: queries.collect(),
            base: base * block_keys as u32,
            calls: vec![0..a, a.min(c)..b, b..tiles],
            sketch,
            rows,
        };
        problem.check();
    }
}

/// Keys of one kind: the width is that of the widest interval, but for what different tiles add to different keys.
#[test]
fn widths_are_near_the_widest_interval() {
    for (dim, block_keys) in [(64, 64), (128, 64), (64, 16), (80, 1024)] {
        let keys = values(7, 2000 * dim, 2.0);
        let sketch = Sketch::new(Kernel::Scalar, &keys, &mean(&keys, dim));
        let problem = Problem {
            queries: vec![
                ScanQuery {
                    tau: 3.0,
                    tail_scale: 0.125,
                    block_keys
                };
                3
            ],
            base: 0,
            calls: whole(sketch.tiles()),
            rows: values(8, 3 * dim, 1.0),
            sketch,
        };
        problem.check();
        let found = problem.scan(Kernel::Scalar);
        for (found, expected) in found.iter().zip(problem.expected()) {
            assert_eq!(found.blocks.len(), 2000usize.div_ceil(block_keys));
            for (tail, (.., widest)) in found.blocks.iter().zip(expected) {
                assert!(f64::from(tail.width) <= widest * 1.01, "{tail:?} {widest}");
            }
        }
    }
}

/// The sketch holds more keys than the view: what lies past its end has neither weight nor width.
#[test]
fn keys_past_the_end_do_not_count() {
    let dim = 16;
    let mut keys = values(3, 40 * dim, 1.0);
    keys[20 * dim..].iter_mut().for_each(|value| *value *= 1e3);
    let full = Sketch::new(Kernel::Scalar, &keys, &vec![0.0; dim]);
    let problem = |len: usize| Problem {
        sketch: Sketch {
            len,
            // The norm of a tile covers all keys that were written: that of the first keys alone differs.
            ..full.clone()
        },
        rows: values(4, dim, 1.0),
        queries: vec![ScanQuery {
            tau: 1e6,
            tail_scale: 1e-3,
            block_keys: 32,
        }],
        base: 64,
        calls: whole(len.div_ceil(TILE)),
    };
    for len in [1, 15, 16, 17, 20] {
        problem(len).check();
        let found = &problem(len).scan(Kernel::Scalar)[0].blocks;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].block, 2);
        assert!(found[0].width < 1.0, "{:?}", found[0]);
        assert!(found[0].sum < len as f32 * 1.1);
    }
    assert!(problem(21).scan(Kernel::Scalar)[0].blocks[0].width > 1.0);
}

#[test]
fn a_block_cut_by_two_calls_has_two_entries() {
    let dim = 8;
    let sketch = Sketch::new(Kernel::Scalar, &values(1, 160 * dim, 1.0), &vec![0.0; dim]);
    let problem = Problem {
        rows: values(2, dim, 1.0),
        queries: vec![ScanQuery {
            tau: 100.0,
            tail_scale: 1.0,
            block_keys: 64,
        }],
        base: 128,
        calls: vec![0..6, 6..10],
        sketch,
    };
    problem.check();
    let found = problem.scan(Kernel::best());
    let blocks: Vec<u32> = found[0].blocks.iter().map(|tail| tail.block).collect();
    assert_eq!(blocks, [2, 3, 3, 4]);
}

#[test]
fn no_blocks_are_found_where_none_are_asked_for() {
    let dim = 8;
    let sketch = Sketch::new(Kernel::Scalar, &values(1, 100 * dim, 1.0), &vec![0.0; dim]);
    let mut problem = Problem {
        rows: values(2, dim, 1.0),
        queries: vec![ScanQuery {
            tau: 0.5,
            tail_scale: 1.0,
            block_keys: 0,
        }],
        base: 7,
        calls: whole(sketch.tiles()),
        sketch,
    };
    let without = problem.scan(Kernel::best());
    assert_eq!(without[0].blocks, []);
    problem.queries[0].block_keys = 1024;
    problem.base = 0;
    let with = problem.scan(Kernel::best());
    assert!(matches!(with[0].blocks[..], [BlockTail { block: 0, .. }]));
    assert!((with[0].tail / without[0].tail - 1.0).abs() < 1e-5);
}
