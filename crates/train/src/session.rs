//! A run from its config to its last weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_data::{
    Dataset, DatasetOptions, LoadError, LoadedBatch, OnBad, Order, Overlong, Prefetch, Registry, Sampler,
    SamplerState, fingerprint,
};
use glm4v_files::read_text;
use glm4v_model::{ComputeError, Glm4v, Precision, Site, initialize};
use glm4v_processor::Processor;
use glm4v_weights::{
    AdapterConfig, AdapterFolder, ModelFolder, StagedFolder, Watch, WeightsError, attach, write_file,
};

use crate::TrainError;
use crate::adamw::{AdamW, AdamWConfig};
use crate::changes::{Change, Fate, changes};
use crate::checkpoint::{Checkpoints, Learned, OPTIMIZER, TrainerState};
use crate::config::{Init, LoraSection, OnBadChoice, OnLongChoice, RunConfig};
use crate::eval::{Answering, EvalReport, evaluate};
use crate::finite::not_finite;
use crate::folder::{FINAL, Goal, METRICS, RunFolder};
use crate::gradients::NamedGradients;
use crate::learn::{freeze, freeze_all_but};
use crate::loss::{Targets, balanced_loss};
use crate::metrics::{EvalSummary, Metrics, StepReport, progress};
use crate::schedule::Schedule;

/// Hears what a run does, to show it to people.
pub trait Observer {
    /// A run is about to begin, or to go on after `state.step` steps.
    fn started(&mut self, plan: &Plan);
    /// A step is done.
    fn stepped(&mut self, report: &StepReport);
    /// Records were left out as too long.
    fn dropped(&mut self, records: usize);
    /// An evaluation goes on: answers so far, of how many.
    fn evaluating(&mut self, done: usize, of: usize);
    /// An evaluation is over.
    fn evaluated(&mut self, summary: &EvalSummary);
    /// A folder with weights appeared.
    fn saved(&mut self, folder: &Path);
}

/// What a run is going to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Steps done before.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Parameters of the network.
    pub parameters: usize,
    /// Parameters that learn.
    pub learning: usize,
    /// Records to learn from.
    pub train_records: usize,
    /// Records to be evaluated on.
    pub eval_records: usize,
    /// The adapters that learn; none if the model's own weights do.
    pub lora: Option<LoraPlan>,
    /// What the config changes since the checkpoint, if the run goes on from one.
    pub changed: Vec<Change>,
}

/// Adapters that learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraPlan {
    /// Their rank, where no pattern says otherwise.
    pub r: usize,
    /// Modules with an adapter; the experts of a layer count once.
    pub modules: Vec<String>,
}

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// The last evaluation, if the config names a dataset for it.
    pub report: Option<EvalReport>,
    /// Folder with the final weights.
    pub folder: PathBuf,
    /// Whether they are an adapter's, to be used with the model that the run began with.
    pub adapter: bool,
}

/// A run, ready to start or to go on.
#[derive(Debug)]
pub struct Session {
    config: RunConfig,
    /// Locked for this run as long as the session lives.
    folder: RunFolder,
    learned: Learned,
    lora: Option<LoraPlan>,
    changed: Vec<Change>,
    /// Whether any adapter leaves inputs out at random.
    drops_out: bool,
    model: Option<Glm4v>,
    optimizer: AdamW,
    schedule: Schedule,
    train: Arc<Dataset>,
    /// What the records of `train` are known by.
    fingerprint: String,
    eval: Option<Dataset>,
    sampler: Sampler,
    sampler_state: Option<SamplerState>,
    step: usize,
    /// Steps before the newest checkpoint of this session, or the one that it goes on from.
    saved: Option<usize>,
    precision: Precision,
    learning: usize,
}

/// The model is away only while the optimizer rebuilds it.
const PRESENT: &str = "the model is there between two steps";

