#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! A [`RunConfig`] read from TOML opens a [`Session`]; [`Session::run`] trains, reports to an [`Observer`], and
//! leaves a run folder: `config.toml` with every key, `metrics.jsonl`, `checkpoints/step-N/`, `final/`. The parts
//! ([`loss()`], [`NamedGradients`], [`AdamW`], [`Schedule`]) are usable alone.

mod adamw;
mod changes;
mod checkpoint;
mod config;
mod eval;
mod finite;
mod folder;
mod gradients;
mod learn;
mod loss;
mod metrics;
mod schedule;
mod session;

pub use adamw::{AdamW, AdamWConfig};
pub use changes::Change;
pub use checkpoint::{Checkpoints, TrainerState};
pub use config::{
    DataSection, EvalSection, Init, LoraSection, ModelSection, OnBadChoice, OnLongChoice, OptimSection, Part,
    RunConfig, RunConfigError, RunSection, ScheduleSection,
};
pub use eval::{Answer, Answering, EvalReport, Prediction, evaluate};
pub use folder::RunFolderError;
pub use gradients::NamedGradients;
pub use learn::{freeze, freeze_all_but};
pub use loss::{Targets, balanced_loss, cross_entropy, loss};
pub use metrics::{EvalSummary, Metrics, StepReport};
pub use schedule::{Schedule, ScheduleKind};
pub use session::{LoraPlan, Observer, Outcome, Plan, Session};

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
    /// No such dataset.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A dataset cannot be read, or has records that cannot be used.
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
    /// The run folder is in use, or holds no run or another than is wanted.
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    /// The checkpoint to resume from was made with another setting, which its state depends on.
    #[error(
        "{}: was made with {} {}, this run has {}; needed: {}, as {reason}",
        checkpoint.display(), change.key, change.saved, change.now, change.saved
    )]
    Changed {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The setting.
        change: Change,
        /// Why it must not change.
        reason: &'static str,
    },
    /// The records to learn from are not those that the run began with.
    #[error(
        "{}: data.train, {data}, holds other records than when the run began, or holds them in another order; needed: the \
         data of the checkpoint",
        checkpoint.display()
    )]
    OtherData {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// `data.train`.
        data: String,
    },
    /// The checkpoint to resume from cannot be read.
    #[error(
        "{} cannot be resumed from, as it is damaged or of another version",
        checkpoint.display()
    )]
    DamagedCheckpoint {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The one before.
        older: Option<PathBuf>,
        /// What is wrong with it.
        source: Box<TrainError>,
    },
    /// An evaluation failed, after what it looked at was saved.
    #[error(
        "the evaluation after step {step} failed; the weights are in {}, and the run can be resumed with this evaluation",
        weights.display()
    )]
    Evaluation {
        /// Steps done.
        step: usize,
        /// The final weights, or the checkpoint.
        weights: PathBuf,
        /// What went wrong.
        source: Box<TrainError>,
    },
    /// The checkpoint to resume from is of another network.
    #[error(
        "{}: holds another network than model.path {}; resume with the model.path that the run began with",
        checkpoint.display(),
        folder.display()
    )]
    OtherModel {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// `model.path`.
        folder: PathBuf,
    },
    /// Every part is frozen.
    #[error(
        "model.freeze leaves no trainable parameters; needed: at least one of vision, merger, text not in it"
    )]
    NothingLearns,
    /// `data.batch_order` cannot be drawn.
    #[error("{}: {source}", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SamplerError,
    },
    /// `data.batch_order` numbers records of which some are left out.
    #[error(
        "{}: data.batch_order numbers every record, and {left_out} are left out as bad; needed: data.on_bad = \"stop\" and data \
         without them",
        path.display()
    )]
    OrderSkips {
        /// The file.
        path: PathBuf,
        /// Records left out.
        left_out: usize,
    },
    /// `data.batch_order` has too few batches.
    #[error("{}: data.batch_order has {found} batches; needed: one for each of the {needed} steps", path.display())]
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
    /// A step left weights that are not finite numbers.
    #[error(
        "step {step}: {parameter}{} no longer finite, at a learning rate of {lr:.3e}; nothing was saved of this step; \
         needed: a lower optim.lr or optim.weight_decay, or a longer schedule.warmup_steps",
        if *others == 0 { " is".to_owned() } else { format!(" and {others} other parameters are") }
    )]
    NotFiniteWeights {
        /// The step.
        step: usize,
        /// The first parameter.
        parameter: String,
        /// How many more there are.
        others: usize,
        /// The step's learning rate.
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
