//! Looking inside a forward pass: named activations, for comparisons with the reference.
//!
//! Names are those of the modules, `vision.blocks.0.attn.qkv` or `text.layers.3`. Every block gives its output; the
//! first block of each stack also gives what happens inside it.

use burn::prelude::*;
use burn::tensor::TensorData;

/// Collects activations by name, or does nothing.
#[derive(Debug, Default)]
pub struct Probe {
    kept: Option<Vec<(String, TensorData)>>,
    routers: Option<Vec<Tensor<2>>>,
    scope: Vec<String>,
    inside: bool,
}

impl Probe {
    /// A probe that costs nothing and keeps nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// A probe that copies every activation to the host.
    pub fn on() -> Self {
        Self { kept: Some(Vec::new()), ..Self::default() }
    }

    /// A probe that keeps the scores of experts alone, on the device and differentiable, for
    /// [`load_balancing_loss`](crate::text::load_balancing_loss).
    pub fn of_routers() -> Self {
        Self { routers: Some(Vec::new()), ..Self::default() }
    }

    /// Scores of experts before the sigmoid, one `[B · S, E]` a layer that has experts.
    pub fn into_routers(self) -> Vec<Tensor<2>> {
        self.routers.unwrap_or_default()
    }

    /// Whether activations are kept.
    pub fn is_on(&self) -> bool {
        self.kept.is_some()
    }

    /// What was kept, in the order in which it was computed. A name met again, as when the vision tower runs for
    /// images and for videos, carries `#2`.
    pub fn into_kept(self) -> Vec<(String, TensorData)> {
        self.kept.unwrap_or_default()
    }

    /// Opens a scope: names up to [`leave`](Self::leave) are prefixed with `name.`.
    pub(crate) fn enter(&mut self, name: &str) {
        if self.kept.is_some() {
            self.scope.push(name.to_owned());
        }
    }

    /// Opens the scope of block `index` of a stack; only the first one is looked into.
    pub(crate) fn enter_block(&mut self, stack: &str, index: usize) {
        if self.kept.is_some() {
            self.scope.push(format!("{stack}.{index}"));
            self.inside = index == 0;
        }
    }

    /// Closes the innermost scope.
    pub(crate) fn leave(&mut self) {
        self.scope.pop();
    }

    /// Keeps the scores of a layer's experts.
    pub(crate) fn keep_router(&mut self, logits: &Tensor<2>) {
        if let Some(routers) = &mut self.routers {
            routers.push(logits.clone());
        }
    }

    /// Keeps the output of the scope itself.
    pub(crate) fn output<const D: usize, K: burn::tensor::kind::Basic>(&mut self, value: &Tensor<D, K>) {
        let name = self.scope.join(".");
        self.push(name, value);
    }

    /// Keeps a value of the scope.
    pub(crate) fn keep<const D: usize, K: burn::tensor::kind::Basic>(
        &mut self,
        name: &str,
        value: &Tensor<D, K>,
    ) {
        if self.kept.is_some() {
            let name = format!("{}.{name}", self.scope.join("."));
            self.push(name, value);
        }
    }

    /// Keeps a value from inside a block, if it is the first of its stack.
    pub(crate) fn keep_inside<const D: usize, K: burn::tensor::kind::Basic>(
        &mut self,
        name: &str,
        value: &Tensor<D, K>,
    ) {
        if self.inside {
            self.keep(name, value);
        }
    }

    fn push<const D: usize, K: burn::tensor::kind::Basic>(&mut self, mut name: String, value: &Tensor<D, K>) {
        let Some(kept) = &mut self.kept else { return };
        while kept.iter().any(|(other, _)| *other == name) {
            name.push_str("#2");
        }
        kept.push((name, owned(&value.to_data())));
    }
}

/// A copy that is ours: on GPUs that share memory with the CPU, what is read may be the buffer itself, and later
/// operations work in it.
pub fn owned(data: &TensorData) -> TensorData {
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape(), data.dtype())
}
