use std::path::Path;

use proptest::prelude::*;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::*;
use crate::fetch::cached_smollm2;
use crate::weights::ModelFile;
use crate::weights::gguf::{Array, Metadata, Value};

const CHAT: &str = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
    <|im_start|>user\nWhat is gravity? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n";

/// What another implementation makes of [`CHAT`].
const CHAT_IDS: [u32; 39] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 9354, 47, 19842, 281, 582, 6330, 30, 2, 198, 1,
    520, 9531, 198,
];

/// The tokenizer of SmolLM2, or `None` with a note if the model is not in the cache folder.
fn smollm2() -> Option<ChatTokenizer> {
    let Some(path) = cached_smollm2() else {
        eprintln!(
            "skipped: SmolLM2 is not in the model folder; `llama --model smollm2` puts it there"
        );
        return None;
    };
    Some(ModelFile::open(&path).unwrap().tokenizer().unwrap())
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn texts(values: &[String]) -> Value {
    Value::Array(Array::Text(values.to_vec()))
}

fn build(entries: Vec<(&str, Value)>) -> Result<ChatTokenizer, TokenizerError> {
    let metadata: Metadata = entries
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    ChatTokenizer::from_gguf(Path::new("tiny.gguf"), &metadata)
}

/// A byte-level tokenizer with a template of one's own.
pub(crate) fn tiny(template: &str) -> ChatTokenizer {
    let mut entries = byte_level("gpt-2");
    *value(&mut entries, "tokenizer.chat_template") = text(template);
    build(entries).unwrap()
}

/// A byte-level vocabulary: every byte, `in`, `Ġin` and two control tokens.
fn byte_level(pre: &str) -> Vec<(&'static str, Value)> {
    let mut tokens: Vec<String> = ByteLevel::alphabet()
        .into_iter()
        .map(String::from)
        .collect();
    tokens.sort_unstable();
    let bytes = tokens.len() as u64;
    tokens.extend(["in", "Ġin", "<|end|>", "<|start|>"].map(str::to_owned));
    let mut types = vec![1; tokens.len() - 2];
    types.extend([3, 3]);
    vec![
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        (
            "tokenizer.ggml.token_type",
            Value::Array(Array::Signed(types)),
        ),
        (
            "tokenizer.ggml.merges",
            texts(&["i n".to_owned(), "Ġ in".to_owned()]),
        ),
        ("tokenizer.ggml.eos_token_id", Value::Unsigned(bytes + 2)),
        ("tokenizer.ggml.bos_token_id", Value::Unsigned(bytes + 3)),
        (
            "tokenizer.chat_template",
            text("{{ bos_token }}{{ messages[-1].content }}{{ eos_token }}"),
        ),
    ]
}

/// A SentencePiece vocabulary: control tokens, every byte, and pieces that make `▁hello`.
fn sentence_piece() -> Vec<(&'static str, Value)> {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let mut scores = vec![0.0; tokens.len()];
    let pieces = [
        ("he", -1.0),
        ("ll", -2.0),
        ("hell", -3.0),
        ("▁hell", -4.0),
        ("▁hello", -5.0),
        ("lo", -6.0),
    ];
    let letters = ["▁", "h", "e", "l", "o"].map(|letter| (letter, -100.0));
    for (piece, score) in pieces.into_iter().chain(letters) {
        tokens.push(piece.to_owned());
        types.push(1);
        scores.push(score);
    }
    vec![
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        (
            "tokenizer.ggml.token_type",
            Value::Array(Array::Signed(types)),
        ),
        ("tokenizer.ggml.scores", Value::Array(Array::Float(scores))),
        ("tokenizer.ggml.unknown_token_id", Value::Unsigned(0)),
        ("tokenizer.ggml.bos_token_id", Value::Unsigned(1)),
        ("tokenizer.ggml.eos_token_id", Value::Unsigned(2)),
    ]
}

/// The value of a key, to be changed.
fn value<'a>(entries: &'a mut [(&'static str, Value)], key: &str) -> &'a mut Value {
    &mut entries.iter_mut().find(|(name, _)| *name == key).unwrap().1
}

#[test]
fn smollm2_prompts_have_the_reference_tokens() {
    let Some(tokenizer) = smollm2() else { return };
    assert_eq!(
        tokenizer.encode("The capital of France is").unwrap(),
        [504, 3575, 282, 4649, 314]
    );
    assert_eq!(tokenizer.encode(CHAT).unwrap(), CHAT_IDS);
    assert_eq!(tokenizer.encode_rendered(CHAT).unwrap(), CHAT_IDS);
    assert_eq!(tokenizer.decode(&CHAT_IDS, true).unwrap(), CHAT);
    assert_eq!(tokenizer.eos_ids(), [2]);
    let shown = tokenizer
        .decode(&[7042, 30, 198, 198, 504, 2], false)
        .unwrap();
    assert_eq!(shown, " Paris.\n\nThe");
}

#[test]
fn smollm2_renders_the_reference_chat() {
    let Some(tokenizer) = smollm2() else { return };
    let messages = [ChatMessage::user(
        "What is gravity? Answer in one sentence.",
    )];
    assert_eq!(tokenizer.render_chat(&messages).unwrap(), CHAT);
}

#[test]
fn merges_apply_inside_words_only() {
    let tokenizer = build(byte_level("gpt-2")).unwrap();
    let pieces = |line: &str| -> Vec<String> {
        let ids = tokenizer.encode(line).unwrap();
        ids.iter()
            .map(|&id| tokenizer.decode(&[id], true).unwrap())
            .collect()
    };
    assert_eq!(pieces("in in"), ["in", " in"]);
    assert_eq!(pieces("i<|end|>n"), ["i", "<|end|>", "n"]);
}

#[test]
fn start_tokens_follow_the_flag_and_the_family() {
    let starts = |entries| {
        let tokenizer = build(entries).unwrap();
        let first = tokenizer.encode("hello").unwrap()[0];
        assert_ne!(
            tokenizer.encode_rendered("hello").unwrap()[0],
            tokenizer.bos_id().unwrap()
        );
        Some(first) == tokenizer.bos_id()
    };
    assert!(!starts(byte_level("gpt-2")));
    assert!(starts(byte_level("llama-bpe")));
    assert!(starts(sentence_piece()));
    let mut with_flag = byte_level("gpt-2");
    with_flag.push(("tokenizer.ggml.add_bos_token", Value::Bool(true)));
    assert!(starts(with_flag));
    let mut without = sentence_piece();
    without.push(("tokenizer.ggml.add_bos_token", Value::Bool(false)));
    assert!(!starts(without));
}

#[test]
fn sentence_pieces_merge_by_score_and_fall_back_to_bytes() {
    let tokenizer = build(sentence_piece()).unwrap();
    let names = |line: &str| -> Vec<String> {
        let ids = tokenizer.encode_rendered(line).unwrap();
        ids.iter()
            .map(|&id| tokenizer.tokenizer.id_to_token(id).unwrap())
            .collect()
    };
    assert_eq!(names("hello"), ["▁hello"]);
    assert_eq!(names("hello hell"), ["▁hello", "▁hell"]);
    assert_eq!(names("lo"), ["▁", "lo"]);
    assert_eq!(names("é"), ["▁", "<0xC3>", "<0xA9>"]);
    for line in ["hello", "hello  hell é\n🙂", "x"] {
        let ids = tokenizer.encode(line).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), line);
    }
}

#[test]
fn a_stream_keeps_the_space_after_its_context() {
    let tokenizer = build(sentence_piece()).unwrap();
    let prompt = tokenizer.encode("hello").unwrap();
    let next = tokenizer.encode_rendered("hello").unwrap();
    let mut stream = tokenizer.stream_after(&prompt).unwrap();
    assert_eq!(stream.push(next[0]).unwrap().as_deref(), Some(" hello"));
    assert_eq!(stream.finish().unwrap(), None);
}

#[test]
fn a_stream_holds_back_unfinished_characters() {
    let tokenizer = build(byte_level("gpt-2")).unwrap();
    let ids = tokenizer.encode("a🙂b").unwrap();
    let mut stream = tokenizer.stream_after(&[]).unwrap();
    let given: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    let expected = [Some("a"), None, None, None, Some("🙂"), Some("b")];
    assert_eq!(
        given.iter().map(Option::as_deref).collect::<Vec<_>>(),
        expected
    );
    let mut cut = tokenizer.stream_after(&[]).unwrap();
    assert_eq!(cut.push(ids[1]).unwrap(), None);
    assert_eq!(cut.finish().unwrap().as_deref(), Some("\u{fffd}"));
}

#[test]
fn templates_see_the_special_tokens() {
    let tokenizer = build(byte_level("gpt-2")).unwrap();
    let rendered = tokenizer.render_chat(&[ChatMessage::user("hi")]).unwrap();
    assert_eq!(rendered, "<|start|>hi<|end|>");
    assert_eq!(tokenizer.encode_rendered(&rendered).unwrap().len(), 4);
    let bare = build(sentence_piece())
        .unwrap()
        .render_chat(&[])
        .unwrap_err();
    assert!(matches!(bare, TokenizerError::NoTemplate { .. }), "{bare}");
}

#[test]
fn damaged_vocabularies_are_typed_errors() {
    let refused = |mut entries: Vec<(&'static str, Value)>, key: &str, new: Value| {
        *value(&mut entries, key) = new;
        build(entries).unwrap_err()
    };
    let error = refused(byte_level("gpt-2"), "tokenizer.ggml.pre", text("klingon"));
    assert!(
        matches!(error, TokenizerError::Kind { .. }) && error.to_string().contains("klingon"),
        "{error}"
    );
    let error = refused(byte_level("gpt-2"), "tokenizer.ggml.model", text("bert"));
    assert!(
        matches!(error, TokenizerError::Kind { .. }) && error.to_string().contains("bert"),
        "{error}"
    );
    let error = refused(
        byte_level("gpt-2"),
        "tokenizer.ggml.eos_token_id",
        Value::Unsigned(1 << 40),
    );
    assert!(matches!(error, TokenizerError::TokenId { .. }), "{error}");
    let error = refused(
        byte_level("gpt-2"),
        "tokenizer.ggml.merges",
        texts(&["in".to_owned()]),
    );
    assert!(
        matches!(error, TokenizerError::Merge { index: 0, .. }),
        "{error}"
    );
    let error = refused(
        byte_level("gpt-2"),
        "tokenizer.ggml.merges",
        texts(&["i zz".to_owned()]),
    );
    assert!(matches!(error, TokenizerError::Build { .. }), "{error}");
    let error = refused(
        byte_level("gpt-2"),
        "tokenizer.ggml.token_type",
        Value::Array(Array::Signed(vec![1])),
    );
    assert!(
        matches!(error, TokenizerError::Length { received: 1, .. }),
        "{error}"
    );
    let error = refused(sentence_piece(), "tokenizer.ggml.scores", Value::Bool(true));
    assert!(matches!(error, TokenizerError::Gguf { .. }), "{error}");
    let error = build(Vec::new()).unwrap_err();
    assert!(
        error.to_string().contains("tokenizer.ggml.tokens"),
        "{error}"
    );
}

#[test]
fn a_folder_gives_the_same_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let original = build(byte_level("gpt-2")).unwrap();
    original
        .tokenizer
        .save(folder.path().join("tokenizer.json"), false)
        .unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let end = original.eos_ids()[0];

    let bare = ChatTokenizer::from_folder(folder.path(), &[end]).unwrap();
    assert_eq!(
        bare.encode("in<|end|>é").unwrap(),
        original.encode("in<|end|>é").unwrap()
    );
    assert!(!bare.has_template() && bare.bos_id().is_none());

    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>",
            "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ eos_token }}"}]}"#,
    );
    let listed = ChatTokenizer::from_folder(folder.path(), &[end, 7]).unwrap();
    assert_eq!(listed.bos_id(), original.bos_id());
    assert_eq!(listed.eos_ids(), [end, 7]);
    assert_eq!(listed.render_chat(&[]).unwrap(), "<|end|>");

    write("chat_template.jinja", "{{ bos_token }}");
    let filed = ChatTokenizer::from_folder(folder.path(), &[]).unwrap();
    assert_eq!(filed.render_chat(&[]).unwrap(), "<|start|>");

    write("tokenizer.json", "{");
    let error = ChatTokenizer::from_folder(folder.path(), &[]).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

proptest! {
    /// What is streamed, token by token, is the text.
    #[test]
    fn streams_give_the_whole_text(line in "\\PC{0,40}", context in "\\PC{0,30}") {
        for entries in [byte_level("gpt-2"), byte_level("llama-bpe")] {
            let tokenizer = build(entries).unwrap();
            let context = tokenizer.encode_rendered(&context).unwrap();
            let mut stream = tokenizer.stream_after(&context).unwrap();
            let mut streamed = String::new();
            for id in tokenizer.encode_rendered(&line).unwrap() {
                streamed.extend(stream.push(id).unwrap());
            }
            streamed.extend(stream.finish().unwrap());
            prop_assert_eq!(&streamed, &line);
        }
    }
}
