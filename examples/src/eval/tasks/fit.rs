//! How much filler makes a prompt of a certain length.

use super::{Prompt, Sample};

/// A length that is too short for the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{task} needs more than {length} tokens: with the least filler it has {least}")]
pub struct FitError {
    /// The task.
    task: super::Task,
    /// The length that was asked for.
    length: usize,
    /// Tokens of the shortest prompt.
    least: usize,
}

/// Units of filler of the shortest prompt.
const LEAST: usize = 8;

/// The longest prompt of a sample that has at most `sample.length` tokens, as `count` counts them.
///
/// # Complexity
///
/// `O(log N)` calls of `count`.
///
/// # Errors
///
/// [`FitError`] where the task itself is longer than that; whatever `count` gives.
pub fn fit<E: From<FitError>>(
    sample: &Sample,
    haystack: &str,
    mut count: impl FnMut(&str) -> Result<usize, E>,
) -> Result<Prompt, E> {
    let mut tokens = |units: usize| count(&sample.prompt(units, haystack).text());
    let least = tokens(LEAST)?;
    if least > sample.length {
        return Err(E::from(FitError {
            task: sample.task,
            length: sample.length,
            least,
        }));
    }
    // `low` fits and `high` does not, or is as much as there can be: a unit has a token at least
    let (mut low, mut high) = (LEAST, 2 * LEAST);
    while high <= sample.length && tokens(high)? <= sample.length {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match tokens(middle)? <= sample.length {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(sample.prompt(low, haystack))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::Task;

    const HAYSTACK: &str = include_str!("../../../data/opticks-excerpt.txt");

    /// Tokens for a test: every word, and every digit and stop, which is about what a tokenizer makes of it.
    fn count(text: &str) -> Result<usize, FitError> {
        let marks = text
            .bytes()
            .filter(|b| b.is_ascii_digit() || b".,:".contains(b));
        Ok(text.split_whitespace().count() + marks.count())
    }

    fn samples() -> impl Iterator<Item = Sample> {
        Task::ALL.into_iter().flat_map(|task| {
            [2048, 3000].into_iter().flat_map(move |length| {
                [0, 50, 100].into_iter().flat_map(move |depth| {
                    (0..3).map(move |seed| Sample {
                        task,
                        length,
                        depth,
                        seed,
                    })
                })
            })
        })
    }

    #[test]
    fn prompts_are_as_long_as_they_can_be_and_the_same_each_time() {
        for sample in samples() {
            let prompt = fit(&sample, HAYSTACK, count).expect("a prompt");
            assert_eq!(prompt, fit(&sample, HAYSTACK, count).expect("a prompt"));
            let tokens = count(&prompt.text()).expect("a number");
            // a unit of filler is a sentence at the most, and a sentence of Newton's can be long
            let slack = if sample.task == Task::FrequentWords {
                30
            } else {
                260
            };
            assert!(
                tokens <= sample.length && tokens + slack > sample.length,
                "{sample:?}: {tokens}"
            );
        }
    }

    #[test]
    fn every_answer_is_in_the_context_and_nowhere_in_the_question() {
        for sample in samples() {
            let prompt = fit(&sample, HAYSTACK, count).expect("a prompt");
            let parts = prompt.answer.trim().split(", ");
            let parts = parts.map(|part| part.trim_start_matches("and "));
            for part in parts {
                let times = prompt.context.matches(part).count();
                match sample.task {
                    // the needle says it twice
                    Task::Passkey => assert_eq!(times, 2, "{sample:?}"),
                    Task::Needle | Task::MultiKey | Task::MultiValue => {
                        assert_eq!(times, 1, "{sample:?}");
                    }
                    // where it is assigned, and where it is read but for the last
                    Task::VariableTracking => assert!((1..=2).contains(&times), "{sample:?}"),
                    Task::CommonWords => continue,
                    Task::FrequentWords => assert!(times > 10, "{sample:?}"),
                }
                assert!(!prompt.question.contains(part), "{sample:?}");
            }
        }
    }

    #[test]
    fn depth_moves_the_needle_and_seeds_change_it() {
        let at = |depth, seed| {
            let sample = Sample {
                task: Task::Needle,
                length: 2048,
                depth,
                seed,
            };
            let prompt = fit(&sample, HAYSTACK, count).expect("a prompt");
            let needle = prompt
                .context
                .find(prompt.answer.trim())
                .expect("the needle");
            (needle as f64 / prompt.context.len() as f64, prompt.answer)
        };
        let (early, answer) = at(10, 1);
        assert!((0.02..0.25).contains(&early), "{early}");
        let (late, _) = at(90, 1);
        assert!((0.75..0.95).contains(&late), "{late}");
        assert_ne!(answer, at(10, 2).1);
    }

    #[test]
    fn a_length_that_is_too_short_is_refused() {
        for task in Task::ALL {
            let sample = Sample {
                task,
                length: 40,
                depth: 0,
                seed: 0,
            };
            let error = fit(&sample, HAYSTACK, count).expect_err("a refusal");
            assert!(
                error.to_string().contains("needs more than 40 tokens"),
                "{error}"
            );
        }
    }
}
