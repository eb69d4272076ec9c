//! Linear layer (`torch.nn.functional.linear`), with a kernel for the few rows of a decoding step.
//!
//! A product of one row reads every weight once and computes little: it is as fast as memory. Burn's takes one thread for
//! it, and for two rows another path that takes twice the time; this one splits the weight's rows over all threads, and reads it once
//! for up to [`MAX_ROWS`] rows of the input.
//!
//! Dimensions: `N` rows, `I` input features, `O` output features.

use burn::tensor::Tensor;
use burn::tensor::module;

/// `x · weightᵀ + bias`.
///
/// # Shapes
///
/// - x: `[N, I]`
/// - weight: `[O, I]`, as checkpoints store it
/// - bias: `[O]`
/// - output: `[N, O]`
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if x.dims()[0] <= cpu::MAX_ROWS && [&x, &weight].into_iter().all(crate::device::is_plain_cpu_f32) {
        let output = cpu::linear_of_few_rows(x, weight);
        return match bias {
            Some(bias) => output + bias.unsqueeze(),
            None => output,
        };
    }
    #[cfg(feature = "cpu")]
    if x.is_autodiff() && [&x, &weight].into_iter().all(crate::device::is_cpu_f32) {
        return crate::tracked_linear::tracked_linear(x, weight, bias);
    }
    plain_linear(x, weight, bias)
}

