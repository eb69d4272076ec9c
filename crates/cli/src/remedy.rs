//! Remedies for errors, in terms of flags.
//!
//! Errors of the libraries name the place, what was found and what was needed, without flags. This table is the one place
//! that adds flags: a row for each error that has a remedy, which names only flags that the current command accepts.

use std::error::Error;
use std::path::Path;

use clap::CommandFactory;
use glm4v_data::{BadRecordsError, DataLoaderError, DatasetError, ReadError, UnsupportedFile};
use glm4v_infer::GenerateError;
use glm4v_measure::MeasureError;
use glm4v_model::{DeviceError, DeviceFault};
use glm4v_processor::{ImageError, ProcessorError, ResizeError, TemplateError, VideoError};
use glm4v_train::{RunConfigError, RunDirError, TrainError};
use glm4v_weights::WeightsError;

use crate::args::Args;
use crate::commands::SelftestFailed;
use crate::eval_generator::EvalGenerateError;
use crate::failure;
use crate::threads::{FEWER_THREADS, ThreadsError};

/// The line of an error of a command, `names` from the outermost in: its causes and the remedy.
pub(crate) fn line(error: &anyhow::Error, names: &[&str]) -> String {
    let causes = failure::chain(error);
    match remedy(error, &Flags::for_command(names)) {
        Some(remedy) => format!("{causes}; {remedy}"),
        None => causes,
    }
}

fn remedy(error: &anyhow::Error, flags: &Flags) -> Option<String> {
    error.chain().find_map(|cause| {
        let mut cause = Some(cause);
        while let Some(error) = cause {
            if let Some(remedy) = TABLE.iter().find_map(|row| row(error, flags)) {
                return Some(remedy);
            }
            cause = transparent_inner(error);
        }
        None
    })
}

/// The flags that one command accepts.
struct Flags(clap::Command);

impl Flags {
    fn for_command(names: &[&str]) -> Self {
        let mut command = Args::command();
        command.build();
        for name in names {
            command = command.find_subcommand(name).cloned().unwrap_or(command);
        }
        Self(command)
    }

    fn contain(&self, flag: &str) -> bool {
        self.0.get_arguments().any(|argument| argument.get_long() == Some(flag))
    }

    /// `with` if the command accepts the flag, else `without`; none if that is empty.
    fn choose(&self, flag: &str, with: &str, without: &str) -> Option<String> {
        let text = if self.contain(flag) { with } else { without };
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// An error with a remedy, for some of its variants at least.
trait Remedy {
    fn remedy(&self, flags: &Flags) -> Option<String>;
}

type Cause<'a> = &'a (dyn Error + 'static);
type Row = for<'a> fn(Cause<'a>, &Flags) -> Option<String>;

const TABLE: [Row; 17] = [
    row::<SelftestFailed>,
    row::<ThreadsError>,
    row::<DeviceError>,
    row::<DeviceFault>,
    row::<GenerateError>,
    row::<MeasureError>,
    row::<TemplateError>,
    row::<ImageError>,
    row::<VideoError>,
    row::<ResizeError>,
    row::<WeightsError>,
    row::<RunConfigError>,
    row::<TrainError>,
    row::<RunDirError>,
    row::<DataLoaderError>,
    row::<BadRecordsError>,
    row::<ReadError>,
];

fn row<E: Remedy + Error + 'static>(error: Cause<'_>, flags: &Flags) -> Option<String> {
    downcast::<E>(error)?.remedy(flags)
}

fn downcast<E: Error + 'static>(error: Cause<'_>) -> Option<&E> {
    error.downcast_ref().or_else(|| error.downcast_ref::<Box<E>>().map(Box::as_ref))
}

