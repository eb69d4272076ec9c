//! Cross entropy of logits.
//!
//! Composed of Burn's operations it forms five temporaries of the size of the logits, the widest tensor of a step; here the backward
//! pass turns the logits themselves into their gradient.
//!
//! Dimensions: `N` label tokens, `V` vocabulary size.

use burn::tensor::{DType, Int, Tensor, TensorData};

/// Sum of `-log softmax(logits)[label]` over the rows, in f32 whatever the type of the logits, `[1]`.
///
/// # Shapes
///
/// - logits: `[N, V]`
/// - labels: `[N]`, each below `V`
pub fn cross_entropy(logits: Tensor<2>, labels: &[u32]) -> Tensor<1> {
    weighted_cross_entropy(logits, labels, None)
}

/// As [`cross_entropy`], each row times its weight.
///
/// # Shapes
///
/// - logits: `[N, V]`
/// - labels: `[N]`, each below `V`
/// - weights: `[N]`; 1 for all rows if `None`
pub fn weighted_cross_entropy(logits: Tensor<2>, labels: &[u32], weights: Option<&[f32]>) -> Tensor<1> {
    #[cfg(feature = "cpu")]
    if crate::device::is_cpu_f32(&logits) {
        return cpu::cross_entropy(logits, labels, weights);
    }
    plain_cross_entropy(logits, labels, weights)
}