impl Session {
    /// Reads data and weights, and claims the run folder.
    ///
    /// With `resume`, the run goes on from its newest checkpoint; without, the run folder must not hold a run. `watch`
    /// hears how much of the weights is there.
    ///
    /// # Errors
    ///
    /// When anything that the config names cannot be used, or another process trains in the run folder; nothing is written
    /// then but the run folder.
    pub fn open(
        mut config: RunConfig,
        site: &Site,
        precision: Precision,
        resume: bool,
        watch: Watch<'_>,
    ) -> Result<Self, TrainError> {
        let mut folder = RunFolder::open(&config.run.output_dir)?;
        let evaluates = !config.eval.data.is_empty();
        // What needs no data is found out before it is read.
        folder.beginning(resume, Goal { steps: None, evaluates })?;
        let origin = ModelFolder::open(&config.model.path)?;
        // Of a repository's branch the commit is kept: a run that goes on must find the same weights.
        config.model.path = origin.name();
        if let Some(lora) = config.lora.as_mut().filter(|lora| !lora.adapter_path.as_os_str().is_empty()) {
            lora.adapter_path = AdapterFolder::open(&lora.adapter_path)?.name();
        }
        let Inputs { train, eval, mut sampler, steps } = Inputs::read(&config, &origin)?;
        folder.claim()?;
        let goal = Goal { steps: Some(steps), evaluates };
        let checkpoint = folder.beginning(resume, goal)?;
        let fingerprint = fingerprint(train.records(), media_folder(&config));
        let now = Now { config: &config, precision, data: &fingerprint };
        let saved = checkpoint.as_deref().map(|path| Resumed::read(path, &folder, &now)).transpose()?;
        if let Some(state) = saved.as_ref().and_then(|saved| saved.state.sampler) {
            sampler.restore(state)?;
        }
        let device = site.clone().autodiff();
        let start = Start { config: &config, origin: &origin, folder: &folder, site: device, precision };
        let Started { model, learned, lora, learning } = match &config.lora {
            Some(lora) => start.adapter(lora, checkpoint.as_deref(), watch)?,
            None => start.whole(checkpoint.as_deref(), watch)?,
        };
        if learning == 0 {
            return Err(TrainError::NothingLearns);
        }
        let optimizer = start.optimizer(checkpoint.as_deref(), &model)?;
        write_file(&config.run.output_dir.join("config.toml"), config.to_toml().as_bytes())?;
        let step = saved.as_ref().map(|saved| saved.state.step);
        Ok(Self {
            schedule: schedule(&config, steps),
            drops_out: matches!(&learned, Learned::Adapter(config) if config.lora_dropout > 0.0),
            sampler_state: saved.as_ref().and_then(|saved| saved.state.sampler),
            changed: saved.map_or_else(Vec::new, |saved| saved.changed),
            step: step.unwrap_or(0),
            saved: step,
            model: Some(model),
            config,
            folder,
            learned,
            lora,
            optimizer,
            train,
            fingerprint,
            eval,
            sampler,
            precision,
            learning,
        })
    }

    fn model(&self) -> &Glm4v {
        self.model.as_ref().expect(PRESENT)
    }

    /// What is going to happen.
    pub fn plan(&self) -> Plan {
        Plan {
            step: self.step,
            steps: self.schedule.steps,
            parameters: self.model().num_params(),
            learning: self.learning,
            train_records: self.train.len(),
            eval_records: self.eval.as_ref().map_or(0, Dataset::len),
            lora: self.lora.clone(),
            changed: self.changed.clone(),
        }
    }

    /// Trains to the end, writes the final model folder, and evaluates.
    ///
    /// An evaluation comes after what it looks at is saved, so that nothing is lost if it fails. When `stop` turns true the
    /// step under way is finished, a checkpoint written, and [`TrainError::Interrupted`] returned.
    ///
    /// # Errors
    ///
    /// When a record cannot be used, a number is not finite, or nothing can be written.
    pub fn run<A: Answering>(
        mut self,
        answering: &mut A,
        observer: &mut impl Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        observer.started(&self.plan());
        let path = self.config.run.output_dir.join(METRICS);
        let evaluated = progress(&path).evaluated;
        let metrics = Metrics::open(&path, self.step)?;
        let mut run = Running { answering, observer, metrics, stop };
        // A run that ended during an evaluation begins with it.
        if self.step > 0 && evaluated < Some(self.step) && self.evaluates_now() {
            self.evaluate(&mut run)?;
        }
        self.train(&mut run)?;
        if self.config.run.save_steps > 0 {
            self.keep(run.observer)?;
        }
        let folder = self.finish()?;
        run.observer.saved(&folder);
        let report = self.evaluate(&mut run)?;
        let adapter = matches!(self.learned, Learned::Adapter(_));
        Ok(Outcome { report, folder, adapter })
    }

