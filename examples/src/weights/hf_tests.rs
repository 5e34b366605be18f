use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::hf::HfModel;
use super::{Architecture, ModelFile, RopeScaling, WeightError, WeightSource};

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "vocab_size": 5,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": [2, 3],
    })
}

/// Bytes, shape and type of each tensor.
type Tensors = BTreeMap<String, (Vec<u8>, Vec<usize>, Dtype)>;

/// A whole model of one layer, in `f32`; every weight is its index.
fn tensors() -> Tensors {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    [
        ("model.embed_tokens.weight".to_owned(), vec![5, 8]),
        ("model.norm.weight".to_owned(), vec![8]),
        (layer("input_layernorm"), vec![8]),
        (layer("post_attention_layernorm"), vec![8]),
        (layer("self_attn.q_proj"), vec![8, 8]),
        (layer("self_attn.k_proj"), vec![4, 8]),
        (layer("self_attn.v_proj"), vec![4, 8]),
        (layer("self_attn.o_proj"), vec![8, 8]),
        (layer("mlp.gate_proj"), vec![12, 8]),
        (layer("mlp.up_proj"), vec![12, 8]),
        (layer("mlp.down_proj"), vec![8, 12]),
    ]
    .into_iter()
    .map(|(name, shape)| (name, stored(shape, Dtype::F32)))
    .collect()
}

fn stored(shape: Vec<usize>, dtype: Dtype) -> (Vec<u8>, Vec<usize>, Dtype) {
    let values = (0..shape.iter().product::<usize>() as u8).map(f32::from);
    let bytes = values.flat_map(|value| match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    });
    (bytes.collect(), shape, dtype)
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (bytes, shape, dtype))| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn refused(config: &Value, tensors: &Tensors) -> WeightError {
    HfModel::open(folder(config, tensors).path()).unwrap_err()
}

/// A configuration with some keys changed.
fn config_with(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn a_folder_is_read() {
    let folder = folder(&config(), &tensors());
    std::fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": [3, 4]}"#,
    )
    .unwrap();
    let model = ModelFile::open(folder.path()).unwrap();
    let config = model.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.head_dim, config.bos_token_id), (4, Some(1)));
    assert_eq!(config.eos_token_ids, [2, 3, 4]);
    assert_eq!(
        (config.rope_theta, &config.rope_scaling),
        (5e5, &RopeScaling::None)
    );
    let key = model
        .tensor("model.layers.0.self_attn.k_proj.weight")
        .unwrap();
    assert_eq!(key.shape, [4, 8]);
    assert!(
        key.data
            .iter()
            .zip(0_u8..)
            .all(|(value, i)| *value == f32::from(i))
    );
    let error = model
        .tensor_of_shape("model.norm.weight", &[9])
        .unwrap_err();
    assert!(matches!(error, WeightError::Shape { .. }), "{error}");
    assert!(!model.has("lm_head.weight"));
}

