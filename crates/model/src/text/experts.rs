//! Mixture of experts: each token is routed to a few of many feed-forwards.
//!
//! Checkpoint names: `model.language_model.layers.{i}.mlp.{gate,experts,shared_experts}.*`. Source: transformers 5.23,
//! `modeling_glm4v_moe.py`, `Glm4vMoeTextMoE`.
//!
//! Dimensions: `N` tokens, `D` hidden size, `E` experts, `k` experts a token.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use burn::tensor::module::linear;
use burn::tensor::{DType, TensorData};

use super::forward_context::TextForwardContext;
use crate::config::MoeConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::forward_context::ForwardContext;
use crate::nn::mlp::{GateUpMlp, GatedMlp};
use crate::nn::param::{normal, zeros};

/// Routed and shared experts of a layer.
#[derive(Module, Debug)]
pub struct Experts {
    /// Routes tokens to experts.
    pub gate: Router,
    /// Routed experts. Checkpoints store their gate and up projection apart.
    pub experts: Vec<GateUpMlp>,
    /// Sees every token.
    pub shared_experts: GatedMlp,
}

/// Top-k router with sigmoid scores and expert groups.
#[derive(Module, Debug)]
pub struct Router {
    /// `[E, D]`
    pub weight: Param<Tensor<2>>,
    /// Added to scores for the top-k, not for the weights, `[E]`. Always f32, and no gradient reaches it (a buffer in
    /// the reference).
    pub e_score_correction_bias: Param<Tensor<1>>,
    /// Groups, `k` and scaling.
    #[module(skip)]
    pub config: MoeConfig,
}

impl Experts {
    /// Builds the layer with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(hidden_size: usize, config: &MoeConfig, device_spec: &DeviceSpec) -> Self {
        let (count, intermediate) = (config.n_routed_experts, config.moe_intermediate_size);
        let shared = intermediate * config.n_shared_experts;
        Self {
            gate: Router {
                weight: normal([count, hidden_size], &device_spec.device),
                e_score_correction_bias: zeros([count], &device_spec.device).set_require_grad(false),
                config: config.clone(),
            },
            experts: (0..count).map(|_| GateUpMlp::init(hidden_size, intermediate, device_spec)).collect(),
            shared_experts: GatedMlp::init(hidden_size, shared, false, device_spec),
        }
    }

    /// The weighted sum of each token's experts, plus the shared experts.
    ///
    /// An expert computes the tokens that are routed to it and no others: work grows with `k`, not with `E`.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub fn forward(&self, x: Tensor<3>, pass: &mut TextForwardContext<'_>) -> Tensor<3> {
        let shape = x.dims();
        let [rows, length, hidden] = shape;
        let tokens = x.clone().reshape([rows * length, hidden]);
        let (top_k, weights) = self.route(tokens.clone(), pass);
        let routed = self.routed(tokens, &top_k, weights);
        pass.if_recording(|_, recorder| recorder.record_in_every_block("experts", &routed));
        routed.reshape(shape) + pass.child("shared_experts", |pass| self.shared_experts.forward(x, pass))
    }

    /// Experts and weights of each token; leaves router logits where they are wanted.
    fn route(&self, tokens: Tensor<2>, pass: &mut TextForwardContext<'_>) -> (Vec<i32>, Tensor<2>) {
        let RouterOutput { logits, top_k, top_k_index, weights } = self.gate.forward(tokens);
        pass.if_recording(|_, recorder| {
            recorder.record_in_every_block("gate.logits", &logits);
            recorder.record_in_every_block("gate.indices", &top_k_index);
            recorder.record_in_every_block("gate.weights", &weights);
        });
        if let Some(router_logits) = &mut pass.shared.router_logits {
            router_logits.push(logits);
        }
        (top_k, weights)
    }

    /// The weighted sum of each token's experts.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[N, D]`
    /// - top_k: `[N · k]`, row-major
    /// - weights: `[N, k]`
    fn routed(&self, tokens: Tensor<2>, top_k: &[i32], weights: Tensor<2>) -> Tensor<2> {
        let [count, hidden] = tokens.dims();
        let (device, dtype) = (tokens.device(), tokens.dtype());
        let k = self.gate.config.num_experts_per_tok;
        // Gathered by expert, computed, and gathered back: no two experts write to one place, so that sums have one
        // order on every backend. A token's experts come in ascending order, as the reference adds them.
        let mut inverse_permutation = vec![0i32; count * k];
        let mut filled = 0;
        let mut outputs = Vec::new();
        for (index, expert) in self.experts.iter().enumerate() {
            let own: Vec<usize> = (0..count * k).filter(|at| top_k[*at] as usize == index).collect();
            if own.is_empty() {
                continue;
            }
            for at in &own {
                inverse_permutation[*at] = filled;
                filled += 1;
            }
            let token_of = own.iter().map(|at| (at / k) as i32).collect();
            let own = tokens.clone().select(0, indices(token_of, &device));
            outputs.push(expert.forward(own, &mut ForwardContext::<()>::default()));
        }
        let outputs = Tensor::cat(outputs, 0).select(0, indices(inverse_permutation, &device)); // [N·k, D]
        let outputs = outputs.reshape([count, k, hidden]).cast(DType::F32); // f32: summed as the reference
        (outputs * weights.unsqueeze_dim(2)).sum_dim(1).squeeze_dim::<2>(1).cast(dtype)
    }
}

fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Where tokens go, and with which weight.
#[derive(Debug, Clone)]
pub struct RouterOutput {
    /// Before the sigmoid, `[N, E]`, f32.
    pub logits: Tensor<2>,
    /// Experts of each token, ascending, `[N · k]` row-major, on the host.
    pub top_k: Vec<i32>,
    /// The same on the device, `[N, k]`.
    pub top_k_index: Tensor<2, Int>,
    /// Weights of these experts, `[N, k]`, f32 and differentiable.
    pub weights: Tensor<2>,
}

impl Router {
    /// Routes each token to its experts.
    ///
    /// Scores are computed in f32 whatever the type of the weights. The top-k is taken on the host: which experts have
    /// anything to do has to be known there, and ties fall the same way on every backend.
    ///
    /// # Shapes
    ///
    /// - tokens: `[N, D]`
    pub fn forward(&self, tokens: Tensor<2>) -> RouterOutput {
        // Not the layer's own type: two experts a bf16 rounding apart would swap places.
        let weight = self.weight.val().cast(DType::F32);
        let logits = linear(tokens.cast(DType::F32), weight.transpose(), None); // [N, E]
        let scores = sigmoid(logits.clone());
        let [count, _] = scores.dims();
        let k = self.config.num_experts_per_tok;
        let top_k = self.top_k(&to_host(scores.clone().detach()));
        let top_k_index = TensorData::new(top_k.clone(), [count, k]);
        let top_k_index = Tensor::<2, Int>::from_data(top_k_index, &scores.device());
        let weights = scores.gather(1, top_k_index.clone()); // [N, k]
        let weights =
            if self.config.norm_topk_prob { weights.clone() / (weights.sum_dim(1) + 1e-20) } else { weights };
        let weights = weights * self.config.routed_scaling_factor;
        RouterOutput { logits, top_k, top_k_index, weights }
    }

    /// The experts with the highest corrected scores within the best groups, ascending.
    fn top_k(&self, scores: &[f32]) -> Vec<i32> {
        let config = &self.config;
        let bias = to_host(self.e_score_correction_bias.val());
        let size = config.n_routed_experts / config.n_group;
        let mut all = Vec::new();
        for scores in scores.chunks(config.n_routed_experts) {
            let corrected: Vec<f32> = scores.iter().zip(&bias).map(|(score, bias)| score + bias).collect();
            let group_scores: Vec<f32> = corrected
                .chunks(size)
                .map(|group| highest(group, 2, |_| true).iter().map(|expert| group[*expert]).sum())
                .collect();
            let groups = highest(&group_scores, config.topk_group, |_| true);
            let allowed = |expert: usize| groups.contains(&(expert / size));
            let mut experts = highest(&corrected, config.num_experts_per_tok, allowed);
            // By index, not by score: sums over a token's experts then have the order of the reference.
            experts.sort_unstable();
            all.extend(experts.into_iter().map(|expert| expert as i32));
        }
        all
    }
}

/// Indices of the `count` highest values among those allowed; of equal ones the first.
fn highest(values: &[f32], count: usize, allowed: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|index| allowed(*index)).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(count);
    order
}

fn to_host<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_to_vec().expect("a tensor cast to f32 holds f32")
}

/// Auxiliary loss that is 1 if tokens are spread evenly over experts, and more if not (`load_balancing_loss_func`).
///
/// `router_logits` are `[N, E]` of each layer, and `attention_mask` is false for padding. Source: Fedus et al., "Switch
/// Transformers" (2021), equations 4 to 6; transformers, which takes a softmax here although routing takes a sigmoid. The
/// coefficient is not applied.
pub fn load_balancing_loss(
    router_logits: &[Tensor<2>],
    attention_mask: &[bool],
    num_experts_per_tok: usize,
) -> Option<Tensor<1>> {
    let first = router_logits.first()?;
    let [_, experts] = first.dims();
    let device = first.device();
    let tokens = attention_mask.iter().filter(|token| **token).count();
    let count = (tokens * router_logits.len()).max(1) as f64;
    let mask: Vec<f32> = attention_mask.iter().map(|token| f32::from(u8::from(*token))).collect();
    let mask = TensorData::new(mask, [attention_mask.len(), 1]);
    let mask = Tensor::<2>::from_data(mask, (&device, DType::F32));
    let mut tokens_per_expert = vec![0.0f32; experts];
    let mut probabilities: Option<Tensor<1>> = None;
    for logits in router_logits {
        let host = to_host(logits.clone().detach());
        for (row, _) in host.chunks(experts).zip(attention_mask).filter(|(_, token)| **token) {
            for expert in highest(row, num_experts_per_tok, |_| true) {
                tokens_per_expert[expert] += 1.0;
            }
        }
        // A softmax, although routing uses a sigmoid: so does the reference.
        let layer = burn::tensor::activation::softmax(logits.clone(), 1) * mask.clone();
        let layer = layer.sum_dim(0).squeeze_dim::<1>(0);
        probabilities = Some(match probabilities {
            Some(sum) => sum + layer,
            None => layer,
        });
    }
    let tokens_per_expert = TensorData::new(tokens_per_expert, [experts]);
    let tokens_per_expert = Tensor::<1>::from_data(tokens_per_expert, (&device, DType::F32)) / count;
    Some((tokens_per_expert * (probabilities? / count)).sum() * experts as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_come_first_and_of_equals_the_earlier() {
        assert_eq!(highest(&[0.1, 0.7, 0.7, 0.9], 3, |_| true), [3, 1, 2]);
        assert_eq!(highest(&[0.1, 0.7, 0.7, 0.9], 2, |index| index < 3), [1, 2]);
    }
}
