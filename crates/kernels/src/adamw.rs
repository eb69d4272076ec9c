//! One update of AdamW.
//!
//! Composed of Burn's operations an update reads and writes a dozen temporaries of the parameter's size; here parameter and moments
//! are changed where they lie, in one pass.
//!
//! Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); steps and rounding as in `torch.optim.AdamW`.

use burn::tensor::Tensor;

/// A parameter and its moments, flat, in f32.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// The parameter.
    pub param: Tensor<1>,
    /// Running mean of the gradient.
    pub exp_avg: Tensor<1>,
    /// Running mean of its square.
    pub exp_avg_sq: Tensor<1>,
}

/// Numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWUpdate {
    /// Learning rate.
    pub lr: f64,
    /// Exponential decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Updates of the parameter, this one included.
    pub step: usize,
    /// Factor of the gradient, by which it is clipped.
    pub grad_scale: f64,
}

/// Updates a parameter; without a gradient, as if it were zero. A state that nothing else holds is changed in place.
///
/// # Shapes
///
/// - all tensors: `[size of the parameter]`, f32
pub fn adamw(state: AdamWState, grad: Option<Tensor<1>>, update: &AdamWUpdate) -> AdamWState {
    #[cfg(feature = "cpu")]
    if [&state.param, &state.exp_avg, &state.exp_avg_sq]
        .into_iter()
        .chain(&grad)
        .all(crate::device::is_plain_cpu_f32)
    {
        return cpu::adamw(state, grad, update);
    }
    plain_adamw(state, grad, update)
}

impl AdamWUpdate {
    /// `1 - beta^step` of both moments, which begin at zero.
    fn bias_corrections(&self) -> [f64; 2] {
        self.betas.map(|beta| 1.0 - beta.powf(self.step as f64))
    }
}

