//! Arithmetic and memory traffic of a workload.
//!
//! The matrix products of each part are listed as [`Operation`]s in the order of the forward pass, and change with the blocks in
//! `glm4v-model`. Two operations a multiplication are counted, its addition being the other; norms, softmax, rotary positions and
//! lookups are left out, as in most published figures. Causal attention counts the pairs that it attends to, about half of all.
//!
//! Bytes are the least that has to cross the memory bus: each weight once, experts only as far as tokens can reach them, the KV
//! cache, and in training what is kept between forward and backward pass and the optimizer's state. Activations within a pass are
//! not counted: how many of them stay in caches is what implementations differ in.
//!
//! Dimensions: `D` hidden size, `V` vocabulary size.

use glm4v_model::{ModelPart, MoeConfig, TextConfig, VisionConfig};

use crate::cost_model::{CostModel, F32_BYTES};
use crate::tuning::{AdapterPlace, TuningMode};

/// Least work of one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations of the matrix products.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// An operation that counts, or that decides what a backward pass has to go through.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    /// Rows times a weight.
    Linear(Linear),
    /// Scores, and the sums that they weight: so many multiplications each.
    Attention { multiplications: u64 },
    /// A norm, which has a scale to train.
    Norm(ModelPart),
}

/// A product with a weight `[columns, inner]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    part: ModelPart,
    /// Rows multiplied, over all matrices.
    rows: u64,
    inner: u64,
    columns: u64,
    /// Weights of this shape among which the rows are divided: more than one for routed experts.
    matrices: u64,
    /// What kind of adapter may be on it.
    adapter: AdapterPlace,
    /// Whether its input is that of the linear layer before it, as of `k_proj` after `q_proj`.
    same_input: bool,
}

/// How far a gradient has to go back, while operations are passed in the order of the forward pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tracking {
    /// Whether what was computed so far depends on something that is trained.
    tracked: bool,
    /// The same for the input of the last linear layer.
    input_tracked: bool,
}

impl From<Linear> for Operation {
    fn from(linear: Linear) -> Self {
        Self::Linear(linear)
    }
}

impl Linear {
    fn new(part: ModelPart, rows: u64, inner: usize, columns: usize, adapter: AdapterPlace) -> Self {
        Self {
            part,
            rows,
            inner: inner as u64,
            columns: columns as u64,
            matrices: 1,
            adapter,
            same_input: false,
        }
    }

    fn with_same_input(self) -> Self {
        Self { same_input: true, ..self }
    }

    fn flops(&self) -> u64 {
        2 * self.rows * self.inner * self.columns
    }

    fn weights(&self) -> u64 {
        self.matrices * self.inner * self.columns
    }

    /// Operations of one factor of an adapter, `width` being that of its other side.
    fn adapter_flops(&self, rank: u64, width: u64) -> u64 {
        2 * self.rows * rank * width
    }
}

impl Operation {
    fn forward_flops(&self, tuning: Option<TuningMode>) -> u64 {
        match self {
            Self::Linear(linear) => {
                let rank = tuning.map_or(0, |tuning| tuning.rank_at(linear.adapter));
                linear.flops() + linear.adapter_flops(rank, linear.inner + linear.columns)
            }
            Self::Attention { multiplications } => 4 * multiplications,
            Self::Norm(_) => 0,
        }
    }

    fn weights(&self) -> u64 {
        match self {
            Self::Linear(linear) => linear.weights(),
            _ => 0,
        }
    }

    fn backward_flops(&self, tuning: TuningMode, tracking: &mut Tracking) -> u64 {
        match self {
            Self::Norm(part) => {
                tracking.tracked |= tuning.trains(*part);
                0
            }
            // Each of the two products has a gradient for both of its factors.
            Self::Attention { multiplications } => {
                if tracking.tracked {
                    8 * multiplications
                } else {
                    0
                }
            }
            Self::Linear(linear) => linear.backward_flops(tuning, tracking),
        }
    }
}

