//! The linear map of every projection.
//!
//! Checkpoint names: `*.weight`, `*.bias`.
//!
//! Our own instead of `burn::nn::Linear`: the weight stays `[out, in]`, as every checkpoint stores it, so loading is
//! a copy, saved names and shapes are the published ones, and optimizer state matches them.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::module::linear;

/// Configuration of a [`Linear`].
#[derive(Debug, Clone)]
pub struct LinearConfig {
    /// Width of the input.
    pub d_input: usize,
    /// Width of the output.
    pub d_output: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

/// `y = x · weightᵀ + bias`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl LinearConfig {
    /// A map without bias.
    pub fn new(d_input: usize, d_output: usize) -> Self {
        Self { d_input, d_output, bias: false }
    }

    /// Adds a bias or leaves it out.
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Builds the map; its weights wait for [`initialize`](crate::initialize) or a checkpoint.
    pub fn init(&self, device: &Device) -> Linear {
        Linear {
            weight: empty([self.d_output, self.d_input], device),
            bias: self.bias.then(|| empty([self.d_output], device)),
        }
    }
}

impl Linear {
    /// Maps the last dimension.
    ///
    /// # Shapes
    ///
    /// - x: `[.., in]`
    /// - output: `[.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val().transpose(), self.bias.as_ref().map(Param::val))
    }
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
