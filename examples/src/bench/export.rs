//! The same keys, values and queries for other programs.

use std::{collections::HashMap, path::Path};

use safetensors::{Dtype, SafeTensorError, tensor::TensorView};

use super::{Problem, Scenario};

/// Writes a scenario's rows to `folder` as safetensors: `k` and `v` `[Hkv, N, D]`, `q` `[R, Hq, D]`, f32, and as text what they are: `scenario`,
/// `source`, `copies`.
///
/// # Errors
///
/// [`SafeTensorError`] if the file cannot be written.
pub fn export(
    scenario: &Scenario,
    problem: &Problem,
    copies: usize,
    folder: &Path,
) -> Result<(), SafeTensorError> {
    let bytes = |values: &[f32]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let (k, v, q) = (
        bytes(&problem.keys),
        bytes(&problem.values),
        bytes(&problem.queries),
    );
    let rows = vec![problem.kv_heads, problem.len, problem.dim];
    let views = [
        ("k", TensorView::new(Dtype::F32, rows.clone(), &k)?),
        ("v", TensorView::new(Dtype::F32, rows, &v)?),
        (
            "q",
            TensorView::new(
                Dtype::F32,
                vec![problem.rows, problem.heads(), problem.dim],
                &q,
            )?,
        ),
    ];
    let about = HashMap::from([
        ("scenario".to_owned(), scenario.name()),
        ("source".to_owned(), problem.source.to_owned()),
        ("copies".to_owned(), copies.to_string()),
    ]);
    let name = scenario.name().replace('/', "-");
    let file = folder.join(format!("{name}.safetensors"));
    safetensors::serialize_to_file(views, Some(about), &file)
}