/// The inner error of a transparent one, which `Error::source` skips.
fn transparent_inner(error: Cause<'_>) -> Option<Cause<'_>> {
    if let Some(error) = downcast::<TrainError>(error) {
        return match error {
            TrainError::Weights(inner) => Some(inner),
            TrainError::Processor(inner) => Some(inner),
            TrainError::Sample(inner) => Some(inner),
            TrainError::Load(inner) => Some(inner),
            TrainError::RunDir(inner) => Some(inner),
            TrainError::Dataset(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(error) = downcast::<MeasureError>(error) {
        return match error {
            MeasureError::Weights(inner) => Some(inner),
            MeasureError::Image(inner) => Some(inner),
            MeasureError::Device(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(error) = downcast::<DatasetError>(error) {
        return match error {
            DatasetError::Bad(inner) => Some(inner),
            DatasetError::Read(inner) => Some(inner),
            DatasetError::Sample(inner) => Some(inner),
            _ => None,
        };
    }
    if let Some(DataLoaderError::Sample(inner)) = downcast(error) {
        return Some(inner);
    }
    if let Some(EvalGenerateError::Generate(inner)) = downcast(error) {
        return Some(inner);
    }
    if let Some(WeightsError::Device(inner)) = downcast(error) {
        return Some(inner);
    }
    if let Some(ProcessorError::Template(inner)) = downcast(error) {
        return Some(inner);
    }
    if let Some(VideoError::File(inner)) = downcast(error) {
        return Some(inner.as_ref());
    }
    match downcast(error) {
        Some(ImageError::Resize(inner)) => Some(inner),
        _ => None,
    }
}

impl Remedy for DeviceError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        let remedy = match self {
            Self::NotCompiled { backend: "cpu" } => "build it with: cargo build --release",
            Self::NotCompiled { .. } => "build it with: cargo build --release --features gpu",
            Self::NoDevice { .. } => "or run with --backend cpu",
            Self::Fault { fault, .. } => return fault.remedy(flags),
            Self::TooLarge { .. } => "use --backend cpu or cuda, or --dtype f16 where the device has it",
            Self::Dtype { .. } => "use --dtype f32",
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

impl Remedy for DeviceFault {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        let remedy = match self {
            Self::OutOfMemory { .. } | Self::TooLarge { .. } => return Some(less_memory(flags)),
            Self::Busy { .. } => "wait until it is free, or choose another device, as in --backend cuda:1",
            Self::Lost { .. } | Self::Watchdog { .. } => "start again, or use --backend cpu",
            Self::KernelCrash { .. } | Self::Hardware { .. } | Self::Limit { .. } | Self::Other { .. } => {
                "use another device, or --backend cpu"
            }
            _ => "or run with --backend cpu",
        };
        Some(remedy.to_owned())
    }
}

/// What makes a command need less memory of a device.
fn less_memory(flags: &Flags) -> String {
    let remedy = if flags.contain("resume") {
        "lower data.batch_size or data.max_length with --set, or train an adapter ([lora])"
    } else if flags.contain("batch-size") {
        "lower --batch-size, or use --dtype bf16 or f16 where the device has it"
    } else if flags.contain("max-pixels") {
        "shorten the prompt, lower --max-pixels, or use --dtype bf16 or f16 where the device has it"
    } else {
        "use --dtype bf16 or f16 where the device has it, or --backend cpu"
    };
    remedy.to_owned()
}

impl Remedy for SelftestFailed {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        let part = self.failed.first()?;
        let elsewhere = if self.on_cpu {
            "then report the table".to_owned()
        } else {
            format!(
                "see whether it fails with --backend cpu{} too: if not, update the driver; then report the table",
                if self.narrow { " or --dtype f32" } else { "" }
            )
        };
        Some(format!("run the first one alone with --part {part}, and {elsewhere}"))
    }
}

impl Remedy for ThreadsError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        match self {
            Self::Start { .. } => Some(FEWER_THREADS.to_owned()),
            Self::Variable { .. } => Some("or set --threads".to_owned()),
        }
    }
}

impl Remedy for GenerateError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        match self {
            Self::NanLogits { .. } => Some("or try --dtype f32".to_owned()),
            _ => None,
        }
    }
}

impl Remedy for MeasureError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        let remedy = match self {
            Self::DoesNotFit { .. } => {
                "use --dtype bf16, a smaller --batch-size, --image-size, --text-tokens or --decode-depth, or a smaller model"
            }
            Self::TooLong { .. } => "use a smaller --image-size, --text-tokens or --decode-depth",
            Self::NothingToTrain => "leave a part out of --freeze",
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

impl Remedy for BadRecordsError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        let others = self.bad.len() < self.records;
        flags.choose(
            if others { "set" } else { "" },
            "fix them, or leave them out with --set data.on_bad=skip",
            "",
        )
    }
}

impl Remedy for ReadError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        match self {
            Self::Unsupported { found: UnsupportedFile::Columnar("parquet"), .. } => {
                Some("or build glm4v with --features parquet".to_owned())
            }
            _ => None,
        }
    }
}

impl Remedy for TemplateError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        match self {
            Self::SpecialToken { .. } => {
                flags.choose("allow-special-tokens", "or allow it with --allow-special-tokens", "")
            }
            _ => None,
        }
    }
}

