//! What a call on a device has not been asked for yet.

use std::sync::Arc;

use hira_index::burn::{DeviceEngineError, DeviceRecord};

use crate::{Certificate, HeadReport};

/// The steps of a call, one a new token, whose figures are still on the device.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    steps: Vec<Step>,
}

/// One of them.
#[derive(Debug, Clone)]
struct Step {
    record: Arc<dyn DeviceRecord>,
    visible: usize,
}

impl PartialEq for Pending {
    /// Whether they are the same steps.
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Step, &Step)| Arc::ptr_eq(&a.record, &b.record);
        self.steps.len() == other.steps.len() && self.steps.iter().zip(&other.steps).all(same)
    }
}

impl Pending {
    /// Of so many new tokens.
    pub(crate) fn with_capacity(tokens: usize) -> Self {
        Self {
            steps: Vec::with_capacity(tokens),
        }
    }

    /// Adds the step of one new token, which saw so many keys.
    pub(crate) fn push(&mut self, record: Arc<dyn DeviceRecord>, visible: usize) {
        self.steps.push(Step { record, visible });
    }

    /// Waits for the device and reads: a report a query head, and the certificates `[B, Hq, L]`.
    pub(crate) fn read(&self) -> Result<(Vec<HeadReport>, Vec<Certificate>), DeviceEngineError> {
        let mut heads: Vec<HeadReport> = Vec::new();
        let mut certificates = Vec::new();
        let tokens = self.steps.len();
        for (token, step) in self.steps.iter().enumerate() {
            let read = step.record.read()?;
            heads.resize(read.len(), HeadReport::new());
            certificates.resize(read.len() * tokens, Certificate::default());
            for (i, (head, read)) in heads.iter_mut().zip(&read).enumerate() {
                let certificate = Certificate {
                    dropped_mass_bound: read.dropped_mass_bound,
                    output_error_bound: read.output_error_bound,
                };
                head.add_device(step.visible, read.survivors, read.attended, certificate);
                certificates[i * tokens + token] = certificate;
            }
        }
        Ok((heads, certificates))
    }

    /// The positions that the last step attended to, a list a query head.
    pub(crate) fn attended(&self) -> Result<Option<Vec<Vec<u32>>>, DeviceEngineError> {
        match self.steps.last() {
            Some(step) => step.record.attended(),
            None => Ok(None),
        }
    }
}