    /// All steps that are left, with evaluations and checkpoints in between.
    fn train<A: Answering, O: Observer>(&mut self, run: &mut Running<'_, A, O>) -> Result<(), TrainError> {
        let mut batches = Prefetch::new(self.train.clone(), self.sampler.clone(), self.config.data.workers)?;
        while self.step < self.schedule.steps {
            self.stop_if_asked(run)?;
            let loaded = self.next(&mut batches, run.observer)?;
            let done = self.learn(loaded, run.observer)?;
            run.metrics.write(&done)?;
            run.observer.stepped(&done);
            self.stop_if_asked(run)?;
            if self.step == self.schedule.steps {
                break;
            }
            let save_steps = self.config.run.save_steps;
            let evaluates = self.evaluates_now();
            if save_steps > 0 && (evaluates || self.step.is_multiple_of(save_steps)) {
                self.keep(run.observer)?;
            }
            if evaluates {
                self.evaluate(run)?;
            }
        }
        Ok(())
    }

    /// The next batch.
    fn next(
        &mut self,
        batches: &mut Prefetch,
        observer: &mut impl Observer,
    ) -> Result<LoadedBatch, TrainError> {
        // A given order may still end early: batches whose records were all dropped make no step.
        let ended = || TrainError::OrderEnds {
            path: self.config.data.batch_order.clone(),
            found: self.step,
            needed: self.schedule.steps,
        };
        let loaded: Result<LoadedBatch, LoadError> = batches.next().ok_or_else(ended)?;
        if loaded.is_err() && self.sampler_state.is_some() {
            // A record that cannot be used must not cost what was learned from the others.
            self.keep(observer)?;
        }
        Ok(loaded?)
    }

    /// Whether an evaluation between two steps is due.
    fn evaluates_now(&self) -> bool {
        let every = self.config.eval.steps;
        let due = every > 0 && self.step.is_multiple_of(every) && self.step < self.schedule.steps;
        due && self.eval.is_some()
    }

    /// Saves everything and ends the run if that was asked for.
    fn stop_if_asked<A, O: Observer>(&mut self, run: &mut Running<'_, A, O>) -> Result<(), TrainError> {
        if !run.stop.load(Ordering::Relaxed) || self.sampler_state.is_none() {
            return Ok(()); // before the first step there is nothing to save
        }
        let folder = self.keep(run.observer)?;
        Err(TrainError::Interrupted { step: self.step, folder })
    }

    /// One step: forward, backward, clip, move.
    fn learn(&mut self, loaded: LoadedBatch, observer: &mut impl Observer) -> Result<StepReport, TrainError> {
        let start = Instant::now();
        if !loaded.dropped.is_empty() {
            observer.dropped(loaded.dropped.len());
        }
        let targets = Targets::of(&loaded.batch);
        if self.drops_out {
            // Every step begins its own random numbers: a run that goes on draws what it would have drawn.
            self.model().device().seed(self.config.run.seed ^ (self.step as u64 + 1).rotate_left(32));
        }
        let loss =
            balanced_loss(self.model(), &loaded.batch, &targets, self.config.optim.router_aux_loss_coef)?;
        let gradients = NamedGradients::backward(self.model(), &loss);
        // A batch without images moves nothing where the vision tower alone learns.
        let norm = gradients.norm().unwrap_or_else(|| Tensor::zeros([1], &loss.device().inner()));
        // One read for both: each makes the device wait.
        let numbers = Tensor::cat(vec![loss.inner(), norm.inner()], 0).cast(DType::F32).try_into_data();
        let numbers = numbers.map_err(ComputeError::from)?;
        let numbers: Vec<f32> = numbers.try_to_vec().map_err(ComputeError::from)?;
        let (loss, grad_norm) = (f64::from(numbers[0]), f64::from(numbers[1]));
        if !loss.is_finite() || !grad_norm.is_finite() {
            let (step, lr, checkpoint) = (self.step + 1, self.schedule.rate(self.step), self.newest()?);
            return Err(TrainError::NotFinite { step, loss, grad_norm, lr, checkpoint });
        }
        let lr = self.schedule.rate(self.step);
        let scale = match self.config.optim.max_grad_norm {
            0.0 => 1.0,
            most => (most / (grad_norm + 1e-6)).min(1.0), // torch's clip_grad_norm_
        };
        // Taken out, so that old and new weights need not both be whole in memory.
        let model = self.model.take().expect(PRESENT);
        self.model = Some(self.optimizer.step(model, gradients, lr, scale));
        self.step += 1;
        self.sampler_state = Some(loaded.state);
        let tokens = loaded.batch.tokens();
        Ok(StepReport {
            step: self.step,
            epoch: loaded.epochs,
            loss,
            grad_norm,
            lr,
            tokens,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
        })
    }

