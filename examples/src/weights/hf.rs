//! Hugging Face folders: `config.json`, safetensors in one file or in shards, `generation_config.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::hf_config::{GenerationConfig, HfConfig};
use super::{HostTensor, ModelConfig, WeightError, WeightSource};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Elements decoded from one read of the file.
const READ_ELEMENTS: usize = 1 << 18;

/// A Llama, Mistral or Qwen2 model in a Hugging Face folder.
#[derive(Debug)]
pub struct HfModel {
    folder: PathBuf,
    config: ModelConfig,
    tensors: BTreeMap<String, Location>,
}

/// Where a tensor lies, and how it is stored.
#[derive(Debug)]
struct Location {
    file: PathBuf,
    kind: FloatKind,
    shape: Vec<usize>,
    start: u64,
}

/// The supported number formats.
#[derive(Debug, Clone, Copy)]
enum FloatKind {
    F32,
    F16,
    Bf16,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl HfModel {
    /// Opens a folder, and checks that it holds exactly the tensors that its `config.json` implies.
    ///
    /// # Errors
    /// A [`WeightError`] that names the file and what is wrong.
    pub fn open(folder: &Path) -> Result<Self, WeightError> {
        let config_path = folder.join("config.json");
        let generation = folder.join("generation_config.json");
        let generation: GenerationConfig = if generation.is_file() {
            read_json(&generation)?
        } else {
            GenerationConfig::default()
        };
        let config = read_json::<HfConfig>(&config_path)?.into_model(&config_path, &generation)?;
        let mut tensors = BTreeMap::new();
        for file in weight_files(folder)? {
            read_header(&file, &mut tensors)?;
        }
        let shapes = tensors
            .iter()
            .map(|(name, at)| (name.clone(), at.shape.clone()))
            .collect();
        config.check_tensors(folder, &shapes)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            config,
            tensors,
        })
    }

    pub(super) fn config_mut(&mut self) -> &mut ModelConfig {
        &mut self.config
    }
}

impl WeightSource for HfModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn origin(&self) -> &Path {
        &self.folder
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|at| at.shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, WeightError> {
        let missing = || WeightError::MissingTensor {
            path: self.folder.clone(),
            tensor: name.to_owned(),
        };
        let at = self.tensors.get(name).ok_or_else(missing)?;
        let io = |source| WeightError::Io {
            path: at.file.clone(),
            source,
        };
        let mut file = File::open(&at.file).map_err(io)?;
        file.seek(SeekFrom::Start(at.start)).map_err(io)?;
        let mut data = vec![0.0; at.shape.iter().product()];
        let mut buffer = vec![0; at.kind.width() * READ_ELEMENTS.min(data.len())];
        for chunk in data.chunks_mut(READ_ELEMENTS) {
            let bytes = &mut buffer[..at.kind.width() * chunk.len()];
            file.read_exact(bytes).map_err(io)?;
            at.kind.decode_into(bytes, chunk);
        }
        match data.iter().position(|value| !value.is_finite()) {
            None => Ok(HostTensor {
                shape: at.shape.clone(),
                data,
            }),
            Some(index) => Err(WeightError::NonFinite {
                path: at.file.clone(),
                tensor: name.to_owned(),
                index,
                value: data[index],
            }),
        }
    }
}

impl FloatKind {
    fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn decode_into(self, bytes: &[u8], out: &mut [f32]) {
        for (bytes, out) in bytes.chunks_exact(self.width()).zip(out) {
            *out = match self {
                Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            };
        }
    }
}

/// Reads a JSON file into a type.
///
/// # Errors
/// [`WeightError::Io`] and [`WeightError::Json`].
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, WeightError> {
    let text = std::fs::read(path).map_err(|source| WeightError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| WeightError::Json {
        path: path.to_path_buf(),
        source,
    })
}

/// The safetensors files of a folder, each once.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, WeightError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.is_file() {
        let file = "model.safetensors or model.safetensors.index.json";
        return Err(WeightError::MissingFile {
            path: folder.to_path_buf(),
            file,
        });
    }
    let index: ShardIndex = read_json(&index_path)?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    shards
        .into_iter()
        .map(|shard| match Path::new(&shard).file_name() {
            Some(name) if name == shard.as_str() => Ok(folder.join(shard)),
            _ => Err(WeightError::ShardName {
                path: index_path.clone(),
                shard,
            }),
        })
        .collect()
}

/// Adds a file's tensors to the list, each checked to lie inside the file and to be stored in a supported format.
fn read_header(path: &Path, tensors: &mut BTreeMap<String, Location>) -> Result<(), WeightError> {
    let io = |source| WeightError::Io {
        path: path.to_path_buf(),
        source,
    };
    let damaged = |reason| WeightError::Safetensors {
        path: path.to_path_buf(),
        reason,
    };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    if file_len < 8 {
        return Err(damaged("it is shorter than the length of its header"));
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(io)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER.min(file_len - 8) {
        return Err(damaged(
            "its header is longer than the file or the format allows",
        ));
    }
    let mut header = Vec::new();
    file.take(header_len).read_to_end(&mut header).map_err(io)?;
    if !header.starts_with(b"{") {
        return Err(damaged("its header is not a JSON object"));
    }
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|source| WeightError::Json {
            path: path.to_path_buf(),
            source,
        })?;
    let data_start = 8 + header_len;
    for (name, info) in metadata.tensors() {
        let tensor = || name.clone();
        let kind = FloatKind::from_dtype(info.dtype).ok_or_else(|| WeightError::TensorType {
            path: path.to_path_buf(),
            tensor: tensor(),
            found: format!("{:?}", info.dtype),
            supported: "F32, F16 and BF16",
        })?;
        let (first, end) = info.data_offsets;
        let size = info
            .shape
            .iter()
            .try_fold(kind.width(), |n, &d| n.checked_mul(d));
        if end.checked_sub(first).is_none() || size != end.checked_sub(first) {
            return Err(damaged("the bytes of a tensor do not fit its shape"));
        }
        let needed = data_start.saturating_add(end as u64);
        if needed > file_len {
            let (path, tensor) = (path.to_path_buf(), tensor());
            return Err(WeightError::Truncated {
                path,
                tensor,
                needed,
                available: file_len,
            });
        }
        let start = data_start + first as u64;
        tensors.insert(
            name.clone(),
            Location {
                file: path.to_path_buf(),
                kind,
                shape: info.shape.clone(),
                start,
            },
        );
    }
    Ok(())
}
