//! The weights of a folder: one file, or those that an index names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path};

use burn::tensor::DType;
use glm4v_files::{LONGEST_CONFIG, read_text};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::Value;

use crate::folder::missing;
use crate::foreign::other_weights;
use crate::scales::{self, Scales};
use crate::{LISTED, TensorFile, WeightsError, list_names, names, numbers};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Tensors by published name, whichever file they are in and however an export spells them.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    files: Vec<TensorFile>,
    stored: HashMap<String, Stored>,
    /// Published names, as the tensors follow each other in the files.
    order: Vec<String>,
    /// Of eight-bit weights, by the weight's published name.
    scales: HashMap<String, Scales>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Stored {
    file: usize,
    /// Its name there.
    name: String,
}

impl Checkpoint {
    /// Whether a folder has weights at all.
    pub(crate) fn is_in(folder: &Path) -> bool {
        folder.join(SINGLE).exists() || folder.join(INDEX).exists()
    }

    /// Reads the index and the headers.
    ///
    /// Where there is a single file and an index, the file counts, as in transformers.
    pub(crate) fn open(folder: &Path) -> Result<Self, WeightsError> {
        let single = folder.join(SINGLE);
        let mut files = Vec::new();
        if single.exists() {
            files.push(TensorFile::open(&single)?);
        } else if folder.join(INDEX).exists() {
            files = open_shards(folder)?;
        } else {
            let none = || missing(folder, &[SINGLE.to_owned()], "needed: a checkpoint with weights");
            return Err(other_weights(folder).unwrap_or_else(none));
        }
        let mut stored: HashMap<String, Stored> = HashMap::new();
        let mut order = Vec::new();
        for (file, opened) in files.iter().enumerate() {
            for name in opened.names_in_order() {
                let published = names::published(&name).into_owned();
                order.push(published.clone());
                if let Some(first) = stored.insert(published, Stored { file, name: name.clone() }) {
                    return Err(WeightsError::Duplicate {
                        first: files[first.file].path().to_owned(),
                        first_name: first.name,
                        second: opened.path().to_owned(),
                        second_name: name,
                    });
                }
            }
        }
        let mut checkpoint = Self { files, stored, order, scales: HashMap::new() };
        checkpoint.take_scales(folder)?;
        Ok(checkpoint)
    }

    /// Reads the scales of eight-bit weights; they are no tensors of their own from then on.
    fn take_scales(&mut self, folder: &Path) -> Result<(), WeightsError> {
        let eight_bit = |name: &&String| self.info(name).is_some_and(|info| scales::is_eight_bit(info.dtype));
        let weights: Vec<String> = self.order.iter().filter(eight_bit).cloned().collect();
        if weights.is_empty() {
            return Ok(());
        }
        let block = scales::block_size(folder);
        let mut taken = BTreeSet::new();
        for weight in weights {
            let shape = self.info(&weight).map(|info| info.shape.clone()).unwrap_or_default();
            for name in scales::names_of_scales(&weight) {
                let Some((file, stored)) = self.find(&name) else { continue };
                let scales = Scales::read(file, stored, &shape, block)?;
                self.scales.insert(weight.clone(), scales);
                taken.insert(name);
                break;
            }
            taken.insert(scales::name_of_input_scale(&weight));
        }
        self.order.retain(|name| !taken.contains(name));
        Ok(())
    }

    /// Whether a tensor holds codes whose scales are known.
    pub(crate) fn is_scaled(&self, published: &str) -> bool {
        self.scales.contains_key(published)
    }

    /// Fills `out` with a tensor's values of `dtype`, from value `first` on; eight-bit weights are multiplied with their scales.
    pub(crate) fn float_into(
        &self,
        published: &str,
        first: usize,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let (file, stored) = self.find(published).expect("the name is one of the checkpoint's");
        match self.scales.get(published) {
            Some(scales) => scales.float_into(file, stored, first, dtype, out),
            None => file.float_into(stored, first, dtype, out),
        }
    }

    /// The type of tensors whose numbers are packed or scaled; none if there are none.
    ///
    /// Eight-bit floating-point weights are scaled by tensors beside them always, which are read where they have a known form;
    /// integers only where the config says so:
    /// other tensors that no network knows may be anything.
    pub(crate) fn packed(&self, quantized: bool) -> Option<Dtype> {
        let types = self.order.iter().filter_map(|name| Some((name, self.info(name)?.dtype)));
        let packed = |(name, dtype): &(&String, Dtype)| match dtype {
            _ if self.is_scaled(name) => false,
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => quantized || name.ends_with(".weight"),
            other => quantized && !numbers::is_float(*other),
        };
        types.filter(packed).map(|(_, dtype)| dtype).next()
    }

