//! The linear layer of every projection.
//!
//! Checkpoint names: `*.weight`, `*.bias`.
//!
//! Our own instead of `burn::nn::Linear`: the weight stays `[out, in]`, as every checkpoint stores it, so loading is
//! a copy, saved names and shapes are the published ones, and optimizer state matches them. (`LinearLayout::Col` of Burn 0.22
//! stores `[out, in]` too, but its record mappers transpose at every load and save.)

use burn::module::Param;
use burn::prelude::*;

use super::lora::Lora;
use super::param::zeros;
use super::weight::WeightMatrix;
use crate::device::device_spec::DeviceSpec;

/// Configuration of a [`Linear`].
#[derive(Debug, Clone)]
pub struct LinearConfig {
    /// Input features.
    pub d_input: usize,
    /// Output features.
    pub d_output: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

/// `y = x · weightᵀ + bias`, plus the adapter's `s · B(A x)` if there is one.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: WeightMatrix,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, if there is one.
    pub lora: Option<Lora>,
}

impl LinearConfig {
    /// A layer without bias.
    pub fn new(d_input: usize, d_output: usize) -> Self {
        Self { d_input, d_output, bias: false }
    }

    /// Sets whether there is a bias.
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Builds the layer with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(&self, device_spec: &DeviceSpec) -> Linear {
        Linear {
            weight: WeightMatrix::init([self.d_output, self.d_input], device_spec),
            bias: self.bias.then(|| zeros([self.d_output], &device_spec.device)),
            lora: None,
        }
    }
}

impl Linear {
    /// Applies the linear transformation to the last dimension.
    ///
    /// # Shapes
    ///
    /// - x: `[.., in]`
    /// - output: `[.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        match &self.lora {
            Some(lora) => self.weight.linear(x.clone(), bias) + lora.forward(x),
            None => self.weight.linear(x, bias),
        }
    }

    /// Input features.
    pub fn d_input(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Output features.
    pub fn d_output(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Adds the adapter's `s · B A` to the weight.
    pub(crate) fn merge(&mut self, lora: &Lora) {
        let [left, right] = lora.factors();
        self.weight.addmm(&left, &right);
    }
}