impl Linear {
    fn backward_flops(&self, tuning: TuningMode, tracking: &mut Tracking) -> u64 {
        if !self.same_input {
            tracking.input_tracked = tracking.tracked;
        }
        let rank = tuning.rank_at(self.adapter);
        let trainable = tuning.trains(self.part);
        let into_input =
            if tracking.input_tracked { self.flops() + self.adapter_flops(rank, self.inner) } else { 0 };
        let into_weight = if trainable { self.flops() } else { 0 };
        // Gradients of both factors, and of what lies between them.
        let into_adapter = self.adapter_flops(rank, self.inner + 2 * self.columns);
        tracking.tracked |= trainable || rank > 0;
        into_input + into_weight + into_adapter
    }
}

impl CostModel<'_> {
    /// Least work of the vision tower and the merger over the images of the batch.
    pub fn vision_work(&self) -> Work {
        let operations = self.vision_operations();
        let pixels = self.workload.patches() * self.config.vision.patch_values() as u64 * F32_BYTES;
        let output = self.image_tokens() * self.config.vision.out_hidden_size as u64 * self.dtype_bytes;
        self.forward_work(&operations, pixels + output)
    }

    /// Least work of the text decoder over the prompts of the batch, with logits of the last position of each.
    ///
    /// The prompt is the whole sequence, and the vision tower is no part of it.
    pub fn prefill_work(&self) -> Work {
        let (tokens, rows) = (self.workload.tokens(), self.workload.batch_size as u64);
        let operations = self.text_operations(tokens, rows, self.causal_pairs());
        let logits = rows * self.config.text.vocab_size as u64 * F32_BYTES;
        let cache = tokens * self.kv_cache_bytes_per_token();
        self.forward_work(&operations, cache + logits + self.embedding_rows(tokens))
    }

    /// Least work of one more token for each row, after `depth` positions.
    pub fn decode_work(&self, depth: usize) -> Work {
        let rows = self.workload.batch_size as u64;
        let keys = rows * (depth as u64 + 1);
        let operations = self.text_operations(rows, rows, keys);
        let logits = rows * self.config.text.vocab_size as u64 * F32_BYTES;
        let cache = (keys + rows) * self.kv_cache_bytes_per_token(); // all read, the new ones written
        self.forward_work(&operations, cache + logits + self.embedding_rows(rows))
    }

    /// Least work of a training step: forward pass, backward pass and update, without recomputation.
    pub fn training_work(&self, tuning: TuningMode) -> Work {
        let vision = self.vision_operations();
        let text =
            self.text_operations(self.workload.tokens(), self.workload.completions(), self.causal_pairs());
        let forward: u64 =
            vision.iter().chain(&text).map(|operation| operation.forward_flops(Some(tuning))).sum();
        let mut tracking = Tracking::default();
        let mut backward: u64 =
            vision.iter().map(|operation| operation.backward_flops(tuning, &mut tracking)).sum();
        tracking.tracked |= tuning.trains(ModelPart::Embeddings);
        backward += text.iter().map(|operation| operation.backward_flops(tuning, &mut tracking)).sum::<u64>();
        Work { flops: forward + backward, bytes: self.training_bytes(tuning, &vision, &text) }
    }

    fn training_bytes(&self, tuning: TuningMode, vision: &[Operation], text: &[Operation]) -> u64 {
        let weights: u64 = vision.iter().chain(text).map(Operation::weights).sum();
        let trainable = tuning.trainable_params(self.params, self.workload.patches() > 0).total();
        // Weights are read forward and backward, and updated; gradients are written and read once.
        let passes = 2 * weights * self.dtype_bytes;
        let update = trainable * (2 * self.dtype_bytes + 2 * self.dtype_bytes);
        let state = 2 * 2 * trainable * F32_BYTES;
        let masters = if self.dtype_bytes < F32_BYTES { 2 * trainable * F32_BYTES } else { 0 };
        passes + update + state + masters + 2 * self.saved_activation_bytes(tuning)
    }

    fn forward_work(&self, operations: &[Operation], other_bytes: u64) -> Work {
        let weights: u64 = operations.iter().map(Operation::weights).sum();
        Work {
            flops: operations.iter().map(|operation| operation.forward_flops(None)).sum(),
            bytes: weights * self.dtype_bytes + other_bytes,
        }
    }

    fn image_tokens(&self) -> u64 {
        self.workload.patches() / self.config.vision.merged_patches() as u64
    }

    fn embedding_rows(&self, tokens: u64) -> u64 {
        tokens * self.config.text.hidden_size as u64 * self.dtype_bytes
    }

    /// Pairs of a query and a key that it attends to, over all rows.
    fn causal_pairs(&self) -> u64 {
        let length = self.workload.seq_len as u64;
        self.workload.batch_size as u64 * length * (length + 1) / 2
    }

    pub(crate) fn vision_operations(&self) -> Vec<Operation> {
        let patches = self.workload.patches();
        if patches == 0 {
            return Vec::new();
        }
        vision_operations(
            &self.config.vision,
            patches,
            self.workload.patches_per_frame(),
            self.image_tokens(),
        )
    }

    /// Operations over `tokens`, of which `kept` go through the last feed-forward and the head.
    pub(crate) fn text_operations(&self, tokens: u64, kept: u64, pairs: u64) -> Vec<Operation> {
        let text = &self.config.text;
        let last = text.num_hidden_layers - 1;
        let mut operations = Vec::new();
        for layer in 0..text.num_hidden_layers {
            let part = ModelPart::Layer(layer);
            operations.push(Operation::Norm(part));
            operations.extend(text_attention(text, part, tokens, pairs));
            operations.push(Operation::Norm(part));
            let rows = if layer == last { kept } else { tokens };
            operations.extend(feed_forward(text, layer, rows).into_iter().map(Operation::Linear));
        }
        operations.push(Operation::Norm(ModelPart::FinalNorm));
        let head = if text.tie_word_embeddings { ModelPart::Embeddings } else { ModelPart::Head };
        let head = Linear::new(head, kept, text.hidden_size, text.vocab_size, AdapterPlace::Never);
        operations.push(head.into());
        operations
    }
}

