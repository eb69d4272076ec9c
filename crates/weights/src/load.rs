//! Loading of a network from a model directory.

use std::collections::HashMap;
use std::time::Instant;

use burn::module::Param;
use burn::prelude::*;
use glm4v_model::{DeviceSpec, Glm4v, Glm4vConfig, ModelPart, NamedMapper, ParamName, Precision, map_named};

use crate::checkpoint::Checkpoint;
use crate::dtype;
use crate::error::WeightsError;
use crate::export::unused_tensors;
use crate::folder::ModelFolder;
use crate::layout::Layout;
use crate::name_list::{MAX_LISTED, list_names};
use crate::progress::ProgressFn;
use crate::slices::{SliceReader, TensorSlice, locate_all};

impl ModelFolder {
    /// Builds the network on a device without a limit on the size of a tensor, and loads the weights in the wanted type, one
    /// tensor at a time.
    ///
    /// Tensors that the network does not use are skipped, with a warning that lists them.
    ///
    /// # Errors
    ///
    /// When a file is broken, or tensors are missing or have another shape; the error lists all of them.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<Glm4v, WeightsError> {
        self.load_on(&DeviceSpec::unbounded(device), precision, &mut |_, _| {})
    }

    /// As [`load`](Self::load), on a device that may limit the size of a tensor, and with progress.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_on(
        &self,
        device_spec: &DeviceSpec,
        precision: Precision,
        progress: ProgressFn<'_>,
    ) -> Result<Glm4v, WeightsError> {
        let start = Instant::now();
        let checkpoint = self.checkpoint()?;
        let config = self.config_for(&checkpoint)?;
        let model = config.init_on(device_spec)?;
        let layout = Layout::from_module(&model);
        let slices = locate_all(&layout, &checkpoint, config.text.tie_word_embeddings, self.path())?;
        let total = slices.values().flatten().map(|slice| slice.stored_bytes(&checkpoint)).sum();
        let mut loader = Loader {
            checkpoint: &checkpoint,
            layout: &layout,
            slices,
            precision,
            done: 0,
            total,
            progress,
            failed: None,
        };
        let model = map_named(model, &mut loader);
        if let Some(error) = loader.failed {
            return Err(error);
        }
        tracing::info!(
            "{}: loaded {total} bytes as {precision} in {:.3} s",
            self.path().display(),
            start.elapsed().as_secs_f64()
        );
        self.log_unused(&layout, &checkpoint, &config);
        Ok(model)
    }

    fn log_unused(&self, layout: &Layout, checkpoint: &Checkpoint, config: &Glm4vConfig) {
        let unused: Vec<String> = unused_tensors(layout, checkpoint, config).map(str::to_owned).collect();
        if unused.is_empty() {
            return;
        }
        let text = format!(
            "{}: {} tensors have no place in this network: {}; they are kept when it is saved",
            self.path().display(),
            unused.len(),
            list_names(&unused, MAX_LISTED)
        );
        // Published checkpoints contain layers for multi-token prediction (MTP), which is no reason to warn.
        if unused.iter().all(|name| is_mtp_layer(name, config.text.num_hidden_layers)) {
            tracing::info!("{text}");
        } else {
            tracing::warn!("{text}");
        }
    }
}

/// Whether a tensor belongs to a layer after the last one of the decoder.
fn is_mtp_layer(name: &str, num_hidden_layers: usize) -> bool {
    matches!(ParamName(name).part(), ModelPart::Layer(layer) if layer >= num_hidden_layers)
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    slices: HashMap<String, Vec<TensorSlice>>,
    precision: Precision,
    done: u64,
    total: u64,
    progress: ProgressFn<'a>,
    /// The first error; a mapper cannot return one.
    failed: Option<WeightsError>,
}

impl NamedMapper for Loader<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // LoRA factors are not in the layout.
        let Some((full, shard)) = self.layout.find(name).filter(|_| self.failed.is_none()) else {
            return param;
        };
        let dtype = ParamName(name).dtype(self.precision.dtype());
        let slices = self.slices.get(&full.name).map_or(&[][..], Vec::as_slice);
        let reader = SliceReader { checkpoint: self.checkpoint, slices };
        let (done, total, progress) = (&mut self.done, self.total, &mut self.progress);
        let data = dtype::tensor_from_fn(param.lazy_shape().to_vec(), dtype, |out| {
            reader.read(&shard.rows, dtype, out, |bytes| {
                *done += bytes;
                progress(*done, total);
            })
        });
        match data {
            Ok(data) => {
                let (id, device) = (param.id, param.lazy_device());
                param.transform_for_load(Tensor::from_data(data, (&device, dtype)), id)
            }
            Err(error) => {
                self.failed = Some(error);
                param
            }
        }
    }
}
