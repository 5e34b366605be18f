//! How rotary frequencies are stretched: what files say, and what a flag asks for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::ModelConfig;

/// How rotary frequencies are stretched for contexts longer than the model was first trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Positions are used as they are.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware, static: the base is multiplied by `factor^(d / (d - 2))`, which divides the lowest frequency by `factor` and keeps the
    /// highest.
    Ntk {
        /// The divisor of the lowest frequency, at least 1.
        factor: f64,
    },
    /// NTK-aware with a factor that follows from the number of positions `n`: `factor n / original - (factor - 1)` beyond `original`, 1 up to it.
    ///
    /// Keys are stored rotated, so that a base which grew with the text would no longer be theirs: it is set once, for the number of positions
    /// that the model is made for.
    Dynamic {
        /// How many times `original_max_position_embeddings` the model is made for, at least 1.
        factor: f64,
        /// The context length of the training.
        original_max_position_embeddings: usize,
    },
    /// YaRN: frequencies that turn less than `beta_slow` times in the original context are divided by `factor`, those that turn more than
    /// `beta_fast` times are kept, those between are blended; queries and keys are multiplied by `attention_factor`.
    Yarn {
        /// The divisor of low frequencies, at least 1.
        factor: f64,
        /// The context length of the training.
        original_max_position_embeddings: usize,
        /// What cosines and sines are multiplied by; `0.1 ln(factor) + 1` if nothing else is said.
        attention_factor: f64,
        /// Turns from which a frequency is kept (32).
        beta_fast: f64,
        /// Turns below which a frequency is divided by `factor` (1).
        beta_slow: f64,
    },
    /// Llama 3: frequencies whose wavelength is long are divided by `factor`, short ones are kept, those between are blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of the first training.
        original_max_position_embeddings: usize,
    },
    /// Frequency `i` is divided by entry `i` (the GGUF tensor `rope_freqs.weight`): `head_dim / 2` entries.
    Factors(Vec<f32>),
}

impl RopeScaling {
    /// YaRN as its authors set it: 32 and 1 turns, an attention factor of `0.1 ln(factor) + 1`.
    ///
    /// # References
    ///
    /// Peng et al., *YaRN: Efficient Context Window Extension of Large Language Models*, 2023, sections 3.2 to 3.4.
    pub fn yarn(factor: f64, original_max_position_embeddings: usize) -> Self {
        Self::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor: yarn_attention_factor(factor),
            beta_fast: 32.0,
            beta_slow: 1.0,
        }
    }

    /// What cosines and sines are multiplied by: scores grow by its square. 1 for all but YaRN.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn {
                attention_factor, ..
            } => *attention_factor,
            _ => 1.0,
        }
    }

    /// The positions of a model whose file says `positions`: files may name those of the training or those after stretching.
    pub(in crate::weights) fn positions(&self, positions: usize) -> usize {
        match self {
            Self::Dynamic {
                factor,
                original_max_position_embeddings: original,
            }
            | Self::Yarn {
                factor,
                original_max_position_embeddings: original,
                ..
            } => positions.max((*original as f64 * factor).round() as usize),
            _ => positions,
        }
    }

    /// Whether a model whose heads have `half` pairs of dimensions can be run with it.
    pub(crate) fn is_usable(&self, half: usize) -> bool {
        let positive = |value: &f64| value.is_finite() && *value > 0.0;
        let stretches = |factor: &f64| factor.is_finite() && *factor >= 1.0;
        match self {
            Self::None => true,
            Self::Linear { factor } => positive(factor),
            // the exponent d / (d - 2) has no value for a single pair
            Self::Ntk { factor } => stretches(factor) && half > 1,
            Self::Dynamic {
                factor,
                original_max_position_embeddings,
            } => stretches(factor) && half > 1 && *original_max_position_embeddings > 0,
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
            } => {
                stretches(factor)
                    && positive(attention_factor)
                    && positive(beta_fast)
                    && positive(beta_slow)
                    && beta_fast > beta_slow
                    && *original_max_position_embeddings > 0
            }
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive(factor)
                    && positive(low_freq_factor)
                    && positive(high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_max_position_embeddings > 0
            }
            Self::Factors(factors) => {
                factors.len() == half && factors.iter().all(|f| positive(&f64::from(*f)))
            }
        }
    }
}