    /// Published names, as the tensors follow each other in the files.
    pub(crate) fn names(&self) -> &[String] {
        &self.order
    }

    /// The file of a tensor and what it is called there, none if no file has it.
    pub(crate) fn find(&self, published: &str) -> Option<(&TensorFile, &str)> {
        let stored = self.stored.get(published)?;
        Some((&self.files[stored.file], &stored.name))
    }

    /// Type and shape of a tensor, none if no file has it.
    pub(crate) fn info(&self, published: &str) -> Option<&TensorInfo> {
        let (file, name) = self.find(published)?;
        file.info(name).ok()
    }

    /// Whether two tensors hold the same numbers; not so if one of them is not there.
    pub(crate) fn same(&self, one: &str, other: &str) -> Result<bool, WeightsError> {
        let (Some(info), Some(other_info)) = (self.info(one), self.info(other)) else {
            return Ok(false);
        };
        if info.shape != other_info.shape {
            return Ok(false);
        }
        let count: usize = info.shape.iter().product();
        const RUN: usize = 1 << 22;
        for first in (0..count).step_by(RUN) {
            let mut values = [0; 2].map(|_: u8| vec![0; RUN.min(count - first) * 4]);
            self.float_into(one, first, DType::F32, &mut values[0])?;
            self.float_into(other, first, DType::F32, &mut values[1])?;
            if values[0] != values[1] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn open_shards(folder: &Path) -> Result<Vec<TensorFile>, WeightsError> {
    let index = folder.join(INDEX);
    let problem = |problem: String| WeightsError::Index { path: index.clone(), problem };
    let json = read_text(&index, LONGEST_CONFIG)?;
    let json: Value = serde_json::from_str(&json).map_err(|error| problem(error.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| {
        problem("key \"weight_map\" is missing; needed: an object of tensor and file names".into())
    })?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| {
            problem(format!("tensor \"{tensor}\" is in {file}; needed: the name of a file"))
        })?;
        shards.entry(file).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(problem(
            "key \"weight_map\" is empty; needed: an object of tensor and file names".into(),
        ));
    }
    let mut absent = Vec::new();
    for name in shards.keys() {
        let mut components = Path::new(name).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        // A separator at the end is no component.
        if !plain || name.contains(['/', '\\']) {
            return Err(problem(format!(
                "\"{name}\" is not in this folder; needed: the name of a file beside the index"
            )));
        }
        if !folder.join(name).exists() {
            absent.push((*name).to_owned());
        }
    }
    if !absent.is_empty() {
        return Err(missing(folder, &absent, "the index names it; copy or download it again"));
    }
    let mut files = Vec::with_capacity(shards.len());
    let mut lacking = BTreeSet::new();
    for (name, tensors) in shards {
        let file = TensorFile::open(&folder.join(name))?;
        let absent = tensors.into_iter().filter(|tensor| file.shape(tensor).is_none());
        lacking.extend(absent.map(|tensor| format!("{tensor} in {name}")));
        files.push(file);
    }
    if !lacking.is_empty() {
        let listed = list_names(&lacking.into_iter().collect::<Vec<_>>(), LISTED);
        return Err(problem(format!(
            "it names tensors that their files do not have: {listed}; copy or download the folder again"
        )));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::write_tensors;
    use burn::tensor::TensorData;
    use serde_json::json;
    use tempfile::TempDir;

    /// A folder of shards, each with tensors of one number.
    fn shards(files: &[(&str, &[(&str, f32)])], map: Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, tensors) in files {
            let tensors =
                tensors.iter().map(|(name, value)| ((*name).into(), TensorData::new(vec![*value], [1])));
            write_tensors(&folder.path().join(file), tensors.collect(), &[]).unwrap();
        }
        fs::write(folder.path().join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
        folder
    }

    fn refusal(folder: &TempDir) -> String {
        Checkpoint::open(folder.path()).unwrap_err().to_string()
    }

    #[test]
    fn tensors_are_found_in_whichever_shard_under_their_published_name() {
        let folder = shards(
            &[
                ("1.safetensors", &[("visual.a", 1.0)]),
                ("2.safetensors", &[("model.norm.weight", 2.0), ("x", 3.0)]),
            ],
            json!({"visual.a": "1.safetensors", "model.norm.weight": "2.safetensors"}),
        );

        let checkpoint = Checkpoint::open(folder.path()).unwrap();

        // `x` is in a file that is read, though the index does not name it.
        assert_eq!(checkpoint.names(), ["model.visual.a", "model.language_model.norm.weight", "x"]);
        let (file, name) = checkpoint.find("model.language_model.norm.weight").unwrap();
        assert!(file.path().ends_with("2.safetensors") && name == "model.norm.weight");
        assert!(checkpoint.find("model.norm.weight").is_none());
    }

    #[test]
    fn a_single_file_counts_before_an_index() {
        let folder = shards(&[(SINGLE, &[("a", 1.0)])], json!({"b": "gone.safetensors"}));

        assert_eq!(Checkpoint::open(folder.path()).unwrap().names(), ["a"]);
    }

    #[test]
    fn an_index_that_names_what_is_not_there_is_refused() {
        let one: &[(&str, &[(&str, f32)])] = &[("1.safetensors", &[("a", 1.0)])];
        for (map, words) in [
            (json!({"a": "1.safetensors", "b": "1.safetensors"}), "do not have: b in 1.safetensors; copy"),
            (
                json!({"a": "1.safetensors", "b": "2.safetensors"}),
                "2.safetensors is missing; the index names it",
            ),
            (json!({"a": 1}), "tensor \"a\" is in 1; needed: the name of a file"),
            (json!({}), "\"weight_map\" is empty"),
            (json!([]), "\"weight_map\" is missing"),
        ] {
            let error = refusal(&shards(one, map.clone()));

            assert!(error.contains(words), "{map}: {error}");
        }
    }

    #[test]
    fn an_index_reads_nothing_outside_its_folder() {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("1.safetensors");
        write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32], [1]))], &[]).unwrap();
        let absolute = path.to_str().unwrap();
        for name in
            ["../1.safetensors", absolute, "sub/1.safetensors", "./1.safetensors", "..", ".", "", "/", "sub/"]
        {
            let folder = shards(&[], json!({ "a": name }));
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::copy(&path, folder.path().join("sub/1.safetensors")).unwrap();
            fs::copy(&path, folder.path().join("1.safetensors")).unwrap();

            let error = refusal(&folder);

            let words = format!("{INDEX}: \"{name}\" is not in this folder");
            assert!(error.contains(&words), "{name}: {error}");
        }
    }

    #[test]
    fn a_shard_that_is_a_folder_is_refused() {
        let folder = shards(&[], json!({"a": "1.safetensors"}));
        fs::create_dir(folder.path().join("1.safetensors")).unwrap();

        let error = refusal(&folder);

        assert!(error.ends_with("1.safetensors: is a directory; needed: a regular file"), "{error}");
    }

    #[test]
    fn a_tensor_that_is_there_twice_is_refused_with_both_places() {
        let map = json!({"model.norm.weight": "1.safetensors", "language_model.model.norm.weight": "2.safetensors"});
        let folder = shards(
            &[
                ("1.safetensors", &[("model.norm.weight", 1.0)]),
                ("2.safetensors", &[("language_model.model.norm.weight", 1.0)]),
            ],
            map,
        );

        let error = refusal(&folder);

        for words in
            ["1.safetensors: tensor \"model.norm.weight\" is also in ", "2.safetensors", "remove one"]
        {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn numbers_are_compared_whatever_their_type() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |values: Vec<f32>| TensorData::new(values, [2, 2]);
        let tensors = vec![
            ("a".into(), tensor(vec![1.0, 2.0, 3.0, 4.0])),
            ("b".into(), crate::floats(tensor(vec![1.0, 2.0, 3.0, 4.0]), DType::BF16)),
            ("c".into(), tensor(vec![1.0, 2.0, 3.0, 5.0])),
            ("d".into(), TensorData::new(vec![1.0f32, 2.0, 3.0, 4.0], [4])),
        ];
        write_tensors(&folder.path().join(SINGLE), tensors, &[]).unwrap();

        let checkpoint = Checkpoint::open(folder.path()).unwrap();

        assert!(checkpoint.same("a", "b").unwrap());
        for other in ["c", "d", "e"] {
            assert!(!checkpoint.same("a", other).unwrap(), "{other}");
        }
    }
}
