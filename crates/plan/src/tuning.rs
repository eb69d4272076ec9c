//! Which parameters a training run updates.

use glm4v_model::{Glm4v, ModelPart, ParamCounts, ParamName};

/// Full fine-tuning, some parts frozen, or LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TuningMode {
    /// Every parameter is trainable.
    Full,
    /// Every parameter outside of these parts is trainable.
    Frozen(FrozenParts),
    /// Only adapters are trainable: on linear layers of the text decoder, and on all or none of those of vision tower and
    /// merger.
    Lora {
        /// LoRA rank, `r`.
        rank: usize,
        /// Whether the decoder's feed-forwards have adapters, or its attention alone.
        feed_forward: bool,
        /// Adapter parameters in the text decoder.
        text_params: u64,
        /// Adapter parameters in vision tower and merger; 0 freezes both, and autodiff then saves nothing of them.
        vision_params: u64,
        /// Elements of the largest adapter matrix.
        largest_matrix: u64,
    },
}

/// Groups of linear layers that adapters are put on together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdapterPlace {
    /// No linear layer: convolutions, the router; and the head.
    Never,
    Vision,
    TextAttention,
    TextFeedForward,
}

/// Parts of the network that are not trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrozenParts {
    /// The vision tower up to its last norm.
    pub vision_tower: bool,
    /// Downsampling and merger.
    pub merger: bool,
    /// The token embeddings, and with them a tied head.
    pub embeddings: bool,
    /// The decoder's layers and its last norm.
    pub layers: bool,
    /// The head.
    pub head: bool,
}

impl FrozenParts {
    fn contain(self, part: ModelPart) -> bool {
        match part {
            ModelPart::VisionTower => self.vision_tower,
            ModelPart::Merger => self.merger,
            ModelPart::Embeddings => self.embeddings,
            ModelPart::Layer(_) | ModelPart::FinalNorm => self.layers,
            ModelPart::Head => self.head,
        }
    }
}

/// Numbers of trainable parameters, apart where their gradients appear at different times.
pub(crate) struct TrainableParams {
    pub(crate) vision: u64,
    pub(crate) text: u64,
    /// LM head alone, a part of `text`.
    pub(crate) head: u64,
    /// Decoder layers with their adapters, and the final norm; a part of `text`.
    pub(crate) decoder: u64,
    /// Parameters that the model has only for training.
    pub(crate) adapters: u64,
    pub(crate) largest_tensor: u64,
}

impl TrainableParams {
    pub(crate) fn total(&self) -> u64 {
        self.vision + self.text
    }
}

impl TuningMode {
    /// LoRA on every linear layer of the text decoder; with `vision` on those of vision tower and merger too, which is
    /// PEFT's `all-linear`.
    pub fn lora(model: &mut Glm4v, rank: usize, vision: bool) -> Self {
        Self::lora_on(model, rank, vision, true)
    }

    /// LoRA on the attention of the text decoder alone, the default for decoders with experts.
    pub fn attention_lora(model: &mut Glm4v, rank: usize) -> Self {
        Self::lora_on(model, rank, false, false)
    }

    fn lora_on(model: &mut Glm4v, rank: usize, vision: bool, feed_forward: bool) -> Self {
        let (mut text_params, mut vision_params, mut largest_matrix) = (0, 0, 0);
        model.for_each_linear(|name, linear| {
            let path = ParamName(name);
            let params = match path.part() {
                ModelPart::Layer(_) if feed_forward || name.contains(".self_attn.") => &mut text_params,
                _ if path.is_visual() && vision => &mut vision_params,
                _ => return,
            };
            // Both factors are trained, and both have optimizer state.
            let [lora_a, lora_b] = [linear.d_input(), linear.d_output()].map(|width| (rank * width) as u64);
            *params += lora_a + lora_b;
            largest_matrix = largest_matrix.max(lora_a).max(lora_b);
        });
        Self::Lora { rank, feed_forward, text_params, vision_params, largest_matrix }
    }

    /// Whether the weights of a part are trainable, adapters aside.
    pub(crate) fn trains(self, part: ModelPart) -> bool {
        match self {
            Self::Full => true,
            Self::Frozen(frozen) => !frozen.contain(part),
            Self::Lora { .. } => false,
        }
    }

    /// Whether the backward pass goes through the vision tower, given that there is an image.
    pub(crate) fn trains_vision_tower(self) -> bool {
        match self {
            Self::Lora { vision_params, .. } => vision_params > 0,
            _ => self.trains(ModelPart::VisionTower),
        }
    }

