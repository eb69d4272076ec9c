//! Errors of reading and writing weights.

use std::io;
use std::path::{Path, PathBuf};

use glm4v_files::FileError;
use glm4v_model::{ConfigError, DeviceError};
use safetensors::Dtype;

use crate::adapter::error::AdapterError;
use crate::hub::HubError;
use crate::name_list::{MAX_LISTED, list_names};
use crate::weight_format::WeightFormat;

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// An I/O error of the operating system.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The failed operation, "read" or "write".
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A path that is no regular file, or a file beyond the length limit of its kind.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither a directory nor a repository in the Hugging Face cache.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file in place of a directory.
    #[error("{}: {found}", path.display())]
    NotADirectory {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: WeightFormat,
    },
    /// An adapter in place of a model.
    #[error(
        "{}: a LoRA adapter of {}, not a model; needed: that model, with the adapter on top", dir.display(),
        base.as_deref().unwrap_or("another model")
    )]
    IsAdapter {
        /// The adapter's directory.
        dir: PathBuf,
        /// `base_model_name_or_path` of its config.
        base: Option<String>,
    },
    /// Weights in an unsupported format.
    #[error("{}: {file} is {found}", dir.display())]
    UnsupportedFormat {
        /// The directory.
        dir: PathBuf,
        /// Name of a weights file in it.
        file: String,
        /// Format of that file.
        found: WeightFormat,
    },
    /// Pickled PyTorch weights, which only Python reads.
    #[error(
        "{dir}: {file} holds {}; convert it with transformers: python -c \"from transformers import \
         AutoModelForImageTextToText as M; M.from_pretrained('{dir}', dtype='auto').save_pretrained('{dir}')\"",
        WeightFormat::Pickle, dir = dir.display()
    )]
    Pickle {
        /// The directory.
        dir: PathBuf,
        /// Name of a weights file in it.
        file: String,
    },
    /// FP8 scales whose shape does not fit their weight.
    #[error(
        "{}: {name} has shape {found:?} for a weight of {shape:?}; needed: one scale for the tensor, for each row, or for each \
         block of the size that weight_block_size or block_structure of quantization_config says", path.display()
    )]
    ScaleShape {
        /// The safetensors file.
        path: PathBuf,
        /// Name of the scales.
        name: String,
        /// Shape of the scales.
        found: Vec<usize>,
        /// Shape of the weight.
        shape: Vec<usize>,
    },
    /// Quantized weights of an unsupported kind.
    #[error(
        "{}: the weights are quantized (quant_method: {method}; tensors of type {found}), which is not read yet; needed: \
         the repository of the same model with bf16 weights, the one without FP8, AWQ or GPTQ in its name",
        dir.display()
    )]
    Quantized {
        /// The directory.
        dir: PathBuf,
        /// `quant_method` and `format` of the config.
        method: String,
        /// Type of the quantized tensors.
        found: Dtype,
    },
    /// A download into the Hugging Face cache that was interrupted.
    #[error(
        "{}: the download is not complete: {file} is missing, files begun and not finished: {begun}; the rest is \
         downloaded by: {download}", dir.display()
    )]
    IncompleteDownload {
        /// The snapshot.
        dir: PathBuf,
        /// Names of the missing files.
        file: String,
        /// Number of `.incomplete` blobs.
        begun: usize,
        /// Command that resumes the download.
        download: String,
    },
    /// The output path is taken.
    #[error("{}: exists already", path.display())]
    Exists {
        /// The output path.
        path: PathBuf,
    },
    /// Another process holds the lock of the output path.
    #[error("{}: another process is writing it", path.display())]
    Locked {
        /// The output path.
        path: PathBuf,
    },
    /// No such directory.
    #[error("{}: no such directory; needed: a model directory with config.json", path.display())]
    NoSuchDir {
        /// The path.
        path: PathBuf,
    },
    /// A required file is missing.
    #[error("{}: {file} is missing; {remedy}", dir.display())]
    MissingFile {
        /// The directory.
        dir: PathBuf,
        /// Name of the file.
        file: String,
        /// Advice for the user.
        remedy: &'static str,
    },
    /// `config.json` does not describe a network.
    #[error("{}: {source}", dir.display())]
    Config {
        /// The model's directory.
        dir: PathBuf,
        /// The config's error.
        source: ConfigError,
    },
    /// Another image token in the config than in the tokenizer.
    #[error(
        "{}: image_token_id is {config} in config.json, but <|image|> is {tokenizer} in tokenizer.json; take both \
         from the same checkpoint", dir.display()
    )]
    ImageToken {
        /// The model's directory.
        dir: PathBuf,
        /// `image_token_id` of `config.json`.
        config: u32,
        /// Id of `<|image|>` in `tokenizer.json`.
        tokenizer: u32,
    },
    /// Other patches in the config than in the image processor.
    #[error(
        "{}: {config} {quantity} in config.json, but {processor} in preprocessor_config.json ({key}); take both from the same \
         checkpoint", dir.display()
    )]
    PatchSize {
        /// The model's directory.
        dir: PathBuf,
        /// The quantity that differs.
        quantity: &'static str,
        /// Its keys in `preprocessor_config.json`.
        key: &'static str,
        /// Its value by `config.json`.
        config: usize,
        /// Its value by `preprocessor_config.json`.
        processor: usize,
    },
    /// `model.safetensors.index.json` is broken or contradicts its files.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The contradiction.
        problem: String,
    },
    /// A truncated safetensors file, or one whose header is broken.
    #[error("{}: not a whole safetensors file: {source}; copy or download it again", path.display())]
    Format {
        /// The safetensors file.
        path: PathBuf,
        /// The format error.
        source: SafetensorsError,
    },
    /// Two tensors of one checkpoint with the same canonical name.
    #[error(
        "{}: tensor \"{first_name}\" is also in {}, as \"{second_name}\"; remove one of them",
        first.display(),
        second.display()
    )]
    Duplicate {
        /// File of the first tensor.
        first: PathBuf,
        /// Stored name of the first tensor.
        first_name: String,
        /// File of the second tensor.
        second: PathBuf,
        /// Stored name of the second tensor.
        second_name: String,
    },
    /// A tensor that the file does not have.
    #[error("{}: tensor \"{name}\" is missing", path.display())]
    NoTensor {
        /// The safetensors file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
    },
    /// A tensor of an unsupported type.
    #[error("{}: tensor \"{name}\" has type {found}; needed: F32, BF16, F16, F64, or an integer type where one is due", path.display())]
    Dtype {
        /// The safetensors file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Type of the tensor.
        found: String,
    },
    /// A safetensors file without the tensors of an optimizer state.
    #[error("{}: not an optimizer's state with a step for each parameter", path.display())]
    NotOptimizer {
        /// The safetensors file.
        path: PathBuf,
    },
    /// The device cannot hold the network.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An adapter that does not fit the network, or an invalid LoRA config.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The same for an adapter that was read from files.
    #[error("{}: {source}", path.display())]
    AdapterAt {
        /// The adapter's directory, or the file in it.
        path: PathBuf,
        /// The adapter's error.
        source: AdapterError,
    },
    /// Tensors that do not fit the network of the config.
    #[error("{}: {}", dir.display(), describe_mismatch(missing, misshapen))]
    Mismatch {
        /// The directory, or the file.
        dir: PathBuf,
        /// Names of missing tensors.
        missing: Vec<String>,
        /// Tensors of another shape: name, shape found, shape needed.
        misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    },
}