impl Remedy for ImageError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        match self {
            Self::Remote { .. } => {
                flags.choose("allow-http", "or allow it with --allow-http", "download it first")
            }
            _ => None,
        }
    }
}

impl Remedy for VideoError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        match self {
            Self::Resize { source: ResizeError::Limits { .. }, .. } => flags.choose(
                "max-video-pixels",
                "change --max-video-pixels",
                "change the limits in the model's video_preprocessor_config.json",
            ),
            _ => None,
        }
    }
}

impl Remedy for ResizeError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        const FILE: &str = "change the limits in the model's preprocessor_config.json";
        match self {
            Self::Limits { .. } => flags.choose("min-pixels", "change --min-pixels or --max-pixels", FILE),
            Self::Enlarged { .. } => flags.choose("min-pixels", "lower --min-pixels", FILE),
            _ => None,
        }
    }
}

impl Remedy for WeightsError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        match self {
            Self::MissingFile { file, .. } => match file.as_str() {
                "adapter_config.json" => {
                    flags.choose("model", "a whole model goes to --model", "a whole model goes to model.path")
                }
                "config.json" => Some("or one made by glm4v init".to_owned()),
                "model.safetensors" => Some("glm4v init makes random ones".to_owned()),
                _ => None,
            },
            Self::IsAdapter { dir, base } => Some(adapter_as_model(dir, base.as_deref(), flags)),
            Self::Exists { .. } => flags.choose("out", "choose another --out", ""),
            Self::Locked { .. } => flags.choose("out", "wait until it is done, or choose another --out", ""),
            _ => None,
        }
    }
}

/// Remedy for an adapter directory that was given as a model.
fn adapter_as_model(adapter: &Path, base: Option<&str>, flags: &Flags) -> String {
    let (adapter, base) = (adapter.display(), base.unwrap_or("MODEL"));
    if flags.contain("adapter") {
        format!("pass --model {base} --adapter {adapter}")
    } else if flags.contain("resume") {
        format!("set model.path to {base}, and lora.adapter_path to {adapter}")
    } else {
        "glm4v merge makes one model of both".to_owned()
    }
}

impl Remedy for RunConfigError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        match self {
            Self::Set { .. } => Some("as in --set optim.lr=1e-4".to_owned()),
            _ => None,
        }
    }
}

impl Remedy for DataLoaderError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        match self {
            Self::Start { .. } => Some("as in --set data.workers=1".to_owned()),
            _ => None,
        }
    }
}

