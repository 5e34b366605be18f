//! Captured attention keys, values and queries: reading a safetensors file.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use thiserror::Error;

/// Keys, values and queries of one attention layer.
///
/// # Shapes
/// `k`: `[Hkv, N, D]`, `v` (may be left out): as `k`, `q`: `[Hq, R, D]` with `Hq` a multiple of `Hkv`. Query row `i` belongs to position `N - R + i`: it sees the keys
/// `0..=N - R + i`.
#[derive(Debug, Clone, PartialEq)]
pub struct Capture {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Keys of each head.
    pub len: usize,
    /// Head dimension.
    pub dim: usize,
    /// Query heads for each key/value head.
    pub group: usize,
    /// Query rows of each query head.
    pub rows: usize,
    keys: Vec<f32>,
    values: Option<Vec<f32>>,
    queries: Vec<f32>,
}

/// Why a file is no capture.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    /// The file is of another format, or cut short.
    #[error("not a whole safetensors file")]
    Format(#[source] SafeTensorError),
    /// A tensor is missing.
    #[error("the file holds no tensor `{tensor}`")]
    Missing {
        /// Its name.
        tensor: &'static str,
    },
    /// A tensor's values are not floats that can be widened to f32.
    #[error("tensor `{tensor}` holds {dtype:?}, expected F32, F16 or BF16")]
    Type {
        /// The tensor's name.
        tensor: &'static str,
        /// What it holds.
        dtype: Dtype,
    },
    /// A tensor is not `[heads, rows, dimension]`, all at least 1.
    #[error("tensor `{tensor}` has the shape {shape:?}, expected [heads, rows, dimension]")]
    Shape {
        /// The tensor's name.
        tensor: &'static str,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The values do not belong to the keys.
    #[error("`v` has the shape {v:?}, expected that of `k`, {k:?}")]
    Values {
        /// Shape of the values.
        v: [usize; 3],
        /// Shape of the keys.
        k: [usize; 3],
    },
    /// The two tensors do not belong together.
    #[error("`q` {q:?} does not fit `k` {k:?}: {requirement}")]
    Mismatch {
        /// Shape of the queries.
        q: [usize; 3],
        /// Shape of the keys.
        k: [usize; 3],
        /// What should hold.
        requirement: &'static str,
    },
}

impl Capture {
    /// Reads a capture from a file.
    ///
    /// # Errors
    /// [`CaptureError`], where the file cannot be read or is no capture.
    pub fn read(path: &Path) -> Result<Self, CaptureError> {
        let bytes = std::fs::read(path).map_err(CaptureError::Read)?;
        Self::from_bytes(&bytes)
    }

    /// Reads a capture from the bytes of a safetensors file.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CaptureError> {
        let file = SafeTensors::deserialize(bytes).map_err(CaptureError::Format)?;
        let (k, keys) = tensor(&file, "k")?;
        let (q, queries) = tensor(&file, "q")?;
        let values = match tensor(&file, "v") {
            Ok((v, values)) if v == k => Some(values),
            Ok((v, _)) => return Err(CaptureError::Values { v, k }),
            Err(CaptureError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        let requirements = [
            (q[2] == k[2], "both need the same dimension"),
            (
                q[0].is_multiple_of(k[0]),
                "the query heads must be a multiple of the key heads",
            ),
            (q[1] <= k[1], "there cannot be more query rows than keys"),
        ];
        if let Some(&(_, requirement)) = requirements.iter().find(|(holds, _)| !holds) {
            return Err(CaptureError::Mismatch { q, k, requirement });
        }
        Ok(Self {
            kv_heads: k[0],
            len: k[1],
            dim: k[2],
            group: q[0] / k[0],
            rows: q[1],
            keys,
            values,
            queries,
        })
    }

    /// The keys of one key/value head, `[N, D]`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn keys(&self, kv_head: usize) -> &[f32] {
        let size = self.len * self.dim;
        &self.keys[kv_head * size..(kv_head + 1) * size]
    }

    /// The values of one key/value head, `[N, D]`, if the capture has them.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn values(&self, kv_head: usize) -> Option<&[f32]> {
        let size = self.len * self.dim;
        let values = self.values.as_ref()?;
        Some(&values[kv_head * size..(kv_head + 1) * size])
    }

    /// The query of one query head and row, `[D]`.
    ///
    /// # Panics
    /// If there is no such head or row.
    pub fn query(&self, head: usize, row: usize) -> &[f32] {
        assert!(row < self.rows, "a row of the capture");
        let start = (head * self.rows + row) * self.dim;
        &self.queries[start..start + self.dim]
    }

    /// How many keys a row sees.
    pub fn visible(&self, row: usize) -> usize {
        self.len - self.rows + row + 1
    }
}

