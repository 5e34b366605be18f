//! Keys on disk: the same answers, and each key that several queries need is read once.
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::sync::Arc;

use common::{PLANS, Rows, build, rows};
use hira_index::{HierarchicalIndex, IndexConfig};
use hira_kernels::{Backing, Kernel};
use hira_search::{HalfspaceSearcher, Scratch, SearchConfig, Selection};
use hira_threshold::ThresholdRule;

const DIM: usize = 32;
const LEN: usize = 5000;
const GROUP: usize = 3;

/// Moves the keys of every sealed segment but the first to a file.
fn move_to_disk(index: &mut HierarchicalIndex) {
    index.move_keys_to_regions();
    let sealed = index.segments().skip(1);
    let regions: Vec<_> = sealed.filter_map(|s| s.rows().region()).collect();
    assert!(regions.len() > 1, "several segments on disk");
    for region in regions {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(region.bytes()).expect("room on the disk");
        let backing = Backing::new(Arc::new(file), 0);
        region.set_backing(backing).expect("a file as long");
        region.demote().expect("a region with a file");
    }
}

/// Rows that were read from disk, ever.
fn disk_reads(index: &HierarchicalIndex) -> usize {
    let regions = index.segments().filter_map(|s| s.rows().region());
    regions
        .map(|region| region.row_reads().from_disk)
        .sum::<u64>() as usize
}

fn search(
    searcher: &HalfspaceSearcher,
    index: &HierarchicalIndex,
    (queries, rule): (&[f32], ThresholdRule),
    scratch: &mut Scratch,
) -> Vec<Selection> {
    let mut out = vec![Selection::default(); GROUP];
    searcher
        .search_group_with(index, queries, LEN, &rule, 0.1, scratch, &mut out)
        .expect("valid queries");
    out
}

#[test]
fn answers_do_not_depend_on_where_keys_are() {
    let keys = rows(Rows::Plain, LEN, DIM, 3);
    let config = IndexConfig::new(DIM)
        .with_segment_len(1024)
        .with_min_coarse_len(0);
    let memory = build(config.clone(), Kernel::best(), &keys);
    let mut disk = build(config, Kernel::best(), &keys);
    move_to_disk(&mut disk);
    let rules = [
        ThresholdRule::TopK { k: 40 },
        ThresholdRule::Fixed { tau: 4.0 },
        ThresholdRule::Mass { mass: 0.95 },
    ];
    for plan in PLANS {
        for rule in rules {
            let settings = SearchConfig::default().with_plan(plan).with_tail_block(64);
            let searcher = HalfspaceSearcher::new(settings).expect("valid settings");
            let (mut one, mut other) = (Scratch::new(), Scratch::new());
            // the later steps start from the keys of the earlier ones
            for seed in 0..4 {
                let queries = rows(Rows::Plain, GROUP, DIM, 10 + seed / 2);
                let expected = search(&searcher, &memory, (&queries, rule), &mut one);
                let found = search(&searcher, &disk, (&queries, rule), &mut other);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.positions, expected.positions, "{plan:?} {rule:?}");
                    assert_eq!(found.scores, expected.scores, "{plan:?} {rule:?}");
                }
            }
        }
    }
}

#[test]
fn queries_of_a_group_share_what_they_read() {
    let keys = rows(Rows::Plain, LEN, DIM, 3);
    let config = IndexConfig::new(DIM).with_segment_len(1024);
    let mut index = build(config, Kernel::best(), &keys);
    move_to_disk(&mut index);
    let settings = SearchConfig::default().with_plan(PLANS[2]);
    let searcher = HalfspaceSearcher::new(settings).expect("valid settings");
    let rule = ThresholdRule::Fixed { tau: 4.0 };
    let one = rows(Rows::Plain, 1, DIM, 10);
    let read = |queries: &[f32]| {
        let before = disk_reads(&index);
        let found = search(&searcher, &index, (queries, rule), &mut Scratch::new());
        (disk_reads(&index) - before, found)
    };
    let (alone, _) = read(&[&one[..], &[0.0; 2 * DIM]].concat());
    let (together, found) = read(&one.repeat(GROUP));
    let in_memory = found[0].positions.iter().filter(|&&p| p < 1024).count();
    assert!(
        found[0].positions.len() > in_memory,
        "keys on disk are found"
    );
    assert_eq!(found[0].positions, found[1].positions);
    // the zero queries reach no threshold above zero: they read nothing
    assert_eq!(together, alone);
    assert!(together <= found[0].stats.survivors);
}
