//! Builders: any of them, on any keys, gives a whole index; a broken one loses nothing.

mod common;

use std::sync::Arc;

use common::{KINDS, Kind, bits, builders, keys, small_config, stored};
use hira_index::{
    BuildInput, Builder, BuilderConfig, ChunkBuilder, HierarchicalIndex, Hierarchy, IndexConfig,
    IndexError, KMeansBuilder, KMeansStart,
};
use hira_kernels::Kernel;

fn sealed(config: IndexConfig, keys: &[f32]) -> HierarchicalIndex {
    let mut index = HierarchicalIndex::new(config).unwrap();
    index.append(keys).unwrap();
    index.seal();
    index.validate().unwrap();
    index
}

#[test]
fn every_builder_copes_with_every_kind_of_keys() {
    for builder in builders() {
        for kind in KINDS {
            for dim in [1, 3, 17, 64] {
                // No key, one, fewer than the branching factor, one more than it, several levels.
                for len in [0, 1, 2, 3, 5, 64] {
                    for (num_levels, branching_factor) in [(2, 4), (3, 4), (5, 2), (8, 1024)] {
                        let config = small_config(dim)
                            .with_num_levels(num_levels)
                            .with_branching_factor(branching_factor)
                            .with_builder(builder);
                        let batch = keys(kind, len, dim, len as u64);
                        let index = sealed(config, &batch);
                        assert_eq!(bits(&stored(&index)), bits(&batch));
                        for segment in index.segments() {
                            assert_eq!(segment.levels().len(), num_levels - 1);
                            assert_eq!(segment.build_error(), None);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_result_depends_on_the_seed_alone() {
    let batch = keys(Kind::Offset, 2048, 20, 1);
    for builder in builders() {
        let build = |kernel| {
            let input = BuildInput::new(&batch, 20, kernel, 2, 16);
            builder.init().build(&input).unwrap()
        };
        let expected = build(Kernel::best());
        // On other threads, all at once.
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| build(Kernel::best())))
                .collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), expected);
            }
        });
        for kernel in Kernel::available() {
            assert_eq!(build(kernel), expected, "{builder:?} {}", kernel.name());
        }
    }
    let seeded = |seed, start| {
        let builder = KMeansBuilder {
            seed,
            start,
            ..KMeansBuilder::default()
        };
        let input = BuildInput::new(&batch, 20, Kernel::best(), 2, 16);
        builder.build(&input).unwrap()
    };
    for start in [KMeansStart::PlusPlus, KMeansStart::Random] {
        assert_ne!(seeded(0, start), seeded(1, start));
    }
}

#[test]
fn chunks_keep_the_order_of_time() {
    let config = small_config(3).with_builder(BuilderConfig::Chunk);
    let index = sealed(config, &keys(Kind::Offset, 64, 3, 1));
    let segment = index.segments().next().unwrap();
    assert_eq!(segment.order().unwrap(), (0..64).collect::<Vec<_>>());
    assert_eq!(segment.levels()[0].len(), 4);
    assert_eq!(segment.levels()[1].len(), 16);
}

#[test]
fn halves_are_balanced() {
    for builder in builders()
        .into_iter()
        .filter(|b| matches!(b, BuilderConfig::KdTree(_)))
    {
        let config = IndexConfig::new(8)
            .with_branching_factor(8)
            .with_min_coarse_len(0)
            .with_builder(builder);
        let index = sealed(config, &keys(Kind::Duplicates, 1000, 8, 1));
        let segment = index.segments().next().unwrap();
        for (i, level) in segment.levels().iter().enumerate() {
            let sizes = (0..level.len()).map(|cluster| segment.slots(i, cluster).len());
            let (least, most) = sizes.fold((1000, 0), |(a, b), n| (a.min(n), b.max(n)));
            assert!(most - least <= 2, "level {i}: {least} to {most}");
        }
    }
}

/// More keys in one segment than 131,072, and all of them equal.
#[test]
fn large_segments_are_built() {
    let len = 140_000;
    for (builder, batch) in [
        (BuilderConfig::default(), keys(Kind::Offset, len, 2, 1)),
        (BuilderConfig::default(), vec![2.5; 2 * len]),
        (builders()[4], keys(Kind::Duplicates, len, 2, 1)),
    ] {
        let config = IndexConfig::new(2)
            .with_segment_len(1 << 18)
            .with_builder(builder);
        let index = sealed(config, &batch);
        let segment = index.segments().next().unwrap();
        assert_eq!((index.segments().count(), segment.len()), (1, len));
        let clusters = segment.levels()[1].len();
        assert!((len / 40..len / 24).contains(&clusters), "{clusters}");
    }
}

/// What a broken builder does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    Error,
    Panic,
    TooFewKeys,
    TooFewLevels,
    OverlappingClusters,
}

impl Builder for Broken {
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
        let first = |len: usize, levels: usize| {
            let keys = &input.keys[..len * input.dim];
            let part = BuildInput::new(keys, input.dim, input.kernel, levels, 4);
            ChunkBuilder.build(&part)
        };
        match self {
            Self::Error => Err(IndexError::Builder {
                what: "it is tired",
            }),
            Self::Panic => panic!("a builder's own defect"),
            Self::TooFewKeys => first(input.len() - 1, input.levels),
            Self::TooFewLevels => first(input.len(), input.levels - 1),
            Self::OverlappingClusters => Hierarchy::divide(input, |rows, _| vec![2, 1, rows.len()]),
        }
    }
}

#[test]
fn a_broken_builder_loses_nothing() {
    for (broken, reason) in [
        (Broken::Error, "it is tired"),
        (Broken::Panic, "it panicked"),
        (Broken::TooFewKeys, "it has another number of keys"),
        (Broken::TooFewLevels, "it has another number of levels"),
        (
            Broken::OverlappingClusters,
            "a run ends outside of its rows",
        ),
    ] {
        for background in [false, true] {
            let config = small_config(5).with_background(background);
            let mut index = HierarchicalIndex::with_builder(config, Arc::new(broken)).unwrap();
            let batch = keys(Kind::Offset, 150, 5, 1);
            index.append(&batch).unwrap();
            index.validate().unwrap();
            index.finish_builds();
            index.validate().unwrap();
            assert_eq!(bits(&stored(&index)), bits(&batch));
            let errors: Vec<_> = index
                .segments()
                .map(|segment| segment.build_error())
                .collect();
            let error = Some(IndexError::Builder { what: reason });
            assert_eq!(errors, [error, error, None], "{broken:?}");
            assert!(index.segments().all(|segment| segment.levels().is_empty()));
            assert!(index.to_string().contains(reason));
            // Its keys come back when a segment is reopened, and the error is gone with the segment.
            index.truncate(100);
            assert_eq!(bits(&stored(&index)), bits(&batch[..500]));
            assert_eq!(index.segments().nth(1).unwrap().build_error(), None);
        }
    }
}
