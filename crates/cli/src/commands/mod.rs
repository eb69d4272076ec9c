//! One file a command.

mod convert;
mod embed;
mod eval;
mod generate;
mod info;
mod init;
mod inputs;
mod merge;
mod trace;
mod train;

pub(crate) use convert::convert;
pub(crate) use embed::embed;
pub(crate) use eval::eval;
pub(crate) use generate::generate;
pub(crate) use info::info;
pub(crate) use init::init;
pub(crate) use merge::merge;
pub(crate) use trace::trace;
pub(crate) use train::train;

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, ensure};
use glm4v_model::{Glm4v, Precision, Site};
use glm4v_processor::Processor;
use glm4v_train::RunConfig;
use glm4v_weights::{AdapterFolder, ModelFolder};

use crate::args::Command;
use crate::progress::Transfer;

/// Reads what a command would read of its own words: a run's config with the settings on top.
pub(crate) fn parse_only(command: &Command) -> anyhow::Result<()> {
    if let Command::Train(train) = command {
        RunConfig::read(&train.config, &train.settings)?;
    }
    Ok(())
}

/// Opens a model folder with its processor, and makes sure that the two belong together.
fn open_model(path: &Path) -> anyhow::Result<(ModelFolder, Processor)> {
    let folder = ModelFolder::open(path)?;
    let longest = folder.config().text.max_position_embeddings;
    let processor = Processor::load(path)?.with_max_tokens(longest);
    let (config, tokenizer) = (folder.config().image_token_id, processor.tokenizer().special().image);
    ensure!(
        config == tokenizer,
        "{}: image_token_id is {config} in config.json, but <|image|> is {tokenizer} in tokenizer.json; take both \
         from the same checkpoint",
        path.display()
    );
    let vision = &folder.config().vision;
    let image = processor.image_processor();
    for (what, key, config, file) in [
        ("values in a patch", "patch_size and temporal_patch_size", vision.patch_values(), image.row_len()),
        ("patches in a token", "merge_size", vision.merged_patches(), image.patches_per_token()),
    ] {
        ensure!(
            config == file,
            "{}: {config} {what} in config.json, but {file} in preprocessor_config.json ({key}); take both from the same \
             checkpoint",
            path.display()
        );
    }
    Ok((folder, processor))
}

/// Loads a model folder's weights, and an adapter's on top.
fn load_model(
    folder: &ModelFolder,
    adapter: Option<&Path>,
    site: &Site,
    precision: Precision,
    quiet: bool,
) -> anyhow::Result<Glm4v> {
    // Looked at first: a broken adapter need not wait for the model.
    let adapter = adapter.map(AdapterFolder::open).transpose()?;
    let mut transfer = Transfer::new("loading", quiet);
    let model = folder.load_on(site, precision, &mut |done, of| transfer.at(done, of))?;
    drop(transfer);
    Ok(match adapter {
        Some(adapter) => adapter.apply(model, precision)?,
        None => model,
    })
}

/// Writes a line to stdout; a reader that went away is an error, not a panic.
fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(stdout().lock(), "{line}").context("cannot write to stdout")
}
