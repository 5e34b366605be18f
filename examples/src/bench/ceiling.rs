//! What this machine can do at best: reads of memory, int8 products, the sketch scan beside both, cold rows.

use std::{
    hint::black_box,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use hira_kernels::{
    Candidates, Kernel, Line, QueryGroup, ScanQuery, SegmentOffsets, SketchView, TILE, tile_lines,
};

use super::Problem;

/// Keys whose sketch is scanned, 285 MB at dimension 64: far more than the last-level cache.
const SCANNED: usize = 1 << 22;

/// Rows that are gathered at a time, out of [`SPAN`] neighbours each.
const GATHERED: usize = 256;
const SPAN: usize = 8192;

/// The ceilings, and what comes near them.
#[derive(Debug, Clone, Default)]
pub struct Ceilings {
    /// GB/s of a plain read of memory, for one thread and for each further number of threads.
    pub stream: Vec<(usize, f64)>,
    /// 10^9 int8 multiply-adds a second of one core on a sketch in L1; none without 8-bit dot products.
    pub int8: Option<f64>,
    /// The sketch scan.
    pub scans: Vec<ScanRate>,
    /// Nanoseconds a cold row of this many bytes, for this many threads together.
    pub rows: Vec<RowCost>,
}

/// A cold sketch scan.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanRate {
    /// Threads.
    pub threads: usize,
    /// Queries that share the scan.
    pub group: usize,
    /// Whether the tail's weight was summed too.
    pub tail: bool,
    /// Nanoseconds a key, all threads together.
    pub ns_per_key: f64,
    /// GB/s of the sketch.
    pub gb_per_s: f64,
    /// 10^9 int8 multiply-adds a second.
    pub products: f64,
    /// Share of the measured speed of memory.
    pub of_memory: f64,
    /// Share of the measured rate of int8 products.
    pub of_int8: Option<f64>,
}

impl ScanRate {
    /// Share of whichever ceiling binds, and which that is.
    pub fn achieved(&self) -> (f64, &'static str) {
        match self.of_int8 {
            Some(share) if share > self.of_memory => (share, "int8 products"),
            _ => (self.of_memory, "memory"),
        }
    }
}

/// The cost of gathering cold rows.
#[derive(Debug, Clone, PartialEq)]
pub struct RowCost {
    /// Threads.
    pub threads: usize,
    /// Bytes of a row.
    pub bytes: usize,
    /// Nanoseconds a row, all threads together.
    pub ns: f64,
}

/// Bytes of the last-level cache as the system tells, 32 MiB if it does not.
pub fn last_level_cache() -> usize {
    let of = |level: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size");
        let text = std::fs::read_to_string(path).ok()?;
        let kib: usize = text.trim().strip_suffix('K')?.parse().ok()?;
        Some(kib << 10)
    };
    of(3).or_else(|| of(2)).unwrap_or(32 << 20)
}

impl Ceilings {
    /// Measures all of them; `head` gives the keys and the queries of the scans.
    pub fn measure(head: &Problem) -> Self {
        let all = rayon::current_num_threads();
        let counts = if all > 1 { vec![1, all] } else { vec![1] };
        let mut ceilings = Self {
            int8: int8_products(),
            ..Self::default()
        };
        // rows of 256 and of 512 bytes are gathered from what is read
        let data = vec![1.0_f32; 96 << 20];
        for &threads in &counts {
            ceilings.stream.push((threads, stream(&data, threads)));
            for bytes in [256, 512] {
                let ns = gather(&data, bytes / size_of::<f32>(), threads);
                ceilings.rows.push(RowCost { threads, bytes, ns });
            }
        }
        drop(data);
        let sketch = Sketch::of(head);
        for (group, tail) in [(1, false), (1, true), (head.group, true)] {
            for &(threads, gb_per_s) in &ceilings.stream {
                let scan = sketch.scan(head, threads, group, tail);
                ceilings.scans.push(ceilings.rate(&sketch, scan, gb_per_s));
            }
        }
        ceilings
    }

    /// GB/s of the largest number of threads that was measured.
    pub fn stream_all(&self) -> f64 {
        self.stream.last().map_or(0.0, |&(_, rate)| rate)
    }

    fn rate(&self, sketch: &Sketch, scan: Scanned, stream: f64) -> ScanRate {
        let keys = SCANNED as f64;
        let bytes = size_of_val(&sketch.lines[..]) + size_of_val(&sketch.norms[..]);
        let gb_per_s = bytes as f64 / scan.seconds / 1e9;
        // a query has two int8 parts
        let products = 2.0 * (scan.group * sketch.dim) as f64 * keys / scan.seconds / 1e9;
        ScanRate {
            threads: scan.threads,
            group: scan.group,
            tail: scan.tail,
            ns_per_key: scan.seconds * 1e9 / keys,
            gb_per_s,
            products,
            of_memory: gb_per_s / stream,
            of_int8: self
                .int8
                .map(|int8| products / (int8 * scan.threads as f64)),
        }
    }
}

/// The least of some measurements in seconds: what disturbs one only makes it slower.
fn least(times: usize, mut work: impl FnMut()) -> f64 {
    let measured = (0..times).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    measured.fold(f64::INFINITY, f64::min)
}

