//! Every kernel on every operation: `cargo bench -p hira-kernels --bench kernels`.
//!
//! "l3" works on data that leaves L2 and fits a server's L3; "cold" on more than that, in an order that visits every row
//! once before it comes back. What a scan, a gather or a weighted sum returns is checked against the scalar kernel before
//! it is timed.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hira_kernels::{
    Candidates, Kernel, Line, Precision, QueryGroup, ScanQuery, SegmentOffsets, SketchView,
    StoredVec, TILE, tile_lines,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Keys of the runs that stay in L3: 4.5 MB of sketch at 64 dimensions.
const WARM_KEYS: usize = 1 << 16;

/// Keys of the cold runs: 75 MB of sketch at 64 dimensions.
const COLD_KEYS: usize = 1 << 20;

/// Rows that a query selects in the gather benchmarks.
const SELECTED: usize = 256;

fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.random_range(-1.0f32..1.0))
        .collect()
}

struct Sketch {
    dim: usize,
    len: usize,
    lines: Vec<Line>,
    norms: Vec<f32>,
}

impl Sketch {
    /// A sketch of `len` keys, of which 4096 differ.
    fn new(dim: usize, len: usize) -> Self {
        let keys = values(1, 4096 * dim);
        let centre = vec![0.0; dim];
        let tiles = len.div_ceil(TILE);
        let mut lines = vec![Line::EMPTY; tiles * tile_lines(dim)];
        let mut norms = vec![0.0; tiles];
        for first in (0..len).step_by(4096) {
            let count = 4096.min(len - first);
            let kernel = Kernel::best();
            kernel.quantise_keys(&keys[..count * dim], &centre, first, &mut lines, &mut norms);
        }
        Self {
            dim,
            len,
            lines,
            norms,
        }
    }

    fn view(&self) -> SketchView<'_> {
        SketchView {
            dim: self.dim,
            len: self.len,
            lines: &self.lines,
            norms: &self.norms,
        }
    }
}

/// Scans for about 1 % of the keys per query, with tail sums.
struct Scan<'a> {
    sketch: &'a Sketch,
    kernel: Kernel,
    group: QueryGroup,
    offsets: SegmentOffsets,
    thresholds: Vec<ScanQuery>,
    out: Vec<Candidates>,
}

impl<'a> Scan<'a> {
    fn new(sketch: &'a Sketch, kernel: Kernel, queries: usize) -> Self {
        let dim = sketch.dim;
        let mut group = QueryGroup::new();
        group.prepare(kernel, &values(2, queries * dim), dim);
        let mut offsets = SegmentOffsets::default();
        group.offsets_into(kernel, &vec![0.0; dim], &mut offsets);
        // Scores have a standard deviation of sqrt(dim) / 3, and 1 % lie above 2.33 of them.
        let tau = 2.33 * (dim as f32).sqrt() / 3.0;
        let thresholds = vec![
            ScanQuery {
                tau,
                tail_scale: (dim as f32).powf(-0.5),
                block_keys: 0
            };
            queries
        ];
        let out = vec![Candidates::default(); queries];
        Self {
            sketch,
            kernel,
            group,
            offsets,
            thresholds,
            out,
        }
    }

    fn run(&mut self) -> usize {
        self.out.iter_mut().for_each(Candidates::clear);
        let view = self.sketch.view();
        self.kernel.scan_into(
            view,
            0..view.tiles(),
            0,
            &self.group,
            &self.offsets,
            &self.thresholds,
            &mut self.out,
        );
        self.out.iter().map(Candidates::len).sum()
    }
}

fn scan(criterion: &mut Criterion) {
    for (place, len, dims, groups) in [
        ("l3", WARM_KEYS, &[64, 128][..], &[1, 3, 4, 8][..]),
        ("cold", COLD_KEYS, &[64][..], &[1, 3][..]),
    ] {
        for &dim in dims {
            let sketch = Sketch::new(dim, len);
            let mut bench = criterion.benchmark_group(format!("scan/{place}/d{dim}"));
            bench.throughput(Throughput::Elements(len as u64));
            for &queries in groups {
                let mut reference = Scan::new(&sketch, Kernel::Scalar, queries);
                reference.run();
                for kernel in Kernel::available() {
                    let mut scan = Scan::new(&sketch, kernel, queries);
                    scan.run();
                    assert!(
                        scan.out == reference.out,
                        "{} finds the same",
                        kernel.name()
                    );
                    let id = BenchmarkId::new(kernel.name(), format!("g{queries}"));
                    bench.bench_function(id, |bencher| bencher.iter(|| scan.run()));
                }
            }
        }
    }
}

fn quantise(criterion: &mut Criterion) {
    for dim in [64, 128] {
        let keys = values(1, 4096 * dim);
        let centre = values(2, dim);
        let mut lines = vec![Line::EMPTY; 4096 / TILE * tile_lines(dim)];
        let mut norms = vec![0.0; 4096 / TILE];
        let mut bench = criterion.benchmark_group(format!("quantise/d{dim}"));
        bench.throughput(Throughput::Elements(4096));
        for kernel in Kernel::available() {
            bench.bench_function(kernel.name(), |bencher| {
                bencher.iter(|| {
                    kernel.quantise_keys(black_box(&keys), &centre, 0, &mut lines, &mut norms);
                });
            });
        }
    }
}

