//! What kernels of the CPU share.

mod attention;
mod elementwise;
mod exp;
mod gemm;
mod rows;
mod softmax;
mod vectors;

pub(crate) use attention::{Attention, Rule, Sequence, Statistics};
pub(crate) use elementwise::{TASK, contiguous, dot, owned, rows_per_task, sum_of, tensor, values};
pub(crate) use exp::{exp, sigmoid};
pub(crate) use gemm::{Matrix, MatrixMut, parallel_matmul, with_strides};
pub(crate) use rows::Rows;
pub(crate) use softmax::{exponential_sum, maximum};
pub(crate) use vectors::{Vectors, with_vectors};
