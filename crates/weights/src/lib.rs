#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`ModelFolder::load`] builds the network from a folder, [`save_model`] writes one that transformers and this crate load
//! alike; [`ModelFolder::init`] and [`ModelFolder::convert`] write one without building a network. [`TensorFile`] and
//! [`write_tensors`] read and write single safetensors files, for optimizer state and traces.

mod adapter;
mod checkpoint;
mod convert;
mod file;
mod folder;
mod foreign;
mod fresh;
mod hub;
mod layout;
mod load;
mod merge;
mod names;
mod numbers;
mod publish;
mod save;
mod scales;
mod shards;
mod sides;
mod write;

pub use adapter::{AdapterConfig, AdapterError, AdapterFolder, Names, attach, learns_with, save_adapter};
pub use file::{FormatError, TensorFile};
pub use folder::ModelFolder;
pub use foreign::WeightFormat;
pub use hub::{HubCache, HubError, Repository, Snapshot};
pub use numbers::floats;
pub use publish::{StagedFolder, remove_leftovers, remove_unpublished, write_file};
pub use save::{save_model, save_model_in};
pub use shards::{ShardSize, ShardSizeError};
pub use write::write_tensors;

use std::path::PathBuf;

use glm4v_model::ConfigError;

/// Hears of weights that are read or written: bytes so far, and bytes in all.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64);

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// Reading or writing failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried, "read" or "write".
        action: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that is not one, or longer than any of its kind.
    #[error(transparent)]
    File(#[from] glm4v_files::FileError),
    /// Not in the Hugging Face cache either.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file where a directory is due.
    #[error("{}: {found}", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: WeightFormat,
    },
    /// An adapter where a model is due.
    #[error(
        "{}: a LoRA adapter of {}, not a model; needed: that model, with the adapter on top", folder.display(),
        base.as_deref().unwrap_or("another model")
    )]
    IsAdapter {
        /// The folder.
        folder: PathBuf,
        /// Its model, by its config.
        base: Option<String>,
    },
    /// Weights in a format that is not read.
    #[error("{}: {file} is {found}", folder.display())]
    OtherFormat {
        /// The folder.
        folder: PathBuf,
        /// A file of weights in it.
        file: String,
        /// Its format.
        found: WeightFormat,
    },
    /// Weights of a model that only Python reads.
    #[error(
        "{folder}: {file} holds {}; convert it with transformers: python -c \"from transformers import \
         AutoModelForImageTextToText as M; M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\"",
        WeightFormat::Pickle, folder = folder.display()
    )]
    Pickle {
        /// The folder.
        folder: PathBuf,
        /// A file of weights in it.
        file: String,
    },
    /// Scales of eight-bit weights that do not fit them.
    #[error(
        "{}: {name} has shape {found:?} for a weight of {shape:?}; needed: one scale for the tensor, for each row, or for each \
         block of the size that weight_block_size or block_structure of quantization_config says", path.display()
    )]
    Scales {
        /// The file.
        path: PathBuf,
        /// Name of the scales.
        name: String,
        /// Their shape.
        found: Vec<usize>,
        /// The weight's shape.
        shape: Vec<usize>,
    },
    /// Weights that are not numbers of their own.
    #[error(
        "{}: the weights are quantized (quant_method: {method}; tensors of type {found}), which is not read yet; needed: \
         the repository of the same model with bf16 weights, the one without FP8, AWQ or GPTQ in its name",
        folder.display()
    )]
    Quantized {
        /// The folder.
        folder: PathBuf,
        /// What its config says of it.
        method: String,
        /// The type of its tensors.
        found: safetensors::Dtype,
    },
    /// A download into the Hugging Face cache that has not ended.
    #[error(
        "{}: the download is not complete: {file} is missing, files begun and not finished: {begun}; the rest is \
         downloaded by: {download}", folder.display()
    )]
    Unfinished {
        /// The snapshot.
        folder: PathBuf,
        /// What is missing.
        file: String,
        /// Files that were begun.
        begun: usize,
        /// The command.
        download: String,
    },
    /// Something is where a new folder should be made.
    #[error("{}: exists already", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// A folder that another process is making.
    #[error("{}: another process is writing it", path.display())]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// Not a folder.
    #[error("{}: no such folder; needed: a model folder with config.json", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file that every model folder has.
    #[error("{}: {file} is missing; {remedy}", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// Name of the file.
        file: String,
        /// What to do.
        remedy: &'static str,
    },
    /// `config.json` does not describe a network.
    #[error("{}: {source}", folder.display())]
    Config {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// `model.safetensors.index.json` is not an index.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A safetensors file that is cut short or lies about its contents.
    #[error("{}: not a whole safetensors file: {source}; copy or download it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// A tensor that is in a checkpoint twice.
    #[error(
        "{}: tensor \"{first_name}\" is also in {}, as \"{second_name}\"; remove one of them",
        first.display(),
        second.display()
    )]
    Duplicate {
        /// The file that has it.
        first: PathBuf,
        /// What it is called there.
        first_name: String,
        /// The other file.
        second: PathBuf,
        /// What it is called there.
        second_name: String,
    },
    /// A tensor that is not in the file.
    #[error("{}: tensor \"{name}\" is missing", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: String,
    },
    /// A tensor whose numbers this version cannot read.
    #[error("{}: tensor \"{name}\" has type {found}; needed: F32, BF16, F16, F64, or an integer type where one is due", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: String,
        /// Its type.
        found: String,
    },
    /// A file that should hold an optimizer's state.
    #[error("{}: not an optimizer's state with a step for each parameter", path.display())]
    NotOptimizer {
        /// The file.
        path: PathBuf,
    },
    /// The device does not take the network.
    #[error(transparent)]
    Device(#[from] glm4v_model::DeviceError),
    /// An adapter that does not fit the network, or a config that makes none.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A folder with an adapter that cannot be read, or does not fit the network.
    #[error("{}: {source}", path.display())]
    AdapterAt {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What is wrong.
        source: AdapterError,
    },
    /// The tensors of a folder do not fit the network of its config.
    #[error("{}: {}", folder.display(), describe_mismatch(missing, misshapen))]
    Mismatch {
        /// The folder.
        folder: PathBuf,
        /// Names that no file has.
        missing: Vec<String>,
        /// Tensors of another shape: name, found, needed.
        misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    },
}

impl WeightsError {
    pub(crate) fn read(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action: "read", source }
    }

    pub(crate) fn write(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action: "write", source }
    }
}

/// How many names an error lists before it counts the rest.
const LISTED: usize = 8;

/// A list of names, cut behind `most` of them.
pub(crate) fn list_names(names: &[String], most: usize) -> String {
    let shown = names.iter().take(most).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn describe_mismatch(missing: &[String], misshapen: &[(String, Vec<usize>, Vec<usize>)]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        let count = if missing.len() == 1 {
            "1 tensor is".to_owned()
        } else {
            format!("{} tensors are", missing.len())
        };
        parts.push(format!("{count} missing: {}", list_names(missing, LISTED)));
    }
    if !misshapen.is_empty() {
        let lines: Vec<String> = misshapen
            .iter()
            .map(|(name, found, needed)| format!("{name} is {found:?}, config.json needs {needed:?}"))
            .collect();
        let count = match misshapen.len() {
            1 => "1 tensor has".to_owned(),
            more => format!("{more} tensors have"),
        };
        parts.push(format!("{count} another shape: {}", list_names(&lines, LISTED)));
    }
    parts.join("; ")
}
