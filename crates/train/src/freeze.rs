//! Trainable and frozen parameters.

use burn::module::Param;
use burn::prelude::*;
use glm4v_model::{Glm4v, ModelPart, NamedMapper, ParamName, map_named};
use glm4v_weights::AdapterConfig;

use crate::config::FreezeTarget;

/// Stops the gradients of the frozen parts; returns the number of trainable parameters.
pub fn freeze(model: Glm4v, frozen: &[FreezeTarget]) -> (Glm4v, usize) {
    freeze_where(model, |name| frozen.iter().any(|target| target.contains(ParamName(name).part())))
}

impl FreezeTarget {
    /// Every target.
    pub const ALL: [Self; 5] = [Self::Vision, Self::Merger, Self::Text, Self::Embeddings, Self::Head];

    /// Its name in `model.freeze`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Merger => "merger",
            Self::Text => "text",
            Self::Embeddings => "embeddings",
            Self::Head => "head",
        }
    }

    /// The target of a name in `model.freeze`; none for other names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// Whether the target covers a part. A tied head is part of the embeddings.
    fn contains(self, part: ModelPart) -> bool {
        match self {
            Self::Vision => part == ModelPart::VisionTower,
            Self::Merger => part == ModelPart::Merger,
            Self::Text => !matches!(part, ModelPart::VisionTower | ModelPart::Merger),
            Self::Embeddings => part == ModelPart::Embeddings,
            Self::Head => part == ModelPart::Head,
        }
    }
}

/// Stops the gradients of all but adapters and the modules saved with them (PEFT: `mark_only_adapters_as_trainable`); returns
/// the number of trainable parameters.
pub fn mark_only_adapters_as_trainable(model: Glm4v, adapter: &AdapterConfig) -> (Glm4v, usize) {
    freeze_where(model, |name| !adapter.is_trainable(name))
}

fn freeze_where(model: Glm4v, frozen: impl Fn(&str) -> bool) -> (Glm4v, usize) {
    let mut freezer = Freezer { frozen, trainable: 0 };
    let model = map_named(model, &mut freezer);
    (model, freezer.trainable)
}

struct Freezer<F> {
    frozen: F,
    trainable: usize,
}

impl<F: Fn(&str) -> bool> NamedMapper for Freezer<F> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // The router's correction is a parameter here for its name in the checkpoint alone.
        if (self.frozen)(name) || ParamName(name).is_e_score_correction_bias() {
            return param.set_require_grad(false);
        }
        self.trainable += param.lazy_shape().num_elements();
        param
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_config() {
        for target in FreezeTarget::ALL {
            let written = serde_json::to_value(target).unwrap();

            assert_eq!(written, target.name());
            assert_eq!(FreezeTarget::from_name(target.name()), Some(target));
        }
        assert_eq!(FreezeTarget::from_name("visual"), None);
    }
}