    /// Whether it goes through the merger.
    pub(crate) fn trains_merger(self) -> bool {
        self.trains_vision_tower() || self.trains(ModelPart::Merger)
    }

    /// LoRA rank on a group of linear layers; 0 without adapters there.
    pub(crate) fn rank_at(self, place: AdapterPlace) -> u64 {
        let Self::Lora { rank, feed_forward, vision_params, .. } = self else { return 0 };
        let adapted = match place {
            AdapterPlace::Never => false,
            AdapterPlace::Vision => vision_params > 0,
            AdapterPlace::TextAttention => true,
            AdapterPlace::TextFeedForward => feed_forward,
        };
        if adapted { rank as u64 } else { 0 }
    }

    /// Parameters that get gradients and optimizer state. Those of the vision tower do not without an image.
    pub(crate) fn trainable_params(self, params: &ParamCounts, has_image: bool) -> TrainableParams {
        let of = |part, count| if self.trains(part) { count } else { 0 };
        let mut trainable = match self {
            Self::Full | Self::Frozen(_) => TrainableParams {
                vision: of(ModelPart::VisionTower, params.vision_tower)
                    + of(ModelPart::Merger, params.merger),
                text: of(ModelPart::Embeddings, params.embedding)
                    + of(ModelPart::FinalNorm, params.decoder)
                    + of(ModelPart::Head, params.head),
                head: of(ModelPart::Head, params.head),
                decoder: of(ModelPart::FinalNorm, params.decoder),
                adapters: 0,
                largest_tensor: params.largest_tensor,
            },
            Self::Lora { text_params, vision_params, largest_matrix, .. } => TrainableParams {
                vision: vision_params,
                text: text_params,
                head: 0,
                decoder: text_params,
                adapters: text_params + vision_params,
                largest_tensor: largest_matrix,
            },
        };
        if !has_image {
            trainable.vision = 0;
        }
        trainable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::{Backend, Glm4vConfig};

    #[test]
    fn lora_counts_both_matrices_of_every_linear_layer() {
        let mut model = Glm4vConfig::tiny().init(&Backend::Cpu.open().unwrap());

        let (text, all) = (TuningMode::lora(&mut model, 4, false), TuningMode::lora(&mut model, 4, true));

        // q, k, v and o: 48 -> 48, 24, 24, 48; gate and up, down: 48 -> 160, 80 -> 48.
        let layer = 4 * ((48 + 48) + 2 * (48 + 24) + (48 + 48) + (48 + 160) + (80 + 48));
        let TuningMode::Lora { text_params, vision_params, largest_matrix, .. } = text else {
            unreachable!("lora() makes LoRA")
        };
        assert_eq!((text_params, vision_params, largest_matrix), (2 * layer, 0, 4 * 160));
        assert!(matches!(all, TuningMode::Lora { vision_params: 1.., .. }));
        assert!(!text.trains_vision_tower() && all.trains_vision_tower());
    }

    #[test]
    fn attention_alone_has_fewer_adapters() {
        let mut model = Glm4vConfig::tiny().init(&Backend::Cpu.open().unwrap());

        let TuningMode::Lora { text_params, .. } = TuningMode::attention_lora(&mut model, 4) else {
            unreachable!("it makes LoRA")
        };

        assert_eq!(text_params, 2 * 4 * ((48 + 48) + 2 * (48 + 24) + (48 + 48)));
    }

    #[test]
    fn frozen_parts_have_no_trainable_parameters() {
        let params = Glm4vConfig::tiny().param_counts(&Backend::Cpu.open().unwrap());
        let frozen = FrozenParts { vision_tower: true, embeddings: true, ..FrozenParts::default() };

        let trainable = TuningMode::Frozen(frozen).trainable_params(&params, true);

        assert_eq!(trainable.vision, params.merger);
        assert_eq!(trainable.text, params.decoder + params.head);
        let none = TuningMode::Frozen(FrozenParts::default()).trainable_params(&params, true);
        assert_eq!(none.total(), params.total());
    }

    #[test]
    fn without_an_image_the_vision_tower_is_not_trained() {
        let params = Glm4vConfig::tiny().param_counts(&Backend::Cpu.open().unwrap());

        let with_image = TuningMode::Full.trainable_params(&params, true);
        let text_only = TuningMode::Full.trainable_params(&params, false);

        assert_eq!(with_image.total(), params.total());
        assert_eq!(text_only.total(), params.total() - params.vision_tower - params.merger);
    }
}