fn plain_cross_entropy(logits: Tensor<2>, labels: &[u32], weights: Option<&[f32]>) -> Tensor<1> {
    let count = labels.len();
    let labels: Vec<i32> = labels.iter().map(|id| *id as i32).collect();
    let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [count, 1]), &logits.device());
    let logits = logits.cast(DType::F32);
    // Detached: it cancels in the sum, and its gradient would be a scatter over the vocabulary.
    let row_max = logits.clone().detach().max_dim(1); // [N, 1]
    let log_sum_exp = (logits.clone() - row_max.clone()).exp().sum_dim(1).log() + row_max;
    let losses = log_sum_exp - logits.gather(1, labels); // [N, 1]
    match weights {
        Some(weights) => {
            let weights = TensorData::new(weights.to_vec(), [count, 1]);
            let weights = Tensor::<2>::from_data(weights, (&losses.device(), DType::F32));
            (losses * weights).sum()
        }
        None => losses.sum(),
    }
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::{Shape, Tensor};
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::cpu::{contiguous, exp_of, exponential_sum, maximum, owned, tensor, values};

    /// Cross entropy, on backends with a kernel for it.
    #[backend_extension(Flex, Autodiff)]
    pub(super) trait CrossEntropyOps: Backend {
        /// The sum over all rows, `[1]`.
        fn cross_entropy(logits: FloatTensor<Self>, rows: RowLabels) -> FloatTensor<Self>;
    }

    pub(super) fn cross_entropy(logits: Tensor<2>, labels: &[u32], weights: Option<&[f32]>) -> Tensor<1> {
        let rows = RowLabels { ids: labels.to_vec(), weights: weights.map(<[f32]>::to_vec) };
        Tensor::from_dispatch(Dispatch::cross_entropy(logits.into_dispatch(), rows))
    }

    /// The label of each row, and its weight; 1 if there are none.
    #[derive(Debug, Clone)]
    pub(super) struct RowLabels {
        ids: Vec<u32>,
        weights: Option<Vec<f32>>,
    }

    impl RowLabels {
        /// A value of each row times the row's weight.
        fn weigh(&self, row: usize, value: f32) -> f32 {
            self.weights.as_ref().map_or(value, |weights| value * weights[row])
        }
    }

    impl CrossEntropyOps for Flex {
        fn cross_entropy(logits: FlexTensor, rows: RowLabels) -> FlexTensor {
            sum(&row_losses(&contiguous(logits), &rows.ids), &rows)
        }
    }

    impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
        fn cross_entropy(logits: FloatTensor<Self>, labels: RowLabels) -> FloatTensor<Self> {
            let (logits, node) = logits.into_parts();
            let logits = contiguous(logits);
            let rows = row_losses(&logits, &labels.ids);
            let output = sum(&rows, &labels);
            match CrossEntropyBackward.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let log_sum_exps = rows.iter().map(|row| row.log_sum_exp).collect();
                    prep.finish((logits, labels, log_sum_exps), output)
                }
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    #[derive(Debug)]
    struct CrossEntropyBackward;

    impl Backward<Flex, 1> for CrossEntropyBackward {
        /// Logits, labels, logarithm of each row's sum of exponentials.
        type State = (FlexTensor, RowLabels, Vec<f32>);

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
            let grad = contiguous(grads.consume::<Flex>(&ops.node));
            let grad = values(&grad)[0];
            let (logits, labels, log_sum_exps) = ops.state;
            let [node] = ops.parents;
            if let Some(node) = node {
                // In the memory of the logits, if nothing else holds them.
                let mut logits = owned(logits);
                let width = logits.layout().shape()[1].max(1);
                let rows = logits.storage_mut::<f32>().par_chunks_mut(width);
                rows.zip(log_sum_exps).enumerate().for_each(|(index, (row, log_sum_exp))| {
                    let (label, grad) = (labels.ids[index], labels.weigh(index, grad));
                    pulp::Arch::new().dispatch(|| {
                        row.iter_mut().for_each(|value| *value = exp_of(*value - log_sum_exp) * grad);
                    });
                    row[label as usize] -= grad;
                });
                grads.register::<Flex>(node.id, logits);
            }
        }
    }

    /// What is computed of one row.
    struct RowLoss {
        log_sum_exp: f32,
        loss: f32,
    }

    fn row_losses(logits: &FlexTensor, labels: &[u32]) -> Vec<RowLoss> {
        let width = logits.layout().shape()[1].max(1);
        let rows = values(logits).par_chunks(width).zip(labels);
        let of_row = |(row, label): (&[f32], &u32)| {
            let log_sum_exp = pulp::Arch::new().dispatch(|| {
                let largest = maximum(row);
                exponential_sum(row, largest).ln() + largest
            });
            RowLoss { log_sum_exp, loss: log_sum_exp - row[*label as usize] }
        };
        rows.map(of_row).collect()
    }

    fn sum(rows: &[RowLoss], labels: &RowLabels) -> FlexTensor {
        let losses = rows.iter().enumerate().map(|(index, row)| labels.weigh(index, row.loss));
        tensor(vec![losses.sum()], Shape::new([1]))
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::check;

    fn labels(rows: usize, width: usize) -> Vec<u32> {
        (0..rows).map(|row| (row * 7 % width) as u32).collect()
    }

    #[test]
    fn value_and_gradient_equal_the_plain_version_on_odd_shapes() {
        for [rows, width] in [[1, 1], [3, 7], [2, 33], [17, 1000]] {
            let labels = labels(rows, width);
            check::equals_plain(
                &[&[rows, width]],
                |inputs| cross_entropy(inputs.get::<2>(0) * 10.0, &labels),
                |inputs| plain_cross_entropy(inputs.get::<2>(0) * 10.0, &labels, None),
            );
        }
    }

    #[test]
    fn weighted_rows_equal_the_plain_version_and_a_weight_of_two_counts_a_row_twice() {
        let labels = labels(3, 7);
        let weights = [0.5, 0.0, 2.0];
        check::equals_plain(
            &[&[3, 7]],
            |inputs| weighted_cross_entropy(inputs.get::<2>(0), &labels, Some(&weights)),
            |inputs| plain_cross_entropy(inputs.get::<2>(0), &labels, Some(&weights)),
        );
        let twice = [labels[0], labels[1], labels[1]];
        check::equals_plain(
            &[&[3, 7]],
            |inputs| weighted_cross_entropy(inputs.get::<2>(0), &labels, Some(&[1.0, 2.0, 0.0])),
            |inputs| {
                let rows = inputs.get::<2>(0).narrow(0, 0, 2);
                cross_entropy(Tensor::cat(vec![rows.clone(), rows.narrow(0, 1, 1)], 0), &twice)
            },
        );
    }

    #[test]
    fn gradients_are_the_slopes_of_the_value() {
        check::equals_finite_differences(&[&[3, 5]], |inputs| {
            cross_entropy(inputs.get::<2>(0), &labels(3, 5))
        });
    }

    #[test]
    fn logits_that_something_else_holds_stay_as_they_were() {
        let device = burn::tensor::Device::flex().autodiff();
        let leaf = Tensor::<2>::ones([2, 3], &device).require_grad();
        let logits = leaf.clone() * 2.0;

        cross_entropy(logits.clone(), &[0, 1]).backward();

        assert_eq!(logits.into_data().try_to_vec::<f32>().unwrap(), [2.0; 6]);
    }

    #[test]
    fn large_logits_do_not_overflow_and_one_that_is_no_number_shows() {
        let device = burn::tensor::Device::flex();
        let loss = |values: [f32; 3]| {
            let logits = Tensor::<2>::from_data([values], &device);
            cross_entropy(logits, &[0]).into_data().try_to_vec::<f32>().unwrap()[0]
        };

        assert_eq!(loss([3e38, 1.0, 0.0]), 0.0);
        assert!(loss([1.0, f32::NAN, 0.0]).is_nan());
    }

    #[test]
    fn threads_change_no_bit() {
        let labels = labels(9, 3000);
        check::has_same_bits_on_any_threads(&[&[9, 3000]], |inputs| {
            cross_entropy(inputs.get::<2>(0), &labels)
        });
    }
}
