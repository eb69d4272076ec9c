//! The linear layer of every projection.
//!
//! Checkpoint names: `*.weight`, `*.bias`.
//!
//! Our own instead of `burn::nn::Linear`: the weight stays `[out, in]`, as every checkpoint stores it, so loading is
//! a copy, saved names and shapes are the published ones, and optimizer state matches them.

use burn::module::Param;
use burn::prelude::*;

use crate::lora::Lora;
use crate::matrix::{Matrix, empty};
use crate::site::Site;

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

/// `y = x · weightᵀ + bias`, and what an adapter adds.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Matrix,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, if there is one.
    pub lora: Option<Lora>,
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
    pub fn init(&self, site: &Site) -> Linear {
        Linear {
            weight: Matrix::init([self.d_output, self.d_input], site),
            bias: self.bias.then(|| empty([self.d_output], &site.device)),
            lora: None,
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
        let bias = self.bias.as_ref().map(Param::val);
        match &self.lora {
            Some(lora) => self.weight.project(x.clone(), bias) + lora.forward(x),
            None => self.weight.project(x, bias),
        }
    }

    /// Width of the input.
    pub fn d_input(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Width of the output.
    pub fn d_output(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Adds what an adapter stands for to the weight.
    pub(crate) fn merge(&mut self, lora: &Lora) {
        let [left, right] = lora.factors();
        self.weight.add_product(&left, &right);
    }
}
