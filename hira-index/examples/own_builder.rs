//! A builder of one's own, beside those that are there: how tight are its clusters?
//!
//! ```sh
//! cargo run -p hira-index --no-default-features --release --example own_builder
//! ```

use std::sync::Arc;
use std::time::Instant;

use hira_index::{
    BuildInput, Builder, BuilderConfig, ChunkBuilder, HierarchicalIndex, Hierarchy, IndexConfig,
    IndexError, KMeansBuilder, KdTreeBuilder, RandomizedBuilder,
};

/// Clusters of keys that score alike with one direction: sorted by that score and cut into runs of equal length.
///
/// It suits queries that all point the same way, and nothing else.
#[derive(Debug)]
struct AlongDirection {
    direction: Vec<f32>,
}

impl Builder for AlongDirection {
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
        if self.direction.len() != input.dim {
            let what = "its direction has another dimension";
            return Err(IndexError::Builder { what });
        }
        let mut scores = vec![0.0; input.len()];
        let kernel = input.kernel;
        kernel.scores_into(&self.direction, input.keys, &mut scores);
        Hierarchy::divide(input, |rows, clusters| {
            rows.sort_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]));
            let len = rows.len();
            (1..=clusters).map(|i| i * len / clusters).collect()
        })
    }
}

fn main() -> Result<(), IndexError> {
    let (dim, len) = (16, 4096);
    // Eight groups of keys in turns, and a slow drift over time.
    let keys: Vec<f32> = (0..len * dim)
        .map(|i| {
            let (row, column) = (i / dim, i % dim);
            let group = ((row % 8 * 31 + column * 17) % 23) as f32 - 11.0;
            group + (i as f32 * 1.7).sin() + 2.0 * row as f32 / len as f32
        })
        .collect();
    let query = &keys[5 * dim..6 * dim];
    let along = |direction: &[f32]| -> Arc<dyn Builder> {
        let direction = direction.to_vec();
        Arc::new(AlongDirection { direction })
    };
    let builders: [(&str, Arc<dyn Builder>); 6] = [
        ("k-means", Arc::new(KMeansBuilder::default())),
        ("randomized", Arc::new(RandomizedBuilder::default())),
        ("kd-tree", Arc::new(KdTreeBuilder::default())),
        ("chunk", Arc::new(ChunkBuilder)),
        ("own, along the query", along(query)),
        ("own, wrong dimension", along(&query[1..])),
    ];
    println!(
        "{len} keys of dimension {dim}; clusters that may hold a key with 80 % of the query's own score\n"
    );
    println!(
        "{:<22} {:>9} {:>9} {:>12}",
        "builder", "built in", "clusters", "to be read"
    );
    let (norm, tau) = (
        200.0,
        0.8 * hira_kernels::Kernel::best().score(query, query),
    );
    for (name, builder) in builders {
        let config = IndexConfig::new(dim).with_builder(BuilderConfig::Chunk);
        let mut index = HierarchicalIndex::with_builder(config, builder)?;
        let start = Instant::now();
        index.append(&keys)?;
        index.seal();
        let took = start.elapsed().as_secs_f64() * 1e3;
        index.validate()?;
        let segment = index
            .segments()
            .next()
            .expect("all keys are in one segment");
        match segment.levels().last() {
            Some(level) => {
                let reach = |&i: &usize| level.upper_bound(index.kernel(), i, query, norm) >= tau;
                let read = (0..level.len()).filter(reach).count();
                println!("{name:<22} {took:>6.1} ms {:>9} {read:>12}", level.len());
            }
            // The keys are stored and can be searched all the same.
            None => println!(
                "{name:<22} {:?}",
                segment.build_error().map(|e| e.to_string())
            ),
        }
    }
    Ok(())
}