fn plain_adamw(state: AdamWState, grad: Option<Tensor<1>>, update: &AdamWUpdate) -> AdamWState {
    let AdamWUpdate { lr, betas: [beta1, beta2], eps, weight_decay, grad_scale, .. } = *update;
    let mut exp_avg = state.exp_avg * beta1;
    let mut exp_avg_sq = state.exp_avg_sq * beta2;
    if let Some(grad) = grad {
        let grad = if grad_scale == 1.0 { grad } else { grad * grad_scale };
        exp_avg = exp_avg + grad.clone() * (1.0 - beta1);
        exp_avg_sq = exp_avg_sq + grad.clone() * grad * (1.0 - beta2);
    }
    let [correction1, correction2] = update.bias_corrections();
    let denominator = exp_avg_sq.clone().sqrt() * (1.0 / correction2.sqrt()) + eps;
    let change = exp_avg.clone() / denominator * (lr / correction1);
    let param = state.param * (1.0 - lr * weight_decay) - change;
    AdamWState { param, exp_avg, exp_avg_sq }
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::Tensor;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::adamw::{AdamWState, AdamWUpdate};
    use crate::cpu::{TASK, contiguous, owned, values};

    /// AdamW, on backends with a kernel for it.
    #[backend_extension(Flex)]
    pub(super) trait AdamWOps: Backend {
        /// Parameter and moments after an update; an empty gradient is zero.
        fn adamw(
            param: FloatTensor<Self>,
            exp_avg: FloatTensor<Self>,
            exp_avg_sq: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            update: AdamWUpdate,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    }

    pub(super) fn adamw(state: AdamWState, grad: Option<Tensor<1>>, update: &AdamWUpdate) -> AdamWState {
        let grad = grad.unwrap_or_else(|| Tensor::zeros([0], &state.param.device()));
        let AdamWState { param, exp_avg, exp_avg_sq } = state;
        let [param, exp_avg, exp_avg_sq, grad] =
            [param, exp_avg, exp_avg_sq, grad].map(Tensor::into_dispatch);
        let (param, exp_avg, exp_avg_sq) = Dispatch::adamw(param, exp_avg, exp_avg_sq, grad, *update);
        let [param, exp_avg, exp_avg_sq] = [param, exp_avg, exp_avg_sq].map(Tensor::from_dispatch);
        AdamWState { param, exp_avg, exp_avg_sq }
    }

    impl AdamWOps for Flex {
        fn adamw(
            param: FlexTensor,
            exp_avg: FlexTensor,
            exp_avg_sq: FlexTensor,
            grad: FlexTensor,
            update: AdamWUpdate,
        ) -> (FlexTensor, FlexTensor, FlexTensor) {
            let [mut param, mut exp_avg, mut exp_avg_sq] = [param, exp_avg, exp_avg_sq].map(owned);
            let grad = contiguous(grad);
            let factors = Factors::new(&update);
            let [params, means, squares] =
                [&mut param, &mut exp_avg, &mut exp_avg_sq].map(|tensor| tensor.storage_mut::<f32>());
            let states =
                params.par_chunks_mut(TASK).zip(means.par_chunks_mut(TASK)).zip(squares.par_chunks_mut(TASK));
            let grad = values(&grad);
            states.enumerate().for_each(|(task, ((params, means), squares))| {
                let grad = grad.get(task * TASK..task * TASK + params.len());
                pulp::Arch::new().dispatch(|| {
                    if let Some(grad) = grad {
                        add_gradient(&factors, grad, means, squares);
                    } else {
                        decay(&factors, means, squares);
                    }
                    apply(&factors, params, means, squares);
                });
            });
            (param, exp_avg, exp_avg_sq)
        }
    }

    /// The numbers of [`AdamWUpdate`] as they multiply, rounded once.
    struct Factors {
        beta: [f32; 2],
        one_minus_beta: [f32; 2],
        grad_scale: f32,
        root_scale: f32,
        eps: f32,
        step_size: f32,
        decay: f32,
    }

    impl Factors {
        fn new(update: &AdamWUpdate) -> Self {
            let [correction1, correction2] = update.bias_corrections();
            Self {
                beta: update.betas.map(|beta| beta as f32),
                one_minus_beta: update.betas.map(|beta| (1.0 - beta) as f32),
                grad_scale: update.grad_scale as f32,
                root_scale: (1.0 / correction2.sqrt()) as f32,
                eps: update.eps as f32,
                step_size: (update.lr / correction1) as f32,
                decay: (1.0 - update.lr * update.weight_decay) as f32,
            }
        }
    }

    #[inline(always)]
    fn add_gradient(factors: &Factors, grad: &[f32], means: &mut [f32], squares: &mut [f32]) {
        let Factors { beta, one_minus_beta, grad_scale, .. } = factors;
        for ((mean, square), grad) in means.iter_mut().zip(squares).zip(grad) {
            let grad = grad * grad_scale;
            *mean = *mean * beta[0] + grad * one_minus_beta[0];
            *square = *square * beta[1] + grad * grad * one_minus_beta[1];
        }
    }

    #[inline(always)]
    fn decay(factors: &Factors, means: &mut [f32], squares: &mut [f32]) {
        for (mean, square) in means.iter_mut().zip(squares) {
            *mean *= factors.beta[0];
            *square *= factors.beta[1];
        }
    }

    #[inline(always)]
    fn apply(factors: &Factors, params: &mut [f32], means: &[f32], squares: &[f32]) {
        let Factors { root_scale, eps, step_size, decay, .. } = factors;
        for ((param, mean), square) in params.iter_mut().zip(means).zip(squares) {
            let change = mean / (square.sqrt() * root_scale + eps) * step_size;
            *param = *param * decay - change;
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    const UPDATE: AdamWUpdate =
        AdamWUpdate { lr: 1e-2, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };

    fn state(size: usize) -> (AdamWState, Tensor<1>) {
        let random = |from, to| Tensor::<1>::random([size], Distribution::Uniform(from, to), &Device::flex());
        let state =
            AdamWState { param: random(-1.0, 1.0), exp_avg: random(-0.1, 0.1), exp_avg_sq: random(0.0, 0.1) };
        (state, random(-1.0, 1.0))
    }

    fn values(state: AdamWState) -> [Vec<f32>; 3] {
        [state.param, state.exp_avg, state.exp_avg_sq].map(|tensor| tensor.into_data().try_to_vec().unwrap())
    }

    #[test]
    fn an_update_has_the_bits_of_the_plain_version() {
        for size in [0, 1, 31, 70_001] {
            let (state, grad) = state(size);
            for grad in [Some(grad), None] {
                for update in [UPDATE, AdamWUpdate { grad_scale: 1.0, step: 1, ..UPDATE }] {
                    let plain = plain_adamw(state.clone(), grad.clone(), &update);

                    assert_eq!(values(adamw(state.clone(), grad.clone(), &update)), values(plain));
                }
            }
        }
    }

    #[test]
    fn a_shared_state_stays_as_it_was() {
        let (state, grad) = state(100);
        let before = values(state.clone());

        adamw(state.clone(), Some(grad), &UPDATE);

        assert_eq!(values(state), before);
    }

    #[test]
    fn threads_change_no_bit() {
        let (state, grad) = state(100_000);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(adamw(state.clone(), Some(grad.clone()), &UPDATE)))
        };

        assert_eq!(on(1), on(3));
    }
}
