//! What each updater does with the open keys, and that building on another thread is safe whatever happens meanwhile.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::{Kind, bits, keys, small_config, stored};
use hira_index::{
    BuildInput, Builder, ChunkBuilder, DynamicUpdater, HierarchicalIndex, Hierarchy,
    IncrementalUpdater, IndexConfig, IndexError, RebuildTrigger, RebuildUpdater, Segment,
    UpdateConfig,
};

const DIM: usize = 6;

fn index(update: UpdateConfig, segment_len: usize) -> HierarchicalIndex {
    let config = IndexConfig::new(DIM)
        .with_segment_len(segment_len)
        .with_branching_factor(4)
        .with_min_coarse_len(16)
        .with_update(update);
    HierarchicalIndex::new(config).unwrap()
}

/// Appends one key at a time and says after each how long the segments are, the open one last (0 if it is empty).
fn lens_after_each(index: &mut HierarchicalIndex, count: usize) -> Vec<Vec<usize>> {
    let batch = keys(Kind::Offset, count, DIM, 1);
    let lens = |index: &HierarchicalIndex| {
        let mut lens: Vec<usize> = index.segments().map(Segment::len).collect();
        if index.segments().last().is_none_or(Segment::is_sealed) {
            lens.push(0);
        }
        lens
    };
    let mut all = Vec::new();
    for key in batch.chunks(DIM) {
        index.append(key).unwrap();
        all.push(lens(index));
    }
    index.validate().unwrap();
    assert_eq!(bits(&stored(index)), bits(&batch));
    all
}

#[test]
fn seal_waits_until_the_segment_is_full() {
    let lens = lens_after_each(&mut index(UpdateConfig::Seal, 64), 130);
    assert_eq!(lens[62], [63]);
    assert_eq!(lens[63], [64, 0]);
    assert_eq!(lens[129], [64, 64, 2]);
}

#[test]
fn rebuild_follows_its_trigger() {
    let rebuild = |trigger| UpdateConfig::Rebuild(RebuildUpdater { trigger });
    let always = lens_after_each(&mut index(rebuild(RebuildTrigger::Always), 64), 90);
    assert_eq!(always[14], [15]); // too short for levels
    assert_eq!(always[15], [16, 0]);
    assert_eq!(always[16], [17, 0]);
    assert_eq!(always[63], [64, 0]);
    assert_eq!(always[64], [64, 1]);
    assert_eq!(always[89], [64, 26, 0]);

    let every = RebuildTrigger::EveryN { n: 10 };
    let every = lens_after_each(&mut index(rebuild(every), 64), 90);
    assert_eq!(every[15], [16, 0]);
    assert_eq!(every[24], [16, 9]);
    assert_eq!(every[25], [26, 0]);
    assert_eq!(every[62], [56, 7]);
    assert_eq!(every[63], [64, 0]); // full before the tenth key

    let growth = RebuildTrigger::Growth { ratio: 0.25 };
    let growth = lens_after_each(&mut index(rebuild(growth), 64), 64);
    assert_eq!(growth[15], [16, 0]);
    assert_eq!(growth[18], [16, 3]);
    assert_eq!(growth[19], [20, 0]);
    assert_eq!(growth[24], [25, 0]);
}

#[test]
fn a_batch_is_cut_at_the_end_of_the_segment_it_completes() {
    let update = UpdateConfig::Rebuild(RebuildUpdater::default());
    let mut index = index(update, 64);
    index.append(&keys(Kind::Offset, 40, DIM, 1)).unwrap();
    index.seal();
    index.append(&keys(Kind::Offset, 100, DIM, 2)).unwrap();
    let lens: Vec<usize> = index.segments().map(Segment::len).collect();
    assert_eq!(lens, [64, 64, 12]);
    index.validate().unwrap();
    // An explicit seal joins what is not full.
    index.seal();
    index.append(&keys(Kind::Offset, 3, DIM, 3)).unwrap();
    index.seal();
    let lens: Vec<usize> = index.segments().map(Segment::len).collect();
    assert_eq!(lens, [64, 64, 15]);
}

