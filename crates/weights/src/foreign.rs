//! Weights in other formats than safetensors, recognized so that an error can say what they are.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::WeightsError;

/// A format of weights, or whatever else lies where a model directory is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightFormat {
    /// `.safetensors`
    Safetensors,
    /// llama.cpp's `.gguf`
    Gguf,
    /// PyTorch's `pytorch_model.bin`, `.pth`
    Pickle,
    /// Anything else.
    Unknown,
}

impl WeightFormat {
    /// The format of a file, by its first bytes or its name.
    fn of(path: &Path) -> Self {
        let mut magic = [0; 4];
        let file = glm4v_files::open(path);
        if file.is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"GGUF" {
            return Self::Gguf;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        if ends(&[".safetensors"]) {
            Self::Safetensors
        } else if ends(&[".gguf"]) {
            Self::Gguf
        } else if ends(&[".bin", ".bin.index.json", ".pth", ".pt", ".ckpt"]) {
            Self::Pickle
        } else {
            Self::Unknown
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "a file of weights; needed: the directory that it lies in, beside config.json",
            Self::Gguf => {
                "a GGUF file, which is not read yet; needed: the repository that it was made from, a directory with \
                 config.json and safetensors files"
            }
            Self::Pickle => {
                "weights as a Python pickle, which can run code when it is opened and is not read; needed: safetensors"
            }
            Self::Unknown => "a file; needed: a directory with config.json",
        })
    }
}

/// The error for a file that was given as a directory.
pub(crate) fn not_a_directory(path: &Path) -> WeightsError {
    WeightsError::NotADirectory { path: path.to_owned(), found: WeightFormat::of(path) }
}

/// The error for a directory whose weights are in another format; none if there are none.
pub(crate) fn other_weights(folder: &Path) -> Option<WeightsError> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    // Small .bin files of other kinds lie about in repositories.
    let weights = |path: &&PathBuf| match WeightFormat::of(path) {
        WeightFormat::Gguf => true,
        WeightFormat::Pickle => path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            ["pytorch_model", "adapter_model", "consolidated", "model"]
                .iter()
                .any(|kind| name.starts_with(kind))
        }),
        _ => false,
    };
    let path = paths.iter().find(weights)?;
    let (folder, file) = (folder.to_owned(), path.file_name()?.to_string_lossy().into_owned());
    Some(match WeightFormat::of(path) {
        WeightFormat::Pickle if !file.starts_with("adapter") => WeightsError::Pickle { folder, file },
        found => WeightsError::OtherFormat { folder, file, found },
    })
}
