//! What a step did, and what is proven about it.

use crate::Certificate;

/// How a query was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeadPlan {
    /// Every visible key was attended to.
    Dense,
    /// The selected keys, the sinks and the window were attended to.
    Sparse,
}

/// One query head of one sequence in one call, over all its new tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
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
        }
    }

    pub(crate) fn add_dense(&mut self, queries: u64, visible: u64, certificate: Certificate) {
        self.plan = HeadPlan::Dense;
        self.queries += queries;
        self.dense_queries += queries;
        self.visible += visible;
        self.survivors += visible;
        self.attended += visible;
        self.worst = self.worst.worst_of(certificate);
    }

    pub(crate) fn add_sparse(
        &mut self,
        visible: usize,
        survivors: usize,
        attended: usize,
        certificate: Certificate,
    ) {
        self.plan = HeadPlan::Sparse;
        self.queries += 1;
        self.visible += visible as u64;
        self.survivors += survivors as u64;
        self.attended += attended as u64;
        self.dropped_mass_sum += f64::from(certificate.dropped_mass_bound);
        self.worst = self.worst.worst_of(certificate);
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
        if attended == visible {
            self.add_dense(1, visible as u64, certificate);
        } else {
            self.add_sparse(visible, attended, attended, certificate);
        }
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
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttentionReport {
    /// The layer.
    pub layer: usize,
    /// Keys stored after the call.
    pub stored: usize,
    /// Query heads: `sequence * Hq + head`.
    pub heads: Vec<HeadReport>,
}

impl AttentionReport {
    /// The report of an attention that is not Hira's, and says nothing about its heads.
    pub fn new(layer: usize, stored: usize) -> Self {
        Self {
            layer,
            stored,
            heads: Vec::new(),
        }
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

    fn worst(&self) -> Certificate {
        let heads = self.heads.iter().map(|head| head.worst);
        heads.fold(Certificate::default(), Certificate::worst_of)
    }
}

/// Adds up reports over layers and steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Queries, counted per head.
    pub queries: u64,
    /// Of those, answered densely.
    pub dense_queries: u64,
    visible: u64,
    survivors: u64,
    attended: u64,
    dropped_mass_sum: f64,
    output_error_sum: f64,
    output_error_count: u64,
    worst: Certificate,
}

impl Metrics {
    /// Adds one call.
    pub fn add(&mut self, report: &AttentionReport) {
        for head in &report.heads {
            self.queries += head.queries;
            self.dense_queries += head.dense_queries;
            self.visible += head.visible;
            self.survivors += head.survivors;
            self.attended += head.attended;
            self.dropped_mass_sum += head.dropped_mass_sum;
            self.output_error_sum += f64::from(head.worst.output_error_bound);
            self.output_error_count += 1;
            self.worst = self.worst.worst_of(head.worst);
        }
    }

    /// Keys attended to / visible keys.
    pub fn density(&self) -> f64 {
        ratio(self.attended, self.visible)
    }

    /// Survivors / visible keys.
    pub fn scanned_fraction(&self) -> f64 {
        ratio(self.survivors, self.visible)
    }

    /// Mean over queries of the bound on the dropped softmax mass.
    pub fn dropped_mass_bound_mean(&self) -> f64 {
        self.dropped_mass_sum / self.queries.max(1) as f64
    }

    /// Mean, over heads and calls, of the bound on the output error.
    pub fn output_error_bound_mean(&self) -> f64 {
        self.output_error_sum / self.output_error_count.max(1) as f64
    }

    /// The largest bounds.
    pub fn worst(&self) -> Certificate {
        self.worst
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 1.0;
    }
    part as f64 / whole as f64
}
