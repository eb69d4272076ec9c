//! From a PEFT folder to a network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{Glm4v, Linear, LoraConfig, NamedMapper, Precision, map_named};

use super::AdapterError;
use super::config::AdapterConfig;
use super::targets::{Targets, contested, is_saved, kinds, size, spoken_name};
use super::{CONFIG, PREFIX, TENSORS, check_saved};
use crate::folder::{find, missing};
use crate::foreign::other_weights;
use crate::hub::Place;
use crate::{TensorFile, WeightsError, names};

/// An adapter as PEFT saves it.
#[derive(Debug)]
pub struct AdapterFolder {
    place: Place,
    config: AdapterConfig,
    file: TensorFile,
    /// Names in the file by what is left of them without prefix: `….q_proj.lora_A`, or a parameter's name.
    names: BTreeMap<String, String>,
}

/// The two factors of an adapter on the host, in f32.
struct Factors {
    /// `[r, in]`
    a: Matrix,
    /// `[out, r]`
    b: Matrix,
}

struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl AdapterFolder {
    /// Reads the config and the header of the tensors.
    ///
    /// `ORG/NAME` is looked up in the Hugging Face cache as in [`ModelFolder::open`](crate::ModelFolder::open).
    ///
    /// # Errors
    ///
    /// When a file is missing or broken, or the adapter is of a kind that this version does not compute.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let place = find(path)?;
        let path = &place.path;
        let file = path.join(CONFIG);
        if !file.exists() {
            return Err(missing(path, &[CONFIG.to_owned()], "needed: an adapter folder, as PEFT saves it"));
        }
        let json = read_text(&file, LONGEST_CONFIG)?;
        let config = AdapterConfig::parse(&json)
            .map_err(|source| WeightsError::AdapterAt { path: file.clone(), source })?;
        let tensors = path.join(TENSORS);
        if !tensors.exists() {
            const REMEDY: &str =
                "needed: an adapter saved as safetensors (save_pretrained with safe_serialization)";
            return Err(other_weights(path).unwrap_or_else(|| missing(path, &[TENSORS.to_owned()], REMEDY)));
        }
        let file = TensorFile::open(&tensors)?;
        let names = file.names().into_iter().map(|name| (plain(&name), name)).collect();
        Ok(Self { place, config, file, names })
    }

    /// What opens the same folder again, see [`ModelFolder::name`](crate::ModelFolder::name).
    pub fn name(&self) -> PathBuf {
        self.place.name()
    }

    /// What `adapter_config.json` says.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Puts the adapter on a network, and replaces what it keeps whole.
    ///
    /// # Errors
    ///
    /// When tensors and config contradict each other, or a tensor has no place in the network or another shape than its
    /// place.
    pub fn apply(&self, mut model: Glm4v, precision: Precision) -> Result<Glm4v, WeightsError> {
        let targets = Targets::of(&self.config).map_err(|source| self.problem(source))?;
        self.check_names(&targets)?;
        let device = model.device();
        let experts = model.config.text.moe.as_ref().map_or(0, |moe| moe.n_routed_experts);
        let mut used = BTreeSet::new();
        let mut bare = BTreeSet::new();
        let mut failed = None;
        model.for_each_linear(|name, linear| {
            if failed.is_some() {
                return;
            }
            let spoken = spoken_name(name);
            match self.factors(name, linear, experts, &mut used) {
                Ok(Some(found)) => failed = self.put(name, linear, found, &device, precision).err(),
                // Experts have an adapter for certain only where their stack is named.
                Ok(None) if targets.parameter(&spoken) || (spoken == name && targets.module(name)) => {
                    bare.insert(spoken);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        check_saved(&self.config, &model).map_err(|source| self.problem(source))?;
        self.mention_contested()?;
        let mut whole = Whole {
            folder: self,
            used: &mut used,
            rows: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            failed: None,
            dtype: precision.dtype(),
        };
        let model = map_named(model, &mut whole);
        let unsaved = whole.unsaved;
        if let Some(error) = whole.failed {
            return Err(error);
        }
        if model.lm_head.is_none() && self.keeps(names::HEAD) {
            // PEFT writes a tied table under both names.
            if self.whole(names::HEAD, DType::F32)? != self.whole(names::EMBEDDING, DType::F32)? {
                return Err(self.problem(AdapterError::TwoTables));
            }
            used.insert(names::HEAD.to_owned());
        }
        let left: Vec<String> = self.names.keys().filter(|name| !used.contains(*name)).cloned().collect();
        if !left.is_empty() {
            return Err(self.problem(AdapterError::NoPlace { names: left }));
        }
        if !bare.is_empty() {
            return Err(self.problem(AdapterError::NoFactors { count: bare.len(), modules: kinds(&bare) }));
        }
        if !unsaved.is_empty() {
            return Err(self.problem(AdapterError::NotSaved { names: unsaved.into_iter().collect() }));
        }
        Ok(model)
    }

    /// Says where two keys of a config disagree: PEFT sorts them when it saves, so that the first is not always the one that an
    /// adapter was trained with.
    fn mention_contested(&self) -> Result<(), WeightsError> {
        for module in self.names.keys().filter_map(|name| name.strip_suffix(".lora_A")) {
            if let Some([first, second]) =
                contested(&self.config, module).map_err(|source| self.problem(source))?
            {
                tracing::warn!(
                    "{}: the keys \"{first}\" and \"{second}\" of alpha_pattern both fit {module}; the first in the file counts, as \
                     where PEFT loads it, but PEFT sorts them when it saves: make sure that it is the one that was trained with",
                    self.place.path.display()
                );
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes sure that there are tensors, and none for modules that the config does not target.
    fn check_names(&self, targets: &Targets<'_>) -> Result<(), WeightsError> {
        if self.names.is_empty() {
            return Err(self.problem(AdapterError::Empty));
        }
        // Parts of the network that PEFT can put an adapter on, and that are no linear layers.
        const OTHERS: [&str; 3] = [".mlp.gate", ".patch_embed.proj", ".embed_tokens"];
        let adapted = |name: &str| {
            let (module, factor) = name.rsplit_once('.')?;
            (factor.starts_with("lora_") && OTHERS.iter().any(|end| module.ends_with(end)))
                .then(|| module.to_owned())
        };
        let others: BTreeSet<String> = self.names.keys().filter_map(|name| adapted(name)).collect();
        if !others.is_empty() {
            return Err(self.problem(AdapterError::NotLinear { modules: kinds(&others) }));
        }
        let modules = self.names.keys().filter_map(|name| name.strip_suffix(".lora_A"));
        let stray: BTreeSet<String> =
            modules.filter(|module| !targets.allows(module)).map(str::to_owned).collect();
        // PEFT knows the targets of some models by heart, and a config may leave them out.
        if stray.is_empty() || !targets.any() {
            return Ok(());
        }
        Err(self.problem(AdapterError::NotTargeted { count: stray.len(), modules: kinds(&stray) }))
    }

    /// Whether the adapter keeps a tensor whole, by its published name.
    pub(crate) fn keeps(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// A tensor that the adapter keeps whole, by its published name.
    pub(crate) fn whole(&self, name: &str, dtype: DType) -> Result<TensorData, WeightsError> {
        self.file.float(self.names.get(name).map_or(name, String::as_str), dtype)
    }

    fn problem(&self, source: AdapterError) -> WeightsError {
        WeightsError::AdapterAt { path: self.place.path.clone(), source }
    }

    /// The factors for a linear layer in whichever form the file has them, with the size that the config gives them; notes
    /// the names they come from. The network has `experts` a layer.
    fn factors(
        &self,
        name: &str,
        linear: &Linear,
        experts: usize,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<(Factors, LoraConfig)>, WeightsError> {
        if let Some(found) = self.sized_pair(name, used)? {
            return Ok(Some(found));
        }
        let Some((layer, expert)) = name.split_once(".mlp.experts.") else { return Ok(None) };
        let (number, kind) = expert.split_once('.').unwrap_or((expert, ""));
        if kind == "gate_up_proj" {
            // transformers 4 and others have the two projections of an expert apart.
            let module = |part: &str| format!("{layer}.mlp.experts.{number}.{part}");
            let halves = ["gate_proj", "up_proj"].map(|part| self.sized_pair(&module(part), used));
            let [gate, up] = halves;
            if let Some(found) = self.joined(name, gate?, up?, linear)? {
                return Ok(Some(found));
            }
        }
        let stack = format!("{layer}.mlp.experts");
        let inner = format!("{stack}.base_layer");
        let both = self.names.contains_key(&format!("{inner}.lora_A"));
        let place = match kind {
            "gate_up_proj" if both => inner,
            "down_proj" if both => stack,
            // Only one projection has adapters: the config says which.
            _ if !both && self.targets_experts(kind) => stack,
            _ => return Ok(None),
        };
        let Some(stacked) = self.pair(&place, used)? else { return Ok(None) };
        let number: usize = number.parse().unwrap_or(usize::MAX);
        let size = self.size(&spoken_name(name))?;
        let (rows, columns, rank) = (stacked.a.rows, stacked.b.columns, size.rank);
        if rows != experts * rank || columns != rows || number >= experts {
            return Err(self.problem(AdapterError::Stack { name: place, rows, columns, rank, experts }));
        }
        Ok(Some((stacked.of_expert(number, experts, rank), size)))
    }

    /// The adapters of an expert's two projections as one of their fused projection.
    fn joined(
        &self,
        name: &str,
        gate: Option<(Factors, LoraConfig)>,
        up: Option<(Factors, LoraConfig)>,
        linear: &Linear,
    ) -> Result<Option<(Factors, LoraConfig)>, WeightsError> {
        let scale = |half: &Option<(Factors, LoraConfig)>| half.as_ref().map(|(_, size)| size.scale());
        if let (Some(gate), Some(up)) = (scale(&gate), scale(&up))
            && gate != up
        {
            return Err(self.problem(AdapterError::Scales { name: name.to_owned(), gate, up }));
        }
        let Some((_, size)) = gate.as_ref().or(up.as_ref()) else { return Ok(None) };
        let size = *size;
        let [gate, up] = [gate, up].map(|half| half.map(|(factors, _)| factors));
        Ok(Some((side_by_side(gate, up, linear), size)))
    }

    /// Rank, scale and dropout that the config gives a module.
    fn size(&self, module: &str) -> Result<LoraConfig, WeightsError> {
        size(&self.config, module).map_err(|source| self.problem(source))
    }

    /// As [`pair`](Self::pair), for one module whose rank the config gives.
    fn sized_pair(
        &self,
        module: &str,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<(Factors, LoraConfig)>, WeightsError> {
        let Some(factors) = self.pair(module, used)? else { return Ok(None) };
        let (size, found) = (self.size(module)?, factors.a.rows);
        // Factors whose own ranks differ are refused with their shapes.
        if found != size.rank && factors.b.columns == found {
            let module = module.to_owned();
            return Err(self.problem(AdapterError::OtherRank { module, found, needed: size.rank }));
        }
        Ok(Some((factors, size)))
    }

    /// Rows of a tensor that the adapter keeps whole, from `first` on, as many as the shape `needed` has.
    fn rows(
        &self,
        name: &str,
        first: usize,
        needed: &[usize],
        piece: bool,
        dtype: DType,
    ) -> Result<TensorData, WeightsError> {
        let data = self.whole(name, dtype)?;
        let found = data.shape().to_vec();
        let fits = if piece {
            found.get(1..) == needed.get(1..) && found.first() >= Some(&(first + needed[0]))
        } else {
            found == needed
        };
        if !fits {
            let (name, needed) = (name.to_owned(), needed.to_vec());
            return Err(self.problem(AdapterError::Shape { name, found, needed }));
        }
        let width = needed[1..].iter().product::<usize>() * dtype.size();
        let bytes = data.as_bytes()[first * width..][..needed[0] * width].to_vec();
        Ok(TensorData::from_bytes_vec(bytes, needed.to_vec(), dtype))
    }

    /// Whether the config's targets name the experts' projection `kind`.
    fn targets_experts(&self, kind: &str) -> bool {
        self.config
            .target_parameters
            .iter()
            .flatten()
            .any(|name| name == kind || name.ends_with(&format!(".{kind}")))
    }

    /// `lora_A` and `lora_B` of a module of the file.
    fn pair(&self, module: &str, used: &mut BTreeSet<String>) -> Result<Option<Factors>, WeightsError> {
        let [a, b] = ["lora_A", "lora_B"].map(|part| format!("{module}.{part}"));
        match (self.names.get(&a), self.names.get(&b)) {
            (Some(name_a), Some(name_b)) => {
                let factors = Factors { a: self.matrix(name_a)?, b: self.matrix(name_b)? };
                used.extend([a, b]);
                Ok(Some(factors))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.problem(AdapterError::Half { missing: b, there: a })),
            (None, Some(_)) => Err(self.problem(AdapterError::Half { missing: a, there: b })),
        }
    }

    fn matrix(&self, name: &str) -> Result<Matrix, WeightsError> {
        let data = self.file.float(name, DType::F32)?;
        let shape = data.shape().to_vec();
        let &[rows, columns] = shape.as_slice() else {
            return Err(self.problem(AdapterError::NotAMatrix { name: name.to_owned(), found: shape }));
        };
        let values = data.try_to_vec().expect("it was read as f32");
        Ok(Matrix { rows, columns, values })
    }

    fn put(
        &self,
        name: &str,
        linear: &mut Linear,
        (Factors { a, b }, size): (Factors, LoraConfig),
        device: &Device,
        precision: Precision,
    ) -> Result<(), WeightsError> {
        let (d_input, d_output, rank) = (linear.d_input(), linear.d_output(), a.rows);
        if (a.columns, b.rows, b.columns) != (d_input, d_output, rank) || rank == 0 {
            let (name, a, b) = (name.to_owned(), [a.rows, a.columns], [b.rows, b.columns]);
            return Err(self.problem(AdapterError::Factors { name, a, b, d_input, d_output }));
        }
        // Two projections side by side have twice the rank; the scale is that of each.
        let mut lora = LoraConfig { rank, ..size }.init(d_input, d_output, device);
        lora.scale = size.scale();
        let dtype = precision.dtype();
        let fill = |param: Param<Tensor<2>>, matrix: Matrix| {
            let data = TensorData::new(matrix.values, [matrix.rows, matrix.columns]);
            let value = Tensor::<2>::from_data(data, (device, DType::F32)).cast(dtype);
            let id = param.id;
            param.transform_for_load(value, id)
        };
        lora.a = fill(lora.a, a);
        lora.b = fill(lora.b, b);
        linear.lora = Some(lora);
        Ok(())
    }
}

/// A name of the file without what PEFT puts around it.
fn plain(name: &str) -> String {
    let name = name.strip_prefix(PREFIX).unwrap_or(name).replace(".modules_to_save", "");
    for part in ["lora_A", "lora_B"] {
        // `.weight`, or in older files `.default.weight`
        if let Some((module, _)) = name.rsplit_once(&format!(".{part}.")) {
            return format!("{module}.{part}");
        }
    }
    name
}

impl Factors {
    /// One expert's part of stacked factors.
    fn of_expert(&self, number: usize, experts: usize, rank: usize) -> Self {
        let (width, first) = (self.a.columns, number * rank);
        let a = self.a.values[first * width..(first + rank) * width].to_vec();
        let b = self
            .b
            .values
            .chunks(self.b.columns)
            .flat_map(|row| (0..rank).map(move |j| row[j * experts + number]))
            .collect();
        Self {
            a: Matrix { rows: rank, columns: width, values: a },
            b: Matrix { rows: self.b.rows, columns: rank, values: b },
        }
    }
}

/// The adapters of two projections as one of their fused projection: the first factors one below the other, the second
/// ones block by block, the gate's rows before those of `up`.
fn side_by_side(gate: Option<Factors>, up: Option<Factors>, linear: &Linear) -> Factors {
    let (width, inner) = (linear.d_input(), linear.d_output() / 2);
    let [gate_rank, up_rank] = [&gate, &up].map(|part| part.as_ref().map_or(0, |part| part.a.rows));
    let rank = gate_rank + up_rank;
    let mut a = Vec::new();
    let mut b = vec![0.0; 2 * inner * rank];
    for (part, (first_row, first_column)) in [(gate, (0, 0)), (up, (inner, gate_rank))] {
        let Some(part) = part else { continue };
        a.extend(part.a.values);
        for (row, values) in part.b.values.chunks(part.b.columns.max(1)).enumerate().take(inner) {
            let start = (first_row + row) * rank + first_column;
            b[start..start + values.len()].copy_from_slice(values);
        }
    }
    Factors {
        a: Matrix { rows: rank, columns: width, values: a },
        b: Matrix { rows: 2 * inner, columns: rank, values: b },
    }
}

/// Replaces the parameters that an adapter keeps whole.
struct Whole<'a> {
    folder: &'a AdapterFolder,
    used: &'a mut BTreeSet<String>,
    /// Rows of a whole that its pieces so far have taken.
    rows: BTreeMap<String, usize>,
    /// What the config says the adapter keeps whole, and it does not.
    unsaved: BTreeSet<String>,
    failed: Option<WeightsError>,
    dtype: DType,
}

impl NamedMapper for Whole<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // A piece of a matrix is some of the rows of what the adapter keeps.
        let whole = names::whole(name);
        if !self.folder.keeps(whole) {
            if is_saved(&self.folder.config, whole) {
                self.unsaved.insert(whole.to_owned());
            }
            return param;
        }
        let needed = param.lazy_shape().to_vec();
        let first = self.rows.entry(whole.to_owned()).or_default();
        let read = self.folder.rows(whole, *first, &needed, whole != name, self.dtype);
        *first += needed.first().copied().unwrap_or_default();
        match read {
            Ok(data) => {
                self.used.insert(whole.to_owned());
                let (id, device) = (param.id, param.lazy_device());
                param.transform_for_load(Tensor::from_data(data, (&device, self.dtype)), id)
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                param
            }
        }
    }
}
