//! Names of the files and directories in a run directory.

/// Losses and evaluations, one JSON object a line.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// Directory of the final weights.
pub(crate) const FINAL: &str = "final";
/// Directory of the checkpoints, one `step-N` each.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Optimizer state of a checkpoint.
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
/// Trainer state of a checkpoint.
pub(crate) const TRAINER: &str = "trainer.json";
/// Locked while a process trains in the directory; its content is the process id.
pub(crate) const LOCK: &str = ".lock";
