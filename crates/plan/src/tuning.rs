//! Which parameters a training run updates.

use glm4v_model::{Glm4v, ModelPart, ParamCounts, ParamName};

/// Full fine-tuning or LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TuningMode {
    /// Every parameter is trainable.
    Full,
    /// Only adapters are trainable: on every linear layer of the text decoder, and on all or none of those of vision tower
    /// and merger.
    Lora {
        /// LoRA rank, `r`.
        rank: usize,
        /// Adapter parameters in the text decoder.
        text_params: u64,
        /// Adapter parameters in vision tower and merger; 0 freezes both, and autodiff then saves nothing of them.
        vision_params: u64,
        /// Elements of the largest adapter matrix.
        largest_matrix: u64,
    },
}

/// Numbers of trainable parameters, apart where their gradients appear at different times.
pub(crate) struct TrainableParams {
    pub(crate) vision: u64,
    pub(crate) text: u64,
    /// LM head alone, a part of `text`.
    pub(crate) head: u64,
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
        let (mut text_params, mut vision_params, mut largest_matrix) = (0, 0, 0);
        model.for_each_linear(|name, linear| {
            let path = ParamName(name);
            let params = match path.part() {
                ModelPart::Layer(_) => &mut text_params,
                _ if path.is_visual() && vision => &mut vision_params,
                _ => return,
            };
            // Both factors are trained, and both have optimizer state.
            let [lora_a, lora_b] = [linear.d_input(), linear.d_output()].map(|width| (rank * width) as u64);
            *params += lora_a + lora_b;
            largest_matrix = largest_matrix.max(lora_a).max(lora_b);
        });
        Self::Lora { rank, text_params, vision_params, largest_matrix }
    }

    /// Whether the backward pass goes through the vision tower, given that there is an image.
    pub(crate) fn trains_vision(self) -> bool {
        !matches!(self, Self::Lora { vision_params: 0, .. })
    }

    /// LoRA rank; 0 in full fine-tuning.
    pub(crate) fn rank(self) -> u64 {
        match self {
            Self::Full => 0,
            Self::Lora { rank, .. } => rank as u64,
        }
    }

    /// Parameters that get gradients and optimizer state. Those of the vision tower do not without an image.
    pub(crate) fn trainable_params(self, params: &ParamCounts, has_image: bool) -> TrainableParams {
        let mut trainable = match self {
            Self::Full => TrainableParams {
                vision: params.vision_tower + params.merger,
                text: params.embedding + params.decoder + params.head,
                head: params.head,
                adapters: 0,
                largest_tensor: params.largest_tensor,
            },
            Self::Lora { text_params, vision_params, largest_matrix, .. } => TrainableParams {
                vision: vision_params,
                text: text_params,
                head: 0,
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
        assert!(!text.trains_vision() && all.trains_vision());
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
