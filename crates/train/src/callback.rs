//! Events of a run.

use std::path::Path;

use crate::metrics::{EvalMetrics, StepMetrics};
use crate::plan::TrainSummary;

/// Receives the events of a run, in order; see transformers' `TrainerCallback`.
pub trait Callback {
    /// Called before the first step; `plan.step` is above 0 for a resumed run.
    fn on_train_begin(&mut self, plan: &TrainSummary);
    /// Called after every step.
    fn on_step_end(&mut self, report: &StepMetrics);
    /// Called when records longer than `data.max_length` were dropped from a batch.
    fn on_drop(&mut self, records: usize);
    /// Called during an evaluation, when `done` of `total` examples are evaluated.
    fn on_eval_progress(&mut self, done: usize, total: usize);
    /// Called after every evaluation.
    fn on_evaluate(&mut self, summary: &EvalMetrics);
    /// Called when a checkpoint or the final weights were written to `dir`.
    fn on_save(&mut self, dir: &Path);
}
