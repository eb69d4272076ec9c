//! Matrices of checkpoints, in one piece or in several.
//!
//! Graphics drivers bound the size of one buffer and of what a kernel may see of it, some at 128 MiB, many at 2 GiB; the
//! token table of GLM-4.1V takes 2.48 GB in f32. A matrix that is too large for a [`Site`] is kept as pieces of whole rows.
//! A checkpoint holds it in one piece all the same.
//!
//! Dimensions: `R` rows, `C` columns, `N` looked-up rows.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::module::{embedding, linear};
use burn::tensor::{DType, TensorData};

use crate::site::Site;

/// `[R, C]`, rows as checkpoints store them.
///
/// Checkpoint names: that of the matrix; pieces carry their number behind it, as `lm_head.weight.1`.
#[derive(Module, Debug)]
pub enum Matrix {
    /// One tensor.
    Whole(Param<Tensor<2>>),
    /// Rows in order; every piece but the last has as many as the first.
    Pieces(Vec<Param<Tensor<2>>>),
}

impl Matrix {
    /// A matrix that waits for its values.
    pub fn init([rows, columns]: [usize; 2], site: &Site) -> Self {
        let piece = site.most_values().map_or(rows, |most| (most / columns).clamp(1, rows));
        if piece == rows {
            return Self::Whole(empty([rows, columns], &site.device));
        }
        let starts = (0..rows).step_by(piece);
        Self::Pieces(starts.map(|at| empty([piece.min(rows - at), columns], &site.device)).collect())
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Whole(weight) => weight.lazy_shape().dims(),
            Self::Pieces(pieces) => {
                let rows = pieces.iter().map(|piece| piece.lazy_shape()[0]).sum();
                [rows, pieces.first().map_or(0, |piece| piece.lazy_shape()[1])]
            }
        }
    }

    /// Type of the values.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Whole(weight) => weight.val().dtype(),
            Self::Pieces(pieces) => pieces.first().map_or(DType::F32, |piece| piece.val().dtype()),
        }
    }

    /// `x · matrixᵀ + bias`.
    ///
    /// # Shapes
    ///
    /// - x: `[.., C]`
    /// - bias: `[R]`
    /// - output: `[.., R]`
    pub fn project<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            Self::Whole(weight) => project_rows(x, weight.val(), bias),
            Self::Pieces(pieces) => {
                let parts: Vec<Tensor<D>> =
                    pieces.iter().map(|piece| project_rows(x.clone(), piece.val(), None)).collect();
                let whole = Tensor::cat(parts, D - 1);
                match bias {
                    Some(bias) => whole + bias.unsqueeze(),
                    None => whole,
                }
            }
        }
    }

    /// Rows by number.
    ///
    /// # Shapes
    ///
    /// - output: `[N, C]`
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let pieces = match self {
            Self::Whole(weight) => return look_up(weight.val(), ids.iter().map(|id| *id as i32).collect()),
            Self::Pieces(pieces) => pieces,
        };
        // Each piece gives its own rows; then all are put into the order that was asked for.
        let size = pieces.first().map_or(1, |piece| piece.lazy_shape()[0]);
        let mut place = vec![0i32; ids.len()];
        let mut found = Vec::new();
        let mut filled = 0;
        for (number, piece) in pieces.iter().enumerate() {
            let here = |id: u32| id as usize / size == number;
            let wanted: Vec<i32> =
                ids.iter().filter(|id| here(**id)).map(|id| (*id as usize - number * size) as i32).collect();
            for (slot, _) in ids.iter().enumerate().filter(|(_, id)| here(**id)) {
                place[slot] = filled;
                filled += 1;
            }
            if !wanted.is_empty() {
                found.push(look_up(piece.val(), wanted));
            }
        }
        look_up(Tensor::cat(found, 0), place)
    }

    /// Adds `left · right`, two factors in f32, to the matrix; the sum is formed in f32 too.
    ///
    /// # Shapes
    ///
    /// - left: `[R, r]`
    /// - right: `[r, C]`
    pub(crate) fn add_product(&mut self, left: &Tensor<2>, right: &Tensor<2>) {
        let pieces = match self {
            Self::Whole(weight) => std::slice::from_mut(weight),
            Self::Pieces(pieces) => pieces,
        };
        let mut first = 0;
        for piece in pieces {
            *piece = piece.clone().map(|weight| {
                let (rows, dtype) = (weight.dims()[0], weight.dtype());
                let change = left.clone().narrow(0, first, rows).matmul(right.clone());
                first += rows;
                (weight.cast(DType::F32) + change).cast(dtype)
            });
        }
    }
}

