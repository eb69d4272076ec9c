//! The vision tower: patches of images and video frames in, tokens for the text decoder out.
//!
//! Checkpoint names: `model.visual.*`. Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vVisionModel`.
//!
//! Dimensions: `P` patches of all frames, `V` values a patch, `H` width of the stream, `N` tokens, `O` their width.

mod attention;
mod block;
mod embed;
mod merger;

pub use attention::VisionAttention;
pub use block::VisionBlock;
pub use embed::{PatchEmbed, PatchProjection, PositionEmbedding, PositionTable};
pub use merger::{Downsample, PatchMerger};

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::batch::Patches;
use crate::config::VisionConfig;
use crate::norm::RmsNorm;
use crate::probe::Probe;
use crate::rope::RotaryTable;
use crate::site::Site;
use attention::FrameRun;

/// Patches to tokens.
#[derive(Module, Debug)]
pub struct VisionTower {
    /// Pixels to the stream.
    pub patch_embed: PatchEmbed,
    /// Learned positions.
    pub embeddings: Option<PositionEmbedding>,
    /// After the patch map.
    pub post_conv_layernorm: Option<RmsNorm>,
    /// The blocks.
    pub blocks: Vec<VisionBlock>,
    /// After the blocks.
    pub post_layernorm: RmsNorm,
    /// Blocks of patches to tokens.
    pub downsample: Downsample,
    /// Tokens to the text decoder's space.
    pub merger: PatchMerger,
    /// Side of a block of patches.
    pub spatial_merge_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

impl VisionTower {
    /// Builds the tower.
    pub(crate) fn init(config: &VisionConfig, site: &Site) -> Self {
        let device = &site.device;
        let norm = || RmsNorm::init(config.hidden_size, config.rms_norm_eps, device);
        Self {
            patch_embed: PatchEmbed::init(config, device),
            embeddings: config.learned_positions.then(|| PositionEmbedding::init(config, device)),
            post_conv_layernorm: config.learned_positions.then(norm),
            blocks: (0..config.depth).map(|_| VisionBlock::init(config, site)).collect(),
            post_layernorm: norm(),
            downsample: Downsample::init(config, site),
            merger: PatchMerger::init(config, site),
            spatial_merge_size: config.spatial_merge_size,
            rope_theta: config.rope_theta,
        }
    }

    /// Encodes images; each frame of a video is an image of its own.
    ///
    /// # Shapes
    ///
    /// - patches: `[P, V]` values
    /// - output: `[N, O]`, the tokens of all images in order
    pub fn forward(&self, patches: &Patches, probe: &mut Probe) -> Tensor<2> {
        let device = self.post_layernorm.weight.device();
        let count = patches.count();
        let values = patches.values.len() / count.max(1);
        let pixels = TensorData::new(patches.values.clone(), [count, values]);
        let pixels = Tensor::<2>::from_data(pixels, (&device, DType::F32));
        probe.enter("vision");
        let mut x = self.patch_embed.forward(pixels); // [P, H]
        probe.keep("patch_embed", &x);
        if let Some(norm) = &self.post_conv_layernorm {
            x = norm.forward(x);
            probe.keep("post_conv_layernorm", &x);
        }
        let [_, hidden] = x.dims();
        let head_dim = self.blocks.first().map_or(4, |block| hidden / block.attn.num_heads);
        let rotary =
            RotaryTable::vision(head_dim, self.rope_theta, self.spatial_merge_size, &patches.grids, &device);
        if probe.is_on() {
            probe.keep("rotary.cos", &rotary.cos.clone().squeeze_dim::<2>(1));
            probe.keep("rotary.sin", &unsigned_sines(&rotary.sin));
        }
        if let Some(embeddings) = &self.embeddings {
            x = embeddings.forward(x, &patches.grids);
            probe.keep("embeddings", &x);
        }
        let runs = FrameRun::of(&patches.grids);
        for (index, block) in self.blocks.iter().enumerate() {
            probe.enter_block("blocks", index);
            x = block.forward(x, &rotary, &runs, probe);
            probe.output(&x);
            probe.leave();
        }
        let x = self.post_layernorm.forward(x);
        probe.keep("post_layernorm", &x);
        let x = self.downsample.forward(x); // [N, O]
        probe.keep("downsample", &x);
        let x = self.merger.forward(x, probe);
        probe.leave();
        x
    }
}

/// The sines as the reference keeps them, `[P, Dh]`: our table has the sign of the rotation in it.
fn unsigned_sines(table: &Tensor<3>) -> Tensor<2> {
    let table = table.clone().squeeze_dim::<2>(1);
    let half = table.dims()[1] / 2;
    let positive = table.narrow(1, half, half);
    Tensor::cat(vec![positive.clone(), positive], 1)
}
