//! Variable tracking.

use rand::rngs::StdRng;

use super::Prompt;
use super::prompt::{codes, insert, listed, numbers, places};

/// Assignments of the chain after the first.
const HOPS: usize = 4;

/// The filler.
const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// A chain of five assignments in order, at random places among `units` times the filler.
pub(super) fn tracking(units: usize, rng: &mut StdRng) -> Prompt {
    let names = codes(HOPS + 1, 5, b'A', rng);
    let value = numbers(1, 5, rng).concat();
    let mut chain = vec![format!("VAR {} = {value}", names[0])];
    chain.extend(
        names
            .windows(2)
            .map(|pair| format!("VAR {} = VAR {}", pair[1], pair[0])),
    );
    let needles = places(HOPS + 1, units, rng).into_iter().zip(chain);
    let text = insert(&vec![NOISE; units], needles.collect(), "\n");
    Prompt {
        context: format!(
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\n"
        ),
        question: format!(
            "Question: Find all variables that are assigned the value {value} in the text above. Answer: According to the chain(s) of variable assignment in the text above, {} variables are assigned the value {value}, they are:",
            names.len()
        ),
        answer: format!(" {}", listed(&names)),
    }
}
