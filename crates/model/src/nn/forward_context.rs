//! What the layers of a tower share in one forward pass.

use burn::prelude::*;

use super::recorder::ActivationRecorder;

/// One forward pass: `shared` is what every layer needs (rotary table, mask, cache), and an [`ActivationRecorder`] may look on.
///
/// Containers name what they call, as their fields are named: `pass.child("mlp", |pass| self.mlp.forward(x, pass))`. A layer
/// knows no name of its own, so it is recorded wherever it is used, and runs alone with `&mut ForwardContext::default()` if it shares
/// nothing.
#[derive(Debug, Default)]
pub struct ForwardContext<'a, S = ()> {
    /// Inputs and outputs of all layers.
    pub shared: S,
    recorder: Option<&'a mut ActivationRecorder>,
}

impl<'a, S> ForwardContext<'a, S> {
    /// A pass that nobody looks into.
    pub fn new(shared: S) -> Self {
        Self { shared, recorder: None }
    }

    /// A pass that is recorded, if there is a recorder.
    pub fn with_recorder(shared: S, recorder: Option<&'a mut ActivationRecorder>) -> Self {
        Self { shared, recorder }
    }

    /// Runs a child and records its output under `name`; what it records itself is named `name.…`.
    pub fn child<const D: usize>(
        &mut self,
        name: &str,
        forward: impl FnOnce(&mut Self) -> Tensor<D>,
    ) -> Tensor<D> {
        self.prefix(name, |pass| {
            let output = forward(pass);
            if let Some(recorder) = &mut pass.recorder {
                recorder.record_output(&output);
            }
            output
        })
    }

    /// Prefixes the names of what is recorded in between.
    pub fn prefix<T>(&mut self, name: &str, forward: impl FnOnce(&mut Self) -> T) -> T {
        if let Some(recorder) = &mut self.recorder {
            recorder.enter(name);
        }
        let output = forward(self);
        if let Some(recorder) = &mut self.recorder {
            recorder.leave();
        }
        output
    }

    /// As [`child`](Self::child), for block `index` of a stack: every output is recorded, but only the first block is looked
    /// into.
    pub fn block<const D: usize>(
        &mut self,
        stack: &str,
        index: usize,
        forward: impl FnOnce(&mut Self) -> Tensor<D>,
    ) -> Tensor<D> {
        if let Some(recorder) = &mut self.recorder {
            recorder.enter_block(stack, index);
        }
        let output = forward(self);
        if let Some(recorder) = &mut self.recorder {
            recorder.leave_block(&output);
        }
        output
    }

    /// Records an activation under `name` and hands it on.
    pub fn record<const D: usize>(&mut self, name: &str, value: Tensor<D>) -> Tensor<D> {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(name, &value);
        }
        value
    }

    /// Calls `record` with the recorder, for what is made to be recorded alone.
    pub fn if_recording(&mut self, record: impl FnOnce(&S, &mut ActivationRecorder)) {
        if let Some(recorder) = &mut self.recorder {
            record(&self.shared, recorder);
        }
    }

    /// Whether attention weights are recorded, which only eager attention has.
    pub fn output_attentions(&self) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.output_attentions())
    }
}
