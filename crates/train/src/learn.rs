//! Which parameters learn.

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use glm4v_model::Glm4v;

use crate::config::{How, Learn};

/// Stops the gradients of the parts that are frozen; returns how many parameters learn.
pub fn freeze(model: Glm4v, learn: Learn) -> (Glm4v, usize) {
    let mut freezer = Freezer { path: Vec::new(), learn, learning: 0 };
    let model = model.map(&mut freezer);
    (model, freezer.learning)
}

struct Freezer {
    path: Vec<String>,
    learn: Learn,
    learning: usize,
}

impl ModuleMapper for Freezer {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let part = |index: usize| self.path.get(index).map(String::as_str);
        let how = match (part(1), part(2)) {
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
