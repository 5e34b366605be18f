//! The launches of a decode step.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::attend::attend;
use super::bounds::LOWEST;
use super::combine::{MAX_PARTS, combine};
use super::dense::dense;
use super::marks::{CHUNK_WORDS, mark};
use super::mass::{mass_histogram, mass_reference, mass_threshold};
use super::rows::{StridesLaunch, argument};
use super::scan::scan;
use super::shape::{CHUNK, KEYS, UNITS};
use super::splits::{BUSY, Splits};
use super::staged::Staged;
use super::survivors::survivors;
use super::threshold::{settle_top, threshold_fixed, threshold_top};
use super::{
    DecodeParams, DeviceError, DeviceLayer, DeviceRows, DeviceRule, DeviceShape, DeviceWorkspace,
};

/// Groups of keys for each key that is looked for, at least: the threshold then lies little below the best one.
const SPARE: usize = 4;

/// Survivors of a cube of the attention, about.
const ATTENDED: usize = 64;

/// Keys of a dense cube, at least.
const DENSE_RUN: usize = 256;

/// Keys of a head that a dense step brings from main memory at a time, about, and the most rows a head for which a sparse step brings survivors where
/// a layer is short.
const BROUGHT: usize = 4 * CHUNK;

/// Of the rows in main memory one in so many is brought for a sparse step at most. More are not fewer bytes than all of them in a row.
const BROUGHT_SHARE: usize = 4;

/// What a step attended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    /// The keys that its rule selects, sinks and window.
    Selected,
    /// Every key.
    Everything,
}

/// Attends to the keys that a rule selects, to sinks and to the window.
///
/// # Shapes
///
/// `queries`: `[B, Hkv * G, 1, D]`, `out`: `[B, Hkv * G, 1, Dv]`, the queries of a KV head one after another without a gap. `heads_per_batch` and
/// strides are those of KV heads: contiguous queries are `DeviceRows::contiguous(handle, element, Hkv, 1, G * D)`.
///
/// # Numerics
///
/// Every key whose exact score is proven to matter is scored in the host's canonical order and selected by that score; see the module's
/// documentation. The certificate of each query holds in exact arithmetic over the stored keys and values.
///
/// The answer is the same for the same layer, query and device: nothing depends on the order in which cubes finish.
///
/// # Errors
///
/// [`DeviceError::Empty`], [`DeviceError::Parameter`], [`DeviceError::Workspace`] or [`DeviceError::Buffer`], before anything is launched.
///
/// # Complexity
///
/// 5 to 7 launches; no allocation and no synchronisation. Reads `D + 4` bytes a key for every head, 8 bytes a query and key, and the survivors.
///
/// # Rows in main memory
///
/// A layer whose exact rows lie there has one launch more and waits for the device once, between threshold and survivors: it reads one bit a key
/// and head (and the rows that were appended since), gathers the marked rows, each once for its whole group, and sends them in one copy with
/// `len / 8` bytes a head that say where each lies. What is selected is the same. If more than a quarter of the rows are marked (and more than 4096 a
/// head), the step attends to every key instead, as [`decode_dense`] does, and says so.
pub fn decode<R: Runtime>(
    client: &ComputeClient<R>,
    layer: &mut DeviceLayer<R>,
    work: &mut DeviceWorkspace<R>,
    queries: &DeviceRows,
    out: &DeviceRows,
    params: &DecodeParams,
) -> Result<Attended, DeviceError> {
    params.check()?;
    let mut step = Step::new(client, layer, work, queries, out)?;
    let splits = Splits::new(&step.shape, step.layer.len());
    step.scan(&splits);
    let expected = step.threshold(&splits, params);
    let rows = match step.layer.device_rows() {
        Some(rows) => Rows::Device(rows),
        None => match step.bring(&splits, params)? {
            Some(staged) => Rows::Staged(staged),
            None => {
                step.dense_from_host(params.scale)?;
                return Ok(Attended::Everything);
            }
        },
    };
    step.survivors(&splits, params, &rows);
    if let Settled::Top(k) = expected {
        step.settle(&splits, k);
    }
    let parts = step.attend(&splits, params, expected, &rows);
    step.combine(parts, splits.count, params.scale, false, params.compensate);
    Ok(Attended::Selected)
}

