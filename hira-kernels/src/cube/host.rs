//! Exact rows of a layer in main memory.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::DeviceShape;
use super::shape::{BLOCK, CHUNK};
use crate::Precision;

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Keys,
    Values,
}

impl Kind {
    pub(super) const BOTH: [Kind; 2] = [Kind::Keys, Kind::Values];
}

/// Keys and values of all heads as the device has them, byte for byte, in runs of 1024 tokens. Forks share runs until one of them writes.
#[derive(Clone, Debug)]
pub(super) struct HostRows {
    heads: usize,
    /// Bytes of a row of keys and of values.
    row_bytes: [usize; 2],
    len: usize,
    runs: Vec<Arc<Run>>,
}

/// [`CHUNK`] tokens, `[heads][CHUNK][row]` keys and values.
#[derive(Clone, Debug)]
struct Run([Vec<u8>; 2]);

impl HostRows {
    pub(super) fn new(shape: &DeviceShape) -> Self {
        let bytes = shape.precision.bytes();
        Self {
            heads: shape.heads,
            row_bytes: [shape.dim * bytes, shape.value_dim * bytes],
            len: 0,
            runs: Vec::new(),
        }
    }

    /// Tokens.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of keys and of values with so many tokens.
    pub(super) fn bytes_of(&self, tokens: usize) -> [u64; 2] {
        let rows = (self.heads * tokens.div_ceil(CHUNK) * CHUNK) as u64;
        self.row_bytes.map(|bytes| rows * bytes as u64)
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self, kind: Kind) -> usize {
        self.row_bytes[kind as usize]
    }

    /// Appends the first `tokens` rows of every head of `rows`, keys and values `[heads][stride][row]`.
    pub(super) fn append(&mut self, rows: [&[u8]; 2], stride: usize, tokens: usize) {
        let mut done = 0;
        while done < tokens {
            let at = self.len % CHUNK;
            let count = (CHUNK - at).min(tokens - done);
            if at == 0 {
                let zeros = |bytes: usize| vec![0; self.heads * CHUNK * bytes];
                self.runs.push(Arc::new(Run(self.row_bytes.map(zeros))));
            }
            let Some(run) = self.runs.last_mut() else {
                return;
            };
            let Run(parts) = Arc::make_mut(run);
            for ((part, rows), bytes) in parts.iter_mut().zip(rows).zip(self.row_bytes) {
                for head in 0..self.heads {
                    let from = (head * stride + done) * bytes;
                    let to = (head * CHUNK + at) * bytes;
                    part[to..to + count * bytes].copy_from_slice(&rows[from..from + count * bytes]);
                }
            }
            self.len += count;
            done += count;
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.runs.truncate(len.div_ceil(CHUNK));
        }
    }

    /// The row of a token that is there.
    pub(super) fn row(&self, kind: Kind, head: usize, position: usize) -> &[u8] {
        let bytes = self.row_bytes[kind as usize];
        let at = (head * CHUNK + position % CHUNK) * bytes;
        &self.runs[position / CHUNK].0[kind as usize][at..at + bytes]
    }

    /// Copies the rows of tokens that are there, one after another.
    pub(super) fn copy(&self, kind: Kind, head: usize, tokens: Range<usize>, out: &mut [u8]) {
        let bytes = self.row_bytes[kind as usize];
        let mut done = 0;
        while done < tokens.len() {
            let position = tokens.start + done;
            let at = position % CHUNK;
            let count = (CHUNK - at).min(tokens.len() - done);
            let from = (head * CHUNK + at) * bytes;
            let run = &self.runs[position / CHUNK].0[kind as usize];
            out[done * bytes..(done + count) * bytes]
                .copy_from_slice(&run[from..from + count * bytes]);
            done += count;
        }
    }

    /// The sums of the values of the last block of every head, if it is not complete, in the order of their positions: what the device would have summed.
    pub(super) fn open_sums(&self, precision: Precision) -> Vec<f32> {
        let columns = self.row_bytes[Kind::Values as usize] / precision.bytes();
        let mut sums = vec![0.0_f32; self.heads * columns];
        for (head, sums) in sums.chunks_exact_mut(columns).enumerate() {
            for position in self.len / BLOCK * BLOCK..self.len {
                let row = self.row(Kind::Values, head, position);
                for (sum, value) in sums.iter_mut().zip(widened(row, precision)) {
                    *sum += value;
                }
            }
        }
        sums
    }
}

/// The values of a row.
fn widened(row: &[u8], precision: Precision) -> Box<dyn Iterator<Item = f32> + '_> {
    match precision {
        Precision::F32 => {
            let (values, _) = row.as_chunks();
            Box::new(values.iter().map(|&bytes| f32::from_ne_bytes(bytes)))
        }
        Precision::F16 | Precision::Bf16 => {
            let (values, _) = row.as_chunks();
            let wide = move |&bytes: &[u8; 2]| match precision {
                Precision::F16 => f16::from_ne_bytes(bytes).to_f32(),
                _ => bf16::from_ne_bytes(bytes).to_f32(),
            };
            Box::new(values.iter().map(wide))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_across_runs_and_forks_keep_their_own() {
        let shape = DeviceShape {
            heads: 2,
            group: 1,
            dim: 16,
            value_dim: 16,
            precision: Precision::F16,
        };
        let mut rows = HostRows::new(&shape);
        let stride = 1500;
        let of = |head: usize, position: usize| f16::from_f32((head * 7 + position % 97) as f32);
        let part: Vec<u8> = (0..2 * stride * 16)
            .flat_map(|i| of(i / 16 / stride, i / 16 % stride).to_ne_bytes())
            .collect();
        rows.append([&part, &part], stride, 1400);
        assert_eq!((rows.len(), rows.runs.len()), (1400, 2));
        for (head, position) in [(0, 0), (1, 1023), (0, 1024), (1, 1399)] {
            let expected = of(head, position).to_ne_bytes();
            assert_eq!(rows.row(Kind::Values, head, position)[..2], expected);
        }
        let mut copy = vec![0; 600 * 32];
        rows.copy(Kind::Keys, 1, 700..1300, &mut copy);
        assert_eq!(copy[..], part[(stride + 700) * 32..][..600 * 32]);

        let fork = rows.clone();
        rows.truncate(1100);
        rows.append([&part, &part], stride, 1);
        let first = of(1, 0).to_ne_bytes();
        assert_eq!(rows.row(Kind::Keys, 1, 1100)[..2], first);
        assert_eq!(
            fork.row(Kind::Keys, 1, 1100)[..2],
            of(1, 1100).to_ne_bytes()
        );
        let expected: f32 = (1088..1101)
            .map(|position| if position == 1100 { 0 } else { position })
            .map(|position| of(1, position).to_f32())
            .sum();
        assert_eq!(rows.open_sums(Precision::F16)[16], expected);
        assert_eq!(rows.bytes_of(1025), [2 * 2048 * 32; 2]);
    }
}
