//! Conversion of a model directory to another type or shard size, tensor by tensor.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::DType;

use crate::auxiliary_files::{copy_auxiliary_files, write_config};
use crate::dtype;
use crate::error::WeightsError;
use crate::export::{ExportOptions, cast, is_used, pass_through, target_dtype};
use crate::folder::ModelFolder;
use crate::layout::{CheckpointTensor, FullTensor, Layout};
use crate::names;
use crate::progress::ProgressFn;
use crate::shards::write_shards;
use crate::slices::{SliceReader, TensorSlice, locate_all};
use crate::write::{ByteSink, LazyTensor};

/// The slices of all full tensors, by name.
type Slices = HashMap<String, Vec<TensorSlice>>;

impl ModelFolder {
    /// Writes the weights to `out` in another type or shard size, with copies of the auxiliary files; at most a chunk of a
    /// tensor is in memory.
    ///
    /// Tensors that the network does not use keep their type in any case, and the routers' correction bias is always f32.
    /// Tensors get their canonical names and keep their order; stacked experts are unstacked. `out` must exist: use an
    /// [`AtomicDir`](crate::AtomicDir) to have it appear complete or not at all.
    ///
    /// # Errors
    ///
    /// When the weights are broken or do not fit the config, or `out` cannot be written.
    pub fn convert(
        &self,
        out: &Path,
        options: &ExportOptions,
        progress: ProgressFn<'_>,
    ) -> Result<(), WeightsError> {
        let checkpoint = self.checkpoint()?;
        let config = self.config_for(&checkpoint)?;
        let layout = Layout::from_config(&config);
        let slices = locate_all(&layout, &checkpoint, config.text.tie_word_embeddings, self.path())?;
        let stacks = expert_stacks(&layout, &slices);
        let mut tensors = Vec::new();
        for name in checkpoint.names() {
            if let Some(experts) = stacks.get(name.as_str()) {
                let stored = checkpoint.info(name).expect("the name is one of the checkpoint's").dtype;
                let dtype = target_dtype(name, stored, options.precision);
                for full in experts {
                    let reader = || SliceReader { checkpoint: &checkpoint, slices: &slices[&full.name] };
                    let parts = full.checkpoint_tensors().into_iter();
                    tensors.extend(parts.map(|part| unstacked(reader(), part, dtype)));
                }
                continue;
            }
            let used = is_used(name, &layout, &config);
            tensors.extend(match options.precision.filter(|_| used) {
                Some(precision) => Some(cast(&checkpoint, name, precision)?),
                None => pass_through(&checkpoint, name),
            });
        }
        copy_auxiliary_files(self.path(), out)?;
        write_config(self.path(), out, options.precision)?;
        write_shards(out, tensors, options.shard_size, progress)
    }
}

/// The tensors that stack experts in a checkpoint, with the experts' full tensors in the order of the network.
fn expert_stacks<'a>(layout: &'a Layout, slices: &'a Slices) -> HashMap<&'a str, Vec<&'a FullTensor>> {
    let mut stacks: HashMap<&str, Vec<&FullTensor>> = HashMap::new();
    for full in layout.tensors() {
        let Some((stack, _)) = names::expert_stack(&full.name) else { continue };
        for slice in slices[&full.name].iter().filter(|slice| slice.tensor() == stack) {
            stacks.entry(slice.tensor()).or_default().push(full);
        }
    }
    stacks
}

/// One expert's tensor out of a stack.
fn unstacked<'a>(reader: SliceReader<'a>, part: CheckpointTensor, dtype: DType) -> LazyTensor<'a> {
    let CheckpointTensor { name, shape, rows } = part;
    let own_shape = shape.clone();
    let bytes = move |sink: &mut ByteSink<'_>| {
        let data =
            dtype::tensor_from_fn(own_shape.clone(), dtype, |out| reader.read(&rows, dtype, out, |_| {}))?;
        sink(data.as_bytes())
    };
    LazyTensor::new(name, dtype::safetensors_dtype(dtype), shape, bytes)
}