fn plain_linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    module::linear(x, weight.transpose(), bias)
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::{Shape, Tensor, TensorData};
    use burn_flex::FlexTensor;
    use pulp::{Simd, WithSimd};
    use rayon::prelude::*;

    use crate::cpu::{Rows, with_rows};

    /// More rows are a matrix product, which computes more than it reads.
    pub(super) const MAX_ROWS: usize = 8;

    /// Values of the weight that one thread takes at a time: 128 KiB are 10 µs, far above the cost of handing them over.
    const TASK: usize = 32 * 1024;

    /// The linear layer of few rows, on backends with a kernel for it.
    #[backend_extension(Flex)]
    pub(super) trait FewRowLinearOps: Backend {
        /// `x · weightᵀ` of at most [`MAX_ROWS`] rows.
        fn few_row_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    pub(super) fn linear_of_few_rows(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::few_row_linear(x.into_dispatch(), weight.into_dispatch()))
    }

    impl FewRowLinearOps for Flex {
        fn few_row_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
            let [count, features] = [x.layout().shape()[0], weight.layout().shape()[0]];
            // A transposed weight would be copied; no layer of ours has one.
            let [x, weight] = [x, weight].map(with_rows::<1>);
            let (Some(inputs), Some(weights)) = (Rows::of(&x), Rows::of(&weight)) else {
                unreachable!("contiguous f32 matrices have rows")
            };
            let mut output = vec![0.0; count * features];
            let inputs: Vec<&[f32]> = (0..count).map(|row| inputs.row([row])).collect();
            product(&inputs, weights, features, &mut output);
            FlexTensor::from_data(TensorData::new(output, Shape::new([count, features])))
        }
    }

    /// `output[n, o] = inputs[n] · weights[o]`.
    ///
    /// Every value is one sum whose order follows from the width alone, whatever the number of threads.
    fn product(inputs: &[&[f32]], weights: Rows<'_, 1>, features: usize, output: &mut [f32]) {
        if output.is_empty() {
            return;
        }
        let task_rows = (TASK / weights.width.max(1)).next_multiple_of(4);
        // A task has its part of every output row.
        let mut parts: Vec<_> = output.chunks_mut(features).map(|row| row.chunks_mut(task_rows)).collect();
        let tasks: Vec<Vec<&mut [f32]>> = (0..features.div_ceil(task_rows))
            .map(|_| parts.iter_mut().filter_map(Iterator::next).collect())
            .collect();
        let run = |(task, outputs): (usize, Vec<&mut [f32]>)| {
            pulp::Arch::new().dispatch(Task { inputs, weights, first: task * task_rows, outputs });
        };
        if tasks.len() == 1 {
            tasks.into_iter().enumerate().for_each(run);
        } else {
            tasks.into_par_iter().enumerate().for_each(run);
        }
    }

    /// A run of the weight's rows, with all rows of the input.
    struct Task<'a> {
        inputs: &'a [&'a [f32]],
        weights: Rows<'a, 1>,
        /// The first row of the weight.
        first: usize,
        /// Its outputs and those after it, for each input.
        outputs: Vec<&'a mut [f32]>,
    }

    impl WithSimd for Task<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, simd: S) {
            match self.inputs.len() {
                1 => self.rows::<S, 1, 4>(simd),
                2 => self.rows::<S, 2, 4>(simd),
                3 => self.rows::<S, 3, 2>(simd),
                4 => self.rows::<S, 4, 2>(simd),
                5 => self.rows::<S, 5, 2>(simd),
                6 => self.rows::<S, 6, 2>(simd),
                7 => self.rows::<S, 7, 2>(simd),
                _ => self.rows::<S, 8, 2>(simd),
            }
        }
    }

    impl Task<'_> {
        /// All outputs of `N` inputs, `R` rows of the weight at a time: `N · R` sums stay in registers.
        #[inline(always)]
        fn rows<S: Simd, const N: usize, const R: usize>(&mut self, simd: S) {
            let inputs: [&[f32]; N] = std::array::from_fn(|n| self.inputs[n]);
            let rows = self.outputs[0].len();
            let whole = rows / R * R;
            for at in (0..whole).step_by(R) {
                self.block::<S, N, R>(simd, inputs, at);
            }
            for at in whole..rows {
                self.block::<S, N, 1>(simd, inputs, at);
            }
        }

        #[inline(always)]
        fn block<S: Simd, const N: usize, const R: usize>(
            &mut self,
            simd: S,
            inputs: [&[f32]; N],
            at: usize,
        ) {
            let weights: [&[f32]; R] = std::array::from_fn(|row| self.weights.row([self.first + at + row]));
            let sums = dots(simd, inputs, weights);
            for (output, sums) in self.outputs.iter_mut().zip(sums) {
                output[at..at + R].copy_from_slice(&sums);
            }
        }
    }

    /// `sums[n][r] = inputs[n] · weights[r]`, slices of one length.
    #[inline(always)]
    fn dots<S: Simd, const N: usize, const R: usize>(
        simd: S,
        inputs: [&[f32]; N],
        weights: [&[f32]; R],
    ) -> [[f32; R]; N] {
        let mut sums = [[simd.splat_f32s(0.0); R]; N];
        let inputs = inputs.map(|row| S::as_simd_f32s(row));
        let weights = weights.map(|row| S::as_simd_f32s(row));
        let vectors = weights[0].0.len();
        let heads = (inputs.map(|(head, _)| &head[..vectors]), weights.map(|(head, _)| &head[..vectors]));
        for at in 0..vectors {
            add_products(simd, heads.0.map(|row| row[at]), heads.1.map(|row| row[at]), &mut sums);
        }
        let tail = |(_, rest): (_, &[f32])| simd.partial_load_f32s(rest);
        add_products(simd, inputs.map(tail), weights.map(tail), &mut sums);
        sums.map(|sums| sums.map(|sum| simd.reduce_sum_f32s(sum)))
    }

    /// Adds the products of all inputs with all weights, lane by lane.
    #[inline(always)]
    fn add_products<S: Simd, const N: usize, const R: usize>(
        simd: S,
        inputs: [S::f32s; N],
        weights: [S::f32s; R],
        sums: &mut [[S::f32s; R]; N],
    ) {
        for n in 0..N {
            for r in 0..R {
                sums[n][r] = simd.mul_add_f32s(inputs[n], weights[r], sums[n][r]);
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, Distribution, TensorData, Tolerance};

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_to_vec().unwrap()
    }

    #[track_caller]
    fn assert_equals_plain(x: Tensor<2>, weight: Tensor<2>) {
        let plain = plain_linear(x.clone(), weight.clone(), None).into_data();
        linear(x, weight, None).into_data().assert_approx_eq::<f32>(&plain, Tolerance::absolute(1e-4));
    }

    #[test]
    fn every_number_of_rows_equals_the_plain_product_on_odd_shapes() {
        for rows in 1..=9 {
            for (features, width) in [(1, 1), (3, 7), (5, 16), (13, 33), (130, 401), (67, 1024), (1031, 515)]
            {
                assert_equals_plain(random([rows, width]), random([features, width]));
            }
        }
    }

    #[test]
    fn views_are_read_where_they_lie() {
        let x = random([5, 40]);
        let weight = random([30, 40]);

        assert_equals_plain(x.clone().slice([1..4, 3..32]), weight.clone().slice([2..27, 3..32]));
        assert_equals_plain(random([29, 3]).transpose(), random([29, 25]).transpose());
        assert_equals_plain(x.clone().flip([0]), weight.clone().flip([1]));
        assert_equals_plain(x.narrow(0, 1, 1).expand([3, 40]), weight);
    }

    #[test]
    fn nothing_in_or_out_is_allowed() {
        assert_eq!(linear(random([0, 4]), random([3, 4]), None).dims(), [0, 3]);
        assert_eq!(linear(random([2, 4]), random([0, 4]), None).dims(), [2, 0]);
        assert_eq!(values(linear(random([2, 0]), random([3, 0]), None)), [0.0; 6]);
    }

    #[test]
    fn the_bias_is_added_to_every_row() {
        let (x, weight) = (random([3, 12]), random([7, 12]));
        let bias = Tensor::<1>::random([7], Distribution::Default, &Device::flex());

        let with = linear(x.clone(), weight.clone(), Some(bias.clone()));

        assert_eq!(values(with), values(linear(x, weight, None) + bias.unsqueeze()));
    }

    #[test]
    fn values_depend_neither_on_threads_nor_on_other_rows() {
        let (x, weight) = (random([4, 700]), random([3001, 700]));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(linear(x.clone(), weight.clone(), None)))
        };

        let one = run(1);

        assert_eq!(one, run(3));
        let alone = values(linear(x.narrow(0, 2, 1), weight, None));
        assert_eq!(alone, one[2 * 3001..3 * 3001]);
    }

    #[test]
    fn other_types_and_tracked_tensors_take_the_plain_product() {
        let bf16 = linear(random([1, 4]).cast(DType::BF16), random([3, 4]).cast(DType::BF16), None);
        assert_eq!(bf16.dtype(), DType::BF16);

        let device = Device::flex().autodiff();
        let x = Tensor::<2>::from_data([[1.0f32, 2.0]], &device).require_grad();
        let weight = Tensor::<2>::from_data([[3.0f32, 4.0], [5.0, 6.0]], &device).require_grad();
        let gradients = linear(x.clone(), weight, None).sum().backward();
        x.grad(&gradients).unwrap().into_data().assert_eq(&TensorData::from([[8.0f32, 10.0]]), false);
    }
}
