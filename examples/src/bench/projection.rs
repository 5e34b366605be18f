//! What a model does just before a layer's attention.

use std::hint::black_box;

use hira_kernels::Kernel;
use rayon::prelude::*;

/// Inputs of SmolLM2's projections.
const INPUTS: usize = 576;

/// Outputs of its projections to queries, keys and values.
const OUTPUTS: usize = 960;

/// The products of one row with the weights of a layer's queries, keys and values, divided among the threads as
/// [`Matrix`](crate::llama::Matrix) divides them.
///
/// Taken before every timed call. A bench that only checks answers between its calls finds the other threads asleep, and what it takes to wake one
/// (100 to 200 us on a virtual machine, as much as a whole step at 8,192 keys) would be in every time; in a model they have just worked
/// on this.
pub(super) struct Projection {
    kernel: Kernel,
    row: Vec<f32>,
    weights: Vec<f32>,
    outputs: Vec<f32>,
}

impl Projection {
    pub(super) fn new() -> Self {
        Self {
            kernel: Kernel::best(),
            row: vec![1.0; INPUTS],
            weights: vec![0.5; INPUTS * OUTPUTS],
            outputs: vec![0.0; OUTPUTS],
        }
    }

    /// Computes it once more.
    pub(super) fn run(&mut self) {
        let rows = OUTPUTS.div_ceil(rayon::current_num_threads());
        let outputs = self.outputs.par_chunks_mut(rows);
        let weights = self.weights.par_chunks(rows * INPUTS);
        outputs.zip(weights).for_each(|(outputs, weights)| {
            self.kernel.scores_into(&self.row, weights, outputs);
        });
        black_box(&self.outputs);
    }
}
