//! The `llama` program from the outside, on a small model with random weights that is written here.
#![cfg(feature = "flex")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

const HIDDEN: usize = 32;
const WIDE: usize = 48;
const HEAD_DIM: usize = 16;
const CONTEXT: usize = 96;
/// One token for each byte, and the end.
const VOCAB: usize = 257;

/// Writes a Hugging Face folder: two layers, two query heads on one KV head, a byte-level tokenizer.
fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT, "tie_word_embeddings": true, "vocab_size": VOCAB, "eos_token_id": VOCAB - 1,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}";
    let tokenizer_config = json!({ "eos_token": "<end>", "chat_template": template });
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        tokenizer_config.to_string(),
    )
    .unwrap();
    tokenizer()
        .save(folder.path().join("tokenizer.json"), false)
        .unwrap();
    write_weights(&folder.path().join("model.safetensors"));
    folder
}

fn tokenizer() -> Tokenizer {
    let mut letters: Vec<String> = ByteLevel::alphabet()
        .into_iter()
        .map(String::from)
        .collect();
    letters.sort_unstable();
    let vocabulary: Vocab = letters.into_iter().zip(0..).collect();
    let mut tokenizer = Tokenizer::new(
        BPE::builder()
            .vocab_and_merges(vocabulary, Vec::new())
            .build()
            .unwrap(),
    );
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, false)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    tokenizer.add_special_tokens(&[AddedToken::from("<end>", true)]);
    tokenizer
}

fn write_weights(path: &Path) {
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![2 * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 2 * HEAD_DIM]),
            ("mlp.gate_proj", vec![WIDE, HIDDEN]),
            ("mlp.up_proj", vec![WIDE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDE]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let mut random = StdRng::seed_from_u64(5);
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).map(|_| random.random::<f32>() - 0.5);
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn llama(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_llama"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that fails before it reads closes its end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs with `--json` on a fresh model and parses the last line.
fn report(arguments: &[&str]) -> Value {
    let folder = model();
    let model = ["--json", "--model", folder.path().to_str().unwrap()];
    let output = llama(&[&model, arguments].concat(), "");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = model();
    let model = ["--model", folder.path().to_str().unwrap()];
    let output = llama(&[&model, arguments].concat(), "");
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn the_report_has_every_figure() {
    let report = report(&["--prompt", "hello", "--max-new", "6", "--ignore-eos"]);
    assert_eq!(report["prompt_tokens"], 5);
    assert_eq!(report["tokens"].as_array().unwrap().len(), 6);
    assert_eq!(report["attention"], "hira");
    assert_eq!(report["device"], "flex");
    let logits: Vec<(u32, f32)> =
        serde_json::from_value(report["first_logits_top20"].clone()).unwrap();
    assert_eq!(logits.len(), 20);
    assert!(logits.is_sorted_by(|a, b| a.1 >= b.1));
    assert_eq!(report["tokens"][0], logits[0].0);
    for figure in [
        "prefill_s",
        "decode_s_per_token",
        "density_mean",
        "dropped_mass_bound_max",
        "load_s",
    ] {
        assert!(report[figure].is_f64(), "{figure} is {}", report[figure]);
    }
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_mb"].as_f64().unwrap() > 1.0);
    }
}

#[test]
fn selecting_every_key_is_dense() {
    let prompt = [
        "--prompt",
        "the quick brown fox",
        "--max-new",
        "12",
        "--ignore-eos",
    ];
    let dense = report(&[&prompt[..], &["--attention", "dense"]].concat());
    let every_key = report(&[&prompt[..], &["--threshold", "-inf"]].concat());
    assert_eq!(dense["tokens"], every_key["tokens"]);
    assert_eq!(every_key["density_mean"], 1.0);
    assert_eq!(every_key["dropped_mass_bound_max"], 0.0);
}

#[test]
fn a_sparse_rule_reports_its_density_and_bound() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("sparse.toml");
    std::fs::write(
        &config,
        "plan = \"sparse\"\nsink_tokens = 0\nrecent_window = 1\nmin_sparse_len = 0",
    )
    .unwrap();
    let prompt = [
        "--prompt",
        "the quick brown fox jumps over it",
        "--max-new",
        "8",
        "--ignore-eos",
    ];
    let rule = ["--config", config.to_str().unwrap(), "--top-k-keys", "4"];
    let report = report(&[&prompt[..], &rule].concat());
    let density = report["density_mean"].as_f64().unwrap();
    assert!(density > 0.05 && density < 0.2, "{density}");
    let bound = report["dropped_mass_bound_max"].as_f64().unwrap();
    assert!(bound > 0.0 && bound <= 1.0, "{bound}");
}

#[test]
fn prompts_of_ids_and_of_text_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (ids, text) = (
        folder.path().join("ids.json"),
        folder.path().join("prompt.txt"),
    );
    let tokens = tokenizer()
        .encode("some text", false)
        .unwrap()
        .get_ids()
        .to_vec();
    std::fs::write(&ids, json!(tokens).to_string()).unwrap();
    std::fs::write(&text, "some text").unwrap();
    let common = [
        "--max-new",
        "5",
        "--temperature",
        "0.9",
        "--top-p",
        "0.9",
        "--seed",
        "3",
    ];
    let from_ids = report(&[&common[..], &["--prompt-ids", ids.to_str().unwrap()]].concat());
    let from_text = report(&[&common[..], &["--prompt-file", text.to_str().unwrap()]].concat());
    assert_eq!(from_ids["tokens"], from_text["tokens"]);
    let chat = report(&[&common[..], &["--chat", "--prompt", "some text"]].concat());
    assert_eq!(chat["prompt_tokens"], tokens.len() + 1);
}

#[test]
fn a_conversation_answers_each_line() {
    let folder = model();
    let arguments = [
        "--model",
        folder.path().to_str().unwrap(),
        "--chat",
        "--max-new",
        "4",
    ];
    let output = llama(&arguments, "one\n\ntwo\n");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.iter().filter(|&&byte| byte == b'\n').count() >= 2);
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let (code, message) = refused(&["--prompt", "hello", "--max-new", "92"]);
    assert_eq!(code, Some(1));
    assert!(
        message.contains("97") && message.contains("96"),
        "{message}"
    );
    let exactly = report(&["--prompt", "hello", "--max-new", "91", "--ignore-eos"]);
    assert_eq!(exactly["tokens"].as_array().unwrap().len(), 91);
}

#[test]
fn mistakes_have_messages_and_exit_codes() {
    let (code, message) = refused(&["--prompt", "x", "--config", "no-such.toml"]);
    assert_eq!(code, Some(1));
    assert!(message.contains("no-such.toml"), "{message}");
    let (code, message) = refused(&["--prompt", ""]);
    assert!(
        code == Some(1) && message.contains("no tokens"),
        "{message}"
    );
    let (code, _) = refused(&[]);
    assert_eq!(code, Some(2));
    for (device, is_compiled) in [
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "wgpu")),
    ] {
        if !is_compiled {
            let (code, message) = refused(&["--prompt", "x", "--device", device]);
            assert_eq!(code, Some(2), "{message}");
            assert!(
                message.contains(&format!("cargo feature `{device}`")),
                "{message}"
            );
        }
    }
    let output = llama(&["--prompt", "x", "--model", "no-such.gguf"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such.gguf"));
}
