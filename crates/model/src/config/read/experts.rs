//! Mixture of experts of `text_config`.

use super::check::{MAX_COUNT, MAX_WIDTH, check, size};
use super::raw::RawText;
use crate::config::error::ConfigError;
use crate::config::text::MoeConfig;

/// Experts and groups of the router.
struct RouterOutput {
    experts: usize,
    experts_per_tok: usize,
    groups: usize,
    topk_group: usize,
}

pub(super) fn experts(text: &RawText) -> Result<MoeConfig, ConfigError> {
    let routing = routing(text)?;
    let factor = text.routed_scaling_factor.unwrap_or(1.0);
    check(factor.is_finite(), "text_config.routed_scaling_factor", factor, "a finite number")?;
    Ok(MoeConfig {
        first_k_dense_replace: text.first_k_dense_replace.unwrap_or(1),
        n_routed_experts: routing.experts,
        num_experts_per_tok: routing.experts_per_tok,
        n_shared_experts: size(text.n_shared_experts.or(Some(1)), "text_config.n_shared_experts", 64)?,
        moe_intermediate_size: size(
            text.moe_intermediate_size,
            "text_config.moe_intermediate_size",
            MAX_WIDTH,
        )?,
        n_group: routing.groups,
        topk_group: routing.topk_group,
        norm_topk_prob: text.norm_topk_prob.unwrap_or(true),
        routed_scaling_factor: factor,
    })
}

fn routing(text: &RawText) -> Result<RouterOutput, ConfigError> {
    let experts = size(text.n_routed_experts, "text_config.n_routed_experts", MAX_COUNT)?;
    let experts_per_tok = size(text.num_experts_per_tok, "text_config.num_experts_per_tok", MAX_COUNT)?;
    let groups = size(text.n_group.or(Some(1)), "text_config.n_group", MAX_COUNT)?;
    let topk_group = size(text.topk_group.or(Some(1)), "text_config.topk_group", MAX_COUNT)?;
    check(
        !text.use_qk_norm.unwrap_or(false),
        "text_config.use_qk_norm",
        "true",
        "false: no published checkpoint normalises queries and keys here",
    )?;
    check(
        // The score of a group is the sum of its two best experts.
        experts.is_multiple_of(groups) && experts / groups >= 2,
        "text_config.n_group",
        groups,
        format!("a divisor of text_config.n_routed_experts, {experts}, that leaves groups of two or more"),
    )?;
    check(
        topk_group <= groups,
        "text_config.topk_group",
        topk_group,
        format!("at most text_config.n_group, {groups}"),
    )?;
    let eligible = topk_group * (experts / groups);
    check(
        experts_per_tok <= eligible,
        "text_config.num_experts_per_tok",
        experts_per_tok,
        format!("at most the {eligible} experts of the groups that are kept"),
    )?;
    Ok(RouterOutput { experts, experts_per_tok, groups, topk_group })
}
