//! What two rows of logits say about each other, and about the token that came.

use serde::{Deserialize, Serialize};

use crate::sampler::greedy;

/// One token, judged by dense attention and by a rule over the same past.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// `-ln p` of the token that came, dense, in nats.
    pub dense_nll: f64,
    /// `-ln p` of the token that came, by the rule, in nats.
    pub nll: f64,
    /// `KL(dense || rule)`, in nats.
    pub kl: f64,
    /// Whether both think the same token most probable.
    pub agrees: bool,
}

impl TokenScore {
    /// Compares the rule's logits with the dense ones; `target` is the token that came.
    ///
    /// # Numerics
    ///
    /// In f64: `KL = sum p_i (a_i - b_i) - lse(a) + lse(b)` with `p = softmax(a)`. It cannot be negative but for rounding; that is cut off at 0.
    ///
    /// # Panics
    ///
    /// If the rows differ in length, or `target` is beyond them.
    pub fn of(dense: &[f32], rule: &[f32], target: u32) -> Self {
        assert_eq!(
            dense.len(),
            rule.len(),
            "rows of logits of different lengths"
        );
        let (top, rule_top) = (largest(dense), largest(rule));
        let (mut sum, mut rule_sum, mut weighted) = (0.0, 0.0, 0.0);
        for (a, b) in dense.iter().zip(rule) {
            let (a, b) = (f64::from(*a) - top, f64::from(*b) - rule_top);
            let weight = a.exp();
            sum += weight;
            rule_sum += b.exp();
            weighted += weight * (a - b);
        }
        let (lse, rule_lse) = (sum.ln(), rule_sum.ln());
        let at = |row: &[f32], top: f64| f64::from(row[target as usize]) - top;
        Self {
            dense_nll: lse - at(dense, top),
            nll: rule_lse - at(rule, rule_top),
            kl: (weighted / sum - lse + rule_lse).max(0.0),
            agrees: greedy(dense) == greedy(rule),
        }
    }
}

fn largest(row: &[f32]) -> f64 {
    f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

/// Scores of tokens, added up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ScoreSums {
    /// Tokens.
    pub tokens: u64,
    /// Sum of `-ln p` of the tokens that came, dense.
    pub dense_nll: f64,
    /// Sum of `-ln p` of the tokens that came, by the rule.
    pub nll: f64,
    /// Sum of squares of the differences of the two, for a standard error.
    pub nll_difference_squared: f64,
    /// Sum of `KL(dense || rule)`.
    pub kl: f64,
    /// The largest `KL(dense || rule)`.
    pub kl_max: f64,
    /// Tokens where both think the same next token most probable.
    pub agreeing: u64,
}

impl ScoreSums {
    /// Adds one token.
    pub fn add(&mut self, score: TokenScore) {
        let difference = score.nll - score.dense_nll;
        self.join(&Self {
            tokens: 1,
            dense_nll: score.dense_nll,
            nll: score.nll,
            nll_difference_squared: difference * difference,
            kl: score.kl,
            kl_max: score.kl,
            agreeing: u64::from(score.agrees),
        });
    }

    /// Adds other tokens' sums.
    pub fn join(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.dense_nll += other.dense_nll;
        self.nll += other.nll;
        self.nll_difference_squared += other.nll_difference_squared;
        self.kl += other.kl;
        self.kl_max = self.kl_max.max(other.kl_max);
        self.agreeing += other.agreeing;
    }

    /// Perplexity by the rule: `exp` of the mean of `-ln p`.
    pub fn perplexity(&self) -> f64 {
        self.mean(self.nll).exp()
    }

    /// Perplexity with dense attention over the same tokens.
    pub fn dense_perplexity(&self) -> f64 {
        self.mean(self.dense_nll).exp()
    }

    /// By how much the rule's perplexity is above the dense one, as a share of it, and one standard error of that: `exp(d) - 1` and `exp(d) se(d)` with `d`
    /// the mean over tokens of the difference of `-ln p`.
    pub fn excess(&self) -> (f64, f64) {
        let mean = self.mean(self.nll - self.dense_nll);
        let variance = self.mean(self.nll_difference_squared) - mean * mean;
        let error = (variance.max(0.0) / (self.tokens.max(2) - 1) as f64).sqrt();
        (mean.exp_m1(), mean.exp() * error)
    }

    /// Mean `KL(dense || rule)`, in nats.
    pub fn kl_mean(&self) -> f64 {
        self.mean(self.kl)
    }

    /// The share of tokens where both think the same next token most probable.
    pub fn agreement(&self) -> f64 {
        self.mean(self.agreeing as f64)
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::kl_divergence;
    use proptest::prelude::*;

    fn softmax(row: &[f32]) -> Vec<f64> {
        let weights: Vec<f64> = row.iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn scores_are_those_of_the_definition(
            rows in (2usize..40).prop_flat_map(|n| {
                let row = || prop::collection::vec(-20f32..20.0, n);
                (row(), row(), 0..n)
            })
        ) {
            let (dense, rule, target) = rows;
            let score = TokenScore::of(&dense, &rule, target as u32);
            let (p, q) = (softmax(&dense), softmax(&rule));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            prop_assert!((score.kl - kl.max(0.0)).abs() < 1e-9 * (1.0 + kl));
            prop_assert!((score.kl - kl_divergence(&dense, &rule)).abs() < 1e-9 * (1.0 + kl));
            prop_assert!((score.nll + q[target].ln()).abs() < 1e-9 * (1.0 + score.nll));
            prop_assert!((score.dense_nll + p[target].ln()).abs() < 1e-9 * (1.0 + score.dense_nll));
            let best = |p: &[f64]| (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b]));
            prop_assert_eq!(score.agrees, best(&p) == best(&q));
        }
    }

    #[test]
    fn sums_give_perplexity_and_its_excess() {
        let mut sums = ScoreSums::default();
        let score = |dense_nll: f64, nll: f64, agrees| TokenScore {
            dense_nll,
            nll,
            kl: nll,
            agrees,
        };
        sums.add(score(2f64.ln(), 4f64.ln(), true));
        let mut other = ScoreSums::default();
        other.add(score(8f64.ln(), 4f64.ln(), false));
        sums.join(&other);
        // geometric means of 2 and 8, and of 4 and 4
        assert!((sums.dense_perplexity() - 4.0).abs() < 1e-12);
        assert!((sums.perplexity() - 4.0).abs() < 1e-12);
        // differences are ln 2 and -ln 2: mean 0, variance ln^2 2
        let (excess, error) = sums.excess();
        assert!(excess.abs() < 1e-12);
        assert!((error - 2f64.ln()).abs() < 1e-12);
        assert_eq!((sums.tokens, sums.agreeing), (2, 1));
        assert!((sums.kl_max - 4f64.ln()).abs() < 1e-12);
    }
}
