//! A training run from config to final weights: run directory, resuming, evaluation, interruption.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::module::Module;
use glm4v_data::{
    BatchSampler, BatchSamplerState, DataLoader, DataLoaderBatch, DataLoaderError, Dataset, RecordCounts,
};
use glm4v_model::fault::guard;
use glm4v_model::{CausalLm, ComputeError, DeviceFault, DeviceSpec, Precision};
use glm4v_weights::{AdapterFolder, AtomicDir, ModelFolder, ProgressFn, write_file};

use crate::callback::Callback;
use crate::checkpoint::{CheckpointFormat, Checkpoints, TrainerState};
use crate::config::RunConfig;
use crate::config_diff::ConfigChange;
use crate::error::TrainError;
use crate::eval::{EvalGenerator, EvalOptions, EvalOutput, evaluate};
use crate::finite::non_finite_params;
use crate::layout::{FINAL, METRICS};
use crate::metrics::{EvalMetrics, LoggedProgress, MetricsWriter, RecordMetrics, StepMetrics};
use crate::plan::{LoraTargets, TrainSummary};
use crate::run_dir::{ResumeRequest, RunDir};
use crate::schedule::Schedule;
use crate::setup::{ModelSetup, ResumeSettings, ResumeState, RunData, data_loader_options, schedule};
use crate::trainer::{StepError, Trainer, TrainerConfig};

/// The result of a run.
#[derive(Debug)]
pub struct TrainOutput {
    /// The last evaluation, if the config names a dataset for it.
    pub report: Option<EvalOutput>,
    /// Directory of the final weights.
    pub dir: PathBuf,
    /// Whether the weights are a LoRA adapter, to be used with the base model.
    pub is_adapter: bool,
    /// Numbers of training records that this process did not use as they are.
    pub records: RecordCounts,
}

/// A training run, ready to begin or to resume.
#[derive(Debug)]
pub struct Run {
    config: RunConfig,
    /// Locked as long as the run exists.
    dir: RunDir,
    format: CheckpointFormat,
    lora: Option<LoraTargets>,
    changed: Vec<ConfigChange>,
    /// Whether any adapter has dropout.
    has_dropout: bool,
    trainer: Trainer,
    schedule: Schedule,
    train: Arc<Dataset>,
    /// Hash of the records of `train`.
    fingerprint: String,
    eval: Option<Dataset>,
    sampler: BatchSampler,
    sampler_state: Option<BatchSamplerState>,
    step: usize,
    /// Step of the newest checkpoint that this process wrote or resumed from.
    saved: Option<usize>,
    precision: Precision,
    trainable_params: usize,
}

impl Run {
    /// Reads datasets and weights, and locks the run directory.
    ///
    /// With `resume`, the run continues from its newest checkpoint; without, the directory must not hold a run. `progress` is
    /// called while weights are read, with the bytes read so far and the total.
    ///
    /// # Errors
    ///
    /// When a dataset, the model or its processor cannot be used, or another process trains in the run directory. The
    /// directory may exist then, without files of a run.
    pub fn open(
        mut config: RunConfig,
        device_spec: &DeviceSpec,
        precision: Precision,
        resume: bool,
        progress: ProgressFn<'_>,
    ) -> Result<Self, TrainError> {
        let mut dir = RunDir::open(&config.run.output_dir)?;
        let evaluates = !config.eval.data.is_empty();
        // Reading the data can take minutes, so a directory that is refused anyway is refused first.
        dir.resume_point(ResumeRequest { resume, max_steps: None, evaluates })?;
        let origin = ModelFolder::open(&config.model.path)?;
        pin_paths(&mut config, &origin)?;
        let RunData { train, eval, mut sampler, steps } = RunData::open(&config, &origin)?;
        dir.create_and_lock()?;
        let checkpoint = dir.resume_point(ResumeRequest { resume, max_steps: Some(steps), evaluates })?;
        let checkpoint = checkpoint.as_deref();
        let fingerprint = train.fingerprint();
        let settings = ResumeSettings { config: &config, precision, fingerprint: &fingerprint };
        let resumed = checkpoint.map(|path| ResumeState::read(path, &dir, &settings)).transpose()?;
        let sampler_state = resumed.as_ref().and_then(|resumed| resumed.state.sampler);
        if let Some(state) = sampler_state {
            sampler.restore(state)?;
        }
        // Only now: everything that can be refused without weights has been.
        let device_spec = device_spec.clone().autodiff();
        let setup = ModelSetup { config: &config, origin: &origin, dir: &dir, device_spec, precision };
        let loaded = setup.load(checkpoint, progress)?;
        let optimizer = setup.optimizer(checkpoint, &loaded.model)?;
        // Last: a directory with a config is one whose run began.
        write_file(&config.run.output_dir.join("config.toml"), config.to_toml().as_bytes())?;
        let saved = resumed.as_ref().map(|resumed| resumed.state.step);
        let trainer_config = TrainerConfig {
            max_grad_norm: config.optim.max_grad_norm,
            router_aux_loss_coef: config.optim.router_aux_loss_coef,
        };
        Ok(Self {
            schedule: schedule(&config, steps),
            has_dropout: loaded.format.has_dropout(),
            changed: resumed.map_or_else(Vec::new, |resumed| resumed.changed),
            step: saved.unwrap_or(0),
            trainer: Trainer::new(loaded.model, optimizer, trainer_config),
            format: loaded.format,
            lora: loaded.lora,
            trainable_params: loaded.trainable_params,
            saved,
            sampler_state,
            config,
            dir,
            train,
            fingerprint,
            eval,
            sampler,
            precision,
        })
    }

