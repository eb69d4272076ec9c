//! Resolves the directory of a model or an adapter, and explains why one cannot be used.

use std::fs;
use std::path::{Path, PathBuf};

use crate::adapter::config::base_model_of;
use crate::error::WeightsError;
use crate::hub::{ResolvedDir, incomplete_download, resolve};
use crate::name_list::{MAX_LISTED, list_names};
use crate::weight_format::WeightFormat;

/// Resolves a path or the name of a cached repository to an existing directory.
pub(crate) fn find_dir(given: &Path) -> Result<ResolvedDir, WeightsError> {
    let resolved = resolve(given)?;
    if resolved.path.is_dir() {
        return Ok(resolved);
    }
    if resolved.path.exists() {
        let found = WeightFormat::detect(&resolved.path);
        return Err(WeightsError::NotADirectory { path: resolved.path, found });
    }
    Err(WeightsError::NoSuchDir { path: resolved.path })
}

/// The error for required files that are missing: an interrupted download is reported as one.
pub(crate) fn missing_files(dir: &Path, files: &[String], remedy: &'static str) -> WeightsError {
    let (dir, file) = (dir.to_owned(), list_names(files, MAX_LISTED));
    match incomplete_download(&dir) {
        Some(rest) => {
            WeightsError::IncompleteDownload { dir, file, begun: rest.begun, download: rest.download }
        }
        None => WeightsError::MissingFile { dir, file, remedy },
    }
}

/// The error for a directory without `config.json`, by its other contents.
pub(crate) fn missing_config(dir: &Path, config: &str) -> WeightsError {
    if let Some(base) = base_model_of(dir) {
        return WeightsError::IsAdapter { dir: dir.to_owned(), base };
    }
    unsupported_weights(dir).unwrap_or_else(|| {
        missing_files(dir, &[config.to_owned()], "needed: a directory as published on the hub")
    })
}

/// The error for a directory whose weights are in another format than safetensors, if it has any.
pub(crate) fn unsupported_weights(dir: &Path) -> Option<WeightsError> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let path = paths.iter().find(|path| is_unsupported_weights(path))?;
    let (dir, file) = (dir.to_owned(), path.file_name()?.to_string_lossy().into_owned());
    Some(match WeightFormat::detect(path) {
        WeightFormat::Pickle if !file.starts_with("adapter") => WeightsError::Pickle { dir, file },
        found => WeightsError::UnsupportedFormat { dir, file, found },
    })
}

fn is_unsupported_weights(path: &Path) -> bool {
    // Repositories also hold small .bin files that are not weights, such as training_args.bin.
    const PICKLED: [&str; 4] = ["pytorch_model", "adapter_model", "consolidated", "model"];
    match WeightFormat::detect(path) {
        WeightFormat::Gguf => true,
        WeightFormat::Pickle => path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            PICKLED.iter().any(|start| name.starts_with(start))
        }),
        _ => false,
    }
}
