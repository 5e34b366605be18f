use std::ops::Range;

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use clap::ValueEnum;
use hira_index::burn::HiraBackend;
use rayon::prelude::*;

use crate::device::is_flex;

/// From so many rows on, the backend's own product runs on every thread.
const MANY_ROWS: usize = 8;

/// What a decode step reads of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum WeightPrecision {
    /// The weights.
    #[default]
    F32,
    /// A copy in half precision: half the bytes to read, half as much memory again.
    F16,
}

/// A weight matrix, laid out for the product of one row as well as of many.
///
/// A decode step reads every weight once. Flex multiplies a single row on one thread, which reads memory slower than all of them
/// together; so there the matrix is divided among the threads, by views.
#[derive(Module, Debug)]
pub struct Matrix<B: Backend> {
    /// `[outputs, inputs]`, as files have it: an output is the dot product with a row.
    weight: Param<Tensor<B, 2>>,
    /// The same in half precision, for products of one row.
    half: Option<Tensor<B, 2>>,
}

impl<B: Backend> Matrix<B> {
    /// A matrix with Burn's default initialisation of a linear layer.
    pub(super) fn init(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        let initializer = Initializer::KaimingUniform {
            gain: 1.0 / 3f64.sqrt(),
            fan_out_only: false,
        };
        let shape = [outputs, inputs];
        Self {
            weight: initializer.init_with(shape, Some(inputs), Some(outputs), device),
            half: None,
        }
    }
}

impl<B: HiraBackend> Matrix<B> {
    /// The matrix of a file's tensor, `[outputs, inputs]`.
    pub(super) fn new(weight: Tensor<B, 2>) -> Self {
        Self {
            weight: Param::from_tensor(weight),
            half: None,
        }
    }

    pub(super) fn set_precision(&mut self, precision: WeightPrecision) {
        self.half = match precision {
            WeightPrecision::F32 => None,
            WeightPrecision::F16 => Some(self.weight.val().cast(DType::F16)),
        };
    }

    fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// The product, the outputs divided among the threads.
    ///
    /// # Shapes
    ///
    /// `x` `[L, inputs]` to `[L, outputs]`.
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, inputs] = x.dims();
        let part = |outputs| self.part(x.clone(), 0..inputs, outputs);
        match shares::<B>(rows, self.outputs()) {
            None => part(0..self.outputs()),
            Some(shares) => Tensor::cat(shares.into_par_iter().map(part).collect(), 1),
        }
    }

    /// The product of some inputs, which are all of `x`, as addends of some outputs.
    ///
    /// # Numerics
    ///
    /// Sums are f32. In half precision `x` and the result are rounded to 11 bits; beyond 65,504 they overflow to infinity.
    pub(super) fn part(
        &self,
        x: Tensor<B, 2>,
        inputs: Range<usize>,
        outputs: Range<usize>,
    ) -> Tensor<B, 2> {
        let columns = |weight: Tensor<B, 2>| {
            let whole = weight.dims() == [outputs.len(), inputs.len()];
            let part = match whole {
                true => weight,
                false => weight.slice([outputs, inputs]),
            };
            part.transpose()
        };
        match &self.half {
            Some(half) if x.dims()[0] == 1 => {
                let x = x.cast(DType::F16);
                x.matmul(columns(half.clone())).cast(DType::F32)
            }
            _ => x.matmul(columns(self.weight.val())),
        }
    }
}

/// What each thread takes of `0..len` for products with `rows` rows; `None` where it does not pay to divide them.
pub(super) fn shares<B: HiraBackend>(rows: usize, len: usize) -> Option<Vec<Range<usize>>> {
    let threads = rayon::current_num_threads().min(len);
    if threads < 2 || rows >= MANY_ROWS || !is_flex::<B>() {
        return None;
    }
    let bound = |thread: usize| len * thread / threads;
    Some((0..threads).map(|i| bound(i)..bound(i + 1)).collect())
}
