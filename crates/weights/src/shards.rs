//! Weights in files of bounded size, with the index that says which tensor is where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::json;

use crate::checkpoint::{INDEX, SINGLE};
use crate::write::{Outgoing, write_outgoing};
use crate::{Watch, WeightsError, write_file};

/// Most bytes of tensors in a file of weights; a larger tensor has a file of its own. 5 GB if nothing else is said, as
/// on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSize(u64);

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("size \"{found}\" is unknown; needed: a positive number with a unit, as 5GB, 500MB or 4GiB")]
pub struct ShardSizeError {
    found: String,
}

/// Units, the longer spelling of two that end alike first.
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
        let sized = UNITS.iter().find_map(|(unit, bytes)| {
            let number: u64 = lower.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes)
        });
        match sized {
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

/// Writes tensors into `folder`, in one file if they fit, else in several with an index; in their order, greedily, as
/// huggingface_hub splits them.
pub(crate) fn write_shards(
    folder: &Path,
    tensors: Vec<Outgoing<'_>>,
    size: ShardSize,
    watch: Watch<'_>,
) -> Result<(), WeightsError> {
    let total: u64 = tensors.iter().map(|tensor| tensor.len() as u64).sum();
    let mut done = 0;
    let mut watch = |bytes| {
        done += bytes;
        watch(done, total);
    };
    let shards = split(tensors, size);
    let count = shards.len();
    let mut map = BTreeMap::new();
    for (number, tensors) in shards.into_iter().enumerate() {
        let name = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone())));
        write_outgoing(&folder.join(name), tensors, &[], &mut watch)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_file(&folder.join(INDEX), format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
}

fn split(tensors: Vec<Outgoing<'_>>, ShardSize(most): ShardSize) -> Vec<Vec<Outgoing<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let len = tensor.len() as u64;
        let last = shards.last_mut().expect("it starts with one");
        if filled + len > most && !last.is_empty() {
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
    use crate::TensorFile;
    use crate::checkpoint::Checkpoint;
    use safetensors::Dtype;
    use serde_json::Value;
    use std::fs;

    fn outgoing(name: &str, len: usize) -> Outgoing<'static> {
        Outgoing {
            name: name.into(),
            dtype: Dtype::U8,
            shape: vec![len],
            bytes: Box::new(move |sink| sink(&vec![len as u8; len])),
        }
    }

    #[test]
    fn sizes_are_read_and_written_as_people_write_them() {
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
        let mut heard = Vec::new();

        write_shards(
            folder.path(),
            tensors.map(|(name, len)| outgoing(name, len)).into(),
            "1kb".parse().unwrap(),
            &mut |done, total| heard.push((done, total)),
        )
        .unwrap();

        let index: Value = serde_json::from_slice(&fs::read(folder.path().join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 2500);
        for (name, number) in [("b", 1), ("a", 1), ("large", 2), ("c", 3)] {
            assert_eq!(index["weight_map"][name], format!("model-{number:05}-of-00003.safetensors"));
        }
        assert_eq!(heard, [(400, 2500), (900, 2500), (2400, 2500), (2500, 2500)]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for (name, len) in tensors {
            let (file, _) = checkpoint.find(name).unwrap();
            let (values, shape) = file.integers(name).unwrap();
            assert!(shape == [len] && values.iter().all(|value| *value == i64::from(len as u8)));
        }
    }

    #[test]
    fn what_fits_is_one_file_without_index() {
        let folder = tempfile::tempdir().unwrap();

        let tensors = vec![outgoing("a", 400), outgoing("b", 600)];
        write_shards(folder.path(), tensors, "1kb".parse().unwrap(), &mut |_, _| {}).unwrap();

        let path = folder.path().join(SINGLE);
        assert_eq!(TensorFile::open(&path).unwrap().names(), ["a", "b"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