#[test]
fn joining_keys_move_nothing_that_is_there() {
    let update = UpdateConfig::Incremental(IncrementalUpdater {
        every: 8,
        rebuild_every: 5,
    });
    let mut index = index(update, 256);
    index.append(&keys(Kind::Offset, 64, DIM, 1)).unwrap();
    let mut updates = vec![index.segments().next().unwrap().updates()];
    for i in 0..12 {
        let before = index.clone();
        index.append(&keys(Kind::Offset, 8, DIM, 100 + i)).unwrap();
        index.validate().unwrap();
        let old = before.segments().next().unwrap();
        let new = index.segments().next().unwrap();
        assert_eq!(new.len(), old.len() + 8);
        updates.push(new.updates());
        if new.updates() == 0 {
            continue;
        }
        // Clusters that were not divided keep their centroids, and grow.
        let (old_leaves, leaves) = (&old.levels()[1], &new.levels()[1]);
        let mut kept = 0;
        for c in 0..old_leaves.len() {
            let same = |&n: &usize| bits(leaves.centroid(n)) == bits(old_leaves.centroid(c));
            if let Some(n) = (0..leaves.len()).find(same) {
                kept += 1;
                assert!(leaves.radius(n) >= old_leaves.radius(c));
                let members: Vec<u32> = new.members(1, n).collect();
                assert!(old.members(1, c).all(|member| members.contains(&member)));
            }
        }
        assert!(
            kept * 2 > old_leaves.len(),
            "{kept} of {}",
            old_leaves.len()
        );
        for (level, size) in [(0, 16), (1, 4)] {
            for c in 0..new.levels()[level].len() {
                assert!(
                    new.slots(level, c).len() <= 2 * size,
                    "no cluster is too large"
                );
            }
        }
    }
    assert_eq!(updates, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]);
}

#[test]
fn keys_join_the_nearest_clusters() {
    let update = UpdateConfig::Incremental(IncrementalUpdater {
        every: 4,
        rebuild_every: 100,
    });
    let mut index = index(update, 256);
    let at = |x: f32| [x, 0.0, 0.0, 0.0, 0.0, 0.0];
    // Two groups of four, so that no key lies half-way between two centroids.
    let place = |i: usize| i % 4 * 100 + i / 4 % 2 * 1000;
    let row: Vec<f32> = (0..32).flat_map(|i| at(place(i) as f32)).collect();
    index.append(&row).unwrap();
    index
        .append(&[at(1.0), at(1302.0), at(299.0), at(-5.0)].concat())
        .unwrap();
    assert_eq!(index.segments().next().unwrap().updates(), 1);
    for (position, like) in [(32, 0), (33, 7), (34, 3), (35, 0)] {
        let (new, old) = (index.path(position).unwrap(), index.path(like).unwrap());
        assert_eq!(
            new.clusters, old.clusters,
            "key {position} is near to key {like}"
        );
    }
    let leaf = index.path(0).unwrap().clusters[1] as usize;
    let level = index.level(0, 1).unwrap();
    assert_eq!(
        (level.radius(leaf), level.lo(leaf)[0], level.hi(leaf)[0]),
        (5.0f32.next_up(), -5.0, 1.0)
    );
}

#[test]
fn segments_that_are_not_full_stay_few() {
    for (base, ratio) in [(8, 2.0), (8, 3.0), (5, 1.5), (30, 2.0)] {
        let updater = DynamicUpdater { base, ratio };
        let mut index = index(UpdateConfig::Dynamic(updater), 256);
        let most = (256.0 / base as f64).log(f64::from(ratio)).ceil() as usize + 1;
        for (i, lens) in lens_after_each(&mut index, 1000).into_iter().enumerate() {
            assert_eq!(lens.iter().sum::<usize>(), i + 1);
            let (open, sealed) = lens.split_last().unwrap();
            assert!(*open < base);
            let partial: Vec<usize> = sealed.iter().copied().filter(|&len| len < 256).collect();
            assert!(sealed.ends_with(&partial), "full ones first: {sealed:?}");
            assert!(partial.len() <= most, "{base} {ratio}: {sealed:?}");
            let shrinks = |pair: &[usize]| pair[0] as f32 >= ratio * pair[1] as f32;
            assert!(partial.windows(2).all(shrinks), "{sealed:?}");
        }
    }
    // A binary counter.
    let mut index = index(
        UpdateConfig::Dynamic(DynamicUpdater {
            base: 8,
            ratio: 2.0,
        }),
        256,
    );
    let lens = lens_after_each(&mut index, 63);
    assert_eq!(lens[55], [32, 16, 8, 0]);
    assert_eq!(lens[62], [32, 16, 8, 7]);
    index.seal(); // seven keys are less than eight, so all of it is merged
    assert_eq!(index.segments().map(Segment::len).collect::<Vec<_>>(), [63]);
}

/// Builds in the order of time, after a permit for it has come.
#[derive(Debug)]
struct Held(Mutex<Receiver<()>>);

impl Builder for Held {
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
        let permits = self.0.lock().expect("no test panics with it");
        permits.recv().expect("the test still runs");
        ChunkBuilder.build(input)
    }
}

/// An index that builds in the background, when it is permitted to.
fn held(update: UpdateConfig) -> (HierarchicalIndex, Sender<()>) {
    let (permit, permits) = channel();
    let config = small_config(DIM).with_update(update).with_background(true);
    let builder = Arc::new(Held(Mutex::new(permits)));
    (
        HierarchicalIndex::with_builder(config, builder).unwrap(),
        permit,
    )
}

