//! The gate of a feed-forward (SwiGLU).
//!
//! Dimensions: `F` intermediate size, `R` rows.

use burn::tensor::Tensor;
use burn::tensor::activation::silu;

/// `silu(gate) · up` for the two halves of the last dimension, gate first.
///
/// # Shapes
///
/// - gate_up: `[.., 2F]`
/// - output: `[.., F]`
pub fn swiglu_fused<const N: usize>(gate_up: Tensor<N>) -> Tensor<N> {
    #[cfg(feature = "cpu")]
    if crate::device::is_cpu_f32(&gate_up) {
        return cpu::swiglu_fused(gate_up);
    }
    plain_swiglu_fused(gate_up)
}

/// `silu(gate) · up`.
///
/// # Shapes
///
/// - gate, up, output: `[.., F]`
pub fn swiglu<const N: usize>(gate: Tensor<N>, up: Tensor<N>) -> Tensor<N> {
    #[cfg(feature = "cpu")]
    if crate::device::is_cpu_f32(&gate) && gate.dtype() == up.dtype() && gate.dims() == up.dims() {
        return cpu::swiglu(gate, up);
    }
    plain_swiglu(gate, up)
}

fn plain_swiglu_fused<const N: usize>(gate_up: Tensor<N>) -> Tensor<N> {
    let half = gate_up.dims()[N - 1] / 2;
    plain_swiglu(gate_up.clone().narrow(N - 1, 0, half), gate_up.narrow(N - 1, half, half))
}

