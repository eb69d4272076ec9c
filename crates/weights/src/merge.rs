//! An adapter folded into plain weights, from folder to folder, without a network in between.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::Precision;

use crate::adapter::AdapterFolder;
use crate::checkpoint::Checkpoint;
use crate::convert::carried;
use crate::layout::Layout;
use crate::shards::{ShardSize, write_shards};
use crate::sides::{copy_side_files, write_config};
use crate::write::{Outgoing, Sink};
use crate::{AdapterError, ModelFolder, Watch, WeightsError, convert, floats, names, numbers};

/// Values of a matrix that are changed at once.
const RUN: usize = 1 << 24;

/// What is added to some rows of a whole: `left` (scaled) times `right`, both in f32.
#[derive(Clone)]
struct Change {
    /// `[rows, r]`
    left: Tensor<2>,
    /// `[r, columns]`
    right: Tensor<2>,
}

impl ModelFolder {
    /// Writes the folder's weights with an adapter folded in into `out`, with all that lies beside them; returns how many
    /// tensors the adapter changed.
    ///
    /// The sums are formed in f32 on `device`, a run of rows at a time, and rounded once. Without a precision every tensor
    /// keeps its type. `out` must exist; use a [`StagedFolder`](crate::StagedFolder) to have it appear whole.
    ///
    /// # Errors
    ///
    /// When the weights are broken, the adapter is that of another model, or the system refuses.
    pub fn merge(
        &self,
        adapter: &AdapterFolder,
        out: &Path,
        device: &Device,
        precision: Option<Precision>,
        size: ShardSize,
        watch: Watch<'_>,
    ) -> Result<usize, WeightsError> {
        let checkpoint = self.checkpoint()?;
        let config = self.config_for(&checkpoint)?;
        // Its weights are never made: only the adapter's own parameters get values.
        let mut network = adapter.apply(config.init(device), Precision::F32)?;
        let layout = Layout::of(&network);
        self.locate(&layout, &checkpoint, config.tie_word_embeddings)?;
        let mut changes: HashMap<String, BTreeMap<usize, Change>> = HashMap::new();
        network.for_each_linear(|name, linear| {
            let Some(lora) = &linear.lora else { return };
            let [left, right] = lora.factors();
            let Some((whole, _)) = layout.find(&format!("{name}.weight")) else { return };
            let published = whole.published();
            // Experts lie in tensors of their own, else in a stack, one below the other: as they are loaded.
            if let Some((stack, number)) = names::stack(&whole.name)
                && !published.iter().any(|part| checkpoint.find(&part.name).is_some())
            {
                let first = number * left.dims()[0];
                changes.entry(stack).or_default().insert(first, Change { left, right });
                return;
            }
            for part in published {
                let left = left.clone().narrow(0, part.rows.start, part.rows.len());
                changes.entry(part.name).or_default().insert(0, Change { left, right: right.clone() });
            }
        });
        let mut changed = 0;
        let mut tensors = Vec::new();
        for name in checkpoint.names() {
            let known = layout.knows(name) || (config.tie_word_embeddings && name == names::HEAD);
            let tensor = match (changes.remove(name), precision.filter(|_| known)) {
                (Some(change), _) => {
                    changed += 1;
                    Some(summed(&checkpoint, name, change, device, precision)?)
                }
                (None, _) if adapter.keeps(name) => {
                    changed += 1;
                    Some(kept(&checkpoint, adapter, name, precision)?)
                }
                (None, Some(precision)) => Some(convert::converted(&checkpoint, name, precision)?),
                (None, None) => carried(&checkpoint, name),
            };
            tensors.extend(tensor);
        }
        assert!(changes.is_empty(), "every matrix of the network was located in the checkpoint");
        copy_side_files(self.path(), out)?;
        write_config(self.path(), out, precision)?;
        write_shards(out, tensors, size, watch)?;
        Ok(changed)
    }
}

/// A matrix, or a stack of them, with what adapters add to it, by the first row of each.
fn summed<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    changes: BTreeMap<usize, Change>,
    device: &Device,
    precision: Option<Precision>,
) -> Result<Outgoing<'a>, WeightsError> {
    let (file, stored) = checkpoint.find(name).expect("the name is one of the checkpoint's");
    let info = file.info(stored)?;
    let dtype = convert::target(name, info.dtype, precision);
    let (&[rows, columns] | &[_, rows, columns]) = info.shape.as_slice() else {
        return Err(AdapterError::NotAMatrix { name: name.to_owned(), found: info.shape.clone() }.into());
    };
    let matrices = info.shape.iter().product::<usize>() / (rows * columns).max(1);
    let run = (RUN / columns.max(1)).max(1);
    let device = device.clone();
    let own = name.to_owned();
    let bytes = move |sink: &mut Sink<'_>| {
        for (matrix, first) in
            (0..matrices).flat_map(|matrix| (0..rows).step_by(run).map(move |row| (matrix, row)))
        {
            let count = run.min(rows - first);
            let mut values = vec![0; count * columns * DType::F32.size()];
            checkpoint.float_into(&own, (matrix * rows + first) * columns, DType::F32, &mut values)?;
            let values = TensorData::from_bytes_vec(values, [count, columns], DType::F32);
            let values = match changes.get(&(matrix * rows)) {
                Some(change) => {
                    let weight = Tensor::<2>::from_data(values, (&device, DType::F32));
                    let left = change.left.clone().narrow(0, first, count);
                    (weight + left.matmul(change.right.clone())).into_data()
                }
                None => values,
            };
            sink(finite(values, dtype, &own)?.as_bytes())?;
        }
        Ok(())
    };
    Ok(Outgoing {
        name: name.to_owned(),
        dtype: numbers::file_dtype(dtype),
        shape: info.shape.clone(),
        bytes: Box::new(bytes),
    })
}

/// Sums (f32) as `dtype`, which must have room for them: a weight that is no number ruins every answer without a word.
fn finite(sums: TensorData, dtype: DType, name: &str) -> Result<TensorData, WeightsError> {
    let largest = dtype.finfo().map_or(f64::from(f32::MAX), |range| range.max);
    let values = sums.as_slice::<f32>().expect("sums are formed in f32");
    match values.iter().find(|value| value.is_nan() || f64::from(value.abs()) > largest) {
        Some(&found) => Err(AdapterError::Overflow { name: name.to_owned(), found, largest }.into()),
        None => Ok(floats(sums, dtype)),
    }
}

/// A tensor that the adapter keeps whole, in place of the checkpoint's.
fn kept<'a>(
    checkpoint: &Checkpoint,
    adapter: &'a AdapterFolder,
    name: &str,
    precision: Option<Precision>,
) -> Result<Outgoing<'a>, WeightsError> {
    let (file, stored) = checkpoint.find(name).expect("the name is one of the checkpoint's");
    let info = file.info(stored)?;
    let dtype = convert::target(name, info.dtype, precision);
    let own = name.to_owned();
    Ok(Outgoing {
        name: name.to_owned(),
        dtype: numbers::file_dtype(dtype),
        shape: info.shape.clone(),
        bytes: Box::new(move |sink| sink(adapter.whole(&own, dtype)?.as_bytes())),
    })
}
