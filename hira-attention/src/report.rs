//! What a step did, and what is proven about it.

use std::time::Duration;

use hira_cache::HeadCache;
use hira_kernels::{TILE, tile_lines};
use serde::Serialize;

#[cfg(feature = "burn")]
use crate::{AttentionError, pending::Pending};
use crate::{Certificate, sparse::SparseAnswer};

/// How a query was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HeadPlan {
    /// Every visible key was attended to.
    Dense,
    /// The selected keys, the sinks and the window were attended to.
    Sparse,
}

/// Bytes that a call read, as the layout of the index says: lines of the sketch, and rows of keys and values as they are stored.
///
/// Coarse levels and product codes are left out. A row counts each time it is read, wherever it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct BytesRead {
    /// Of the sketch.
    pub sketch: u64,
    /// Of exact keys.
    pub keys: u64,
    /// Of values.
    pub values: u64,
}

impl BytesRead {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.sketch + self.keys + self.values
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.sketch += other.sketch;
        self.keys += other.keys;
        self.values += other.values;
    }

    /// Adds one reading of `rows` keys and their values.
    pub(crate) fn add_dense(&mut self, visible: usize, rows: RowBytes) {
        self.keys += visible as u64 * rows.key;
        self.values += visible as u64 * rows.value;
    }
}

/// Bytes that a key has of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowBytes {
    sketch: u64,
    key: u64,
    value: u64,
}

impl RowBytes {
    pub(crate) fn of(head: &HeadCache) -> Self {
        let (dim, element) = (head.index().dim(), head.values().precision().bytes());
        Self {
            // a tile of 16 keys is so many lines of 64 bytes
            sketch: (tile_lines(dim) * 64 / TILE) as u64,
            key: (dim * element) as u64,
            value: (head.values().dim() * element) as u64,
        }
    }
}

/// How long the phases of a call took, added up over the KV heads, which run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct PhaseTimes {
    /// Storing the new keys and values, and checking them.
    pub append: Duration,
    /// Finding the keys to attend to.
    pub search: Duration,
    /// Scores of sinks and window, softmax, values, certificates; everything of a dense answer.
    pub values: Duration,
}

impl PhaseTimes {
    pub(crate) fn add(&mut self, other: Self) {
        self.append += other.append;
        self.search += other.search;
        self.values += other.values;
    }
}

/// One query head of one sequence in one call, over all its new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadReport {
    /// The plan of the last new token.
    pub plan: HeadPlan,
    /// Queries (new tokens).
    pub queries: u64,
    /// Queries that were answered densely.
    pub dense_queries: u64,
    /// Visible keys, summed over queries.
    pub visible: u64,
    /// Keys that the rule's search scored exactly, summed over queries.
    pub survivors: u64,
    /// Keys attended to (selected, sinks and window), summed over queries.
    pub attended: u64,
    /// Sum over queries of the bound on the dropped softmax mass.
    pub dropped_mass_sum: f64,
    /// Largest proven bound on the dropped softmax mass, and on the output error (Euclidean).
    pub worst: Certificate,
    /// What was read. Rows that a group reads together are counted at its first head.
    pub bytes: BytesRead,
    /// Time of the KV head, all of it at the first head of its group; zero unless
    /// [`measure_time`](crate::HiraAttentionConfig::measure_time) asks for it.
    pub times: PhaseTimes,
}

impl Default for HeadReport {
    fn default() -> Self {
        Self::new()
    }
}

impl HeadReport {
    /// The report of no query.
    pub fn new() -> Self {
        Self {
            plan: HeadPlan::Dense,
            queries: 0,
            dense_queries: 0,
            visible: 0,
            survivors: 0,
            attended: 0,
            dropped_mass_sum: 0.0,
            worst: Certificate::default(),
            bytes: BytesRead::default(),
            times: PhaseTimes::default(),
        }
    }

    /// The report of one query: what it saw, scored and attended to, and what is proven of it, if anything.
    fn of_query(
        plan: HeadPlan,
        [visible, survivors, attended]: [usize; 3],
        certificate: Certificate,
    ) -> Self {
        let mut report = Self::new();
        report.plan = plan;
        report.count([visible, survivors, attended], certificate);
        report.dense_queries = u64::from(plan == HeadPlan::Dense);
        report
    }

    fn count(&mut self, keys: [usize; 3], certificate: Certificate) {
        let [visible, survivors, attended] = keys.map(|count| count as u64);
        self.queries += 1;
        self.visible += visible;
        self.survivors += survivors;
        self.attended += attended;
        self.dropped_mass_sum += f64::from(certificate.dropped_mass_bound);
        self.worst = self.worst.worst_of(certificate);
    }

    pub(crate) fn add_dense(&mut self, visible: usize, certificate: Certificate) {
        self.plan = HeadPlan::Dense;
        self.dense_queries += 1;
        self.count([visible; 3], certificate);
    }

