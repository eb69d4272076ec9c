//! Configuration of the text decoder.
//!
//! Everything that distinguishes one pre-norm decoder with rotary positions from another is a value here: the GLM families, but
//! also the classes of Qwen3 (`qk_norm`, no biases) and Llama (`fused_gate_up = false`, half-split RoPE).

/// The text decoder (`text_config`).
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the projections of a dense SwiGLU feed-forward.
    pub intermediate_size: usize,
    /// Whether gate and up projection of a dense feed-forward are one linear layer, `gate_up_proj`, gate first; else there are
    /// `gate_proj` and `up_proj`.
    pub fused_gate_up: bool,
    /// Mixture of experts in place of the dense feed-forward, from a certain layer on.
    pub moe: Option<MoeConfig>,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads (grouped-query attention); a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Bias of `q_proj`, `k_proj` and `v_proj`.
    pub attention_bias: bool,
    /// Bias of `o_proj`.
    pub o_proj_bias: bool,
    /// RMSNorm over each head of queries and keys before RoPE (`q_norm`, `k_norm`).
    pub qk_norm: bool,
    /// Post-norm on each residual branch, beside the pre-norm (sandwich norm).
    pub sandwich_norms: bool,
    /// Longest sequence that the checkpoint was trained for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary position embeddings.
    pub rope: TextRopeConfig,
    /// Tokens that end generation.
    pub eos_token_id: Vec<u32>,
    /// Whether the LM head shares the embedding table. Read from `text_config` or beside it.
    pub tie_word_embeddings: bool,
    /// Padding token; its embedding is zero at random initialization and gets no gradient.
    pub pad_token_id: Option<u32>,
    /// Standard deviation of randomly initialized weights.
    pub initializer_range: f64,
}

impl TextConfig {
    /// Whether layer `index` has experts.
    pub fn has_experts(&self, index: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| index >= moe.first_k_dense_replace)
    }
}

/// Mixture of experts, routed as in DeepSeek-V3: sigmoid scores, groups, a correction bias and shared experts.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Number of layers at the start that keep a dense feed-forward.
    pub first_k_dense_replace: usize,
    /// Experts that the router chooses from.
    pub n_routed_experts: usize,
    /// Routed experts per token, `k`.
    pub num_experts_per_tok: usize,
    /// Experts that every token passes; stored as one feed-forward of their joint width.
    pub n_shared_experts: usize,
    /// Width between the projections of one expert.
    pub moe_intermediate_size: usize,
    /// Groups that the routed experts are divided into.
    pub n_group: usize,
    /// Groups with the highest scores, from which a token's experts are chosen.
    pub topk_group: usize,
    /// Whether the routing weights of a token are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the routing weights, after that division.
    pub routed_scaling_factor: f64,
}

/// Which two dimensions of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryLayout {
    /// `2k` and `2k + 1`, as in GPT-J.
    Interleaved,
    /// `k` and `k + rotary_dim / 2`, as in GPT-NeoX and Llama (`rotate_half`).
    HalfSplit,
}

/// Rotary position embeddings of the text decoder (`rope_parameters`).
#[derive(Debug, Clone, PartialEq)]
pub struct TextRopeConfig {
    /// Which dimensions are rotated together.
    pub layout: RotaryLayout,
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// Rotated dimensions of a head, `int(head_dim · partial_rotary_factor)`; the rest passes through (partial RoPE).
    pub rotary_dim: usize,
    /// Multimodal RoPE: how many frequencies follow the time, row and column position; they add up to `rotary_dim / 2`. `None` is
    /// plain RoPE, for which every token has one position.
    pub mrope_section: Option<[usize; 3]>,
}

impl TextRopeConfig {
    /// For each of the `rotary_dim / 2` frequencies the axis of the position ids that it follows: 0 time, 1 row, 2 column. Plain
    /// RoPE follows axis 0.
    pub fn frequency_axes(&self) -> Vec<usize> {
        let sections = self.mrope_section.unwrap_or([self.rotary_dim / 2, 0, 0]);
        sections.into_iter().enumerate().flat_map(|(axis, count)| std::iter::repeat_n(axis, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_rope_follows_the_first_axis_with_every_frequency() {
        let config = |mrope_section| TextRopeConfig {
            layout: RotaryLayout::HalfSplit,
            rope_theta: 10000.0,
            rotary_dim: 12,
            mrope_section,
        };

        assert_eq!(config(None).frequency_axes(), [0; 6]);
        assert_eq!(config(Some([1, 2, 3])).frequency_axes(), [0, 1, 1, 2, 2, 2]);
    }
}
