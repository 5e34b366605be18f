use std::path::Path;

use super::gguf::GgufModel;
use super::hf::HfModel;
use super::{HostTensor, ModelConfig, RopeStretch, WeightError, WeightSource};
use crate::tokenizer::{ChatTokenizer, TokenizerError};

/// A model on disk, in either of the supported forms.
#[derive(Debug)]
pub enum ModelFile {
    /// One `.gguf` file.
    Gguf(GgufModel),
    /// A Hugging Face folder.
    HuggingFace(HfModel),
}

impl ModelFile {
    /// Opens a `.gguf` file, or a folder with `config.json` and safetensors, and checks that it holds exactly the tensors that
    /// its configuration implies. Weights are not read yet.
    ///
    /// # Errors
    /// A [`WeightError`] that names the file and what is wrong.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let io = |source| WeightError::Io {
            path: path.to_path_buf(),
            source,
        };
        let kind = std::fs::metadata(path).map_err(io)?;
        if kind.is_dir() {
            if !path.join("config.json").is_file() {
                return Err(WeightError::NotAModel {
                    path: path.to_path_buf(),
                });
            }
            Ok(Self::HuggingFace(HfModel::open(path)?))
        } else {
            Ok(Self::Gguf(GgufModel::open(path)?))
        }
    }

    /// Stretches the model's rotary positions as a user asks for; the weights are the same.
    #[must_use]
    pub fn stretched(mut self, stretch: RopeStretch) -> Self {
        stretch.apply(match &mut self {
            Self::Gguf(model) => model.config_mut(),
            Self::HuggingFace(model) => model.config_mut(),
        });
        self
    }

    /// The model's own tokenizer and chat template.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file and what is wrong.
    pub fn tokenizer(&self) -> Result<ChatTokenizer, TokenizerError> {
        match self {
            Self::Gguf(model) => ChatTokenizer::from_gguf(model.origin(), model.metadata()),
            Self::HuggingFace(model) => {
                ChatTokenizer::from_folder(model.origin(), &model.config().eos_token_ids)
            }
        }
    }
}

impl WeightSource for ModelFile {
    fn config(&self) -> &ModelConfig {
        match self {
            Self::Gguf(model) => model.config(),
            Self::HuggingFace(model) => model.config(),
        }
    }

    fn origin(&self) -> &Path {
        match self {
            Self::Gguf(model) => model.origin(),
            Self::HuggingFace(model) => model.origin(),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Gguf(model) => model.shape(name),
            Self::HuggingFace(model) => model.shape(name),
        }
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, WeightError> {
        match self {
            Self::Gguf(model) => model.tensor(name),
            Self::HuggingFace(model) => model.tensor(name),
        }
    }
}
