//! Which parameters learn.

use burn::module::Param;
use burn::prelude::*;
use glm4v_model::{Glm4v, NamedMapper, map_named};

use crate::config::{How, Learn};

/// Stops the gradients of the parts that are frozen; returns how many parameters learn.
pub fn freeze(model: Glm4v, learn: Learn) -> (Glm4v, usize) {
    let mut freezer = Freezer { learn, learning: 0 };
    let model = map_named(model, &mut freezer);
    (model, freezer.learning)
}

struct Freezer {
    learn: Learn,
    learning: usize,
}

impl NamedMapper for Freezer {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let mut parts = name.split('.').skip(1); // behind "model"
        let how = match (parts.next(), parts.next()) {
            (Some("visual"), Some("merger" | "downsample")) => self.learn.merger,
            (Some("visual"), _) => self.learn.vision,
            _ => self.learn.text,
        };
        match how {
            How::Full => {
                self.learning += param.lazy_shape().num_elements();
                param
            }
            How::Frozen => param.set_require_grad(false),
        }
    }
}
