//! Low-rank adapters.
//!
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); rank-stabilised scale: Kalajdzievski,
//! "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (2023); dropout and starting values as in PEFT.
//!
//! Our own instead of Burn's `apply_lora`: that one forms a dense `W + s · B A` at every call and a gradient of its size;
//! here the two small products are applied to the activations.
//!
//! Dimensions: `I` width of the input, `O` of the output, `r` rank.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::Distribution;

use crate::matrix::{empty, project_rows};

/// What is added to a linear layer: `s · B(A x)`.
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
    /// Share of the inputs that are left out in training.
    pub dropout: f64,
}

/// Size and scale of a [`Lora`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraConfig {
    /// `r`
    pub rank: usize,
    /// What the scale is made of: `s = alpha / r`.
    pub alpha: f64,
    /// Whether `s = alpha / √r` instead.
    pub rslora: bool,
    /// Share of the inputs that are left out in training.
    pub dropout: f64,
}

impl LoraConfig {
    /// `s`
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Builds an adapter for a map of `d_input` to `d_output`; its values wait for
    /// [`initialize_lora`](crate::initialize_lora) or a file.
    pub fn init(&self, d_input: usize, d_output: usize, device: &Device) -> Lora {
        Lora {
            a: empty([self.rank, d_input], device),
            b: empty([d_output, self.rank], device),
            scale: self.scale(),
            dropout: self.dropout,
        }
    }
}

impl Lora {
    /// What is added to the map's output.
    ///
    /// Inputs are left out only where gradients are tracked: an evaluation and generation see all of them.
    ///
    /// # Shapes
    ///
    /// - x: `[.., I]`
    /// - output: `[.., O]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = if self.dropout > 0.0 && self.a.val().is_autodiff() { drop_out(x, self.dropout) } else { x };
        let narrow = project_rows(x, self.a.val(), None); // [.., r]
        project_rows(narrow, self.b.val(), None) * self.scale
    }

    /// The dense change that the adapter stands for, as two factors of which the first is scaled, in f32.
    ///
    /// # Shapes
    ///
    /// - output: `s · B`, `[O, r]`, and `A`, `[r, I]`
    pub fn factors(&self) -> [Tensor<2>; 2] {
        use burn::tensor::DType::F32;
        [self.b.val().cast(F32) * self.scale, self.a.val().cast(F32)]
    }
}

/// Sets a share of the values to zero and scales the others up, so that sums keep their expected size.
///
/// Draws from the device's generator: seed it before a step to have the step repeatable.
fn drop_out<const D: usize>(x: Tensor<D>, share: f64) -> Tensor<D> {
    let kept =
        Tensor::<D>::random(x.dims(), Distribution::Bernoulli(1.0 - share), &x.device()).cast(x.dtype());
    x * kept * (1.0 / (1.0 - share))
}
