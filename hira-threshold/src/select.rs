//! The exact last step: the k-th largest value, the k best keys, the keys that reach a threshold.
//!
//! Values are never NaN here (the crates above refuse what could become one). Should one arrive all the same, it is
//! ordered beyond the infinity of its sign, so the result is still well defined.

/// The `k`-th largest of `values` (1 is the largest), which are reordered.
///
/// As a threshold, `value >= kth_largest(values, k)` keeps at least `k` values. `k` beyond the number of values
/// gives `-inf`, which keeps everything; `k = 0` gives `+inf`.
///
/// # Numerics
///
/// The zeros are equal as scores, so which of them is returned is of no consequence to a comparison with the result.
///
/// # Complexity
///
/// O(n), no allocation.
///
/// # Examples
///
/// ```
/// use hira_threshold::kth_largest;
///
/// assert_eq!(kth_largest(&mut [3.0, 1.0, 2.0, 3.0], 2), 3.0);
/// assert_eq!(kth_largest(&mut [3.0, 1.0, 2.0, 3.0], 3), 2.0);
/// assert_eq!(kth_largest(&mut [3.0], 2), f32::NEG_INFINITY);
/// ```
pub fn kth_largest(values: &mut [f32], k: usize) -> f32 {
    if k == 0 {
        return f32::INFINITY;
    }
    if k > values.len() {
        return f32::NEG_INFINITY;
    }
    *values
        .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
        .1
}

/// Keeps the `k` best of the keys given as parallel `positions` and `scores`; the result ascends by position.
///
/// Equal scores go to the lower position, and `-0.0` equals `+0.0`. The scores keep their bits. With `k` at or above
/// the number of keys all of them stay, and are put in order.
///
/// # Panics
///
/// If the two vectors differ in length. The positions must be distinct, or more than `k` may stay.
///
/// # Complexity
///
/// O(n) when the positions come in ascending order, else a sort of the k kept; allocates 8 bytes a key. See
/// [`select_top_k_with`] for the form that reuses its memory.
///
/// # Examples
///
/// ```
/// use hira_threshold::select_top_k;
///
/// let (mut positions, mut scores) = (vec![9, 4, 7], vec![0.0, -0.0, -1.0]);
/// select_top_k(&mut positions, &mut scores, 1);
/// assert_eq!(positions, [4]);
/// assert_eq!(scores[0].to_bits(), (-0.0f32).to_bits());
/// ```
pub fn select_top_k(positions: &mut Vec<u32>, scores: &mut Vec<f32>, k: usize) {
    select_top_k_with(positions, scores, k, &mut Vec::new());
}

/// [`select_top_k`] with scratch that is reused: no allocation once it has held as many keys.
///
/// # Panics
///
/// As [`select_top_k`].
///
/// # Examples
///
/// ```
/// use hira_threshold::select_top_k_with;
///
/// let mut scratch = Vec::new();
/// let (mut positions, mut scores) = (vec![0, 1, 2], vec![1.0, 3.0, 2.0]);
/// select_top_k_with(&mut positions, &mut scores, 2, &mut scratch);
/// assert_eq!(positions, [1, 2]);
/// ```
pub fn select_top_k_with(
    positions: &mut Vec<u32>,
    scores: &mut Vec<f32>,
    k: usize,
    scratch: &mut Vec<u64>,
) {
    assert_eq!(positions.len(), scores.len(), "one score a position");
    if k == 0 {
        positions.clear();
        scores.clear();
        return;
    }
    if k < positions.len() {
        scratch.clear();
        scratch.extend(
            positions
                .iter()
                .zip(scores.iter())
                .map(|(&position, &score)| merit(position, score)),
        );
        // The k-th best merit; merits are distinct because positions are, so exactly k keys reach it.
        let last = *scratch.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1;
        retain(positions, scores, |position, score| {
            merit(position, score) >= last
        });
    }
    if !positions.is_sorted() {
        sort_by_position(positions, scores, scratch);
    }
}

/// Keeps the keys whose score is at least `tau`, in the order in which they came.
///
/// # Panics
///
/// If the two vectors differ in length.
///
/// # Complexity
///
/// O(n), no allocation.
///
/// # Examples
///
/// ```
/// use hira_threshold::select_at_least;
///
/// let (mut positions, mut scores) = (vec![0, 1, 2], vec![-0.0, -1.0, 2.0]);
/// select_at_least(&mut positions, &mut scores, 0.0);
/// assert_eq!(positions, [0, 2]); // -0.0 reaches 0.0
/// ```
pub fn select_at_least(positions: &mut Vec<u32>, scores: &mut Vec<f32>, tau: f32) {
    assert_eq!(positions.len(), scores.len(), "one score a position");
    retain(positions, scores, |_, score| score >= tau);
}

/// One integer that orders keys by score, then by the lower position: the larger, the better.
fn merit(position: u32, score: f32) -> u64 {
    // Adding +0.0 turns -0.0 into +0.0 and leaves everything else alone: the two zeros tie.
    let bits = (score + 0.0).to_bits();
    // Bits of non-negative floats ascend as the values do, those of negative ones descend and lie above.
    let ordered = if bits >> 31 == 0 {
        bits | 0x8000_0000
    } else {
        !bits
    };
    u64::from(ordered) << 32 | u64::from(!position)
}

/// `Vec::retain` over two vectors in step.
fn retain(positions: &mut Vec<u32>, scores: &mut Vec<f32>, keep: impl Fn(u32, f32) -> bool) {
    let mut kept = 0;
    for i in 0..positions.len() {
        let (position, score) = (positions[i], scores[i]);
        // Written always, counted only if kept: no branch to mispredict.
        positions[kept] = position;
        scores[kept] = score;
        kept += usize::from(keep(position, score));
    }
    positions.truncate(kept);
    scores.truncate(kept);
}

fn sort_by_position(positions: &mut [u32], scores: &mut [f32], scratch: &mut Vec<u64>) {
    scratch.clear();
    scratch.extend(
        positions
            .iter()
            .zip(scores.iter())
            .map(|(&position, &score)| u64::from(position) << 32 | u64::from(score.to_bits())),
    );
    scratch.sort_unstable();
    for ((position, score), &pair) in positions
        .iter_mut()
        .zip(scores.iter_mut())
        .zip(scratch.iter())
    {
        *position = (pair >> 32) as u32;
        *score = f32::from_bits(pair as u32);
    }
}
