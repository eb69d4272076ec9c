//! Saving of a network to a model directory.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;
use glm4v_model::{Glm4v, NamedVisitor, ParamName, Precision, visit_named};

use crate::auxiliary_files::{copy_auxiliary_files, write_config};
use crate::checkpoint::Checkpoint;
use crate::dtype::{self, cast_floats};
use crate::error::WeightsError;
use crate::export::{pass_through, unused_tensors};
use crate::layout::{CheckpointTensor, FullTensor, Layout, intersect};
use crate::shard_index::has_weights;
use crate::shards::{ShardSize, write_shards};
use crate::write::{ByteSink, LazyTensor};

/// Elements copied from the device at once: enough to keep it busy, little beside the largest tensor.
const RUN: usize = 1 << 24;

/// Saves a network to `dir` in shards of the default size, with copies of the auxiliary files of `origin`, the directory that
/// it was loaded from.
///
/// Tensors get their checkpoint names and the wanted type; LoRA factors are left out. `config.json` is that of `origin` with
/// the dtype set. Tensors of `origin` that the network does not use, such as MTP layers, are copied unchanged. `dir` must
/// exist: use an [`AtomicDir`](crate::AtomicDir) to have it appear complete or not at all.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn save_model(
    model: &Glm4v,
    origin: &Path,
    dir: &Path,
    precision: Precision,
) -> Result<(), WeightsError> {
    save_model_sharded(model, origin, dir, precision, ShardSize::default())
}

/// As [`save_model`], in shards of another size.
///
/// # Errors
///
/// As [`save_model`].
pub fn save_model_sharded(
    model: &Glm4v,
    origin: &Path,
    dir: &Path,
    precision: Precision,
    size: ShardSize,
) -> Result<(), WeightsError> {
    copy_auxiliary_files(origin, dir)?;
    write_config(origin, dir, Some(precision))?;
    let layout = Layout::from_module(model);
    let mut parameters = Parameters(HashMap::new());
    visit_named(model, &mut parameters);
    let checkpoint = open_origin(origin);
    let mut tensors = Vec::new();
    for full in layout.tensors() {
        for part in full.checkpoint_tensors() {
            tensors.push(device_tensor(full, part, &parameters, precision));
        }
    }
    if let Some(checkpoint) = &checkpoint {
        let unused = unused_tensors(&layout, checkpoint, &model.config);
        tensors.extend(unused.filter_map(|name| pass_through(checkpoint, name)));
    }
    write_shards(dir, tensors, size, &mut |_, _| {})
}

/// The weights that a network was loaded from, if there are any. Broken ones are only logged: the trained weights are worth
/// more than the unused tensors.
fn open_origin(origin: &Path) -> Option<Checkpoint> {
    if !has_weights(origin) {
        return None; // initialized from a config
    }
    Checkpoint::open(origin)
        .inspect_err(|error| {
            tracing::warn!("tensors that the network does not know cannot be carried along: {error}");
        })
        .ok()
}

/// A tensor of the network, copied from the device when it is written.
fn device_tensor<'a>(
    full: &'a FullTensor,
    part: CheckpointTensor,
    parameters: &'a Parameters,
    precision: Precision,
) -> LazyTensor<'a> {
    let dtype = ParamName(&full.name).dtype(precision.dtype());
    let CheckpointTensor { name, shape, rows } = part;
    let run = (RUN / full.row_len().max(1)).max(1);
    let bytes = move |sink: &mut ByteSink<'_>| {
        for shard in &full.shards {
            let Some(copy_rows) = parameters.0.get(&shard.parameter) else { continue };
            let wanted = intersect(&shard.rows, &rows);
            for start in wanted.clone().step_by(run) {
                let end = wanted.end.min(start + run);
                let data = copy_rows(start - shard.rows.start..end - shard.rows.start);
                sink(cast_floats(data, dtype).as_bytes())?;
            }
        }
        Ok(())
    };
    LazyTensor::new(name, dtype::safetensors_dtype(dtype), shape, bytes)
}

/// Copies some rows of a parameter to the host.
type CopyRows = Box<dyn Fn(Range<usize>) -> TensorData>;

/// Handles of the parameters by name; the values stay on the device.
struct Parameters(HashMap<String, CopyRows>);

impl NamedVisitor for Parameters {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let value = param.val();
        let copy_rows = move |rows: Range<usize>| {
            let value = value.clone();
            let all = value.dims()[0] == rows.len();
            if all { value.into_data() } else { value.narrow(0, rows.start, rows.len()).into_data() }
        };
        self.0.insert(name.to_owned(), Box::new(copy_rows));
    }
}
