use half::{bf16, f16};

use super::GgmlType;

/// Decodes whole blocks of weights.
///
/// # Numerics
/// One `f32` multiplication and at most one addition for each weight, in the order of the reference implementation (ggml),
/// so that the values are the same bits as there.
///
/// # Panics
/// If `bytes` and `out` do not hold the same number of whole blocks.
///
/// # Examples
/// ```
/// use hira_examples::weights::gguf::{GgmlType, dequantise_into};
///
/// let mut block = [0_u8; 34];
/// block[..2].copy_from_slice(&[0x00, 0x38]); // the half 0.5
/// block[2] = 3;
/// block[3] = 0xff;
/// let mut weights = [0.0; 32];
/// dequantise_into(GgmlType::Q8_0, &block, &mut weights);
/// assert_eq!(weights[..3], [1.5, -0.5, 0.0]);
/// ```
pub fn dequantise_into(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert!(
        out.len().is_multiple_of(kind.block_len()),
        "{} weights are not whole blocks",
        out.len()
    );
    assert_eq!(
        bytes.len(),
        kind.bytes_of_elements(out.len()),
        "bytes of {} weights",
        out.len()
    );
    let blocks = bytes
        .chunks_exact(kind.block_bytes())
        .zip(out.chunks_exact_mut(kind.block_len()));
    match kind {
        GgmlType::F32 => {
            for (block, out) in blocks {
                out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
            }
        }
        GgmlType::F16 => blocks.for_each(|(block, out)| out[0] = half(block, 0)),
        GgmlType::Bf16 => blocks
            .for_each(|(block, out)| out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32()),
        GgmlType::Q4_0 => blocks.for_each(|(block, out)| q4_0(block, out)),
        GgmlType::Q4_1 => blocks.for_each(|(block, out)| q4_1(block, out)),
        GgmlType::Q5_0 => blocks.for_each(|(block, out)| q5_0(block, out)),
        GgmlType::Q5_1 => blocks.for_each(|(block, out)| q5_1(block, out)),
        GgmlType::Q8_0 => blocks.for_each(|(block, out)| q8_0(block, out)),
        GgmlType::Q4K => blocks.for_each(|(block, out)| q4_k(block, out)),
        GgmlType::Q6K => blocks.for_each(|(block, out)| q6_k(block, out)),
    }
}

/// The IEEE half at a byte offset.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low nibbles are weights 0..16, high nibbles 16..32.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (j, &byte) in block[2..].iter().enumerate() {
        out[j] = f32::from(i16::from(byte & 15) - 8) * scale;
        out[j + 16] = f32::from(i16::from(byte >> 4) - 8) * scale;
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (j, &byte) in block[4..].iter().enumerate() {
        out[j] = f32::from(byte & 15) * scale + minimum;
        out[j + 16] = f32::from(byte >> 4) * scale + minimum;
    }
}

/// The fifth bits of the 32 weights, one bit each in order.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The 5-bit value of weight `j`, from its nibble.
fn five_bits(nibble: u8, fifth: u32, j: usize) -> u8 {
    nibble | (((fifth >> j) & 1) as u8) << 4
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (scale, fifth) = (half(block, 0), fifth_bits(block, 2));
    for (j, &byte) in block[6..].iter().enumerate() {
        out[j] = f32::from(i16::from(five_bits(byte & 15, fifth, j)) - 16) * scale;
        out[j + 16] = f32::from(i16::from(five_bits(byte >> 4, fifth, j + 16)) - 16) * scale;
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum, fifth) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    for (j, &byte) in block[8..].iter().enumerate() {
        out[j] = f32::from(five_bits(byte & 15, fifth, j)) * scale + minimum;
        out[j + 16] = f32::from(five_bits(byte >> 4, fifth, j + 16)) * scale + minimum;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * scale;
    }
}

