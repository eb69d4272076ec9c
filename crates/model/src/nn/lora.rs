//! Low-rank adapters.
//!
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); rank-stabilised scale: Kalajdzievski,
//! "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (2023); dropout and starting values as in PEFT.
//!
//! Our own instead of Burn's `apply_lora`: that one forms a dense `W + s · B A` at every call and a gradient of its size;
//! here the two small products are applied to the activations.
//!
//! Dimensions: `I` input features, `O` output features, `r` rank.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::Distribution;

use super::param::{normal, zeros};
use super::weight::linear;

/// Low-rank update of a linear layer: `s · B(A x)`.
///
/// Names: `*.lora.a`, `*.lora.b`; PEFT calls them `*.lora_A.weight`, `*.lora_B.weight`.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[r, I]`
    pub a: Param<Tensor<2>>,
    /// `[O, r]`
    pub b: Param<Tensor<2>>,
    /// `s`
    pub scale: f64,
    /// Dropout probability of the inputs in training.
    pub dropout: f64,
}

/// Size and scale of a [`Lora`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraLayerConfig {
    /// `r`
    pub rank: usize,
    /// `s = alpha / r`
    pub alpha: f64,
    /// Whether `s = alpha / √r` instead.
    pub rslora: bool,
    /// Dropout probability of the inputs in training.
    pub dropout: f64,
}

impl LoraLayerConfig {
    /// `s`
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Builds an adapter of a linear layer `d_input -> d_output` for [`initialize_lora`](crate::initialize_lora) or a file to
    /// fill.
    pub fn init(&self, d_input: usize, d_output: usize, device: &Device) -> Lora {
        Lora {
            a: normal([self.rank, d_input], device),
            b: zeros([d_output, self.rank], device),
            scale: self.scale(),
            dropout: self.dropout,
        }
    }
}

impl Lora {
    /// The update that is added to the layer's output.
    ///
    /// Dropout applies only where gradients are tracked: not in evaluation, not in generation.
    ///
    /// # Shapes
    ///
    /// - x: `[.., I]`
    /// - output: `[.., O]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = if self.dropout > 0.0 && self.a.val().is_autodiff() { dropout(x, self.dropout) } else { x };
        // Two narrow products instead of a dense update: its gradient would have the size of the weight.
        let low_rank = linear(x, self.a.val(), None); // [.., r]
        linear(low_rank, self.b.val(), None) * self.scale
    }

    /// The two factors of the dense update, the first one scaled, in f32.
    ///
    /// # Shapes
    ///
    /// - output: `s · B`, `[O, r]`, and `A`, `[r, I]`
    pub fn factors(&self) -> [Tensor<2>; 2] {
        use burn::tensor::DType::F32;
        [self.b.val().cast(F32) * self.scale, self.a.val().cast(F32)]
    }
}

/// Inverted dropout: zeroes values with this probability and scales the others by `1 / (1 - probability)`.
///
/// Draws from the device's generator: seed it before a step to have the step repeatable.
fn dropout<const D: usize>(x: Tensor<D>, probability: f64) -> Tensor<D> {
    let kept = Tensor::<D>::random(x.dims(), Distribution::Bernoulli(1.0 - probability), &x.device())
        .cast(x.dtype());
    x * kept * (1.0 / (1.0 - probability))
}
