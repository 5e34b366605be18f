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

/// Bytes that a plain read reads.
const STREAMED: usize = 384 << 20;

/// Lines that fit into L1 and how often they are multiplied.
const L1_LINES: usize = 256;
const L1_ROUNDS: usize = 20_000;

/// Rounds of all measurements.
const ROUNDS: usize = 9;

/// The ceilings, and what comes near them.
#[derive(Debug, Clone, Default)]
pub struct Ceilings {
    /// GB/s of a plain read of memory by so many threads: the faster of a sum of f32 and of int8 products over whole lines.
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
    /// Measures all of them in turns; `head` gives the keys and the queries of the scans.
    pub fn measure(head: &Problem) -> Self {
        let all = rayon::current_num_threads();
        let counts = if all > 1 { vec![1, all] } else { vec![1] };
        // rows of 256 and of 512 bytes are gathered from what is read
        let data = vec![1.0_f32; STREAMED / size_of::<f32>()];
        let data = data.as_slice();
        let sketch = Sketch::of(head);
        let has_int8 = Kernel::best().int8_products(&[], 0).is_some();
        let mut probes = Vec::new();
        for &threads in &counts {
            probes.push(Probe::new(What::Stream, threads, move || {
                stream(data, threads)
            }));
            if has_int8 {
                let lines = sketch.lines.as_slice();
                let work = move || stream_lines(lines, threads);
                probes.push(Probe::new(What::Lines, threads, work));
            }
            for bytes in [256, 512] {
                let mut pass = 0;
                let dim = bytes / size_of::<f32>();
                probes.push(Probe::new(What::Rows(bytes), threads, move || {
                    pass += 1;
                    gather(data, dim, threads, pass)
                }));
            }
            for (group, tail) in [(1, false), (1, true), (head.group, true)] {
                let scan = sketch.scan(head, group, tail);
                let sketch = &sketch;
                let what = What::Scan(group, tail);
                probes.push(Probe::new(what, threads, move || scan.run(sketch, threads)));
            }
        }
        if has_int8 {
            probes.push(Probe::new(What::Int8, 1, int8_products));
        }
        for _ in 0..ROUNDS {
            probes.iter_mut().for_each(Probe::take);
        }
        Self::of(&probes, &sketch)
    }

    fn of(probes: &[Probe<'_>], sketch: &Sketch) -> Self {
        let mut ceilings = Self::default();
        // what the scans are held against comes first
        for probe in probes {
            match probe.what {
                What::Stream | What::Lines => {
                    let bytes = match probe.what {
                        What::Stream => STREAMED,
                        _ => size_of_val(sketch.lines.as_slice()),
                    };
                    ceilings.add_stream(probe.threads, bytes as f64 / probe.least / 1e9);
                }
                What::Int8 => {
                    ceilings.int8 = Some((128 * L1_LINES * L1_ROUNDS) as f64 / probe.least / 1e9);
                }
                _ => {}
            }
        }
        for probe in probes {
            let threads = probe.threads;
            match probe.what {
                What::Rows(bytes) => ceilings.rows.push(RowCost {
                    threads,
                    bytes,
                    ns: probe.least * 1e9 / (STREAMED / (SPAN * bytes) * GATHERED) as f64,
                }),
                What::Scan(group, tail) => {
                    let rate = ceilings.rate(sketch, threads, (group, tail), probe.least);
                    ceilings.scans.push(rate);
                }
                What::Stream | What::Lines | What::Int8 => {}
            }
        }
        ceilings
    }

    /// GB/s of the largest number of threads that was measured.
    pub fn stream_all(&self) -> f64 {
        self.stream.last().map_or(0.0, |&(_, rate)| rate)
    }

    /// Of two ways to read memory the faster one is the ceiling.
    fn add_stream(&mut self, threads: usize, rate: f64) {
        match self.stream.iter_mut().find(|(known, _)| *known == threads) {
            Some((_, known)) => *known = known.max(rate),
            None => self.stream.push((threads, rate)),
        }
    }

    fn rate(
        &self,
        sketch: &Sketch,
        threads: usize,
        (group, tail): (usize, bool),
        seconds: f64,
    ) -> ScanRate {
        let keys = SCANNED as f64;
        let bytes = size_of_val(&sketch.lines[..]) + size_of_val(&sketch.norms[..]);
        let gb_per_s = bytes as f64 / seconds / 1e9;
        // a query has two int8 parts
        let products = 2.0 * (group * sketch.dim) as f64 * keys / seconds / 1e9;
        let stream = self.stream.iter().find(|(count, _)| *count == threads);
        ScanRate {
            threads,
            group,
            tail,
            ns_per_key: seconds * 1e9 / keys,
            gb_per_s,
            products,
            of_memory: stream.map_or(0.0, |(_, stream)| gb_per_s / stream),
            of_int8: self.int8.map(|int8| products / (int8 * threads as f64)),
        }
    }
}

/// What a probe measures.
#[derive(Debug, Clone, Copy)]
enum What {
    Stream,
    /// A read of memory that multiplies what it reads.
    Lines,
    /// Of so many bytes.
    Rows(usize),
    /// With so many queries, and whether with the tail.
    Scan(usize, bool),
    Int8,
}

/// One measurement, taken again and again in turns with the others.
struct Probe<'a> {
    what: What,
    threads: usize,
    work: Box<dyn FnMut() + 'a>,
    /// The least seconds: what disturbs a measurement only makes it slower.
    least: f64,
}