/// Why a file is not a valid safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// Too short for the header's length field.
    #[error("it is {found} bytes long; needed: at least {LENGTH_FIELD}")]
    TooShort {
        /// Bytes in the file.
        found: u64,
    },
    /// A header beyond the limit of the format.
    #[error("it announces a header of {announced} bytes; needed: at most {MAX_HEADER}")]
    HeaderTooLong {
        /// Value of the length field.
        announced: u64,
    },
    /// A header that reaches beyond the end of the file.
    #[error("it announces a header of {announced} bytes, but is {found} bytes long")]
    HeaderTruncated {
        /// Value of the length field.
        announced: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A header that is not JSON, or whose shapes, types and offsets contradict each other.
    #[error("its header: {0}")]
    Header(#[from] serde_json::Error),
    /// Tensor data that is shorter or longer than the header's offsets.
    #[error("it is {found} bytes long; needed by its header: {needed}")]
    WrongLength {
        /// Bytes in the file.
        found: u64,
        /// End of the last tensor by the header.
        needed: u64,
    },
}

/// Bytes of the length field at the start of a safetensors file.
pub(crate) const LENGTH_FIELD: u64 = 8;

/// Longest header that the format allows, in bytes.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

impl WeightsError {
    /// Maps a failed read of `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action: "read", source }
    }

    /// Maps a failed write of `path`.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action: "write", source }
    }
}

fn describe_mismatch(missing: &[String], misshapen: &[(String, Vec<usize>, Vec<usize>)]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        let count = match missing.len() {
            1 => "1 tensor is".to_owned(),
            more => format!("{more} tensors are"),
        };
        parts.push(format!("{count} missing: {}", list_names(missing, MAX_LISTED)));
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
        parts.push(format!("{count} another shape: {}", list_names(&lines, MAX_LISTED)));
    }
    parts.join("; ")
}
