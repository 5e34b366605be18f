//! What a decode step is asked for, and what it proves.

use super::DeviceError;

/// Which keys a query attends to, beside sinks and window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceRule {
    /// Every key whose score reaches this.
    AtLeast(f32),
    /// The keys that score highest, ties to the lower position; all of them if there are fewer.
    Top(usize),
    /// The keys that reach the highest threshold for which the intervals prove that the others hold at most this share of the mass.
    Mass(f32),
}

/// One decode step's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeParams {
    /// Which keys.
    pub rule: DeviceRule,
    /// What a score is multiplied by to become a logit; positive.
    pub scale: f32,
    /// Keys at the beginning that are always attended to.
    pub sinks: usize,
    /// Keys at the end that are always attended to.
    pub window: usize,
    /// Whether the mean values of blocks stand for the keys that are not attended to.
    pub compensate: bool,
}

impl DecodeParams {
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        let number = match self.rule {
            DeviceRule::AtLeast(tau) => !tau.is_nan(),
            DeviceRule::Top(_) => true,
            DeviceRule::Mass(share) => !share.is_nan(),
        };
        if self.scale > 0.0 && self.scale.is_finite() && number {
            Ok(())
        } else {
            Err(DeviceError::Parameter)
        }
    }
}

/// What one query's step found and proved, as the device wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceCertificate {
    /// At least the softmax mass of the keys that were not attended to, in exact arithmetic over the stored keys.
    pub dropped_mass_bound: f32,
    /// At least the Euclidean distance of the output (before it is rounded to the tensor's type) from dense attention over the stored keys and
    /// values in exact arithmetic.
    pub output_error_bound: f32,
    /// The score that selects: keys that reach it, of those that tie with it the lower positions.
    pub tau: f32,
    /// Keys attended to.
    pub selected: usize,
    /// Keys that were scored exactly.
    pub survivors: usize,
    /// Logarithm of the sum of exponentials of the logits of the keys attended to.
    pub log_sum_exp: f32,
}
