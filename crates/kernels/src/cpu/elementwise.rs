//! Loops over values and rows, in vector instructions and on all threads.

use burn::tensor::{Shape, TensorData};
use burn_flex::FlexTensor;

/// Values that one thread takes at a time: 64 KiB stay in its cache, and take far longer than handing them over.
pub(crate) const TASK: usize = 16 * 1024;

/// Rows of `width` values that one thread takes at a time.
///
/// It follows from the width alone, so that sums over the rows of a task have the same order with any number of threads.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// A contiguous tensor of f32 as its values.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("callers make tensors contiguous")
}

/// The tensor itself if it is contiguous, else a copy.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The tensor itself if its storage holds nothing else, in order, so that it can be changed in place; else a copy.
pub(crate) fn owned(tensor: FlexTensor) -> FlexTensor {
    let is_whole = tensor.storage::<f32>().len() == tensor.layout().num_elements();
    if is_whole && tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// A tensor of values.
pub(crate) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// `a · b`, slices of one length, summed in an order that no vector width changes.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Adds up vectors in their order.
pub(crate) fn sum_of(mut vectors: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let rest = vectors.split_off(vectors.len().min(1));
    let first = vectors.pop().unwrap_or_else(|| vec![0.0; width]);
    rest.into_iter().fold(first, |mut sum, vector| {
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
        sum
    })
}
