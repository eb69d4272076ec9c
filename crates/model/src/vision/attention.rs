//! Attention of the vision tower: within a frame, every patch looks at every other.
//!
//! Checkpoint names: `model.visual.blocks.{i}.attn.*`.
//!
//! Dimensions: `P` patches of all frames, `N` patches of one frame, `H` heads, `Dh` width of a head, `D = H · Dh`.

use burn::prelude::*;

use crate::attention::attend_all;
use crate::batch::Grid;
use crate::config::VisionConfig;
use crate::linear::{Linear, LinearConfig};
use crate::norm::RmsNorm;
use crate::probe::Probe;
use crate::rope::{RotaryTable, rotate_halves};
use crate::site::Site;

/// Self-attention within frames.
#[derive(Module, Debug)]
pub struct VisionAttention {
    /// `D -> 3D`: queries, keys, values.
    pub qkv: Linear,
    /// `D -> D`
    pub proj: Linear,
    /// Over each head's queries.
    pub q_norm: Option<RmsNorm>,
    /// Over each head's keys.
    pub k_norm: Option<RmsNorm>,
    /// `H`
    pub num_heads: usize,
}

/// Neighbouring frames of the same number of patches, which are attended to in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRun {
    /// Frames in the run.
    pub(crate) frames: usize,
    /// Patches of each.
    pub(crate) patches: usize,
}

impl FrameRun {
    /// The runs of a list of grids, in order.
    pub(crate) fn of(grids: &[Grid]) -> Vec<Self> {
        grids
            .chunk_by(|a, b| a.h * a.w == b.h * b.w)
            .map(|run| Self { frames: run.iter().map(|grid| grid.t).sum(), patches: run[0].h * run[0].w })
            .collect()
    }
}

impl VisionAttention {
    /// Builds the layer.
    pub(crate) fn init(config: &VisionConfig, site: &Site) -> Self {
        let width = config.hidden_size;
        let norm = || RmsNorm::init(width / config.num_heads, config.rms_norm_eps, &site.device);
        Self {
            qkv: LinearConfig::new(width, 3 * width).with_bias(config.qkv_bias).init(site),
            proj: LinearConfig::new(width, width).with_bias(config.block_bias).init(site),
            q_norm: config.qk_norm.then(norm),
            k_norm: config.qk_norm.then(norm),
            num_heads: config.num_heads,
        }
    }

    /// Mixes the patches of each frame.
    ///
    /// # Shapes
    ///
    /// - x, output: `[P, D]`
    /// - rotary: `[P, 1, Dh]`
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        rotary: &RotaryTable<3>,
        runs: &[FrameRun],
        probe: &mut Probe,
    ) -> Tensor<2> {
        let [patches, width] = x.dims();
        let heads = self.num_heads;
        let head_dim = width / heads;
        let qkv = self.qkv.forward(x); // [P, 3D]
        probe.keep_inside("attn.qkv", &qkv);
        let qkv = qkv.reshape([patches, 3 * heads, head_dim]); // queries, keys, values
        let turned = rotate_halves(self.queries_and_keys(&qkv), rotary); // [P, 2H, Dh]
        let values = qkv.narrow(1, 2 * heads, heads); // [P, H, Dh]
        let mut first = 0;
        let mut parts = Vec::with_capacity(runs.len());
        for run in runs {
            let count = run.frames * run.patches;
            let frames = |x: Tensor<3>, head: usize| {
                x.narrow(0, first, count)
                    .narrow(1, head, heads)
                    .reshape([run.frames, run.patches, heads, head_dim])
                    .swap_dims(1, 2) // [frames, H, N, Dh]
            };
            let mixed = attend_all(
                frames(turned.clone(), 0),
                frames(turned.clone(), heads),
                frames(values.clone(), 0),
            );
            parts.push(mixed.swap_dims(1, 2).reshape([count, width]));
            first += count;
        }
        let out = self.proj.forward(Tensor::cat(parts, 0));
        probe.keep_inside("attn.proj", &out);
        out
    }

    /// Queries and keys side by side, normalised where the layer has norms for them.
    ///
    /// # Shapes
    ///
    /// - qkv: `[P, 3H, Dh]`
    /// - output: `[P, 2H, Dh]`
    fn queries_and_keys(&self, qkv: &Tensor<3>) -> Tensor<3> {
        let heads = self.num_heads;
        let both = qkv.clone().narrow(1, 0, 2 * heads);
        match (&self.q_norm, &self.k_norm) {
            (Some(q_norm), Some(k_norm)) => {
                let q = q_norm.forward(both.clone().narrow(1, 0, heads));
                let k = k_norm.forward(both.narrow(1, heads, heads));
                Tensor::cat(vec![q, k], 1)
            }
            _ => both,
        }
    }
}
