use std::io;

use super::ggml_type::SUPPORTED;

/// Why a GGUF file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system failed to read.
    #[error("reading failed")]
    Io(#[from] io::Error),
    /// The file does not start with `GGUF`.
    #[error("not a GGUF file: it starts with the bytes {received:02x?}, expected \"GGUF\"")]
    Magic {
        /// The first four bytes.
        received: [u8; 4],
    },
    /// The format version is not supported.
    #[error("GGUF version {received} is not supported, expected 2 or 3")]
    Version {
        /// The version in the file.
        received: u32,
    },
    /// The file was written for big-endian machines.
    #[error("big-endian GGUF files are not supported")]
    BigEndian,
    /// The file ends before something that it announces.
    #[error(
        "the file is truncated or damaged: {what} at byte {at} needs {needed} bytes, {available} are left"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where.
        at: u64,
        /// Bytes needed.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// A text is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// A truth value is neither 0 nor 1.
    #[error("bool at byte {at} is {received}, expected 0 or 1")]
    Bool {
        /// Where.
        at: u64,
        /// The byte.
        received: u8,
    },
    /// A metadata value has a type code that the format does not define.
    #[error("metadata key {key:?} has unknown value type {code}")]
    ValueType {
        /// The key.
        key: String,
        /// The code.
        code: u32,
    },
    /// Lists nest too deep.
    #[error("metadata key {key:?} nests lists deeper than {most}")]
    Nesting {
        /// The key.
        key: String,
        /// The limit.
        most: usize,
    },
    /// A metadata key stands twice.
    #[error("metadata key {key:?} stands twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata value is of another type than its key implies.
    #[error("metadata key {key} is a {received}, expected {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// The type expected.
        expected: &'static str,
        /// The type in the file.
        received: &'static str,
    },
    /// The alignment is not a power of two up to a mebibyte.
    #[error("general.alignment is {received}, expected a power of two up to 1048576")]
    Alignment {
        /// The alignment in the file.
        received: u64,
    },
    /// A tensor name stands twice.
    #[error("tensor {tensor} stands twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor has no dimensions or too many.
    #[error("tensor {tensor} has {received} dimensions, expected 1 to {most}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        received: u32,
        /// The limit.
        most: u32,
    },
    /// The tensor's number format is not supported.
    #[error("tensor {tensor} is stored as {format} (type {code}); supported are {SUPPORTED}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The type code.
        code: u32,
        /// The format's name.
        format: &'static str,
    },
    /// A tensor's size overflows, is zero, or its rows are not whole blocks.
    #[error("tensor {tensor} of shape {shape:?} cannot be stored as {format}")]
    TensorSize {
        /// The tensor.
        tensor: String,
        /// Its dimensions, outermost first.
        shape: Vec<u64>,
        /// The format's name.
        format: &'static str,
    },
    /// A tensor does not start at a multiple of the alignment.
    #[error("tensor {tensor} starts at offset {offset}, expected a multiple of {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// A tensor's data reach past the end of the file.
    #[error(
        "the file is truncated: tensor {tensor} ends at byte {needed}, the file has {available}"
    )]
    TensorTruncated {
        /// The tensor.
        tensor: String,
        /// Bytes the file would have to hold.
        needed: u64,
        /// Bytes it holds.
        available: u64,
    },
}