#[test]
fn halves_are_widened_and_shards_are_joined() {
    let mut first = tensors();
    let mut second = Tensors::new();
    for (name, dtype) in [
        ("model.norm.weight", Dtype::F16),
        ("model.embed_tokens.weight", Dtype::BF16),
    ] {
        let (_, shape, _) = first.remove(name).unwrap();
        second.insert(name.to_owned(), stored(shape, dtype));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config().to_string()).unwrap();
    let shards = [("a.safetensors", &first), ("b.safetensors", &second)];
    let mut map = BTreeMap::new();
    for (file, tensors) in shards {
        write_tensors(&folder.path().join(file), tensors);
        map.extend(tensors.keys().map(|name| (name.clone(), file)));
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let model = HfModel::open(folder.path()).unwrap();
    for name in [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
    ] {
        let tensor = model.tensor(name).unwrap();
        assert!(
            tensor
                .data
                .iter()
                .zip(0_u8..)
                .all(|(value, i)| *value == f32::from(i)),
            "{name}"
        );
    }
    std::fs::write(
        &index,
        json!({ "weight_map": { "x": "../outside.safetensors" } }).to_string(),
    )
    .unwrap();
    let error = HfModel::open(folder.path()).unwrap_err();
    assert!(matches!(error, WeightError::ShardName { .. }), "{error}");
}

#[test]
fn rope_scaling_has_several_spellings() {
    let scaling = |changes| {
        let folder = folder(&config_with(changes), &tensors());
        HfModel::open(folder.path()).map(|model| {
            (
                model.config().rope_theta,
                model.config().rope_scaling.clone(),
            )
        })
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let keys = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 7e5,
    });
    assert_eq!(
        scaling(json!({ "rope_scaling": keys })).unwrap(),
        (5e5, llama3.clone())
    );
    let newer = json!({ "rope_theta": null, "rope_parameters": keys });
    assert_eq!(scaling(newer).unwrap(), (7e5, llama3));
    let linear =
        json!({ "rope_scaling": { "type": "linear", "rope_type": "linear", "factor": 2.0 } });
    assert_eq!(
        scaling(linear).unwrap().1,
        RopeScaling::Linear { factor: 2.0 }
    );
    assert_eq!(
        scaling(json!({ "rope_scaling": null })).unwrap().1,
        RopeScaling::None
    );
    let error =
        scaling(json!({ "rope_scaling": { "type": "longrope", "factor": 2.0 } })).unwrap_err();
    assert!(
        matches!(error, WeightError::RopeScaling { .. }) && error.to_string().contains("longrope"),
        "{error}"
    );
    let error =
        scaling(json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0 } })).unwrap_err();
    assert!(
        error.to_string().contains("rope_scaling.low_freq_factor"),
        "{error}"
    );
}