/// A tensor's shape and its values, widened to f32.
fn tensor(
    file: &SafeTensors<'_>,
    name: &'static str,
) -> Result<([usize; 3], Vec<f32>), CaptureError> {
    let view = file
        .tensor(name)
        .map_err(|_| CaptureError::Missing { tensor: name })?;
    let shape = match *view.shape() {
        [heads, rows, dim] if heads * rows * dim > 0 => [heads, rows, dim],
        _ => {
            return Err(CaptureError::Shape {
                tensor: name,
                shape: view.shape().to_vec(),
            });
        }
    };
    let halves = || view.data().as_chunks::<2>().0.iter();
    let values = match view.dtype() {
        Dtype::F32 => {
            let words = view.data().as_chunks::<4>().0.iter();
            words.map(|&bytes| f32::from_le_bytes(bytes)).collect()
        }
        Dtype::F16 => halves()
            .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
            .collect(),
        Dtype::BF16 => halves()
            .map(|&bytes| bf16::from_le_bytes(bytes).to_f32())
            .collect(),
        dtype => {
            return Err(CaptureError::Type {
                tensor: name,
                dtype,
            });
        }
    };
    Ok((shape, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::serialize;
    use safetensors::tensor::TensorView;

    fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, dtype, shape)| {
                let values = shape.iter().product::<usize>();
                // 0x3c00 is 1.0 in f16.
                [0x00, 0x3c].repeat(values * dtype.bitsize() / 16)
            })
            .collect();
        let views = tensors
            .iter()
            .zip(&data)
            .map(|((name, dtype, shape), data)| {
                let view = TensorView::new(*dtype, shape.to_vec(), data).expect("a valid tensor");
                (name.to_string(), view)
            });
        serialize(views, None).expect("a valid file")
    }

    #[test]
    fn heads_and_rows_are_found() {
        let bytes = file(&[("k", Dtype::F16, &[2, 5, 3]), ("q", Dtype::F16, &[4, 2, 3])]);
        let capture = Capture::from_bytes(&bytes).expect("a capture");
        assert_eq!(
            (capture.group, capture.visible(0), capture.visible(1)),
            (2, 4, 5)
        );
        assert_eq!(capture.keys(1).len(), 15);
        assert_eq!(capture.query(3, 1), [1.0; 3]);
    }

    #[test]
    fn foreign_and_broken_files_are_refused() {
        let good = file(&[("k", Dtype::F16, &[2, 5, 3]), ("q", Dtype::F16, &[4, 2, 3])]);
        for cut in 0..good.len() {
            let error = Capture::from_bytes(&good[..cut]).expect_err("a refusal");
            assert!(matches!(error, CaptureError::Format(_)), "{cut}: {error}");
        }
        let refused = |tensors: &[(&str, Dtype, &[usize])]| {
            Capture::from_bytes(&file(tensors))
                .expect_err("a refusal")
                .to_string()
        };
        assert_eq!(
            refused(&[("k", Dtype::F16, &[2, 5, 3])]),
            "the file holds no tensor `q`"
        );
        assert_eq!(
            refused(&[("k", Dtype::I16, &[2, 5, 3]), ("q", Dtype::F16, &[2, 2, 3])]),
            "tensor `k` holds I16, expected F32, F16 or BF16"
        );
        assert_eq!(
            refused(&[("k", Dtype::F16, &[2, 15]), ("q", Dtype::F16, &[2, 2, 3])]),
            "tensor `k` has the shape [2, 15], expected [heads, rows, dimension]"
        );
        for (q, what) in [
            ([4, 2, 2], "both need the same dimension"),
            (
                [3, 2, 3],
                "the query heads must be a multiple of the key heads",
            ),
            ([4, 6, 3], "there cannot be more query rows than keys"),
        ] {
            let message = refused(&[("k", Dtype::F16, &[2, 5, 3]), ("q", Dtype::F16, &q)]);
            assert!(message.ends_with(what), "{message}");
        }
    }
}
