//! Threads of rayon's pool as helpers of a call.

use hira_kernels::Team;

/// Runs `call` with a team of the calling thread and at most `most` workers of the current rayon pool.
///
/// Nothing waits for the workers: those that are busy with something else come late, or not at all. The calling thread may be one of
/// them, or none.
///
/// # Examples
///
/// ```
/// use hira_kernels::Team;
///
/// let mut lengths = [0; 3];
/// hira_search::call_with_rayon(&mut Team::new(), usize::MAX, |team| {
///     team.for_each(lengths.iter_mut().zip(["a", "bc", "def"]), |(length, word)| *length = word.len());
/// });
/// assert_eq!(lengths, [1, 2, 3]);
/// ```
pub fn call_with_rayon<R>(team: &mut Team, most: usize, call: impl FnOnce(&Team) -> R) -> R {
    let helpers = most.min(rayon::current_num_threads() - 1);
    team.call(helpers, |helper| rayon::spawn(|| helper.help()), call)
}
