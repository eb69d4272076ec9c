//! Rotary position embeddings, in the keys of either version of transformers.

use super::check::{check, invalid};
use super::raw::{RawRope, RawText, RawVision};
use crate::config::error::ConfigError;
use crate::config::family::TextFamily;
use crate::config::text::TextRopeConfig;

/// Base of the frequencies by default.
const ROPE_THETA: f64 = 10000.0;

/// `mrope_section` by default.
const MROPE_SECTION: [usize; 3] = [8, 12, 12];

/// RoPE of the text decoder: keys that are absent in `rope_parameters` are looked up beside it, where transformers 4 has them.
pub(super) fn text_rope(
    text: &RawText,
    head_dim: usize,
    family: &TextFamily,
) -> Result<TextRopeConfig, ConfigError> {
    let none = RawRope::default();
    let rope = text.rope_parameters.as_ref().or(text.rope_scaling.as_ref()).unwrap_or(&none);
    check_type(rope, &["default", "mrope"], "text_config.rope_parameters.rope_type")?;
    let rope_theta = theta(rope, text.rope_theta, "text_config.rope_parameters.rope_theta")?;
    let partial = rope.partial_rotary_factor.or(text.partial_rotary_factor);
    let rotary_dim = rotary_dim(partial.unwrap_or(family.partial_rotary_factor), head_dim)?;
    let mrope_section = Some(mrope_section(rope, rotary_dim)?);
    Ok(TextRopeConfig { layout: family.rotary_layout, rope_theta, rotary_dim, mrope_section })
}

/// Base of the frequencies of the vision tower, the only value of its RoPE.
pub(super) fn vision_rope_theta(vision: &RawVision) -> Result<f64, ConfigError> {
    let none = RawRope::default();
    let rope = vision.rope_parameters.as_ref().unwrap_or(&none);
    check_type(rope, &["axial", "default"], "vision_config.rope_parameters.rope_type")?;
    theta(rope, vision.rope_theta, "vision_config.rope_parameters.rope_theta")
}

/// Accepts the types that need no scaling of frequencies; the first one is the published spelling.
fn check_type(rope: &RawRope, accepted: &[&str], key: &'static str) -> Result<(), ConfigError> {
    if let (Some(new), Some(old)) = (&rope.rope_type, &rope.r#type)
        && new != old
    {
        let found = format!("\"{new}\", and \"type\" beside it is \"{old}\"");
        return invalid(key, found, "the same kind under both names");
    }
    let found = rope.rope_type.as_deref().or(rope.r#type.as_deref()).unwrap_or("default");
    check(accepted.contains(&found), key, format!("\"{found}\""), format!("\"{}\"", accepted[0]))
}

fn theta(rope: &RawRope, beside: Option<f64>, key: &'static str) -> Result<f64, ConfigError> {
    let theta = rope.rope_theta.or(beside).unwrap_or(ROPE_THETA);
    check(theta.is_finite() && theta > 0.0, key, theta, "a positive number")?;
    Ok(theta)
}

fn rotary_dim(partial: f64, head_dim: usize) -> Result<usize, ConfigError> {
    let rotary_dim = (head_dim as f64 * partial) as usize;
    check(
        partial > 0.0 && partial <= 1.0 && rotary_dim >= 2 && rotary_dim.is_multiple_of(2),
        "text_config.rope_parameters.partial_rotary_factor",
        partial,
        format!("a factor that leaves an even number of the head's {head_dim} dimensions"),
    )?;
    Ok(rotary_dim)
}

fn mrope_section(rope: &RawRope, rotary_dim: usize) -> Result<[usize; 3], ConfigError> {
    let found = rope.mrope_section.as_deref().unwrap_or(&MROPE_SECTION);
    let half = rotary_dim / 2;
    let section: [usize; 3] = found.try_into().unwrap_or([0; 3]);
    // Checked: the sum of numbers from an untrusted file may overflow.
    let sum = section.iter().try_fold(0, |sum: usize, count| sum.checked_add(*count));
    check(
        sum == Some(half),
        "text_config.rope_parameters.mrope_section",
        format!("{found:?}"),
        format!("three integers that add up to half the rotary dimensions, {half}"),
    )?;
    Ok(section)
}
