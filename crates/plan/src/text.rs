//! Memory of the text decoder, the LM head and the loss.
//!
//! In training the last feed-forward, the final norm and the LM head run at the positions that carry loss only.
//!
//! Dimensions: `D` hidden size, `Q` width of all query heads, `F` intermediate size, `k` experts per token.

use glm4v_model::{ModelPart, MoeConfig, TextConfig};

use crate::cost_model::{CostModel, F32_BYTES};
use crate::saved::SavedTensors;
use crate::tuning::{AdapterPlace, TuningMode};

/// Linear layers of the attention: `q_proj`, `k_proj`, `v_proj`, `o_proj`.
const ATTENTION_LINEARS: u64 = 4;
/// Linear layers of a feed-forward, and of the shared experts: `gate_proj`, `up_proj`, `down_proj`.
const MLP_LINEARS: u64 = 3;
/// Linear layers of a feed-forward, and of a routed expert: `gate_up_proj`, `down_proj`.
const FUSED_MLP_LINEARS: u64 = 2;

impl CostModel<'_> {
    /// Bytes that decoder, LM head and loss save for the backward pass.
    pub(crate) fn text_saved_activations(&self, tuning: TuningMode) -> u64 {
        let text = &self.config.text;
        let saved = SavedTensors::new(self, tuning, ModelPart::FinalNorm);
        let tokens = self.workload.tokens();
        let last = text.num_hidden_layers - 1;
        let mlps: u64 = (0..last).map(|layer| tokens * mlp_saved_per_token(text, layer, saved)).sum();
        last as u64 * self.text_attention_saved(saved) + mlps + self.last_layer_saved_activations(tuning)
    }

    /// Bytes that the last decoder layer, LM head and loss save: what the backward pass frees before it comes to the layer below.
    pub(crate) fn last_layer_saved_activations(&self, tuning: TuningMode) -> u64 {
        let text = &self.config.text;
        let saved = SavedTensors::new(self, tuning, ModelPart::FinalNorm);
        let d = text.hidden_size as u64;
        let head = saved.rms_norm(d) + saved.weight_factor(d); // final norm; input of the head
        let mlp = mlp_saved_per_token(text, text.num_hidden_layers - 1, saved);
        let loss = self.logits() * F32_BYTES;
        self.text_attention_saved(saved) + self.workload.completions() * (mlp + head) + loss
    }

    /// Bytes that the attention of one layer saves.
    fn text_attention_saved(&self, saved: SavedTensors) -> u64 {
        let text = &self.config.text;
        let rows = self.workload.tokens() * text.num_attention_heads as u64;
        self.workload.tokens() * attention_saved_per_token(text, saved)
            + saved.attention(rows, self.workload.seq_len as u64)
    }

    /// Gradients of activations that exist together within one feed-forward, the largest of all layers: those of the
    /// residual stream, of the norms around the branch, and of what the linear layers take and give.
    pub(crate) fn mlp_gradients(&self) -> u64 {
        let text = &self.config.text;
        let d = text.hidden_size as u64;
        let widest = |layer| match &text.moe {
            // Of the experts together only inputs and outputs, by the tokens that each takes.
            Some(moe) if text.has_experts(layer) => {
                2 * moe.num_experts_per_tok as u64 * d
                    + 3 * (moe.n_shared_experts * moe.moe_intermediate_size) as u64
            }
            _ => 3 * text.intermediate_size as u64,
        };
        let branch = (0..text.num_hidden_layers).map(widest).fold(0, u64::max);
        self.workload.tokens() * (branch + 4 * d) * self.dtype_bytes
    }

    /// Workspace of the decoder's forward pass over the prompt: the larger of attention and feed-forward.
    pub(crate) fn prefill_workspace(&self) -> u64 {
        let (text, bytes) = (&self.config.text, self.dtype_bytes);
        let [d, q, f, rotary] = [
            text.hidden_size,
            text.num_attention_heads * text.head_dim,
            text.intermediate_size,
            2 * text.head_dim,
        ]
        .map(|width| width as u64);
        let residual = 2 * d + rotary; // residual stream, its norm, and the tables of cosines and sines
        let attention = (residual + 5 * q) * bytes + self.activation_copy(4 * q);
        let mlp = match &text.moe {
            Some(moe) => {
                let expert_outputs = 2 * moe.num_experts_per_tok as u64 * d; // by expert, and again by token
                (residual + 3 * f).max(residual + expert_outputs) * bytes + self.activation_copy(d + f)
            }
            None => (residual + 4 * f) * bytes + self.activation_copy(d + 2 * f),
        };
        let prompt = self.workload.tokens() - self.workload.completions();
        let scores = if self.cpu { 0 } else { 2 * self.text_scores() * F32_BYTES };
        (prompt * attention + scores).max(prompt * mlp) + self.weight_copies(2 * f * d)
    }

    /// Workspace of choosing the next token: its logits and two copies of them, in f32.
    pub(crate) fn sampling_workspace(&self) -> u64 {
        3 * (self.workload.batch_size * self.config.text.vocab_size) as u64 * F32_BYTES + self.head_copies()
    }
}

fn attention_saved_per_token(text: &TextConfig, saved: SavedTensors) -> u64 {
    let [d, q, kv] = [
        text.hidden_size,
        text.num_attention_heads * text.head_dim,
        2 * text.num_key_value_heads * text.head_dim,
    ]
    .map(|width| width as u64);
    let heads = saved.tensor(q) + saved.tensor(kv) + saved.tensor(q); // queries; keys and values; input of o_proj
    saved.pre_norm(d)
        + heads
        + post_norm_saved(text, saved)
        + saved.lora(AdapterPlace::TextAttention, ATTENTION_LINEARS)
}

fn mlp_saved_per_token(text: &TextConfig, layer: usize, saved: SavedTensors) -> u64 {
    let dense = saved.swiglu(text.intermediate_size as u64);
    let branch = match &text.moe {
        Some(moe) if text.has_experts(layer) => experts_saved_per_token(text, moe, saved),
        _ if text.fused_gate_up => dense + saved.lora(AdapterPlace::TextFeedForward, FUSED_MLP_LINEARS),
        _ => dense + saved.lora(AdapterPlace::TextFeedForward, MLP_LINEARS),
    };
    saved.pre_norm(text.hidden_size as u64) + branch + post_norm_saved(text, saved)
}

fn post_norm_saved(text: &TextConfig, saved: SavedTensors) -> u64 {
    if text.sandwich_norms { saved.rms_norm(text.hidden_size as u64) } else { 0 }
}

/// Router, the `k` routed experts of a token, and the shared experts.
fn experts_saved_per_token(text: &TextConfig, moe: &MoeConfig, saved: SavedTensors) -> u64 {
    let d = text.hidden_size as u64;
    let [f, k, routed, shared] =
        [moe.moe_intermediate_size, moe.num_experts_per_tok, moe.n_routed_experts, moe.n_shared_experts]
            .map(|size| size as u64);
    // The router computes in f32, so that its input is a copy where the activations are not.
    let copied = saved.trainable && saved.dtype_bytes < F32_BYTES;
    let router = 2 * routed * F32_BYTES + if copied { d * F32_BYTES } else { 0 };
    // Its input, and its output in f32, which the routing weight is multiplied with.
    let expert = saved.tensor(d)
        + saved.swiglu(f)
        + d * F32_BYTES
        + saved.lora(AdapterPlace::TextFeedForward, FUSED_MLP_LINEARS);
    let shared_expert = saved.swiglu(shared * f) + saved.lora(AdapterPlace::TextFeedForward, MLP_LINEARS);
    router + k * expert + shared_expert
}
