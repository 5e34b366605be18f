//! H2O: heavy hitters, and the most recent keys.

/// What one query head still keeps.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// Positions, ascending.
    pub(super) positions: Vec<u32>,
    /// For each of them, the sum of the attention weights that queries have given it.
    sums: Vec<f32>,
}

impl Kept {
    /// A head that has `len` keys from before, about which nothing is known.
    pub(super) fn with_unseen(len: usize) -> Self {
        Self {
            positions: (0..len as u32).collect(),
            sums: vec![0.0; len],
        }
    }

    /// Takes the key of the query that comes.
    pub(super) fn push(&mut self, position: usize) {
        self.positions.push(position as u32);
        self.sums.push(0.0);
    }

    /// Adds a query's weights, one a kept key.
    pub(super) fn add(&mut self, weights: &[f32]) {
        for (sum, weight) in self.sums.iter_mut().zip(weights) {
            *sum += weight;
        }
    }

    /// Drops keys with the smallest sums until `budget` are left; the `budget / 2` most recent ones stay. Of equal sums the older goes.
    pub(super) fn evict(&mut self, budget: usize) {
        let len = self.positions.len();
        if len <= budget {
            return;
        }
        let heavy = budget - budget / 2;
        let candidates = len - budget / 2;
        let sums = &self.sums;
        let mut order: Vec<usize> = (0..candidates).collect();
        order.select_nth_unstable_by(heavy, |&a, &b| sums[b].total_cmp(&sums[a]).then(b.cmp(&a)));
        order.truncate(heavy);
        order.sort_unstable();
        order.extend(candidates..len);
        self.positions = order.iter().map(|&i| self.positions[i]).collect();
        self.sums = order.iter().map(|&i| self.sums[i]).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_and_the_most_recent_stay() {
        let mut kept = Kept::with_unseen(6);
        kept.add(&[0.5, 0.1, 0.2, 0.0, 0.15, 0.05]);
        kept.push(6);
        kept.add(&[0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.7]);
        kept.evict(5);
        // heavy: 0 (0.5), 1 (0.4), 2 (0.2); recent: 5, 6
        assert_eq!(kept.positions, [0, 1, 2, 5, 6]);
        assert_eq!(kept.sums, [0.5, 0.4, 0.2, 0.05, 0.7]);
        kept.evict(4);
        assert_eq!(kept.positions, [0, 1, 5, 6]);
        kept.evict(4);
        assert_eq!(kept.positions.len(), 4);
    }

    #[test]
    fn of_equal_sums_the_older_goes() {
        let mut kept = Kept::with_unseen(4);
        kept.evict(3);
        assert_eq!(kept.positions, [1, 2, 3]);
    }
}
