//! Whatever the history, an index holds the keys it was given and its invariants.

mod common;

use common::{
    KINDS, Kind, bits, builder, dim, fitting, keys, kind, precision, rounded, small_config, stored,
    update,
};
use hira_index::{
    DynamicUpdater, HierarchicalIndex, IncrementalUpdater, IndexConfig, ProductConfig,
    RebuildUpdater, UpdateConfig,
};
use hira_kernels::{Kernel, Precision};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// One step in the life of an index.
#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Seal,
    Truncate(f64),
    Fork,
    Clear,
    FinishBuilds,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..20).prop_map(Step::Append),
        4 => (20usize..200).prop_map(Step::Append),
        1 => Just(Step::Append(0)),
        2 => Just(Step::Seal),
        2 => (0.0..1.0).prop_map(Step::Truncate),
        2 => Just(Step::Fork),
        1 => Just(Step::Clear),
        1 => Just(Step::FinishBuilds),
    ]
}

fn assert_holds(index: &HierarchicalIndex, expected: &[f32]) {
    index.validate().unwrap();
    assert_eq!(index.len() * index.dim(), expected.len());
    assert_eq!(index.is_empty(), expected.is_empty());
    assert_eq!(bits(&stored(index)), bits(expected));
    assert_eq!(index.key(index.len()), None);
    let joined: Vec<f32> = index
        .segments()
        .flat_map(|segment| segment.keys().widened().into_owned())
        .collect();
    assert_eq!(bits(&joined), bits(expected));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_keeps_keys_and_invariants(
        kind in kind(),
        dim in dim(),
        num_levels in 0usize..=4,
        branching_factor in 2usize..=9,
        min_coarse_len in prop::sample::select(&[0usize, 30, 64][..]),
        builder in builder(),
        update in update(),
        background in any::<bool>(),
        product in prop_oneof![Just(None), (1usize..20, any::<bool>()).prop_map(Some)],
        precision in precision(),
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..12),
    ) {
        let config = small_config(dim)
            .with_num_levels(num_levels)
            .with_branching_factor(branching_factor)
            .with_min_coarse_len(min_coarse_len)
            .with_builder(builder)
            .with_update(update)
            .with_background(background)
            .with_precision(precision)
            .with_product(product.map(|(subvectors, wide)| {
                let bits = if wide { 8 } else { 4 };
                ProductConfig::default().with_subvectors(subvectors).with_bits(bits)
            }));
        let mut index = HierarchicalIndex::new(config).unwrap();
        let mut expected: Vec<f32> = Vec::new();
        let mut forks = Vec::new();
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(rows) => {
                    let batch = keys(kind, rows, dim, seed.wrapping_add(i as u64));
                    let batch = fitting(precision, batch);
                    index.append(&batch).unwrap();
                    expected.extend(rounded(precision, &batch));
                }
                Step::Seal => index.seal(),
                Step::Truncate(share) => {
                    let len = (index.len() as f64 * share) as usize;
                    index.truncate(len);
                    expected.truncate(len * dim);
                }
                Step::FinishBuilds => {
                    index.finish_builds();
                    assert_eq!(index.pending_builds(), 0);
                    assert!(index.segments().all(|segment| !segment.is_building()));
                }
                Step::Fork => forks.push((index.clone(), expected.clone())),
                Step::Clear => {
                    index.clear();
                    expected.clear();
                }
            }
            assert_holds(&index, &expected);
        }
        for (mut fork, expected) in forks {
            assert_holds(&fork, &expected);
            fork.finish_builds();
            assert_holds(&fork, &expected);
        }
        index.finish_builds();
        assert_holds(&index, &expected);
    }

    #[test]
    fn batching_does_not_change_the_keys(
        kind in kind(),
        dim in dim(),
        len in 0usize..400,
        seed in any::<u64>(),
        sizes in prop::collection::vec(1usize..150, 1..8),
    ) {
        let expected = keys(kind, len, dim, seed);
        let mut index = HierarchicalIndex::new(small_config(dim)).unwrap();
        let mut rest = &expected[..];
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (batch, later) = rest.split_at((size * dim).min(rest.len()));
            index.append(batch).unwrap();
            rest = later;
        }
        assert_holds(&index, &expected);
        // Sealed segments do not remember how their keys came.
        let mut whole = HierarchicalIndex::new(small_config(dim)).unwrap();
        whole.append(&expected).unwrap();
        for (a, b) in index.segments().zip(whole.segments()).filter(|(a, _)| a.is_sealed()) {
            prop_assert_eq!(a.order(), b.order());
            prop_assert_eq!(bits(a.centre()), bits(b.centre()));
            prop_assert_eq!(a.sketch().unwrap().lines, b.sketch().unwrap().lines);
        }
    }
}

