//! Gated feed-forward (SwiGLU), with gate and up projection apart or fused.
//!
//! Checkpoint names: `*.gate_proj.*`, `*.up_proj.*` or `*.gate_up_proj.*`, `*.down_proj.*`.
//!
//! Dimensions: `D` hidden size, `F` intermediate size.

use burn::prelude::*;
use glm4v_kernels as kernels;

use super::forward_context::ForwardContext;
use super::linear::{Linear, LinearConfig};
use crate::device::device_spec::DeviceSpec;

/// `down_proj(silu(gate_proj(x)) · up_proj(x))`: the vision tower, the dense layers and shared experts of `glm4v_moe`.
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
    /// Builds the block with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(hidden_size: usize, intermediate_size: usize, bias: bool, device_spec: &DeviceSpec) -> Self {
        let linear =
            |d_input, d_output| LinearConfig::new(d_input, d_output).with_bias(bias).init(device_spec);
        Self {
            gate_proj: linear(hidden_size, intermediate_size),
            up_proj: linear(hidden_size, intermediate_size),
            down_proj: linear(intermediate_size, hidden_size),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[.., D]`
    pub fn forward<const N: usize, S>(&self, x: Tensor<N>, pass: &mut ForwardContext<'_, S>) -> Tensor<N> {
        let gate = pass.record("gate_proj", self.gate_proj.forward(x.clone())); // [.., F]
        let up = pass.record("up_proj", self.up_proj.forward(x));
        pass.record("down_proj", self.down_proj.forward(kernels::swiglu(gate, up)))
    }
}

/// As [`GatedMlp`] with `gate` and `up` as the two halves of one projection, gate first.
///
/// Published checkpoints of `glm4v` and `glm_ocr` store it so; experts are kept so because one product is faster than
/// two, and because transformers 5 and PEFT see them so.
#[derive(Module, Debug)]
pub struct GateUpMlp {
    /// `D -> 2F`
    pub gate_up_proj: Linear,
    /// `F -> D`
    pub down_proj: Linear,
}

impl GateUpMlp {
    /// Builds the block with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(hidden_size: usize, intermediate_size: usize, device_spec: &DeviceSpec) -> Self {
        Self {
            gate_up_proj: LinearConfig::new(hidden_size, 2 * intermediate_size).init(device_spec),
            down_proj: LinearConfig::new(intermediate_size, hidden_size).init(device_spec),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[.., D]`
    pub fn forward<const N: usize, S>(&self, x: Tensor<N>, pass: &mut ForwardContext<'_, S>) -> Tensor<N> {
        let gate_up = pass.record("gate_up_proj", self.gate_up_proj.forward(x)); // [.., 2F]
        pass.record("down_proj", self.down_proj.forward(kernels::swiglu_fused(gate_up)))
    }
}
