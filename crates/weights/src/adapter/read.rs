//! Reading of adapter directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{ExpertParamName, LoraLayerConfig, ParamName};

use super::config::{AdapterConfig, CONFIG};
use super::error::AdapterError;
use super::factors::{HostMatrix, LoraFactors};
use super::peft_names::{peft_name, strip_tensor_name};
use super::targets::lora_config;
use crate::diagnose::{find_dir, missing_files, unsupported_weights};
use crate::error::WeightsError;
use crate::hub::ResolvedDir;
use crate::tensor_file::TensorFile;

/// Name of the weights in an adapter directory.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";

/// An adapter directory as PEFT saves it.
#[derive(Debug)]
pub struct AdapterFolder {
    dir: ResolvedDir,
    config: AdapterConfig,
    file: TensorFile,
    /// Names in the file, by [`strip_tensor_name`] of them.
    names: BTreeMap<String, String>,
}

/// LoRA factors with the rank, scale and dropout that the config gives them.
pub(crate) type ConfiguredFactors = (LoraFactors, LoraLayerConfig);

impl AdapterFolder {
    /// Reads the config and the header of the weights.
    ///
    /// `ORG/NAME` is looked up in the Hugging Face cache as in [`ModelFolder::open`](crate::ModelFolder::open).
    ///
    /// # Errors
    ///
    /// When a file is missing or broken, or the adapter is of an unsupported kind.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        const REMEDY: &str =
            "needed: an adapter saved as safetensors (save_pretrained with safe_serialization)";
        let dir = find_dir(path)?;
        let path = &dir.path;
        let file = path.join(CONFIG);
        if !file.exists() {
            return Err(missing_files(
                path,
                &[CONFIG.to_owned()],
                "needed: an adapter directory, as PEFT saves it",
            ));
        }
        let json = read_text(&file, LONGEST_CONFIG)?;
        let config = AdapterConfig::parse(&json)
            .map_err(|source| WeightsError::AdapterAt { path: file.clone(), source })?;
        let tensors = path.join(TENSORS);
        if !tensors.exists() {
            return Err(unsupported_weights(path)
                .unwrap_or_else(|| missing_files(path, &[TENSORS.to_owned()], REMEDY)));
        }
        let file = TensorFile::open(&tensors)?;
        let names = file.names().into_iter().map(|name| (strip_tensor_name(&name), name)).collect();
        Ok(Self { dir, config, file, names })
    }

    /// An argument that [`open`](Self::open)s the same files later, see [`ModelFolder::name`](crate::ModelFolder::name).
    pub fn name(&self) -> PathBuf {
        self.dir.name()
    }

    /// `adapter_config.json`
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Stripped names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.keys()
    }

    /// Modules with a factor `lora_A`.
    pub(crate) fn adapted_modules(&self) -> impl Iterator<Item = &str> {
        self.names().filter_map(|name| name.strip_suffix(".lora_A"))
    }

    /// Adds the path of the directory to an error.
    pub(crate) fn error(&self, source: AdapterError) -> WeightsError {
        WeightsError::AdapterAt { path: self.dir.path.clone(), source }
    }

    /// Whether the adapter stores a tensor of the network (`modules_to_save`), by its canonical name.
    pub(crate) fn has_saved_tensor(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Reads a tensor of the network that the adapter stores.
    pub(crate) fn saved_tensor(&self, name: &str, dtype: DType) -> Result<TensorData, WeightsError> {
        self.file.float(self.names.get(name).map_or(name, String::as_str), dtype)
    }

    /// Reads rows of such a tensor from `first` on, as many as `shape` has. The rest of the shape must agree, and unless
    /// the parameter is a `row_shard` the number of rows, too.
    pub(crate) fn saved_rows(
        &self,
        name: &str,
        first: usize,
        shape: &[usize],
        row_shard: bool,
        dtype: DType,
    ) -> Result<TensorData, WeightsError> {
        let data = self.saved_tensor(name, dtype)?;
        let found = data.shape().to_vec();
        let fits = if row_shard {
            found.get(1..) == shape.get(1..) && found.first() >= Some(&(first + shape[0]))
        } else {
            found == shape
        };
        if !fits {
            let (name, needed) = (name.to_owned(), shape.to_vec());
            return Err(self.error(AdapterError::Shape { name, found, needed }));
        }
        let row_bytes = shape[1..].iter().product::<usize>() * dtype.size();
        let bytes = data.as_bytes()[first * row_bytes..][..shape[0] * row_bytes].to_vec();
        Ok(TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype))
    }

    /// Reads the factors of a linear layer of shape `shape`, whether they are fused, unfused or stacked in the file, and adds
    /// the names of their tensors to `used`. The network has `experts` experts in a layer.
    pub(crate) fn factors(
        &self,
        linear: &str,
        shape: [usize; 2],
        experts: usize,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<ConfiguredFactors>, WeightsError> {
        if let Some(found) = self.factors_of_module(linear, used)? {
            return Ok(Some(found));
        }
        let Some(ExpertParamName { experts: stack, index, parameter }) = ParamName(linear).expert() else {
            return Ok(None);
        };
        if parameter == "gate_up_proj" {
            // The two projections are apart in transformers 4, for one.
            let unfused = |part: &str| format!("{stack}.{index}.{part}");
            let gate = self.factors_of_module(&unfused("gate_proj"), used);
            let up = self.factors_of_module(&unfused("up_proj"), used);
            if let Some(found) = self.fused(linear, gate?, up?, shape)? {
                return Ok(Some(found));
            }
        }
        self.factors_in_stack(linear, stack, experts, used)
    }

    /// Reads the factors of an expert's projection from those of a layer's stacked experts.
    fn factors_in_stack(
        &self,
        linear: &str,
        stack: &str,
        experts: usize,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<ConfiguredFactors>, WeightsError> {
        let (number, projection) = linear[stack.len() + 1..].split_once('.').unwrap_or_default();
        let inner = format!("{stack}.base_layer");
        let both = self.names.contains_key(&format!("{inner}.lora_A"));
        let module = match projection {
            "gate_up_proj" if both => inner,
            "down_proj" if both => stack.to_owned(),
            // With adapters on one projection only the config tells which.
            _ if !both && self.targets_experts(projection) => stack.to_owned(),
            _ => return Ok(None),
        };
        let Some(stacked) = self.read_factors(&module, used)? else { return Ok(None) };
        let number: usize = number.parse().unwrap_or(usize::MAX);
        let lora = self.lora_config(&peft_name(linear))?;
        let (rows, columns, rank) = (stacked.a.rows, stacked.b.columns, lora.rank);
        if rows != experts * rank || columns != rows || number >= experts {
            return Err(self.error(AdapterError::ExpertStack { name: module, rows, columns, rank, experts }));
        }
        Ok(Some((stacked.of_expert(number, experts, rank), lora)))
    }

    /// Fuses the factors of an expert's gate and up projection, if there are any.
    fn fused(
        &self,
        linear: &str,
        gate: Option<ConfiguredFactors>,
        up: Option<ConfiguredFactors>,
        shape: [usize; 2],
    ) -> Result<Option<ConfiguredFactors>, WeightsError> {
        if let (Some((_, gate)), Some((_, up))) = (&gate, &up)
            && gate.scale() != up.scale()
        {
            let (gate, up) = (gate.scale(), up.scale());
            return Err(self.error(AdapterError::GateUpScales { name: linear.to_owned(), gate, up }));
        }
        let Some((_, lora)) = gate.as_ref().or(up.as_ref()) else { return Ok(None) };
        let lora = *lora;
        let [gate, up] = [gate, up].map(|half| half.map(|(factors, _)| factors));
        Ok(Some((LoraFactors::fuse_gate_up(gate, up, shape), lora)))
    }

    fn lora_config(&self, module: &str) -> Result<LoraLayerConfig, WeightsError> {
        lora_config(&self.config, module).map_err(|source| self.error(source))
    }

    /// Reads the factors of one module of the file, whose rank must be that of the config.
    fn factors_of_module(
        &self,
        module: &str,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<ConfiguredFactors>, WeightsError> {
        let Some(factors) = self.read_factors(module, used)? else { return Ok(None) };
        let (lora, found) = (self.lora_config(module)?, factors.a.rows);
        // Factors that disagree with each other get an error about their shapes later.
        if found != lora.rank && factors.b.columns == found {
            let module = module.to_owned();
            return Err(self.error(AdapterError::RankMismatch { module, found, needed: lora.rank }));
        }
        Ok(Some((factors, lora)))
    }

    /// Whether `target_parameters` matches a projection of the experts.
    fn targets_experts(&self, projection: &str) -> bool {
        let mut parameters = self.config.target_parameters.iter().flatten();
        parameters.any(|name| name == projection || name.ends_with(&format!(".{projection}")))
    }

    /// Reads `lora_A` and `lora_B` of a module of the file.
    fn read_factors(
        &self,
        module: &str,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<LoraFactors>, WeightsError> {
        let [a, b] = ["lora_A", "lora_B"].map(|factor| format!("{module}.{factor}"));
        match (self.names.get(&a), self.names.get(&b)) {
            (Some(name_a), Some(name_b)) => {
                let factors = LoraFactors { a: self.read_matrix(name_a)?, b: self.read_matrix(name_b)? };
                used.extend([a, b]);
                Ok(Some(factors))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.error(AdapterError::MissingFactor { missing: b, there: a })),
            (None, Some(_)) => Err(self.error(AdapterError::MissingFactor { missing: a, there: b })),
        }
    }

    fn read_matrix(&self, name: &str) -> Result<HostMatrix, WeightsError> {
        let data = self.file.float(name, DType::F32)?;
        let shape = data.shape().to_vec();
        let &[rows, columns] = shape.as_slice() else {
            return Err(self.error(AdapterError::NotAMatrix { name: name.to_owned(), found: shape }));
        };
        let values = data.try_to_vec().expect("it was read as f32");
        Ok(HostMatrix { rows, columns, values })
    }
}
