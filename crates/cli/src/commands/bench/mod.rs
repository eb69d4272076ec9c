//! `glm4v bench`

mod cases;
mod network;
mod report;
mod table;

use anyhow::ensure;
use glm4v_measure::{
    Ceilings, FreeMemory, Machine, Measurement, PreprocessInput, Rounds, Stopwatch, TrainingSetup, decode,
    load, prefill, preprocess, training, vision,
};
use glm4v_model::{DeviceSpec, Glm4v, Precision};
use glm4v_processor::{ImageProcessor, ImageSource};

use super::print_line;
use crate::args::{Bench, Global};
use crate::device;
pub(in crate::commands) use cases::Cases;
use cases::{Case, CaseKind};
pub(in crate::commands) use network::Network;
use report::{Entry, Report, Setting};

pub(crate) fn bench(args: &Bench, global: &Global) -> anyhow::Result<()> {
    let (device_spec, precision) = device::open(global)?;
    let network = Network::open(args, &device_spec)?;
    let free = FreeMemory::of(global.backend, &device_spec.device);
    let Cases { cases, skipped } = match &network {
        Some(network) => Cases::new(args, network)?,
        None => Cases::default(),
    };
    if let Some(network) = &network {
        // All of them before anything is computed.
        cases.iter().try_for_each(|case| case.check(network, precision, free))?;
    }
    let setting = Setting { backend: global.backend.resolve(), precision, seed: args.seed };
    let machine = Machine::new(global.backend, &device_spec.device);
    let rounds = Rounds { warmup: args.warmup, rounds: args.rounds };
    let mut ceilings = None;
    if !args.no_ceilings {
        status(global, "copy bandwidth and matrix products");
        ceilings = Some(Ceilings::measure(&device_spec, precision, free, rounds)?);
    }
    let mut session = Session::new(args, global, device_spec, precision);
    let mut entries = Vec::new();
    if let Some(network) = &network {
        for case in cases {
            status(global, &case.to_string());
            let measured = session.measure(network, &case)?;
            entries.push(Entry { work: case.work(network, precision), case, measured });
        }
    }
    let report = Report { setting, machine, network, ceilings, entries, skipped, kernels: args.kernels };
    if args.json { print_line(&report.json().to_string()) } else { table::print(&report) }
}

fn status(global: &Global, what: &str) {
    if !global.quiet {
        print_status!("measuring {what}");
    }
}

/// The model and everything else that measurements share.
pub(in crate::commands) struct Session<'a> {
    args: &'a Bench,
    global: &'a Global,
    device_spec: DeviceSpec,
    precision: Precision,
    stopwatch: Stopwatch,
    /// For generation; made when it is needed, and dropped before training.
    model: Option<Glm4v>,
}

impl<'a> Session<'a> {
    pub(in crate::commands) fn new(
        args: &'a Bench,
        global: &'a Global,
        device_spec: DeviceSpec,
        precision: Precision,
    ) -> Self {
        let rounds = Rounds { warmup: args.warmup, rounds: args.rounds };
        let stopwatch = Stopwatch::new(&device_spec.device, rounds).with_kernel_times(args.kernels > 0);
        Self { args, global, device_spec, precision, stopwatch, model: None }
    }

    pub(in crate::commands) fn measure(
        &mut self,
        network: &Network,
        case: &Case,
    ) -> anyhow::Result<Measurement> {
        match &case.kind {
            CaseKind::Load => {
                let folder = network.folder().expect("cases with load have a directory");
                Ok(load(folder, &self.device_spec, self.precision, &self.stopwatch)?)
            }
            CaseKind::Preprocess => self.preprocess(network, case),
            CaseKind::Train(method) => {
                self.model = None;
                let setup =
                    TrainingSetup { method: method.clone(), precision: self.precision, seed: self.args.seed };
                let model = self.make_model(network, &self.device_spec.clone().autodiff())?;
                Ok(training(model, &setup, &case.shape, &self.stopwatch)?)
            }
            CaseKind::Vision | CaseKind::Prefill | CaseKind::Decode { .. } => {
                let model = match self.model.take() {
                    Some(model) => model,
                    None => self.make_model(network, &self.device_spec)?,
                };
                let measured = self.generation(&model, case);
                self.model = Some(model);
                measured
            }
        }
    }

    /// A part of generation.
    fn generation(&self, model: &Glm4v, case: &Case) -> anyhow::Result<Measurement> {
        let seed = self.args.seed;
        Ok(match case.kind {
            CaseKind::Decode { depth } => {
                let stopwatch = self.stopwatch.with_rounds(self.args.decode_tokens);
                decode(model, case.shape.batch_size, depth, seed, &stopwatch)?
            }
            CaseKind::Vision => vision(model, &case.shape, seed, &self.stopwatch)?,
            _ => prefill(model, &case.shape, seed, &self.stopwatch)?,
        })
    }

    fn make_model(&self, network: &Network, device_spec: &DeviceSpec) -> anyhow::Result<Glm4v> {
        network.model(device_spec, self.precision, self.args.seed, self.global.quiet)
    }

    fn preprocess(&self, network: &Network, case: &Case) -> anyhow::Result<Measurement> {
        let processor = ImageProcessor::new(network.image_config());
        Ok(preprocess(&processor, &case.preprocess_input(), case.images(), &self.stopwatch)?)
    }
}

impl Case {
    /// The image that is preprocessed.
    fn preprocess_input(&self) -> PreprocessInput {
        match (&self.file, self.pixels) {
            (Some(file), _) => PreprocessInput::File(ImageSource::Path(file.clone())),
            (None, pixels) => PreprocessInput::generated(pixels.unwrap_or([448, 448])),
        }
    }

    /// Images of a round of preprocessing: enough for all threads.
    fn images(&self) -> usize {
        rayon::current_num_threads().max(4) * self.shape.batch_size
    }

    /// Checks that a case can be measured: lengths, memory, and that the image can be read.
    pub(in crate::commands) fn check(
        &self,
        network: &Network,
        precision: Precision,
        free: FreeMemory,
    ) -> anyhow::Result<()> {
        if self.kind == CaseKind::Preprocess {
            let grid = self.preprocess_input().grid(&ImageProcessor::new(network.image_config()))?;
            ensure!(grid.iter().all(|side| *side > 0), "the image has no patches");
            return Ok(());
        }
        self.check_length(network.config())?;
        let estimate = self.memory(network, precision);
        Ok(glm4v_measure::check_fits(&self.to_string(), estimate, free)?)
    }
}
