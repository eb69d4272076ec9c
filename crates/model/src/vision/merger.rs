//! Patch merger: 2x2 patches become one embedding of the text decoder's hidden size.
//!
//! Checkpoint names: `model.visual.downsample.*`, `model.visual.merger.*`.
//!
//! Dimensions: `P` patches, `H` hidden size, `m` side of a block, `N = P / m²` tokens, `O` output size, `F` intermediate size.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::activation::gelu;
use glm4v_kernels as kernels;

use super::forward_context::VisionForwardContext;
use crate::config::VisionConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::linear::{Linear, LinearConfig};
use crate::nn::norm::LayerNorm;
use crate::nn::param::{normal, zeros};

/// A convolution over blocks of patches whose kernel is its stride.
#[derive(Module, Debug)]
pub struct Downsample {
    /// `[O, H, m, m]`
    pub weight: Param<Tensor<4>>,
    /// `[O]`
    pub bias: Param<Tensor<1>>,
}

impl Downsample {
    /// Builds the convolution.
    pub fn init(config: &VisionConfig, device_spec: &DeviceSpec) -> Self {
        let side = config.spatial_merge_size;
        let device = &device_spec.device;
        Self {
            weight: normal([config.out_hidden_size, config.hidden_size, side, side], device),
            bias: zeros([config.out_hidden_size], device),
        }
    }

    /// Joins the patches of each block; they lie side by side already, so it is one matrix product.
    ///
    /// # Shapes
    ///
    /// - x: `[P, H]`
    /// - output: `[N, O]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val();
        let [out, hidden, side, _] = weight.dims();
        let block = side * side * hidden;
        let patches = x.dims()[0];
        let weight = weight.permute([0, 2, 3, 1]).reshape([out, block]); // rows of (dy, dx, channel)
        let x = x.reshape([patches / (side * side), block]);
        kernels::linear(x, weight, Some(self.bias.val()))
    }
}

/// Projection and gated feed-forward over tokens.
#[derive(Module, Debug)]
pub struct PatchMerger {
    /// `O -> O`
    pub proj: Linear,
    /// After the projection.
    pub post_projection_norm: LayerNorm,
    /// `O -> F`
    pub gate_proj: Linear,
    /// `O -> F`
    pub up_proj: Linear,
    /// `F -> O`
    pub down_proj: Linear,
}

impl PatchMerger {
    /// Builds the merger.
    pub fn init(config: &VisionConfig, device_spec: &DeviceSpec) -> Self {
        let (hidden, intermediate) = (config.out_hidden_size, config.merger_intermediate_size);
        let linear = |d_input, d_output| LinearConfig::new(d_input, d_output).init(device_spec);
        Self {
            proj: linear(hidden, hidden),
            // torch's default epsilon: the config's belongs to the RMS norms.
            post_projection_norm: LayerNorm::init(hidden, 1e-5, &device_spec.device),
            gate_proj: linear(hidden, intermediate),
            up_proj: linear(hidden, intermediate),
            down_proj: linear(intermediate, hidden),
        }
    }

    /// Transforms every token on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[N, O]`
    pub fn forward(&self, x: Tensor<2>, pass: &mut VisionForwardContext<'_>) -> Tensor<2> {
        let x = pass.record("proj", self.proj.forward(x));
        let x = pass.record("post_projection_norm", self.post_projection_norm.forward(x));
        let x = pass.record("act1", exact_gelu(x));
        let gate = pass.record("gate_proj", self.gate_proj.forward(x.clone())); // [N, F]
        let up = pass.record("up_proj", self.up_proj.forward(x));
        pass.record("down_proj", self.down_proj.forward(kernels::swiglu(gate, up))) // [N, O]
    }
}

/// GELU with the error function, and with its own derivative.
///
/// Burn's `gelu` is that too, but outside of the CPU its gradient is the one of the approximation by tanh (0.22.1,
/// `gelu_backward` of `burn-backend`): on wgpu all gradients of the vision tower were off by 5e-4 and more. Where
/// gradients are recorded, it is put together from operations that have exact ones, in f32.
fn exact_gelu(x: Tensor<2>) -> Tensor<2> {
    if !x.is_autodiff() {
        return gelu(x);
    }
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let phi = ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5; // the normal distribution function
    (x * phi).cast(dtype)
}