    /// Evaluates what is saved; none without data for it.
    ///
    /// The run ends here if the evaluation fails or is stopped. It can be resumed then, and begins with this evaluation.
    fn evaluate<A: Answering, O: Observer>(
        &mut self,
        run: &mut Running<'_, A, O>,
    ) -> Result<Option<EvalReport>, TrainError> {
        let Some(eval) = &self.eval else { return Ok(None) };
        let model = self.model().valid();
        let size = self.config.eval.batch_size;
        let progress = |done| run.observer.evaluating(done, eval.len());
        let report = match evaluate(&model, eval, size, run.answering, run.stop, progress) {
            Ok(Some(report)) => report,
            Ok(None) => {
                self.stop_if_asked(run)?;
                return Ok(None);
            }
            Err(error) => return Err(self.evaluation_failed(error, run.observer)?),
        };
        let summary = EvalSummary {
            step: self.step,
            eval_loss: report.loss,
            exact_match: report.exact_match(),
            samples: report.predictions.len(),
            dropped: report.dropped,
        };
        run.metrics.write(&summary)?;
        run.observer.evaluated(&summary);
        Ok(Some(report))
    }

    /// What is left of a run whose evaluation failed.
    fn evaluation_failed(
        &mut self,
        source: TrainError,
        observer: &mut impl Observer,
    ) -> Result<TrainError, TrainError> {
        let last = self.step == self.schedule.steps;
        let checkpoint = self.keep(observer)?;
        let weights = if last { self.config.run.output_dir.join(FINAL) } else { checkpoint };
        Ok(TrainError::Evaluation { step: self.step, weights, source: Box::new(source) })
    }

    /// The folder of the newest checkpoint, if there is one.
    fn newest(&self) -> Result<Option<PathBuf>, TrainError> {
        Ok(Checkpoints::of(self.folder.path()).list()?.pop().map(|(_, path)| path))
    }

    /// Makes sure that there is a checkpoint of this step.
    fn keep(&mut self, observer: &mut impl Observer) -> Result<PathBuf, TrainError> {
        let checkpoints = Checkpoints::of(self.folder.path());
        if self.saved == Some(self.step) {
            return Ok(checkpoints.place(self.step));
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
        let folder = checkpoints.save(
            self.model(),
            &self.learned,
            &self.optimizer,
            &state,
            self.config.run.save_total_limit,
        )?;
        self.saved = Some(self.step);
        observer.saved(&folder);
        Ok(folder)
    }

    fn finish(&self) -> Result<PathBuf, TrainError> {
        self.check_finite()?;
        let folder = self.config.run.output_dir.join(FINAL);
        let staged = StagedFolder::new(&folder)?;
        self.learned.save(self.model(), staged.path())?;
        staged.publish()?;
        Ok(folder)
    }

    /// Weights that broke are never saved: whoever loads them would learn it late.
    fn check_finite(&self) -> Result<(), TrainError> {
        let broken = not_finite(self.model())?;
        let Some(parameter) = broken.first().cloned() else { return Ok(()) };
        Err(TrainError::NotFiniteWeights {
            step: self.step,
            parameter,
            others: broken.len() - 1,
            lr: self.schedule.rate(self.step.saturating_sub(1)),
            checkpoint: self.newest()?,
        })
    }
}

/// What a run reports to and asks while it goes on.
struct Running<'a, A, O> {
    answering: &'a mut A,
    observer: &'a mut O,
    metrics: Metrics,
    stop: &'a AtomicBool,
}

/// The data of a run, and the way through it.
struct Inputs {
    train: Arc<Dataset>,
    eval: Option<Dataset>,
    sampler: Sampler,
    steps: usize,
}