#[test]
fn thousands_of_keys_one_by_one() {
    let dim = 16;
    let expected = keys(Kind::Offset, 3000, dim, 1);
    let config = IndexConfig::new(dim)
        .with_segment_len(1024)
        .with_branching_factor(16);
    let mut index = HierarchicalIndex::new(config).unwrap();
    for key in expected.chunks(dim) {
        index.append(key).unwrap();
    }
    assert_holds(&index, &expected);
    let lens: Vec<usize> = index.segments().map(|segment| segment.len()).collect();
    assert_eq!(lens, [1024, 1024, 952]);
    assert!((64..=68).contains(&index.level(0, 1).unwrap().len()));
    assert_eq!(index.level(0, 0).unwrap().len(), 4);
    assert!(
        index.level(0, 2).is_none() && index.level(2, 0).is_none() && index.level(3, 0).is_none()
    );
}

/// Keys wait for their sketch until the index holds enough of them; what is then sketched is complete, and stays so.
#[test]
fn an_open_segment_is_sketched_once_it_pays() {
    let dim = 24;
    for precision in Precision::ALL {
        for step in [1, 3, 16, 50, 170] {
            let config = IndexConfig::new(dim)
                .with_segment_len(512)
                .with_precision(precision)
                .with_sketch_from(200);
            let mut index = HierarchicalIndex::new(config).unwrap();
            let batch = keys(Kind::Offset, 400, dim, 3);
            for (i, rows) in batch.chunks(step * dim).enumerate() {
                index.append(rows).unwrap();
                index.validate().unwrap();
                let len = index.len();
                assert_eq!(len, 400.min((i + 1) * step));
                let sketched = index.segment(0).unwrap().sketch();
                if len >= 200 {
                    assert_eq!(sketched.unwrap().len, len);
                } else {
                    assert!(sketched.is_none(), "{len}");
                }
            }
            // Sketched late about the mean, or about that of the first part: near to it, where zero is far away.
            let segment = index.segment(0).unwrap();
            let centre: f32 = segment.centre().iter().map(|x| x * x).sum();
            assert!(centre > 1.0, "{centre}");
            // Below the limit nothing has to be there, and what is there holds; beyond it everything is again.
            for (kept, more) in [(190, 5), (101, 40), (37, 200), (0, 300)] {
                index.truncate(kept);
                index.validate().unwrap();
                index.append(&batch[..more * dim]).unwrap();
                index.validate().unwrap();
                let sketched = index.segment(0).unwrap().sketch().is_some();
                assert!(sketched || kept + more < 200);
            }
        }
    }
}

/// A later open segment of an index that is still short waits, too; sealed ones never do, built here or on another thread.
#[test]
fn sealed_segments_are_sketched_however_short_the_index() {
    for background in [false, true] {
        let config = small_config(5)
            .with_background(background)
            .with_sketch_from(1000);
        let mut index = HierarchicalIndex::new(config).unwrap();
        let batch = keys(Kind::Offset, 70, 5, 4);
        for row in batch.chunks(5) {
            index.append(row).unwrap();
            index.validate().unwrap();
        }
        let fork = index.clone();
        for segment in index.segments() {
            assert_eq!(segment.sketch().is_some(), segment.is_sealed());
        }
        index.seal();
        index.validate().unwrap();
        assert!(index.segments().all(|segment| segment.sketch().is_some()));
        fork.validate().unwrap();
        index.truncate(61);
        index.validate().unwrap();
        assert!(index.segment(0).unwrap().sketch().is_none());
    }
}

#[test]
fn every_kernel_stores_the_same_bits() {
    for kind in KINDS {
        for dim in [1, 3, 16, 64, 80, 128] {
            let batch = keys(kind, 150, dim, 5);
            let of = |kernel| {
                let mut index = HierarchicalIndex::with_kernel(small_config(dim), kernel).unwrap();
                index.append(&batch).unwrap();
                index.validate().unwrap();
                index
            };
            let expected = of(Kernel::Scalar);
            for kernel in Kernel::available() {
                let index = of(kernel);
                assert_eq!(index.kernel(), kernel);
                for (a, b) in index.segments().zip(expected.segments()) {
                    assert_eq!(a.order(), b.order(), "{kind:?} {dim} {}", kernel.name());
                    assert_eq!(a.sketch().unwrap().lines, b.sketch().unwrap().lines);
                    assert_eq!(a.sketch().unwrap().norms, b.sketch().unwrap().norms);
                }
            }
        }
    }
}

