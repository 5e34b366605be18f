use burn::tensor::Tensor;
use hira_index::burn::HiraBackend;

use super::LlamaError;
use super::matrix::Matrix;
use crate::element::Element;
use crate::weights::WeightSource;

/// Reads weights one after the other, checks their shapes and reports progress.
pub(super) struct Loader<'a, B: HiraBackend> {
    pub(super) source: &'a dyn WeightSource,
    pub(super) device: &'a B::Device,
    element: Element,
    progress: &'a mut dyn FnMut(usize, usize),
    done: usize,
    total: usize,
}

impl<'a, B: HiraBackend> Loader<'a, B> {
    /// A loader that will read `total` tensors and make tensors of `element` on `device`.
    pub(super) fn new(
        source: &'a dyn WeightSource,
        (device, element): (&'a B::Device, Element),
        progress: &'a mut dyn FnMut(usize, usize),
        total: usize,
    ) -> Self {
        Self {
            source,
            device,
            element,
            progress,
            done: 0,
            total,
        }
    }

    /// A vector of `len` elements, or several joined.
    pub(super) fn vector(&mut self, parts: &[(String, usize)]) -> Result<Tensor<B, 1>, LlamaError> {
        let data = self.join(parts.iter().map(|(name, len)| (name, vec![*len])))?;
        let len = data.len();
        Ok(self.element.tensor(data, [len], self.device))
    }

    /// The matrix of a tensor `[rows, columns]`, or of several joined row after row.
    pub(super) fn matrix(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
    ) -> Result<Matrix<B>, LlamaError> {
        Ok(Matrix::new(self.rows(parts, columns)?))
    }

    /// A tensor `[rows, columns]`, or several joined row after row.
    pub(super) fn rows(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
    ) -> Result<Tensor<B, 2>, LlamaError> {
        let data = self.join(
            parts
                .iter()
                .map(|(name, rows)| (name, vec![*rows, columns])),
        )?;
        let rows = data.len() / columns;
        Ok(self.element.tensor(data, [rows, columns], self.device))
    }

    fn join<'n>(
        &mut self,
        parts: impl ExactSizeIterator<Item = (&'n String, Vec<usize>)>,
    ) -> Result<Vec<f32>, LlamaError> {
        let mut joined = Vec::new();
        for (name, shape) in parts {
            let data = self.source.tensor_of_shape(name, &shape)?.data;
            if joined.is_empty() {
                joined = data;
            } else {
                joined.extend_from_slice(&data);
            }
            self.done += 1;
            (self.progress)(self.done, self.total);
        }
        Ok(joined)
    }
}
