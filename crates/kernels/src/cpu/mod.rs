//! What kernels of the CPU share.

mod elementwise;
mod exp;
mod gemm;
mod rows;
mod softmax;

pub(crate) use elementwise::{TASK, contiguous, dot, owned, rows_per_task, sum_of, tensor, values};
pub(crate) use exp::{exp, exp_of, sigmoid};
pub(crate) use gemm::{Matrix, MatrixMut, Output, matmul, parallel_matmul, with_strides};
pub(crate) use rows::{Rows, with_rows};
pub(crate) use softmax::{exponential_sum, exponentials, maximum};