#[test]
fn stretched_contexts_come_with_their_positions() {
    let open = |keys| {
        let folder = folder(&config_with(json!({ "rope_scaling": keys })), &tensors());
        HfModel::open(folder.path()).map(|model| {
            let config = model.config();
            (config.rope_scaling.clone(), config.max_position_embeddings)
        })
    };
    let plain = open(json!(null)).unwrap().1;
    let yarn = open(json!({ "rope_type": "yarn", "factor": 4.0 })).unwrap();
    assert_eq!(yarn, (RopeScaling::yarn(4.0, plain), 4 * plain));
    let dynamic =
        json!({ "type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4 });
    let scaling = RopeScaling::Dynamic {
        factor: 2.0,
        original_max_position_embeddings: 4,
    };
    // a file may name the positions after stretching
    assert_eq!(open(dynamic).unwrap(), (scaling, plain.max(8)));
    let attention = |keys| match open(keys).unwrap().0 {
        RopeScaling::Yarn {
            attention_factor, ..
        } => attention_factor,
        other => panic!("{other:?}"),
    };
    let told = json!({ "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25 });
    assert_eq!(attention(told), 1.25);
    let weighted =
        json!({ "rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5 });
    let expected = (0.1 * 40f64.ln() + 1.0) / (0.05 * 40f64.ln() + 1.0);
    assert!((attention(weighted) - expected).abs() < 1e-12);
    for refused in [
        json!({ "rope_type": "yarn", "factor": 0.5 }),
        json!({ "rope_type": "yarn" }),
        json!({ "rope_type": "yarn", "factor": 2.0, "truncate": false }),
        json!({ "rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0 }),
    ] {
        assert!(open(refused.clone()).is_err(), "{refused}");
    }
}

#[test]
fn families_differ_in_biases_and_windows() {
    let open = |changes, tensors: &Tensors| {
        let folder = folder(&config_with(changes), tensors);
        HfModel::open(folder.path()).map(|model| model.config().clone())
    };
    for window in [None, Some(4096)] {
        let mistral = json!({ "model_type": "mistral", "sliding_window": window });
        assert_eq!(open(mistral, &tensors()).unwrap().sliding_window, window);
    }
    for refused in [
        json!({ "model_type": "llama", "sliding_window": 4096 }),
        json!({ "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": true }),
        json!({ "model_type": "mistral", "sliding_window": 0 }),
    ] {
        let error = open(refused, &tensors()).unwrap_err();
        assert!(
            matches!(error, WeightError::Config { .. })
                && error.to_string().contains("sliding_window"),
            "{error}"
        );
    }
    let mut with_bias = tensors();
    for (name, width) in [("q", 8), ("k", 4), ("v", 4)] {
        with_bias.insert(
            format!("model.layers.0.self_attn.{name}_proj.bias"),
            stored(vec![width], Dtype::F32),
        );
    }
    let qwen = json!({ "model_type": "qwen2", "sliding_window": 32, "use_sliding_window": false });
    let qwen = open(qwen, &with_bias).unwrap();
    assert!(qwen.attention_bias && qwen.sliding_window.is_none());
    let error = open(json!({}), &with_bias).unwrap_err();
    assert!(
        matches!(error, WeightError::UnknownTensor { .. }) && error.to_string().contains("bias"),
        "{error}"
    );
    let foreign = open(json!({ "model_type": "gemma2" }), &tensors()).unwrap_err();
    assert!(
        matches!(foreign, WeightError::Architecture { .. })
            && foreign.to_string().contains("gemma2"),
        "{foreign}"
    );
}

#[test]
fn messages_name_the_tensor_and_what_was_expected() {
    let mut missing = tensors();
    missing.remove("model.layers.0.mlp.up_proj.weight");
    let error = refused(&config(), &missing);
    assert!(
        error
            .to_string()
            .contains("model.layers.0.mlp.up_proj.weight is missing"),
        "{error}"
    );

    let mut other = tensors();
    other.insert("model.norm.weight".into(), stored(vec![9], Dtype::F32));
    let error = refused(&config(), &other).to_string();
    assert!(
        error.contains("model.norm.weight has shape [9], expected [8]"),
        "{error}"
    );

    let mut integers = tensors();
    integers.insert("model.norm.weight".into(), stored(vec![8], Dtype::I32));
    let error = refused(&config(), &integers).to_string();
    assert!(
        error.contains("model.norm.weight is stored as I32"),
        "{error}"
    );

    let error = refused(
        &config_with(json!({ "tie_word_embeddings": false })),
        &tensors(),
    )
    .to_string();
    assert!(error.contains("lm_head.weight is missing"), "{error}");

    let error = refused(&config_with(json!({ "vocab_size": null })), &tensors()).to_string();
    assert!(error.contains("vocab_size is missing"), "{error}");

    for (key, value) in [
        ("num_key_value_heads", 0),
        ("head_dim", 3),
        ("num_attention_heads", 0),
    ] {
        let error = refused(&config_with(json!({ key: value })), &tensors());
        assert!(
            matches!(error, WeightError::Config { .. }),
            "{key}: {error}"
        );
    }
    let layers = refused(
        &config_with(json!({ "num_hidden_layers": 4_000_000_000_u32 })),
        &tensors(),
    );
    assert!(layers.to_string().contains("model.layers.1."), "{layers}");
}

#[test]
fn damaged_files_are_typed_errors() {
    let folder = folder(&config(), &tensors());
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 7, 8, 20, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let error = HfModel::open(folder.path()).unwrap_err();
        let is_typed = matches!(
            error,
            WeightError::Safetensors { .. } | WeightError::Truncated { .. }
        );
        assert!(
            is_typed && error.to_string().contains("model.safetensors"),
            "{len}: {error}"
        );
    }
    std::fs::write(&path, [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
    assert!(matches!(
        HfModel::open(folder.path()).unwrap_err(),
        WeightError::Safetensors { .. }
    ));
    std::fs::write(
        &path,
        [9_u64.to_le_bytes().as_slice(), b"{\"x\": 12}"].concat(),
    )
    .unwrap();
    assert!(matches!(
        HfModel::open(folder.path()).unwrap_err(),
        WeightError::Json { .. }
    ));
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(matches!(
        HfModel::open(folder.path()).unwrap_err(),
        WeightError::Json { .. }
    ));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("config.json"), config().to_string()).unwrap();
    assert!(matches!(
        HfModel::open(folder.path()).unwrap_err(),
        WeightError::MissingFile { .. }
    ));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(matches!(
        ModelFile::open(folder.path()).unwrap_err(),
        WeightError::NotAModel { .. }
    ));
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut damaged = tensors();
    let (bytes, ..) = damaged.get_mut("model.norm.weight").unwrap();
    bytes[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let folder = folder(&config(), &damaged);
    let model = HfModel::open(folder.path()).unwrap();
    let error = model.tensor("model.norm.weight").unwrap_err();
    assert!(
        matches!(error, WeightError::NonFinite { index: 2, .. }),
        "{error}"
    );
}
