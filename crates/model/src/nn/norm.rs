//! Normalization layers with the reference's rounding.
//!
//! Checkpoint names: `*layernorm.weight`, `*norm.weight`, `*norm.bias`.
//!
//! Our own instead of Burn's: its `RmsNorm` divides in the input type, the reference multiplies by the reciprocal
//! root in f32 and rounds after that; and its fields are not named as checkpoints name them.
//!
//! Dimensions: `D` hidden size.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_kernels as kernels;

use super::param::{ones, zeros};

/// Root-mean-square normalization: `weight · x / √(mean(x²) + eps)`.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square before the root.
    pub eps: f64,
}

impl RmsNorm {
    /// Builds the norm of vectors of `hidden_size`.
    pub fn init(hidden_size: usize, eps: f64, device: &Device) -> Self {
        Self { weight: ones([hidden_size], device), eps }
    }

    /// Normalizes the last dimension.
    ///
    /// # Shapes
    ///
    /// - x, output: `[.., D]`
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        kernels::rms_norm(x, self.weight.val(), self.eps)
    }
}

/// Layer normalization with weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    /// `[D]`
    pub bias: Param<Tensor<1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Builds the norm of vectors of `hidden_size`.
    pub fn init(hidden_size: usize, eps: f64, device: &Device) -> Self {
        Self { weight: ones([hidden_size], device), bias: zeros([hidden_size], device), eps }
    }

    /// Normalizes the last dimension.
    ///
    /// # Shapes
    ///
    /// - x, output: `[.., D]`
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        let dtype = x.dtype();
        let x = x.cast(DType::F32); // as torch's kernel: statistics and scaling in f32, one rounding at the end
        let centered = x.clone() - x.mean_dim(N - 1);
        let variance = (centered.clone() * centered.clone()).mean_dim(N - 1); // [.., 1]
        let normal = centered * (variance + self.eps).sqrt().recip();
        let weight = self.weight.val().cast(DType::F32).unsqueeze();
        let bias = self.bias.val().cast(DType::F32).unsqueeze();
        (normal * weight + bias).cast(dtype)
    }
}