impl Remedy for TrainError {
    fn remedy(&self, flags: &Flags) -> Option<String> {
        let remedy = match self {
            Self::Device { checkpoint, source, .. } => {
                let resume = match checkpoint {
                    Some(dir) => format!("go on from {} with --resume", dir.display()),
                    None => {
                        "start again with --set run.output_dir=PATH, as there is no checkpoint yet".to_owned()
                    }
                };
                return Some(match source {
                    DeviceFault::OutOfMemory { .. } | DeviceFault::TooLarge { .. } => {
                        format!("{}; then {resume}", less_memory(flags))
                    }
                    _ => resume,
                });
            }
            Self::OutputDir { .. } => "choose another with --set run.output_dir=PATH",
            Self::NotFinite { checkpoint, .. } | Self::NotFiniteWeights { checkpoint, .. } => {
                match checkpoint {
                    Some(dir) => return Some(format!("go on from {} with --resume", dir.display())),
                    None => "start again with --set run.output_dir=PATH, as there is no checkpoint yet",
                }
            }
            Self::DamagedCheckpoint { older, .. } => match older {
                Some(older) => {
                    return Some(format!("remove it, and --resume goes on from {}", older.display()));
                }
                None => "there is no older one, so start again with --set run.output_dir=PATH",
            },
            Self::ConfigChanged { .. } | Self::DataChanged { .. } => {
                "or start another run with --set run.output_dir=PATH"
            }
            Self::Interrupted { .. } => "--resume goes on from there",
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

impl Remedy for RunDirError {
    fn remedy(&self, _flags: &Flags) -> Option<String> {
        let remedy = match self {
            Self::RunExists { checkpoint: None, finished: false, .. } => {
                "remove the directory, or --set run.output_dir=PATH starts another"
            }
            Self::RunExists { checkpoint: None, .. } => "--set run.output_dir=PATH starts another",
            Self::RunExists { finished: false, .. } => {
                "--resume goes on with it, --set run.output_dir=PATH starts another"
            }
            Self::RunExists { .. } => {
                "--resume goes on with it, to more steps if it is finished; --set run.output_dir=PATH starts another"
            }
            Self::Empty { .. } => "start it without --resume",
            Self::EndedEarly { .. } => "remove the directory and start without --resume",
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use anyhow::Context;
    use glm4v_model::{Backend, Precision};
    use glm4v_processor::MessageLocation;

    use super::*;

    fn shown(name: &str, error: impl Into<anyhow::Error>) -> String {
        line(&error.into(), &[name])
    }

    fn run() -> PathBuf {
        "runs/a".into()
    }

    fn missing(dir: &str, file: &str) -> WeightsError {
        WeightsError::MissingFile { dir: dir.into(), file: file.into(), remedy: "needed: x" }
    }

    fn image(source: ImageError) -> ProcessorError {
        ProcessorError::Image { image: 0, source }
    }

    fn shape(source: ResizeError) -> ProcessorError {
        ProcessorError::Shape { image: 0, name: "a.png".into(), source: Box::new(source.into()) }
    }

    const LIMITS: ResizeError = ResizeError::Limits { min_pixels: 2, max_pixels: 1 };
    const ENLARGED: ResizeError = ResizeError::Enlarged { height: 9, width: 9, max_pixels: 8 };

    #[test]
    fn an_unavailable_backend_or_dtype() {
        let device = |error: DeviceError| shown("generate", TrainError::from(WeightsError::from(error)));
        assert_eq!(
            device(DeviceError::NotCompiled { backend: "cpu" }),
            "backend cpu is not compiled into this binary; needed: the cargo feature cpu; build it with: cargo build \
             --release"
        );
        assert_eq!(
            device(DeviceError::NotCompiled { backend: "cuda" }),
            "backend cuda is not compiled into this binary; needed: the cargo feature cuda; build it with: cargo build \
             --release --features gpu"
        );
        assert_eq!(
            device(DeviceError::NoDevice { backend: "wgpu", needed: "a GPU" }),
            "backend wgpu finds no device; needed: a GPU; or run with --backend cpu"
        );
        assert_eq!(
            device(DeviceError::TooLarge { name: "lm_head.weight".into(), bytes: 9, most: 8 }),
            "lm_head.weight takes 9 bytes, and this device binds tensors of at most 8; use --backend cpu or cuda, or \
             --dtype f16 where the device has it"
        );
        assert_eq!(
            device(DeviceError::Dtype { dtype: Precision::Bf16, backend: Backend::Wgpu(None) }),
            "dtype bf16 is not supported by wgpu here; use --dtype f32"
        );
    }

    #[test]
    fn nan_logits() {
        let error = GenerateError::NanLogits { row: 0, token: 3 };
        let answering = TrainError::Generate(Box::new(EvalGenerateError::from(error)));

        assert_eq!(
            shown("eval", answering),
            "cannot generate answers: row 0, new token 3: the model's scores are not numbers; the weights may be broken; or \
             try --dtype f32"
        );
    }

    #[test]
    fn a_special_token_in_message_text() {
        let location = MessageLocation::Message { message: 0 };
        let special_token =
            || TemplateError::SpecialToken { location: location.clone(), token: "<|user|>".into() };
        let text = "message 0: its text spells <|user|>, which only the chat template writes; needed: a text without it";

        assert_eq!(
            shown("generate", ProcessorError::from(special_token())),
            format!("{text}; or allow it with --allow-special-tokens")
        );
        assert_eq!(shown("train", TrainError::from(ProcessorError::from(special_token()))), text);
    }

    #[test]
    fn a_remote_image() {
        let remote = || image(ImageError::Remote { url: "http://x/y.png".into() });
        let text = "image 0 of the conversation cannot be used: http://x/y.png: fetching over the network is off; needed: a \
                    local path or a data: URL";

        assert_eq!(shown("generate", remote()), format!("{text}; or allow it with --allow-http"));
        assert_eq!(shown("eval", remote()), format!("{text}; download it first"));
    }

    #[test]
    fn an_image_outside_the_pixel_limits() {
        assert_eq!(
            shown("generate", shape(LIMITS)),
            "image 0 of the conversation, a.png: at least 2 and at most 1 pixels are asked for; needed: a minimum below the \
             maximum; change --min-pixels or --max-pixels"
        );
        assert_eq!(
            shown("generate", shape(ENLARGED)),
            "image 0 of the conversation, a.png: would be enlarged to 9x9 pixels, more than 8 in all; needed: a lower minimum \
             of pixels; lower --min-pixels"
        );
        for problem in [LIMITS, ENLARGED] {
            let text = shown("train", TrainError::from(shape(problem)));
            assert!(text.ends_with("; change the limits in the model's preprocessor_config.json"), "{text}");
        }
    }

    #[test]
    fn a_video_outside_the_pixel_limits() {
        let video = || {
            let source = Box::new(VideoError::Resize { name: "a.mp4".into(), source: LIMITS });
            ProcessorError::Video { video: 0, source }
        };
        let text = "video 0 of the conversation cannot be used: a.mp4: at least 2 and at most 1 pixels are asked for; needed: \
                    a minimum below the maximum";

        assert_eq!(shown("generate", video()), format!("{text}; change --max-video-pixels"));
        assert_eq!(
            shown("eval", video()),
            format!("{text}; change the limits in the model's video_preprocessor_config.json")
        );
    }

    #[test]
    fn a_model_and_an_adapter_mixed_up() {
        let base = Some("org/base".to_owned());
        let given = |name| shown(name, WeightsError::IsAdapter { dir: run(), base: base.clone() });
        let text =
            "runs/a: a LoRA adapter of org/base, not a model; needed: that model, with the adapter on top;";

        assert_eq!(given("generate"), format!("{text} pass --model org/base --adapter runs/a"));
        assert_eq!(
            given("train"),
            format!("{text} set model.path to org/base, and lora.adapter_path to runs/a")
        );
        assert_eq!(given("convert"), format!("{text} glm4v merge makes one model of both"));
        assert_eq!(
            shown("merge", missing("m", "adapter_config.json")),
            "m: adapter_config.json is missing; needed: x; a whole model goes to --model"
        );
        assert_eq!(
            shown("train", missing("m", "adapter_config.json")),
            "m: adapter_config.json is missing; needed: x; a whole model goes to model.path"
        );
    }

    #[test]
    fn files_missing_from_a_model_directory() {
        assert_eq!(
            shown("generate", missing("m", "config.json")),
            "m: config.json is missing; needed: x; or one made by glm4v init"
        );
        assert_eq!(
            shown("generate", missing("m", "model.safetensors")),
            "m: model.safetensors is missing; needed: x; glm4v init makes random ones"
        );
        assert_eq!(
            shown("generate", missing("m", "a.safetensors").into_context()),
            "outer: m: a.safetensors is missing; needed: x"
        );
    }

    #[test]
    fn an_output_directory_that_exists_or_is_locked() {
        assert_eq!(
            shown("convert", WeightsError::Exists { path: "out".into() }),
            "out: exists already; choose another --out"
        );
        assert_eq!(
            shown("merge", WeightsError::Locked { path: "out".into() }),
            "out: another process is writing it; wait until it is done, or choose another --out"
        );
    }

    #[test]
    fn refused_worker_threads() {
        let refused =
            rayon::ThreadPoolBuilder::new().spawn_handler(|_| Err(io::Error::other("no room"))).build();
        assert_eq!(
            shown("generate", ThreadsError::Start { threads: 1024, source: refused.err().unwrap() }),
            "1024 worker threads cannot be started: no room; ask for fewer with --threads or RAYON_NUM_THREADS, or raise the \
             limits of processes and memory (ulimit -u, ulimit -v)"
        );
        assert_eq!(
            shown("generate", ThreadsError::Variable { found: 100_000 }),
            "RAYON_NUM_THREADS is 100000; needed: 1 to 1024, or 0 for one a core; or set --threads"
        );
    }

    trait IntoContext {
        fn into_context(self) -> anyhow::Error;
    }

    impl IntoContext for WeightsError {
        fn into_context(self) -> anyhow::Error {
            Err::<(), _>(self).context("outer").unwrap_err()
        }
    }

    #[test]
    fn a_malformed_setting() {
        assert_eq!(
            shown("train", RunConfigError::Set { found: "lr".into() }),
            "setting \"lr\": needed: section.key=value; as in --set optim.lr=1e-4"
        );
    }

    #[test]
    fn a_refused_data_worker() {
        let source = io::Error::other("no threads");
        assert_eq!(
            shown("train", TrainError::from(DataLoaderError::Start { worker: 0, source })),
            "worker 0 could not be started; use fewer workers: no threads; as in --set data.workers=1"
        );
    }

    #[test]
    fn a_run_directory_that_holds_a_run_or_is_not_writable() {
        let source = io::Error::other("full");
        assert_eq!(
            shown("train", TrainError::OutputDir { dir: run(), source }),
            "runs/a: cannot write the run directory: full; choose another with --set run.output_dir=PATH"
        );
        let taken = |checkpoint, finished| {
            let error = RunDirError::RunExists { dir: run(), checkpoint, finished };
            shown("train", TrainError::from(error))
        };
        assert_eq!(
            taken(None, false),
            "runs/a: holds a run that ended before its first checkpoint; remove the directory, or --set run.output_dir=PATH starts \
             another"
        );
        assert_eq!(
            taken(None, true),
            "runs/a: holds a finished run, its weights are in final; --set run.output_dir=PATH starts another"
        );
        assert_eq!(
            taken(Some(3), false),
            "runs/a: holds a run with a checkpoint after step 3; --resume goes on with it, --set run.output_dir=PATH starts \
             another"
        );
        assert_eq!(
            taken(Some(3), true),
            "runs/a: holds a run with weights in final and a checkpoint after step 3; --resume goes on with it, to more steps \
             if it is finished; --set run.output_dir=PATH starts another"
        );
    }

    #[test]
    fn a_run_that_cannot_be_resumed() {
        let refused = |error: RunDirError| shown("train", TrainError::from(error));
        assert_eq!(
            refused(RunDirError::Empty { dir: run() }),
            "runs/a: holds no run to resume; start it without --resume"
        );
        assert_eq!(
            refused(RunDirError::EndedEarly { dir: run() }),
            "runs/a: the run ended before its first checkpoint, so that nothing can be resumed; remove the directory and start \
             without --resume"
        );
        let damaged = |older| {
            let source = Box::new(TrainError::from(WeightsError::NotOptimizer { path: "o".into() }));
            shown("train", TrainError::DamagedCheckpoint { checkpoint: run(), older, source })
        };
        let text = "runs/a cannot be resumed from, as it is damaged or of another version: o: not an optimizer's state with a step for each parameter";
        assert_eq!(damaged(Some("b".into())), format!("{text}; remove it, and --resume goes on from b"));
        assert_eq!(
            damaged(None),
            format!("{text}; there is no older one, so start again with --set run.output_dir=PATH")
        );
    }

    #[test]
    fn a_run_that_diverged_or_was_interrupted() {
        let diverged = |checkpoint| {
            let (step, loss, grad_norm, lr) = (2, f64::NAN, 1.0, 0.5);
            shown("train", TrainError::NotFinite { step, loss, grad_norm, lr, checkpoint })
        };
        let text = "step 2: loss is NaN, gradient norm 1, at a learning rate of 5.000e-1; nothing was saved of this step; \
                    needed: a lower optim.lr or a longer schedule.warmup_steps";
        assert_eq!(
            diverged(Some(run().join("checkpoints/step-1"))),
            format!("{text}; go on from runs/a/checkpoints/step-1 with --resume")
        );
        assert_eq!(
            diverged(None),
            format!("{text}; start again with --set run.output_dir=PATH, as there is no checkpoint yet")
        );
        assert_eq!(
            shown("train", TrainError::Interrupted { step: 3, dir: run() }),
            "stopped after step 3; everything is in runs/a; --resume goes on from there"
        );
    }

    #[test]
    fn no_remedy_names_a_flag_that_the_command_does_not_accept() {
        let errors: [fn() -> anyhow::Error; 7] = [
            || DeviceError::NoDevice { backend: "wgpu", needed: "a GPU" }.into(),
            || GenerateError::NanLogits { row: 0, token: 3 }.into(),
            || TemplateError::SpecialToken { location: MessageLocation::Tools, token: "t".into() }.into(),
            || ImageError::Remote { url: "u".into() }.into(),
            || shape(LIMITS).into(),
            || shape(ENLARGED).into(),
            || missing("m", "adapter_config.json").into(),
        ];
        for command in Args::command().get_subcommands() {
            let flags = Flags::for_command(&[command.get_name()]);
            for error in errors {
                let text = shown(command.get_name(), error());
                for word in text.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
                    let flag = word.trim_end_matches([',', ';', ':']);
                    assert!(flags.contain(flag), "{}: {text}", command.get_name());
                }
            }
        }
    }
}
