//! One block of the vision tower.
//!
//! Checkpoint names: `model.visual.blocks.{i}.*`.
//!
//! Dimensions: `P` patches, `D` width of the stream.

use burn::prelude::*;

use super::attention::{FrameRun, VisionAttention};
use crate::config::VisionConfig;
use crate::mlp::GatedMlp;
use crate::norm::RmsNorm;
use crate::probe::Probe;
use crate::rope::RotaryTable;
use crate::site::Site;

/// Pre-norm block: attention within frames, then a gated feed-forward.
#[derive(Module, Debug)]
pub struct VisionBlock {
    /// Before the attention.
    pub norm1: RmsNorm,
    /// Attention within frames.
    pub attn: VisionAttention,
    /// Before the feed-forward.
    pub norm2: RmsNorm,
    /// Feed-forward.
    pub mlp: GatedMlp,
}

impl VisionBlock {
    /// Builds the block.
    pub(crate) fn init(config: &VisionConfig, site: &Site) -> Self {
        let width = config.hidden_size;
        let norm = || RmsNorm::init(width, config.rms_norm_eps, &site.device);
        Self {
            norm1: norm(),
            attn: VisionAttention::init(config, site),
            norm2: norm(),
            mlp: GatedMlp::init(width, config.block_intermediate_size, config.block_bias, site),
        }
    }

    /// Transforms the stream.
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
        let normal = self.norm1.forward(x.clone());
        probe.keep_inside("norm1", &normal);
        let mixed = self.attn.forward(normal, rotary, runs, probe);
        probe.keep_inside("attn", &mixed);
        let x = x + mixed;
        let normal = self.norm2.forward(x.clone());
        probe.keep_inside("norm2", &normal);
        let fed = self.mlp.forward(normal, probe);
        probe.keep_inside("mlp", &fed);
        x + fed
    }
}
