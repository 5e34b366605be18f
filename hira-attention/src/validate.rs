//! What the values of a configuration must be.

use hira_index::{IndexConfig, SampleConfig};
use hira_threshold::Threshold;

use crate::{ConfigError, HiraAttentionConfig, ThresholdStrategy, WindowLayers};

impl HiraAttentionConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least = |key, value: usize, least: usize, requirement| {
            let value_error = ConfigError::Value {
                key,
                requirement,
                received: value as f64,
            };
            if value < least {
                Err(value_error)
            } else {
                Ok(())
            }
        };
        at_least("top_k", self.top_k, 1, "must be at least 1")?;
        at_least(
            "branching_factor",
            self.branching_factor,
            2,
            "must be at least 2",
        )?;
        at_least(
            "max_decode_tokens",
            self.max_decode_tokens,
            1,
            "must be at least 1",
        )?;
        if let Some(window) = self.sliding_window {
            at_least("sliding_window", window, 1, "must be at least 1")?;
        }
        if let WindowLayers::ExceptEvery(every) = self.window_layers {
            at_least("window_layers.except_every", every, 1, "must be at least 1")?;
        }
        if let Some(limit) = self.max_candidates {
            at_least("max_candidates", limit, 1, "must be at least 1")?;
        }
        let value = |key, requirement, received| {
            Err(ConfigError::Value {
                key,
                requirement,
                received,
            })
        };
        if self.num_levels > IndexConfig::MAX_LEVELS {
            return value("num_levels", "must be at most 8", self.num_levels as f64);
        }
        if self.segment_len == 0 || !self.segment_len.is_multiple_of(hira_kernels::TILE) {
            return value(
                "segment_len",
                "must be a multiple of 16",
                self.segment_len as f64,
            );
        }
        if !(16..=1024).contains(&self.tail_block)
            || !self.tail_block.is_multiple_of(hira_kernels::TILE)
        {
            return value(
                "tail_block",
                "must be a multiple of 16 from 16 to 1024",
                self.tail_block as f64,
            );
        }
        for (key, percent) in [
            ("percentile", self.percentile),
            ("budget_percent", self.budget_percent),
        ] {
            if !(percent > 0.0 && percent <= 100.0) {
                let received = f64::from(percent);
                return value(key, "must be above 0 and at most 100", received);
            }
        }
        if !(self.mass > 0.0 && self.mass <= 1.0) {
            let received = f64::from(self.mass);
            return value("mass", "must be above 0 and at most 1", received);
        }
        if self.threshold_strategy == ThresholdStrategy::Mass && self.scale == Some(0.0) {
            let requirement = "must be above 0 for threshold_strategy = \"mass\"";
            return value("scale", requirement, 0.0);
        }
        if let Some(error) = self.max_error
            && !(error > 0.0 && error.is_finite())
        {
            return value("max_error", "must be above 0 and finite", f64::from(error));
        }
        if !self.adaptive_c.is_finite() {
            return value("adaptive_c", "must be finite", f64::from(self.adaptive_c));
        }
        if !(0.0..=1.0).contains(&self.sample_weight) {
            let received = f64::from(self.sample_weight);
            return value("sample_weight", "must be from 0 to 1", received);
        }
        if self.sample_size > SampleConfig::MAX_SIZE {
            let received = self.sample_size as f64;
            return value("sample_size", "must be at most 65536", received);
        }
        if let Some(threshold) = self.threshold
            && (threshold.is_nan() || threshold == f32::INFINITY)
        {
            return value(
                "threshold",
                "must be a number or -inf",
                f64::from(threshold),
            );
        }
        if let Some(scale) = self.scale
            && !(scale.is_finite() && scale >= 0.0)
        {
            return value("scale", "must be finite and at least 0", f64::from(scale));
        }
        if !(self.max_dropped_mass > 0.0 && self.max_dropped_mass <= 1.0) {
            return value(
                "max_dropped_mass",
                "must be above 0 and at most 1",
                f64::from(self.max_dropped_mass),
            );
        }
        self.builder.validate()?;
        self.update_strategy.validate()?;
        if let Some(product) = self.product {
            product.validate()?;
        }
        self.memory_policy.validate()?;
        if let (Some(bytes), None) = (self.disk_budget, &self.disk_path) {
            return value("disk_budget", "needs a disk_path", bytes as f64);
        }
        let rule = self.rule()?;
        rule.validate()?;
        // Without a sample such a rule would select every key, which is dense attention by a detour.
        if rule.needs_sample() && self.sample_size == 0 {
            let requirement = "must be at least 1 for a sampled threshold_strategy";
            return value("sample_size", requirement, 0.0);
        }
        self.kernel()?;
        Ok(())
    }
}
