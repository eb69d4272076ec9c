//! Experts: each token is sent to a few of many feed-forwards.
//!
//! Checkpoint names: `model.language_model.layers.{i}.mlp.{gate,experts,shared_experts}.*`. Source: transformers 5.23,
//! `modeling_glm4v_moe.py`, `Glm4vMoeTextMoE`.
//!
//! Dimensions: `N` tokens, `D` width of the stream, `E` experts, `k` experts a token.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use burn::tensor::module::linear;
use burn::tensor::{DType, TensorData};

use super::mlp::FusedMlp;
use crate::config::MoeConfig;
use crate::matrix::empty;
use crate::mlp::GatedMlp;
use crate::probe::Probe;
use crate::site::Site;

/// Routed and shared experts of a layer.
#[derive(Module, Debug)]
pub struct Experts {
    /// Chooses experts.
    pub gate: Router,
    /// The experts to choose from. Checkpoints keep their gate and up projection apart.
    pub experts: Vec<FusedMlp>,
    /// Sees every token.
    pub shared_experts: GatedMlp,
}

/// Scores experts for tokens.
#[derive(Module, Debug)]
pub struct Router {
    /// `[E, D]`
    pub weight: Param<Tensor<2>>,
    /// Added to scores when experts are chosen, not when they are weighed, `[E]`. Always f32, and no gradient reaches it.
    pub e_score_correction_bias: Param<Tensor<1>>,
    /// How experts are chosen.
    #[module(skip)]
    pub config: MoeConfig,
}

impl Experts {
    /// Builds the layer.
    pub(crate) fn init(width: usize, config: &MoeConfig, site: &Site) -> Self {
        let count = config.n_routed_experts;
        let inner = config.moe_intermediate_size;
        Self {
            gate: Router {
                weight: empty([count, width], &site.device),
                e_score_correction_bias: empty([count], &site.device).set_require_grad(false),
                config: config.clone(),
            },
            experts: (0..count).map(|_| FusedMlp::init(width, inner, site)).collect(),
            shared_experts: GatedMlp::init(width, inner * config.n_shared_experts, false, site),
        }
    }

    /// Sends every token to its experts and adds what the shared ones say.
    ///
    /// An expert computes the tokens that chose it and no others: work grows with `k`, not with `E`.
    ///
    /// # Shapes
    ///
    /// - hidden, output: `[B, S, D]`
    pub(crate) fn forward(&self, hidden: Tensor<3>, probe: &mut Probe) -> Tensor<3> {
        let shape = hidden.dims();
        let [rows, length, width] = shape;
        let tokens = hidden.clone().reshape([rows * length, width]);
        let routed = self.route(tokens, probe).reshape(shape);
        routed + self.shared_experts.forward(hidden, &mut Probe::off())
    }

    /// The weighted sum of what each token's experts say.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[N, D]`
    fn route(&self, tokens: Tensor<2>, probe: &mut Probe) -> Tensor<2> {
        let [count, width] = tokens.dims();
        let device = tokens.device();
        let dtype = tokens.dtype();
        let (choice, weights) = self.gate.forward(tokens.clone(), probe);
        let chosen = self.gate.config.num_experts_per_tok;
        // Gathered by expert, computed, and gathered back: no two experts write to one place, so that sums have one
        // order on every backend. A token's experts come in ascending order, as the reference adds them.
        let mut place = vec![0i32; count * chosen];
        let mut filled = 0;
        let mut parts = Vec::new();
        for (expert, mlp) in self.experts.iter().enumerate() {
            let slots: Vec<usize> =
                (0..count * chosen).filter(|slot| choice[*slot] as usize == expert).collect();
            if slots.is_empty() {
                continue;
            }
            for slot in &slots {
                place[*slot] = filled;
                filled += 1;
            }
            let index = slots.iter().map(|slot| (slot / chosen) as i32).collect();
            parts.push(mlp.forward(tokens.clone().select(0, indices(index, &device))));
        }
        let said = Tensor::cat(parts, 0).select(0, indices(place, &device)); // [N·k, D]
        let said = said.reshape([count, chosen, width]).cast(DType::F32);
        let out = (said * weights.unsqueeze_dim(2)).sum_dim(1).squeeze_dim::<2>(1).cast(dtype);
        probe.keep("mlp.experts", &out);
        out
    }
}

fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