    /// Size of the run: steps, parameters, examples.
    pub fn plan(&self) -> TrainSummary {
        TrainSummary {
            step: self.step,
            steps: self.schedule.steps,
            parameters: self.trainer.model().num_params(),
            trainable_params: self.trainable_params,
            train_records: self.train.len(),
            eval_records: self.eval.as_ref().map_or(0, Dataset::len),
            lora: self.lora.clone(),
            changed: self.changed.clone(),
        }
    }

    /// Trains to the last step, writes the final weights, and evaluates them.
    ///
    /// Weights are saved before they are evaluated, so that nothing is lost if the evaluation fails. When `stop` turns true,
    /// the current step is finished, a checkpoint written, and [`TrainError::Interrupted`] returned.
    ///
    /// # Errors
    ///
    /// When a record cannot be used, a loss or weight is not finite, a file cannot be written, or the device fails. Checkpoints
    /// are complete then, and the run can be resumed from the newest.
    pub fn train<G: EvalGenerator>(
        mut self,
        generator: &mut G,
        callback: &mut impl Callback,
        stop: &AtomicBool,
    ) -> Result<TrainOutput, TrainError> {
        callback.on_train_begin(&self.plan());
        let path = self.config.run.output_dir.join(METRICS);
        let evaluated = LoggedProgress::read(&path).evaluated;
        let metrics = MetricsWriter::open(&path, self.step)?;
        let mut context = RunContext { generator, callback, metrics, stop };
        let device = self.trainer.model().device();
        // The device can fail at any read, and where burn has no error for it, by a panic.
        let error = match guard(|| self.train_to_end(evaluated, &mut context)) {
            Ok(Ok(output)) => return Ok(output),
            Ok(Err(error)) => error,
            Err(fault) => ComputeError::from(fault).into(),
        };
        match error.device_fault().cloned() {
            Some(fault) => Err(self.device_failed(fault.with_memory(&device))?),
            None => Err(error),
        }
    }

    /// Trains, saves and evaluates. `evaluated` is the last step that an earlier process evaluated.
    fn train_to_end<G: EvalGenerator, C: Callback>(
        &mut self,
        evaluated: Option<usize>,
        context: &mut RunContext<'_, G, C>,
    ) -> Result<TrainOutput, TrainError> {
        // A run that was interrupted during an evaluation repeats it.
        if self.step > 0 && evaluated < Some(self.step) && self.is_evaluation_due() {
            self.evaluate(context)?;
        }
        self.train_steps(context)?;
        let records = self.train.counts();
        if !records.is_empty() {
            context.metrics.write(&RecordMetrics::new(self.step, records))?;
        }
        if self.config.run.save_steps > 0 {
            self.checkpoint(context.callback)?;
        }
        let dir = self.save_final()?;
        context.callback.on_save(&dir);
        let report = self.evaluate(context)?;
        let is_adapter = matches!(self.format, CheckpointFormat::Adapter(_));
        Ok(TrainOutput { report, dir, is_adapter, records })
    }

