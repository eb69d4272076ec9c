//! `config.json`, checked.
//!
//! Published files come in two styles: transformers 4 keeps `rope_theta`, `partial_rotary_factor` and
//! `rope_scaling` beside the other keys of `text_config`, transformers 5 gathers them in `rope_parameters`.
//! Both give the same [`Glm4vConfig`]. Every value is checked in `read/`, once; the layers trust it.
//!
//! Differences between the members of the family are plain values (biases, norms, rotary layout), set from the table in
//! `family.rs`. The layers ask for the value, never for the name of the model.

mod error;
mod family;
mod one_or_many;
mod read;
mod text;
mod vision;

pub use error::ConfigError;
pub use family::Architecture;
pub use one_or_many::OneOrMany;
pub use text::{MoeConfig, RotaryLayout, TextConfig, TextRopeConfig};
pub use vision::VisionConfig;

/// The whole network: vision tower, text decoder and the tokens that join them.
#[derive(Debug, Clone, PartialEq)]
pub struct Glm4vConfig {
    /// Member of the family, from `model_type`.
    pub architecture: Architecture,
    /// The text decoder.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Placeholder token of one image embedding, and of one embedding of a video frame (`image_token_id`).
    pub image_token_id: u32,
    /// Placeholder token of a whole video in the prompt, before expansion (`video_token_id`).
    pub video_token_id: u32,
}

impl Glm4vConfig {
    /// A network of some hundred thousand parameters for tests and examples.
    pub fn tiny() -> Self {
        let raw = serde_json::json!({
            "model_type": "glm4v", "image_token_id": 44, "video_token_id": 45,
            "text_config": {
                "vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": [0], "pad_token_id": 0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1]}
            },
            "vision_config": {
                "depth": 2, "hidden_size": 32, "num_heads": 2, "in_channels": 3, "image_size": 16,
                "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 48,
                "intermediate_size": 56, "rms_norm_eps": 1e-5, "hidden_act": "silu"
            }
        });
        Self::from_json(&raw.to_string()).expect("the tiny config passes its own checks")
    }
}
