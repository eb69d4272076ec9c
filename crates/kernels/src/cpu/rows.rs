//! The rows of a tensor as they lie in memory.

use burn::tensor::DType;
use burn_flex::FlexTensor;

/// A matrix of f32 whose rows are contiguous each; a view of a larger one has gaps between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// From the first value of the first row on.
    values: &'a [f32],
    /// Values from one row to the next.
    stride: usize,
    /// Values of a row.
    pub(crate) width: usize,
}

impl<'a> Rows<'a> {
    /// The rows of a tensor `[rows, width]`; none if they are not contiguous (transposed, flipped).
    pub(crate) fn of(tensor: &'a FlexTensor) -> Option<Self> {
        let layout = tensor.layout();
        let (&[_, width], &[stride, step]) = (layout.shape().as_slice(), layout.strides()) else {
            return None;
        };
        if tensor.dtype() != DType::F32 || (step != 1 && width > 1) {
            return None;
        }
        let values = tensor.storage::<f32>().get(layout.start_offset()..)?;
        Some(Self { values, stride: usize::try_from(stride).ok()?, width })
    }

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..self.width]
    }
}
