use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::weights::{Architecture, RopeScaling, WeightSource};

/// A metadata value as it is written.
enum Entry<'a> {
    Count(u32),
    Number(f32),
    Flag(bool),
    Name(&'a str),
}

/// Writes a GGUF file, without help from the reader.
#[derive(Default)]
struct Writer {
    metadata: Vec<u8>,
    keys: u64,
    infos: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn key(mut self, key: &str, entry: Entry<'_>) -> Self {
        put_text(&mut self.metadata, key);
        let (code, bytes) = match entry {
            Entry::Count(v) => (4_u32, v.to_le_bytes().to_vec()),
            Entry::Number(v) => (6, v.to_le_bytes().to_vec()),
            Entry::Flag(v) => (7, vec![u8::from(v)]),
            Entry::Name(v) => {
                let mut bytes = Vec::new();
                put_text(&mut bytes, v);
                (8, bytes)
            }
        };
        self.metadata.extend(code.to_le_bytes());
        self.metadata.extend(bytes);
        self.keys += 1;
        self
    }

    /// A tensor of `f32`; `shape` outermost first.
    fn tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.stored(name, shape, 0, bytes)
    }

    fn stored(mut self, name: &str, shape: &[usize], code: u32, bytes: Vec<u8>) -> Self {
        put_text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for &dimension in shape.iter().rev() {
            self.infos.extend((dimension as u64).to_le_bytes());
        }
        self.infos.extend(code.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.tensors += 1;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(self.tensors.to_le_bytes());
        out.extend(self.keys.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn file(&self) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&self.bytes()).unwrap();
        file
    }
}

const HIDDEN: usize = 8;
const HEADS: usize = 2;
const HEAD_DIM: usize = 4;
const WIDE: usize = 12;
const VOCAB: usize = 5;

/// Values that say where they came from: `start`, `start + 1`, ...
fn ramp(start: f32, len: usize) -> Vec<f32> {
    (0..len as u16).map(|i| start + f32::from(i)).collect()
}

fn keys(architecture: &str) -> Writer {
    let key = |name: &str| format!("{architecture}.{name}");
    Writer::default()
        .key("general.architecture", Entry::Name(architecture))
        .key(&key("embedding_length"), Entry::Count(HIDDEN as u32))
        .key(&key("feed_forward_length"), Entry::Count(WIDE as u32))
        .key(&key("block_count"), Entry::Count(1))
        .key(&key("attention.head_count"), Entry::Count(HEADS as u32))
        .key(&key("attention.head_count_kv"), Entry::Count(1))
        .key(&key("context_length"), Entry::Count(64))
        .key(
            &key("attention.layer_norm_rms_epsilon"),
            Entry::Number(1e-5),
        )
}

/// A whole model of one layer; `change` may leave a tensor out or alter it.
fn model(mut writer: Writer, change: impl Fn(&str, Vec<usize>) -> Option<Vec<usize>>) -> Writer {
    let tensors = [
        ("token_embd.weight", vec![VOCAB, HIDDEN]),
        ("output_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_norm.weight", vec![HIDDEN]),
        ("blk.0.ffn_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_q.weight", vec![HEADS * HEAD_DIM, HIDDEN]),
        ("blk.0.attn_k.weight", vec![HEAD_DIM, HIDDEN]),
        ("blk.0.attn_v.weight", vec![HEAD_DIM, HIDDEN]),
        ("blk.0.attn_output.weight", vec![HIDDEN, HEADS * HEAD_DIM]),
        ("blk.0.ffn_gate.weight", vec![WIDE, HIDDEN]),
        ("blk.0.ffn_up.weight", vec![WIDE, HIDDEN]),
        ("blk.0.ffn_down.weight", vec![HIDDEN, WIDE]),
    ];
    for (start, (name, shape)) in tensors.into_iter().enumerate() {
        if let Some(shape) = change(name, shape) {
            let values = ramp(1000.0 * start as f32, shape.iter().product());
            writer = writer.tensor(name, &shape, &values);
        }
    }
    writer
}

fn whole(writer: Writer) -> Writer {
    model(writer, |_, shape| Some(shape))
}

fn open(writer: &Writer) -> Result<GgufModel, WeightError> {
    GgufModel::open(writer.file().path())
}

fn message(error: &WeightError) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message += &format!(": {error}");
        source = error.source();
    }
    message
}

