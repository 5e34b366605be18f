use crate::sampler::greedy;

/// `KL(p || q)` in nats, where `p` and `q` are the softmax of the two rows of logits.
///
/// # Numerics
///
/// In f64: `sum p_i ((p'_i - lse(p')) - (q'_i - lse(q')))`, which cannot be negative but for rounding; that is cut off at 0.
///
/// # Panics
///
/// If the rows differ in length.
///
/// # Examples
///
/// ```
/// use hira_examples::demo::kl_divergence;
///
/// assert_eq!(kl_divergence(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
/// // p = (1/2, 1/2), q = (2/3, 1/3)
/// let kl = kl_divergence(&[0.0, 0.0], &[2f32.ln(), 0.0]);
/// assert!((kl - 0.5 * (9.0f64 / 8.0).ln()).abs() < 1e-6);
/// ```
pub fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    assert_eq!(p.len(), q.len(), "rows of logits of different lengths");
    let (of_p, of_q) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (log_p, log_q) = (f64::from(*p) - of_p, f64::from(*q) - of_q);
        log_p.exp() * (log_p - log_q)
    });
    terms.sum::<f64>().max(0.0)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - max).exp())
        .sum();
    max + sum.ln()
}

/// How far Hira's distributions are from the dense ones, over steps with the same past.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Divergence {
    /// Steps.
    pub steps: usize,
    /// Of those, steps whose most probable token is the same.
    pub same_argmax: usize,
    /// Largest `KL(dense || Hira)`, in nats.
    pub max: f64,
    sum: f64,
}

impl Divergence {
    /// Adds one step.
    pub fn add(&mut self, dense: &[f32], hira: &[f32]) {
        let kl = kl_divergence(dense, hira);
        self.steps += 1;
        self.same_argmax += usize::from(greedy(dense) == greedy(hira));
        self.max = self.max.max(kl);
        self.sum += kl;
    }

    /// Mean `KL(dense || Hira)`, in nats.
    pub fn mean(&self) -> f64 {
        self.sum / self.steps.max(1) as f64
    }
}

/// How far two answers are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Tokens compared.
    pub tokens: usize,
    /// Of those, equal ones at the same place.
    pub equal: usize,
    /// The first place where they differ.
    pub first_difference: Option<usize>,
}

impl Agreement {
    /// Compares two answers over the length of the shorter.
    pub fn of(a: &[u32], b: &[u32]) -> Self {
        let equal = || a.iter().zip(b).map(|(a, b)| a == b);
        Self {
            tokens: equal().count(),
            equal: equal().filter(|equal| *equal).count(),
            first_difference: equal().position(|equal| !equal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_of_distributions_not_of_logits() {
        let (p, q) = ([1.0, -2.0, 0.5], [11.0, 8.0, 10.5]);
        assert!(kl_divergence(&p, &q) < 1e-12);
        let mut divergence = Divergence::default();
        divergence.add(&p, &q);
        divergence.add(&p, &[-2.0, 1.0, 0.5]);
        assert_eq!((divergence.steps, divergence.same_argmax), (2, 1));
        assert!((divergence.mean() - divergence.max / 2.0).abs() < 1e-9);
    }

    #[test]
    fn agreement_counts_places() {
        let agreement = Agreement::of(&[1, 2, 3, 4], &[1, 2, 9, 4, 5]);
        assert_eq!(
            (
                agreement.tokens,
                agreement.equal,
                agreement.first_difference
            ),
            (4, 3, Some(2))
        );
        assert_eq!(Agreement::of(&[1], &[1]).first_difference, None);
    }
}
