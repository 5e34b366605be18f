use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use hira_index::burn::HiraBackend;

use crate::element::Element;
use crate::weights::RopeScaling;

/// Configuration of a [`Rotary`] table.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryConfig {
    /// Width of one head; even.
    pub head_dim: usize,
    /// The rotary base.
    pub theta: f64,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
    /// Number of positions in the table.
    pub max_positions: usize,
    /// What the table is rounded to: the type of the heads that it rotates.
    pub element: Element,
}

impl RotaryConfig {
    /// Computes the table: angles in `f64`, cosines and sines rounded to `f32`, then to the element type.
    pub fn init<B: HiraBackend>(&self, device: &B::Device) -> Rotary<B> {
        let frequencies =
            inverse_frequencies(self.head_dim, self.theta, &self.scaling, self.max_positions);
        let factor = self.scaling.attention_factor();
        let half = frequencies.len();
        let mut cos = Vec::with_capacity(self.max_positions * half);
        let mut sin = Vec::with_capacity(self.max_positions * half);
        for position in 0..self.max_positions {
            for frequency in &frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push((c * factor) as f32);
                sin.push((s * factor) as f32);
            }
        }
        let shape = [self.max_positions, half];
        Rotary {
            cos: self.element.tensor(cos, shape, device),
            sin: self.element.tensor(sin, shape, device),
        }
    }
}

/// Cosine and sine of every position's rotary angles.
#[derive(Module, Debug)]
pub struct Rotary<B: Backend> {
    /// `[max_positions, head_dim / 2]`.
    cos: Tensor<B, 2>,
    /// `[max_positions, head_dim / 2]`.
    sin: Tensor<B, 2>,
}

/// The angles of a run of positions, laid out so that one row serves every head.
#[derive(Debug, Clone)]
pub struct RotarySpan<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rotary<B> {
    /// The number of positions that the table covers.
    pub fn max_positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The angles of positions `start..start + len`.
    ///
    /// # Panics
    ///
    /// If the run leaves the table.
    pub fn span(&self, start: usize, len: usize) -> RotarySpan<B> {
        let half = self.cos.dims()[1];
        let row = |table: &Tensor<B, 2>| {
            table
                .clone()
                .slice(start..start + len)
                .reshape([1, len * half])
        };
        RotarySpan {
            cos: row(&self.cos),
            sin: row(&self.sin),
        }
    }
}

impl<B: Backend> RotarySpan<B> {
    /// Rotates the halves of every head: `(a cos - b sin, b cos + a sin)`.
    ///
    /// # Shapes
    ///
    /// `first`, `second` and both results are `[heads, len * head_dim / 2]`.
    pub fn rotate(
        &self,
        first: Tensor<B, 2>,
        second: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let (cos, sin) = (&self.cos, &self.sin);
        let real = first.clone() * cos.clone() - second.clone() * sin.clone();
        let imaginary = second * cos.clone() + first * sin.clone();
        (real, imaginary)
    }
}