impl Router {
    /// Experts of each token, ascending, `[N · k]` row-major, and their weights.
    ///
    /// Scores are computed in f32 whatever the type of the weights. The choice is made on the host: which experts have
    /// anything to do has to be known there, and ties fall the same way on every backend.
    ///
    /// # Shapes
    ///
    /// - tokens: `[N, D]`
    /// - output: `[N, k]`, differentiable
    fn forward(&self, tokens: Tensor<2>, probe: &mut Probe) -> (Vec<i32>, Tensor<2>) {
        let weight = self.weight.val().cast(DType::F32);
        let logits = linear(tokens.cast(DType::F32), weight.transpose(), None); // [N, E]
        probe.keep("mlp.gate.logits", &logits);
        probe.keep_router(&logits);
        let scores = sigmoid(logits);
        let [count, _] = scores.dims();
        let chosen = self.config.num_experts_per_tok;
        let choice = self.choose(&values(scores.clone().detach()));
        let index = TensorData::new(choice.clone(), [count, chosen]);
        let index = Tensor::<2, Int>::from_data(index, &scores.device());
        let weights = scores.gather(1, index.clone()); // [N, k]
        let weights =
            if self.config.norm_topk_prob { weights.clone() / (weights.sum_dim(1) + 1e-20) } else { weights };
        let weights = weights * self.config.routed_scaling_factor;
        probe.keep("mlp.gate.indices", &index);
        probe.keep("mlp.gate.weights", &weights);
        (choice, weights)
    }

    /// The experts with the highest corrected scores within the best groups, ascending.
    fn choose(&self, scores: &[f32]) -> Vec<i32> {
        let config = &self.config;
        let bias = values(self.e_score_correction_bias.val());
        let size = config.n_routed_experts / config.n_group;
        let mut choice = Vec::new();
        for scores in scores.chunks(config.n_routed_experts) {
            let corrected: Vec<f32> = scores.iter().zip(&bias).map(|(score, bias)| score + bias).collect();
            let of_groups: Vec<f32> = corrected
                .chunks(size)
                .map(|group| best(group, 2, |_| true).iter().map(|expert| group[*expert]).sum())
                .collect();
            let groups = best(&of_groups, config.topk_group, |_| true);
            let mut experts =
                best(&corrected, config.num_experts_per_tok, |expert| groups.contains(&(expert / size)));
            experts.sort_unstable();
            choice.extend(experts.into_iter().map(|expert| expert as i32));
        }
        choice
    }
}

/// Indices of the `count` highest values among those allowed; of equal ones the first.
fn best(values: &[f32], count: usize, allowed: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|index| allowed(*index)).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(count);
    order
}

/// A tensor's numbers on the host.
fn values<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_to_vec().expect("a tensor cast to f32 holds f32")
}

/// How unevenly tokens are spread over experts: 1 if evenly, more if not, as a number that can be added to the loss.
///
/// `logits` are those of all layers ([`Probe::into_routers`](crate::Probe::into_routers)), `[N, E]` each, and `real` is false
/// where a token is padding. Source: Fedus et al., "Switch Transformers" (2021), equations 4 to 6; transformers,
/// `load_balancing_loss_func`, which takes a softmax here although routing takes a sigmoid, and does not multiply by the
/// coefficient.
pub fn load_balancing_loss(logits: &[Tensor<2>], real: &[bool], chosen: usize) -> Option<Tensor<1>> {
    let first = logits.first()?;
    let [_, experts] = first.dims();
    let device = first.device();
    let count = (real.iter().filter(|real| **real).count() * logits.len()).max(1) as f64;
    let mask: Vec<f32> = real.iter().map(|real| f32::from(u8::from(*real))).collect();
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [real.len(), 1]), (&device, DType::F32));
    let mut times = vec![0.0f32; experts];
    let mut shares: Option<Tensor<1>> = None;
    for logits in logits {
        let host = values(logits.clone().detach());
        for (row, _) in host.chunks(experts).zip(real).filter(|(_, real)| **real) {
            for expert in best(row, chosen, |_| true) {
                times[expert] += 1.0;
            }
        }
        let share = burn::tensor::activation::softmax(logits.clone(), 1) * mask.clone();
        let share = share.sum_dim(0).squeeze_dim::<1>(0);
        shares = Some(match shares {
            Some(sum) => sum + share,
            None => share,
        });
    }
    let times = Tensor::<1>::from_data(TensorData::new(times, [experts]), (&device, DType::F32)) / count;
    Some((times * (shares? / count)).sum() * experts as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_come_first_and_of_equals_the_earlier() {
        assert_eq!(best(&[0.1, 0.7, 0.7, 0.9], 3, |_| true), [3, 1, 2]);
        assert_eq!(best(&[0.1, 0.7, 0.7, 0.9], 2, |index| index < 3), [1, 2]);
    }
}