#[test]
fn a_llama_is_read_under_hugging_face_names() {
    let file = whole(keys("llama")).file();
    let model = GgufModel::open(file.path()).unwrap();
    let config = model.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(
        (
            config.head_dim,
            config.num_key_value_heads,
            config.vocab_size
        ),
        (HEAD_DIM, 1, VOCAB)
    );
    assert_eq!(config.rope_theta, 10_000.0);
    assert!(config.tie_word_embeddings && !config.attention_bias);
    let value = model
        .tensor("model.layers.0.self_attn.v_proj.weight")
        .unwrap();
    assert_eq!(value.shape, [HEAD_DIM, HIDDEN]);
    assert_eq!(value.data, ramp(6000.0, HEAD_DIM * HIDDEN));
    let error = model
        .tensor("model.layers.1.self_attn.v_proj.weight")
        .unwrap_err();
    assert!(
        matches!(error, WeightError::MissingTensor { .. }),
        "{error}"
    );
}

#[test]
fn rotary_rows_of_a_llama_become_half_split() {
    let file = whole(keys("llama")).file();
    let model = GgufModel::open(file.path()).unwrap();
    let query = model
        .tensor("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    // Interleaved pairs (0, 1), (2, 3) of each head become the halves (0, 2), (1, 3).
    let first: Vec<f32> = query
        .data
        .chunks(HIDDEN)
        .map(|row| (row[0] - 4000.0) / HIDDEN as f32)
        .collect();
    assert_eq!(first, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    for row in query.data.chunks(HIDDEN) {
        assert_eq!(row, ramp(row[0], HIDDEN));
    }
}

#[test]
fn a_qwen2_keeps_its_rows_and_has_biases() {
    let with_bias = whole(keys("qwen2"))
        .tensor("blk.0.attn_q.bias", &[8], &ramp(0.0, 8))
        .tensor("blk.0.attn_k.bias", &[4], &ramp(0.0, 4))
        .tensor("blk.0.attn_v.bias", &[4], &ramp(0.0, 4));
    let file = with_bias.file();
    let model = GgufModel::open(file.path()).unwrap();
    assert!(model.config().attention_bias);
    assert_eq!(
        model
            .tensor("model.layers.0.self_attn.q_proj.bias")
            .unwrap()
            .data,
        ramp(0.0, 8)
    );
    let query = model
        .tensor("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    assert_eq!(query.data, ramp(4000.0, 64));
}

#[test]
fn rope_factors_come_from_their_tensor() {
    let plain = open(&whole(keys("llama"))).unwrap();
    assert_eq!(plain.config().rope_scaling, RopeScaling::None);
    let factors =
        open(&whole(keys("llama")).tensor("rope_freqs.weight", &[2], &[1.0, 8.0])).unwrap();
    assert_eq!(
        factors.config().rope_scaling,
        RopeScaling::Factors(vec![1.0, 8.0])
    );
    let linear = keys("llama")
        .key("llama.rope.scaling.type", Entry::Name("linear"))
        .key("llama.rope.scaling.factor", Entry::Number(4.0));
    assert_eq!(
        open(&whole(linear)).unwrap().config().rope_scaling,
        RopeScaling::Linear { factor: 4.0 }
    );
    let named = |name| keys("llama").key("llama.rope.scaling.type", Entry::Name(name));
    let error = open(&whole(
        named("longrope").key("llama.rope.scaling.factor", Entry::Number(2.0)),
    ));
    let error = error.unwrap_err();
    assert!(
        matches!(error, WeightError::RopeScaling { .. }) && error.to_string().contains("longrope"),
        "{error}"
    );
    let error = open(&whole(named("yarn"))).unwrap_err();
    assert!(error.to_string().contains("rope.scaling.factor"), "{error}");
    let positions = plain.config().max_position_embeddings;
    let yarn = || named("yarn").key("llama.rope.scaling.factor", Entry::Number(4.0));
    let model = open(&whole(yarn())).unwrap();
    let config = model.config();
    assert_eq!(config.rope_scaling, RopeScaling::yarn(4.0, positions));
    assert_eq!(config.max_position_embeddings, 4 * positions);
    let half = yarn().key("llama.rope.scaling.attn_factor", Entry::Number(0.5));
    let model = open(&whole(half)).unwrap();
    let factor = model.config().rope_scaling.attention_factor();
    assert!((factor - 0.5 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
}

#[test]
fn messages_name_the_tensor_and_what_was_expected() {
    let name = "blk.0.ffn_up.weight";
    let public = "model.layers.0.mlp.up_proj.weight";
    let missing = model(keys("llama"), |tensor, shape| {
        (tensor != name).then_some(shape)
    });
    let error = open(&missing).unwrap_err();
    assert!(
        matches!(error, WeightError::MissingTensor { .. }) && error.to_string().contains(public),
        "{error}"
    );

    let other = model(keys("llama"), |tensor, shape| {
        Some(if tensor == name { vec![WIDE, 7] } else { shape })
    });
    let error = open(&other).unwrap_err();
    assert!(error.to_string().contains(public), "{error}");
    assert!(
        error.to_string().contains("[12, 7]") && error.to_string().contains("[12, 8]"),
        "{error}"
    );

    let unknown = whole(keys("llama")).tensor("blk.0.attn_q_norm.weight", &[4], &ramp(0.0, 4));
    let error = open(&unknown).unwrap_err();
    assert!(
        matches!(error, WeightError::UnknownTensor { .. })
            && error.to_string().contains("attn_q_norm"),
        "{error}"
    );

    let foreign = open(&whole(keys("gemma"))).unwrap_err();
    assert!(
        matches!(foreign, WeightError::Architecture { .. })
            && foreign.to_string().contains("gemma"),
        "{foreign}"
    );

    let unsupported = whole(keys("llama")).stored("blk.1.ffn_up.weight", &[256], 11, vec![0; 110]);
    let error = open(&unsupported).unwrap_err();
    assert!(
        message(&error).contains("blk.1.ffn_up.weight is stored as Q3_K"),
        "{}",
        message(&error)
    );

    let wrong_type = keys("llama").key("llama.rope.freq_base", Entry::Flag(true));
    let error = open(&whole(wrong_type)).unwrap_err();
    assert!(
        message(&error).contains("llama.rope.freq_base is a bool, expected float"),
        "{}",
        message(&error)
    );
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut writer = whole(keys("llama"));
    // The third tensor is the first layer's norm.
    let at = (VOCAB * HIDDEN * 4).next_multiple_of(32) + HIDDEN * 4 + 4;
    writer.data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = writer.file();
    let model = GgufModel::open(file.path()).unwrap();
    let error = model
        .tensor("model.layers.0.input_layernorm.weight")
        .unwrap_err();
    assert!(
        matches!(error, WeightError::NonFinite { index: 1, .. }),
        "{error}"
    );
}

#[test]
fn impossible_configurations_are_refused() {
    let cases = [
        ("llama.attention.sliding_window", "sliding_window"),
        ("llama.expert_count", "expert_count"),
        ("llama.rope.dimension_count", "rope.dimension_count"),
    ];
    for (key, shown) in cases {
        let error = open(&whole(keys("llama").key(key, Entry::Count(3)))).unwrap_err();
        assert!(
            matches!(error, WeightError::Config { .. }) && error.to_string().contains(shown),
            "{error}"
        );
    }
    let many = whole(keys("llama").key("general.alignment", Entry::Count(24)));
    assert!(
        message(&open(&many).unwrap_err()).contains("alignment"),
        "alignment"
    );
}

#[test]
fn foreign_files_are_recognised() {
    let read = |bytes: &[u8]| Header::read(bytes, bytes.len() as u64).unwrap_err();
    assert!(matches!(
        read(b"PK\x03\x04 and so on"),
        GgufError::Magic { .. }
    ));
    assert!(matches!(
        read(b"GGUF\x01\0\0\0"),
        GgufError::Version { received: 1 }
    ));
    assert!(matches!(read(b"GGUF\0\0\0\x03"), GgufError::BigEndian));
    assert!(matches!(read(b""), GgufError::Truncated { .. }));
    let error = GgufModel::open(Path::new("no such file.gguf")).unwrap_err();
    assert!(
        matches!(error, WeightError::Io { .. }) && error.to_string().contains("no such file.gguf")
    );
}

#[test]
fn every_truncation_is_a_typed_error() {
    let bytes = whole(keys("llama")).bytes();
    let whole_len = bytes.len();
    assert!(Header::read(bytes.as_slice(), whole_len as u64).is_ok());
    for len in 0..whole_len {
        let error = Header::read(&bytes[..len], len as u64).unwrap_err();
        let is_typed = matches!(
            error,
            GgufError::Truncated { .. } | GgufError::TensorTruncated { .. }
        );
        assert!(is_typed, "{len}: {error}");
        // A file that shrinks after its length was taken.
        assert!(
            len > 700 || Header::read(&bytes[..len], whole_len as u64).is_err(),
            "{len}"
        );
    }
}

proptest! {
    /// Any damage to the header gives an answer, and never one that needs more memory than the file can justify.
    #[test]
    fn a_damaged_header_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = whole(keys("llama")).bytes();
        let header_len = bytes.len() / 2;
        for (at, value) in changes {
            let at = at.index(header_len);
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(header) = Header::read(bytes.as_slice(), bytes.len() as u64) {
            for (name, info) in &header.tensors {
                prop_assert!(info.start + info.len <= bytes.len() as u64, "{name}");
                let elements: usize = info.shape.iter().product();
                prop_assert!(elements <= 2 * bytes.len(), "{name} would need {elements} elements");
            }
        }
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        if let Ok(model) = GgufModel::open(file.path()) {
            for (name, shape) in model.config().tensors() {
                if let Ok(tensor) = model.tensor(&name) {
                    prop_assert_eq!(tensor.shape, shape);
                }
            }
        }
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        let _ = Header::read(bytes.as_slice(), bytes.len() as u64);
    }
}