fn vision_operations(vision: &VisionConfig, patches: u64, frame: u64, tokens: u64) -> Vec<Operation> {
    let (d, f) = (vision.hidden_size, vision.block_intermediate_size);
    let (o, m) = (vision.out_hidden_size, vision.merger_intermediate_size);
    let tower =
        |inner, columns, adapter| Linear::new(ModelPart::VisionTower, patches, inner, columns, adapter);
    let merger = |inner, columns, adapter| Linear::new(ModelPart::Merger, tokens, inner, columns, adapter);
    let norm = Operation::Norm(ModelPart::VisionTower);
    let block = [
        norm,
        tower(d, 3 * d, AdapterPlace::Vision).into(),
        Operation::Attention { multiplications: patches * frame * d as u64 },
        tower(d, d, AdapterPlace::Vision).into(),
        norm,
        tower(d, f, AdapterPlace::Vision).into(),
        tower(d, f, AdapterPlace::Vision).with_same_input().into(),
        tower(f, d, AdapterPlace::Vision).into(),
    ];
    let mut operations = vec![tower(vision.patch_values(), d, AdapterPlace::Never).into()];
    operations.extend(std::iter::repeat_n(block, vision.depth).flatten());
    operations.extend([
        norm,
        merger(d * vision.merged_patches(), o, AdapterPlace::Never).into(),
        merger(o, o, AdapterPlace::Vision).into(),
        Operation::Norm(ModelPart::Merger),
        merger(o, m, AdapterPlace::Vision).into(),
        merger(o, m, AdapterPlace::Vision).with_same_input().into(),
        merger(m, o, AdapterPlace::Vision).into(),
    ]);
    operations
}

