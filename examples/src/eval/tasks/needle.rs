//! Passkeys and needles.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::Prompt;
use super::prompt::{insert, listed, numbers, places};

/// The filler of the passkey task.
const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// What keys are made of: an adjective and a noun.
const ADJECTIVES: [&str; 24] = [
    "ancient", "bitter", "careful", "distant", "eager", "faithful", "gentle", "hollow", "idle",
    "jolly", "keen", "lonely", "mellow", "narrow", "orange", "patient", "quiet", "restless",
    "silent", "tender", "useful", "velvet", "wooden", "young",
];
const NOUNS: [&str; 24] = [
    "anchor", "basket", "candle", "dragon", "engine", "falcon", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "mirror", "needle", "oyster", "pencil", "quarry", "ribbon",
    "saddle", "temple", "umbrella", "violin", "walnut", "zebra",
];

/// A passkey at `depth` percent of `units` times the filler. The needle says it twice, as published.
pub(super) fn passkey(units: usize, depth: usize, rng: &mut StdRng) -> Prompt {
    let key = numbers(1, 5, rng).concat();
    let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
    let filler = vec![NOISE; units];
    let text = insert(&filler, vec![(units * depth / 100, needle)], "\n");
    Prompt {
        context: format!(
            "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it.\n{text}\n"
        ),
        question: "What is the pass key? The pass key is".to_owned(),
        answer: format!(" {key}"),
    }
}

/// `count` needles with different keys in `units` sentences of prose; the first, which is asked for, at `depth` percent.
pub(super) fn needles(
    count: usize,
    units: usize,
    depth: usize,
    haystack: &str,
    rng: &mut StdRng,
) -> Prompt {
    let keys = keys(count, rng);
    let values = numbers(count, 7, rng);
    let mut at = vec![units * depth / 100];
    at.extend(places(count - 1, units, rng));
    let needles = at.into_iter().zip(keys.iter().zip(&values));
    let needles = needles.map(|(at, (key, value))| (at, needle(key, value)));
    prose(units, needles.collect(), haystack, &keys[0], &values[..1])
}

/// One key with four values at random places, all of which are asked for.
pub(super) fn multi_value(units: usize, haystack: &str, rng: &mut StdRng) -> Prompt {
    let key = keys(1, rng).concat();
    let values = numbers(4, 7, rng);
    let at = places(4, units, rng);
    let needles = at
        .into_iter()
        .zip(&values)
        .map(|(at, value)| (at, needle(&key, value)));
    prose(units, needles.collect(), haystack, &key, &values)
}

fn needle(key: &str, value: &str) -> String {
    format!("One of the special magic numbers for {key} is: {value}.")
}

fn prose(
    units: usize,
    needles: Vec<(usize, String)>,
    haystack: &str,
    key: &str,
    values: &[String],
) -> Prompt {
    let haystack = haystack.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = insert(&sentences(&haystack, units), needles, " ");
    let (number, is) = match values.len() {
        1 => ("number", "is"),
        _ => ("numbers", "are"),
    };
    Prompt {
        context: format!(
            "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you about the numbers afterwards.\n{text}\n"
        ),
        question: format!(
            "What {is} the special magic {number} for {key} mentioned in the provided text? The special magic {number} for {key} mentioned in the provided text {is}"
        ),
        answer: format!(" {}", listed(values)),
    }
}

/// The first `units` sentences of a text, which begins again where it ends.
fn sentences(text: &str, units: usize) -> Vec<&str> {
    let all: Vec<&str> = text
        .split_inclusive(". ")
        .map(str::trim)
        .filter(|sentence| !sentence.is_empty())
        .collect();
    all.iter().copied().cycle().take(units).collect()
}

/// Different keys, an adjective and a noun each.
fn keys(count: usize, rng: &mut StdRng) -> Vec<String> {
    let adjectives = ADJECTIVES.sample(rng, count);
    let nouns: Vec<&&str> = NOUNS.sample(rng, count).collect();
    adjectives
        .zip(nouns)
        .map(|(adjective, noun)| format!("{adjective}-{noun}"))
        .collect()
}
