//! Rows that lie in main memory, brought to the device for a step.

use std::ops::Range;

use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::host::{HostRows, Kind};
use super::marks::WORD;

/// Bytes of a copy from which on several threads gather it.
const SHARED_FROM: usize = 1 << 21;

/// One upload: the ranks of the words of marks, and the rows of the marked keys, head by head, ascending.
#[derive(Clone, Debug)]
pub(super) struct Staged {
    pub(super) ranks: Handle,
    pub(super) keys: Handle,
    pub(super) values: Handle,
}

/// Rows before each word of marks, and of all.
pub(super) struct Ranks {
    ranks: Vec<u32>,
    rows: usize,
}

impl Ranks {
    pub(super) fn new(marks: &[u32]) -> Self {
        let mut rows = 0;
        let before = marks.iter().map(|word| {
            let rank = rows;
            rows += word.count_ones();
            rank
        });
        Self {
            ranks: before.collect(),
            rows: rows as usize,
        }
    }

    /// Marked keys of all heads.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

impl Staged {
    /// Gathers what is marked, `marks` being `[heads][words]`, and sends it in one copy.
    pub(super) fn new<R: Runtime>(
        client: &ComputeClient<R>,
        host: &HostRows,
        marks: &[u32],
        ranks: &Ranks,
        heads: usize,
    ) -> Self {
        let parts = Kind::BOTH.map(|kind| ranks.rows * host.row_bytes(kind));
        let layout = Layout::new(client, [4 * ranks.ranks.len(), parts[0], parts[1]]);
        let mut bytes = vec![0; layout.total];
        let (head, rest) = bytes.split_at_mut(layout.starts[1]);
        head[..4 * ranks.ranks.len()].copy_from_slice(u32::as_bytes(&ranks.ranks));
        let (keys, values) = rest.split_at_mut(layout.starts[2] - layout.starts[1]);
        let words = marks.len() / heads;
        let mut outs = [keys, values];
        // what each head writes, as many rows as it has marked keys
        let mut jobs = Vec::with_capacity(heads);
        for (head, marks) in marks.chunks_exact(words).enumerate() {
            let end = ranks.ranks.get((head + 1) * words);
            let rows =
                end.map_or(ranks.rows, |&end| end as usize) - ranks.ranks[head * words] as usize;
            let own = Kind::BOTH.map(|kind| {
                let out = std::mem::take(&mut outs[kind as usize]);
                let (own, rest) = out.split_at_mut(rows * host.row_bytes(kind));
                outs[kind as usize] = rest;
                own
            });
            jobs.push((head, marks, own));
        }
        let gather = |(head, marks, [keys, values]): (usize, &[u32], [&mut [u8]; 2])| {
            let [key_bytes, value_bytes] = Kind::BOTH.map(|kind| host.row_bytes(kind));
            let rows = keys
                .chunks_exact_mut(key_bytes)
                .zip(values.chunks_exact_mut(value_bytes));
            for (position, (key, value)) in positions(marks).zip(rows) {
                key.copy_from_slice(host.row(Kind::Keys, head, position));
                value.copy_from_slice(host.row(Kind::Values, head, position));
            }
        };
        let threads = match parts[0] + parts[1] {
            few if few < SHARED_FROM => 1,
            _ => std::thread::available_parallelism().map_or(1, |count| count.get().min(heads)),
        };
        if threads > 1 {
            let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
            for (i, job) in jobs.into_iter().enumerate() {
                shares[i % threads].push(job);
            }
            let gather = &gather;
            std::thread::scope(|scope| {
                for share in shares {
                    scope.spawn(move || share.into_iter().for_each(gather));
                }
            });
        } else {
            jobs.into_iter().for_each(gather);
        }
        let [ranks, keys, values] = layout.send(client, bytes);
        Self {
            ranks,
            keys,
            values,
        }
    }
}

/// Keys and values of a run of positions, `[heads][tokens][row]` each, sent in one copy.
pub(super) fn send_run<R: Runtime>(
    client: &ComputeClient<R>,
    host: &HostRows,
    tokens: Range<usize>,
    heads: usize,
) -> [Handle; 2] {
    let of_head = Kind::BOTH.map(|kind| tokens.len() * host.row_bytes(kind));
    let layout = Layout::new(client, of_head.map(|bytes| heads * bytes));
    let mut bytes = vec![0; layout.total];
    for (kind, start) in Kind::BOTH.into_iter().zip(layout.starts) {
        let of_head = of_head[kind as usize];
        let out = bytes[start..start + heads * of_head].chunks_exact_mut(of_head);
        for (head, out) in out.enumerate() {
            host.copy(kind, head, tokens.clone(), out);
        }
    }
    layout.send(client, bytes)
}

/// The positions of the bits of a head.
fn positions(marks: &[u32]) -> impl Iterator<Item = usize> {
    marks.iter().enumerate().flat_map(|(word, &bits)| {
        let mut left = bits;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (bit < WORD as u32).then_some(word * WORD + bit as usize)
        })
    })
}

/// Parts of one buffer, each where the device can bind it.
struct Layout<const N: usize> {
    starts: [usize; N],
    sizes: [usize; N],
    total: usize,
}

impl<const N: usize> Layout<N> {
    fn new<R: Runtime>(client: &ComputeClient<R>, sizes: [usize; N]) -> Self {
        let alignment = (client.properties().memory.alignment as usize).max(256);
        let mut total = 0;
        let starts = sizes.map(|size| {
            let start = total;
            // an empty part cannot be bound
            total += size.max(1).next_multiple_of(alignment);
            start
        });
        Self {
            starts,
            sizes,
            total,
        }
    }

    fn send<R: Runtime>(&self, client: &ComputeClient<R>, bytes: Vec<u8>) -> [Handle; N] {
        let whole = client.create(Bytes::from_bytes_vec(bytes));
        std::array::from_fn(|i| {
            let end = self.starts[i] + self.sizes[i].max(16);
            let part = whole.clone().offset_start(self.starts[i] as u64);
            part.offset_end((self.total - end) as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_positions_and_ranks_count_what_is_before() {
        let marks = [0x8000_0001, 0, 6, 1];
        assert_eq!(positions(&marks).collect::<Vec<_>>(), [0, 31, 65, 66, 96]);
        let ranks = Ranks::new(&marks);
        assert_eq!((&ranks.ranks[..], ranks.rows()), (&[0, 2, 2, 4][..], 5));
    }
}
