//! The sample of positions, as an index keeps it.

mod common;

use common::{Kind, keys, small_config};
use hira_index::{HierarchicalIndex, IndexConfig, IndexError, SampleConfig};

fn sampled(index: &HierarchicalIndex, visible: usize) -> Vec<u32> {
    let mut out = Vec::new();
    index.sample_positions(visible, &mut out);
    out
}

fn config(size: usize, seed: u64) -> IndexConfig {
    small_config(2).with_sample(SampleConfig { size, seed })
}

#[test]
fn a_sample_depends_on_seed_and_length_alone() {
    let all = keys(Kind::Offset, 500, 2, 1);
    let mut whole = HierarchicalIndex::new(config(20, 7)).unwrap();
    whole.append(&all).unwrap();
    let mut grown = HierarchicalIndex::new(config(20, 7)).unwrap();
    for (i, key) in keys(Kind::Duplicates, 500, 2, 9).chunks(2).enumerate() {
        grown.append(key).unwrap();
        assert_eq!(sampled(&grown, i + 1), sampled(&whole, i + 1));
        if i % 90 == 89 {
            let fork = grown.clone();
            grown.seal();
            grown.truncate(i - 60);
            grown.append(&all[..61 * 2]).unwrap();
            assert_eq!(sampled(&grown, i + 1), sampled(&fork, i + 1));
            grown.validate().unwrap();
        }
    }
    let all = sampled(&whole, 500);
    assert_eq!(all.len(), 20);
    assert_eq!(sampled(&whole, usize::MAX), all);
    assert_eq!(sampled(&whole, 12), (0..12).collect::<Vec<u32>>());
    let mut other = HierarchicalIndex::new(config(20, 8)).unwrap();
    other.append(&[0.5; 1000]).unwrap();
    assert_ne!(sampled(&other, 500), all);
    whole.clear();
    assert!(sampled(&whole, 500).is_empty());
}

#[test]
fn a_refused_batch_is_not_sampled() {
    let mut index = HierarchicalIndex::new(config(8, 0)).unwrap();
    index.append(&keys(Kind::Offset, 100, 2, 1)).unwrap();
    let before = sampled(&index, 100);
    let mut bad = keys(Kind::Offset, 100, 2, 2);
    bad[199] = f32::NAN;
    index.append(&bad).unwrap_err();
    assert_eq!(sampled(&index, 200), before);
    index.validate().unwrap();
}

#[test]
fn a_size_of_zero_keeps_no_sample() {
    let mut index = HierarchicalIndex::new(config(0, 0)).unwrap();
    index.append(&keys(Kind::Offset, 300, 2, 1)).unwrap();
    assert!(sampled(&index, 300).is_empty());
    assert_eq!(index.memory_usage().sample, 0);
    index.truncate(100);
    index.validate().unwrap();
}

#[test]
fn the_memory_of_the_sample_is_counted() {
    let mut index = HierarchicalIndex::new(IndexConfig::new(1)).unwrap();
    index.append(&[1.0; 8192]).unwrap();
    let memory = index.memory_usage();
    // 256 positions of 4 bytes, and on average 256 * ln(32) = 887 replacements of 12.
    let expected = 1024.0 + 887.0 * 12.0;
    assert!(
        (0.8 * expected..2.2 * expected).contains(&(memory.sample as f64)),
        "{}",
        memory.sample
    );
    assert_eq!(
        memory.total(),
        memory.keys + memory.sketch + memory.levels.iter().sum::<usize>() + memory.sample
    );
    assert!(
        memory
            .to_string()
            .ends_with(&format!(", sample {}", memory.sample))
    );
}

#[test]
fn sizes_are_limited() {
    assert!(HierarchicalIndex::new(config(SampleConfig::MAX_SIZE, 0)).is_ok());
    assert_eq!(
        HierarchicalIndex::new(config(SampleConfig::MAX_SIZE + 1, 0)).unwrap_err(),
        IndexError::Config {
            key: "sample.size",
            requirement: "at most 65536"
        }
    );
}
