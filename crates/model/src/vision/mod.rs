//! The vision tower: patches of images and video frames in, tokens for the text decoder out.
//!
//! Checkpoint names: `model.visual.*`. Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vVisionModel`.
//!
//! Dimensions: `P` patches of all frames, `V` values a patch, `H` hidden size, `N` tokens, `O` output size.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod embed;
pub(crate) mod forward_context;
pub(crate) mod merger;

pub use attention::VisionAttention;
pub use block::VisionBlock;
pub use embed::{PatchEmbed, PatchProjection, PositionEmbedding, PositionEmbeddingWeight};
pub use forward_context::{VisionForwardContext, VisionLayerInputs};
pub use merger::{Downsample, PatchMerger};

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_inputs::{Grid, Patches};

use crate::config::VisionConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::forward_context::ForwardContext;
use crate::nn::norm::RmsNorm;
use crate::nn::recorder::ActivationRecorder;
use crate::nn::rope::{RotaryTable, vision_sines};

/// Patches to the embeddings of placeholder tokens.
#[derive(Module, Debug)]
pub struct VisionTower {
    /// `V -> H`
    pub patch_embed: PatchEmbed,
    /// Learned positions; none in GLM-OCR.
    pub embeddings: Option<PositionEmbedding>,
    /// After the patch embedding; none in GLM-OCR.
    pub post_conv_layernorm: Option<RmsNorm>,
    /// `depth` of them.
    pub blocks: Vec<VisionBlock>,
    /// After the blocks.
    pub post_layernorm: RmsNorm,
    /// `spatial_merge_size²` patches to one token.
    pub downsample: Downsample,
    /// Projection into the text decoder's space.
    pub merger: PatchMerger,
    /// Dimension of an attention head.
    pub head_dim: usize,
    /// Side of a block of merged patches.
    pub spatial_merge_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

impl VisionTower {
    /// Builds the tower with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &VisionConfig, device_spec: &DeviceSpec) -> Self {
        let device = &device_spec.device;
        let norm = || RmsNorm::init(config.hidden_size, config.rms_norm_eps, device);
        Self {
            patch_embed: PatchEmbed::init(config, device),
            embeddings: config.learned_positions.then(|| PositionEmbedding::init(config, device)),
            post_conv_layernorm: config.learned_positions.then(norm),
            blocks: (0..config.depth).map(|_| VisionBlock::init(config, device_spec)).collect(),
            post_layernorm: norm(),
            downsample: Downsample::init(config, device_spec),
            merger: PatchMerger::init(config, device_spec),
            head_dim: config.hidden_size / config.num_heads,
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
    pub fn forward(&self, patches: &Patches, recorder: Option<&mut ActivationRecorder>) -> Tensor<2> {
        let device = self.post_layernorm.weight.device();
        let count = patches.count();
        // max(1): a batch without patches has no row length to divide by.
        let pixels = TensorData::new(patches.values.clone(), [count, patches.values.len() / count.max(1)]);
        let pixels = Tensor::<2>::from_data(pixels, (&device, DType::F32));
        let (theta, merge) = (self.rope_theta, self.spatial_merge_size);
        let context = VisionLayerInputs {
            rotary: RotaryTable::for_vision(self.head_dim, theta, merge, &patches.grids, &device),
            frame_lengths: VisionLayerInputs::frame_lengths(&patches.grids),
        };
        let mut pass = ForwardContext::with_recorder(context, recorder);
        pass.prefix("vision", |pass| {
            let x = self.embed(pixels, &patches.grids, pass); // [P, H]
            let x = self.blocks(x, pass);
            let x = pass.record("post_layernorm", self.post_layernorm.forward(x));
            let x = pass.record("downsample", self.downsample.forward(x)); // [N, O]
            pass.child("merger", |pass| self.merger.forward(x, pass))
        })
    }

    /// Pixels to the residual stream: patch embedding, its norm, learned positions.
    fn embed(&self, pixels: Tensor<2>, grids: &[Grid], pass: &mut VisionForwardContext<'_>) -> Tensor<2> {
        let mut x = pass.record("patch_embed", self.patch_embed.forward(pixels)); // [P, H]
        if let Some(norm) = &self.post_conv_layernorm {
            x = pass.record("post_conv_layernorm", norm.forward(x));
        }
        pass.if_recording(|context, recorder| {
            recorder.record("rotary.cos", &context.rotary.cos.clone().squeeze_dim::<2>(1));
            recorder.record("rotary.sin", &vision_sines(&context.rotary));
        });
        match &self.embeddings {
            Some(embeddings) => pass.record("embeddings", embeddings.forward(x, grids)),
            None => x,
        }
    }

    fn blocks(&self, x: Tensor<2>, pass: &mut VisionForwardContext<'_>) -> Tensor<2> {
        let blocks = self.blocks.iter().enumerate();
        blocks.fold(x, |x, (index, block)| pass.block("blocks", index, |pass| block.forward(x, pass)))
    }
}
