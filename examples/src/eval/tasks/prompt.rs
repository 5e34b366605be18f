//! A prompt in three parts, and the placing of sentences in filler.

use rand::RngExt;
use rand::rngs::StdRng;

/// What a model is given, and what it should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The long part, in which the answer is.
    pub context: String,
    /// The question and the beginning of its answer.
    pub question: String,
    /// What should follow, with a space before it.
    pub answer: String,
}

impl Prompt {
    /// The three parts as one text.
    pub fn text(&self) -> String {
        format!("{}{}{}", self.context, self.question, self.answer)
    }
}

/// `filler` with `needles` put in: each before the piece whose number it names (at the end if there is none), in order.
pub(super) fn insert(filler: &[&str], mut needles: Vec<(usize, String)>, between: &str) -> String {
    // sorting is stable: needles at one place keep their order
    needles.sort_by_key(|needle| needle.0);
    let mut needles = needles.into_iter().peekable();
    let mut pieces = Vec::with_capacity(filler.len());
    for (i, piece) in filler.iter().enumerate() {
        while let Some((_, needle)) = needles.next_if(|needle| needle.0 <= i) {
            pieces.push(needle);
        }
        pieces.push((*piece).to_owned());
    }
    pieces.extend(needles.map(|(_, needle)| needle));
    pieces.join(between)
}

/// `count` different places among `units` pieces of filler, as shares of them, so that more filler moves none of them out of order.
pub(super) fn places(count: usize, units: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut shares: Vec<f64> = (0..count).map(|_| rng.random_range(0.0..1.0)).collect();
    shares.sort_unstable_by(f64::total_cmp);
    shares
        .into_iter()
        .map(|share| (share * units as f64) as usize)
        .collect()
}

/// `count` different numbers of `digits` digits, as text.
pub(super) fn numbers(count: usize, digits: u32, rng: &mut StdRng) -> Vec<String> {
    let mut numbers: Vec<String> = Vec::with_capacity(count);
    while numbers.len() < count {
        let range = 10u64.pow(digits - 1)..10u64.pow(digits);
        let number = rng.random_range(range).to_string();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    numbers
}

/// `count` different words of `letters` random letters from `first` on (`b'a'` or `b'A'`).
pub(super) fn codes(count: usize, letters: usize, first: u8, rng: &mut StdRng) -> Vec<String> {
    let mut codes: Vec<String> = Vec::with_capacity(count);
    while codes.len() < count {
        let code = (0..letters).map(|_| char::from(first + rng.random_range(0..26)));
        let code = code.collect();
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    codes
}

/// `a, b, and c`.
pub(super) fn listed(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{}, and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn needles_lie_where_they_are_put() {
        let needle = |at: usize, text: &str| (at, text.to_owned());
        let needles = vec![
            needle(9, "end"),
            needle(1, "x"),
            needle(1, "y"),
            needle(0, "first"),
        ];
        assert_eq!(
            insert(&["a", "b", "c"], needles, " "),
            "first a x y b c end"
        );
    }

    #[test]
    fn draws_are_different_and_of_the_right_shape() {
        let mut rng = StdRng::seed_from_u64(1);
        let numbers = numbers(90, 2, &mut rng);
        assert_eq!(numbers.len(), 90);
        assert!(numbers.iter().all(|number| number.len() == 2));
        let codes = codes(26, 1, b'A', &mut rng);
        assert_eq!(codes.concat().len(), 26);
        assert_eq!(listed(&codes[..0]), "");
        assert_eq!(listed(&["a".into(), "b".into(), "c".into()]), "a, b, and c");
        let places = places(8, 100, &mut rng);
        assert!(places.is_sorted() && places[7] < 100);
    }
}
