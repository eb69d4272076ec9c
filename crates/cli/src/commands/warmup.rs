//! `glm4v warmup`

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_infer::{GenerationConfig, SamplingParams, generate};
use glm4v_model::{
    Backend, Batch, CausalLm, ComputeError, DeviceSpec, Glm4v, Grid, Modality, MultimodalInputs, PaddingSide,
    Patches, Precision, Sample, initialize,
};
use glm4v_processor::{ImageConfig, ImageProcessor};
use glm4v_train::{
    AdamW, AdamWConfig, LoraSection, Trainer, TrainerConfig, freeze, mark_only_adapters_as_trainable,
};
use glm4v_weights::{ModelFolder, add_adapter};
use serde_json::{Value, json};

use super::{load_model, print_line};
use crate::args::{Global, TrainedPart, Warmup};
use crate::interrupt::Interrupted;
use crate::kernels::{self, Tuning};
use crate::progress::WorkProgress;
use crate::{device, interrupt};

/// New tokens of each prompt: the first steps of decoding meet every shape of decoding at that length.
const NEW_TOKENS: usize = 3;

pub(crate) fn warmup(args: &Warmup, global: &Global) -> anyhow::Result<()> {
    if global.backend.resolve() == Backend::Cpu {
        return nothing_to_do(args);
    }
    kernels::install(Tuning::Thorough);
    if args.fresh {
        kernels::clear()?;
    }
    let (device_spec, precision) = device::open(global)?;
    let source = args.model.as_ref().or(args.config.as_ref()).context("clap asks for one of both")?;
    let folder = ModelFolder::open(source)?;
    let workloads = workloads(args, &folder)?;
    let stop = interrupt::stop_flag("stopping after this shape");
    let start = Instant::now();
    let mut runner = Runner::new(args, &folder, device_spec, precision, global.quiet)?;
    let mut progress = WorkProgress::new(workloads.len(), global.quiet);
    let mut seconds = Vec::new();
    for workload in &workloads {
        if stop.load(Ordering::Relaxed) {
            return Err(
                Interrupted { missing: "stopped; what was chosen and compiled so far is kept" }.into()
            );
        }
        progress.begin(&workload.name);
        let start = Instant::now();
        runner.run(workload).with_context(|| workload.name.clone())?;
        seconds.push(json!({"name": workload.name, "seconds": start.elapsed().as_secs_f64()}));
        progress.end();
    }
    drop(progress);
    report(args, &seconds, start.elapsed().as_secs_f64())
}

/// The CPU's kernels are part of the program.
fn nothing_to_do(args: &Warmup) -> anyhow::Result<()> {
    match args.json {
        true => print_line(&json!({"seconds": 0.0, "workloads": [], "cache": null}).to_string()),
        false => print_line("nothing to do on the cpu: its kernels are compiled into the program"),
    }
}

fn report(args: &Warmup, workloads: &[Value], seconds: f64) -> anyhow::Result<()> {
    let cache = kernels::summary();
    if args.json {
        let cache = cache.map(|cache| {
            json!({"file": cache.file.display().to_string(), "entries": cache.entries, "bytes": cache.bytes})
        });
        return print_line(&json!({"seconds": seconds, "workloads": workloads, "cache": cache}).to_string());
    }
    print_line(&format!("{} shapes in {seconds:.1} s", workloads.len()))?;
    match cache {
        Some(cache) => print_line(&format!(
            "kernel cache: {}, {} entries, {:.1} MB",
            cache.file.display(),
            cache.entries,
            cache.bytes as f64 / 1e6
        )),
        None => print_line("kernel cache: none, so that the next run begins anew"),
    }
}

/// One shape to run.
struct Workload {
    /// As shown to the user: `prompt of 64 tokens`.
    name: String,
    sample: Sample,
    /// Whether to train on it instead of generating.
    trained: bool,
}