impl Inputs {
    fn read(config: &RunConfig, origin: &ModelFolder) -> Result<Self, TrainError> {
        let longest = origin.config().text.max_position_embeddings;
        let processor = Arc::new(Processor::load(origin.path())?.with_max_tokens(longest));
        let registry = Registry::load(&config.data.dir)?;
        let open = |name: &str| dataset(config, &registry, name, &processor, longest);
        let train = Arc::new(open(&config.data.train)?);
        let eval = (!config.eval.data.is_empty()).then(|| open(&config.eval.data)).transpose()?;
        if train.left_out() > 0 && !config.data.batch_order.as_os_str().is_empty() {
            let (path, left_out) = (config.data.batch_order.clone(), train.left_out());
            return Err(TrainError::OrderSkips { path, left_out });
        }
        let sampler = sampler(config, train.len())?;
        let found = sampler.batches_per_epoch();
        let steps = match config.schedule.max_steps {
            0 => (config.schedule.epochs * found as f64).ceil() as usize,
            steps => steps,
        };
        if sampler.state().order == Order::Fixed && found < steps {
            let path = config.data.batch_order.clone();
            return Err(TrainError::OrderEnds { path, found, needed: steps });
        }
        Ok(Self { train, eval, sampler, steps })
    }
}

/// What a run that goes on is compared with its checkpoint by.
struct Now<'a> {
    config: &'a RunConfig,
    precision: Precision,
    data: &'a str,
}

/// What a checkpoint holds beside weights and optimizer.
struct Resumed {
    state: TrainerState,
    /// What the config changes.
    changed: Vec<Change>,
}

impl Resumed {
    fn read(checkpoint: &Path, folder: &RunFolder, now: &Now<'_>) -> Result<Self, TrainError> {
        let state = Checkpoints::state(checkpoint).map_err(|error| folder.damaged(checkpoint, error))?;
        let mut changed = changes(&state.config, now.config);
        let dtype = now.precision.to_string();
        if state.dtype != dtype {
            changed.push(Change::new("dtype", &state.dtype, dtype));
        }
        for change in &changed {
            if let Fate::Refused(reason) = change.fate() {
                let (checkpoint, change) = (checkpoint.to_owned(), change.clone());
                return Err(TrainError::Changed { checkpoint, change, reason });
            }
        }
        if state.data != now.data {
            let (checkpoint, data) = (checkpoint.to_owned(), now.config.data.train.clone());
            return Err(TrainError::OtherData { checkpoint, data });
        }
        changed.retain(|change| change.fate() == Fate::Reported);
        Ok(Self { state, changed })
    }
}

/// What the first weights of a run are made from.
struct Start<'a> {
    config: &'a RunConfig,
    origin: &'a ModelFolder,
    folder: &'a RunFolder,
    site: Site,
    precision: Precision,
}

/// A network that is ready to learn.
struct Started {
    model: Glm4v,
    learned: Learned,
    lora: Option<LoraPlan>,
    learning: usize,
}

