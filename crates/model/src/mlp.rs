//! Gated feed-forward with gate and up projection apart.
//!
//! Checkpoint names: `*.gate_proj.*`, `*.up_proj.*`, `*.down_proj.*`: the blocks of the vision tower, the dense layers and
//! the shared experts of `glm4v_moe`.
//!
//! Dimensions: `D` width of the stream, `F` width inside the gate.

use burn::prelude::*;
use burn::tensor::activation::silu;

use crate::linear::{Linear, LinearConfig};
use crate::probe::Probe;
use crate::site::Site;

/// SwiGLU feed-forward: `down_proj(silu(gate_proj(x)) · up_proj(x))`.
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// `D -> F`
    pub gate_proj: Linear,
    /// `D -> F`
    pub up_proj: Linear,
    /// `F -> D`
    pub down_proj: Linear,
}

impl GatedMlp {
    /// Builds the block.
    pub(crate) fn init(width: usize, inner: usize, bias: bool, site: &Site) -> Self {
        let linear = |d_input, d_output| LinearConfig::new(d_input, d_output).with_bias(bias).init(site);
        Self {
            gate_proj: linear(width, inner),
            up_proj: linear(width, inner),
            down_proj: linear(inner, width),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[.., D]`
    pub(crate) fn forward<const N: usize>(&self, x: Tensor<N>, probe: &mut Probe) -> Tensor<N> {
        let gate = self.gate_proj.forward(x.clone()); // [.., F]
        probe.keep_inside("mlp.gate_proj", &gate);
        let up = self.up_proj.forward(x);
        probe.keep_inside("mlp.up_proj", &up);
        let out = self.down_proj.forward(silu(gate) * up);
        probe.keep_inside("mlp.down_proj", &out);
        out
    }
}