    /// Adds one query; `leads` if the reading of the sketch is to be counted here.
    pub(crate) fn add_sparse(
        &mut self,
        visible: usize,
        answer: &SparseAnswer,
        leads: bool,
        rows: RowBytes,
    ) {
        self.plan = HeadPlan::Sparse;
        let certificate = answer.certificate;
        self.count([visible, answer.survivors, answer.attended], certificate);
        if leads {
            self.bytes.sketch += answer.scanned as u64 * rows.sketch;
            self.bytes.keys += answer.shared as u64 * rows.key;
        }
        self.bytes.keys += answer.scored as u64 * rows.key;
        self.bytes.values += answer.attended as u64 * rows.value;
    }

    /// Adds one query that a device answered; what it read is not counted.
    #[cfg(feature = "burn")]
    pub(crate) fn add_device(
        &mut self,
        visible: usize,
        survivors: usize,
        attended: usize,
        certificate: Certificate,
    ) {
        let plan = if attended == visible {
            HeadPlan::Dense
        } else {
            HeadPlan::Sparse
        };
        self.add(&Self::of_query(
            plan,
            [visible, survivors, attended],
            certificate,
        ));
    }

    /// Adds what later queries of the same head came to.
    pub(crate) fn add(&mut self, later: &Self) {
        self.plan = later.plan;
        self.queries += later.queries;
        self.dense_queries += later.dense_queries;
        self.visible += later.visible;
        self.survivors += later.survivors;
        self.attended += later.attended;
        self.dropped_mass_sum += later.dropped_mass_sum;
        self.worst = self.worst.worst_of(later.worst);
        self.bytes.add(later.bytes);
        self.times.add(later.times);
    }

    /// Adds what the same queries came to over other keys; `certificates` are those of everything.
    pub(crate) fn merge<'a>(
        &mut self,
        others: impl Iterator<Item = &'a Self>,
        certificates: &[Certificate],
    ) {
        for other in others {
            if other.plan == HeadPlan::Sparse {
                self.plan = HeadPlan::Sparse;
            }
            self.dense_queries = self.dense_queries.min(other.dense_queries);
            self.visible += other.visible;
            self.survivors += other.survivors;
            self.attended += other.attended;
            self.bytes.add(other.bytes);
            self.times.add(other.times);
        }
        let certificates = certificates.iter().copied();
        self.worst = certificates
            .clone()
            .fold(Certificate::default(), Certificate::worst_of);
        let dropped = certificates.map(|certificate| f64::from(certificate.dropped_mass_bound));
        self.dropped_mass_sum = dropped.sum();
    }

    /// Adds a query of an attention of one's own, which read the keys it attended to and no others.
    ///
    /// ```
    /// use hira_attention::{Certificate, HeadReport};
    ///
    /// let mut report = HeadReport::new();
    /// let mut nothing_proven = Certificate::default();
    /// nothing_proven.dropped_mass_bound = 1.0;
    /// nothing_proven.output_error_bound = f32::INFINITY;
    /// report.record(1000, 100, nothing_proven);
    /// assert_eq!(report.density(), 0.1);
    /// ```
    pub fn record(&mut self, visible: usize, attended: usize, certificate: Certificate) {
        let plan = if attended == visible {
            HeadPlan::Dense
        } else {
            HeadPlan::Sparse
        };
        self.add(&Self::of_query(
            plan,
            [visible, attended, attended],
            certificate,
        ));
    }

    /// Keys attended to / visible keys.
    pub fn density(&self) -> f64 {
        ratio(self.attended, self.visible)
    }

    /// Survivors / visible keys.
    pub fn scanned_fraction(&self) -> f64 {
        ratio(self.survivors, self.visible)
    }
}

/// One call of attention on one layer.
///
/// # On a device
///
/// A decode step on a device does not wait for it, and its report is *pending*: `heads` and `certificates` are empty, and the methods
/// give what is true without looking (a dropped mass of at most 1, an error of at most infinity, a density of at most 1). [`AttentionReport::fetch`]
/// waits for the step and fills them in. It can be called at any time, after every step or once in a hundred.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AttentionReport {
    /// The layer.
    pub layer: usize,
    /// Keys stored after the call.
    pub stored: usize,
    /// Query heads: `sequence * Hq + head`.
    pub heads: Vec<HeadReport>,
    /// What is proven of every query: `[B, Hq, L]`. Empty where nothing is.
    pub certificates: Vec<Certificate>,
    /// Time of storing the new keys and values, if [`measure_time`](crate::HiraAttentionConfig::measure_time) asks for it.
    pub append: Duration,
    /// What is still on a device.
    #[cfg(feature = "burn")]
    #[serde(skip)]
    pub(crate) pending: Option<Pending>,
}

impl AttentionReport {
    /// The report of an attention that is not Hira's, and says nothing about its heads.
    pub fn new(layer: usize, stored: usize) -> Self {
        Self {
            layer,
            stored,
            heads: Vec::new(),
            certificates: Vec::new(),
            append: Duration::ZERO,
            #[cfg(feature = "burn")]
            pending: None,
        }
    }

