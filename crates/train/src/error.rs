//! Why a run cannot begin, or ended early.

use std::path::PathBuf;

use glm4v_data::{
    BatchSamplerError, DataLoaderError, DatasetError, DatasetRegistryError, PixelCacheError, SampleError,
};
use glm4v_model::{ComputeError, DeviceFault, ModelInputError};
use glm4v_processor::ProcessorError;
use glm4v_weights::WeightsError;

use crate::config_diff::ConfigChange;
use crate::layout::FINAL;
use crate::trainer::StepError;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer, chat template or image settings of the model cannot be used.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// No such dataset.
    #[error(transparent)]
    DatasetRegistry(#[from] DatasetRegistryError),
    /// A dataset cannot be read, or has records that cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A record cannot be used.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The image cache cannot be opened (`data.cache_dir`).
    #[error(transparent)]
    PixelCache(#[from] PixelCacheError),
    /// Batches cannot be prepared.
    #[error(transparent)]
    Load(#[from] DataLoaderError),
    /// Batches cannot be drawn from the data.
    #[error(transparent)]
    BatchSampler(#[from] BatchSamplerError),
    /// A batch does not fit the network.
    #[error(transparent)]
    Input(#[from] ModelInputError),
    /// A JSON file that a run depends on cannot be parsed.
    #[error("{}: {source}", path.display())]
    State {
        /// `trainer.json` of a checkpoint, or `data.batch_order`.
        path: PathBuf,
        /// Line and column of the first problem.
        source: serde_json::Error,
    },
    /// The run directory cannot be written to.
    #[error("{}: cannot write the run directory: {source}", dir.display())]
    OutputDir {
        /// `run.output_dir`.
        dir: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The run directory is in use, or cannot be resumed as requested.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A setting that the saved state depends on differs from the checkpoint's.
    #[error(
        "{}: was made with {} {}, this run has {}; needed: {}, as {reason}",
        checkpoint.display(), change.key, change.saved, change.current, change.saved
    )]
    ConfigChanged {
        /// Directory of the checkpoint.
        checkpoint: PathBuf,
        /// The setting, with both values.
        change: ConfigChange,
        /// Why it must not change.
        reason: &'static str,
    },
    /// `data.eval_fraction` of datasets of one record.
    #[error(
        "data.train, {data}: has too few records to hold one out; needed: two or more, or eval.data instead of data.eval_fraction"
    )]
    NothingHeldOut {
        /// `data.train`.
        data: String,
    },
    /// The training records differ from the checkpoint's, by their fingerprint.
    #[error(
        "{}: data.train, {data}, holds other records than when the run began, or holds them in another order; needed: the \
         data of the checkpoint",
        checkpoint.display()
    )]
    DataChanged {
        /// Directory of the checkpoint.
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
        /// Directory of the checkpoint.
        checkpoint: PathBuf,
        /// The previous checkpoint.
        older: Option<PathBuf>,
        /// The file of it that failed, and why.
        source: Box<TrainError>,
    },
    /// An evaluation failed; the weights that it evaluated are saved.
    #[error(
        "the evaluation after step {step} failed; the weights are in {}, and the run can be resumed with this evaluation",
        weights.display()
    )]
    Evaluation {
        /// Steps done.
        step: usize,
        /// Directory of the final weights, or of the checkpoint.
        weights: PathBuf,
        /// Error of the evaluation.
        source: Box<TrainError>,
    },
    /// The checkpoint has another model config than `model.path`.
    #[error(
        "{}: holds another network than model.path {}; resume with the model.path that the run began with",
        checkpoint.display(),
        model.display()
    )]
    ModelMismatch {
        /// Directory of the checkpoint.
        checkpoint: PathBuf,
        /// `model.path`.
        model: PathBuf,
    },
    /// `model.freeze` covers every parameter.
    #[error(
        "model.freeze leaves no trainable parameters; needed: at least one of vision, merger, text not in it"
    )]
    NoTrainableParameters,
    /// No adapter is left to train.
    #[error(
        "the adapters have no trainable parameters; needed: a linear layer that lora.target_modules selects and \
         lora.exclude_modules does not"
    )]
    NoTrainableAdapters,
    /// `data.batch_order` cannot be drawn.
    #[error("{}: {source}", path.display())]
    BatchOrder {
        /// `data.batch_order`.
        path: PathBuf,
        /// Why the sampler refuses it.
        source: BatchSamplerError,
    },
    /// `data.batch_order` numbers every record, and some are skipped as bad.
    #[error(
        "{}: data.batch_order numbers every record, and {skipped} are left out as bad; needed: data.on_bad = \"stop\" and data \
         without them",
        path.display()
    )]
    BatchOrderSkipped {
        /// `data.batch_order`.
        path: PathBuf,
        /// Number of skipped records.
        skipped: usize,
    },
    /// `data.batch_order` has too few batches.
    #[error("{}: data.batch_order has {found} batches; needed: one for each of the {needed} steps", path.display())]
    BatchOrderTooShort {
        /// `data.batch_order`.
        path: PathBuf,
        /// Batches in the file.
        found: usize,
        /// Steps of the run.
        needed: usize,
    },
    /// Loss or gradient norm overflowed: training diverged.
    #[error(
        "step {step}: loss is {loss}, gradient norm {grad_norm}, at a learning rate of {lr:.3e}; nothing was saved of \
         this step; needed: a lower optim.lr or a longer schedule.warmup_steps"
    )]
    NotFinite {
        /// Step number, from 1.
        step: usize,
        /// Mean cross entropy over the label tokens.
        loss: f64,
        /// Global norm before clipping.
        grad_norm: f64,
        /// Learning rate of the step.
        lr: f64,
        /// Directory of the newest checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// The update overflowed a parameter.
    #[error(
        "step {step}: {parameter}{} no longer finite, at a learning rate of {lr:.3e}; nothing was saved of this step; \
         needed: a lower optim.lr or optim.weight_decay, or a longer schedule.warmup_steps",
        if *others == 0 { " is".to_owned() } else { format!(" and {others} other parameters are") }
    )]
    NotFiniteWeights {
        /// Step number, from 1.
        step: usize,
        /// Name of the first parameter.
        parameter: String,
        /// Number of further parameters.
        others: usize,
        /// Learning rate of the step.
        lr: f64,
        /// Directory of the newest checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// The run was asked to stop.
    #[error("stopped after step {step}; everything is in {}", dir.display())]
    Interrupted {
        /// Steps done.
        step: usize,
        /// Directory of the checkpoint.
        dir: PathBuf,
    },
    /// The [`EvalGenerator`](crate::EvalGenerator) failed.
    #[error("cannot generate answers")]
    Generate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A step could not be taken.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The device failed while something was read of it.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The device failed in the middle of the run.
    #[error("the device failed after step {step}; nothing was saved of what followed the newest checkpoint")]
    Device {
        /// Steps done.
        step: usize,
        /// Directory of the newest checkpoint.
        checkpoint: Option<PathBuf>,
        /// What failed.
        source: DeviceFault,
    },
}

