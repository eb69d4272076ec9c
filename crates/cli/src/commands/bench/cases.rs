//! What is measured: each workload with each combination of shapes.

use std::fmt;
use std::path::PathBuf;

use anyhow::bail;
use glm4v_measure::{InputShape, TrainingMethod, check_length, grid_for};
use glm4v_model::{Glm4vConfig, Precision};
use glm4v_plan::{CostModel, MemoryEstimate, Work, Workload};

use super::network::Network;
use crate::args::{Bench, BenchMethod, BenchWorkload};
use crate::commands::counting_device;

/// A workload with its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Case {
    pub(super) kind: CaseKind,
    pub(super) shape: InputShape,
    /// Pixels of the image as asked for.
    pub(super) pixels: Option<[usize; 2]>,
    /// File of `--image`.
    pub(super) file: Option<PathBuf>,
    /// Positions in the cache after the last decoded token.
    pub(super) depth_after: usize,
}

/// A workload with what only it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CaseKind {
    Load,
    Preprocess,
    Vision,
    Prefill,
    Decode { depth: usize },
    Train(TrainingMethod),
}

/// A workload that `all` leaves out.
#[derive(Debug)]
pub(super) struct Skipped {
    pub(super) workload: &'static str,
    pub(super) reason: &'static str,
}

/// What is measured, in order, and what is not.
#[derive(Debug, Default)]
pub(in crate::commands) struct Cases {
    pub(in crate::commands) cases: Vec<Case>,
    pub(super) skipped: Vec<Skipped>,
}

impl Cases {
    pub(in crate::commands) fn new(args: &Bench, network: &Network) -> anyhow::Result<Self> {
        let mut cases = Self::default();
        for workload in workloads(args) {
            if let Some(skipped) = impossible(workload, args, network) {
                if !args.workload.contains(&BenchWorkload::All) {
                    bail!("--workload {}: {}", skipped.workload, skipped.reason);
                }
                cases.skipped.push(skipped);
                continue;
            }
            for shape in shapes(args, network.config()) {
                for kind in kinds(workload, args) {
                    cases.add(kind, shape, args);
                }
            }
        }
        Ok(cases)
    }

    /// Adds a case, without what its workload does not depend on, unless it is there.
    fn add(&mut self, kind: CaseKind, (pixels, shape): (Option<[usize; 2]>, InputShape), args: &Bench) {
        let text = InputShape { image: None, text_tokens: 0, labels: 0, ..shape };
        let (pixels, shape) = match kind {
            CaseKind::Load => (None, InputShape { batch_size: 1, ..text }),
            CaseKind::Decode { .. } => (None, text),
            CaseKind::Vision => (pixels, InputShape { image: shape.image, ..text }),
            CaseKind::Preprocess => (pixels, text),
            CaseKind::Prefill => (pixels, InputShape { labels: 0, ..shape }),
            CaseKind::Train(_) => (pixels, shape),
        };
        let needs_image = matches!(kind, CaseKind::Vision | CaseKind::Preprocess);
        let file = args.image.clone().filter(|_| kind == CaseKind::Preprocess);
        if needs_image && pixels.is_none() && file.is_none() {
            return;
        }
        let pixels = pixels.filter(|_| file.is_none());
        let depth_after = match kind {
            CaseKind::Decode { depth } => depth + args.warmup + args.decode_tokens,
            _ => 0,
        };
        let case = Case { kind, shape, pixels, file, depth_after };
        if !self.cases.contains(&case) {
            self.cases.push(case);
        }
    }
}

/// The workloads that are asked for, in the order in which they are measured.
fn workloads(args: &Bench) -> Vec<BenchWorkload> {
    use BenchWorkload::{All, Decode, Load, Prefill, Preprocess, Train, Vision};
    let every = [Load, Preprocess, Vision, Prefill, Decode, Train];
    let wanted = |workload: &BenchWorkload| args.workload.contains(&All) || args.workload.contains(workload);
    every.into_iter().filter(wanted).collect()
}

/// Why a workload cannot be measured.
fn impossible(workload: BenchWorkload, args: &Bench, network: &Network) -> Option<Skipped> {
    let no_image = args.image_size.iter().all(|size| size.0.is_none());
    match workload {
        BenchWorkload::Load if network.folder().is_none() => {
            Some(Skipped { workload: "load", reason: "needs weights to read, given by --model DIR" })
        }
        BenchWorkload::Vision if no_image => {
            Some(Skipped { workload: "vision", reason: "needs an image, and --image-size is none" })
        }
        BenchWorkload::Preprocess if no_image && args.image.is_none() => {
            Some(Skipped { workload: "preprocess", reason: "needs an image, and --image-size is none" })
        }
        _ => None,
    }
}

/// Every combination of image, text and batch.
fn shapes(args: &Bench, config: &Glm4vConfig) -> Vec<(Option<[usize; 2]>, InputShape)> {
    let mut shapes = Vec::new();
    for size in &args.image_size {
        let pixels = size.0.map(|(width, height)| [width, height]);
        for text_tokens in args.text_tokens.iter().copied() {
            for batch_size in args.batch_size.iter().copied() {
                let image = pixels.map(|pixels| grid_for(&config.vision, pixels));
                shapes.push((pixels, InputShape { batch_size, image, text_tokens, labels: args.labels }));
            }
        }
    }
    shapes
}

