//! The rows of a tensor as they lie in memory.

use burn::tensor::DType;
use burn_flex::FlexTensor;

use super::gemm::Matrix;

/// Rows of f32, each contiguous, under `D` indices. A view of a larger tensor has gaps between them, an expanded one repeats them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, const D: usize> {
    /// From the first value of the first row on.
    values: &'a [f32],
    /// Values from one index to the next.
    strides: [usize; D],
    /// Values of a row.
    pub(crate) width: usize,
}

impl<'a, const D: usize> Rows<'a, D> {
    /// The rows of a tensor of `D + 1` dimensions; none if they are not contiguous (transposed, flipped).
    pub(crate) fn of(tensor: &'a FlexTensor) -> Option<Self> {
        let layout = tensor.layout();
        let (&width, _) = layout.shape().as_slice().split_last()?;
        let (&step, outer) = layout.strides().split_last()?;
        if tensor.dtype() != DType::F32 || (step != 1 && width > 1) || outer.len() != D {
            return None;
        }
        let mut strides = [0; D];
        for (stride, found) in strides.iter_mut().zip(outer) {
            *stride = usize::try_from(*found).ok()?;
        }
        Some(Self { values: tensor.storage::<f32>().get(layout.start_offset()..)?, strides, width })
    }

    /// The row at an index.
    #[inline(always)]
    pub(crate) fn row(&self, index: [usize; D]) -> &'a [f32] {
        &self.values[self.offset(index)..][..self.width]
    }

    /// The rows from `index` on along one dimension, as a matrix of `count` rows.
    pub(crate) fn run(&self, index: [usize; D], dimension: usize, count: usize) -> Matrix<'a> {
        // An empty run begins nowhere.
        let start = if count == 0 { 0 } else { self.offset(index) };
        Matrix::new(&self.values[start..], [count, self.width], [self.strides[dimension], 1])
    }

    #[inline(always)]
    fn offset(&self, index: [usize; D]) -> usize {
        index.iter().zip(self.strides).map(|(index, stride)| index * stride).sum()
    }
}

impl<'a> Rows<'a, 3> {
    /// The matrix at two indices.
    pub(crate) fn matrix(&self, [first, second]: [usize; 2]) -> Rows<'a, 1> {
        let values = &self.values[self.offset([first, second, 0])..];
        Rows { values, strides: [self.strides[2]], width: self.width }
    }
}

/// The tensor itself if its rows are contiguous, else a copy whose rows are.
pub(crate) fn with_rows<const D: usize>(tensor: FlexTensor) -> FlexTensor {
    if Rows::<D>::of(&tensor).is_some() { tensor } else { tensor.to_contiguous() }
}