/// `x · weightᵀ + bias`, all dimensions of `x` but the last taken as rows of one matrix.
///
/// Burn's `linear` gives the weight the rank of `x` where the batch is 1 or the rows fill its tiles. On the CPU that copies
/// the transposed weight at every call, and a tracked pass keeps the copy: 91 ms instead of 1.3 for one row and a weight
/// of 4096 x 2048.
///
/// # Shapes
///
/// - x: `[.., C]`
/// - weight: `[R, C]`
/// - output: `[.., R]`
pub(crate) fn project_rows<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut shape = x.dims();
    let width = shape[D - 1];
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = weight.dims()[0];
    linear(x.reshape([rows, width]), weight.transpose(), bias).reshape(shape)
}

fn look_up(table: Tensor<2>, ids: Vec<i32>) -> Tensor<2> {
    let count = ids.len();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &table.device());
    embedding(table, ids).squeeze_dim(0)
}

/// A parameter that takes no memory until it is loaded or initialised, and is zero if it is used before.
pub(crate) fn empty<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| Tensor::zeros(shape, device).set_require_grad(require_grad),
        device.clone(),
        true,
        shape.into(),
    )
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// A matrix of 7 x 3, whole and in pieces of two rows.
    fn both() -> [Matrix; 2] {
        let device = Device::flex();
        let values = Tensor::<2>::random([7, 3], Distribution::Default, &device);
        let piece = |at: usize| values.clone().narrow(0, at, 2.min(7 - at));
        let pieces = (0..7).step_by(2).map(|at| Param::from_tensor(piece(at))).collect();
        [Matrix::Whole(Param::from_tensor(values)), Matrix::Pieces(pieces)]
    }

    fn same(a: Tensor<2>, b: Tensor<2>) {
        a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::absolute(1e-6));
    }

    #[test]
    fn a_bounded_site_gets_pieces_of_whole_rows() {
        let site = Site::bounded(&Device::flex(), 30, DType::F32); // 7 values: two rows of three

        let Matrix::Pieces(pieces) = Matrix::init([7, 3], &site) else { panic!("not split") };

        let shapes: Vec<_> = pieces.iter().map(|piece| piece.lazy_shape().to_vec()).collect();
        assert_eq!(shapes, [vec![2, 3], vec![2, 3], vec![2, 3], vec![1, 3]]);
        assert!(matches!(Matrix::init([2, 3], &site), Matrix::Whole(_)));
    }

    #[test]
    fn pieces_compute_what_the_whole_computes() {
        let [mut whole, mut pieces] = both();
        let device = Device::flex();
        let x = Tensor::<2>::random([4, 3], Distribution::Default, &device);
        let bias = Tensor::<1>::random([7], Distribution::Default, &device);

        assert_eq!(whole.dims(), pieces.dims());
        same(whole.project(x.clone(), Some(bias.clone())), pieces.project(x, Some(bias)));
        same(whole.rows(&[6, 0, 3, 3, 1]), pieces.rows(&[6, 0, 3, 3, 1]));
        let [left, right] =
            [[7, 2], [2, 3]].map(|shape| Tensor::random(shape, Distribution::Default, &device));
        let before = whole.rows(&[0, 1, 2, 3, 4, 5, 6]);
        for matrix in [&mut whole, &mut pieces] {
            matrix.add_product(&left, &right);
            same(matrix.rows(&[0, 1, 2, 3, 4, 5, 6]), before.clone() + left.clone().matmul(right.clone()));
        }
    }

    #[test]
    fn gradients_reach_the_rows_that_were_looked_up() {
        let device = Device::flex().autodiff();
        let [first, second] = [0, 1].map(|_| Param::from_tensor(Tensor::<2>::ones([2, 3], &device)));
        let matrix = Matrix::Pieces(vec![first.clone(), second.clone()]);

        let gradients = matrix.rows(&[3, 0, 3]).sum().backward();

        let of = |param: &Param<Tensor<2>>| param.val().grad(&gradients).unwrap().into_data();
        of(&first).assert_eq(&TensorData::from([[1.0f32, 1.0, 1.0], [0.0, 0.0, 0.0]]), false);
        of(&second).assert_eq(&TensorData::from([[0.0f32, 0.0, 0.0], [2.0, 2.0, 2.0]]), false);
    }
}
