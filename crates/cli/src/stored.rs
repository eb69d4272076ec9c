//! What a folder's safetensors files hold, by their headers: no tensor is read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use glm4v_files::LONGEST_CONFIG;
use serde_json::{Map, Value};

/// Tensors of a checkpoint as they lie on the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Files.
    pub(crate) files: usize,
    /// Tensors in all of them.
    pub(crate) tensors: usize,
    /// Bytes of the tensors.
    pub(crate) bytes: u64,
    /// Tensors of each type, under the format's names: `BF16`.
    pub(crate) types: BTreeMap<String, usize>,
}

/// Longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

impl Stored {
    /// Reads the headers of `model.safetensors`, or of the files that the index names.
    pub(crate) fn of(folder: &Path) -> anyhow::Result<Self> {
        let mut stored = Self::default();
        for path in files(folder)? {
            stored.add(&path).with_context(|| format!("{}: no safetensors file", path.display()))?;
        }
        Ok(stored)
    }

    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut file = glm4v_files::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let room = file.metadata()?.len();
        ensure!(
            length <= MOST_HEADER.min(room),
            "header length field is {length}; needed: at most {MOST_HEADER}, and within its {room}"
        );
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header)?;
        let header: Map<String, Value> = serde_json::from_slice(&header)?;
        self.files += 1;
        for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let broken = || format!("its header says nothing useful of {name}");
            let kind = tensor["dtype"].as_str().with_context(broken)?;
            let offset = |index: usize| tensor["data_offsets"][index].as_u64();
            let bytes = offset(1).zip(offset(0)).and_then(|(end, start)| end.checked_sub(start));
            let bytes = bytes.filter(|bytes| *bytes <= room).with_context(broken)?;
            self.tensors += 1;
            self.bytes += bytes;
            *self.types.entry(kind.to_owned()).or_default() += 1;
        }
        Ok(())
    }
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    let place = || index.display().to_string();
    let json: Value =
        serde_json::from_slice(&glm4v_files::read(&index, LONGEST_CONFIG)?).with_context(place)?;
    let map = json["weight_map"].as_object().with_context(|| format!("{}: has no weight_map", place()))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, header: &str, values: usize) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + values, 0);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_headers_of_all_files_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let header = |name: &str, kind: &str| {
            format!(
                r#"{{"__metadata__":{{"format":"pt"}},"{name}":{{"dtype":"{kind}","shape":[4],"data_offsets":[0,8]}}}}"#
            )
        };
        write(&folder.path().join("a.safetensors"), &header("x", "BF16"), 8);
        write(&folder.path().join("b.safetensors"), &header("y", "F16"), 8);
        let index = r#"{"weight_map": {"x": "a.safetensors", "z": "a.safetensors", "y": "b.safetensors"}}"#;
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();

        let stored = Stored::of(folder.path()).unwrap();

        let types = BTreeMap::from([("BF16".to_owned(), 1), ("F16".to_owned(), 1)]);
        assert_eq!(stored, Stored { files: 2, tensors: 2, bytes: 16, types });
    }

    #[test]
    fn a_broken_header_is_an_error_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for header in ["{", r#"{"x":{"dtype":"F32"}}"#, r#"{"x":{"dtype":"F32","data_offsets":[8,0]}}"#] {
            write(&path, header, 8);
            let error = format!("{:#}", Stored::of(folder.path()).unwrap_err());
            assert!(error.contains("model.safetensors: no safetensors file"), "{header}: {error}");
        }
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(format!("{:#}", Stored::of(folder.path()).unwrap_err()).contains("header length field is"));
    }
}
