//! StreamingLLM: attention sinks and a window.

/// Keys at the start that are always attended to.
pub const SINKS: usize = 4;

/// The positions of the first [`SINKS`] keys and of the last `budget - SINKS`, ascending.
pub(super) fn select(visible: usize, budget: usize, positions: &mut Vec<u32>) {
    positions.clear();
    let sinks = SINKS.min(visible);
    let window = visible
        .saturating_sub(budget.saturating_sub(SINKS))
        .max(sinks);
    positions.extend((0..sinks).chain(window..visible).map(|p| p as u32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_and_window_make_up_the_budget() {
        let mut positions = Vec::new();
        select(20, 6, &mut positions);
        assert_eq!(positions, [0, 1, 2, 3, 18, 19]);
        select(5, 6, &mut positions);
        assert_eq!(positions, [0, 1, 2, 3, 4]);
        select(3, 6, &mut positions);
        assert_eq!(positions, [0, 1, 2]);
    }
}
