//! Matrix products of views, with bounds that are checked.

use burn_flex::FlexTensor;
use gemm::Parallelism;

/// A matrix of f32 anywhere in a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    /// Rows and columns.
    shape: [usize; 2],
    /// Values from one row, and from one column, to the next.
    strides: [usize; 2],
}

/// A matrix to write to; its rows are contiguous each.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    values: &'a mut [f32],
    shape: [usize; 2],
    /// Values from one row to the next.
    stride: usize,
}

/// Products of fewer multiplications are formed by the thread that asks, as in burn-flex.
const PARALLEL: usize = 192 * 192 * 192;

impl<'a> Matrix<'a> {
    /// The matrix that begins with the first of `values`.
    pub(crate) fn new(values: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Self {
        check(values.len(), shape, strides);
        Self { values, shape, strides }
    }

    /// A tensor of two dimensions, see [`with_strides`].
    pub(crate) fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let strides = [0, 1].map(|dimension| layout.strides()[dimension].unsigned_abs());
        let values = tensor.storage::<f32>().get(layout.start_offset()..).unwrap_or_default();
        Self::new(values, [0, 1].map(|dimension| layout.shape()[dimension]), strides)
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.shape[1]
    }

    /// The matrix with rows and columns exchanged.
    pub(crate) fn transpose(self) -> Self {
        let ([rows, columns], [row, column]) = (self.shape, self.strides);
        Self { shape: [columns, rows], strides: [column, row], ..self }
    }
}

impl<'a> MatrixMut<'a> {
    /// The matrix that begins with the first of `values`.
    pub(crate) fn new(values: &'a mut [f32], shape: [usize; 2], stride: usize) -> Self {
        check(values.len(), shape, [stride, 1]);
        assert!(shape[0] < 2 || stride >= shape[1], "rows of an output must not overlap");
        Self { values, shape, stride }
    }
}

/// A tensor that [`Matrix::of`] can read: a copy, if something in it runs backwards.
pub(crate) fn with_strides(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().strides().iter().any(|stride| *stride < 0) { tensor.to_contiguous() } else { tensor }
}

fn check(len: usize, [rows, columns]: [usize; 2], [row, column]: [usize; 2]) {
    if rows > 0 && columns > 0 {
        assert!((rows - 1) * row + (columns - 1) * column < len, "the matrix must lie in its slice");
    }
}

/// Whether a product keeps what its output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// The output is replaced.
    Replace,
    /// The product is added to the output.
    Add,
}

/// `output = scale · left · right`, or added to it, on the calling thread alone.
pub(crate) fn matmul(scale: f32, left: Matrix<'_>, right: Matrix<'_>, output: MatrixMut<'_>, mode: Output) {
    product(scale, left, right, output, mode, Parallelism::None);
}

/// `output = left · right`, on all threads where that pays; the bits do not depend on their number.
pub(crate) fn parallel_matmul(left: Matrix<'_>, right: Matrix<'_>, output: MatrixMut<'_>) {
    let work = output.shape[0].saturating_mul(output.shape[1]).saturating_mul(left.shape[1]);
    let parallelism = if work < PARALLEL { Parallelism::None } else { Parallelism::Rayon(0) };
    product(1.0, left, right, output, Output::Replace, parallelism);
}

fn product(
    scale: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
    output: MatrixMut<'_>,
    mode: Output,
    parallelism: Parallelism,
) {
    let [rows, columns] = output.shape;
    let depth = left.shape[1];
    assert_eq!(
        [left.shape[0], right.shape[0], right.shape[1]],
        [rows, depth, columns],
        "shapes of a product"
    );
    if rows == 0 || columns == 0 {
        return;
    }
    let [left_row, left_column] = left.strides.map(usize::cast_signed);
    let [right_row, right_column] = right.strides.map(usize::cast_signed);
    #[expect(unsafe_code, reason = "gemm takes pointers; every index it forms was checked against its slice")]
    // SAFETY: all three matrices lie in their slices and the shapes agree, checked above; rows of the output do not
    // overlap, and as it is borrowed mutably it is none of the inputs.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            output.values.as_mut_ptr(),
            1,
            output.stride.cast_signed(),
            mode == Output::Add,
            left.values.as_ptr(),
            left_column,
            left_row,
            right.values.as_ptr(),
            right_column,
            right_row,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 x 3 and 3 x 2, the second as the transpose of its memory.
    const LEFT: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    const RIGHT: [f32; 6] = [1.0, 0.0, -1.0, 2.0, 1.0, 0.0];

    #[test]
    fn a_product_replaces_or_adds_and_leaves_gaps_alone() {
        let left = Matrix::new(&LEFT, [2, 3], [3, 1]);
        let right = Matrix::new(&RIGHT, [2, 3], [3, 1]).transpose();
        let mut output = [9.0; 5];

        matmul(2.0, left, right, MatrixMut::new(&mut output, [2, 2], 3), Output::Replace);
        assert_eq!(output, [-4.0, 8.0, 9.0, -4.0, 26.0]);

        matmul(-1.0, left, right, MatrixMut::new(&mut output, [2, 2], 3), Output::Add);
        assert_eq!(output, [-2.0, 4.0, 9.0, -2.0, 13.0]);
    }

    #[test]
    fn a_product_over_no_values_is_zero() {
        let mut output = [9.0; 2];

        parallel_matmul(
            Matrix::new(&[], [1, 0], [0, 1]),
            Matrix::new(&[], [0, 2], [2, 1]),
            MatrixMut::new(&mut output, [1, 2], 2),
        );

        assert_eq!(output, [0.0; 2]);
    }

    #[test]
    #[should_panic(expected = "the matrix must lie in its slice")]
    fn a_matrix_beyond_its_slice_is_refused() {
        Matrix::new(&LEFT, [2, 3], [4, 1]);
    }
}
