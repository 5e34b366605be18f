//! Histories from choices: drawn at random, or read from any string of bytes.

use rand::RngExt;
use rand::rngs::StdRng;

use super::{
    BRANCHING, CONTENTS, DIMS, Flaw, History, MIN_COARSE_LENS, Op, Query, SEGMENT_LENS, Search,
    Shape, Step, VARIANTS,
};

/// How large a history may get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Values (keys times dimension) of all appended batches together.
    pub(crate) values: usize,
    /// Keys of all appended batches together.
    pub(crate) keys: usize,
    pub(crate) steps: usize,
}

impl Limits {
    /// For the fuzzer and its corpus: hundreds of histories a second.
    pub(crate) const FUZZ: Self = Self {
        values: 60_000,
        keys: 4_000,
        steps: 40,
    };
}

/// Where choices come from.
pub(crate) trait Source {
    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: u32) -> u32;

    /// Whether there are choices left.
    fn has_more(&self) -> bool;
}

/// Choices from bytes: every string of bytes is a history. Choices beyond its end are 0.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Source for Bytes<'_> {
    fn below(&mut self, n: u32) -> u32 {
        let width = if n <= 1 << 8 { 1 } else { 2 };
        let (now, later) = self.0.split_at(self.0.len().min(width));
        self.0 = later;
        let number = now.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
        number % n
    }

    fn has_more(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Source for StdRng {
    fn below(&mut self, n: u32) -> u32 {
        self.random_range(0..n)
    }

    fn has_more(&self) -> bool {
        true
    }
}

/// A history from a source's choices.
pub(crate) fn history(source: &mut impl Source, limits: Limits) -> History {
    let shape = shape(source);
    let mut left = limits.keys.min(limits.values / usize::from(shape.dim));
    let mut steps = Vec::new();
    while steps.len() < limits.steps && source.has_more() {
        let op = op(source, &shape, &mut left);
        let on = source.below(4) as u8;
        steps.push(Step { on, op });
    }
    History { shape, steps }
}

fn shape(source: &mut impl Source) -> Shape {
    Shape {
        dim: pick(source, &DIMS),
        levels: source.below(5) as u8,
        branching: pick(source, &BRANCHING),
        segment_len: pick(source, &SEGMENT_LENS),
        min_coarse_len: pick(source, &MIN_COARSE_LENS),
        variant: source.below(VARIANTS.len() as u32) as u8,
        kernel: source.below(3) as u8,
        content: source.below(u32::from(CONTENTS)) as u8,
        seed: source.below(256) as u8,
    }
}

fn pick<T: Copy>(source: &mut impl Source, list: &[T]) -> T {
    list[source.below(list.len() as u32) as usize]
}

/// One operation: half of them searches. `left` is the number of keys that may still be appended.
fn op(source: &mut impl Source, shape: &Shape, left: &mut usize) -> Op {
    match source.below(16) {
        0..=3 => {
            let rows = batch(source, shape.segment_len).min(*left as u32);
            *left -= rows as usize;
            let seed = source.below(4) as u8;
            Op::Append { rows, seed }
        }
        4 => Op::Refused {
            rows: source.below(20) as u8,
            flaw: pick(
                source,
                &[Flaw::Nan, Flaw::Infinity, Flaw::Norm, Flaw::Ragged],
            ),
            seed: source.below(256) as u8,
        },
        5 => Op::Truncate {
            keep: source.below(1001) as u16,
            less: source.below(32) as u8,
        },
        7 => Op::Evict {
            before: source.below(1001) as u16,
        },
        6 => match source.below(8) {
            0 => Op::Clear,
            1..=4 => Op::Seal,
            _ => Op::Fork,
        },
        _ => Op::Search(search(source)),
    }
}

/// Keys of a batch: none, one, a few, an odd number, or several segments and a rest.
fn batch(source: &mut impl Source, segment_len: u32) -> u32 {
    match source.below(8) {
        0 => 0,
        1 | 2 => 1,
        3 => 2 + source.below(15),
        4 | 5 => 1 + 2 * source.below(200),
        _ => source.below(4) * segment_len + source.below(40),
    }
}

/// A search; also what long histories are made of.
pub(crate) fn search(source: &mut impl Source) -> Search {
    Search {
        queries: [1, 1, 2, 3, 4, 0, 9, 5][source.below(8) as usize],
        query: match source.below(8) {
            0..=3 => Query::Content(source.below(u32::from(CONTENTS)) as u8),
            4..=5 => Query::Stored,
            6 => Query::Opposite,
            _ => Query::Zero,
        },
        visible: match source.below(3) {
            0 => source.below(1001) as u16,
            _ => 1000,
        },
        hidden: source.below(3) as u8 * source.below(16) as u8,
        front: match source.below(3) {
            0 => source.below(1001) as u16,
            _ => 0,
        },
        rule: source.below(256) as u8,
        amount: source.below(1001) as u16,
        limit: match source.below(6) {
            0 => Some(source.below(300) as u16),
            _ => None,
        },
        scale: source.below(4) as u8,
        parallel: source.below(2) == 1,
        seed: source.below(256) as u8,
    }
}