/// Does `work` on `0..count` in many parts, which the threads take as they come to them; the calling one is among them.
fn divided(count: usize, threads: usize, work: impl Fn(Range<usize>) + Sync) {
    let part = count.div_ceil(32 * threads);
    let next = AtomicUsize::new(0);
    let run = || loop {
        let start = next.fetch_add(part, Ordering::Relaxed);
        if start >= count {
            return;
        }
        work(start..count.min(start + part));
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

/// GB/s that the threads together read.
fn stream(data: &[f32], threads: usize) -> f64 {
    let seconds = least(7, || {
        divided(data.len() / 64, threads, |blocks| {
            let mut lanes = [0.0_f32; 64];
            for block in data[blocks.start * 64..blocks.end * 64].chunks_exact(64) {
                lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x);
            }
            black_box(lanes);
        });
    });
    size_of_val(data) as f64 / seconds / 1e9
}

/// Nanoseconds a row of `dim` values: 256 ascending rows out of 8,192 neighbours, then of the next ones.
fn gather(data: &[f32], dim: usize, threads: usize) -> f64 {
    let query = vec![0.5; dim];
    let spans = data.len() / (SPAN * dim);
    // a new offset in every pass, so that no row comes again before 32 passes
    let pass = std::cell::Cell::new(0);
    let seconds = least(7, || {
        let offset = pass.replace(pass.get() + 5) % (SPAN / GATHERED);
        divided(spans, threads, |spans| {
            let mut scores = vec![0.0; GATHERED];
            let rows: Vec<u32> = (0..GATHERED)
                .map(|i| (i * (SPAN / GATHERED) + (offset + 7 * i) % (SPAN / GATHERED)) as u32)
                .collect();
            for span in
                data[spans.start * SPAN * dim..spans.end * SPAN * dim].chunks_exact(SPAN * dim)
            {
                Kernel::best().scores_at_into(&query, span, &rows, &mut scores);
                black_box(&scores);
            }
        });
    });
    seconds * 1e9 / (spans * GATHERED) as f64
}

/// 10^9 int8 multiply-adds a second of one core, on a sketch that lies in L1.
fn int8_products() -> Option<f64> {
    const LINES: usize = 256;
    const ROUNDS: usize = 20_000;
    let lines = vec![Line([3; 64]); LINES];
    Kernel::best().int8_products(&lines, 1)?;
    let seconds = least(5, || {
        black_box(Kernel::best().int8_products(black_box(&lines), ROUNDS));
    });
    // two products of a query's parts with each of a line's bytes
    Some((2 * 64 * LINES * ROUNDS) as f64 / seconds / 1e9)
}

struct Sketch {
    dim: usize,
    lines: Vec<Line>,
    norms: Vec<f32>,
}

struct Scanned {
    threads: usize,
    group: usize,
    tail: bool,
    seconds: f64,
}

impl Sketch {
    /// The sketch of the head's keys, again and again.
    fn of(head: &Problem) -> Self {
        let dim = head.dim;
        let keys = &head.keys[..head.len / TILE * TILE * dim];
        let tiles = keys.len() / dim / TILE;
        let mut lines = vec![Line::EMPTY; tiles * tile_lines(dim)];
        let mut norms = vec![0.0; tiles];
        Kernel::best().quantise_keys(keys, &vec![0.0; dim], 0, &mut lines, &mut norms);
        let times = (SCANNED / TILE).div_ceil(tiles);
        let (mut lines, mut norms) = (lines.repeat(times), norms.repeat(times));
        lines.truncate(SCANNED / TILE * tile_lines(dim));
        norms.truncate(SCANNED / TILE);
        Self { dim, lines, norms }
    }

    /// Scans it for the top 3 % of each of the last row's first queries.
    fn scan(&self, head: &Problem, threads: usize, group: usize, tail: bool) -> Scanned {
        let kernel = Kernel::best();
        let queries = &head.queries_of(head.rows - 1)[..group * self.dim];
        let mut prepared = QueryGroup::new();
        prepared.prepare(kernel, queries, self.dim);
        let mut offsets = SegmentOffsets::default();
        prepared.offsets_into(kernel, &vec![0.0; self.dim], &mut offsets);
        let scale = if tail {
            1.0 / (self.dim as f32).sqrt()
        } else {
            0.0
        };
        let thresholds: Vec<ScanQuery> = queries
            .chunks_exact(self.dim)
            .map(|query| {
                let mut scores = vec![0.0; head.len];
                kernel.scores_into(query, &head.keys[..head.len * self.dim], &mut scores);
                scores.sort_by(|a, b| b.total_cmp(a));
                ScanQuery {
                    tau: scores[head.len * 3 / 100],
                    tail_scale: scale,
                }
            })
            .collect();
        let sketch = SketchView {
            dim: self.dim,
            len: SCANNED,
            lines: &self.lines,
            norms: &self.norms,
        };
        // as many tiles as a segment has, as a search does it
        let segment = SPAN / TILE;
        let seconds = least(5, || {
            divided(SCANNED / SPAN, threads, |segments| {
                let mut out = vec![Candidates::default(); group];
                for at in segments {
                    out.iter_mut().for_each(Candidates::clear);
                    let tiles = at * segment..(at + 1) * segment;
                    kernel.scan_into(sketch, tiles, 0, &prepared, &offsets, &thresholds, &mut out);
                    black_box(&out);
                }
            });
        });
        Scanned {
            threads,
            group,
            tail,
            seconds,
        }
    }
}