/// `0.1 ln(s) + 1`, equation 22 of the YaRN paper: the square root of the temperature that fits a context `s` times as long.
pub(in crate::weights) fn yarn_attention_factor(factor: f64) -> f64 {
    0.1 * factor.ln() + 1.0
}

/// A stretch that a user asks for: `none`, `linear=2`, `ntk=2`, `dynamic=2` or `yarn=2`.
///
/// ```
/// use hira_examples::weights::{RopeScaling, RopeStretch};
///
/// let stretch: RopeStretch = "yarn=2".parse()?;
/// assert_eq!(stretch.scaling(8192), RopeScaling::yarn(2.0, 8192));
/// assert_eq!(stretch.to_string(), "yarn=2");
/// # Ok::<(), hira_examples::weights::RopeStretchError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeStretch {
    kind: Kind,
    /// At least 1.
    factor: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Linear,
    Ntk,
    Dynamic,
    Yarn,
}

const KINDS: [(&str, Kind); 5] = [
    ("none", Kind::None),
    ("linear", Kind::Linear),
    ("ntk", Kind::Ntk),
    ("dynamic", Kind::Dynamic),
    ("yarn", Kind::Yarn),
];

/// The largest factor that can be asked for: beyond it, no model is of use.
const MAX_FACTOR: f64 = 1024.0;

/// Why a text is no stretch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected none, or linear, ntk, dynamic or yarn with a factor from 1 to 1024, as in yarn=2"
)]
pub struct RopeStretchError;

impl FromStr for RopeStretch {
    type Err = RopeStretchError;

    fn from_str(text: &str) -> Result<Self, RopeStretchError> {
        let (name, factor) = match text.split_once('=') {
            Some((name, factor)) => (name, factor.parse().map_err(|_| RopeStretchError)?),
            None if text == "none" => (text, 1.0),
            None => return Err(RopeStretchError),
        };
        let kind = KINDS.iter().find(|(known, _)| *known == name);
        match kind {
            Some((_, kind)) if (1.0..=MAX_FACTOR).contains(&factor) => Ok(Self {
                kind: *kind,
                factor,
            }),
            _ => Err(RopeStretchError),
        }
    }
}

impl fmt::Display for RopeStretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.kind);
        let name = name.map_or("none", |(name, _)| name);
        match self.kind {
            Kind::None if self.factor == 1.0 => f.write_str(name),
            _ => write!(f, "{name}={}", self.factor),
        }
    }
}

impl RopeStretch {
    /// The scaling, for a model that was trained with `original` positions.
    pub fn scaling(self, original: usize) -> RopeScaling {
        let factor = self.factor;
        match self.kind {
            Kind::None => RopeScaling::None,
            Kind::Linear => RopeScaling::Linear { factor },
            Kind::Ntk => RopeScaling::Ntk { factor },
            Kind::Dynamic => RopeScaling::Dynamic {
                factor,
                original_max_position_embeddings: original,
            },
            Kind::Yarn => RopeScaling::yarn(factor, original),
        }
    }

    /// Replaces a model's scaling, and makes its context `factor` times as long.
    ///
    /// With `none=F` positions are used as they are, beyond those that the model was trained with too: to see what that does.
    pub fn apply(self, config: &mut ModelConfig) {
        let original = config.max_position_embeddings;
        config.rope_scaling = self.scaling(original);
        config.max_position_embeddings = (original as f64 * self.factor).round() as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_read_and_print_alike() {
        for text in [
            "none",
            "none=2",
            "linear=2",
            "ntk=4",
            "dynamic=1.5",
            "yarn=2",
        ] {
            let stretch: RopeStretch = text.parse().expect(text);
            assert_eq!(stretch.to_string(), text);
            assert!(stretch.scaling(100).is_usable(8), "{text}");
        }
        for text in [
            "", "yarn", "yarn=", "yarn=0.5", "yarn=nan", "yarn=1e9", "xpos=2",
        ] {
            assert_eq!(text.parse::<RopeStretch>(), Err(RopeStretchError), "{text}");
        }
    }

    #[test]
    fn impossible_scalings_are_told() {
        assert!(!RopeScaling::Ntk { factor: 2.0 }.is_usable(1));
        assert!(!RopeScaling::Ntk { factor: 0.5 }.is_usable(8));
        assert!(!RopeScaling::yarn(f64::NAN, 64).is_usable(8));
        assert!(!RopeScaling::yarn(2.0, 0).is_usable(8));
        assert!(!RopeScaling::Factors(vec![1.0]).is_usable(2));
    }
}
