//! Size of a run: steps, parameters, examples, adapters.

use crate::config_diff::ConfigChange;

/// Size of a run, known before its first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainSummary {
    /// Steps done before this process; 0 for a new run.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Number of parameters of the model.
    pub parameters: usize,
    /// Number of trainable parameters.
    pub trainable_params: usize,
    /// Number of training examples.
    pub train_records: usize,
    /// Number of evaluation examples.
    pub eval_records: usize,
    /// Adapters to train; none if the model's own weights are trained.
    pub lora: Option<LoraTargets>,
    /// Settings that differ from the checkpoint's, for a resumed run.
    pub changed: Vec<ConfigChange>,
}

/// Adapters to train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraTargets {
    /// Rank of modules that no `rank_pattern` matches.
    pub r: usize,
    /// Names of the modules with an adapter; the experts of a layer count as one.
    pub modules: Vec<String>,
}
