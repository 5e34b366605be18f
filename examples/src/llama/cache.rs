use hira_attention::{AttentionError, AttentionReport, Metrics};
use hira_cache::{CacheInfo, HiraCache};

use super::LlamaError;

/// The keys and values of one sequence, and what its attention reported.
///
/// Made by [`Llama::new_cache`](super::Llama::new_cache). Cloning forks the sequence: what is sealed is shared, not copied.
#[derive(Debug, Clone)]
pub struct LlamaCache {
    store: HiraCache,
    /// Tokens processed: a processor of one's own may keep keys and values elsewhere.
    len: usize,
    metrics: Metrics,
    /// Reports whose figures are still on a device.
    pending: Vec<AttentionReport>,
}

/// A place to come back to.
#[derive(Clone)]
pub(super) struct Mark {
    len: usize,
    metrics: Metrics,
}

impl LlamaCache {
    pub(super) fn new(store: HiraCache) -> Self {
        Self {
            store,
            len: 0,
            metrics: Metrics::default(),
            pending: Vec::new(),
        }
    }

    /// The cache of a sequence whose keys and values a store has, one that was loaded for instance.
    pub fn of(store: HiraCache) -> Self {
        Self {
            len: store.len(),
            ..Self::new(store)
        }
    }

    /// Tokens processed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was processed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that there is room for.
    pub fn max_len(&self) -> usize {
        self.store.config().max_len
    }

    /// Forgets every token, and the metrics.
    pub fn reset(&mut self) {
        self.store.reset();
        self.len = 0;
        self.reset_metrics();
    }

    /// Forgets the tokens from `len` on; the metrics stay.
    ///
    /// # Errors
    ///
    /// [`LlamaError::Attention`] if a layer with a window has forgotten keys that would be seen again; nothing is then changed.
    pub fn truncate(&mut self, len: usize) -> Result<(), LlamaError> {
        self.store.truncate(len).map_err(AttentionError::from)?;
        self.len = self.len.min(len);
        Ok(())
    }

    /// Density and dropped-mass bounds of every query since the cache was made or its metrics were reset.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Starts the metrics anew, for instance after a prompt.
    pub fn reset_metrics(&mut self) {
        self.metrics = Metrics::default();
    }

    /// Shape, length and memory of the store.
    pub fn info(&self) -> CacheInfo {
        self.store.info()
    }

    /// The store of keys, values and indexes.
    pub fn store(&self) -> &HiraCache {
        &self.store
    }

    pub(super) fn store_mut(&mut self) -> &mut HiraCache {
        &mut self.store
    }

    pub(super) fn add_len(&mut self, tokens: usize) {
        self.len += tokens;
    }

    pub(super) fn record(&mut self, report: AttentionReport) {
        if report.is_pending() {
            self.pending.push(report);
        } else {
            self.metrics.add(&report);
        }
    }

    /// Reads what a device has to say about the layers of a pass: after all of them, so that none waits for it.
    pub(super) fn settle(&mut self) -> Result<(), AttentionError> {
        for mut report in self.pending.drain(..) {
            report.fetch()?;
            self.metrics.add(&report);
        }
        Ok(())
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            len: self.len(),
            metrics: self.metrics.clone(),
        }
    }

    /// Goes back, or to nothing where layers with a window have forgotten what there was.
    pub(super) fn rewind(&mut self, mark: Mark) {
        if self.truncate(mark.len).is_err() {
            self.store.reset();
            self.len = 0;
        }
        self.pending.clear();
        self.metrics = mark.metrics;
    }
}
