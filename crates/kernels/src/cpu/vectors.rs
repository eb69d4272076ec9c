//! The vectors of a tensor as they lie in memory.

use burn::tensor::DType;
use burn_flex::FlexTensor;

use super::gemm::Matrix;

/// A tensor of f32 whose last dimension is contiguous; the others may lie anywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors<'a, const N: usize> {
    /// From the first value of the first vector on.
    values: &'a [f32],
    /// Values from one vector to the next, by dimension.
    strides: [usize; N],
    /// All dimensions but the last.
    pub(crate) shape: [usize; N],
    /// Values of a vector.
    pub(crate) width: usize,
}

impl<'a, const N: usize> Vectors<'a, N> {
    /// The vectors of a tensor of `N + 1` dimensions; none if they are not contiguous each.
    pub(crate) fn of(tensor: &'a FlexTensor) -> Option<Self> {
        let layout = tensor.layout();
        let (shape, strides) = (layout.shape().as_slice(), layout.strides());
        let (&width, shape) = shape.split_last()?;
        let (&step, strides) = strides.split_last()?;
        if tensor.dtype() != DType::F32 || (step != 1 && width > 1) {
            return None;
        }
        let mut positive = [0; N];
        for (positive, stride) in positive.iter_mut().zip(strides) {
            *positive = usize::try_from(*stride).ok()?;
        }
        let values = tensor.storage::<f32>().get(layout.start_offset()..)?;
        Some(Self { values, strides: positive, shape: shape.try_into().ok()?, width })
    }

    /// The vector at `index`.
    pub(crate) fn get(&self, index: [usize; N]) -> &'a [f32] {
        &self.values[self.offset(index)..][..self.width]
    }

    /// The vectors from `index` on along one dimension, as the `count` rows of a matrix.
    pub(crate) fn rows(&self, index: [usize; N], dimension: usize, count: usize) -> Matrix<'a> {
        // An empty run begins nowhere.
        let start = if count == 0 { 0 } else { self.offset(index) };
        Matrix::new(&self.values[start..], [count, self.width], [self.strides[dimension], 1])
    }

    fn offset(&self, index: [usize; N]) -> usize {
        index.iter().zip(&self.strides).map(|(index, stride)| index * stride).sum()
    }
}

/// A tensor whose vectors [`Vectors`] can read: a copy, if they are not contiguous each.
pub(crate) fn with_vectors<const N: usize>(tensor: FlexTensor) -> FlexTensor {
    if Vectors::<N>::of(&tensor).is_some() { tensor } else { tensor.to_contiguous() }
}
