/// The supported formats, for messages.
pub(super) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K and Q6_K";

/// The number formats of tensors that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgmlType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 32 weights: a half scale and 4-bit values around 8.
    Q4_0,
    /// 32 weights: a half scale, a half minimum and 4-bit values.
    Q4_1,
    /// 32 weights: a half scale and 5-bit values around 16.
    Q5_0,
    /// 32 weights: a half scale, a half minimum and 5-bit values.
    Q5_1,
    /// 32 weights: a half scale and signed bytes.
    Q8_0,
    /// 256 weights: eight groups with a 6-bit scale and minimum each, and 4-bit values.
    Q4K,
    /// 256 weights: sixteen groups with a signed byte scale each, and 6-bit values around 32.
    Q6K,
}

impl GgmlType {
    /// Every format.
    pub const ALL: [Self; 10] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q6K,
    ];

    /// The format of a type code in a file, or `None` if it cannot be decoded.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The type code in a file.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The format's usual name.
    pub fn name(self) -> &'static str {
        format_name(self.code())
    }

    /// Number of weights in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Number of bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Number of bytes of a tensor, or `None` if a dimension is zero, a row is not whole blocks, or the size overflows.
    pub(super) fn bytes_of(self, shape: &[u64]) -> Option<u64> {
        let row = *shape.last()?;
        if shape.contains(&0) || !row.is_multiple_of(self.block_len() as u64) {
            return None;
        }
        let elements = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d))?;
        let bytes = (elements / self.block_len() as u64).checked_mul(self.block_bytes() as u64)?;
        // The decoded tensor must be addressable too.
        let decoded = elements.checked_mul(4)?;
        isize::try_from(decoded).ok().map(|_| bytes)
    }

    /// Number of bytes of a whole number of blocks.
    pub(super) fn bytes_of_elements(self, elements: usize) -> usize {
        elements / self.block_len() * self.block_bytes()
    }
}

/// The name of a type code, decodable or not.
pub(super) fn format_name(code: u32) -> &'static str {
    match code {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "an unknown format",
    }
}
