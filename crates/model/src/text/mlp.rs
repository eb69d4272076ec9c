//! Gated feed-forward block of the text decoder.
//!
//! Checkpoint names: `model.language_model.layers.{i}.mlp.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream, `F` width inside the gate.

use burn::prelude::*;
use burn::tensor::activation::silu;

use crate::config::TextConfig;
use crate::linear::{Linear, LinearConfig};
use crate::probe::Probe;

/// SwiGLU feed-forward: `down_proj(silu(gate) · up)`.
///
/// `gate` and `up` are the two halves of one projection, gate first, because the published checkpoints store them
/// fused.
#[derive(Module, Debug)]
pub struct TextMlp {
    /// `D -> 2F`
    pub gate_up_proj: Linear,
    /// `F -> D`
    pub down_proj: Linear,
}

impl TextMlp {
    /// Builds the block.
    pub(crate) fn init(config: &TextConfig, device: &Device) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            gate_up_proj: LinearConfig::new(width, 2 * inner).init(device),
            down_proj: LinearConfig::new(inner, width).init(device),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - hidden, output: `[B, S, D]`
    pub(crate) fn forward(&self, hidden: Tensor<3>, probe: &mut Probe) -> Tensor<3> {
        let gate_up = self.gate_up_proj.forward(hidden); // [B, S, 2F]
        probe.keep_inside("mlp.gate_up_proj", &gate_up);
        let inner = gate_up.dims()[2] / 2;
        let gate = gate_up.clone().narrow(2, 0, inner); // [B, S, F]
        let up = gate_up.narrow(2, inner, inner);
        let out = self.down_proj.forward(silu(gate) * up);
        probe.keep_inside("mlp.down_proj", &out);
        out
    }
}
