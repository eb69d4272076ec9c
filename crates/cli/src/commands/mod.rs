//! One module per command.

mod bench;
mod convert;
mod data;
mod embed;
mod eval;
mod generate;
mod help;
mod info;
mod init;
mod inputs;
mod merge;
mod selftest;
mod trace;
mod train;
mod warmup;

pub(crate) use bench::bench;
pub(crate) use convert::convert;
pub(crate) use data::data;
pub(crate) use embed::embed;
pub(crate) use eval::eval;
pub(crate) use generate::generate;
pub(crate) use help::{completions, man};
pub(crate) use info::info;
pub(crate) use init::init;
pub(crate) use merge::merge;
pub(crate) use selftest::{SelftestFailed, selftest};
pub(crate) use trace::trace;
pub(crate) use train::train;
pub(crate) use warmup::warmup;

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::Context;
use burn::tensor::Device;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{Backend, DeviceSpec, Glm4v, Precision};
use glm4v_processor::{ImageConfig, Processor};
use glm4v_train::{RunConfig, load_processor};
use glm4v_weights::{AdapterFolder, ModelFolder};

use crate::args::Command;
use crate::progress::ByteProgress;

/// Implements `--parse-only`: reads the config of a run with its `--set` options, and nothing else.
pub(crate) fn parse_only(command: &Command) -> anyhow::Result<()> {
    if let Command::Train(train) = command {
        RunConfig::read(&train.config, &train.settings)?;
    }
    Ok(())
}

/// Device for counting parameters: they are lazy, so nothing is allocated on it.
fn counting_device() -> Device {
    Backend::Cpu.open().unwrap_or_else(|_| Device::default())
}

/// File of the image processor.
const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";

/// Settings of a directory's image processor; none if it has no such file.
fn image_config(dir: &Path) -> anyhow::Result<Option<ImageConfig>> {
    let path = dir.join(PREPROCESSOR_CONFIG);
    match read_text(&path, LONGEST_CONFIG) {
        Ok(json) => Ok(Some(ImageConfig::from_json(&json).with_context(|| path.display().to_string())?)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens a model directory and loads its processor.
fn open_model(path: &Path) -> anyhow::Result<(ModelFolder, Processor)> {
    let model = ModelFolder::open(path)?;
    let processor = load_processor(&model)?;
    Ok((model, processor))
}

/// Loads the weights of a model, with an adapter if there is one.
fn load_model(
    model: &ModelFolder,
    adapter: Option<&Path>,
    device_spec: &DeviceSpec,
    precision: Precision,
    quiet: bool,
) -> anyhow::Result<Glm4v> {
    // Opened first: a damaged adapter is reported before the model is loaded.
    let adapter = adapter.map(AdapterFolder::open).transpose()?;
    let mut progress = ByteProgress::new("loading", quiet);
    let model = model.load_on(device_spec, precision, &mut |done, total| progress.update(done, total))?;
    drop(progress);
    Ok(match adapter {
        Some(adapter) => adapter.apply(model, precision)?,
        None => model,
    })
}

/// Prints a line to stdout. Unlike `println!`, a closed pipe is an error and not a panic.
fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(stdout().lock(), "{line}").context("cannot write to stdout")
}
