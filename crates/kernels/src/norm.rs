//! Root-mean-square normalization.
//!
//! Composed of Burn's operations it reads and writes the tensor six times, and keeps three copies for the backward pass; here
//! it is read twice, and the backward pass keeps the input alone.
//!
//! Dimensions: `D` normalized values, `R` rows of them.

use burn::tensor::{DType, Tensor};

/// `weight · x / √(mean(x²) + eps)` over the last dimension, as transformers rounds it: the quotient is formed in f32 and returned to the
/// type of `x` before it is multiplied with the weight.
///
/// # Shapes
///
/// - x, output: `[.., D]`
/// - weight: `[D]`
pub fn rms_norm<const N: usize>(x: Tensor<N>, weight: Tensor<1>, eps: f64) -> Tensor<N> {
    #[cfg(feature = "cpu")]
    if crate::device::is_cpu_f32(&x) && weight.dtype() == DType::F32 {
        return cpu::rms_norm(x, weight, eps);
    }
    plain_rms_norm(x, weight, eps)
}

fn plain_rms_norm<const N: usize>(x: Tensor<N>, weight: Tensor<1>, eps: f64) -> Tensor<N> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32); // the mean of squares overflows in f16 and loses digits in bf16
    let mean_square = (x.clone() * x.clone()).mean_dim(N - 1); // [.., 1]
    let scale = (mean_square + eps).sqrt().recip();
    (x * scale).cast(dtype) * weight.unsqueeze()
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::{Shape, Tensor};
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::cpu::{contiguous, dot, rows_per_task, sum_of, tensor, values};

    /// Root-mean-square normalization, on backends with a kernel for it.
    #[backend_extension(Flex, Autodiff)]
    pub(super) trait RmsNormOps: Backend {
        /// Normalizes the last dimension.
        fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;
    }

    pub(super) fn rms_norm<const N: usize>(x: Tensor<N>, weight: Tensor<1>, eps: f64) -> Tensor<N> {
        Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight.into_dispatch(), eps))
    }

    impl RmsNormOps for Flex {
        fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
            let shape = x.shape();
            let (x, weight) = (contiguous(x), contiguous(weight));
            tensor(forward(values(&x), values(&weight), eps), shape)
        }
    }

    impl<C: CheckpointStrategy> RmsNormOps for Autodiff<Flex, C> {
        fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
            let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
            let (x, weight) = (contiguous(x), contiguous(weight));
            let output = Flex::rms_norm(x.clone(), weight.clone(), eps);
            match RmsNormBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((x, weight, eps), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    #[derive(Debug)]
    struct RmsNormBackward;

    impl Backward<Flex, 2> for RmsNormBackward {
        /// Input, weight, eps.
        type State = (FlexTensor, FlexTensor, f64);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
            let [x_node, weight_node] = ops.parents;
            let (x, weight, eps) = ops.state;
            let grad = contiguous(grads.consume::<Flex>(&ops.node));
            let (x_grad, weight_grad) = backward(values(&x), values(&weight), values(&grad), eps);
            if let Some(node) = x_node {
                grads.register::<Flex>(node.id, tensor(x_grad, x.shape()));
            }
            if let Some(node) = weight_node {
                grads.register::<Flex>(node.id, tensor(weight_grad, Shape::new([values(&weight).len()])));
            }
        }
    }

    /// `1 / √(mean(row²) + eps)`.
    #[inline(always)]
    fn scale_of(row: &[f32], eps: f32) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt()
    }

    fn forward(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
        let width = weight.len();
        let task = rows_per_task(width) * width.max(1);
        let mut output = vec![0.0; x.len()];
        output.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(output, x)| {
            pulp::Arch::new().dispatch(|| forward_rows(x, weight, eps as f32, output));
        });
        output
    }

    #[inline(always)]
    fn forward_rows(x: &[f32], weight: &[f32], eps: f32, output: &mut [f32]) {
        for (output, x) in output.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len())) {
            let scale = scale_of(x, eps);
            for ((output, x), weight) in output.iter_mut().zip(x).zip(weight) {
                *output = x * scale * weight;
            }
        }
    }

    /// Gradients of input and weight.
    fn backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f64) -> (Vec<f32>, Vec<f32>) {
        let width = weight.len();
        let task = rows_per_task(width) * width.max(1);
        let mut x_grad = vec![0.0; x.len()];
        let tasks = x_grad.par_chunks_mut(task).zip(x.par_chunks(task)).zip(grad.par_chunks(task));
        let weight_grads: Vec<Vec<f32>> = tasks
            .map(|((x_grad, x), grad)| {
                let mut weight_grad = vec![0.0; width];
                pulp::Arch::new().dispatch(|| {
                    backward_rows([x, grad], weight, eps as f32, x_grad, &mut weight_grad);
                });
                weight_grad
            })
            .collect();
        (x_grad, sum_of(weight_grads, width))
    }

    /// With `s` the scale of a row and `g` the gradient times the weight: `s · g - x · s³ · mean(g · x)`.
    #[inline(always)]
    fn backward_rows(
        [x, grad]: [&[f32]; 2],
        weight: &[f32],
        eps: f32,
        x_grad: &mut [f32],
        weight_grad: &mut [f32],
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
        for (x_grad, (x, grad)) in x_grad.chunks_exact_mut(width).zip(rows) {
            let scale = scale_of(x, eps);
            for ((x_grad, grad), weight) in x_grad.iter_mut().zip(grad).zip(weight) {
                *x_grad = grad * weight;
            }
            let along = scale * scale * scale * dot(x_grad, x) / width as f32;
            for (((x_grad, x), grad), weight_grad) in
                x_grad.iter_mut().zip(x).zip(grad).zip(weight_grad.iter_mut())
            {
                *x_grad = *x_grad * scale - x * along;
                *weight_grad += grad * (x * scale);
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn value_and_gradients_equal_the_plain_version_on_odd_shapes() {
        for shape in [[1, 1, 1], [2, 3, 7], [5, 1, 33], [2, 130, 65], [3, 40, 512]] {
            check::equals_plain(
                &[&shape, &[shape[2]]],
                |inputs| rms_norm(inputs.get::<3>(0), inputs.get(1), 1e-5),
                |inputs| plain_rms_norm(inputs.get::<3>(0), inputs.get(1), 1e-5),
            );
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_value() {
        check::equals_finite_differences(&[&[2, 3, 5], &[5]], |inputs| {
            rms_norm(inputs.get::<3>(0), inputs.get(1), 1e-5)
        });
    }

    #[test]
    fn a_view_is_normalized_along_its_last_dimension() {
        check::equals_plain(
            &[&[6, 4, 3], &[4]],
            |inputs| rms_norm(inputs.get::<3>(0).swap_dims(1, 2), inputs.get(1), 1e-5),
            |inputs| plain_rms_norm(inputs.get::<3>(0).swap_dims(1, 2), inputs.get(1), 1e-5),
        );
    }

    #[test]
    fn threads_change_no_bit() {
        check::has_same_bits_on_any_threads(&[&[3, 100, 300], &[300]], |inputs| {
            rms_norm(inputs.get::<3>(0), inputs.get(1), 1e-5)
        });
    }
}
