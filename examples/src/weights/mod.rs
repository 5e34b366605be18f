//! Model weights from files: one GGUF, or a Hugging Face folder.
//!
//! Whatever the file holds, the model sees the same thing: Hugging Face tensor names, row-major `f32`, and the half-split
//! RoPE layout. A model asks for one tensor at a time, so the peak of memory stays near the `f32` size of the model.

mod config;
mod error;
pub mod gguf;
pub mod hf;
mod hf_config;
#[cfg(test)]
mod hf_tests;
mod model_file;
mod rope_scaling;

use std::path::Path;

pub use config::{Architecture, ModelConfig};
pub use error::WeightError;
pub use model_file::ModelFile;
pub use rope_scaling::{RopeScaling, RopeStretch, RopeStretchError};

/// A tensor on the host: row-major `f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Dimensions, outermost first. A linear layer's weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// The values, `shape` product of them.
    pub data: Vec<f32>,
}

/// Where a model's weights come from.
///
/// Names are those of Hugging Face (`model.layers.0.self_attn.q_proj.weight`) and rotary rows are half-split, whatever the
/// file's own conventions are.
pub trait WeightSource {
    /// The model's shape and constants.
    fn config(&self) -> &ModelConfig;

    /// The file or folder, for messages.
    fn origin(&self) -> &Path;

    /// The shape of a tensor, or `None` if the source has no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`WeightError::MissingTensor`] if there is no such tensor; an error that names file and tensor if it cannot be read or
    /// holds a value that is not finite.
    fn tensor(&self, name: &str) -> Result<HostTensor, WeightError>;

    /// True if the source has the tensor.
    fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Reads one tensor, having checked its shape before anything is allocated.
    ///
    /// # Errors
    /// [`WeightError::Shape`] if the shape differs, and those of [`WeightSource::tensor`].
    fn tensor_of_shape(&self, name: &str, expected: &[usize]) -> Result<HostTensor, WeightError> {
        match self.shape(name) {
            Some(received) if received != expected => Err(WeightError::Shape {
                path: self.origin().to_path_buf(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                received,
            }),
            _ => self.tensor(name),
        }
    }
}
