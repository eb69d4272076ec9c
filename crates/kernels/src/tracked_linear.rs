//! The linear layer of a pass that is differentiated.
//!
//! Burn differentiates the product with the transposed weight: the gradient is the transpose of a product, and everything that reads
//! it afterwards copies it. Here it is formed as the weight lies, `[O, I]`.
//!
//! Dimensions: `N` rows, `I` input features, `O` output features.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::cpu::{
    Matrix, MatrixMut, contiguous, parallel_matmul, rows_per_task, sum_of, tensor, values, with_strides,
};

/// The linear layer, on backends with a kernel for its backward pass.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait LinearOps: Backend {
    /// `x · weightᵀ`
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x · weightᵀ + bias`
    fn biased_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// `x · weightᵀ + bias`.
///
/// # Shapes
///
/// - x: `[N, I]`
/// - weight: `[O, I]`
/// - bias: `[O]`
/// - output: `[N, O]`
pub(crate) fn tracked_linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::biased_linear(x, weight, bias.into_dispatch()),
        None => Dispatch::linear(x, weight),
    })
}

impl LinearOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let (x, weight) = (with_strides(x), with_strides(weight));
        product(Matrix::of(&x), Matrix::of(&weight).transpose())
    }

    fn biased_linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let mut output = <Self as LinearOps>::linear(x, weight);
        let bias = contiguous(bias);
        let bias = values(&bias);
        let task = (rows_per_task(bias.len()) * bias.len()).max(1);
        output.storage_mut::<f32>().par_chunks_mut(task).for_each(|rows| {
            for row in rows.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        });
        output
    }
}

impl<C: CheckpointStrategy> LinearOps for Autodiff<Flex, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let operands = Operands::new::<C>(&x, &weight);
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let output = <Flex as LinearOps>::linear(x, weight);
        match LinearBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(operands, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn biased_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let operands = Operands::new::<C>(&x, &weight);
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        let output = Flex::biased_linear(x, weight, bias);
        let nodes = [x_node, weight_node, bias_node];
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(operands, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

/// What the backward pass needs of the operands: each for the gradient of the other, if that is wanted.
#[derive(Debug, Clone)]
struct Operands {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
}

impl Operands {
    fn new<C: CheckpointStrategy>(
        x: &FloatTensor<Autodiff<Flex, C>>,
        weight: &FloatTensor<Autodiff<Flex, C>>,
    ) -> Self {
        Self {
            x: weight.is_tracked().then(|| x.primitive().clone()),
            weight: x.is_tracked().then(|| weight.primitive().clone()),
        }
    }

    /// Gradients of input and weight.
    fn grads(self, grad: &FlexTensor) -> [Option<FlexTensor>; 2] {
        let x_grad = self.weight.map(|weight| {
            let weight = with_strides(weight);
            product(Matrix::of(grad), Matrix::of(&weight))
        });
        let weight_grad = self.x.map(|x| {
            let x = with_strides(x);
            product(Matrix::of(grad).transpose(), Matrix::of(&x))
        });
        [x_grad, weight_grad]
    }
}

impl Backward<Flex, 2> for LinearBackward {
    type State = Operands;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = with_strides(grads.consume::<Flex>(&ops.node));
        for (node, grad) in ops.parents.into_iter().zip(ops.state.grads(&grad)) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<Flex>(node.id, grad);
            }
        }
    }
}

impl Backward<Flex, 3> for LinearBackward {
    type State = Operands;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = with_strides(grads.consume::<Flex>(&ops.node));
        let [x_node, weight_node, bias_node] = ops.parents;
        for (node, grad) in [x_node, weight_node].into_iter().zip(ops.state.grads(&grad)) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<Flex>(node.id, grad);
            }
        }
        if let Some(node) = bias_node {
            grads.register::<Flex>(node.id, sum_of_rows(grad));
        }
    }
}

fn product(left: Matrix<'_>, right: Matrix<'_>) -> FlexTensor {
    let shape @ [rows, columns] = [left.rows(), right.columns()];
    let mut output = vec![0.0; rows * columns];
    parallel_matmul(left, right, MatrixMut::new(&mut output, shape, columns));
    tensor(output, Shape::new(shape))
}

fn sum_of_rows(x: FlexTensor) -> FlexTensor {
    let width = x.shape()[1];
    let x = contiguous(x);
    let task = (rows_per_task(width) * width).max(1);
    let sum = |rows: &[f32]| {
        let mut sum = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    let sums = values(&x).par_chunks(task).map(sum).collect();
    tensor(sum_of(sums, width), Shape::new([width]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use burn::tensor::module;

    fn plain(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        module::linear(x, weight.transpose(), bias)
    }

    #[test]
    fn value_and_gradients_equal_burns_on_odd_shapes() {
        for [rows, width, features] in [[1, 1, 1], [3, 7, 5], [130, 33, 65], [700, 40, 17], [300, 200, 260]] {
            let shapes: [&[usize]; 3] = [&[rows, width], &[features, width], &[features]];
            check::equals_plain(
                &shapes,
                |inputs| tracked_linear(inputs.get(0), inputs.get(1), Some(inputs.get(2))),
                |inputs| plain(inputs.get(0), inputs.get(1), Some(inputs.get(2))),
            );
            check::equals_plain(
                &shapes[..2],
                |inputs| tracked_linear(inputs.get(0), inputs.get(1), None),
                |inputs| plain(inputs.get(0), inputs.get(1), None),
            );
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_value() {
        check::equals_finite_differences(&[&[3, 4], &[2, 4], &[2]], |inputs| {
            tracked_linear(inputs.get(0), inputs.get(1), Some(inputs.get(2)))
        });
    }

    #[test]
    fn views_are_read_by_their_strides() {
        let operands = |inputs: &check::Inputs| {
            let x = inputs.get::<2>(0).transpose().narrow(0, 2, 5);
            (x, inputs.get::<2>(1).flip([0]).narrow(1, 1, 6))
        };
        check::equals_plain(
            &[&[6, 9], &[4, 8]],
            |inputs| {
                let (x, weight) = operands(inputs);
                tracked_linear(x, weight, None).transpose()
            },
            |inputs| {
                let (x, weight) = operands(inputs);
                plain(x, weight, None).transpose()
            },
        );
    }

    #[test]
    fn only_the_gradients_that_are_wanted_are_formed() {
        let device = burn::tensor::Device::flex().autodiff();
        let x = Tensor::<2>::ones([3, 4], &device);
        let weight = Tensor::<2>::ones([5, 4], &device);

        for tracked in [[true, false], [false, true]] {
            let [x, weight] = [(x.clone(), tracked[0]), (weight.clone(), tracked[1])]
                .map(|(tensor, tracked)| if tracked { tensor.require_grad() } else { tensor });
            let gradients = tracked_linear(x.clone(), weight.clone(), None).sum().backward();

            assert_eq!([x, weight].map(|tensor| tensor.grad(&gradients).is_some()), tracked);
        }
    }

    #[test]
    fn threads_change_no_bit() {
        check::has_same_bits_on_any_threads(&[&[300, 400], &[500, 400], &[500]], |inputs| {
            tracked_linear(inputs.get(0), inputs.get(1), Some(inputs.get(2)))
        });
    }
}
