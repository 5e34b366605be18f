//! Choosing the next token from logits.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Why sampling parameters were refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// The temperature is negative or not finite.
    #[error("temperature is {received}, expected 0 (greedy) or a positive finite number")]
    Temperature {
        /// The value.
        received: f32,
    },
    /// The nucleus is empty or more than everything.
    #[error("top-p is {received}, expected more than 0 and at most 1")]
    TopP {
        /// The value.
        received: f32,
    },
}

/// Greedy choice, or temperature sampling from the smallest set of tokens that holds `top_p` of the probability.
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    random: StdRng,
}

impl Sampler {
    /// A sampler that gives the same tokens for the same seed. `temperature` 0 is greedy.
    ///
    /// # Errors
    /// [`SamplerError`] for values out of range.
    ///
    /// # Examples
    /// ```
    /// use hira_examples::sampler::Sampler;
    ///
    /// let mut greedy = Sampler::new(0.0, 1.0, 0)?;
    /// assert_eq!(greedy.choose(&[0.5, 2.0, 2.0]), 1); // ties go to the lower token
    /// # Ok::<(), hira_examples::sampler::SamplerError>(())
    /// ```
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Self, SamplerError> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(SamplerError::Temperature {
                received: temperature,
            });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplerError::TopP { received: top_p });
        }
        Ok(Self {
            temperature,
            top_p,
            random: StdRng::seed_from_u64(seed),
        })
    }

    /// Chooses a token.
    ///
    /// # Panics
    /// If `logits` is empty.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return greedy(logits);
        }
        let mut ranked = top(logits, logits.len());
        let best = f64::from(ranked[0].1);
        let temperature = f64::from(self.temperature);
        let weights: Vec<f64> = ranked
            .iter()
            .map(|&(_, logit)| ((f64::from(logit) - best) / temperature).exp())
            .collect();
        let kept = nucleus(&weights, f64::from(self.top_p));
        ranked.truncate(kept);
        let mut left = self.random.random::<f64>() * weights[..kept].iter().sum::<f64>();
        let chosen = weights[..kept].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        ranked[chosen.unwrap_or(kept - 1)].0
    }
}

/// Number of weights, from the largest, that together reach the share `top_p`.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    let target = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= target
    });
    reached.map_or(weights.len(), |index| index + 1)
}

/// The token of highest logit, in one pass over the logits; ties go to the lower token.
///
/// # Panics
/// If `logits` is empty.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, logits[0]);
    for (token, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0 as u32
}

/// The `count` tokens of highest logit, in descending order; ties go to the lower token.
///
/// # Examples
/// ```
/// assert_eq!(hira_examples::sampler::top(&[1.0, 3.0, 2.0], 2), [(1, 3.0), (2, 2.0)]);
/// ```
pub fn top(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let count = count.min(ranked.len());
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count, order);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(order);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0_f32, 1.0, -1.0, 0.5];
        let mut sampler = Sampler::new(0.8, 1.0, 7).unwrap();
        let mut counts = [0_u32; 4];
        let draws = 40_000;
        for _ in 0..draws {
            counts[sampler.choose(&logits) as usize] += 1;
        }
        let weights = logits.map(|logit| (f64::from(logit) / 0.8).exp());
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let (expected, received) = (weight / sum, f64::from(*count) / f64::from(draws));
            assert!((expected - received).abs() < 0.01, "{expected} {received}");
        }
    }

    #[test]
    fn the_greedy_token_is_the_first_of_the_highest() {
        let mut random = StdRng::seed_from_u64(3);
        for len in [1, 2, 7, 100, 1000] {
            let logits: Vec<f32> = (0..len)
                .map(|_| (random.random::<f32>() * 50.0).round() - 25.0)
                .collect();
            assert_eq!(greedy(&logits), top(&logits, 1)[0].0, "{logits:?}");
        }
    }

    #[test]
    fn the_nucleus_excludes_the_rest() {
        let logits = [0.0_f32, 3.0, 2.9, -1.0];
        let mut sampler = Sampler::new(1.0, 0.6, 1).unwrap();
        let mut drawn: Vec<u32> = (0..200).map(|_| sampler.choose(&logits)).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, [1, 2]);
        let mut narrow = Sampler::new(1.0, 0.1, 1).unwrap();
        assert!((0..50).all(|_| narrow.choose(&logits) == 1));
    }

    #[test]
    fn a_seed_repeats_its_tokens() {
        let logits: Vec<f32> = (0..50_u8).map(|i| f32::from(i % 7)).collect();
        let draw = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(1.5, 0.95, seed).unwrap();
            (0..20).map(|_| sampler.choose(&logits)).collect()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for temperature in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(
                Sampler::new(temperature, 1.0, 0),
                Err(SamplerError::Temperature { .. })
            ));
        }
        for top_p in [0.0, 1.5, f32::NAN] {
            assert!(matches!(
                Sampler::new(1.0, top_p, 0),
                Err(SamplerError::TopP { .. })
            ));
        }
    }
}
