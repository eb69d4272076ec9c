//! Writing of weights in shards of bounded size, with their index.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::json;

use crate::atomic::write_file;
use crate::error::WeightsError;
use crate::progress::ProgressFn;
use crate::shard_index::{INDEX_FILE, SINGLE_FILE};
use crate::write::{LazyTensor, write_lazy};

/// Maximum bytes of tensors in one weights file, 5 GB by default as on the hub; a larger tensor gets its own file.
///
/// Parsed from a number with a unit, as in transformers' `max_shard_size`: `5GB`, `500MB` or `4GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSize(u64);

/// A text that is not a [`ShardSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("size \"{found}\" is unknown; needed: a positive number with a unit, as 5GB, 500MB or 4GiB")]
pub struct ShardSizeError {
    found: String,
}

/// Units in lower case with their bytes.
const UNITS: [(&str, u64); 8] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

impl Default for ShardSize {
    fn default() -> Self {
        Self(5_000_000_000)
    }
}

impl FromStr for ShardSize {
    type Err = ShardSizeError;

    fn from_str(text: &str) -> Result<Self, ShardSizeError> {
        let lower = text.trim().to_ascii_lowercase();
        let parsed = UNITS.iter().find_map(|(unit, bytes)| {
            let number: u64 = lower.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes)
        });
        match parsed {
            Some(size) if size > 0 => Ok(Self(size)),
            _ => Err(ShardSizeError { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for ShardSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000)]
            .into_iter()
            .find(|(_, bytes)| self.0.is_multiple_of(*bytes))
            .unwrap_or(("KB", 1000));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

/// Writes tensors into `dir`: to one file if they fit, else to shards with an index. Keeps their order and fills each shard
/// before the next, as huggingface_hub does.
pub(crate) fn write_shards(
    dir: &Path,
    tensors: Vec<LazyTensor<'_>>,
    size: ShardSize,
    progress: ProgressFn<'_>,
) -> Result<(), WeightsError> {
    let total: u64 = tensors.iter().map(|tensor| tensor.len() as u64).sum();
    let mut done = 0;
    let mut progress = |bytes| {
        done += bytes;
        progress(done, total);
    };
    let shards = split(tensors, size);
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    for (number, tensors) in shards.into_iter().enumerate() {
        let name = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone())));
        write_lazy(&dir.join(name), tensors, &[], &mut progress)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_file(&dir.join(INDEX_FILE), format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
}

fn split(tensors: Vec<LazyTensor<'_>>, ShardSize(max): ShardSize) -> Vec<Vec<LazyTensor<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let len = tensor.len() as u64;
        let last = shards.last_mut().expect("it starts with one");
        if filled + len > max && !last.is_empty() {
            shards.push(vec![tensor]);
            filled = len;
        } else {
            last.push(tensor);
            filled += len;
        }
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::tensor_file::TensorFile;
    use safetensors::Dtype;
    use serde_json::Value;
    use std::fs;

    fn lazy_tensor(name: &str, len: usize) -> LazyTensor<'static> {
        LazyTensor::new(name.into(), Dtype::U8, vec![len], move |sink| sink(&vec![len as u8; len]))
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("5GB", 5_000_000_000), ("500 mb", 500_000_000), ("2GiB", 1 << 31), ("1kb", 1000)]
        {
            assert_eq!(text.parse(), Ok(ShardSize(bytes)), "{text}");
        }
        assert_eq!(ShardSize::default().to_string(), "5GB");
        for text in ["", "5", "GB", "0GB", "-1GB", "99999999999TB", "5 apples"] {
            let error = text.parse::<ShardSize>().unwrap_err().to_string();
            assert!(error.contains("needed: a positive number with a unit"), "{error}");
        }
    }

    #[test]
    fn tensors_fill_files_in_their_order_and_the_index_names_them() {
        let folder = tempfile::tempdir().unwrap();
        // The third fits beside nothing, the fourth would still fit beside the first two.
        let tensors = [("b", 400), ("a", 500), ("large", 1500), ("c", 100)];
        let mut calls = Vec::new();

        write_shards(
            folder.path(),
            tensors.map(|(name, len)| lazy_tensor(name, len)).into(),
            "1kb".parse().unwrap(),
            &mut |done, total| calls.push((done, total)),
        )
        .unwrap();

        let index: Value =
            serde_json::from_slice(&fs::read(folder.path().join(INDEX_FILE)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 2500);
        for (name, number) in [("b", 1), ("a", 1), ("large", 2), ("c", 3)] {
            assert_eq!(index["weight_map"][name], format!("model-{number:05}-of-00003.safetensors"));
        }
        assert_eq!(calls, [(400, 2500), (900, 2500), (2400, 2500), (2500, 2500)]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for (name, len) in tensors {
            let (file, _) = checkpoint.find(name).unwrap();
            let (values, shape) = file.integers(name).unwrap();
            assert!(shape == [len] && values.iter().all(|value| *value == i64::from(len as u8)));
        }
    }

    #[test]
    fn small_weights_are_one_file_without_index() {
        let folder = tempfile::tempdir().unwrap();

        let tensors = vec![lazy_tensor("a", 400), lazy_tensor("b", 600)];
        write_shards(folder.path(), tensors, "1kb".parse().unwrap(), &mut |_, _| {}).unwrap();

        let path = folder.path().join(SINGLE_FILE);
        assert_eq!(TensorFile::open(&path).unwrap().names(), ["a", "b"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