/// Prompts by length, images by size, and a training step on the last of each.
fn workloads(args: &Warmup, folder: &ModelFolder) -> anyhow::Result<Vec<Workload>> {
    let longest = folder.config().text.max_position_embeddings.saturating_sub(NEW_TOKENS);
    let mut found = Vec::new();
    for length in args.prompt_lengths.iter().map(|length| (*length).min(longest)) {
        let sample = Sample::from_text(vec![1; length]);
        found.push(Workload { name: format!("prompt of {length} tokens"), sample, trained: false });
    }
    let images = ImageProcessor::new(&image_config(folder.path())?);
    for (width, height) in args.image_sizes.iter().filter_map(|size| size.0) {
        let grid = images.grid(height, width).with_context(|| format!("--image-size {width}x{height}"))?;
        let sample = image_sample(folder, Grid::from(grid));
        found.push(Workload { name: format!("image of {width}x{height}"), sample, trained: false });
    }
    if args.train.is_some() {
        let training = found.iter().map(|workload| Workload {
            name: format!("training step, {}", workload.name),
            sample: workload.sample.clone(),
            trained: true,
        });
        let training: Vec<Workload> = training.collect();
        found.extend(training);
    }
    Ok(found)
}

/// That of the model, or transformers' defaults.
fn image_config(dir: &Path) -> anyhow::Result<ImageConfig> {
    let path = dir.join("preprocessor_config.json");
    match read_text(&path, LONGEST_CONFIG) {
        Ok(json) => ImageConfig::from_json(&json).with_context(|| path.display().to_string()),
        Err(error) if error.is_missing() => Ok(ImageConfig::from_json("{}")?),
        Err(error) => Err(error.into()),
    }
}

/// A grey image between two tokens of text.
fn image_sample(folder: &ModelFolder, grid: Grid) -> Sample {
    let config = folder.config();
    let tokens = grid.tokens(config.vision.spatial_merge_size);
    let mut sample = Sample::from_text(vec![1; tokens + 2]);
    sample.input_ids[1..=tokens].fill(config.image_token_id);
    sample.modalities[1..=tokens].fill(Some(Modality::Image));
    let values = vec![0.0; grid.patches() * config.vision.patch_values()];
    sample.media = MultimodalInputs::from_iter([(Modality::Image, Patches { values, grids: vec![grid] })]);
    sample
}

/// The model, as it is generated with and as it is trained.
struct Runner {
    model: Option<Glm4v>,
    trainer: Option<Trainer>,
    generation: GenerationConfig,
}

impl Runner {
    fn new(
        args: &Warmup,
        folder: &ModelFolder,
        device_spec: DeviceSpec,
        precision: Precision,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        let mut generation = GenerationConfig::from_folder(folder.path(), folder.config(), NEW_TOKENS)?;
        generation.sampling = SamplingParams::greedy();
        generation.eos_token_ids.clear();
        let device_spec = if args.train.is_some() { device_spec.autodiff() } else { device_spec };
        let model = match args.model {
            Some(_) => load_model(folder, None, &device_spec, precision, quiet)?,
            None => initialize(folder.config().init_on(&device_spec)?, 0, precision.dtype()),
        };
        let Some(part) = args.train else {
            return Ok(Self { model: Some(model), trainer: None, generation });
        };
        let model = match part {
            TrainedPart::Full => freeze(model, &[]).0,
            TrainedPart::Lora => {
                let adapter = LoraSection::default().to_adapter_config(folder.config().architecture);
                let (model, _) = add_adapter(model, &adapter, 0, precision)?;
                mark_only_adapters_as_trainable(model, &adapter).0
            }
        };
        let adamw = AdamW::new(AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 });
        let trainer = Trainer::new(model, adamw, TrainerConfig::default());
        Ok(Self { model: None, trainer: Some(trainer), generation })
    }

    fn run(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let sample = &workload.sample;
        if let (true, Some(trainer)) = (workload.trained, &mut self.trainer) {
            let sample = sample.clone().with_loss_mask(vec![true; sample.len()]);
            trainer.accumulate(&Batch::collate(&[sample], 0, PaddingSide::Right))?;
            trainer.step(0.0)?;
            // The update has no result that is read.
            trainer.model().device().sync().map_err(ComputeError::from)?;
            return Ok(());
        }
        let batch = Batch::collate(&[sample], 0, PaddingSide::Left);
        let tracked = self.trainer.as_ref().map(Trainer::eval_model);
        let model = tracked.as_ref().or(self.model.as_ref()).context("one of both is there")?;
        generate(model, &batch, &self.generation, |_, _| ControlFlow::Continue(()))?;
        Ok(())
    }
}
