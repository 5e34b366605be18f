use std::io;
use std::path::PathBuf;

use super::gguf::GgufError;

/// Why a model's files were refused. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The operating system refused to open or read a file.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is neither a GGUF file nor a folder with `config.json`.
    #[error("{}: neither a .gguf file nor a folder with config.json and safetensors", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
    },
    /// A file that the folder needs is not there.
    #[error("{}: the folder has no {file}", path.display())]
    MissingFile {
        /// The folder.
        path: PathBuf,
        /// The file's name.
        file: &'static str,
    },
    /// The GGUF file is damaged or of a kind that is not supported.
    #[error("cannot use the GGUF file {}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A JSON file does not parse, or a key has the wrong type.
    #[error("cannot parse {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The safetensors header is damaged.
    #[error("{}: damaged safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The index of a sharded model names a file outside its folder.
    #[error("{}: shard name {shard:?} is not a plain file name", path.display())]
    ShardName {
        /// The index file.
        path: PathBuf,
        /// The name.
        shard: String,
    },
    /// The file is shorter than a tensor in it needs.
    #[error("{}: tensor {tensor} ends at byte {needed}, but the file has {available}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Bytes the file would have to hold.
        needed: u64,
        /// Bytes it holds.
        available: u64,
    },
    /// A tensor that the model needs is not in the file.
    #[error("{}: tensor {tensor} is missing", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The Hugging Face name that was asked for.
        tensor: String,
    },
    /// The file holds a tensor that the model would ignore, so its output would be wrong.
    #[error("{}: tensor {tensor} is not part of a llama, mistral or qwen2 model", path.display())]
    UnknownTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("{}: tensor {tensor} has shape {received:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The shape in the file.
        received: Vec<usize>,
    },
    /// The tensor's number format is not supported.
    #[error("{}: tensor {tensor} is stored as {found}; supported are {supported}", path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The format in the file.
        found: String,
        /// The supported formats.
        supported: &'static str,
    },
    /// A weight is infinite or not a number.
    #[error("{}: tensor {tensor} holds {value} at element {index}", path.display())]
    NonFinite {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Row-major index of the first such value in the file's order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The model's architecture is not supported.
    #[error("{}: architecture {found:?} is not supported; supported are llama, mistral and qwen2", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The architecture in the file.
        found: String,
    },
    /// The rotary scaling is not supported.
    #[error("{}: rope scaling {found:?} is not supported; supported are linear, llama3 and per-frequency factors", path.display())]
    RopeScaling {
        /// The file.
        path: PathBuf,
        /// The scaling in the file.
        found: String,
    },
    /// A key that the configuration needs is missing.
    #[error("{}: key {key} is missing", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A configuration value is outside what the model can do.
    #[error("{}: {key} is {value}, but {requirement}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The value in the file.
        value: String,
        /// What would be accepted.
        requirement: &'static str,
    },
}