fn text_attention(text: &TextConfig, part: ModelPart, tokens: u64, pairs: u64) -> [Operation; 5] {
    let (d, q) = (text.hidden_size, text.num_attention_heads * text.head_dim);
    let kv = text.num_key_value_heads * text.head_dim;
    let linear = |inner, columns| Linear::new(part, tokens, inner, columns, AdapterPlace::TextAttention);
    let key_or_value = linear(d, kv).with_same_input().into();
    let attention = Operation::Attention { multiplications: pairs * q as u64 };
    [linear(d, q).into(), key_or_value, key_or_value, attention, linear(q, d).into()]
}

fn feed_forward(text: &TextConfig, layer: usize, tokens: u64) -> Vec<Linear> {
    let part = ModelPart::Layer(layer);
    match &text.moe {
        Some(moe) if text.has_experts(layer) => experts(text.hidden_size, moe, part, tokens),
        _ => gated(part, tokens, text.hidden_size, text.intermediate_size, text.fused_gate_up),
    }
}

/// Gate and up projection, then the down projection.
fn gated(part: ModelPart, rows: u64, hidden: usize, intermediate: usize, fused: bool) -> Vec<Linear> {
    let linear = |inner, columns| Linear::new(part, rows, inner, columns, AdapterPlace::TextFeedForward);
    let mut linears = match fused {
        true => vec![linear(hidden, 2 * intermediate)],
        false => vec![linear(hidden, intermediate), linear(hidden, intermediate).with_same_input()],
    };
    linears.push(linear(intermediate, hidden));
    linears
}

