//! From patches to tokens: 2x2 patches become one vector of the text decoder's width.
//!
//! Checkpoint names: `model.visual.downsample.*`, `model.visual.merger.*`.
//!
//! Dimensions: `P` patches, `H` width of the patch stream, `m` side of a block, `N = P / m²` tokens, `O` width of a
//! token, `F` width inside the gate.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::activation::{gelu, silu};
use burn::tensor::module::linear;

use crate::config::VisionConfig;
use crate::linear::{Linear, LinearConfig};
use crate::matrix::empty;
use crate::norm::LayerNorm;
use crate::probe::Probe;
use crate::site::Site;

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
    pub(crate) fn init(config: &VisionConfig, site: &Site) -> Self {
        let side = config.spatial_merge_size;
        let device = &site.device;
        Self {
            weight: empty([config.out_hidden_size, config.hidden_size, side, side], device),
            bias: empty([config.out_hidden_size], device),
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
        linear(x, weight.transpose(), Some(self.bias.val()))
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
    pub(crate) fn init(config: &VisionConfig, site: &Site) -> Self {
        let (width, inner) = (config.out_hidden_size, config.merger_intermediate_size);
        let linear = |d_input, d_output| LinearConfig::new(d_input, d_output).init(site);
        Self {
            proj: linear(width, width),
            // torch's default epsilon: the config's belongs to the RMS norms.
            post_projection_norm: LayerNorm::init(width, 1e-5, &site.device),
            gate_proj: linear(width, inner),
            up_proj: linear(width, inner),
            down_proj: linear(inner, width),
        }
    }

    /// Transforms every token on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[N, O]`
    pub(crate) fn forward(&self, x: Tensor<2>, probe: &mut Probe) -> Tensor<2> {
        probe.enter("merger");
        let x = self.proj.forward(x);
        probe.keep("proj", &x);
        let x = self.post_projection_norm.forward(x);
        probe.keep("post_projection_norm", &x);
        let x = exact_gelu(x);
        probe.keep("act1", &x);
        let gate = self.gate_proj.forward(x.clone()); // [N, F]
        probe.keep("gate_proj", &gate);
        let up = self.up_proj.forward(x);
        probe.keep("up_proj", &up);
        let out = self.down_proj.forward(silu(gate) * up); // [N, O]
        probe.keep("down_proj", &out);
        probe.output(&out);
        probe.leave();
        out
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
    let share = ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    (x * share).cast(dtype)
}