fn plain_swiglu<const N: usize>(gate: Tensor<N>, up: Tensor<N>) -> Tensor<N> {
    silu(gate) * up
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::cpu::{TASK, contiguous, rows_per_task, sigmoid, tensor, values};

    /// SwiGLU, on backends with a kernel for it.
    #[backend_extension(Flex, Autodiff)]
    pub(super) trait SwigluOps: Backend {
        /// Of two tensors.
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
        /// Of the halves of one.
        fn swiglu_fused(gate_up: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    pub(super) fn swiglu<const N: usize>(gate: Tensor<N>, up: Tensor<N>) -> Tensor<N> {
        Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
    }

    pub(super) fn swiglu_fused<const N: usize>(gate_up: Tensor<N>) -> Tensor<N> {
        Tensor::from_dispatch(Dispatch::swiglu_fused(gate_up.into_dispatch()))
    }

    impl SwigluOps for Flex {
        fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
            let shape = gate.shape();
            let (gate, up) = (contiguous(gate), contiguous(up));
            let (gate, up) = (values(&gate), values(&up));
            let mut output = vec![0.0; gate.len()];
            let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK));
            output.par_chunks_mut(TASK).zip(inputs).for_each(|(output, (gate, up))| {
                pulp::Arch::new().dispatch(|| forward(gate, up, output));
            });
            tensor(output, shape)
        }

        fn swiglu_fused(gate_up: FlexTensor) -> FlexTensor {
            let mut shape = gate_up.shape();
            let last = shape.num_dims() - 1;
            let half = shape[last] / 2;
            shape[last] = half;
            let gate_up = contiguous(gate_up);
            let mut output = vec![0.0; shape.num_elements()];
            let task = rows_per_task(half) * half.max(1);
            let tasks = output.par_chunks_mut(task).zip(values(&gate_up).par_chunks(2 * task));
            tasks.for_each(|(output, gate_up)| {
                pulp::Arch::new().dispatch(|| {
                    for (output, row) in output.chunks_exact_mut(half).zip(gate_up.chunks_exact(2 * half)) {
                        forward(&row[..half], &row[half..], output);
                    }
                });
            });
            tensor(output, shape)
        }
    }

    impl<C: CheckpointStrategy> SwigluOps for Autodiff<Flex, C> {
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
            let (gate, up) = (contiguous(gate), contiguous(up));
            let output = Flex::swiglu(gate.clone(), up.clone());
            match SwigluBackward.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((gate, up), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }

        fn swiglu_fused(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
            let (gate_up, node) = gate_up.into_parts();
            let gate_up = contiguous(gate_up);
            let output = Flex::swiglu_fused(gate_up.clone());
            match SwigluFusedBackward.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(gate_up, output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    #[derive(Debug)]
    struct SwigluBackward;

    impl Backward<Flex, 2> for SwigluBackward {
        /// Gate and up.
        type State = (FlexTensor, FlexTensor);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
            let [gate_node, up_node] = ops.parents;
            let (gate, up) = ops.state;
            let shape = gate.shape();
            let grad = contiguous(grads.consume::<Flex>(&ops.node));
            let (gate, up, grad) = (values(&gate), values(&up), values(&grad));
            let [mut gate_grad, mut up_grad] = [0, 1].map(|_| vec![0.0; gate.len()]);
            let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(grad.par_chunks(TASK));
            let outputs = gate_grad.par_chunks_mut(TASK).zip(up_grad.par_chunks_mut(TASK));
            outputs.zip(inputs).for_each(|((gate_grad, up_grad), ((gate, up), grad))| {
                pulp::Arch::new().dispatch(|| backward([gate, up, grad], gate_grad, up_grad));
            });
            if let Some(node) = gate_node {
                grads.register::<Flex>(node.id, tensor(gate_grad, shape.clone()));
            }
            if let Some(node) = up_node {
                grads.register::<Flex>(node.id, tensor(up_grad, shape));
            }
        }
    }

    #[derive(Debug)]
    struct SwigluFusedBackward;

    impl Backward<Flex, 1> for SwigluFusedBackward {
        /// Gate and up.
        type State = FlexTensor;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
            let [node] = ops.parents;
            let gate_up = ops.state;
            let shape = gate_up.shape();
            let half = shape[shape.num_dims() - 1] / 2;
            let grad = contiguous(grads.consume::<Flex>(&ops.node));
            let mut gate_up_grad = vec![0.0; shape.num_elements()];
            let task = rows_per_task(half) * half.max(1);
            let inputs = values(&gate_up).par_chunks(2 * task).zip(values(&grad).par_chunks(task));
            gate_up_grad.par_chunks_mut(2 * task).zip(inputs).for_each(|(gate_up_grad, (gate_up, grad))| {
                pulp::Arch::new().dispatch(|| {
                    let rows = gate_up.chunks_exact(2 * half).zip(grad.chunks_exact(half));
                    for (gate_up_grad, (row, grad)) in gate_up_grad.chunks_exact_mut(2 * half).zip(rows) {
                        let (gate_grad, up_grad) = gate_up_grad.split_at_mut(half);
                        backward([&row[..half], &row[half..], grad], gate_grad, up_grad);
                    }
                });
            });
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gate_up_grad, shape));
            }
        }
    }

    #[inline(always)]
    fn forward(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate * sigmoid(*gate) * up;
        }
    }

    #[inline(always)]
    fn backward([gate, up, grad]: [&[f32]; 3], gate_grad: &mut [f32], up_grad: &mut [f32]) {
        let inputs = gate.iter().zip(up).zip(grad);
        for ((gate_grad, up_grad), ((gate, up), grad)) in gate_grad.iter_mut().zip(up_grad).zip(inputs) {
            let sigmoid = sigmoid(*gate);
            *up_grad = grad * (gate * sigmoid);
            *gate_grad = grad * up * (sigmoid * (1.0 + gate * (1.0 - sigmoid)));
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
        for shape in [[1, 1, 2], [2, 3, 14], [5, 1, 66], [3, 40, 1030]] {
            check::equals_plain(
                &[&shape],
                |inputs| swiglu_fused(inputs.get::<3>(0)),
                |inputs| plain_swiglu_fused(inputs.get::<3>(0)),
            );
            check::equals_plain(
                &[&shape, &shape],
                |inputs| swiglu(inputs.get::<3>(0), inputs.get(1)),
                |inputs| plain_swiglu(inputs.get::<3>(0), inputs.get(1)),
            );
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_value() {
        check::equals_finite_differences(&[&[2, 3, 10]], |inputs| swiglu_fused(inputs.get::<3>(0)));
        check::equals_finite_differences(&[&[2, 7], &[2, 7]], |inputs| {
            swiglu(inputs.get::<2>(0), inputs.get(1))
        });
    }

    #[test]
    fn views_are_read_by_their_strides() {
        check::equals_plain(
            &[&[6, 5]],
            |inputs| swiglu_fused(inputs.get::<2>(0).transpose()),
            |inputs| plain_swiglu_fused(inputs.get::<2>(0).transpose()),
        );
        check::equals_plain(
            &[&[4, 9], &[9, 4]],
            |inputs| {
                swiglu(inputs.get::<2>(0).narrow(1, 2, 3), inputs.get::<2>(1).transpose().narrow(1, 5, 3))
            },
            |inputs| {
                plain_swiglu(
                    inputs.get::<2>(0).narrow(1, 2, 3),
                    inputs.get::<2>(1).transpose().narrow(1, 5, 3),
                )
            },
        );
    }

    #[test]
    fn threads_change_no_bit() {
        check::has_same_bits_on_any_threads(&[&[50, 2000]], |inputs| swiglu_fused(inputs.get::<2>(0)));
    }
}
