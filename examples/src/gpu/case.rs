//! What is measured, and what of it a device has room for.

/// Query heads, KV heads and dimension of Llama 3.
const LLAMA3: [usize; 3] = [32, 8, 128];

/// Tokens that a prompt is stored in at a time, as a share of the context, if all at once would take too much beside what is stored.
pub(super) const PIECES: usize = 8;

/// Bytes of keys of a prompt that is stored at once.
const AT_ONCE: usize = 1 << 30;

/// One line of the table: a decode step of so many sequences over so many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Keys.
    pub context: usize,
    /// Sequences.
    pub batch: usize,
}

impl Case {
    /// Tokens of the prompt that are stored at a time.
    pub fn piece(&self) -> usize {
        let [_, kv_heads, dim] = LLAMA3;
        if 2 * self.batch * kv_heads * self.context * dim <= AT_ONCE {
            self.context
        } else {
            self.context.div_ceil(PIECES)
        }
    }

    /// The same case, or one of fewer sequences, that `memory` bytes have room for; `None` if not even one sequence has.
    ///
    /// While a layer grows for the last time it is there one and a half times; beside it lie a piece of the prompt, twice, and the workspace of a step.
    /// A tenth of the memory is left alone, and one buffer may take no more than a quarter of it, as CubeCL has it.
    pub fn fitting(self, memory: usize) -> Option<Self> {
        let [heads, kv_heads, dim] = LLAMA3;
        let fits = |batch: usize| {
            let case = Self { batch, ..self };
            let keys = 2 * batch * kv_heads * self.context * dim;
            let sketch = batch * kv_heads * self.context * (dim + 4);
            let means = keys / 32;
            let piece = 2 * keys / self.context * case.piece();
            let workspace = 13 * batch * heads * self.context;
            let layer = 2 * keys + sketch + means;
            keys <= memory / 4 && layer + layer / 2 + 2 * piece + workspace <= memory / 10 * 9
        };
        let batch = (1..=self.batch).rev().find(|&batch| fits(batch))?;
        Some(Self { batch, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_has_no_room_becomes_a_smaller_one() {
        let case = |context, batch| Case { context, batch };
        let of_80 = 80 << 30;
        assert_eq!(case(8192, 16).fitting(of_80), Some(case(8192, 16)));
        let smaller = case(1 << 20, 16).fitting(of_80).expect("some");
        assert!((2..16).contains(&smaller.batch), "{smaller:?}");
        assert_eq!(case(1 << 20, 1).fitting(1 << 30), None);
    }
}
