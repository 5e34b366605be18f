//! Reports added up over layers and steps.

use crate::{
    AttentionReport, BytesRead, Certificate, PhaseTimes, histogram::Histogram, report::ratio,
};

/// Adds up reports over layers and steps, in fixed memory (about 4 KiB).
#[derive(Debug, Clone, PartialEq, Default)]
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
    certified: u64,
    dropped_masses: Histogram,
    output_errors: Histogram,
    worst: Certificate,
    bytes: BytesRead,
    times: PhaseTimes,
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
            self.worst = self.worst.worst_of(head.worst);
        }
        for certificate in &report.certificates {
            self.certified += 1;
            self.output_error_sum += f64::from(certificate.output_error_bound);
            self.dropped_masses.add(certificate.dropped_mass_bound);
            self.output_errors.add(certificate.output_error_bound);
        }
        self.bytes.add(report.bytes_read());
        self.times.add(report.times());
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

    /// Mean over queries of the bound on the output error.
    pub fn output_error_bound_mean(&self) -> f64 {
        self.output_error_sum / self.certified.max(1) as f64
    }

    /// What the bound on the dropped softmax mass does not exceed for 95 % of the queries: from a histogram on a logarithmic scale, up to 1.19 times too
    /// large and never too small; nothing below `2^-40` is told apart.
    pub fn dropped_mass_bound_p95(&self) -> f32 {
        let p95 = self.dropped_masses.quantile(0.95);
        p95.min(self.worst.dropped_mass_bound)
    }

    /// As [`dropped_mass_bound_p95`](Self::dropped_mass_bound_p95), of the bound on the output error.
    pub fn output_error_bound_p95(&self) -> f32 {
        let p95 = self.output_errors.quantile(0.95);
        p95.min(self.worst.output_error_bound)
    }

    /// What was read, as [`BytesRead`] counts.
    pub fn bytes_read(&self) -> BytesRead {
        self.bytes
    }

    /// How long each phase took, if [`measure_time`](crate::HiraAttentionConfig::measure_time) asks for it.
    pub fn times(&self) -> PhaseTimes {
        self.times
    }

    /// The largest bounds.
    pub fn worst(&self) -> Certificate {
        self.worst
    }
}
