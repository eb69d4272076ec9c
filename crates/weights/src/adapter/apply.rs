//! Application of an adapter directory to a network.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{CausalLm, Glm4v, Linear, LoraLayerConfig, NamedMapper, ParamName, Precision, map_named};

use super::error::AdapterError;
use super::factors::HostMatrix;
use super::modules_to_save::{check_modules_to_save, in_modules_to_save};
use super::peft_names::{peft_name, without_indices};
use super::read::{AdapterFolder, ConfiguredFactors};
use super::targets::{TargetMatcher, conflicting_alphas};
use crate::error::WeightsError;
use crate::names;

impl AdapterFolder {
    /// Adds the adapter to a network, and replaces the parameters of `modules_to_save`.
    ///
    /// # Errors
    ///
    /// When tensors and config contradict each other, or a tensor does not fit the network.
    pub fn apply(&self, mut model: Glm4v, precision: Precision) -> Result<Glm4v, WeightsError> {
        let matcher = TargetMatcher::new(self.config()).map_err(|source| self.error(source))?;
        self.check_module_names(&matcher)?;
        let mut used = BTreeSet::new();
        let bare = self.set_factors(&mut model, &matcher, precision, &mut used)?;
        check_modules_to_save(self.config(), &model).map_err(|source| self.error(source))?;
        self.warn_of_conflicting_alphas()?;
        let (model, unsaved) = self.replace_parameters(model, precision, &mut used)?;
        if model.lm_head.is_none() && self.has_saved_tensor(names::HEAD) {
            self.check_tied_head()?;
            used.insert(names::HEAD.to_owned());
        }
        let unexpected: Vec<String> = self.names().filter(|name| !used.contains(*name)).cloned().collect();
        if !unexpected.is_empty() {
            return Err(self.error(AdapterError::UnexpectedTensors { names: unexpected }));
        }
        if !bare.is_empty() {
            let modules = without_indices(&bare);
            return Err(self.error(AdapterError::MissingFactors { count: bare.len(), modules }));
        }
        if !unsaved.is_empty() {
            return Err(self.error(AdapterError::MissingSaved { names: unsaved.into_iter().collect() }));
        }
        Ok(model)
    }

