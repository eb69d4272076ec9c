//! Recording a forward pass: activations and attention weights by name, for comparisons with the reference.
//!
//! Names are those of the modules, `vision.blocks.0.attn.qkv` or `text.layers.3`. Every block gives its output; the
//! first block of each stack also gives what happens inside it: all blocks of a 9B model would take gigabytes.

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::kind::Basic;

/// What transformers calls `attentions`, inside the scope of an attention layer.
const ATTENTIONS: &str = "attn_weights";

/// Copies activations to the host (PyTorch: forward hooks).
#[derive(Debug, Default)]
pub struct ActivationRecorder {
    activations: bool,
    attentions: bool,
    records: Vec<(String, TensorData)>,
    scope: Vec<String>,
    /// Whether details of the current block are left out.
    coarse: bool,
}

impl ActivationRecorder {
    /// Records activations.
    pub fn new() -> Self {
        Self { activations: true, ..Self::default() }
    }

    /// Records the attention weights of every decoder layer (`output_attentions`), as `text.layers.{i}.self_attn.attn_weights`.
    ///
    /// Attention then runs without fused kernels.
    #[must_use]
    pub fn with_attentions(self) -> Self {
        Self { attentions: true, ..self }
    }

    /// The records in the order of computation. A name met again, as when the vision tower runs for images and for
    /// videos, ends in `#2`.
    pub fn into_activations(self) -> Vec<(String, TensorData)> {
        self.records
    }

    pub(crate) fn output_attentions(&self) -> bool {
        self.attentions
    }

    pub(crate) fn enter(&mut self, name: &str) {
        self.scope.push(name.to_owned());
    }

    pub(crate) fn leave(&mut self) {
        self.scope.pop();
    }

    pub(crate) fn record_output<const D: usize>(&mut self, output: &Tensor<D>) {
        if self.activations && !self.coarse {
            self.push(None, output);
        }
    }

    pub(crate) fn enter_block(&mut self, stack: &str, index: usize) {
        self.scope.push(format!("{stack}.{index}"));
        self.coarse = index > 0;
    }

    pub(crate) fn leave_block<const D: usize>(&mut self, output: &Tensor<D>) {
        self.coarse = false;
        self.record_output(output);
        self.leave();
    }

    pub(crate) fn record<const D: usize>(&mut self, name: &str, value: &Tensor<D>) {
        if !self.coarse {
            self.record_in_every_block(name, value);
        }
    }

    pub(crate) fn record_in_every_block<const D: usize, K: Basic>(
        &mut self,
        name: &str,
        value: &Tensor<D, K>,
    ) {
        if self.activations {
            self.push(Some(name), value);
        }
    }

    pub(crate) fn record_attentions(&mut self, weights: &Tensor<4>) {
        if self.attentions {
            self.push(Some(ATTENTIONS), weights);
        }
    }

    fn push<const D: usize, K: Basic>(&mut self, name: Option<&str>, value: &Tensor<D, K>) {
        let scope = self.scope.iter().map(String::as_str);
        let mut name = scope.chain(name).collect::<Vec<_>>().join(".");
        // The vision tower runs once for images and once for videos, and names must be unique in a file.
        while self.records.iter().any(|(other, _)| *other == name) {
            name.push_str("#2");
        }
        self.records.push((name, copy_tensor_data(&value.to_data())));
    }
}

/// A copy on the host: on GPUs that share memory with the CPU, what is read may be the buffer itself, and later
/// operations work in it.
pub fn copy_tensor_data(data: &TensorData) -> TensorData {
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape(), data.dtype())
}
