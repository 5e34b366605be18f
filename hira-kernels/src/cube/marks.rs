//! Which rows a step reads, one bit a key, and where a row lies that was brought to the device for the step.

use cubecl::prelude::*;

use super::scan::{CONSTANTS, band};
use super::shape::{CHUNK, KEYS, UNITS};
use super::threshold::CUT;

/// Keys whose bits make a word.
pub(super) const WORD: usize = 32;

/// Words of a chunk.
pub(super) const CHUNK_WORDS: usize = CHUNK / WORD;

/// Units whose keys share a word.
const WORD_UNITS: usize = WORD / KEYS;

/// One cube a chunk and head, one unit four neighbouring keys: a key's bit is set if it is a survivor of some query of the group.
///
/// `marks` is `[heads][chunks][32]`, and all of it is written.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn mark(
    estimates: &Array<f32>,
    parameters: &Array<u32>,
    constants: &Array<f32>,
    cuts: &Array<u32>,
    marks: &mut Array<u32>,
    sinks: u32,
    window_start: u32,
    len: u32,
    capacity: u32,
    work_capacity: u32,
    #[comptime] group: usize,
) {
    let mut bits = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let unit = UNIT_POS as usize;
    let head = CUBE_POS_Y as usize;
    let first = CUBE_POS_X as usize * CHUNK + KEYS * unit;
    let mut own = 0u32;
    for query in 0..group {
        let query = head * group + query;
        let row = query * work_capacity as usize;
        let (norm, slack) = (
            constants[query * CONSTANTS],
            constants[query * CONSTANTS + 1],
        );
        let tau = f32::reinterpret(cuts[query * CUT]);
        #[unroll]
        for i in 0..KEYS {
            let position = (first + i) as u32;
            if position < len {
                let parameter = parameters[head * capacity as usize + first + i];
                let upper = estimates[row + first + i] + band(parameter, norm, slack);
                if upper >= tau || position < sinks || position >= window_start {
                    own |= comptime!(1u32 << i as u32);
                }
            }
        }
    }
    bits[unit] = own << ((KEYS * (unit % WORD_UNITS)) as u32);
    sync_cube();
    if unit < CHUNK_WORDS {
        let mut word = 0u32;
        for i in 0..WORD_UNITS {
            word |= bits[unit * WORD_UNITS + i];
        }
        marks[(head * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * CHUNK_WORDS + unit] = word;
    }
}

/// Whether a key is marked. `words` is a head's number of words.
#[cube]
pub(super) fn is_marked(marks: &Array<u32>, head: usize, words: usize, position: u32) -> bool {
    let word = marks[head * words + (position / comptime!(WORD as u32)) as usize];
    (word >> (position % comptime!(WORD as u32))) & 1u32 == 1u32
}

/// Where the exact row of a key lies: at its position in the layer, or, if rows were brought for the step, as many rows from the first
/// as there are marked keys before it.
#[cube]
pub(super) fn row_of(
    marks: &Array<u32>,
    ranks: &Array<u32>,
    head: usize,
    head_row: usize,
    words: usize,
    position: u32,
    #[comptime] staged: bool,
) -> usize {
    let mut row = head_row + position as usize;
    if staged {
        let word = head * words + (position / comptime!(WORD as u32)) as usize;
        let before = marks[word] & ((1u32 << (position % comptime!(WORD as u32))) - 1u32);
        row = (ranks[word] + before.count_ones()) as usize;
    }
    row
}
