//! Parameter counts, part by part.
//!
//! Counted on the module tree itself, built without allocating a tensor, so that a change of the network cannot leave a
//! formula here out of date.

use burn::prelude::*;

use crate::config::Glm4vConfig;
use crate::glm4v::Glm4v;
use crate::params::named::param_infos;
use crate::params::param_name::{ModelPart, ParamName};

/// Number of parameters of each part of a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParamCounts {
    /// Patch embedding, position embeddings, blocks and the final norm.
    pub vision_tower: u64,
    /// Patch merger, the downsampling convolution included.
    pub merger: u64,
    /// Token embedding table.
    pub embedding: u64,
    /// Decoder layers with all their experts, and the final norm.
    pub decoder: u64,
    /// Routed experts, a part of `decoder`.
    pub experts: u64,
    /// Routed experts that one token activates, a part of `experts`.
    pub active_experts: u64,
    /// LM head; 0 if it is tied to the embedding table.
    pub head: u64,
    /// Elements of the largest single tensor.
    pub largest_tensor: u64,
    /// Number of tensors in a published checkpoint, which may split or join those of the modules.
    pub tensors: usize,
}

impl ParamCounts {
    /// Counts `model`, its LoRA adapters included.
    pub fn from_model(model: &Glm4v) -> Self {
        let mut counts = Self::default();
        for param in param_infos(model) {
            counts.add(ParamName(&param.name), param.shape.num_elements() as u64);
        }
        // Experts of a layer have equal size, so the active share is a quotient.
        if let Some(moe) = &model.config.text.moe {
            counts.active_experts =
                counts.experts / moe.n_routed_experts as u64 * moe.num_experts_per_tok as u64;
        }
        counts
    }

    fn add(&mut self, path: ParamName<'_>, count: u64) {
        *match path.part() {
            ModelPart::VisionTower => &mut self.vision_tower,
            ModelPart::Merger => &mut self.merger,
            ModelPart::Embeddings => &mut self.embedding,
            ModelPart::Layer(_) | ModelPart::FinalNorm => &mut self.decoder,
            ModelPart::Head => &mut self.head,
        } += count;
        let is_expert = path.expert().is_some();
        if is_expert {
            self.experts += count;
        }
        self.largest_tensor = self.largest_tensor.max(count);
        if path.shard().1.unwrap_or(0) > 0 {
            return; // a checkpoint stores all shards in one tensor
        }
        // Checkpoints store the two halves of an expert's first projection apart.
        self.tensors += if is_expert && path.0.contains("gate_up_proj") { 2 } else { 1 };
    }

    /// Sum over all parts.
    pub fn total(&self) -> u64 {
        self.vision_tower + self.merger + self.embedding + self.decoder + self.head
    }

    /// Parameters that are read to decode one token: the decoder with the active experts only, and the LM head. The
    /// embedding table counts where it serves as head; otherwise one row of it is read, which is neglected.
    pub fn active_params(&self) -> u64 {
        let head = if self.head == 0 { self.embedding } else { self.head };
        self.decoder - self.experts + self.active_experts + head
    }
}

impl Glm4vConfig {
    /// Parameter counts of the network that this config describes.
    pub fn param_counts(&self, device: &Device) -> ParamCounts {
        ParamCounts::from_model(&self.init(device))
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::module::Module;

    #[test]
    fn the_parts_add_up_to_the_whole_model() {
        let model = Glm4vConfig::tiny().init(&Device::flex());

        let counts = ParamCounts::from_model(&model);

        assert_eq!(counts.total(), model.num_params() as u64);
        assert_eq!(counts.embedding, 50 * 48);
        assert_eq!(counts.head, 50 * 48);
        assert_eq!(counts.active_params(), counts.decoder + counts.head);
        assert_eq!(counts.largest_tensor, 48 * 160); // a layer's gate and up projection
    }

    #[test]
    fn a_tied_head_counts_once_and_is_read_as_the_embedding_table() {
        let mut tied = Glm4vConfig::tiny();
        tied.text.tie_word_embeddings = true;

        let counts = tied.param_counts(&Device::flex());

        assert_eq!((counts.head, counts.active_params()), (0, counts.decoder + counts.embedding));
    }
}
