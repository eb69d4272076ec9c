//! Which parameters learn.

use burn::module::Param;
use burn::prelude::*;
use glm4v_model::{Glm4v, NamedMapper, map_named};
use glm4v_weights::{AdapterConfig, learns_with};

use crate::config::Part;

/// Stops the gradients of the parts that are frozen; returns how many parameters learn.
pub fn freeze(model: Glm4v, frozen: &[Part]) -> (Glm4v, usize) {
    freeze_where(model, |name| frozen.iter().any(|part| part.holds(name)))
}

impl Part {
    /// Whether a parameter belongs to it. A head that is tied to the embeddings is one parameter with them.
    fn holds(self, parameter: &str) -> bool {
        let merger = ["model.visual.merger.", "model.visual.downsample."];
        let merger = merger.iter().any(|start| parameter.starts_with(start));
        let visual = parameter.starts_with("model.visual.");
        match self {
            Self::Merger => merger,
            Self::Vision => visual && !merger,
            Self::Text => !visual,
            Self::Embeddings => parameter.starts_with("model.language_model.embed_tokens."),
            Self::Head => parameter.starts_with("lm_head."),
        }
    }
}

/// Stops the gradients of all but adapters and what learns whole beside them; returns how many parameters learn.
pub fn freeze_all_but(model: Glm4v, adapter: &AdapterConfig) -> (Glm4v, usize) {
    freeze_where(model, |name| !learns_with(adapter, name))
}

fn freeze_where(model: Glm4v, frozen: impl Fn(&str) -> bool) -> (Glm4v, usize) {
    let mut freezer = Freezer { frozen, learning: 0 };
    let model = map_named(model, &mut freezer);
    (model, freezer.learning)
}

struct Freezer<F> {
    frozen: F,
    learning: usize,
}

impl<F: Fn(&str) -> bool> NamedMapper for Freezer<F> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // No gradient reaches the router's correction: it only decides who is chosen (a buffer in the reference).
        if (self.frozen)(name) || name.ends_with("e_score_correction_bias") {
            return param.set_require_grad(false);
        }
        self.learning += param.lazy_shape().num_elements();
        param
    }
}