    /// Runs the remaining steps, with evaluations and checkpoints between them.
    fn train_steps<G: EvalGenerator, C: Callback>(
        &mut self,
        context: &mut RunContext<'_, G, C>,
    ) -> Result<(), TrainError> {
        let options = data_loader_options(&self.config);
        let mut batches = DataLoader::new(self.train.clone(), self.sampler.clone(), options)?;
        while self.step < self.schedule.steps {
            self.check_stop(context)?;
            let start = Instant::now();
            let loaded = self.next_batch(&mut batches, context.callback)?;
            let done = self.train_step(loaded, start.elapsed(), context.callback)?;
            // Before the callback: a step that was shown is in the file.
            context.metrics.write(&done)?;
            context.callback.on_step_end(&done);
            self.check_stop(context)?;
            if self.step == self.schedule.steps {
                break;
            }
            let save_steps = self.config.run.save_steps;
            let evaluates = self.is_evaluation_due();
            if save_steps > 0 && (evaluates || self.step.is_multiple_of(save_steps)) {
                self.checkpoint(context.callback)?;
            }
            if evaluates {
                self.evaluate(context)?;
            }
        }
        Ok(())
    }

    /// The next batch; a bad record writes a checkpoint before its error is returned.
    fn next_batch(
        &mut self,
        batches: &mut DataLoader,
        callback: &mut impl Callback,
    ) -> Result<DataLoaderBatch, TrainError> {
        // A fixed order can end early although it was long enough: a batch whose records were all dropped makes no step.
        let too_short = || TrainError::BatchOrderTooShort {
            path: self.config.data.batch_order.clone(),
            found: self.step,
            needed: self.schedule.steps,
        };
        let loaded: Result<DataLoaderBatch, DataLoaderError> = batches.next().ok_or_else(too_short)?;
        if loaded.is_err() && self.sampler_state.is_some() {
            // A bad record must not cost the steps since the last checkpoint.
            self.checkpoint(callback)?;
        }
        Ok(loaded?)
    }

    /// Whether an evaluation between two steps is due.
    fn is_evaluation_due(&self) -> bool {
        let every = self.config.eval.steps;
        let due = every > 0 && self.step.is_multiple_of(every) && self.step < self.schedule.steps;
        due && self.eval.is_some()
    }

    /// Writes a checkpoint and ends the run if `stop` is true.
    fn check_stop<G, C: Callback>(&mut self, context: &mut RunContext<'_, G, C>) -> Result<(), TrainError> {
        if !context.stop.load(Ordering::Relaxed) || self.sampler_state.is_none() {
            return Ok(()); // no step, so no state to save
        }
        let dir = self.checkpoint(context.callback)?;
        Err(TrainError::Interrupted { step: self.step, dir })
    }

    /// One step over a batch, for which it waited `data_time`.
    fn train_step(
        &mut self,
        loaded: DataLoaderBatch,
        data_time: Duration,
        callback: &mut impl Callback,
    ) -> Result<StepMetrics, TrainError> {
        let start = Instant::now();
        if !loaded.dropped.is_empty() {
            callback.on_drop(loaded.dropped.len());
        }
        if self.has_dropout {
            // Seeded per step, so that a resumed run draws the same dropout masks as an uninterrupted one.
            let seed = self.config.run.seed ^ (self.step as u64 + 1).rotate_left(32);
            self.trainer.model().device().seed(seed);
        }
        let lr = self.schedule.lr_at(self.step);
        self.trainer.accumulate(&loaded.batch)?;
        let output = match self.trainer.step(lr) {
            Ok(output) => output,
            Err(StepError::NotFinite(output)) => {
                let (step, checkpoint) = (self.step + 1, self.newest_checkpoint()?);
                let (loss, grad_norm) = (output.loss, output.grad_norm);
                return Err(TrainError::NotFinite { step, loss, grad_norm, lr, checkpoint });
            }
            Err(error) => return Err(error.into()),
        };
        self.step += 1;
        // The state of this batch, not of the sampler, which is ahead by the batches in the queue.
        self.sampler_state = Some(loaded.state);
        let tokens = loaded.batch.num_tokens();
        let step_time = start.elapsed().as_secs_f64();
        Ok(StepMetrics {
            step: self.step,
            epoch: loaded.epochs,
            loss: output.loss,
            grad_norm: output.grad_norm,
            lr,
            tokens,
            padding: 1.0 - tokens as f64 / loaded.batch.input_ids.len().max(1) as f64,
            tokens_per_second: tokens as f64 / step_time,
            step_time,
            data_time: data_time.as_secs_f64(),
        })
    }

