//! `text_config`: from keys to checked values.

use super::check::{
    MAX_COUNT, MAX_VOCAB, MAX_WIDTH, check, check_activation, epsilon, initializer_range, required, size,
};
use super::experts::experts;
use super::raw::RawText;
use super::rope::text_rope;
use crate::config::error::ConfigError;
use crate::config::family::TextFamily;
use crate::config::one_or_many::OneOrMany;
use crate::config::text::TextConfig;

/// Sizes of the attention, which depend on each other.
struct AttentionSizes {
    hidden_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

pub(super) fn text_config(text: RawText, family: &TextFamily) -> Result<TextConfig, ConfigError> {
    let AttentionSizes { hidden_size, heads, kv_heads, head_dim } = attention_sizes(&text, family)?;
    check_activation(text.hidden_act.as_deref(), "text_config.hidden_act")?;
    let vocab_size = size(text.vocab_size, "text_config.vocab_size", MAX_VOCAB)?;
    check_pad_token(text.pad_token_id, vocab_size)?;
    Ok(TextConfig {
        vocab_size,
        hidden_size,
        intermediate_size: size(text.intermediate_size, "text_config.intermediate_size", MAX_WIDTH)?,
        fused_gate_up: family.fused_gate_up,
        moe: family.experts.then(|| experts(&text)).transpose()?,
        num_hidden_layers: size(text.num_hidden_layers, "text_config.num_hidden_layers", MAX_COUNT)?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        attention_bias: family.attention_bias(text.attention_bias),
        o_proj_bias: family.o_proj_bias,
        qk_norm: family.qk_norm,
        sandwich_norms: family.sandwich_norms,
        max_position_embeddings: required(
            text.max_position_embeddings,
            "text_config.max_position_embeddings",
            "an integer",
        )?,
        rms_norm_eps: epsilon(text.rms_norm_eps, "text_config.rms_norm_eps")?,
        rope: text_rope(&text, head_dim, family)?,
        tie_word_embeddings: text.tie_word_embeddings.unwrap_or(false),
        pad_token_id: text.pad_token_id,
        initializer_range: initializer_range(text.initializer_range, "text_config.initializer_range")?,
        eos_token_id: text.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
    })
}

fn attention_sizes(text: &RawText, family: &TextFamily) -> Result<AttentionSizes, ConfigError> {
    let hidden_size = size(text.hidden_size, "text_config.hidden_size", MAX_WIDTH)?;
    let heads = size(text.num_attention_heads, "text_config.num_attention_heads", MAX_COUNT)?;
    let kv_heads = size(
        text.num_key_value_heads.or(text.num_attention_heads),
        "text_config.num_key_value_heads",
        MAX_COUNT,
    )?;
    let head_dim = match text.head_dim {
        Some(_) if family.reads_head_dim => configured_head_dim(text)?,
        _ => derived_head_dim(hidden_size, heads)?,
    };
    check(
        heads.is_multiple_of(kv_heads),
        "text_config.num_key_value_heads",
        kv_heads,
        format!("a divisor of text_config.num_attention_heads, {heads}"),
    )?;
    Ok(AttentionSizes { hidden_size, heads, kv_heads, head_dim })
}

// RoPE rotates pairs of dimensions, so that a head has an even number of them.

fn configured_head_dim(text: &RawText) -> Result<usize, ConfigError> {
    let head_dim = size(text.head_dim, "text_config.head_dim", 1 << 14)?;
    check(head_dim.is_multiple_of(2), "text_config.head_dim", head_dim, "an even number")?;
    Ok(head_dim)
}

fn derived_head_dim(hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    let key = "text_config.num_attention_heads";
    check(
        hidden_size.is_multiple_of(heads),
        key,
        heads,
        format!("a divisor of text_config.hidden_size, {hidden_size}"),
    )?;
    check(
        (hidden_size / heads).is_multiple_of(2),
        key,
        heads,
        format!("a number that leaves heads of an even width of text_config.hidden_size, {hidden_size}"),
    )?;
    Ok(hidden_size / heads)
}

fn check_pad_token(pad: Option<u32>, vocab_size: usize) -> Result<(), ConfigError> {
    let Some(pad) = pad else { return Ok(()) };
    check(
        (pad as usize) < vocab_size,
        "text_config.pad_token_id",
        pad,
        format!("less than text_config.vocab_size, {vocab_size}"),
    )
}
