//! Weight matrices, dense or split by rows.
//!
//! Graphics drivers limit the size of one buffer and of what a kernel may bind of it, some to 128 MiB, many to 2 GiB; the
//! token embeddings of GLM-4.1V take 2.48 GB in f32. A matrix too large for a [`DeviceSpec`] is kept as shards of whole rows.
//! A checkpoint stores it as one tensor all the same.
//!
//! Dimensions: `R` rows, `C` columns, `N` looked-up rows.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::module;
use burn::tensor::{DType, TensorData};
use glm4v_kernels as kernels;

use super::param::normal;
use crate::device::device_spec::DeviceSpec;

/// `[R, C]`, rows as checkpoints store them.
///
/// Checkpoint names: that of the matrix; shards append their index, as `lm_head.weight.1`.
#[derive(Module, Debug)]
pub enum WeightMatrix {
    /// One tensor.
    Dense(Param<Tensor<2>>),
    /// Rows in order; every shard but the last has as many as the first.
    RowSharded(Vec<Param<Tensor<2>>>),
}

impl WeightMatrix {
    /// A matrix with random values, of which none is made before it is used.
    pub fn init([rows, columns]: [usize; 2], device_spec: &DeviceSpec) -> Self {
        let shard = device_spec.max_tensor_values().map_or(rows, |values| (values / columns).clamp(1, rows));
        let device = &device_spec.device;
        if shard == rows {
            return Self::Dense(normal([rows, columns], device));
        }
        let starts = (0..rows).step_by(shard);
        Self::RowSharded(starts.map(|at| normal([shard.min(rows - at), columns], device)).collect())
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.lazy_shape().dims(),
            Self::RowSharded(shards) => {
                let rows = shards.iter().map(|shard| shard.lazy_shape()[0]).sum();
                [rows, shards.first().map_or(0, |shard| shard.lazy_shape()[1])]
            }
        }
    }

    /// Type of the values.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.val().dtype(),
            Self::RowSharded(shards) => shards.first().map_or(DType::F32, |shard| shard.val().dtype()),
        }
    }

    /// `x · weightᵀ + bias` (`torch.nn.functional.linear`).
    ///
    /// # Shapes
    ///
    /// - x: `[.., C]`
    /// - bias: `[R]`
    /// - output: `[.., R]`
    pub fn linear<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            Self::Dense(weight) => linear(x, weight.val(), bias),
            Self::RowSharded(shards) => {
                // The bias is added once, after the concatenation: shards know rows of the weight only.
                let parts: Vec<Tensor<D>> =
                    shards.iter().map(|shard| linear(x.clone(), shard.val(), None)).collect();
                let output = Tensor::cat(parts, D - 1);
                match bias {
                    Some(bias) => output + bias.unsqueeze(),
                    None => output,
                }
            }
        }
    }

    /// Rows by index (`torch.nn.functional.embedding`).
    ///
    /// # Shapes
    ///
    /// - output: `[N, C]`
    pub fn embedding(&self, ids: &[u32]) -> Tensor<2> {
        match self {
            Self::Dense(weight) => embedding(weight.val(), ids.iter().map(|id| *id as i32).collect()),
            Self::RowSharded(shards) => sharded_embedding(shards, ids),
        }
    }

    /// Adds `left · right`, two factors in f32, to the matrix; the sum is formed in f32 too.
    ///
    /// # Shapes
    ///
    /// - left: `[R, r]`
    /// - right: `[r, C]`
    pub(crate) fn addmm(&mut self, left: &Tensor<2>, right: &Tensor<2>) {
        let shards = match self {
            Self::Dense(weight) => std::slice::from_mut(weight),
            Self::RowSharded(shards) => shards,
        };
        let mut first = 0;
        for shard in shards {
            *shard = shard.clone().map(|weight| {
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
pub(crate) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let mut shape = x.dims();
    let d_input = shape[D - 1];
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = weight.dims()[0];
    kernels::linear(x.reshape([rows, d_input]), weight, bias).reshape(shape)
}

fn embedding(table: Tensor<2>, ids: Vec<i32>) -> Tensor<2> {
    let count = ids.len();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &table.device());
    module::embedding(table, ids).squeeze_dim(0)
}

/// Each shard gives its own rows; then all are put into the order of `ids`.
fn sharded_embedding(shards: &[Param<Tensor<2>>], ids: &[u32]) -> Tensor<2> {
    let size = shards.first().map_or(1, |shard| shard.lazy_shape()[0]);
    let mut row_of = vec![0i32; ids.len()];
    let mut rows = Vec::new();
    let mut count = 0;
    for (index, shard) in shards.iter().enumerate() {
        let mut own = Vec::new();
        for (at, id) in ids.iter().map(|id| *id as usize).enumerate().filter(|(_, id)| id / size == index) {
            own.push((id - index * size) as i32);
            row_of[at] = count;
            count += 1;
        }
        if !own.is_empty() {
            rows.push(embedding(shard.val(), own));
        }
    }
    embedding(Tensor::cat(rows, 0), row_of)
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// A matrix of 7 x 3, whole and in shards of two rows.
    fn both() -> [WeightMatrix; 2] {
        let device = Device::flex();
        let values = Tensor::<2>::random([7, 3], Distribution::Default, &device);
        let shard = |at: usize| values.clone().narrow(0, at, 2.min(7 - at));
        let shards = (0..7).step_by(2).map(|at| Param::from_tensor(shard(at))).collect();
        [WeightMatrix::Dense(Param::from_tensor(values)), WeightMatrix::RowSharded(shards)]
    }

    fn same(a: Tensor<2>, b: Tensor<2>) {
        a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::absolute(1e-6));
    }

    #[test]
    fn a_bounded_placement_gets_shards_of_whole_rows() {
        let device_spec = DeviceSpec::bounded(&Device::flex(), 30, DType::F32); // 7 values: two rows of three

        let WeightMatrix::RowSharded(shards) = WeightMatrix::init([7, 3], &device_spec) else {
            panic!("not split")
        };

        let shapes: Vec<_> = shards.iter().map(|shard| shard.lazy_shape().to_vec()).collect();
        assert_eq!(shapes, [vec![2, 3], vec![2, 3], vec![2, 3], vec![1, 3]]);
        assert!(matches!(WeightMatrix::init([2, 3], &device_spec), WeightMatrix::Dense(_)));
    }

    #[test]
    fn shards_compute_what_the_whole_computes() {
        let [mut whole, mut shards] = both();
        let device = Device::flex();
        let x = Tensor::<2>::random([4, 3], Distribution::Default, &device);
        let bias = Tensor::<1>::random([7], Distribution::Default, &device);

        assert_eq!(whole.dims(), shards.dims());
        same(whole.linear(x.clone(), Some(bias.clone())), shards.linear(x, Some(bias)));
        same(whole.embedding(&[6, 0, 3, 3, 1]), shards.embedding(&[6, 0, 3, 3, 1]));
        let [left, right] =
            [[7, 2], [2, 3]].map(|shape| Tensor::random(shape, Distribution::Default, &device));
        let before = whole.embedding(&[0, 1, 2, 3, 4, 5, 6]);
        for matrix in [&mut whole, &mut shards] {
            matrix.addmm(&left, &right);
            same(
                matrix.embedding(&[0, 1, 2, 3, 4, 5, 6]),
                before.clone() + left.clone().matmul(right.clone()),
            );
        }
    }

    #[test]
    fn gradients_reach_the_rows_that_were_looked_up() {
        let device = Device::flex().autodiff();
        let [first, second] = [0, 1].map(|_| Param::from_tensor(Tensor::<2>::ones([2, 3], &device)));
        let matrix = WeightMatrix::RowSharded(vec![first.clone(), second.clone()]);

        let gradients = matrix.embedding(&[3, 0, 3]).sum().backward();

        let of = |param: &Param<Tensor<2>>| param.val().grad(&gradients).unwrap().into_data();
        of(&first).assert_eq(&TensorData::from([[1.0f32, 1.0, 1.0], [0.0, 0.0, 0.0]]), false);
        of(&second).assert_eq(&TensorData::from([[0.0f32, 0.0, 0.0], [2.0, 2.0, 2.0]]), false);
    }
}
