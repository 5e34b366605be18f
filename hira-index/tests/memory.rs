//! Reported bytes are the bytes of what is stored, and the dump says where they are.

mod common;

use common::{Kind, keys, small_config};
use hira_index::{HierarchicalIndex, IndexConfig, IndexMemory, ProductConfig, Segment};
use hira_kernels::Precision;

/// Bytes of the contents of an index, computed from what its segments show.
fn contents(index: &HierarchicalIndex) -> IndexMemory {
    let mut memory = IndexMemory {
        keys: 0,
        sketch: 0,
        product: 0,
        levels: vec![0; index.num_levels().saturating_sub(1)],
        sample: index.memory_usage().sample,
    };
    let vector = index.dim() * 4;
    for segment in index.segments() {
        memory.keys += segment.keys().len() * index.config().precision.bytes();
        memory.sketch += sketch_bytes(segment) + vector;
        memory.product += segment.product().map_or(0, |product| {
            product.codes.len() + 4 * (product.entries.len() + product.levels.len())
        });
        for (bytes, level) in memory.levels.iter_mut().zip(segment.levels()) {
            // Centroid, lo and hi; radius and two norms; the end of the children.
            *bytes += level.len() * (3 * vector + 3 * 4 + 4);
        }
    }
    memory
}

fn sketch_bytes(segment: &Segment) -> usize {
    let order = segment.order().map_or(0, |order| order.len() * 4);
    order
        + segment
            .sketch()
            .map_or(0, |sketch| sketch.lines.len() * 64 + sketch.norms.len() * 4)
}

#[test]
fn sealed_segments_hold_nothing_spare() {
    for num_levels in 0..=4 {
        for dim in [1, 3, 16, 64, 80, 128] {
            let mut index = HierarchicalIndex::new(
                small_config(dim)
                    .with_num_levels(num_levels)
                    .with_product((dim != 16).then(ProductConfig::default)),
            )
            .unwrap();
            for key in keys(Kind::Offset, 150, dim, 1).chunks(dim) {
                index.append(key).unwrap();
            }
            index.seal();
            assert_eq!(
                index.memory_usage().product > 0,
                num_levels > 0 && dim != 16
            );
            assert_eq!(
                index.memory_usage(),
                contents(&index),
                "{num_levels} levels, dim {dim}"
            );
            assert_eq!(
                index.memory_usage().levels.len(),
                num_levels.saturating_sub(1)
            );
        }
    }
}

#[test]
fn an_open_segment_has_little_spare() {
    let dim = 64;
    let mut index = HierarchicalIndex::new(IndexConfig::new(dim)).unwrap();
    for (i, key) in keys(Kind::Offset, 8191, dim, 1).chunks(dim).enumerate() {
        index.append(key).unwrap();
        let (used, needed) = (index.memory_usage().total(), contents(&index).total());
        assert!(used >= needed);
        // Below a tile, the room for one.
        assert!(
            i < 16 || used as f64 <= 1.3 * needed as f64,
            "{} keys: {used} for {needed}",
            i + 1
        );
    }
}

#[test]
fn a_batch_is_stored_without_spare() {
    for precision in Precision::ALL {
        let config = IndexConfig::new(64).with_precision(precision);
        let mut index = HierarchicalIndex::new(config).unwrap();
        index.append(&keys(Kind::Offset, 1000, 64, 1)).unwrap();
        assert_eq!(index.memory_usage(), contents(&index));
        assert_eq!(index.memory_usage().keys, 1000 * 64 * precision.bytes());
    }
}

#[test]
fn narrow_keys_have_little_spare() {
    let dim = 64;
    let config = IndexConfig::new(dim).with_precision(Precision::Bf16);
    let mut index = HierarchicalIndex::new(config).unwrap();
    for key in keys(Kind::Offset, 8191, dim, 1).chunks(dim) {
        index.append(key).unwrap();
    }
    let (used, needed) = (index.memory_usage().total(), contents(&index).total());
    assert!(used >= needed && used as f64 <= 1.3 * needed as f64);
    index.seal();
    // What widened the last key.
    let spare = dim * 4;
    assert_eq!(
        index.memory_usage().total(),
        contents(&index).total() + spare
    );
}

#[test]
fn the_dump_names_segments_levels_and_bytes() {
    let mut index = HierarchicalIndex::new(small_config(3)).unwrap();
    index.append(&keys(Kind::Offset, 70, 3, 1)).unwrap();
    let dump = index.to_string();
    assert!(dump.starts_with(
        "HierarchicalIndex: 70 keys of dimension 3, 3 levels, branching factor 4, kernel "
    ));
    assert!(
        dump.contains("  segment 0: sealed, positions 0..64, 4 > "),
        "{dump}"
    );
    assert!(
        dump.contains(" > 64 keys\n  segment 1: open, positions 64..70, 6 keys\n"),
        "{dump}"
    );
    assert!(dump.ends_with(&index.memory_usage().to_string()));
    assert_eq!(format!("{index:?}"), dump);
    assert!(format!("{:?}", index.segments().next()).contains("Level { len: 4, .. }"));
}