/// An index of a narrow precision is the index of the rounded keys in `f32`, in everything but the bytes of its keys.
#[test]
fn the_index_is_that_of_the_stored_keys() {
    for precision in [Precision::F16, Precision::Bf16] {
        for dim in [1, 3, 16, 64, 80] {
            let config = small_config(dim).with_precision(precision);
            let mut narrow = HierarchicalIndex::new(config).unwrap();
            let mut wide = HierarchicalIndex::new(small_config(dim)).unwrap();
            let batch = keys(Kind::Offset, 230, dim, 9);
            for rows in [0..1, 1..40, 40..200, 200..230] {
                let rows = &batch[rows.start * dim..rows.end * dim];
                narrow.append(rows).unwrap();
                wide.append(&rounded(precision, rows)).unwrap();
            }
            narrow.truncate(221);
            wide.truncate(221);
            assert_eq!(bits(&stored(&narrow)), bits(&stored(&wide)));
            assert_eq!(narrow.dump(), wide.dump());
            for (a, b) in narrow.segments().zip(wide.segments()) {
                assert_eq!(a.keys().precision(), precision);
                assert_eq!(bits(a.centre()), bits(b.centre()));
                assert_eq!(a.sketch().unwrap().lines, b.sketch().unwrap().lines);
                assert_eq!(a.sketch().unwrap().norms, b.sketch().unwrap().norms);
            }
        }
    }
}

#[test]
fn a_fork_shares_its_sealed_segments() {
    let mut index = HierarchicalIndex::new(small_config(3)).unwrap();
    index.append(&keys(Kind::Offset, 150, 3, 2)).unwrap();
    let mut fork = index.clone();
    fork.append(&[1.0, 2.0, 3.0]).unwrap();
    let shared: Vec<bool> = index
        .segments()
        .zip(fork.segments())
        .map(|(a, b)| std::ptr::eq(a.centre(), b.centre()))
        .collect();
    assert_eq!(shared[..2], [true, true]);
    assert!(!shared[2]);
    assert_eq!((index.len(), fork.len()), (150, 151));
    index.validate().unwrap();
    fork.validate().unwrap();
}

/// An updater may keep as many open keys as a segment takes, whatever was frozen before them.
#[test]
fn what_is_frozen_together_fits_a_segment() {
    for update in [
        UpdateConfig::Seal,
        UpdateConfig::Rebuild(RebuildUpdater::default()),
        UpdateConfig::Incremental(IncrementalUpdater::default()),
        UpdateConfig::Dynamic(DynamicUpdater::default()),
    ] {
        let config = small_config(3).with_update(update);
        let len = config.segment_len;
        let batch = keys(Kind::Offset, 3 * len, 3, 2);
        for first in [1, 3, len / 2, len - 1] {
            let mut index = HierarchicalIndex::new(config.clone()).unwrap();
            let mut stored = 0;
            for more in [first, len - 2, 1, len - 1] {
                index
                    .append(&batch[stored * 3..(stored + more) * 3])
                    .unwrap();
                stored += more;
                let fork = index.fork();
                assert_holds(&index, &batch[..stored * 3]);
                assert_holds(&fork, &batch[..stored * 3]);
            }
        }
    }
}

#[test]
fn truncation_reopens_and_drops() {
    let mut index = HierarchicalIndex::new(small_config(3)).unwrap();
    let batch = keys(Kind::Offset, 200, 3, 3);
    index.append(&batch).unwrap();
    index.truncate(1000); // nothing to do
    for len in [197, 192, 191, 130, 128, 127, 64, 63, 17, 1, 0] {
        index.truncate(len);
        assert_holds(&index, &batch[..len * 3]);
        let mut grown = index.clone();
        grown.append(&batch[len * 3..]).unwrap();
        assert_holds(&grown, &batch);
    }
    assert_eq!(index.segments().count(), 0);
}

#[test]
fn the_open_segment_is_centred_as_documented() {
    let dim = 2;
    let mut index = HierarchicalIndex::new(small_config(dim)).unwrap();
    index.append(&[4.0; 2 * 15]).unwrap();
    assert_eq!(index.segments().next().unwrap().centre(), [0.0, 0.0]); // too few to take a mean of
    index.seal();
    assert_eq!(index.segments().next().unwrap().centre(), [4.0, 4.0]);
    index.append(&[8.0; 2]).unwrap();
    assert_eq!(index.segments().nth(1).unwrap().centre(), [4.0, 4.0]); // the mean before
    index.truncate(15);
    index.append(&[6.0; 2 * 16]).unwrap();
    assert_eq!(index.segments().nth(1).unwrap().centre(), [6.0, 6.0]); // its own first batch
    index.validate().unwrap();
}