/// Attends to all keys.
///
/// # Shapes
///
/// As [`decode`].
///
/// # Errors
///
/// As [`decode`].
///
/// # Complexity
///
/// 2 launches; no allocation and no synchronisation. Reads every key and value once for all queries of its head. Rows in main memory are brought
/// about 4096 a head at a time, a launch each; what is still on its way there from the device is waited for.
pub fn decode_dense<R: Runtime>(
    client: &ComputeClient<R>,
    layer: &mut DeviceLayer<R>,
    work: &mut DeviceWorkspace<R>,
    queries: &DeviceRows,
    out: &DeviceRows,
    scale: f32,
) -> Result<(), DeviceError> {
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(DeviceError::Parameter);
    }
    let mut step = Step::new(client, layer, work, queries, out)?;
    let Some(rows) = step.layer.device_rows() else {
        return step.dense_from_host(scale);
    };
    let len = step.layer.len();
    let run = step.dense_run(BUSY.div_ceil(step.shape.heads).clamp(1, MAX_PARTS));
    let parts = len.div_ceil(run);
    let piece = Piece {
        rows,
        len,
        capacity: step.layer.capacity(),
        first_part: 0,
    };
    step.dense(&piece, scale, run, parts);
    step.combine(parts, 0, scale, true, false);
    Ok(())
}

/// Exact rows that a sparse step reads.
enum Rows {
    /// At their positions.
    Device([Handle; 2]),
    /// Brought for this step.
    Staged(Staged),
}

impl Rows {
    fn is_staged(&self) -> bool {
        matches!(self, Rows::Staged(_))
    }

    /// Keys, values, and the ranks of words of marks; something that is not read where there are none.
    fn handles(&self) -> [&Handle; 3] {
        match self {
            Rows::Device([keys, values]) => [keys, values, keys],
            Rows::Staged(staged) => [&staged.keys, &staged.values, &staged.ranks],
        }
    }
}

/// Exact rows of neighbouring positions that a dense launch reads, `[heads][capacity]`, and the first part that it writes.
struct Piece {
    rows: [Handle; 2],
    len: usize,
    capacity: usize,
    first_part: usize,
}

/// What a threshold leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// Nothing: every key that reaches it is selected.
    All,
    /// So many of the highest scores are selected.
    Top(usize),
}

/// One step's arguments, checked.
struct Step<'a, R: Runtime> {
    client: &'a ComputeClient<R>,
    layer: &'a mut DeviceLayer<R>,
    work: &'a DeviceWorkspace<R>,
    queries: &'a DeviceRows,
    out: &'a DeviceRows,
    shape: DeviceShape,
}

impl<'a, R: Runtime> Step<'a, R> {
    fn new(
        client: &'a ComputeClient<R>,
        layer: &'a mut DeviceLayer<R>,
        work: &'a mut DeviceWorkspace<R>,
        queries: &'a DeviceRows,
        out: &'a DeviceRows,
    ) -> Result<Self, DeviceError> {
        let shape = layer.shape();
        if layer.is_empty() {
            return Err(DeviceError::Empty);
        }
        if work.shape() != shape {
            return Err(DeviceError::Workspace);
        }
        queries.check(shape.heads, 1, shape.group * shape.dim)?;
        out.check(shape.heads, 1, shape.group * shape.value_dim)?;
        work.reserve(client, layer.len())?;
        Ok(Self {
            client,
            layer,
            work,
            queries,
            out,
            shape,
        })
    }

    fn strides(rows: &DeviceRows) -> StridesLaunch<R> {
        let [batch, head, token] = rows.strides.map(|stride| stride as u32);
        StridesLaunch::new(batch, head, token)
    }

    fn query_argument(&self) -> ArrayArg<R> {
        argument(&self.queries.handle, self.queries.element.size())
    }

    /// `[queries]` cubes.
    fn by_query(&self) -> CubeCount {
        CubeCount::Static(self.shape.queries() as u32, 1, 1)
    }

    /// `[splits, queries]` cubes.
    fn by_split(&self, splits: usize) -> CubeCount {
        CubeCount::Static(splits as u32, self.shape.queries() as u32, 1)
    }

    fn scan(&self, splits: &Splits) {
        scan::launch(
            self.client,
            CubeCount::Static(splits.chunks as u32, self.shape.heads as u32, 1),
            CubeDim::new_1d(UNITS),
            self.query_argument(),
            self.layer.centre(),
            self.layer.codes(),
            self.layer.parameters(),
            self.work.estimates(),
            self.work.maxima(),
            self.work.constants(),
            self.work.faults(),
            Self::strides(self.queries),
            self.queries.heads_per_batch as u32,
            self.layer.len() as u32,
            self.layer.capacity() as u32,
            self.work.capacity() as u32,
            self.shape.group,
            self.shape.dim,
            self.queries.element,
        );
    }

