//! How large a network is, part by part.
//!
//! Counted on the network itself, built without allocating anything: what is counted is what runs.

use burn::module::Param;
use burn::prelude::*;

use crate::config::Glm4vConfig;
use crate::glm4v::Glm4v;
use crate::named::{NamedVisitor, visit_named};

/// Parameters of a network, part by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Patches to vectors, positions, blocks and the norm behind them.
    pub vision_tower: u64,
    /// What makes tokens of patches: downsampling and merger.
    pub merger: u64,
    /// The table of token vectors.
    pub embedding: u64,
    /// Decoder layers, all experts included, and the norm behind them.
    pub decoder: u64,
    /// The experts of the decoder that tokens are routed to.
    pub experts: u64,
    /// Of those, what one token goes through.
    pub chosen_experts: u64,
    /// Scores of the next token; 0 if the embedding table serves as head.
    pub head: u64,
    /// Values of the largest tensor.
    pub largest: u64,
    /// Tensors as checkpoints store them.
    pub tensors: usize,
}

impl Sizes {
    /// Counts a network, with the adapters that it has.
    pub fn of(model: &Glm4v) -> Self {
        let mut counter = Counter { sizes: Self::default() };
        visit_named(model, &mut counter);
        let mut sizes = counter.sizes;
        if let Some(moe) = &model.config.text.moe {
            sizes.chosen_experts =
                sizes.experts / moe.n_routed_experts as u64 * moe.num_experts_per_tok as u64;
        }
        sizes
    }

    /// All parameters.
    pub fn total(&self) -> u64 {
        self.vision_tower + self.merger + self.embedding + self.decoder + self.head
    }

    /// Parameters that are read to decode one token: the layers with the chosen experts, and the head. Of the embedding
    /// table it is one row.
    pub fn read_per_token(&self) -> u64 {
        let head = if self.head == 0 { self.embedding } else { self.head };
        self.decoder - self.experts + self.chosen_experts + head
    }
}

impl Glm4vConfig {
    /// Counts the network that this config describes.
    pub fn sizes(&self, device: &Device) -> Sizes {
        Sizes::of(&self.init(device))
    }
}

struct Counter {
    sizes: Sizes,
}

impl NamedVisitor for Counter {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let sizes = &mut self.sizes;
        let count = param.lazy_shape().num_elements() as u64;
        let mut parts = name.split('.').skip(1); // behind "model"
        let part = match (parts.next(), parts.next()) {
            (Some("visual"), Some("merger" | "downsample")) => &mut sizes.merger,
            (Some("visual"), _) => &mut sizes.vision_tower,
            (Some("language_model"), Some("embed_tokens")) => &mut sizes.embedding,
            (Some("language_model"), _) => &mut sizes.decoder,
            _ => &mut sizes.head,
        };
        *part += count;
        let expert = name.contains(".mlp.experts.");
        if expert {
            sizes.experts += count;
        }
        sizes.largest = sizes.largest.max(count);
        let piece = name.rsplit('.').next().and_then(|number| number.parse::<usize>().ok());
        if piece.is_some_and(|piece| piece > 0) {
            return; // a checkpoint has them in one tensor
        }
        // Checkpoints keep the two halves of an expert's first projection apart.
        sizes.tensors += if expert && name.contains("gate_up_proj") { 2 } else { 1 };
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::module::Module;

    #[test]
    fn the_parts_are_the_whole() {
        let model = Glm4vConfig::tiny().init(&Device::flex());

        let sizes = Sizes::of(&model);

        assert_eq!(sizes.total(), model.num_params() as u64);
        assert_eq!(sizes.embedding, 50 * 48);
        assert_eq!(sizes.head, 50 * 48);
        assert_eq!(sizes.read_per_token(), sizes.decoder + sizes.head);
        assert_eq!(sizes.largest, 48 * 160); // a layer's gate and up projection
    }

    #[test]
    fn a_tied_head_is_read_as_the_table_that_it_is() {
        let tied = Glm4vConfig { tie_word_embeddings: true, ..Glm4vConfig::tiny() };

        let sizes = tied.sizes(&Device::flex());

        assert_eq!((sizes.head, sizes.read_per_token()), (0, sizes.decoder + sizes.embedding));
    }
}