fn prepare(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("prepare/d64/g3");
    let queries = values(1, 3 * 64);
    for kernel in Kernel::available() {
        let mut group = QueryGroup::new();
        bench.bench_function(kernel.name(), |bencher| {
            bencher.iter(|| group.prepare(kernel, black_box(&queries), 64));
        });
    }
}

/// Rows to gather: `SELECTED` ascending ones per call, in an order that returns to none before all were used.
struct Gather {
    rows: Vec<u32>,
    next: usize,
}

impl Gather {
    fn new(len: usize) -> Self {
        let calls = len / SELECTED;
        let rows =
            (0..calls).flat_map(|call| (0..SELECTED).map(move |i| (i * calls + call) as u32));
        Self {
            rows: rows.collect(),
            next: 0,
        }
    }

    fn take(&mut self) -> &[u32] {
        let at = self.next;
        self.next = (at + SELECTED) % self.rows.len();
        &self.rows[at..][..SELECTED]
    }
}

/// `avx512` for rows of `f32`, else `avx512 bf16`.
fn label(kernel: Kernel, precision: Precision) -> String {
    match precision {
        Precision::F32 => kernel.name().to_owned(),
        _ => format!("{} {precision}", kernel.name()),
    }
}

fn score(criterion: &mut Criterion) {
    for dim in [64, 128] {
        let query = values(1, dim);
        for (place, len) in [("warm", 1024), ("cold", (1 << 26) / dim)] {
            let rows = values(2, len * dim);
            let mut bench = criterion.benchmark_group(format!("scores_at/{place}/d{dim}"));
            bench.throughput(Throughput::Elements(SELECTED as u64));
            for precision in Precision::ALL {
                let keys = StoredVec::rounded(precision, &rows);
                for kernel in Kernel::available() {
                    let mut gather = Gather::new(len);
                    let mut out = vec![0.0; SELECTED];
                    let mut expected = vec![0.0; SELECTED];
                    kernel.scores_at_into(&query, &keys, gather.take(), &mut out);
                    let first = &gather.rows[..SELECTED];
                    Kernel::Scalar.scores_at_into(&query, &keys, first, &mut expected);
                    assert_eq!(out, expected, "{} scores the same", kernel.name());
                    bench.bench_function(label(kernel, precision), |bencher| {
                        bencher.iter(|| {
                            kernel.scores_at_into(&query, &keys, gather.take(), &mut out);
                            out[0]
                        });
                    });
                }
            }
        }
        let keys = values(3, WARM_KEYS * dim);
        let mut out = vec![0.0; WARM_KEYS];
        let mut bench = criterion.benchmark_group(format!("scores/l3/d{dim}"));
        bench.throughput(Throughput::Elements(WARM_KEYS as u64));
        for kernel in Kernel::available() {
            bench.bench_function(kernel.name(), |bencher| {
                bencher.iter(|| kernel.scores_into(&query, black_box(&keys), &mut out));
            });
        }
    }
}

fn softmax(criterion: &mut Criterion) {
    let scores = values(1, WARM_KEYS);
    let mut weights = vec![0.0; WARM_KEYS];
    let mut bench = criterion.benchmark_group("exp");
    bench.throughput(Throughput::Elements(WARM_KEYS as u64));
    for kernel in Kernel::available() {
        bench.bench_function(kernel.name(), |bencher| {
            bencher.iter(|| kernel.exp_weights_into(black_box(&scores), 4.0, 1.0, &mut weights));
        });
    }
    bench.finish();
    for dim in [64, 128] {
        for (place, len) in [("warm", 1024), ("cold", (1 << 26) / dim)] {
            let values_of_rows = values(2, len * dim);
            let weights = values(3, SELECTED);
            let mut bench = criterion.benchmark_group(format!("weighted_sum/{place}/d{dim}"));
            bench.throughput(Throughput::Elements(SELECTED as u64));
            for precision in Precision::ALL {
                let rows = StoredVec::rounded(precision, &values_of_rows);
                for kernel in Kernel::available() {
                    let mut gather = Gather::new(len);
                    let (mut out, mut expected) = (vec![0.0; dim], vec![0.0; dim]);
                    kernel.weighted_sum_into(&weights, &rows, gather.take(), &mut out);
                    let first = &gather.rows[..SELECTED];
                    Kernel::Scalar.weighted_sum_into(&weights, &rows, first, &mut expected);
                    assert_eq!(out, expected, "{} sums the same", kernel.name());
                    bench.bench_function(label(kernel, precision), |bencher| {
                        bencher.iter(|| {
                            out.fill(0.0);
                            kernel.weighted_sum_into(&weights, &rows, gather.take(), &mut out);
                            out[0]
                        });
                    });
                }
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = scan, quantise, prepare, score, softmax
}
criterion_main!(benches);
