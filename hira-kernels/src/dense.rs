//! Dense attention over contiguous rows: decode for a query group, and causal prefill.
//!
//! Both are exact attention over every visible key, for one KV head and the `G` query heads that share it, on the
//! calling thread; callers parallelise over KV heads, and prefill over ranges of queries as well.
//!
//! * [`Kernel::dense_decode_into`] reads keys and values once for all queries of the group, so that for up to about
//!   four queries it runs at the speed of memory. Its results are [`SoftmaxState`]s, which merge with others.
//! * [`Kernel::dense_prefill_into`] keeps blocks of rows and keys in the first caches and runs near the peak of the
//!   multipliers.
//!
//! # Numerics
//!
//! Notation: `u = 2^-24`, logit `x = scale * q.k`, `N` keys. Rows of queries and keys are finite with a norm below
//! [`MAX_NORM`](crate::MAX_NORM), values are finite and below `2^63` in magnitude, and `scale` is finite and not
//! negative. Then no step overflows, no NaN arises, and the output is the attention of the given values with
//!
//! * scores that are off by at most `c u sum |q_i k_i|`: `c = ceil(D/16) + 4` in decode, whose scores are the canonical
//!   ones, and `c = D` in prefill, where a score is one chain of fused steps;
//! * weights that are off by at most `5 u` of the largest: `4 u` is the relative error of the exponential, and its argument
//!   `t = scale * (max - s)` rounds twice, which moves a weight by `2 u t exp(-t) < u`. Weights below `exp(-87)` of the
//!   largest are dropped;
//! * sums of weights and of weighted values that are each off by at most `(B + F + N/(B F) + 4) u max |v|` in units of
//!   the output: blocks of `B` keys are summed from zero, `F` blocks into a fold, folds into the total (decode: 16 and
//!   64; prefill: 64 and 32). One running sum could be off by `N u`, and constant values do come near that.
//!
//! These are worst cases. Measured against f64 on noise, 2048 keys, `D` from 64 to 256: within `5e-6 max |v|` with logits up
//! to 25 (decode `1e-6`), `3e-5` up to 90 (decode `4e-6`); from there on the rounding of the scores decides alone.
//!
//! Weights are relative to the largest *score* of a call, `exp(scale * (s - max))`. Scores are below `2^126 (1 + tiny)` in
//! magnitude, so the difference is finite whatever the scale, and the largest weight is exactly 1: the sum is never 0.
//!
//! All kernels give the same bits.
//!
//! # Precision
//!
//! Keys and values of 16 bits are widened, which is exact: the result is that of the widened rows, bit for bit. Decode does it in
//! registers and reads half the bytes; prefill widens a block of keys at a time into its scratch, once for 48 rows of queries.

mod decode;
pub(crate) mod portable;
mod prefill;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
pub(crate) mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use half::{bf16, f16};

use crate::{Kernel, SoftmaxState, StoredSlice};

/// What all rows of an attention head have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseShape {
    /// Values in a query or key row, `D`; at least 1.
    pub dim: usize,
    /// Values in a value row, `Dv`.
    pub value_dim: usize,
    /// Softmax scale: a logit is `scale` times a score. Finite, not negative.
    pub scale: f32,
}

/// A contiguous run of keys and their values, both stored in the same precision.
#[derive(Clone, Copy, Debug)]
pub struct KeyRun<'a> {
    /// `[n][D]`.
    pub keys: StoredSlice<'a>,
    /// `[n][Dv]`.
    pub values: StoredSlice<'a>,
    holder: Option<(&'a dyn RowHolder, usize)>,
}

/// Holds rows some of which are on disk, and is told when those of a run are about to be read, and when they were.
pub trait RowHolder: std::fmt::Debug + Sync {
    /// The rows at `positions` are read next.
    fn will_need(&self, positions: Range<usize>);

    /// The rows at `positions` were read.
    fn forget(&self, positions: Range<usize>);
}

impl<'a> KeyRun<'a> {
    /// A run of `keys` and `values`.
    pub fn new(keys: impl Into<StoredSlice<'a>>, values: impl Into<StoredSlice<'a>>) -> Self {
        Self {
            keys: keys.into(),
            values: values.into(),
            holder: None,
        }
    }

    /// Has `holder` told when the run is read, whose first row it holds at position `start`. Only
    /// [`dense_prefill_into`](Kernel::dense_prefill_into) does: a decode reads one run, around which its caller knows what happens.
    #[must_use]
    pub fn held_by(self, holder: &'a dyn RowHolder, start: usize) -> Self {
        Self {
            holder: Some((holder, start)),
            ..self
        }
    }
}

/// Where the row of a query position and head starts in a slice: at `position * l + head * g`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowStrides {
    /// Elements from one position to the next.
    pub position: usize,
    /// Elements from one head to the next.
    pub head: usize,
}