impl<'a> Probe<'a> {
    fn new(what: What, threads: usize, work: impl FnMut() + 'a) -> Self {
        Self {
            what,
            threads,
            work: Box::new(work),
            least: f64::INFINITY,
        }
    }

    fn take(&mut self) {
        let start = Instant::now();
        (self.work)();
        self.least = self.least.min(start.elapsed().as_secs_f64());
    }
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

/// Reads everything once.
fn stream(data: &[f32], threads: usize) {
    divided(data.len() / 64, threads, |blocks| {
        let mut lanes = [0.0_f32; 64];
        for block in data[blocks.start * 64..blocks.end * 64].chunks_exact(64) {
            lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x);
        }
        black_box(lanes);
    });
}

/// Reads everything once, 64 bytes an instruction, each multiplied with two words and added up.
fn stream_lines(lines: &[Line], threads: usize) {
    divided(lines.len() / 64, threads, |blocks| {
        let lines = &lines[blocks.start * 64..blocks.end * 64];
        black_box(Kernel::best().int8_products(lines, 1));
    });
}

/// Scores 256 ascending rows of `dim` values out of 8,192 neighbours, then of the next ones; other rows in each of 32 passes.
fn gather(data: &[f32], dim: usize, threads: usize, pass: usize) {
    let query = vec![0.5; dim];
    let apart = SPAN / GATHERED;
    let rows: Vec<u32> = (0..GATHERED)
        .map(|i| (i * apart + (5 * pass + 7 * i) % apart) as u32)
        .collect();
    divided(data.len() / (SPAN * dim), threads, |spans| {
        let mut scores = vec![0.0; GATHERED];
        let data = &data[spans.start * SPAN * dim..spans.end * SPAN * dim];
        for span in data.chunks_exact(SPAN * dim) {
            Kernel::best().scores_at_into(&query, span, &rows, &mut scores);
            black_box(&scores);
        }
    });
}

struct Sketch {
    dim: usize,
    lines: Vec<Line>,
    norms: Vec<f32>,
}

/// A scan for the top 3 % of each of some queries.
struct Scan {
    group: QueryGroup,
    offsets: SegmentOffsets,
    thresholds: Vec<ScanQuery>,
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

    /// A scan for the last row's first queries.
    fn scan(&self, head: &Problem, queries: usize, tail: bool) -> Scan {
        let kernel = Kernel::best();
        let queries = &head.queries_of(head.rows - 1)[..queries * self.dim];
        let mut group = QueryGroup::new();
        group.prepare(kernel, queries, self.dim);
        let mut offsets = SegmentOffsets::default();
        group.offsets_into(kernel, &vec![0.0; self.dim], &mut offsets);
        let scale = 1.0 / (self.dim as f32).sqrt();
        let mut scores = vec![0.0; head.len];
        let mut threshold = |query| {
            kernel.scores_into(query, &head.keys[..head.len * self.dim], &mut scores);
            scores.sort_by(|a, b| b.total_cmp(a));
            ScanQuery {
                tau: scores[head.len * 3 / 100],
                tail_scale: if tail { scale } else { 0.0 },
                block_keys: 0,
            }
        };
        Scan {
            thresholds: queries.chunks_exact(self.dim).map(&mut threshold).collect(),
            group,
            offsets,
        }
    }
}

impl Scan {
    /// Scans everything once, as many tiles at a time as a segment has.
    fn run(&self, sketch: &Sketch, threads: usize) {
        let view = SketchView {
            dim: sketch.dim,
            len: SCANNED,
            lines: &sketch.lines,
            norms: &sketch.norms,
        };
        let segment = SPAN / TILE;
        divided(SCANNED / SPAN, threads, |segments| {
            let mut out = vec![Candidates::default(); self.thresholds.len()];
            for at in segments {
                out.iter_mut().for_each(Candidates::clear);
                Kernel::best().scan_into(
                    view,
                    at * segment..(at + 1) * segment,
                    0,
                    &self.group,
                    &self.offsets,
                    &self.thresholds,
                    &mut out,
                );
                black_box(&out);
            }
        });
    }
}

/// The products of a scan of one query on a sketch that lies in L1.
fn int8_products() {
    let lines = [Line([3; 64]); L1_LINES];
    black_box(Kernel::best().int8_products(black_box(&lines), L1_ROUNDS));
}