impl TrainError {
    /// What failed on the device, if that is why the run ended.
    pub(crate) fn device_fault(&self) -> Option<&DeviceFault> {
        match self {
            Self::Compute(error) | Self::Step(StepError::Compute(error)) => Some(&error.fault),
            Self::Evaluation { source, .. } => source.device_fault(),
            Self::Generate(source) => fault_of(source.as_ref()),
            _ => None,
        }
    }
}

/// The fault among the causes of an error.
fn fault_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a DeviceFault> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        error.downcast_ref().or_else(|| error.downcast_ref::<ComputeError>().map(|error| &error.fault))
    })
}

/// Why a run cannot begin in its directory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// Another process holds the lock.
    #[error(
        "{}: in use by {}; needed: the end of that run, or another run.output_dir",
        dir.display(), describe_process(*process)
    )]
    InUse {
        /// `run.output_dir`.
        dir: PathBuf,
        /// Process id, if the lock file has one.
        process: Option<u32>,
    },
    /// The directory holds a run, and resuming was not requested.
    #[error("{}: holds {}", dir.display(), describe_run(*checkpoint, *finished))]
    RunExists {
        /// `run.output_dir`.
        dir: PathBuf,
        /// Step of the newest checkpoint.
        checkpoint: Option<usize>,
        /// Whether final weights exist.
        finished: bool,
    },
    /// Resuming was requested, and the directory holds no run.
    #[error("{}: holds no run to resume", dir.display())]
    Empty {
        /// `run.output_dir`.
        dir: PathBuf,
    },
    /// The run ended before its first checkpoint.
    #[error("{}: the run ended before its first checkpoint, so that nothing can be resumed", dir.display())]
    EndedEarly {
        /// `run.output_dir`.
        dir: PathBuf,
    },
    /// The run is finished and kept no checkpoint, so that it cannot be extended.
    #[error(
        "{}: the run is finished and has no checkpoint to resume from (run.save_steps = 0 keeps none); to train its weights \
         further, start a run in another run.output_dir with {} = \"{}\" and model.init = \"pretrained\"",
        dir.display(), if *adapter { "lora.adapter_path" } else { "model.path" }, dir.join(FINAL).display()
    )]
    NoCheckpoint {
        /// `run.output_dir`.
        dir: PathBuf,
        /// Whether the final weights are those of an adapter.
        adapter: bool,
    },
    /// The run is finished, and the schedule asks for no further step.
    #[error(
        "{}: the run is finished after {done} steps, its weights are in {FINAL}; needed: more than {done} steps \
         (schedule.max_steps or schedule.epochs), to go on from {}",
        dir.display(), checkpoint.display()
    )]
    Finished {
        /// `run.output_dir`.
        dir: PathBuf,
        /// Steps done.
        done: usize,
        /// Directory of the newest checkpoint.
        checkpoint: PathBuf,
    },
    /// The schedule has fewer steps than are done.
    #[error(
        "{}: {done} steps are done, and the schedule has {steps}; needed: at least {done} (schedule.max_steps or \
         schedule.epochs), or another run.output_dir",
        dir.display()
    )]
    FewerSteps {
        /// `run.output_dir`.
        dir: PathBuf,
        /// Steps done.
        done: usize,
        /// Steps of the schedule.
        steps: usize,
    },
}

fn describe_process(process: Option<u32>) -> String {
    match process {
        Some(id) => format!("another run, process {id}"),
        None => "another run".to_owned(),
    }
}

fn describe_run(checkpoint: Option<usize>, finished: bool) -> String {
    match (checkpoint, finished) {
        (None, false) => "a run that ended before its first checkpoint".to_owned(),
        (None, true) => format!("a finished run, its weights are in {FINAL}"),
        (Some(step), false) => format!("a run with a checkpoint after step {step}"),
        (Some(step), true) => format!("a run with weights in {FINAL} and a checkpoint after step {step}"),
    }
}
