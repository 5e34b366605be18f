//! Words that come most often.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::Prompt;
use super::prompt::{codes, listed};

/// Words to find, how often each of them comes, and how often every other.
const COMMON: usize = 10;
const COMMON_TIMES: usize = 30;
const OTHER_TIMES: usize = 3;

/// Letters of a coded word, and words to find.
const CODE_LETTERS: usize = 6;
const FREQUENT: usize = 3;

/// A numbered list in which ten words of the haystack come 30 times each and `units` others 3 times each.
pub(super) fn common_words(units: usize, haystack: &str, rng: &mut StdRng) -> Prompt {
    let mut words: Vec<String> = distinct(haystack);
    words.shuffle(rng);
    let (common, others) = words.split_at(COMMON.min(words.len()));
    let common_list = common
        .iter()
        .flat_map(|word| std::iter::repeat_n(word, COMMON_TIMES));
    let others = others.iter().take(units);
    let mut list: Vec<&String> = common_list
        .chain(others.flat_map(|word| std::iter::repeat_n(word, OTHER_TIMES)))
        .collect();
    list.shuffle(rng);
    let numbered = list
        .iter()
        .enumerate()
        .map(|(i, word)| format!("{}. {word}", i + 1));
    let numbered: Vec<String> = numbered.collect();
    let answer = common
        .iter()
        .enumerate()
        .map(|(i, word)| format!("{}. {word}", i + 1));
    Prompt {
        context: format!(
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n{}\n",
            numbered.join(" ")
        ),
        question: "Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often in the list are:".to_owned(),
        answer: format!(" {}", answer.collect::<Vec<_>>().join(" ")),
    }
}

/// Coded words, the `k`-th of which comes about `units / k^2` times, in random order; the first of them is dots, which nobody asks for.
pub(super) fn frequent_words(units: usize, rng: &mut StdRng) -> Prompt {
    let mut words = vec!["...".to_owned()];
    // beyond 20 the k-th word would come less than once in 400 units
    words.extend(codes(19, CODE_LETTERS, b'a', rng));
    let times = |k: usize| units / (k * k);
    let mut text: Vec<&String> = (1..)
        .zip(&words)
        .flat_map(|(k, word)| std::iter::repeat_n(word, times(k)))
        .collect();
    text.shuffle(rng);
    let text: Vec<&str> = text.into_iter().map(String::as_str).collect();
    Prompt {
        context: format!(
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. {}\n",
            text.join(" ")
        ),
        question: "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text? Answer: According to the coded text above, the three most frequently appeared words are:".to_owned(),
        answer: format!(" {}", listed(&words[1..=FREQUENT])),
    }
}

/// The words of at least four lower-case letters of a text, each once, in alphabetical order.
fn distinct(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphabetic());
    let words =
        words.filter(|word| word.len() >= 4 && word.bytes().all(|b| b.is_ascii_lowercase()));
    words
        .map(str::to_owned)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_words_that_are_asked_for_come_most_often() {
        let haystack: String = (0..60)
            .map(|i| format!("word{} ", ["abcd", "efgh"][i % 2].repeat(i / 2 + 1)))
            .collect();
        let mut rng = StdRng::seed_from_u64(3);
        let prompt = common_words(12, &haystack, &mut rng);
        let times = |word: &str| {
            prompt
                .context
                .split(' ')
                .filter(|other| other.trim() == word)
                .count()
        };
        let asked: Vec<&str> = prompt
            .answer
            .split(' ')
            .filter(|word| word.len() > 3)
            .collect();
        assert_eq!(asked.len(), COMMON);
        assert!(asked.iter().all(|word| times(word) == COMMON_TIMES));
        let last = COMMON * COMMON_TIMES + 12 * OTHER_TIMES;
        assert!(prompt.context.contains(&format!(" {last}. ")));
        assert!(!prompt.context.contains(&format!(" {}. ", last + 1)));
    }

    #[test]
    fn frequencies_fall_with_the_square_of_the_rank() {
        let prompt = frequent_words(360, &mut StdRng::seed_from_u64(4));
        let asked: Vec<&str> = prompt
            .answer
            .trim()
            .split(", ")
            .map(|word| word.trim_start_matches("and "))
            .collect();
        let times: Vec<usize> = asked
            .iter()
            .map(|word| prompt.context.matches(word).count())
            .collect();
        assert_eq!(times, [90, 40, 22]);
    }
}