/// The 6-bit scale and minimum of group `j` of eight. Groups 0..4 have theirs in the low six bits of bytes `j` and `j + 4`;
/// groups 4..8 have the low four bits in the nibbles of byte `j + 4`, the high two in the top bits of bytes `j - 4` and `j`.
fn q4_k_group(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        (
            low & 15 | packed[j - 4] >> 6 << 4,
            low >> 4 | packed[j] >> 6 << 4,
        )
    }
}

/// Each 32 bytes hold two groups: low nibbles the first, high nibbles the second.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (packed, nibbles) = (&block[4..16], &block[16..]);
    for (pair, (bytes, out)) in nibbles
        .chunks_exact(32)
        .zip(out.chunks_exact_mut(64))
        .enumerate()
    {
        let (low, high) = out.split_at_mut(32);
        for (group, out, shift) in [(2 * pair, low, 0), (2 * pair + 1, high, 4)] {
            let (group_scale, group_minimum) = q4_k_group(packed, group);
            let (d, m) = (
                scale * f32::from(group_scale),
                minimum * f32::from(group_minimum),
            );
            for (out, &byte) in out.iter_mut().zip(bytes) {
                *out = d * f32::from(byte >> shift & 15) - m;
            }
        }
    }
}

/// Two halves of 128 weights; each has 64 bytes of nibbles and 32 bytes of bit pairs, and eight scales of 16 weights.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = (&rest[..16], half(rest, 16));
    for (part, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[64 * part..], &high[32 * part..], &scales[8 * part..]);
        for (i, out) in out.iter_mut().enumerate() {
            let (quarter, column) = (i / 32, i % 32);
            let nibble = low[column + 32 * (quarter % 2)] >> (4 * (quarter / 2)) & 15;
            let pair = high[column] >> (2 * quarter) & 3;
            let value = f32::from(i16::from(nibble | pair << 4) - 32);
            *out = scale * f32::from(scales[i / 16].cast_signed()) * value;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit `i` of a byte string, counted from the lowest bit of the first byte.
    fn bit(bytes: &[u8], i: usize) -> f64 {
        f64::from(bytes[i / 8] >> (i % 8) & 1)
    }

    /// An unsigned number made of listed bits, lowest first.
    fn bits(bytes: &[u8], places: impl IntoIterator<Item = usize>) -> f64 {
        places
            .into_iter()
            .enumerate()
            .map(|(power, place)| bit(bytes, place) * f64::from(1_u32 << power))
            .sum()
    }

    /// A half from its parts: sign, exponent, fraction.
    fn half_by_parts(bytes: &[u8]) -> f64 {
        let (fraction, exponent) = (bits(bytes, 0..10), bits(bytes, 10..15));
        let magnitude = if exponent == 0.0 {
            fraction * 2_f64.powi(-24)
        } else {
            (1.0 + fraction / 1024.0) * 2_f64.powf(exponent - 15.0)
        };
        if bit(bytes, 15) == 1.0 {
            -magnitude
        } else {
            magnitude
        }
    }

    /// A signed byte from its bits.
    fn signed(byte: &[u8]) -> f64 {
        bits(byte, 0..7) - 128.0 * bit(byte, 7)
    }

    /// Weight `i` of a block, from the bit positions that the format defines, in f64.
    fn weight_naive(kind: GgmlType, b: &[u8], i: usize) -> f64 {
        let nibble = |start: usize| {
            let first = 8 * (start + i % 16) + 4 * (i / 16);
            bits(b, first..first + 4)
        };
        match kind {
            GgmlType::F32 => f64::from(f32::from_bits(bits(b, 0..32) as u32)),
            GgmlType::F16 => half_by_parts(b),
            GgmlType::Bf16 => f64::from(f32::from_bits((bits(b, 0..16) as u32) << 16)),
            GgmlType::Q4_0 => half_by_parts(b) * (nibble(2) - 8.0),
            GgmlType::Q4_1 => half_by_parts(b) * nibble(4) + half_by_parts(&b[2..]),
            GgmlType::Q5_0 => half_by_parts(b) * (nibble(6) + 16.0 * bit(&b[2..], i) - 16.0),
            GgmlType::Q5_1 => {
                half_by_parts(b) * (nibble(8) + 16.0 * bit(&b[4..], i)) + half_by_parts(&b[2..])
            }
            GgmlType::Q8_0 => half_by_parts(b) * signed(&b[2 + i..]),
            GgmlType::Q4K => {
                let (group, packed) = (i / 32, &b[4..16]);
                let six = |first: [usize; 6]| bits(packed, first);
                let (scale, minimum) = if group < 4 {
                    let (s, m) = (8 * group, 8 * (group + 4));
                    (
                        six([s, s + 1, s + 2, s + 3, s + 4, s + 5]),
                        six([m, m + 1, m + 2, m + 3, m + 4, m + 5]),
                    )
                } else {
                    let (low, s, m) = (8 * (group + 4), 8 * (group - 4), 8 * group);
                    (
                        six([low, low + 1, low + 2, low + 3, s + 6, s + 7]),
                        six([low + 4, low + 5, low + 6, low + 7, m + 6, m + 7]),
                    )
                };
                let first = 8 * (16 + 32 * (i / 64) + i % 32) + 4 * (group % 2);
                half_by_parts(b) * scale * bits(b, first..first + 4)
                    - half_by_parts(&b[2..]) * minimum
            }
            GgmlType::Q6K => {
                let (part, quarter, column) = (i / 128, i % 128 / 32, i % 32);
                let low = 8 * (64 * part + 32 * (quarter & 1) + column) + 4 * (quarter >> 1);
                let high = 8 * (128 + 32 * part + column) + 2 * quarter;
                let value = bits(b, [low, low + 1, low + 2, low + 3, high, high + 1]) - 32.0;
                half_by_parts(&b[208..]) * signed(&b[192 + i / 16..]) * value
            }
        }
    }

    /// Where a block has halves; their exponents are kept below infinity.
    fn halves(kind: GgmlType) -> &'static [usize] {
        match kind {
            GgmlType::F32 | GgmlType::Bf16 => &[],
            GgmlType::F16 | GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K => &[0, 2],
            GgmlType::Q6K => &[208],
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_bit_formula(
            kind in proptest::sample::select(GgmlType::ALL.to_vec()),
            mut bytes in proptest::collection::vec(any::<u8>(), 3 * 256),
        ) {
            bytes.truncate(3 * kind.block_bytes());
            for block in bytes.chunks_mut(kind.block_bytes()) {
                for &at in halves(kind) {
                    block[at + 1] &= !0x40;
                }
                match kind {
                    GgmlType::F32 => block[3] &= !0x40,
                    GgmlType::Bf16 => block[1] &= !0x40,
                    _ => {}
                }
            }
            let n = kind.block_len();
            let mut out = vec![f32::NAN; 3 * n];
            dequantise_into(kind, &bytes, &mut out);
            for (i, &received) in out.iter().enumerate() {
                let block = &bytes[i / n * kind.block_bytes()..][..kind.block_bytes()];
                let expected = weight_naive(kind, block, i % n);
                // Two roundings; the terms of a difference are at most 2^1 * 63 * 15.
                let tolerance = 4e-7 * expected.abs() + 4e-7 * 2.0 * 63.0 * 15.0;
                prop_assert!((f64::from(received) - expected).abs() <= tolerance, "{kind:?} {i}: {received} {expected}");
                if kind.block_len() == 1 {
                    prop_assert_eq!(f64::from(received), expected);
                }
            }
        }
    }

    #[test]
    fn sizes_are_those_of_the_format() {
        let sizes = GgmlType::ALL.map(|kind| (kind.name(), kind.block_len(), kind.block_bytes()));
        let expected = [
            ("F32", 1, 4),
            ("F16", 1, 2),
            ("BF16", 1, 2),
            ("Q4_0", 32, 18),
            ("Q4_1", 32, 20),
            ("Q5_0", 32, 22),
            ("Q5_1", 32, 24),
            ("Q8_0", 32, 34),
            ("Q4_K", 256, 144),
            ("Q6_K", 256, 210),
        ];
        assert_eq!(sizes, expected);
    }
}