    /// Whether the figures are still on a device: see [`AttentionReport::fetch`].
    pub fn is_pending(&self) -> bool {
        #[cfg(feature = "burn")]
        return self.pending.is_some();
        #[cfg(not(feature = "burn"))]
        false
    }

    /// Waits for the device, if the report is of one, and fills in `heads` and `certificates`. Does nothing if they are there.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError::NonFinite`] if keys, values or queries were not finite, which a device sees only now: the cache holds zeros in
    /// the place of such a token. [`DeviceEngineError::Read`] if the device fails. The report stays pending.
    ///
    /// [`DeviceEngineError::NonFinite`]: hira_index::burn::DeviceEngineError::NonFinite
    /// [`DeviceEngineError::Read`]: hira_index::burn::DeviceEngineError::Read
    #[cfg(feature = "burn")]
    pub fn fetch(&mut self) -> Result<(), AttentionError> {
        if let Some(pending) = &self.pending {
            (self.heads, self.certificates) = pending.read()?;
            self.pending = None;
            self.trace();
        }
        Ok(())
    }

    /// Waits for the device and reads which positions the call's last token attended to, ascending, a list a query head: for
    /// checks. `None` if every key was attended to, if the report is not pending, or if the cache has gone on since.
    ///
    /// # Errors
    ///
    /// As [`AttentionReport::fetch`].
    #[cfg(feature = "burn")]
    pub fn attended(&self) -> Result<Option<Vec<Vec<u32>>>, AttentionError> {
        match &self.pending {
            Some(pending) => Ok(pending.attended()?),
            None => Ok(None),
        }
    }

    /// Back to a call that has done nothing, of `rows` query heads (`B * Hq`) with `tokens` new tokens.
    pub(crate) fn reset(&mut self, layer: usize, stored: usize, rows: usize, tokens: usize) {
        self.layer = layer;
        self.stored = stored;
        self.append = Duration::ZERO;
        #[cfg(feature = "burn")]
        {
            self.pending = None;
        }
        self.heads.clear();
        self.heads.resize(rows, HeadReport::new());
        self.certificates.clear();
        self.certificates
            .resize(rows * tokens, Certificate::default());
    }

    /// Keys attended to / visible keys, over all heads.
    pub fn density(&self) -> f64 {
        ratio(
            self.heads.iter().map(|head| head.attended).sum(),
            self.heads.iter().map(|head| head.visible).sum(),
        )
    }

    /// Survivors / visible keys, over all heads.
    pub fn scanned_fraction(&self) -> f64 {
        ratio(
            self.heads.iter().map(|head| head.survivors).sum(),
            self.heads.iter().map(|head| head.visible).sum(),
        )
    }

    /// The largest bound on the dropped softmax mass of any head and new token.
    pub fn dropped_mass_bound(&self) -> f32 {
        self.worst().dropped_mass_bound
    }

    /// The largest bound on the output error of any head and new token (Euclidean norm over a head's output).
    pub fn output_error_bound(&self) -> f32 {
        self.worst().output_error_bound
    }

    /// What all heads read.
    pub fn bytes_read(&self) -> BytesRead {
        let mut bytes = BytesRead::default();
        self.heads.iter().for_each(|head| bytes.add(head.bytes));
        bytes
    }

    /// How long each phase took; zero unless [`measure_time`](crate::HiraAttentionConfig::measure_time) asks for it.
    pub fn times(&self) -> PhaseTimes {
        let mut times = PhaseTimes {
            append: self.append,
            ..PhaseTimes::default()
        };
        self.heads.iter().for_each(|head| times.add(head.times));
        times
    }

    /// Records the call at level debug, and each head at level trace.
    pub(crate) fn trace(&self) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (bytes, times) = (self.bytes_read(), self.times());
        tracing::debug!(
            layer = self.layer,
            stored = self.stored,
            density = self.density(),
            scanned_fraction = self.scanned_fraction(),
            dropped_mass_bound = self.dropped_mass_bound(),
            output_error_bound = self.output_error_bound(),
            bytes_read = bytes.total(),
            append_us = times.append.as_micros() as u64,
            search_us = times.search.as_micros() as u64,
            values_us = times.values.as_micros() as u64,
            "attention"
        );
        for (head, report) in self.heads.iter().enumerate() {
            tracing::trace!(
                layer = self.layer,
                head,
                plan = ?report.plan,
                density = report.density(),
                scanned_fraction = report.scanned_fraction(),
                dropped_mass_bound = report.worst.dropped_mass_bound,
                output_error_bound = report.worst.output_error_bound,
                bytes_read = report.bytes.total(),
                "attention of a head"
            );
        }
    }

    fn worst(&self) -> Certificate {
        if self.is_pending() {
            return Certificate {
                dropped_mass_bound: 1.0,
                output_error_bound: f32::INFINITY,
            };
        }
        let heads = self.heads.iter().map(|head| head.worst);
        heads.fold(Certificate::default(), Certificate::worst_of)
    }
}

pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 1.0;
    }
    part as f64 / whole as f64
}