    /// Evaluates the saved weights; none without an evaluation dataset.
    ///
    /// The run ends here if the evaluation fails or is cancelled; resuming it repeats this evaluation.
    fn evaluate<G: EvalGenerator, C: Callback>(
        &mut self,
        context: &mut RunContext<'_, G, C>,
    ) -> Result<Option<EvalOutput>, TrainError> {
        let Some(eval) = &self.eval else { return Ok(None) };
        let model = self.trainer.eval_model();
        let options = EvalOptions { batch_size: self.config.eval.batch_size, stop: context.stop };
        let progress = |done| context.callback.on_eval_progress(done, eval.len());
        let report = match evaluate(&model, eval, context.generator, options, progress) {
            Ok(Some(report)) => report,
            Ok(None) => {
                self.check_stop(context)?;
                return Ok(None);
            }
            Err(error) => return Err(self.evaluation_failed(error, context.callback)?),
        };
        let summary = EvalMetrics {
            step: self.step,
            eval_loss: report.loss,
            exact_match: report.exact_match(),
            samples: report.predictions.len(),
            dropped: report.dropped,
        };
        context.metrics.write(&summary)?;
        context.callback.on_evaluate(&summary);
        Ok(Some(report))
    }

    /// Saves a run whose evaluation failed, and makes its error.
    fn evaluation_failed(
        &mut self,
        source: TrainError,
        callback: &mut impl Callback,
    ) -> Result<TrainError, TrainError> {
        let last = self.step == self.schedule.steps;
        let checkpoint = self.checkpoint(callback)?;
        let weights = if last { self.config.run.output_dir.join(FINAL) } else { checkpoint };
        Ok(TrainError::Evaluation { step: self.step, weights, source: Box::new(source) })
    }

    /// The error of a run whose device failed, with the checkpoint that is left.
    fn device_failed(&self, source: DeviceFault) -> Result<TrainError, TrainError> {
        Ok(TrainError::Device { step: self.step, checkpoint: self.newest_checkpoint()?, source })
    }

    /// The directory of the newest checkpoint, if there is one.
    fn newest_checkpoint(&self) -> Result<Option<PathBuf>, TrainError> {
        Ok(Checkpoints::new(self.dir.path()).list()?.pop().map(|(_, path)| path))
    }

    /// Writes a checkpoint of this step, if there is none yet.
    fn checkpoint(&mut self, callback: &mut impl Callback) -> Result<PathBuf, TrainError> {
        let checkpoints = Checkpoints::new(self.dir.path());
        if self.saved == Some(self.step) {
            return Ok(checkpoints.path(self.step));
        }
        self.check_finite()?;
        let state = TrainerState {
            step: self.step,
            steps: self.schedule.steps,
            sampler: self.sampler_state,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.clone(),
            dtype: self.precision.to_string(),
            data: self.fingerprint.clone(),
        };
        let dir = checkpoints.save(
            self.trainer.model(),
            &self.format,
            self.trainer.optimizer(),
            &state,
            self.config.run.save_total_limit,
        )?;
        self.saved = Some(self.step);
        callback.on_save(&dir);
        Ok(dir)
    }

    /// Writes the final weights.
    fn save_final(&self) -> Result<PathBuf, TrainError> {
        self.check_finite()?;
        let dir = self.config.run.output_dir.join(FINAL);
        let staged = AtomicDir::new(&dir)?;
        self.format.save(self.trainer.model(), staged.path())?;
        staged.publish()?;
        Ok(dir)
    }

    /// Refuses to save NaN or infinite weights, which would only be noticed once they are loaded.
    fn check_finite(&self) -> Result<(), TrainError> {
        let broken = non_finite_params(self.trainer.model())?;
        let Some(parameter) = broken.first().cloned() else { return Ok(()) };
        Err(TrainError::NotFiniteWeights {
            step: self.step,
            parameter,
            others: broken.len() - 1,
            lr: self.schedule.lr_at(self.step.saturating_sub(1)),
            checkpoint: self.newest_checkpoint()?,
        })
    }
}

/// Arguments of [`Run::train`], and the metrics file.
struct RunContext<'a, G, C> {
    generator: &'a mut G,
    callback: &'a mut C,
    metrics: MetricsWriter,
    stop: &'a AtomicBool,
}

/// Replaces names in the Hugging Face cache by names with a commit, so that a resumed run loads the same weights.
fn pin_paths(config: &mut RunConfig, origin: &ModelFolder) -> Result<(), TrainError> {
    config.model.path = origin.name();
    if let Some(lora) = config.lora.as_mut().filter(|lora| !lora.adapter_path.as_os_str().is_empty()) {
        lora.adapter_path = AdapterFolder::open(&lora.adapter_path)?.name();
    }
    Ok(())
}
