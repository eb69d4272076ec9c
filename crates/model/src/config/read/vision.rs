//! `vision_config`: from keys to checked values.

use super::check::{
    MAX_COUNT, MAX_WIDTH, check, check_activation, epsilon, initializer_range, invalid, size,
};
use super::raw::{RawVision, Side};
use super::rope::vision_rope_theta;
use crate::config::error::ConfigError;
use crate::config::family::VisionFamily;
use crate::config::vision::VisionConfig;

pub(super) fn vision_config(vision: RawVision, family: &VisionFamily) -> Result<VisionConfig, ConfigError> {
    check_activation(vision.hidden_act.as_deref(), "vision_config.hidden_act")?;
    let rope_theta = vision_rope_theta(&vision)?;
    let image_size = square_side(vision.image_size, "vision_config.image_size", MAX_WIDTH)?;
    let patch_size = square_side(vision.patch_size, "vision_config.patch_size", 1024)?;
    let in_channels = size(vision.in_channels.or(Some(3)), "vision_config.in_channels", 16)?;
    let out_hidden_size = size(vision.out_hidden_size, "vision_config.out_hidden_size", MAX_WIDTH)?;
    let intermediate_size = size(vision.intermediate_size, "vision_config.intermediate_size", MAX_WIDTH)?;
    let [block_intermediate_size, merger_intermediate_size] =
        family.intermediate_size.of_blocks_and_merger(intermediate_size, out_hidden_size, in_channels);
    let bias = vision.attention_bias.unwrap_or(family.attention_bias);
    let config = VisionConfig {
        depth: size(vision.depth, "vision_config.depth", MAX_COUNT)?,
        hidden_size: size(vision.hidden_size, "vision_config.hidden_size", MAX_WIDTH)?,
        num_heads: size(vision.num_heads, "vision_config.num_heads", MAX_COUNT)?,
        in_channels,
        image_size,
        patch_size,
        temporal_patch_size: size(vision.temporal_patch_size, "vision_config.temporal_patch_size", 64)?,
        spatial_merge_size: size(vision.spatial_merge_size, "vision_config.spatial_merge_size", 64)?,
        out_hidden_size,
        block_intermediate_size,
        merger_intermediate_size,
        qkv_bias: bias,
        block_bias: bias && family.bias_in_blocks,
        qk_norm: family.qk_norm,
        learned_positions: family.learned_positions,
        rope_theta,
        rms_norm_eps: epsilon(vision.rms_norm_eps, "vision_config.rms_norm_eps")?,
        initializer_range: initializer_range(vision.initializer_range, "vision_config.initializer_range")?,
    };
    check_heads(&config, vision.head_dim)?;
    check(
        config.position_side() >= 1,
        "vision_config.image_size",
        config.image_size,
        format!("at least vision_config.patch_size, {}", config.patch_size),
    )?;
    Ok(config)
}

/// A side that is written as one number, or as equal height and width.
fn square_side(value: Option<Side>, key: &'static str, max: usize) -> Result<usize, ConfigError> {
    let side = match value {
        Some(Side::Two([height, width])) if height != width => {
            return invalid(key, format!("{:?}", [height, width]), "one number, or the same one twice");
        }
        Some(Side::One(side) | Side::Two([side, _])) => Some(side),
        None => None,
    };
    size(side, key, max)
}

/// RoPE rotates a quarter of a head's dimensions by row and another by column, each with a partner.
fn check_heads(config: &VisionConfig, head_dim_key: Option<usize>) -> Result<(), ConfigError> {
    let head_dim = config.hidden_size / config.num_heads;
    check(
        head_dim * config.num_heads == config.hidden_size && head_dim.is_multiple_of(4),
        "vision_config.num_heads",
        config.num_heads,
        format!(
            "a divisor of vision_config.hidden_size, {}, that leaves heads of a multiple of four",
            config.hidden_size
        ),
    )?;
    let Some(found) = head_dim_key else { return Ok(()) };
    check(
        found == head_dim,
        "vision_config.head_dim",
        found,
        format!("hidden_size / num_heads, {head_dim}, or no such key"),
    )
}
