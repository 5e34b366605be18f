//! Layers whose queries see the last keys only, and what such a layer forgets.
//!
//! In a layer with a window of `W` the query at position `p` sees the keys `p + 1 - W ..= p`; sinks that lie before are masked like any other key.
//! What no later query can see is evicted before new tokens are stored: whole segments of keys, whole runs of values, and block means. Every other
//! row keeps its position, so that positions (and RoPE, and reports) are those of the sequence.
//!
//! # Memory
//!
//! After `n` tokens a head holds at most `W + evict_slack + segment_len + t` rows, `t` the tokens of the last call, and logarithmically many entries of
//! its sample. Segments of a windowed layer are a quarter of the window long, so that they do not hold much more than the window
//! ([`segment_len`]).

/// Rows of a dense decode step's ranges are a multiple of this many: segments that are, too, are read where they lie.
const RANGE: usize = 512;

/// And at most so many.
const LONGEST_RANGE: usize = 2048;

/// The window of a layer, and how far a caller may go back in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerWindow {
    /// Keys that a query sees, its own included: at least 1.
    pub(crate) len: usize,
    /// Tokens that can be taken back whatever was evicted.
    pub(crate) slack: usize,
}

impl LayerWindow {
    /// The first position that a query at `position` or later can see, after up to `slack` tokens were taken back.
    pub(crate) fn first_kept(&self, position: usize) -> usize {
        (position + 1)
            .saturating_sub(self.len)
            .saturating_sub(self.slack)
    }

    /// The fewest tokens that may stay of a layer that has evicted those before `evicted`: the next query must find every key that it sees.
    pub(crate) fn least_len(&self, evicted: usize) -> usize {
        if evicted == 0 {
            0
        } else {
            evicted.saturating_add(self.len - 1)
        }
    }
}

/// Keys of a segment of a layer with this window, where `configured` is what other layers have: about a quarter of the window, a multiple of
/// the ranges of a dense step.
pub(crate) fn segment_len(window: usize, configured: usize) -> usize {
    let quarter = window.div_ceil(4).max(1).min(configured);
    let unit = if quarter <= LONGEST_RANGE {
        RANGE
    } else {
        LONGEST_RANGE
    };
    quarter.next_multiple_of(unit).min(configured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_a_quarter_of_the_window() {
        for (window, expected) in [
            (1, 512),
            (512, 512),
            (4096, 1024),
            (8192, 2048),
            (32_768, 8192),
            (usize::MAX, 8192),
        ] {
            assert_eq!(segment_len(window, 8192), expected);
        }
        assert_eq!(segment_len(4096, 64), 64);
    }

    #[test]
    fn what_is_kept_is_what_later_queries_see() {
        let window = LayerWindow { len: 4, slack: 2 };
        assert_eq!(window.first_kept(3), 0);
        assert_eq!(window.first_kept(10), 5);
        // From 5 on: the query at 8 sees 5 to 8, the one at 7 would miss 4.
        assert_eq!(window.least_len(5), 8);
        assert_eq!(window.least_len(0), 0);
        let all = LayerWindow {
            len: 1,
            slack: usize::MAX,
        };
        assert_eq!(all.first_kept(1000), 0);
    }
}