fn assert_holds(index: &HierarchicalIndex, expected: &[f32]) {
    index.validate().unwrap();
    assert_eq!(bits(&stored(index)), bits(expected));
}

#[test]
fn whatever_happens_while_a_segment_is_built_is_safe() {
    let batch = keys(Kind::Offset, 200, DIM, 1);
    let (mut index, permit) = held(UpdateConfig::Seal);
    index.append(&batch[..150 * DIM]).unwrap();
    assert_eq!(index.pending_builds(), 2);
    assert_holds(&index, &batch[..150 * DIM]);
    let building: Vec<bool> = index.segments().map(Segment::is_building).collect();
    assert_eq!(building, [true, true, false]);
    assert!(
        index
            .to_string()
            .contains("segment 1: being built, positions 64..128, 64 keys")
    );

    // Forks go on, cut what is being built, or forget it.
    let (mut grown, mut cut, mut cleared) = (index.clone(), index.clone(), index.clone());
    cut.truncate(100);
    assert_holds(&cut, &batch[..100 * DIM]);
    cleared.clear();
    assert!(cleared.is_empty());
    let pending = [&grown, &cut, &cleared].map(|index| index.pending_builds());
    assert_eq!(pending, [2, 1, 0]);
    // Other keys in the place of those that are being built.
    let mut other = index.clone();
    let others = keys(Kind::Spread, 100, DIM, 9);
    other.truncate(40);
    other.append(&others).unwrap();
    let replaced = [&batch[..40 * DIM], &others].concat();
    for _ in 0..12 {
        permit.send(()).unwrap();
    }
    other.finish_builds();
    assert_holds(&other, &replaced);
    grown.append(&batch[150 * DIM..]).unwrap();
    for (index, len, sealed) in [
        (&mut index, 150, 2),
        (&mut grown, 200, 3),
        (&mut cut, 100, 1),
        (&mut cleared, 0, 0),
    ] {
        index.finish_builds();
        assert_eq!(index.pending_builds(), 0);
        assert_holds(index, &batch[..len * DIM]);
        let built = index
            .segments()
            .filter(|segment| segment.levels().len() == 2);
        assert_eq!(built.count(), sealed);
    }
    // What was built once is shared.
    let shared = index.segments().zip(grown.segments()).take(2);
    assert!(shared.into_iter().all(|(a, b)| std::ptr::eq(a, b)));
    // The forgotten ones are taken again from the start.
    cleared.append(&batch[..64 * DIM]).unwrap();
    cleared.finish_builds();
    assert_holds(&cleared, &batch[..64 * DIM]);
}

#[test]
fn open_keys_wait_for_the_build_before_them() {
    let batch = keys(Kind::Offset, 100, DIM, 2);
    let update = UpdateConfig::Rebuild(RebuildUpdater {
        trigger: RebuildTrigger::EveryN { n: 10 },
    });
    let (mut index, permit) = held(update);
    for key in batch[..39 * DIM].chunks(DIM) {
        index.append(key).unwrap();
    }
    // The first ten are being built; the others are open and can be searched.
    assert_eq!(index.pending_builds(), 1);
    let lens: Vec<usize> = index.segments().map(Segment::len).collect();
    assert_eq!(lens, [10, 29]);
    assert_holds(&index, &batch[..39 * DIM]);
    for _ in 0..20 {
        permit.send(()).unwrap();
    }
    index.finish_builds();
    index.append(&batch[39 * DIM..40 * DIM]).unwrap();
    index.finish_builds();
    let lens: Vec<usize> = index.segments().map(Segment::len).collect();
    assert_eq!(lens, [40]);
    // A batch that fills the segment does not wait for a trigger, but for the build.
    index.append(&batch[40 * DIM..]).unwrap();
    index.finish_builds();
    assert_holds(&index, &batch);
    let lens: Vec<usize> = index.segments().map(Segment::len).collect();
    assert_eq!(lens, [64, 36]);
}

#[test]
fn the_thread_builds_without_being_waited_for() {
    let batch = keys(Kind::Offset, 65, DIM, 3);
    let mut index = HierarchicalIndex::new(small_config(DIM).with_background(true)).unwrap();
    index.append(&batch).unwrap();
    let start = std::time::Instant::now();
    while index.pending_builds() > 0 {
        assert!(
            start.elapsed().as_secs() < 60,
            "a minute is enough for 64 keys"
        );
        index.append(&[]).unwrap();
        std::thread::yield_now();
    }
    assert_holds(&index, &batch);
    assert_eq!(index.segments().next().unwrap().levels().len(), 2);
}