impl RowStrides {
    /// Rows of `dim` values in a tensor `[L, heads, dim]`.
    pub fn position_major(heads: usize, dim: usize) -> Self {
        Self {
            position: heads * dim,
            head: dim,
        }
    }

    /// Rows of `dim` values in a tensor `[heads, len, dim]`.
    pub fn head_major(len: usize, dim: usize) -> Self {
        Self {
            position: dim,
            head: len * dim,
        }
    }

    /// Start of row `row`, which is head `row % heads` of position `row / heads`.
    fn start(self, row: usize, heads: usize) -> usize {
        (row / heads) * self.position + (row % heads) * self.head
    }

    /// Elements that a slice needs so that every row of `dim` values lies inside.
    fn extent(self, positions: usize, heads: usize, dim: usize) -> usize {
        (positions - 1) * self.position + (heads - 1) * self.head + dim
    }
}

/// The queries of a prefill: `len` positions from `start`, `heads` rows each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryBlock {
    /// Position of the first query: it sees `start + 1` keys, the next one more, and so on.
    pub start: usize,
    /// Positions, `L`.
    pub len: usize,
    /// Query heads that share the KV head, `G`.
    pub heads: usize,
    /// Where query rows lie.
    pub queries: RowStrides,
    /// Where output rows lie. Rows that overlap overwrite one another.
    pub out: RowStrides,
}

/// Which keys a prefill is given, and how many of them a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWindow {
    /// Position of the first key of the runs.
    pub base: usize,
    /// Keys that a query sees at most, its own included: the query at position `p` sees `p + 1 - len ..= p`. At least 1.
    pub len: usize,
}

impl KeyWindow {
    /// Every key, from the first one on.
    pub const ALL: Self = Self {
        base: 0,
        len: usize::MAX,
    };
}

/// Buffers of the dense kernels: reuse one, and only its first use with the largest shape allocates.
#[derive(Clone, Debug)]
pub struct DenseScratch {
    lines: Vec<Aligned>,
    partial: SoftmaxState,
}

/// One cache line of values.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Aligned([f32; 16]);

impl Default for DenseScratch {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            partial: SoftmaxState::new(0),
        }
    }
}

impl DenseScratch {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// At least `len` values, aligned to a cache line, whose contents are of no meaning; and a spare state.
    fn buffers(&mut self, len: usize) -> (&mut [f32], &mut SoftmaxState) {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Aligned([0.0; 16]));
        }
        // SAFETY: an `Aligned` is sixteen initialised values without padding, and the slice borrows `self.lines`.
        let values = unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16)
        };
        (values, &mut self.partial)
    }
}

/// Where a maximum of scores starts: below every score, whose magnitude is at most `2^126 (1 + tiny)`, and near enough to
/// 0 that its distance to any of them is finite. `-inf` would make a NaN of `scale * (max - max)`, or of 0 times it.
const BELOW_ALL: f32 = -1.701_411_8e38; // -2^127

/// Splits `len` values off the front of `rest`.
#[inline(always)]
fn carve<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(len);
    *rest = back;
    front
}

