//! SmolLM2-135M with dense attention against recorded logits and greedy tokens of an independent `f32` implementation.
//!
//! Needs two things that the repository does not hold: the recording `smollm2_greedy.json`, in the folder that
//! `HIRA_REFERENCE` names or in `shared/reference` beside the repository, and the model in the folder that the examples fetch
//! it to. A test that lacks one says so and passes.
#![cfg(any(feature = "flex", feature = "ndarray"))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hira_attention::HiraBackend;
use hira_examples::fetch;
use hira_examples::llama::Llama;
#[cfg(feature = "flex")]
use hira_examples::llama::WeightPrecision;
use hira_examples::weights::ModelFile;
use serde::Deserialize;

/// Largest absolute difference of a logit.
const TOLERANCE: f32 = 2e-2;
/// Largest absolute difference of a logit of a decode step that reads half-precision weights: 0.104 was measured over all prompts.
#[cfg(feature = "flex")]
const HALF_TOLERANCE: f32 = 0.2;
/// Greedy tokens that win by less than this are not asked for.
const MARGIN: f32 = 0.05;

#[derive(Deserialize)]
struct Recording {
    refs: BTreeMap<String, Reference>,
}

#[derive(Deserialize)]
struct Reference {
    prompt_ids: Vec<u32>,
    greedy32: Vec<u32>,
    top20_ids: Vec<u32>,
    top20_logits: Vec<f32>,
    /// Entry `i` is about the logits after the prompt and the first `i + 1` greedy tokens.
    next_step_top1_logit_and_margin: Vec<(f32, f32)>,
}

/// The recording and the model, or why there is none.
fn prerequisites() -> Result<(Recording, PathBuf), String> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference");
    let folder = std::env::var_os("HIRA_REFERENCE").map_or_else(beside, PathBuf::from);
    let path = folder.join("smollm2_greedy.json");
    let text =
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let recording =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let model = fetch::cached_smollm2()
        .ok_or("SmolLM2 is not in the model folder (run the llama example once)")?;
    Ok((recording, model))
}

/// Compares every prompt of at most `longest` tokens.
fn reproduces_the_recording<B: HiraBackend>(longest: usize) {
    let (recording, path) = match prerequisites() {
        Ok(found) => found,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let source = ModelFile::open(&path).expect("the model opens");
    let device = B::Device::default();
    let model = Llama::<B>::load(&source, &device, &mut |_, _| {}).expect("the model loads");
    let mut compared = 0;
    for (name, reference) in &recording.refs {
        if reference.prompt_ids.len() <= longest {
            compare(&model, name, reference);
            compared += 1;
        }
    }
    assert!(
        compared > 0,
        "the recording has no prompt of at most {longest} tokens"
    );
}

fn compare<B: HiraBackend>(model: &Llama<B>, name: &str, reference: &Reference) {
    let len = reference.prompt_ids.len() + reference.greedy32.len();
    let mut cache = model.new_cache(len).expect("the cache fits");
    let quiet = &mut |_, _| {};
    let mut logits = model
        .forward(&mut cache, &reference.prompt_ids, quiet)
        .expect("the prompt runs");
    for (id, expected) in reference.top20_ids.iter().zip(&reference.top20_logits) {
        let received = logits[*id as usize];
        assert!(
            (received - expected).abs() <= TOLERANCE,
            "{name}: logit of {id} is {received}, not {expected}"
        );
    }
    let mut leader = (
        reference.top20_logits[0],
        reference.top20_logits[0] - reference.top20_logits[1],
    );
    let next = &reference.next_step_top1_logit_and_margin;
    for (step, (id, after)) in reference.greedy32.iter().zip(next).enumerate() {
        let (expected, margin) = leader;
        let received = logits[*id as usize];
        assert!(
            (received - expected).abs() <= TOLERANCE,
            "{name}, step {step}: {received}, not {expected}"
        );
        let beaten = logits.iter().filter(|logit| **logit > received).count();
        assert!(
            beaten == 0 || margin <= MARGIN,
            "{name}, step {step}: {beaten} tokens lead {id}"
        );
        logits = model
            .forward(&mut cache, &[*id], quiet)
            .expect("the token runs");
        leader = *after;
    }
    assert_eq!(cache.metrics().density(), 1.0);
}

#[cfg(feature = "flex")]
#[test]
fn flex_reproduces_the_recording() {
    reproduces_the_recording::<burn_flex::Flex>(usize::MAX);
}

/// Decode steps that read half-precision weights, beside those that read all of them: the same past, the recorded tokens.
#[cfg(feature = "flex")]
#[test]
fn half_precision_stays_within_its_bound() {
    let (recording, path) = match prerequisites() {
        Ok(found) => found,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let source = ModelFile::open(&path).expect("the model opens");
    let mut model = Llama::<burn_flex::Flex>::load(&source, &Default::default(), &mut |_, _| {})
        .expect("the model loads");
    let quiet = &mut |_, _| {};
    let mut logits = |precision| -> Vec<Vec<f32>> {
        model.set_weights(precision).expect("flex has both");
        let short = |reference: &&Reference| reference.prompt_ids.len() <= 64;
        let references = recording.refs.values().filter(short);
        let of_one = references.flat_map(|reference| {
            let (prompt, greedy) = (&reference.prompt_ids, &reference.greedy32);
            let len = prompt.len() + greedy.len();
            let mut cache = model.new_cache(len).expect("the cache fits");
            model
                .forward(&mut cache, prompt, quiet)
                .expect("the prompt runs");
            let mut step = |id: &u32| model.forward(&mut cache, &[*id], quiet);
            let steps = greedy.iter().map(|id| step(id).expect("the token runs"));
            steps.collect::<Vec<_>>()
        });
        of_one.collect()
    };
    let whole = logits(WeightPrecision::F32);
    let half = logits(WeightPrecision::F16);
    let mut worst = 0.0_f32;
    for (whole, half) in whole.iter().zip(&half) {
        let off = whole.iter().zip(half).map(|(a, b)| (a - b).abs());
        worst = off.fold(worst, f32::max);
    }
    assert!(0.0 < worst && worst <= HALF_TOLERANCE, "off by {worst}");
}

/// NdArray multiplies a vector by a matrix ten times slower than Flex: short prompts only.
#[cfg(feature = "ndarray")]
#[test]
fn ndarray_reproduces_the_short_prompts() {
    reproduces_the_recording::<burn_ndarray::NdArray>(64);
}
