//! What kernels of the CPU share.

mod exp;
mod rows;

pub(crate) use exp::exp;
pub(crate) use rows::{Rows, with_rows};
