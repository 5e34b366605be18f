//! Reading GGUF files: header, metadata, tensors, and the Llama conventions on top.
//!
//! Tensors are read by seeking, not by mapping: mapping needs `unsafe`, and a file that changes under a map is undefined
//! behaviour.

mod dequantise;
mod error;
mod ggml_type;
mod header;
mod model;
#[cfg(test)]
mod tests;
mod value;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub use dequantise::dequantise_into;
pub use error::GgufError;
pub use ggml_type::GgmlType;
use ggml_type::format_name;
pub use header::{Header, TensorInfo};
pub use model::GgufModel;
pub use value::{Array, Metadata, Value};

use super::WeightError;

/// Elements decoded from one read of the file; a multiple of every block length.
const READ_ELEMENTS: usize = 1 << 18;

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    header: Header,
    file: Mutex<File>,
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`WeightError::Io`] and [`WeightError::Gguf`].
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let io = |source| WeightError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let header =
            Header::read(BufReader::new(&file), len).map_err(|source| WeightError::Gguf {
                path: path.to_path_buf(),
                source,
            })?;
        Ok(Self {
            path: path.to_path_buf(),
            header,
            file: Mutex::new(file),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads a tensor by the file's name for it, decoded to row-major `f32`.
    ///
    /// # Errors
    /// [`WeightError::MissingTensor`], [`WeightError::Io`], and [`WeightError::NonFinite`] if a weight is not finite.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let missing = || WeightError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        };
        let info = self.header.tensors.get(name).ok_or_else(missing)?;
        let io = |source| WeightError::Io {
            path: self.path.clone(),
            source,
        };
        let elements: usize = info.shape.iter().product();
        let mut values = vec![0.0; elements];
        let mut buffer = vec![0; info.kind.bytes_of_elements(elements.min(READ_ELEMENTS))];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(info.start)).map_err(io)?;
        for chunk in values.chunks_mut(READ_ELEMENTS) {
            let bytes = &mut buffer[..info.kind.bytes_of_elements(chunk.len())];
            file.read_exact(bytes).map_err(io)?;
            dequantise_into(info.kind, bytes, chunk);
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(WeightError::NonFinite {
                path: self.path.clone(),
                tensor: name.to_owned(),
                index,
                value: values[index],
            }),
        }
    }
}