/// Calls a generic kernel with the token of `$kernel`, inside a function that has its target features.
macro_rules! with_simd {
    ($kernel:expr, $name:ident($($argument:ident: $type:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn on_avx2(token: crate::Avx2, $($argument: $type),*) {
            $name(token, $($argument),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
        fn on_avx512(token: crate::Avx512, $($argument: $type),*) {
            $name(token, $($argument),*)
        }
        match $kernel {
            Kernel::Scalar => $name($crate::dense::portable::Portable, $($argument),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the machine has AVX2, FMA and F16C.
            Kernel::Avx2(token) => unsafe { on_avx2(token, $($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the machine has AVX2, FMA, F16C and AVX-512 F, BW, VL and DQ.
            Kernel::Avx512(token) => unsafe { on_avx512(token, $($argument),*) },
        }
    }};
}
pub(crate) use with_simd;

impl DenseShape {
    /// Rows of `run`.
    fn rows(&self, run: &KeyRun<'_>) -> usize {
        let rows = run.keys.len() / self.dim;
        assert_eq!(
            run.keys.len(),
            rows * self.dim,
            "keys are whole rows of {}",
            self.dim
        );
        assert_eq!(
            run.values.len(),
            rows * self.value_dim,
            "one value row of {} a key",
            self.value_dim
        );
        assert_eq!(
            run.keys.precision(),
            run.values.precision(),
            "keys and values are stored alike"
        );
        rows
    }

    fn check(&self) {
        assert!(self.dim > 0, "rows have at least one value");
        assert!(
            self.scale.is_finite() && self.scale >= 0.0,
            "scale {} is finite and not negative",
            self.scale
        );
    }
}

impl Kernel {
    /// Adds the attention of each query over all keys of `run` to its state.
    ///
    /// A cache of several segments is a sequence of calls, in any order; or each range has states of its own, which are
    /// [merged](SoftmaxState::merge). [`SoftmaxState::finish_into`] then gives the output.
    ///
    /// # Shapes
    ///
    /// `queries`: `[G][D]`, `states`: `G`, each with `Dv` values.
    ///
    /// # Numerics
    ///
    /// As under [the module](self); the same bits on every kernel. Scores are the canonical ones, and
    /// `scale * score` enters `max` of the state rounded, which adds `u |max|` to the relative error of the weight that
    /// one call's keys have against another's. Logits beyond the range of `f32` saturate there: calls that both saturate weigh alike.
    ///
    /// # Complexity
    ///
    /// `2 G (D + Dv)` flop a key. Keys and values are each read once, in order: with rows that lie in no cache it is as
    /// fast as reading them. Measured on one core of a Zen 4 against one load a cache line of the same bytes, rows of 64,
    /// 96 and 128: 0.9 or more with up to four queries, on AVX2 and AVX-512. Eight queries are bound by the multipliers:
    /// 0.6 to 0.85 with AVX-512, 0.5 with AVX2. Rows of 16 bits have half the bytes for the same arithmetic: with AVX-512 one query runs at
    /// the speed of memory, and three in 0.75 of the time of f32 rows on one core, 0.55 where two cores share the memory.
    ///
    /// # Panics
    ///
    /// If a length does not fit `shape`, keys and values differ in precision, `dim` is 0, or `scale` is negative or not finite.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::dense::{DenseScratch, DenseShape, KeyRun};
    /// use hira_kernels::{Kernel, SoftmaxState};
    ///
    /// let shape = DenseShape { dim: 2, value_dim: 1, scale: 1.0 };
    /// let keys = [0.0, 0.0, 3.0f32.ln(), 0.0]; // logits 0 and ln 3: weights 1/4 and 3/4
    /// let run = KeyRun::new(&keys, &[1.0f32, 5.0]);
    /// let mut states = [SoftmaxState::new(1)];
    /// Kernel::best().dense_decode_into(&[1.0, 0.0], run, shape, &mut states, &mut DenseScratch::new());
    /// let mut out = [0.0];
    /// states[0].finish_into(&mut out);
    /// assert!((out[0] - 4.0).abs() < 1e-5);
    /// ```
    pub fn dense_decode_into(
        self,
        queries: &[f32],
        run: KeyRun<'_>,
        shape: DenseShape,
        states: &mut [SoftmaxState],
        scratch: &mut DenseScratch,
    ) {
        use decode::decode;
        shape.check();
        let rows = shape.rows(&run);
        assert_eq!(
            queries.len(),
            states.len() * shape.dim,
            "one query of {} a state",
            shape.dim
        );
        for state in states.iter() {
            assert_eq!(
                state.acc.len(),
                shape.value_dim,
                "a state holds one value row"
            );
        }
        if rows == 0 || states.is_empty() {
            return;
        }
        match (run.keys, run.values) {
            (StoredSlice::F32(keys), StoredSlice::F32(values)) => {
                let rows = [keys, values];
                with_simd!(
                    self,
                    decode(queries: &[f32], rows: [&[f32]; 2], shape: DenseShape, states: &mut [SoftmaxState], scratch: &mut DenseScratch)
                );
            }
            (StoredSlice::F16(keys), StoredSlice::F16(values)) => {
                let rows = [keys, values];
                with_simd!(
                    self,
                    decode(queries: &[f32], rows: [&[f16]; 2], shape: DenseShape, states: &mut [SoftmaxState], scratch: &mut DenseScratch)
                );
            }
            (StoredSlice::Bf16(keys), StoredSlice::Bf16(values)) => {
                let rows = [keys, values];
                with_simd!(
                    self,
                    decode(queries: &[f32], rows: [&[bf16]; 2], shape: DenseShape, states: &mut [SoftmaxState], scratch: &mut DenseScratch)
                );
            }
            // `shape.rows` has refused these.
            _ => {}
        }
    }

    /// Causal attention: the query at position `p` attends to keys `0..=p` of the runs, laid end to end.
    ///
    /// Keys past the last query's position are not read, so ranges of queries may share one list of runs.
    ///
    /// # Shapes
    ///
    /// `queries`: rows of `D` where `block.queries` says, `out`: rows of `Dv` where `block.out` says; every one of the
    /// `L * G` rows of `out` is written, and nothing between them.
    ///
    /// # Numerics
    ///
    /// As under [the module](self); the same bits on every kernel. How the keys are cut into runs and which queries come
    /// together decides where blocks begin, and so the last bits.
    ///
    /// # Complexity
    ///
    /// `2 G (D + Dv)` flop a visible pair of positions, and one transposition of the queries. Runs much shorter than 64
    /// keys cost more a key. Measured on one core of a Zen 4, `D = Dv = 64`, 2048 to 8192 tokens: 0.77 of the peak of the
    /// multipliers with AVX-512, 0.69 with AVX2.
    ///
    /// # Panics
    ///
    /// If the runs hold fewer than `start + L` keys, a row of `queries` or `out` lies outside, a length does not fit
    /// `shape`, keys and values of a run differ in precision, `dim` is 0, or `scale` is negative or not finite.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Kernel;
    /// use hira_kernels::dense::{DenseScratch, DenseShape, KeyRun, QueryBlock, RowStrides};
    ///
    /// // With scale 0 every visible key weighs the same: running means.
    /// let shape = DenseShape { dim: 1, value_dim: 1, scale: 0.0 };
    /// let runs = [KeyRun::new(&[1.0f32, 2.0], &[6.0f32, 2.0]), KeyRun::new(&[3.0f32], &[1.0f32])];
    /// let rows = RowStrides::position_major(1, 1);
    /// let block = QueryBlock { start: 1, len: 2, heads: 1, queries: rows, out: rows };
    /// let mut out = [0.0; 2];
    /// Kernel::best().dense_prefill_into(&[1.0, 1.0], &runs, shape, block, &mut out, &mut DenseScratch::new());
    /// assert_eq!(out, [4.0, 3.0]);
    /// ```
    pub fn dense_prefill_into(
        self,
        queries: &[f32],
        runs: &[KeyRun<'_>],
        shape: DenseShape,
        block: QueryBlock,
        out: &mut [f32],
        scratch: &mut DenseScratch,
    ) {
        self.dense_window_prefill_into(queries, runs, KeyWindow::ALL, shape, block, out, scratch);
    }

    /// As [`dense_prefill_into`](Self::dense_prefill_into), with queries that see a window of the last keys, and runs that need not begin at
    /// position 0.
    ///
    /// # Complexity
    ///
    /// That of the keys that are seen, and of up to 63 more a run and 48 rows: blocks of keys that no row sees are passed over.
    ///
    /// # Panics
    ///
    /// As `dense_prefill_into`; if the window is empty, or the runs begin after a key that the first query sees.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Kernel;
    /// use hira_kernels::dense::{DenseScratch, DenseShape, KeyRun, KeyWindow, QueryBlock, RowStrides};
    ///
    /// // With scale 0 every visible key weighs the same: means of the last two.
    /// let shape = DenseShape { dim: 1, value_dim: 1, scale: 0.0 };
    /// let runs = [KeyRun::new(&[1.0f32, 2.0, 3.0], &[6.0f32, 2.0, 1.0])];
    /// let rows = RowStrides::position_major(1, 1);
    /// let block = QueryBlock { start: 1, len: 2, heads: 1, queries: rows, out: rows };
    /// let window = KeyWindow { base: 0, len: 2 };
    /// let mut out = [0.0; 2];
    /// let scratch = &mut DenseScratch::new();
    /// Kernel::best().dense_window_prefill_into(&[1.0, 1.0], &runs, window, shape, block, &mut out, scratch);
    /// assert_eq!(out, [4.0, 1.5]);
    /// ```
    #[expect(
        clippy::too_many_arguments,
        reason = "those of a prefill, and the window"
    )]
    pub fn dense_window_prefill_into(
        self,
        queries: &[f32],
        runs: &[KeyRun<'_>],
        window: KeyWindow,
        shape: DenseShape,
        block: QueryBlock,
        out: &mut [f32],
        scratch: &mut DenseScratch,
    ) {
        use prefill::prefill;
        shape.check();
        let stored: usize = runs.iter().map(|run| shape.rows(run)).sum();
        let QueryBlock {
            start, len, heads, ..
        } = block;
        if len == 0 || heads == 0 {
            return;
        }
        assert!(window.len > 0, "a query sees at least its own key");
        assert!(
            window.base <= (start + 1).saturating_sub(window.len),
            "the first query sees keys before {}",
            window.base
        );
        assert!(
            start + len <= window.base + stored,
            "{stored} keys, but the last query is at position {}",
            start + len - 1
        );
        assert!(
            block.queries.extent(len, heads, shape.dim) <= queries.len(),
            "every query row lies inside"
        );
        assert!(
            block.out.extent(len, heads, shape.value_dim) <= out.len(),
            "every output row lies inside"
        );
        let keys = (runs, window);
        with_simd!(
            self,
            prefill(queries: &[f32], keys: (&[KeyRun<'_>], KeyWindow), shape: DenseShape, block: QueryBlock, out: &mut [f32], scratch: &mut DenseScratch)
        );
    }
}
