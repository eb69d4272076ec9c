//! Feed-forward of a decoder layer.
//!
//! Checkpoint names: `model.language_model.layers.{i}.mlp.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream, `F` width inside the gate.

use burn::prelude::*;
use burn::tensor::activation::silu;

use super::experts::Experts;
use crate::config::TextConfig;
use crate::linear::{Linear, LinearConfig};
use crate::mlp::GatedMlp;
use crate::probe::Probe;
use crate::site::Site;

/// The second half of a layer: each position on its own.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few dozen of them, next to weights of megabytes; a module cannot be boxed"
)]
pub enum FeedForward {
    /// `glm4v`, `glm_ocr`.
    Fused(FusedMlp),
    /// The first layers of `glm4v_moe`.
    Dense(GatedMlp),
    /// The other layers of `glm4v_moe`.
    Experts(Experts),
}

impl FeedForward {
    /// Builds the feed-forward of layer `index`.
    pub(crate) fn init(config: &TextConfig, index: usize, site: &Site) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        match &config.moe {
            Some(moe) if config.has_experts(index) => Self::Experts(Experts::init(width, moe, site)),
            Some(_) => Self::Dense(GatedMlp::init(width, inner, false, site)),
            None => Self::Fused(FusedMlp::init(width, inner, site)),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - hidden, output: `[B, S, D]`
    pub(crate) fn forward(&self, hidden: Tensor<3>, probe: &mut Probe) -> Tensor<3> {
        match self {
            Self::Fused(mlp) => {
                let gate_up = mlp.gate_up_proj.forward(hidden); // [B, S, 2F]
                probe.keep_inside("mlp.gate_up_proj", &gate_up);
                let out = mlp.down_proj.forward(gated(gate_up));
                probe.keep_inside("mlp.down_proj", &out);
                out
            }
            Self::Dense(mlp) => mlp.forward(hidden, probe),
            Self::Experts(experts) => experts.forward(hidden, probe),
        }
    }
}

/// SwiGLU feed-forward whose `gate` and `up` are the two halves of one projection, gate first.
///
/// Published checkpoints of `glm4v` and `glm_ocr` store it so; experts are kept so because one product is quicker than
/// two, and because transformers 5 and PEFT see them so.
#[derive(Module, Debug)]
pub struct FusedMlp {
    /// `D -> 2F`
    pub gate_up_proj: Linear,
    /// `F -> D`
    pub down_proj: Linear,
}

impl FusedMlp {
    /// Builds the block.
    pub(crate) fn init(width: usize, inner: usize, site: &Site) -> Self {
        Self {
            gate_up_proj: LinearConfig::new(width, 2 * inner).init(site),
            down_proj: LinearConfig::new(inner, width).init(site),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[N, D]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down_proj.forward(gated(self.gate_up_proj.forward(x)))
    }
}

/// `silu(gate) · up` for the two halves of the last dimension.
fn gated<const N: usize>(gate_up: Tensor<N>) -> Tensor<N> {
    let inner = gate_up.dims()[N - 1] / 2;
    silu(gate_up.clone().narrow(N - 1, 0, inner)) * gate_up.narrow(N - 1, inner, inner)
}