impl Start<'_> {
    /// The model's own weights learn: those of the checkpoint, of the folder, or fresh ones.
    fn whole(&self, checkpoint: Option<&Path>, watch: Watch<'_>) -> Result<Started, TrainError> {
        let model = match checkpoint {
            Some(checkpoint) => self.saved(checkpoint, watch)?,
            None => self.base(watch)?,
        };
        let (model, learning) = freeze(model, &self.config.model.freeze);
        let learned = Learned::Model { origin: self.origin.path().to_owned(), precision: self.precision };
        Ok(Started { model, learned, lora: None, learning })
    }

    /// The weights of a checkpoint.
    fn saved(&self, checkpoint: &Path, watch: Watch<'_>) -> Result<Glm4v, TrainError> {
        let damaged = |error: WeightsError| self.folder.damaged(checkpoint, error);
        let saved = ModelFolder::open(checkpoint).map_err(damaged)?;
        if saved.config() != self.origin.config() {
            let (checkpoint, folder) = (checkpoint.to_owned(), self.origin.path().to_owned());
            return Err(TrainError::OtherModel { checkpoint, folder });
        }
        saved.load_on(&self.site, self.precision, watch).map_err(damaged)
    }

    /// Adapters learn: those of the checkpoint, of `lora.adapter_path`, or fresh ones.
    fn adapter(
        &self,
        lora: &LoraSection,
        checkpoint: Option<&Path>,
        watch: Watch<'_>,
    ) -> Result<Started, TrainError> {
        let given = (!lora.adapter_path.as_os_str().is_empty())
            .then(|| AdapterFolder::open(&lora.adapter_path))
            .transpose()?;
        let config = match &given {
            Some(folder) => folder.config().clone(),
            None => {
                let model = self.origin.config();
                let ensure_weight_tying = model.tie_word_embeddings;
                AdapterConfig { ensure_weight_tying, ..lora.to_peft(model.architecture) }
            }
        };
        let config = config.with_base(self.origin);
        // Looked at first: a damaged checkpoint need not wait for the model.
        let open = |path| AdapterFolder::open(path).map_err(|error| self.folder.damaged(path, error));
        let saved = checkpoint.map(open).transpose()?;
        // Attached first in any case: this is what finds out whether the targets are there.
        let (model, modules) = attach(self.base(watch)?, &config, self.config.run.seed, self.precision)?;
        let model = match saved.or(given) {
            Some(folder) => folder.apply(model, self.precision)?,
            None => model,
        };
        let (model, learning) = freeze_all_but(model, &config);
        let lora = Some(LoraPlan { r: config.r, modules });
        Ok(Started { model, learned: Learned::Adapter(Box::new(config)), lora, learning })
    }

    /// The optimizer of the checkpoint, or a fresh one.
    fn optimizer(&self, checkpoint: Option<&Path>, model: &Glm4v) -> Result<AdamW, TrainError> {
        let optim = &self.config.optim;
        let settings = AdamWConfig { betas: optim.betas, eps: optim.eps, weight_decay: optim.weight_decay };
        match checkpoint {
            Some(folder) => AdamW::load(settings, &folder.join(OPTIMIZER), model)
                .map_err(|error| self.folder.damaged(folder, error)),
            None => Ok(AdamW::new(settings)),
        }
    }

    /// The folder's weights, or fresh ones.
    fn base(&self, watch: Watch<'_>) -> Result<Glm4v, TrainError> {
        Ok(match self.config.model.init {
            Init::Pretrained => self.origin.load_on(&self.site, self.precision, watch)?,
            Init::Random => {
                let network = self.site.build(self.origin.config()).map_err(WeightsError::from)?;
                initialize(network, self.config.run.seed, self.precision.dtype())
            }
        })
    }
}

fn schedule(config: &RunConfig, steps: usize) -> Schedule {
    Schedule {
        kind: config.schedule.r#type,
        lr: config.optim.lr,
        warmup_steps: config.schedule.warmup_steps,
        steps,
    }
}

/// Where media are looked for first, if the config names a place.
fn media_folder(config: &RunConfig) -> Option<&Path> {
    let media = &config.data.media_dir;
    (!media.as_os_str().is_empty()).then_some(media)
}

fn dataset(
    config: &RunConfig,
    registry: &Registry,
    name: &str,
    processor: &Arc<Processor>,
    longest: usize,
) -> Result<Dataset, TrainError> {
    let media = media_folder(config);
    let options = DatasetOptions {
        max_length: Some(match config.data.max_length {
            0 => longest,
            most => most.min(longest),
        }),
        overlong: match config.data.on_long {
            OnLongChoice::Error => Overlong::Error,
            OnLongChoice::Drop => Overlong::Drop,
        },
        on_bad: match config.data.on_bad {
            OnBadChoice::Stop => OnBad::Stop,
            OnBadChoice::Skip => OnBad::Skip,
        },
        ..DatasetOptions::default()
    };
    Ok(Dataset::open(&registry.find(name)?, media, processor.clone(), options)?)
}

/// Longest file of `data.batch_order`, in bytes: a hundred million record numbers.
const LONGEST_ORDER: u64 = 1 << 30;

fn sampler(config: &RunConfig, records: usize) -> Result<Sampler, TrainError> {
    let path = &config.data.batch_order;
    if path.as_os_str().is_empty() {
        return Ok(Sampler::shuffled(records, config.data.batch_size, config.run.seed)?);
    }
    let text = read_text(path, LONGEST_ORDER).map_err(WeightsError::from)?;
    let batches =
        serde_json::from_str(&text).map_err(|source| TrainError::State { path: path.clone(), source })?;
    Sampler::fixed(batches, records).map_err(|source| TrainError::Order { path: path.clone(), source })
}
