//! What searches remember, as bytes: for caches that are saved.

use super::{Levels, SearchHistory, Sought};

impl SearchHistory {
    /// Appends what is remembered to `out`, in the byte order of this machine.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut floats = vec![
            self.survivors,
            self.scored,
            self.marked,
            self.warm_candidates,
        ];
        floats.extend(self.passed);
        for float in floats {
            out.extend_from_slice(&float.to_bits().to_ne_bytes());
        }
        let mut put = |number: u32| out.extend_from_slice(&number.to_ne_bytes());
        put(self.since_tree);
        put(self.since_product);
        put(self.since_warm);
        put(self.previous.len() as u32);
        for positions in &self.previous {
            put(positions.len() as u32);
            positions.iter().copied().for_each(&mut put);
        }
        put(self.levels.len() as u32);
        for levels in &self.levels {
            // What a level belongs to, as a kind and a number.
            let (kind, number): (u32, u64) = match levels.map(|levels| levels.sought) {
                None => (0, 0),
                Some(Sought::Top(k)) => (1, k as u64),
                Some(Sought::Mass(ratio)) => (2, ratio.to_bits()),
            };
            let (mean, deviation, count) = levels.map_or((0.0, 0.0, 0), |levels| {
                (levels.mean, levels.deviation, levels.count)
            });
            out.extend_from_slice(&kind.to_ne_bytes());
            for bits in [number, mean.to_bits(), deviation.to_bits()] {
                out.extend_from_slice(&bits.to_ne_bytes());
            }
            out.extend_from_slice(&count.to_ne_bytes());
        }
    }

    /// What [`encode`](Self::encode) made `bytes` of; `None` if they are not that. No more is allocated than there are bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder { bytes };
        let mut history = Self {
            survivors: from.float()?,
            scored: from.float()?,
            marked: from.float()?,
            warm_candidates: from.float()?,
            ..Self::default()
        };
        for passed in &mut history.passed {
            *passed = from.float()?;
        }
        history.since_tree = from.number()?;
        history.since_product = from.number()?;
        history.since_warm = from.number()?;
        // every list takes a length at least: a wrong number ends at the end of the bytes
        for _ in 0..from.number()? {
            let positions = from.positions()?;
            history.previous.push(positions);
        }
        for _ in 0..from.number()? {
            let (kind, number) = (from.number()?, from.float()?.to_bits());
            let (mean, deviation, count) = (from.float()?, from.float()?, from.number()?);
            let sought = match kind {
                0 => None,
                1 => Some(Sought::Top(number as usize)),
                2 => Some(Sought::Mass(f64::from_bits(number))),
                _ => return None,
            };
            history.levels.push(sought.map(|sought| Levels {
                sought,
                mean,
                deviation,
                count,
            }));
        }
        from.bytes.is_empty().then_some(history)
    }
}

/// What is still to be decoded.
struct Decoder<'a> {
    bytes: &'a [u8],
}

impl Decoder<'_> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.bytes.split_first_chunk::<4>()?;
        self.bytes = rest;
        Some(u32::from_ne_bytes(*number))
    }

    fn float(&mut self) -> Option<f64> {
        let (bits, rest) = self.bytes.split_first_chunk::<8>()?;
        self.bytes = rest;
        Some(f64::from_bits(u64::from_ne_bytes(*bits)))
    }

    /// Positions, which ascend.
    fn positions(&mut self) -> Option<Vec<u32>> {
        let len = self.number()? as usize;
        let (positions, rest) = self.bytes.split_at_checked(len.checked_mul(4)?)?;
        self.bytes = rest;
        let (positions, _) = positions.as_chunks::<4>();
        let positions = positions.iter().map(|bytes| u32::from_ne_bytes(*bytes));
        let positions: Vec<u32> = positions.collect();
        positions.is_sorted_by(|a, b| a < b).then_some(positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_survives() {
        let mut history = SearchHistory::default();
        history.remember(2, &[1, 4, 8]);
        history.note_scored(1.7);
        history.note_survivors(0.3);
        history.note_warm(Some((0.1, false)));
        history.note_level(1, Sought::Mass(0.01), -5.0);
        history.note_level(3, Sought::Top(256), 0.25);
        history.note_product(100, 30);
        history.note_descent(&[(10, 3), (20, 7)], true);
        let mut bytes = Vec::new();
        history.encode(&mut bytes);
        let again = SearchHistory::decode(&bytes).expect("they are those of a history");
        assert_eq!(format!("{again:?}"), format!("{history:?}"));
        for len in 0..bytes.len() {
            assert!(SearchHistory::decode(&bytes[..len]).is_none(), "{len}");
        }
        bytes.push(0);
        assert!(SearchHistory::decode(&bytes).is_none());
    }
}
