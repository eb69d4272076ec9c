//! Shared support of the suites: golden cases, comparisons with them, and runs of the binary.
//!
//! The cases in `fixtures/golden` are a selection; `GLM4V_GOLDEN=/path/to/golden` runs the suites on a whole set.

mod command;
mod imports;

pub use command::{
    CommandOutput, assert_no_partial_files, command, glm4v, losses, metrics, random_model, train, walk,
};
#[cfg(unix)]
pub use command::{interrupt, interrupt_when, signal_when};
pub use imports::ImportGraph;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use glm4v_model::{Backend, Batch, Grid, Modality, MultimodalInputs, Patches};
use glm4v_weights::TensorFile;
use serde_json::Value;

/// Root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Directory of the golden cases.
pub fn golden() -> PathBuf {
    std::env::var_os("GLM4V_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden"), PathBuf::from)
}

/// Backend of the suites: `GLM4V_TEST_BACKEND`, or the CPU.
pub fn backend() -> Backend {
    let name = std::env::var("GLM4V_TEST_BACKEND").unwrap_or_else(|_| "cpu".into());
    name.parse().expect("GLM4V_TEST_BACKEND names a backend")
}

/// A golden case: a safetensors file, and a JSON file with metadata.
pub struct Case {
    /// File name without extension.
    pub name: String,
    /// Content of the JSON file: settings, losses, norms.
    pub meta: Value,
    file: TensorFile,
}

impl Case {
    /// Opens `<golden>/<place>.safetensors` and the json beside it.
    pub fn open(place: &str) -> Self {
        Self::at(&golden().join(place))
    }

    /// As [`open`](Self::open), of the repository's own fixtures even if `GLM4V_GOLDEN` names others: for cases that
    /// `make_golden.py` does not write.
    pub fn open_own(place: &str) -> Self {
        Self::at(&repository().join("tests/fixtures/golden").join(place))
    }

    fn at(path: &Path) -> Self {
        // Not with_extension: names such as `top_p_0.6` have dots.
        let with = |ending: &str| PathBuf::from(format!("{}.{ending}", path.display()));
        let json = std::fs::read_to_string(with("json"))
            .unwrap_or_else(|error| panic!("{}: {error}", with("json").display()));
        Self {
            name: path.file_name().expect("a case has a name").to_string_lossy().into_owned(),
            meta: serde_json::from_str(&json).expect("notes are json"),
            file: TensorFile::open(&with("safetensors")).expect("a case is whole"),
        }
    }

    /// All cases of a directory, sorted by name; at least one.
    pub fn all(folder: &str) -> Vec<Self> {
        let folder = golden().join(folder);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("folders can be listed").path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
            .collect();
        assert!(!paths.is_empty(), "{}: no cases", folder.display());
        paths.sort();
        paths.iter().map(|path| Self::at(&path.with_extension(""))).collect()
    }

    /// Names of the tensors that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.file.names();
        names.into_iter().filter(|name| name.starts_with(prefix)).collect()
    }

    /// A tensor of numbers.
    pub fn float(&self, name: &str) -> TensorData {
        self.file.float(name, DType::F32).expect("the case has the tensor")
    }

    /// A tensor of whole numbers, none if the case does not have it.
    pub fn integers(&self, name: &str) -> Option<(Vec<i64>, Vec<usize>)> {
        let known = !self.names(name).is_empty();
        known.then(|| self.file.integers(name).expect("the tensor holds integers"))
    }

    /// The model's inputs.
    pub fn batch(&self) -> Batch {
        let (ids, shape) = self.integers("in.input_ids").expect("a case has ids");
        let (mask, _) = self.integers("in.attention_mask").expect("a case has a mask");
        let (kinds, _) = self.integers("in.mm_token_type_ids").expect("a case has kinds");
        let loss_mask =
            self.integers("in.labels").map(|(labels, _)| labels.iter().map(|l| *l >= 0).collect());
        let patches = |values: &str, grids: &str| Patches {
            values: match self.names(values).contains(&values.to_owned()) {
                true => values_of(&self.float(values)),
                false => Vec::new(),
            },
            grids: self.integers(grids).map_or_else(Vec::new, |(grids, _)| grids_from_thw(&grids)),
        };
        Batch {
            shape: [shape[0], shape[1]],
            loss_mask: loss_mask.unwrap_or_else(|| vec![false; ids.len()]),
            loss_weights: None,
            input_ids: ids.iter().map(|id| *id as u32).collect(),
            modalities: kinds.iter().map(|kind| Modality::from_token_type_id(*kind as u8)).collect(),
            segment_ids: mask.iter().map(|mask| *mask as u32).collect(),
            media: MultimodalInputs::from_iter([
                (Modality::Image, patches("in.pixel_values", "in.image_grid_thw")),
                (Modality::Video, patches("in.pixel_values_videos", "in.video_grid_thw")),
            ]),
        }
    }
}

/// Grids from the flattened `[N, 3]` of transformers' `image_grid_thw`.
pub fn grids_from_thw(thw: &[i64]) -> Vec<Grid> {
    thw.chunks(3).map(|grid| Grid::new(grid[0] as usize, grid[1] as usize, grid[2] as usize)).collect()
}

/// Values of an f32 tensor, in row-major order.
pub fn values_of(data: &TensorData) -> Vec<f32> {
    data.as_slice::<f32>().expect("the tensor is f32").to_vec()
}

/// Largest absolute difference of two lists; NaN if any value is.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| if a.is_nan() || b.is_nan() { f32::NAN } else { (a - b).abs() })
        .fold(0.0, f32::max)
}

/// L2 norm of the difference, relative to that of `expected`.
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let length: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (difference / length.max(f64::MIN_POSITIVE)).sqrt()
}

/// Path of the built `glm4v`, in the parent of the directory of the test executable.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let binary = folder.join(format!("glm4v{}", std::env::consts::EXE_SUFFIX));
    assert!(
        binary.exists(),
        "{}: build the binary first: cargo build --release --workspace",
        binary.display()
    );
    binary
}
