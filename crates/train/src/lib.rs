#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! A [`RunConfig`] read from TOML opens a [`Run`]; [`Run::train`] trains, reports to a [`Callback`], and
//! leaves a run directory: `config.toml` with every key, `metrics.jsonl`, `checkpoints/step-N/`, `final/`. A [`Trainer`] is the
//! step alone, for a loop of your own.

mod adamw;
mod callback;
mod checkpoint;
mod config;
mod config_diff;
mod error;
mod eval;
mod finite;
mod freeze;
mod gradients;
mod layout;
mod loss;
mod metrics;
mod plan;
mod run;
mod run_dir;
mod schedule;
mod setup;
mod trainer;

pub use adamw::{AdamW, AdamWConfig};
pub use callback::Callback;
pub use checkpoint::{Checkpoints, TrainerState};
pub use config::{
    DataSection, EvalSection, FreezeTarget, LoraSection, ModelSection, OptimSection, RunConfig,
    RunConfigError, RunSection, ScheduleSection, WeightInit,
};
pub use config_diff::ConfigChange;
pub use error::{RunDirError, TrainError};
pub use eval::{EvalGenerator, EvalOptions, EvalOutput, GeneratedAnswer, Prediction, evaluate};
pub use freeze::{freeze, mark_only_adapters_as_trainable};
pub use gradients::NamedGradients;
pub use loss::{LossSum, causal_lm_loss, causal_lm_loss_with_router, cross_entropy};
pub use metrics::{EvalMetrics, MetricsWriter, RecordMetrics, StepMetrics};
pub use plan::{LoraTargets, TrainSummary};
pub use run::{Run, TrainOutput};
pub use schedule::{Schedule, ScheduleKind};
pub use setup::load_processor;
pub use trainer::{AccumulatedGradients, StepError, StepOutput, Trainer, TrainerConfig, clip_coef};