    fn threshold(&self, splits: &Splits, params: &DecodeParams) -> Settled {
        let len = self.layer.len();
        match params.rule {
            DeviceRule::AtLeast(tau) => self.fixed(tau.clamp(LOWEST, f32::MAX)),
            DeviceRule::Top(0) => self.fixed(f32::MAX),
            DeviceRule::Top(k) if k >= len => self.fixed(LOWEST),
            DeviceRule::Top(k) => self.top(splits, k),
            DeviceRule::Mass(share) if share <= 0.0 => self.fixed(LOWEST),
            DeviceRule::Mass(share) if share >= 1.0 => self.top(splits, 1),
            DeviceRule::Mass(share) => self.mass(splits, share, params.scale),
        }
    }

    fn fixed(&self, tau: f32) -> Settled {
        let queries = self.shape.queries() as u32;
        threshold_fixed::launch(
            self.client,
            CubeCount::Static(queries.div_ceil(UNITS), 1, 1),
            CubeDim::new_1d(UNITS),
            self.work.cuts(),
            tau,
        );
        Settled::All
    }

    fn top(&self, splits: &Splits, k: usize) -> Settled {
        let maxima = splits.chunks * CHUNK / KEYS;
        let fold = [8, 4, 2, 1]
            .into_iter()
            .find(|fold| maxima / fold >= SPARE * k);
        let entries = if fold.is_some() {
            maxima
        } else {
            self.layer.len()
        };
        threshold_top::launch(
            self.client,
            self.by_query(),
            CubeDim::new_1d(UNITS),
            self.work.estimates(),
            self.work.maxima(),
            self.layer.parameters(),
            self.work.constants(),
            self.work.cuts(),
            k as u32,
            entries as u32,
            fold.unwrap_or(0) as u32,
            self.layer.capacity() as u32,
            self.work.capacity() as u32,
            self.shape.group,
        );
        Settled::Top(k)
    }

    fn mass(&self, splits: &Splits, share: f32, scale: f32) -> Settled {
        let dim = CubeDim::new_1d(UNITS);
        mass_reference::launch(
            self.client,
            self.by_query(),
            dim,
            self.work.maxima(),
            self.work.cuts(),
            self.work.bins(),
            (splits.chunks * CHUNK / KEYS) as u32,
            (self.work.capacity() / KEYS) as u32,
        );
        mass_histogram::launch(
            self.client,
            self.by_split(splits.count),
            dim,
            self.work.estimates(),
            self.layer.parameters(),
            self.work.constants(),
            self.work.cuts(),
            self.work.bins(),
            scale,
            self.layer.len() as u32,
            splits.keys() as u32,
            self.layer.capacity() as u32,
            self.work.capacity() as u32,
            self.shape.group,
        );
        // Of all that there is, `share` may be dropped: `share / (1 - share)` of what is kept.
        let ratio = (f64::from(share) / (1.0 - f64::from(share)) * (1.0 - 1e-6)) as f32;
        mass_threshold::launch(
            self.client,
            self.by_query(),
            dim,
            self.work.bins(),
            self.work.cuts(),
            scale,
            ratio,
        );
        Settled::All
    }

    /// The first position of the window.
    fn window_start(&self, params: &DecodeParams) -> u32 {
        self.layer.len().saturating_sub(params.window) as u32
    }

    /// Brings the survivors of all queries from main memory, if they are few enough. Waits for the device.
    fn bring(
        &mut self,
        splits: &Splits,
        params: &DecodeParams,
    ) -> Result<Option<Staged>, DeviceError> {
        mark::launch(
            self.client,
            CubeCount::Static(splits.chunks as u32, self.shape.heads as u32, 1),
            CubeDim::new_1d(UNITS),
            self.work.estimates(),
            self.layer.parameters(),
            self.work.constants(),
            self.work.cuts(),
            self.work.marks(),
            params.sinks.min(u32::MAX as usize) as u32,
            self.window_start(params),
            self.layer.len() as u32,
            self.layer.capacity() as u32,
            self.work.capacity() as u32,
            self.shape.group,
        );
        let words = self.shape.heads * splits.chunks * CHUNK_WORDS;
        let most = (self.layer.len() / BROUGHT_SHARE).max(BROUGHT) * self.shape.heads;
        let marks = self.work.marks_handle(words);
        self.layer.stage(self.client, marks, most)
    }

    fn survivors(&self, splits: &Splits, params: &DecodeParams, rows: &Rows) {
        let [keys, _, ranks] = rows.handles();
        survivors::launch(
            self.client,
            self.by_split(splits.count),
            CubeDim::new_1d(UNITS),
            self.query_argument(),
            argument(keys, 16),
            self.layer.means(),
            self.layer.parameters(),
            self.work.estimates(),
            self.work.constants(),
            self.work.cuts(),
            self.work.positions(),
            self.work.scores(),
            self.work.counts(),
            self.work.tails(),
            self.work.marks(),
            argument(ranks, 4),
            Self::strides(self.queries),
            self.queries.heads_per_batch as u32,
            params.scale,
            params.sinks.min(u32::MAX as usize) as u32,
            self.window_start(params),
            self.layer.len() as u32,
            splits.chunks_each as u32,
            self.layer.capacity() as u32,
            self.work.capacity() as u32,
            self.shape.group,
            self.shape.dim,
            self.shape.value_dim,
            self.shape.precision,
            params.compensate,
            rows.is_staged(),
            self.queries.element,
        );
    }

