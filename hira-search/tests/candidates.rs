//! The standalone example, on small files: its answers, its figures, and what it says of files that are of no use.

#[allow(dead_code, reason = "its `main` is not called")]
#[path = "../../examples/candidates.rs"]
mod candidates;

use std::path::Path;

use clap::Parser;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const ROWS: usize = 100;
const DIM: usize = 6;

/// Exit code, output, and what went to standard error.
fn run(arguments: &[&str]) -> (u8, String, String) {
    let arguments = ["candidates", "--repeat", "1"].iter().chain(arguments);
    let arguments = candidates::Arguments::try_parse_from(arguments).expect("flags");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = candidates::answer(arguments, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (code, text(out), text(err))
}

/// Row `i` points along its axis `i % DIM`, and is the longer the later: its best matches are known.
fn matrix() -> Vec<f32> {
    let value = |i: usize| match (i / DIM, i % DIM) {
        (row, column) if row % DIM == column => 1.0 + row as f32,
        _ => 0.0,
    };
    (0..ROWS * DIM).map(value).collect()
}

fn bytes(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let each = |&x: &f32| match dtype {
        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(each).collect()
}

/// A file with the tensors `keys` [2, 50, 6] and `flat` [600].
fn write(file: &Path, dtype: Dtype) {
    let data = bytes(&matrix(), dtype);
    let view = |shape: Vec<usize>| TensorView::new(dtype, shape, &data).expect("a tensor");
    let tensors = [
        ("keys", view(vec![2, ROWS / 2, DIM])),
        ("flat", view(vec![ROWS * DIM])),
    ];
    safetensors::serialize_to_file(tensors, None, file).expect("a file");
}

#[test]
fn candidates_of_every_kind_of_file() {
    let folder = tempfile::tempdir().expect("a folder");
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let file = folder.path().join("keys.safetensors");
        write(&file, dtype);
        let name = file.to_str().expect("a name");
        let flags = ["--tensor", "keys", "--row", "6", "--top-k", "2"];
        let (code, out, err) = run(&[&[name][..], &flags].concat());
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        // Row 6 is 7 along the first axis; rows 96 and 90 are the longest there.
        assert!(out.contains("row 96        score 679\n"), "{out}");
        assert!(out.contains("row 90        score 637\n"), "{out}");
        assert!(
            out.contains("candidates            2 (2.000 % of the rows)\n"),
            "{out}"
        );
        assert!(out.contains("brute force finds the same set"), "{out}");
    }
    let file = folder.path().join("keys.bin");
    std::fs::write(&file, bytes(&matrix(), Dtype::F32)).expect("a file");
    let name = file.to_str().expect("a name");
    for (rule, count) in [
        // Along the first axis lie rows 0, 6, ... 96: 17 of them; row 1 + 0 is the query.
        (["--tau", "1"], 17),
        (["--tau", "97.5"], 0),
        (["--tau", "-1"], 100),
        (["--percentile", "2.5"], 3),
    ] {
        let (code, out, _) = run(&[&[name, "--dim", "6"][..], &rule].concat());
        assert_eq!(code, 0, "{out}");
        let counted = format!("candidates            {count} (");
        assert!(out.contains(&counted), "{rule:?}: {out}");
    }
    let queries = ["--dim", "6", "--query-file", name, "--row", "99"];
    let (code, out, _) = run(&[&[name][..], &queries].concat());
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("row 99        score 10000\n"), "{out}");
}

#[test]
fn rows_are_made_without_a_file() {
    for plan in ["auto", "dense", "sketch-scan", "tree"] {
        let (code, out, err) = run(&["--rows", "3000", "--dim", "17", "--random", "--plan", plan]);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert!(out.contains("3000 rows of dimension 17"), "{out}");
        assert!(out.contains("candidates            10 ("), "{out}");
    }
}

#[test]
fn rows_of_any_precision_are_searched_as_they_are_stored() {
    for precision in ["f32", "f16", "bf16"] {
        let arguments = ["--rows", "3000", "--top-k", "9", "--precision", precision];
        let (code, out, err) = run(&arguments);
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.ends_with("brute force finds the same set, scores bit for bit\n"));
        let narrow = out.starts_with(&format!("3000 rows of dimension 64 in {precision}: "));
        assert_eq!(narrow, precision != "f32", "{out}");
        let dense = if narrow {
            "dense 0.38 MB"
        } else {
            "dense 0.77 MB"
        };
        assert!(out.contains(dense), "{out}");
    }
    let arguments = ["candidates", "--precision", "fp16"];
    assert!(candidates::Arguments::try_parse_from(arguments).is_err());
}

#[test]
fn what_is_of_no_use_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| {
        folder
            .path()
            .join(name)
            .to_str()
            .expect("a name")
            .to_string()
    };
    let tensors = path("keys.safetensors");
    write(Path::new(&tensors), Dtype::F32);
    let (raw, cut, bad) = (path("raw.bin"), path("cut.safetensors"), path("nan.bin"));
    std::fs::write(&raw, [0; 26]).expect("a file");
    std::fs::write(&cut, [9; 26]).expect("a file");
    std::fs::write(&bad, bytes(&[1.0, 2.0, f32::NAN, 4.0], Dtype::F32)).expect("a file");
    let empty = path("empty.bin");
    std::fs::write(&empty, []).expect("a file");
    let missing = path("missing.bin");
    let cases: [(&[&str], &str); 13] = [
        (&[&missing, "--dim", "2"], "missing.bin: No such file"),
        (&[&raw], "add --dim"),
        (
            &[&raw, "--dim", "2"],
            "26 bytes are not whole rows of 2 f32",
        ),
        (&[&raw, "--dim", "0"], "--dim must be at least 1"),
        (&[&empty, "--dim", "2"], "no rows"),
        (
            &[&bad, "--dim", "2"],
            "nan.bin: the value in row 1, column 0 is not finite",
        ),
        (&[&cut], "not a whole safetensors file"),
        (&[&tensors], "with --tensor: flat, keys"),
        (
            &[&tensors, "--tensor", "k"],
            "no tensor `k`, but flat, keys",
        ),
        (&[&tensors, "--tensor", "flat"], "shape [600]"),
        (
            &[&tensors, "--tensor", "keys", "--row", "100"],
            "there is no row 100",
        ),
        (
            &[&tensors, "--tensor", "keys", "--percentile", "0"],
            "percent must be above 0",
        ),
        (
            &["--rows", "100", "--segment-len", "100"],
            "segment_len must be a multiple of 16",
        ),
    ];
    for (arguments, expected) in cases {
        let (code, _, err) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
}