/// The angle per position of each pair of dimensions: `theta^(-2i / head_dim)`, stretched by `scaling` for a model that is made for `positions`.
///
/// # References
///
/// Su et al., *RoFormer*, section 3.2.2; Llama 3.1's piecewise scaling as in Hugging Face's `llama3` rope type; Peng et al., *YaRN*, 2023:
/// section 3.1 and appendix A for the NTK-aware base, section 3.2 for YaRN, whose ramp is the one of the authors' code: straight in the index of
/// the pair, between whole indices.
pub fn inverse_frequencies(
    head_dim: usize,
    theta: f64,
    scaling: &RopeScaling,
    positions: usize,
) -> Vec<f64> {
    let of_base =
        |theta: f64| (0..head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    let base = of_base(theta);
    // the lowest frequency, theta^(-(d - 2) / d), is divided by the factor
    let ntk = |factor: f64| {
        let exponent = head_dim as f64 / (head_dim as f64 - 2.0);
        of_base(theta * factor.powf(exponent)).collect()
    };
    match scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Ntk { factor } => ntk(*factor),
        RopeScaling::Dynamic {
            factor,
            original_max_position_embeddings,
        } => {
            let longer = positions as f64 / *original_max_position_embeddings as f64;
            ntk((factor * longer - (factor - 1.0)).max(1.0))
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            ..
        } => {
            let original = *original_max_position_embeddings as f64;
            // the index, not whole, of the pair that turns so often in the original context
            let index = |turns: f64| {
                let frequency = turns * std::f64::consts::TAU / original;
                -frequency.ln() / theta.ln() * head_dim as f64 / 2.0
            };
            let low = index(*beta_fast).floor().max(0.0);
            let high = index(*beta_slow).ceil().min((head_dim - 1) as f64);
            // where both are the same the ramp is a step, as in the authors' code
            let width = (high - low).max(1e-3);
            base.enumerate()
                .map(|(i, frequency)| {
                    let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    frequency * (1.0 - divided + divided / factor)
                })
                .collect()
        }
        RopeScaling::Linear { factor } => base.map(|frequency| frequency / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            base.map(|frequency| {
                let turns = original * frequency / std::f64::consts::TAU;
                // 1 keeps the frequency, 0 divides it by the factor, and there is a straight line between the two.
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                    .clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            })
            .collect()
        }
        RopeScaling::Factors(factors) => base
            .zip(factors)
            .map(|(frequency, factor)| frequency / f64::from(*factor))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    fn assert_close(left: f64, right: f64) {
        assert!(
            (left - right).abs() <= 1e-12 * right.abs(),
            "{left} is not {right}"
        );
    }

    #[test]
    fn unscaled_frequencies_fall_from_one_to_nearly_one_over_theta() {
        let frequencies = inverse_frequencies(64, 1e5, &RopeScaling::None, 8192);
        assert_eq!(frequencies.len(), 32);
        for (i, frequency) in frequencies.iter().enumerate() {
            assert_close(*frequency, (-(2.0 * i as f64 / 64.0) * 1e5f64.ln()).exp());
        }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = inverse_frequencies(16, 1e4, &RopeScaling::None, 8192);
        let linear = inverse_frequencies(16, 1e4, &RopeScaling::Linear { factor: 4.0 }, 8192);
        for (scaled, frequency) in linear.iter().zip(plain) {
            assert_close(*scaled, frequency / 4.0);
        }
    }

    #[test]
    fn explicit_factors_divide_their_own_frequency() {
        let factors = vec![1.0, 2.0, 4.0, 8.0];
        let plain = inverse_frequencies(8, 1e4, &RopeScaling::None, 8192);
        let scaled = inverse_frequencies(8, 1e4, &RopeScaling::Factors(factors.clone()), 8192);
        for ((scaled, frequency), factor) in scaled.iter().zip(plain).zip(factors) {
            assert_close(*scaled, frequency / f64::from(factor));
        }
    }

    /// The formula as Hugging Face writes it, by wavelength and in three cases.
    #[test]
    fn llama3_scaling_agrees_with_the_wavelength_formula() {
        let (factor, low, high, original) = (8.0, 1.0, 4.0, 8192.0);
        let scaled = inverse_frequencies(128, 5e5, &LLAMA3, 8192);
        let mut cases = [0; 3];
        for (i, value) in scaled.iter().enumerate() {
            let frequency = 1.0 / 5e5f64.powf(2.0 * i as f64 / 128.0);
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let expected = if wavelength < original / high {
                cases[0] += 1;
                frequency
            } else if wavelength > original / low {
                cases[1] += 1;
                frequency / factor
            } else {
                cases[2] += 1;
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            };
            assert_close(*value, expected);
        }
        assert!(cases.iter().all(|count| *count > 0), "{cases:?}");
    }

    /// HF's formula, with the base given as a frequency: the last pair turns `factor` times slower, the first as before.
    #[test]
    fn ntk_divides_the_lowest_frequency_by_the_factor_and_keeps_the_highest() {
        let plain = inverse_frequencies(64, 1e5, &RopeScaling::None, 8192);
        let ntk = inverse_frequencies(64, 1e5, &RopeScaling::Ntk { factor: 4.0 }, 8192);
        for (i, (scaled, plain)) in ntk.iter().zip(&plain).enumerate() {
            // theta'^(-i/32) with theta' = theta 4^(32/31) is theta^(-i/32) 4^(-i/31)
            assert_close(*scaled, plain * (-(i as f64) / 31.0 * 4f64.ln()).exp());
        }
        assert_close(ntk[31], plain[31] / 4.0);
    }

    #[test]
    fn dynamic_ntk_follows_from_the_positions() {
        let of = |positions| {
            let scaling = RopeScaling::Dynamic {
                factor: 2.0,
                original_max_position_embeddings: 4096,
            };
            inverse_frequencies(64, 1e4, &scaling, positions)
        };
        let plain = inverse_frequencies(64, 1e4, &RopeScaling::None, 4096);
        assert_eq!(of(4096), plain);
        assert_eq!(of(1000), plain);
        // twice the positions: 2 * 2 - 1
        assert_close(of(8192)[31], plain[31] / 3.0);
    }

    /// The paper's own words: turns of each pair in the original context, kept above 32, divided below 1. Between, the authors' code is straight in
    /// the index of the pair, from the last whole index that turns 32 times to the first that turns less than once, both found by counting here.
    #[test]
    fn yarn_agrees_with_counted_turns() {
        for (dim, theta, original, factor) in [
            (64, 1e5, 8192, 2.0),
            (128, 1e4, 4096, 16.0),
            (128, 1e6, 32768, 4.0),
        ] {
            let yarn = RopeScaling::yarn(factor, original);
            let scaled = inverse_frequencies(dim, theta, &yarn, 0);
            let turns = |i: usize| {
                let wavelength =
                    2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / dim as f64);
                original as f64 / wavelength
            };
            let low = (0..dim / 2).rfind(|&i| turns(i) >= 32.0).unwrap();
            let high = (0..dim).find(|&i| turns(i) <= 1.0).unwrap();
            assert!(low + 3 < high && high < dim / 2);
            for (i, value) in scaled.iter().enumerate() {
                let plain = 1.0 / theta.powf(2.0 * i as f64 / dim as f64);
                let expected = if i <= low {
                    plain
                } else if i >= high {
                    plain / factor
                } else {
                    let kept = (high - i) as f64 / (high - low) as f64;
                    kept * plain + (1.0 - kept) * plain / factor
                };
                assert_close(*value, expected);
            }
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn yarn_scales_cosines_and_sines() {
        let table = |scaling| {
            let config = RotaryConfig {
                head_dim: 8,
                theta: 1e4,
                scaling,
                max_positions: 3,
                element: Element::F32,
            };
            let device = Default::default();
            let rotary = config.init::<burn_flex::Flex>(&device);
            rotary.cos.into_data().to_vec::<f32>().unwrap()
        };
        // angles of position 0 are 0
        let expected = (0.1 * 2f64.ln() + 1.0) as f32;
        assert_eq!(table(RopeScaling::yarn(2.0, 64))[..4], [expected; 4]);
        assert_eq!(table(RopeScaling::None)[..4], [1.0; 4]);
    }
}
