//! File formats of weights, recognized so that an error can name an unsupported one.

use std::fmt;
use std::io::Read;
use std::path::Path;

/// Format of a weights file.
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
    /// Detects the format of a file by its first bytes or its extension.
    pub(crate) fn detect(path: &Path) -> Self {
        let mut magic = [0; 4];
        let file = glm4v_files::open(path);
        if file.is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"GGUF" {
            return Self::Gguf;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let has_extension = |extensions: &[&str]| extensions.iter().any(|end| name.ends_with(end));
        if has_extension(&[".safetensors"]) {
            Self::Safetensors
        } else if has_extension(&[".gguf"]) {
            Self::Gguf
        } else if has_extension(&[".bin", ".bin.index.json", ".pth", ".pt", ".ckpt"]) {
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
