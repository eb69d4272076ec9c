//! Configuration of the vision tower.

/// The vision tower, a ViT, and the merger that follows it (`vision_config`).
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Transformer blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Color channels.
    pub in_channels: usize,
    /// Side in pixels of the square image that the learned position embeddings were made for.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the square block that the merger turns into one token.
    pub spatial_merge_size: usize,
    /// Width of the merger's output: the hidden size of the text decoder.
    pub out_hidden_size: usize,
    /// Width between the projections of a block's SwiGLU feed-forward.
    pub block_intermediate_size: usize,
    /// Width between the projections of the merger's SwiGLU feed-forward.
    pub merger_intermediate_size: usize,
    /// Bias of the blocks' `qkv`.
    pub qkv_bias: bool,
    /// Bias of the blocks' attention output `proj` and of their feed-forward.
    pub block_bias: bool,
    /// RMSNorm over each head of queries and keys before RoPE.
    pub qk_norm: bool,
    /// Learned position embeddings, interpolated to the image's grid, beside RoPE; with them comes a norm after the patch
    /// embedding.
    pub learned_positions: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Standard deviation of randomly initialized weights.
    pub initializer_range: f64,
}

impl VisionConfig {
    /// Values per patch: channels x frames x height x width.
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Side of the grid of learned position embeddings, in patches.
    pub fn position_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches per token.
    pub fn merged_patches(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }
}
