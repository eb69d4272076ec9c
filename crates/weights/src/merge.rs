//! Merging of a LoRA adapter into the weights of a model directory, tensor by tensor.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{Glm4v, Glm4vConfig, Precision};

use crate::adapter::error::AdapterError;
use crate::adapter::read::AdapterFolder;
use crate::auxiliary_files::{copy_auxiliary_files, write_config};
use crate::checkpoint::Checkpoint;
use crate::dtype::{self, cast_floats};
use crate::error::WeightsError;
use crate::export::{ExportOptions, cast, is_used, pass_through, target_dtype};
use crate::folder::ModelFolder;
use crate::layout::Layout;
use crate::names;
use crate::progress::ProgressFn;
use crate::shards::write_shards;
use crate::slices::locate_all;
use crate::write::{ByteSink, LazyTensor};

/// Elements of a matrix that are merged at once.
const RUN: usize = 1 << 24;

/// The product `b · a` that is added to some rows of a tensor, as its factors in f32.
#[derive(Clone)]
struct LoraDelta {
    /// Scaled, `[rows, r]`.
    b: Tensor<2>,
    /// `[r, columns]`
    a: Tensor<2>,
}

/// The deltas of one tensor, each by the first row it is added to: one, or one for each expert in a stack.
type RowDeltas = BTreeMap<usize, LoraDelta>;

impl ModelFolder {
    /// Writes the weights with an adapter merged into them to `out`, with copies of the auxiliary files; returns the number
    /// of changed tensors.
    ///
    /// The sums are computed in f32 on `device`, a run of rows at a time, and rounded once. `out` must exist: use an
    /// [`AtomicDir`](crate::AtomicDir) to have it appear complete or not at all.
    ///
    /// # Errors
    ///
    /// When the weights are broken, the adapter does not fit the model, or `out` cannot be written.
    pub fn merge(
        &self,
        adapter: &AdapterFolder,
        out: &Path,
        device: &Device,
        options: &ExportOptions,
        progress: ProgressFn<'_>,
    ) -> Result<usize, WeightsError> {
        let checkpoint = self.checkpoint()?;
        let config = self.config_for(&checkpoint)?;
        // Only the LoRA factors are allocated.
        let mut model = adapter.apply(config.init(device), Precision::F32)?;
        let layout = Layout::from_module(&model);
        locate_all(&layout, &checkpoint, config.text.tie_word_embeddings, self.path())?;
        let deltas = collect_deltas(&mut model, &layout, &checkpoint);
        let merge = Merge { checkpoint: &checkpoint, adapter, device, precision: options.precision };
        let (tensors, changed) = merge.tensors(deltas, &layout, &config)?;
        copy_auxiliary_files(self.path(), out)?;
        write_config(self.path(), out, options.precision)?;
        write_shards(out, tensors, options.shard_size, progress)?;
        Ok(changed)
    }
}

/// The deltas of all adapted linear layers, by the checkpoint tensor that they are added to.
fn collect_deltas(model: &mut Glm4v, layout: &Layout, checkpoint: &Checkpoint) -> HashMap<String, RowDeltas> {
    let mut deltas: HashMap<String, RowDeltas> = HashMap::new();
    model.for_each_linear(|name, linear| {
        let Some(lora) = &linear.lora else { return };
        let [b, a] = lora.factors();
        let Some((full, _)) = layout.find(&format!("{name}.weight")) else { return };
        let stored = full.checkpoint_tensors();
        // Unstacked experts take precedence over a stack, as in loading.
        if let Some((stack, expert)) = names::expert_stack(&full.name)
            && !stored.iter().any(|part| checkpoint.contains(&part.name))
        {
            let first = expert * b.dims()[0];
            deltas.entry(stack).or_default().insert(first, LoraDelta { b, a });
            return;
        }
        for part in stored {
            let b = b.clone().narrow(0, part.rows.start, part.rows.len());
            deltas.entry(part.name).or_default().insert(0, LoraDelta { b, a: a.clone() });
        }
    });
    deltas
}

struct Merge<'a> {
    checkpoint: &'a Checkpoint,
    adapter: &'a AdapterFolder,
    device: &'a Device,
    precision: Option<Precision>,
}

