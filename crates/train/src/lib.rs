#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! A [`RunConfig`] read from TOML opens a [`Session`]; [`Session::run`] trains, reports to an [`Observer`], and
//! leaves a run folder: `config.toml` with every key, `metrics.jsonl`, `checkpoints/step-N/`, `final/`. The parts
//! ([`loss()`], [`NamedGradients`], [`AdamW`], [`Schedule`]) are usable alone.

mod adamw;
mod checkpoint;
mod config;
mod eval;
mod gradients;
mod learn;
mod loss;
mod metrics;
mod schedule;
mod session;

pub use adamw::{AdamW, AdamWConfig};
pub use checkpoint::{Checkpoints, TrainerState};
pub use config::{
    DataSection, How, Init, Learn, LoraSection, ModelSection, OnBadChoice, OptimSection, OverlongChoice,
    RunConfig, RunConfigError, RunSection, ScheduleSection,
};
pub use eval::{Answer, Answering, EvalReport, Examined, evaluate};
pub use gradients::NamedGradients;
pub use learn::{freeze, freeze_all_but};
pub use loss::{Targets, balanced_loss, cross_entropy, loss};
pub use metrics::{EvalSummary, Metrics, StepReport};
pub use schedule::{Schedule, ScheduleKind};
pub use session::{Observer, Outcome, Plan, Session};

use std::fmt;
use std::path::PathBuf;

use glm4v_data::{DatasetError, LoadError, RegistryError, SampleError, SamplerError};
use glm4v_model::{ComputeError, FusionError};
use glm4v_processor::ProcessorError;
use glm4v_weights::WeightsError;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model folder's tokenizer, template or image settings cannot be used.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// No such data set.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A data set cannot be read, or has records that cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A record cannot be used.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Batches cannot be prepared.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Batches cannot be drawn from the data.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// A batch does not fit the network.
    #[error(transparent)]
    Fusion(#[from] FusionError),
    /// A json file that a run depends on is broken.
    #[error("{}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The run folder cannot be written to.
    #[error("{}: cannot write the run folder: {source}", folder.display())]
    RunFolder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The run folder holds a run already.
    #[error("{}: holds {}", folder.display(), remains)]
    RunExists {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        remains: Remains,
    },
    /// There is nothing to go on from.
    #[error("{}: no checkpoint to resume from{}", folder.display(), remains.instead_of_a_checkpoint())]
    NoCheckpoint {
        /// The run folder.
        folder: PathBuf,
        /// What is in it.
        remains: Remains,
    },
    /// The checkpoint to resume from is of another network.
    #[error(
        "{}: holds another network than model.folder {}; resume with the model.folder that the run began with",
        checkpoint.display(),
        folder.display()
    )]
    OtherModel {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// `model.folder`.
        folder: PathBuf,
    },
    /// Every part is frozen.
    #[error("model.learn freezes every part; needed: at least one of vision, merger, text = \"full\"")]
    NothingLearns,
    /// `data.order` cannot be drawn.
    #[error("{}: {source}", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SamplerError,
    },
    /// `data.order` has too few batches.
    #[error("{}: data.order has {found} batches; needed: one for each of the {needed} steps", path.display())]
    OrderEnds {
        /// The file.
        path: PathBuf,
        /// Batches in the file.
        found: usize,
        /// Steps of the run.
        needed: usize,
    },
    /// Training went astray.
    #[error(
        "step {step}: loss is {loss}, gradient norm {grad_norm}, at a learning rate of {lr:.3e}; nothing was saved of \
         this step; needed: a lower optim.lr or a longer schedule.warmup_steps"
    )]
    NotFinite {
        /// The step.
        step: usize,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// Its learning rate.
        lr: f64,
        /// The newest checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// The user stopped the run.
    #[error("stopped after step {step}; everything is in {}", folder.display())]
    Interrupted {
        /// Steps done.
        step: usize,
        /// The checkpoint.
        folder: PathBuf,
    },
    /// No answers could be generated.
    #[error("cannot generate answers")]
    Answering(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The device failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// What an earlier run left in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// Nothing that would be lost.
    Nothing,
    /// Metrics of a run that ended before its first checkpoint.
    Metrics,
    /// A model, but no checkpoint.
    Final,
    /// Checkpoints.
    Checkpoints,
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Metrics => "a run that ended before its first checkpoint",
            Self::Final => "a finished run, its model is in final",
            Self::Checkpoints => "a run already",
        })
    }
}

impl Remains {
    fn instead_of_a_checkpoint(self) -> &'static str {
        match self {
            Self::Nothing | Self::Checkpoints => "",
            Self::Metrics => "; the run ended before its first",
            Self::Final => {
                "; the run is finished, its model is in final; a higher schedule.steps lets it go on"
            }
        }
    }
}