fn kinds(workload: BenchWorkload, args: &Bench) -> Vec<CaseKind> {
    match workload {
        BenchWorkload::Load => vec![CaseKind::Load],
        BenchWorkload::Preprocess => vec![CaseKind::Preprocess],
        BenchWorkload::Vision => vec![CaseKind::Vision],
        BenchWorkload::Prefill => vec![CaseKind::Prefill],
        BenchWorkload::Decode => {
            args.decode_depth.iter().map(|depth| CaseKind::Decode { depth: *depth }).collect()
        }
        BenchWorkload::Train => {
            let method = |method: &BenchMethod| match method {
                BenchMethod::Full => TrainingMethod::Full { frozen: args.freeze.clone() },
                BenchMethod::Lora => TrainingMethod::Lora { rank: args.lora_rank },
            };
            args.method.iter().map(|chosen| CaseKind::Train(method(chosen))).collect()
        }
        BenchWorkload::All => Vec::new(),
    }
}

impl Case {
    /// Name of the workload on the command line.
    pub(super) fn workload(&self) -> &'static str {
        match self.kind {
            CaseKind::Load => "load",
            CaseKind::Preprocess => "preprocess",
            CaseKind::Vision => "vision",
            CaseKind::Prefill => "prefill",
            CaseKind::Decode { .. } => "decode",
            CaseKind::Train(_) => "train",
        }
    }

    pub(super) fn check_length(&self, config: &Glm4vConfig) -> anyhow::Result<()> {
        // Two more rounds count and time kernels.
        let tokens = match self.kind {
            CaseKind::Decode { .. } => self.depth_after + 2,
            _ => self.shape.seq_len(config),
        };
        Ok(check_length(config, self.workload(), tokens)?)
    }

    /// Least work of a round; none for preprocessing, which has no matrix products.
    pub(super) fn work(&self, network: &Network, precision: Precision) -> Option<Work> {
        let cost = self.cost_model(network, precision);
        match &self.kind {
            CaseKind::Load => {
                // As they are stored, and as they are in memory.
                let stored = network.folder()?.summary().ok()?.total_bytes;
                Some(Work { flops: 0, bytes: stored + network.params().total() * cost.dtype_bytes })
            }
            CaseKind::Preprocess => None,
            CaseKind::Vision => Some(cost.vision_work()),
            CaseKind::Prefill => Some(cost.prefill_work()),
            // In the middle of the measured tokens.
            CaseKind::Decode { depth } => Some(cost.decode_work((depth + self.depth_after) / 2)),
            CaseKind::Train(method) => {
                let mut model = network.config().init(&counting_device());
                Some(cost.training_work(method.tuning_mode(&mut model)))
            }
        }
    }

    /// Estimated peak of the workload.
    pub(super) fn memory(&self, network: &Network, precision: Precision) -> MemoryEstimate {
        let cost = self.cost_model(network, precision);
        match &self.kind {
            CaseKind::Preprocess => MemoryEstimate::default(),
            CaseKind::Train(method) => {
                let mut model = network.config().init(&counting_device());
                cost.training_memory(method.tuning_mode(&mut model))
            }
            _ => cost.generation_memory(),
        }
    }

    fn cost_model<'a>(&self, network: &'a Network, precision: Precision) -> CostModel<'a> {
        let workload = match self.kind {
            CaseKind::Decode { depth } => Workload {
                batch_size: self.shape.batch_size,
                seq_len: self.depth_after,
                completion_tokens: self.depth_after - depth,
                image: None,
            },
            _ => self.shape.workload(network.config()),
        };
        CostModel {
            config: network.config(),
            params: network.params(),
            dtype_bytes: precision.dtype().size() as u64,
            cpu: network.on_cpu(),
            workload,
        }
    }
}

/// Name and shape in words.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.workload())?;
        match &self.kind {
            CaseKind::Train(TrainingMethod::Full { frozen }) if frozen.is_empty() => f.write_str(" full")?,
            CaseKind::Train(TrainingMethod::Full { frozen }) => {
                let names: Vec<&str> = frozen.iter().map(|target| target.name()).collect();
                write!(f, " full, frozen {}", names.join(", "))?;
            }
            CaseKind::Train(TrainingMethod::Lora { rank }) => write!(f, " lora, rank {rank}")?,
            CaseKind::Decode { depth } => write!(f, " at {depth}")?,
            _ => {}
        }
        if let Some(file) = &self.file {
            write!(f, ", {}", file.display())?;
        }
        if let Some([width, height]) = self.pixels {
            write!(f, ", {width}x{height}")?;
        }
        if self.shape.text_tokens > 0 {
            write!(f, ", {} text tokens", self.shape.text_tokens)?;
        }
        if self.shape.batch_size > 1 {
            write!(f, ", batch {}", self.shape.batch_size)?;
        }
        Ok(())
    }
}