impl<'a> Merge<'a> {
    /// All tensors of the merged model, and how many of them the adapter changes.
    fn tensors(
        &self,
        mut deltas: HashMap<String, RowDeltas>,
        layout: &Layout,
        config: &Glm4vConfig,
    ) -> Result<(Vec<LazyTensor<'a>>, usize), WeightsError> {
        let mut changed = 0;
        let mut tensors = Vec::new();
        for name in self.checkpoint.names() {
            let used = is_used(name, layout, config);
            let tensor = match (deltas.remove(name), self.precision.filter(|_| used)) {
                (Some(deltas), _) => {
                    changed += 1;
                    Some(self.merged(name, deltas)?)
                }
                (None, _) if self.adapter.has_saved_tensor(name) => {
                    changed += 1;
                    Some(self.replaced(name)?)
                }
                (None, Some(precision)) => Some(cast(self.checkpoint, name, precision)?),
                (None, None) => pass_through(self.checkpoint, name),
            };
            tensors.extend(tensor);
        }
        assert!(deltas.is_empty(), "every matrix of the network was located in the checkpoint");
        Ok((tensors, changed))
    }

    /// A matrix, or a stack of matrices, with deltas added.
    fn merged(&self, name: &str, deltas: RowDeltas) -> Result<LazyTensor<'a>, WeightsError> {
        let checkpoint = self.checkpoint;
        let (file, stored_name) = checkpoint.expect(name);
        let info = file.info(stored_name)?;
        let dtype = target_dtype(name, info.dtype, self.precision);
        let (&[rows, columns] | &[_, rows, columns]) = info.shape.as_slice() else {
            return Err(AdapterError::NotAMatrix { name: name.to_owned(), found: info.shape.clone() }.into());
        };
        let matrices = info.shape.iter().product::<usize>() / (rows * columns).max(1);
        let run = (RUN / columns.max(1)).max(1);
        let device = self.device.clone();
        let own_name = name.to_owned();
        let bytes = move |sink: &mut ByteSink<'_>| {
            for matrix in 0..matrices {
                for first in (0..rows).step_by(run) {
                    let count = run.min(rows - first);
                    let mut values = vec![0; count * columns * DType::F32.size()];
                    let element = (matrix * rows + first) * columns;
                    checkpoint.float_into(&own_name, element, DType::F32, &mut values)?;
                    let values = TensorData::from_bytes_vec(values, [count, columns], DType::F32);
                    let sums = match deltas.get(&(matrix * rows)) {
                        Some(delta) => delta.add_to(values, first, &device),
                        None => values,
                    };
                    sink(cast_finite(sums, dtype, &own_name)?.as_bytes())?;
                }
            }
            Ok(())
        };
        Ok(LazyTensor::new(name.to_owned(), dtype::safetensors_dtype(dtype), info.shape.clone(), bytes))
    }

    /// A tensor that the adapter stores as a whole (`modules_to_save`), in place of the checkpoint's.
    fn replaced(&self, name: &str) -> Result<LazyTensor<'a>, WeightsError> {
        let (file, stored_name) = self.checkpoint.expect(name);
        let info = file.info(stored_name)?;
        let dtype = target_dtype(name, info.dtype, self.precision);
        let own_name = name.to_owned();
        let adapter = self.adapter;
        Ok(LazyTensor::new(
            name.to_owned(),
            dtype::safetensors_dtype(dtype),
            info.shape.clone(),
            move |sink| sink(adapter.saved_tensor(&own_name, dtype)?.as_bytes()),
        ))
    }
}

impl LoraDelta {
    /// Adds the rows of the delta from `first` on to as many rows of a weight, in f32.
    fn add_to(&self, weight: TensorData, first: usize, device: &Device) -> TensorData {
        let rows = weight.shape().to_vec()[0];
        let weight = Tensor::<2>::from_data(weight, (device, DType::F32));
        let b = self.b.clone().narrow(0, first, rows);
        (weight + b.matmul(self.a.clone())).into_data()
    }
}

/// Casts sums (f32) to `dtype`, which must be able to represent them: infinities and NaN would ruin every output silently.
fn cast_finite(sums: TensorData, dtype: DType, name: &str) -> Result<TensorData, WeightsError> {
    let largest = dtype.finfo().map_or(f64::from(f32::MAX), |range| range.max);
    let values = sums.as_slice::<f32>().expect("sums are computed in f32");
    match values.iter().find(|value| value.is_nan() || f64::from(value.abs()) > largest) {
        Some(&found) => Err(AdapterError::Overflow { name: name.to_owned(), found, largest }.into()),
        None => Ok(cast_floats(sums, dtype)),
    }
}
