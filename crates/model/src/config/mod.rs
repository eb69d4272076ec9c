//! `config.json`, checked.
//!
//! Published files come in two styles: transformers 4 keeps `rope_theta`, `partial_rotary_factor` and
//! `rope_scaling` beside the other keys of `text_config`, transformers 5 gathers them in `rope_parameters`.
//! Both give the same [`Glm4vConfig`]. Every value is checked in `read.rs`, once; the layers trust what they get.
//!
//! What differs between the members of the family is said here as plain values (which biases, which norms, which pairs
//! are rotated), set in `read.rs` from `model_type`. The layers ask for the value, never for the name of the model.

mod read;

use std::fmt;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not json.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A value of the wrong type.
    #[error("config.json: key \"{key}\": {source}")]
    Type {
        /// Path of the key, with dots.
        key: String,
        /// What was found, and what was needed.
        source: serde_json::Error,
    },
    /// A key that the network cannot do without.
    #[error("config.json: key \"{key}\" is missing; needed: {needed}")]
    Missing {
        /// Path of the key, with dots.
        key: &'static str,
        /// What it should hold.
        needed: &'static str,
    },
    /// A value that makes no network.
    #[error("config.json: key \"{key}\" is {found}; needed: {needed}")]
    Invalid {
        /// Path of the key, with dots.
        key: &'static str,
        /// The value in the file.
        found: String,
        /// What it should hold.
        needed: String,
    },
}

/// A member of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// GLM-4.1V, GLM-4.6V-Flash, AutoGLM-Phone: `glm4v`, and `glm46v`, the same network with another processor.
    Glm4v,
    /// GLM-4.5V, GLM-4.6V: `glm4v_moe`, experts in the text decoder.
    Glm4vMoe,
    /// GLM-OCR: `glm_ocr`.
    GlmOcr,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glm4v => "glm4v",
            Self::Glm4vMoe => "glm4v_moe",
            Self::GlmOcr => "glm_ocr",
        })
    }
}

/// The whole network: vision tower, text decoder and the tokens that join them.
#[derive(Debug, Clone, PartialEq)]
pub struct Glm4vConfig {
    /// Which member of the family it is (`model_type`).
    pub architecture: Architecture,
    /// The text decoder.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Placeholder of an image feature and of a video frame's feature (`image_token_id`).
    pub image_token_id: u32,
    /// Placeholder of a whole video before it is expanded (`video_token_id`).
    pub video_token_id: u32,
    /// Whether the head uses the embedding table (`tie_word_embeddings`, outer or in `text_config`).
    pub tie_word_embeddings: bool,
}

/// The text decoder (`text_config`).
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gate of a dense feed-forward.
    pub intermediate_size: usize,
    /// Experts in place of the dense feed-forward, in most layers.
    pub moe: Option<MoeConfig>,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves an equal share of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether queries, keys and values have a bias.
    pub attention_bias: bool,
    /// Whether what attention and feed-forward add is normalised once more before the sum.
    pub sandwich_norms: bool,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: TextRopeConfig,
    /// Tokens that end an answer.
    pub eos_token_id: Vec<u32>,
    /// Filler of short rows; its embedding is zero at first and is not trained.
    pub pad_token_id: Option<u32>,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
}

impl TextConfig {
    /// Whether layer `index` has experts.
    pub fn has_experts(&self, index: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| index >= moe.first_k_dense_replace)
    }
}

/// Experts of the text decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Layers at the start that keep a dense feed-forward.
    pub first_k_dense_replace: usize,
    /// Experts that tokens are routed to.
    pub n_routed_experts: usize,
    /// Experts that each token is routed to.
    pub num_experts_per_tok: usize,
    /// Experts that see every token; one feed-forward of their joint width.
    pub n_shared_experts: usize,
    /// Width inside an expert's gate.
    pub moe_intermediate_size: usize,
    /// Groups of experts.
    pub n_group: usize,
    /// Groups that a token may choose its experts from.
    pub topk_group: usize,
    /// Whether the weights of a token's experts are scaled to add up to one.
    pub norm_topk_prob: bool,
    /// What the weights are multiplied with at last.
    pub routed_scaling_factor: f64,
}

/// Which dimensions of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `2k` and `2k + 1`.
    Neighbours,
    /// `k` and `k + rotary_dim / 2`.
    Halves,
}

/// Rotary positions of the text decoder (`rope_parameters`).
#[derive(Debug, Clone, PartialEq)]
pub struct TextRopeConfig {
    /// Which dimensions turn together.
    pub pairs: RotaryPairs,
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// Rotated dimensions of a head; the rest passes through. `int(head_dim · partial_rotary_factor)`.
    pub rotary_dim: usize,
    /// How many frequencies follow the time, row and column position; they add up to `rotary_dim / 2`.
    pub mrope_section: [usize; 3],
}

/// The vision tower (`vision_config`).
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Transformer blocks.
    pub depth: usize,
    /// Width of the patch stream.
    pub hidden_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side in pixels of the square image that the table of learned positions belongs to.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Patches along the side of a block that becomes one token.
    pub spatial_merge_size: usize,
    /// Width of a token handed to the text decoder.
    pub out_hidden_size: usize,
    /// Width inside the gate of a block's feed-forward.
    pub block_intermediate_size: usize,
    /// Width inside the merger's gate.
    pub merger_intermediate_size: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output and the feed-forward have one.
    pub block_bias: bool,
    /// Whether queries and keys are normalised before they are rotated.
    pub qk_norm: bool,
    /// Whether patches are normalised after their embedding, and get a learned position.
    pub learned_positions: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
}

impl VisionConfig {
    /// Values in a patch: channels x frames x height x width.
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Side of the grid of learned positions.
    pub fn position_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches that become one token.
    pub fn merged_patches(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }
}
