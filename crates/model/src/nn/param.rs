//! Parameters that take no memory until they are used, loaded or initialized.
//!
//! Used as they are, they hold the usual random initialization, drawn from the device's generator: a block alone computes
//! something. [`initialize`](crate::initialize) replaces it by values that depend on a seed and the parameter's name alone.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::Distribution;

/// Standard deviation of [`normal`], the `initializer_range` of most checkpoints.
const STD: f64 = 0.02;

/// Normal values, for matrices and tables.
pub(crate) fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, |shape, device| Tensor::random(shape, Distribution::Normal(0.0, STD), device))
}

/// Ones, for the scale of a norm.
pub(crate) fn ones<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, |shape, device| Tensor::ones(shape, device))
}

/// Zeros, for biases.
pub(crate) fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, |shape, device| Tensor::zeros(shape, device))
}

fn lazy<const D: usize>(
    shape: [usize; D],
    device: &Device,
    values: fn([usize; D], &Device) -> Tensor<D>,
) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| values(shape, device).set_require_grad(require_grad),
        device.clone(),
        true,
        shape.into(),
    )
}