/// Router, routed experts and shared experts.
fn experts(hidden: usize, moe: &MoeConfig, part: ModelPart, tokens: u64) -> Vec<Linear> {
    let rows = tokens * moe.num_experts_per_tok as u64;
    let reached = rows.min(moe.n_routed_experts as u64);
    let mut linears = vec![Linear::new(part, tokens, hidden, moe.n_routed_experts, AdapterPlace::Never)];
    let routed = gated(part, rows, hidden, moe.moe_intermediate_size, true).into_iter();
    linears.extend(routed.map(|linear| Linear { matrices: reached, ..linear }));
    linears.extend(gated(part, tokens, hidden, moe.moe_intermediate_size * moe.n_shared_experts, false));
    linears
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::FrozenParts;
    use crate::workload::Workload;
    use glm4v_model::{Backend, Glm4vConfig, Grid, ParamCounts, ParamName, param_infos};

    /// Two rows of 24 tokens, 16 of them of an image of 8x8 patches; 6 labels a row.
    const WORKLOAD: Workload =
        Workload { batch_size: 2, seq_len: 24, completion_tokens: 6, image: Some(Grid { t: 1, h: 8, w: 8 }) };

    struct Network {
        config: Glm4vConfig,
        params: ParamCounts,
    }

    impl Network {
        fn new(config: Glm4vConfig) -> Self {
            let params = config.param_counts(&Backend::Cpu.open().unwrap());
            Self { config, params }
        }

        fn cost(&self) -> CostModel<'_> {
            CostModel {
                config: &self.config,
                params: &self.params,
                dtype_bytes: 4,
                cpu: true,
                workload: WORKLOAD,
            }
        }

        /// Values of the weights that a product multiplies with, by part, and those of routed experts.
        fn weights(&self, part: impl Fn(ModelPart) -> bool) -> [u64; 2] {
            let model = self.config.init(&Backend::Cpu.open().unwrap());
            let mut counts = [0, 0];
            for param in param_infos(&model) {
                let name = ParamName(&param.name);
                let table = param.name.contains("position_embedding");
                if param.shape.num_dims() >= 2 && !table && part(name.part()) {
                    counts[usize::from(name.expert().is_some())] += param.shape.num_elements() as u64;
                }
            }
            counts
        }
    }

    fn experts() -> Glm4vConfig {
        let mut config = Glm4vConfig::tiny();
        config.text.moe = Some(MoeConfig {
            first_k_dense_replace: 1,
            n_routed_experts: 8,
            num_experts_per_tok: 2,
            n_shared_experts: 1,
            moe_intermediate_size: 24,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
        });
        config
    }

    #[test]
    fn the_vision_tower_is_counted_as_by_hand() {
        let tiny = Network::new(Glm4vConfig::tiny());

        let work = tiny.cost().vision_work();

        // 128 patches of 96 values, width 32, feed-forward of 48; two blocks, frames of 64 patches.
        let block = 128 * 32 * 3 * 32 + 128 * 32 * 32 + 3 * 128 * 32 * 48 + 2 * 128 * 64 * 32;
        // 32 tokens of width 48, merger of 56.
        let merger = 32 * 4 * 32 * 48 + 32 * 48 * 48 + 3 * 32 * 48 * 56;
        assert_eq!(work.flops, 2 * (128 * 96 * 32 + 2 * block + merger));
        let weights =
            96 * 32 + 2 * (32 * 3 * 32 + 32 * 32 + 3 * 32 * 48) + (4 * 32 * 48 + 48 * 48 + 3 * 48 * 56);
        assert_eq!(work.bytes, 4 * (weights + 128 * 96 + 32 * 48));
    }

    #[test]
    fn a_decoded_token_is_counted_as_by_hand() {
        let tiny = Network::new(Glm4vConfig::tiny());

        let work = tiny.cost().decode_work(100);

        // q, k, v, o; gate and up, down; two products with 101 keys for four heads of 12.
        let layer = 48 * 48 + 2 * 48 * 24 + 48 * 48 + 48 * 160 + 80 * 48;
        assert_eq!(work.flops, 2 * 2 * (2 * (layer + 2 * 101 * 48) + 48 * 50));
        // 101 keys and values read and one written, in two layers and two rows; logits and embeddings of two rows.
        assert_eq!(
            work.bytes,
            4 * (2 * layer + 48 * 50) + 4 * 2 * 102 * 2 * 2 * 24 + 4 * 2 * 50 + 4 * 2 * 48
        );
    }

    #[test]
    fn products_multiply_with_every_weight_once_a_token() {
        for config in [Glm4vConfig::tiny(), experts()] {
            let network = Network::new(config);
            let products = |operations: Vec<Operation>| -> u64 {
                operations
                    .iter()
                    .filter(|operation| matches!(operation, Operation::Linear(_)))
                    .map(|operation| operation.forward_flops(None))
                    .sum()
            };
            let layers = network.weights(|part| matches!(part, ModelPart::Layer(_)));
            let head = network.weights(|part| part == ModelPart::Head)[0];
            let tower = network.weights(|part| part == ModelPart::VisionTower)[0];
            let merger = network.weights(|part| part == ModelPart::Merger)[0];

            let text = products(network.cost().text_operations(48, 48, 0));
            let vision = products(network.cost().vision_operations());

            let active = layers[0] + layers[1] / 4; // two of eight experts
            assert_eq!(text, 2 * 48 * (active + head));
            assert_eq!(vision, 2 * (128 * tower + 32 * merger));
        }
    }

    #[test]
    fn weights_of_experts_are_read_as_far_as_tokens_reach_them() {
        let network = Network::new(experts());
        let read = |rows: u64| -> u64 {
            network.cost().text_operations(rows, rows, 0).iter().map(Operation::weights).sum()
        };
        let expert = 3 * 48 * 24;

        assert_eq!(read(2) - read(1), 2 * expert);
        assert_eq!(read(48), read(4));
        let [others, routed] = network.weights(|part| matches!(part, ModelPart::Layer(_) | ModelPart::Head));
        assert_eq!(read(48), others + routed);
    }

    #[test]
    fn a_full_backward_pass_is_twice_the_forward_pass_but_for_the_pixels() {
        let network = Network::new(Glm4vConfig::tiny());
        let cost = network.cost();

        let step = cost.training_work(TuningMode::Full).flops;

        let text: u64 = cost
            .text_operations(48, 12, 2 * 24 * 25 / 2)
            .iter()
            .map(|operation| operation.forward_flops(None))
            .sum();
        let forward = cost.vision_work().flops + text;
        let pixels = 2 * 128 * 96 * 32; // have no gradient
        assert_eq!(step, 3 * forward - pixels);
    }

    #[test]
    fn frozen_parts_are_passed_forward_only_unless_a_gradient_goes_through() {
        let network = Network::new(Glm4vConfig::tiny());
        let cost = network.cost();
        let step = |frozen| cost.training_work(TuningMode::Frozen(frozen)).flops;
        let full = cost.training_work(TuningMode::Full).flops;
        let vision = cost.vision_work().flops;
        let none = FrozenParts::default();
        assert_eq!(step(none), full);

        let blind = step(FrozenParts { vision_tower: true, merger: true, ..none });
        let merger_only =
            step(FrozenParts { vision_tower: true, embeddings: true, layers: true, head: true, ..none });

        let pixels = 2 * 128 * 96 * 32;
        assert_eq!(blind, full - (2 * vision - pixels));
        let downsample = 2 * 32 * 4 * 32 * 48; // whose input has no gradient
        let merger = downsample + 2 * 32 * (48 * 48 + 3 * 48 * 56);
        let mut everything = Tracking { tracked: true, input_tracked: true };
        let text: u64 = cost
            .text_operations(48, 12, 2 * 24 * 25 / 2)
            .iter()
            .map(|operation| operation.backward_flops(TuningMode::Frozen(none), &mut everything))
            .sum();
        let attention = 8 * 2 * (2 * 24 * 25 / 2) * 48;
        let into_inputs = (text - attention) / 2 + attention;
        assert_eq!(merger_only, vision + text / 2 + 2 * merger - downsample + into_inputs);
    }

    #[test]
    fn adapters_add_their_own_products_and_skip_the_gradients_of_weights() {
        let network = Network::new(Glm4vConfig::tiny());
        let mut model = network.config.init(&Backend::Cpu.open().unwrap());
        let cost = CostModel {
            workload: Workload { image: None, completion_tokens: 24, ..WORKLOAD },
            ..network.cost()
        };
        let step = |tuning| cost.training_work(tuning).flops;
        let [thin, thick] = [2, 4].map(|rank| TuningMode::lora(&mut model, rank, false)).map(step);
        let attention = step(TuningMode::attention_lora(&mut model, 4));

        // Per token and rank: forward, into the factors, and into the input, which the first three layers lack.
        let widths = |inputs: u64, outputs: u64| (inputs + outputs, inputs);
        let (both, inputs) =
            [widths(48, 48), widths(48, 24), widths(48, 24), widths(48, 48), widths(48, 160), widths(80, 48)]
                .into_iter()
                .fold((0, 0), |sum, (both, inputs)| (sum.0 + both, sum.1 + inputs));
        let first = 3 * 48;
        let rank_one = 2 * 48 * (2 * (both + inputs + (inputs + 2 * (both - inputs))) - first);
        // The factors' products: x·A and (x·A)·B forward; gradients of A, of B, of x·A, and of x.
        assert_eq!(thick - thin, 2 * rank_one);
        assert!(attention < thick && thick < step(TuningMode::Full));
    }

    #[test]
    fn a_step_moves_optimizer_state_and_activations() {
        let network = Network::new(Glm4vConfig::tiny());
        let cost = network.cost();

        let work = cost.training_work(TuningMode::Full);

        let weights = network.weights(|part| part != ModelPart::Embeddings)[0];
        // Read twice; the gradient written and read, weight and two moments read and written.
        let state = (2 + 2 + 4) * network.params.total();
        assert_eq!(work.bytes, 4 * (2 * weights + state) + 2 * cost.saved_activation_bytes(TuningMode::Full));
    }
}