    fn settle(&self, splits: &Splits, k: usize) {
        settle_top::launch(
            self.client,
            self.by_query(),
            CubeDim::new_1d(UNITS),
            self.work.scores(),
            self.work.positions(),
            self.work.counts(),
            self.work.cuts(),
            k as u32,
            splits.count as u32,
            splits.keys() as u32,
            self.work.capacity() as u32,
        );
    }

    fn attend(
        &self,
        splits: &Splits,
        params: &DecodeParams,
        settled: Settled,
        rows: &Rows,
    ) -> usize {
        let [_, values, ranks] = rows.handles();
        let likely = match settled {
            Settled::Top(k) => k + params.sinks + params.window,
            Settled::All => self.layer.len(),
        };
        let wanted = likely.div_ceil(ATTENDED).clamp(1, splits.count);
        let lists = splits.count.div_ceil(wanted);
        let parts = splits.count.div_ceil(lists);
        attend::launch(
            self.client,
            self.by_split(parts),
            CubeDim::new_1d(UNITS),
            argument(values, 16),
            self.layer.means(),
            self.work.positions(),
            self.work.scores(),
            self.work.counts(),
            self.work.tails(),
            self.work.cuts(),
            self.work.parts(),
            self.work.marks(),
            argument(ranks, 4),
            params.scale,
            params.sinks.min(u32::MAX as usize) as u32,
            self.window_start(params),
            self.layer.len() as u32,
            lists as u32,
            splits.count as u32,
            splits.keys() as u32,
            self.layer.capacity() as u32,
            self.work.capacity() as u32,
            self.shape.group,
            self.shape.value_dim,
            self.shape.precision,
            params.compensate,
            rows.is_staged(),
        );
        parts
    }

    /// Attends to all keys, whose rows lie in main memory: as many at a time as make whole parts.
    fn dense_from_host(&mut self, scale: f32) -> Result<(), DeviceError> {
        self.layer.settle_rows(self.client)?;
        let len = self.layer.len();
        let run = self.dense_run(MAX_PARTS);
        let parts = len.div_ceil(run);
        let each = (BROUGHT / run).max(1);
        for first_part in (0..parts).step_by(each) {
            let tokens = first_part * run..((first_part + each) * run).min(len);
            let len = tokens.len();
            let rows = self.layer.sent_rows(self.client, tokens);
            let piece = Piece {
                rows: rows.ok_or(DeviceError::Read)?,
                len,
                capacity: len,
                first_part,
            };
            self.dense(&piece, scale, run, parts);
        }
        self.combine(parts, 0, scale, true, false);
        Ok(())
    }

    /// Keys of a part if there are to be so many.
    fn dense_run(&self, parts: usize) -> usize {
        let run = self.layer.len().div_ceil(parts).max(DENSE_RUN);
        run.next_multiple_of(UNITS as usize / 4)
    }

    fn dense(&self, piece: &Piece, scale: f32, run: usize, parts: usize) {
        let [keys, values] = &piece.rows;
        dense::launch(
            self.client,
            CubeCount::Static(piece.len.div_ceil(run) as u32, self.shape.heads as u32, 1),
            CubeDim::new_1d(UNITS),
            self.query_argument(),
            argument(keys, 16),
            argument(values, 16),
            self.work.parts(),
            self.work.constants(),
            Self::strides(self.queries),
            self.queries.heads_per_batch as u32,
            scale,
            piece.len as u32,
            run as u32,
            piece.capacity as u32,
            piece.first_part as u32,
            parts as u32,
            self.shape.group,
            self.shape.dim,
            self.shape.value_dim,
            self.shape.precision,
            self.queries.element,
        );
    }

    fn combine(&self, parts: usize, splits: usize, scale: f32, dense: bool, compensate: bool) {
        combine::launch(
            self.client,
            self.by_query(),
            CubeDim::new_1d(UNITS),
            self.work.parts(),
            self.work.tails(),
            self.work.cuts(),
            self.work.constants(),
            self.layer.norms(),
            argument(&self.out.handle, self.out.element.size()),
            self.work.certificates_out(),
            Self::strides(self.out),
            self.out.heads_per_batch as u32,
            scale,
            parts as u32,
            splits as u32,
            self.layer.len() as u32,
            self.shape.group,
            self.shape.value_dim,
            dense,
            compensate,
            self.out.element,
        );
    }
}