    /// Adds the factors of all linear layers; returns the targets that have none in the file.
    fn set_factors(
        &self,
        model: &mut Glm4v,
        matcher: &TargetMatcher<'_>,
        precision: Precision,
        used: &mut BTreeSet<String>,
    ) -> Result<BTreeSet<String>, WeightsError> {
        let device = model.device();
        let experts = model.config.text.moe.as_ref().map_or(0, |moe| moe.n_routed_experts);
        let mut bare = BTreeSet::new();
        let mut failed = None;
        model.for_each_linear(|name, linear| {
            if failed.is_some() {
                return;
            }
            let peft_name = peft_name(name);
            let shape = [linear.d_output(), linear.d_input()];
            match self.factors(name, shape, experts, used) {
                Ok(Some(found)) => failed = self.set_lora(name, linear, found, &device, precision).err(),
                // Whether experts need factors is certain only if their stack is targeted.
                Ok(None) if matcher.parameter(&peft_name) || (peft_name == name && matcher.module(name)) => {
                    bare.insert(peft_name);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        });
        failed.map_or(Ok(bare), Err)
    }

    fn set_lora(
        &self,
        name: &str,
        linear: &mut Linear,
        (factors, config): ConfiguredFactors,
        device: &Device,
        precision: Precision,
    ) -> Result<(), WeightsError> {
        let (a, b) = (factors.a, factors.b);
        let (d_input, d_output, rank) = (linear.d_input(), linear.d_output(), a.rows);
        if (a.columns, b.rows, b.columns) != (d_input, d_output, rank) || rank == 0 {
            let (name, a, b) = (name.to_owned(), [a.rows, a.columns], [b.rows, b.columns]);
            return Err(self.error(AdapterError::FactorShapes { name, a, b, d_input, d_output }));
        }
        // Fused factors have the sum of both ranks, but the scale of each.
        let mut lora = LoraLayerConfig { rank, ..config }.init(d_input, d_output, device);
        lora.scale = config.scale();
        lora.a = with_values(lora.a, a, device, precision);
        lora.b = with_values(lora.b, b, device, precision);
        linear.lora = Some(lora);
        Ok(())
    }

    /// Replaces the parameters that the adapter stores; returns those of `modules_to_save` that it does not store.
    fn replace_parameters(
        &self,
        model: Glm4v,
        precision: Precision,
        used: &mut BTreeSet<String>,
    ) -> Result<(Glm4v, BTreeSet<String>), WeightsError> {
        let mut replacer = ParameterReplacer {
            adapter: self,
            used,
            rows: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            failed: None,
            dtype: precision.dtype(),
        };
        let model = map_named(model, &mut replacer);
        match replacer.failed {
            None => Ok((model, replacer.unsaved)),
            Some(error) => Err(error),
        }
    }

    /// Requires that an LM head that is tied in the network equals the embeddings: PEFT writes both.
    fn check_tied_head(&self) -> Result<(), WeightsError> {
        let [head, embedding] =
            [names::HEAD, names::EMBEDDING].map(|name| self.saved_tensor(name, DType::F32));
        if head? == embedding? { Ok(()) } else { Err(self.error(AdapterError::TiedWeightsDiffer)) }
    }

    /// Warns of a module that two keys of `alpha_pattern` match: PEFT sorts the keys when it saves, so that the first one is not
    /// always the one of the training.
    fn warn_of_conflicting_alphas(&self) -> Result<(), WeightsError> {
        for module in self.adapted_modules() {
            if let Some([first, second]) =
                conflicting_alphas(self.config(), module).map_err(|source| self.error(source))?
            {
                tracing::warn!(
                    "{}: the keys \"{first}\" and \"{second}\" of alpha_pattern both fit {module}; the first in the file counts, as \
                     where PEFT loads it, but PEFT sorts them when it saves: make sure that it is the one that was trained with",
                    self.path().display()
                );
                return Ok(());
            }
        }
        Ok(())
    }

    /// Rejects an empty file, and factors of modules that are not linear layers or not targeted.
    fn check_module_names(&self, matcher: &TargetMatcher<'_>) -> Result<(), WeightsError> {
        if self.names().next().is_none() {
            return Err(self.error(AdapterError::Empty));
        }
        let others: BTreeSet<String> =
            self.names().filter_map(|name| unsupported_module(name)).map(str::to_owned).collect();
        if !others.is_empty() {
            return Err(self.error(AdapterError::NotLinear { modules: without_indices(&others) }));
        }
        let modules = self.adapted_modules();
        let stray: BTreeSet<String> =
            modules.filter(|module| !matcher.allows(module)).map(str::to_owned).collect();
        // PEFT has default targets for some models, and a config may leave them out.
        if stray.is_empty() || matcher.is_empty() {
            return Ok(());
        }
        let modules = without_indices(&stray);
        Err(self.error(AdapterError::NotTargeted { count: stray.len(), modules }))
    }
}

/// The module of a LoRA factor, if it is one that PEFT can adapt and that is not a linear layer.
fn unsupported_module(name: &str) -> Option<&str> {
    const OTHERS: [&str; 3] = [".mlp.gate", ".patch_embed.proj", ".embed_tokens"];
    let (module, factor) = name.rsplit_once('.')?;
    (factor.starts_with("lora_") && OTHERS.iter().any(|end| module.ends_with(end))).then_some(module)
}

fn with_values(
    param: Param<Tensor<2>>,
    matrix: HostMatrix,
    device: &Device,
    precision: Precision,
) -> Param<Tensor<2>> {
    let data = TensorData::new(matrix.values, [matrix.rows, matrix.columns]);
    let value = Tensor::<2>::from_data(data, (device, DType::F32)).cast(precision.dtype());
    let id = param.id;
    param.transform_for_load(value, id)
}

/// Replaces the parameters that an adapter stores (`modules_to_save`).
struct ParameterReplacer<'a> {
    adapter: &'a AdapterFolder,
    used: &'a mut BTreeSet<String>,
    /// Number of rows of a full tensor that its row shards have taken so far.
    rows: BTreeMap<String, usize>,
    /// Parameters of `modules_to_save` that the adapter does not store.
    unsaved: BTreeSet<String>,
    /// The first error; a mapper cannot return one.
    failed: Option<WeightsError>,
    dtype: DType,
}

impl NamedMapper for ParameterReplacer<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let full = ParamName(name).shard().0;
        if !self.adapter.has_saved_tensor(full) {
            if in_modules_to_save(self.adapter.config(), full) {
                self.unsaved.insert(full.to_owned());
            }
            return param;
        }
        let shape = param.lazy_shape().to_vec();
        let first = self.rows.entry(full.to_owned()).or_default();
        let read = self.adapter.saved_rows(full, *first, &shape, full != name, self.dtype);
        *first += shape.first().copied().unwrap_or_default();
        match read {
            Ok(data) => {
                self.used.insert(full.to_owned());
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
