//! From a model folder to another one, without a network in between.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::DType;
use glm4v_model::{Glm4vConfig, Precision};
use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::folder::layout;
use crate::layout::{Published, Whole};
use crate::load::{Source, read};
use crate::shards::{ShardSize, write_shards};
use crate::sides::{copy_side_files, write_config};
use crate::write::{Outgoing, Sink};
use crate::{ModelFolder, Watch, WeightsError, names, numbers};

/// Values that are converted at once.
const RUN: usize = 1 << 20;

impl ModelFolder {
    /// Writes the folder's weights into `out` in another type or in files of another size, with all that lies beside
    /// them; a chunk of a tensor at a time.
    ///
    /// Without a precision every tensor keeps its type. Tensors that the network does not know keep it always, and the
    /// one that is f32 in every model stays or becomes that. Tensors get their published names and keep their order;
    /// experts in a stack are written apart.
    /// `out` must exist; use a [`StagedFolder`](crate::StagedFolder) to have it appear whole.
    ///
    /// # Errors
    ///
    /// When the folder's weights are broken or not those of its config, or the system refuses.
    pub fn convert(
        &self,
        out: &Path,
        precision: Option<Precision>,
        size: ShardSize,
        watch: Watch<'_>,
    ) -> Result<(), WeightsError> {
        let checkpoint = self.checkpoint()?;
        let config: Glm4vConfig = self.config_for(&checkpoint)?;
        let layout = layout(&config);
        let sources = self.locate(&layout, &checkpoint, config.tie_word_embeddings)?;
        let mut stacked: HashMap<&str, Vec<&Whole>> = HashMap::new();
        for whole in layout.wholes() {
            for source in &sources[&whole.name] {
                stacked.entry(source.tensor()).or_default().push(whole);
            }
        }
        stacked.retain(|tensor, wholes| {
            names::stack(&wholes[0].name).is_some_and(|(stack, _)| stack == *tensor)
        });
        let mut tensors = Vec::new();
        for name in checkpoint.names() {
            let known = layout.knows(name) || (config.tie_word_embeddings && name == names::HEAD);
            if let Some(wholes) = stacked.get(name.as_str()) {
                let info = checkpoint.info(name).expect("the name is one of the checkpoint's");
                let dtype = target(name, info.dtype, precision);
                for whole in wholes {
                    let sources = &sources[&whole.name];
                    let parts = whole.published().into_iter();
                    tensors.extend(parts.map(|part| cut(&checkpoint, sources, part, dtype)));
                }
                continue;
            }
            let tensor = match precision.filter(|_| known) {
                Some(precision) => Some(converted(&checkpoint, name, precision)?),
                None => carried(&checkpoint, name),
            };
            tensors.extend(tensor);
        }
        copy_side_files(self.path(), out)?;
        write_config(self.path(), out, precision)?;
        write_shards(out, tensors, size, watch)
    }
}

/// A tensor of its own that a checkpoint keeps in a stack.
fn cut<'a>(checkpoint: &'a Checkpoint, sources: &'a [Source], part: Published, dtype: DType) -> Outgoing<'a> {
    let Published { name, shape, rows } = part;
    let bytes = {
        let shape = shape.clone();
        move |sink: &mut Sink<'_>| {
            let data = numbers::tensor(shape.clone(), dtype, |out| {
                read(checkpoint, sources, &rows, dtype, out, |_| {})
            })?;
            sink(data.as_bytes())
        }
    };
    Outgoing { name, dtype: numbers::file_dtype(dtype), shape, bytes: Box::new(bytes) }
}

/// The type that a tensor is written in: its own if none is asked for.
pub(crate) fn target(name: &str, stored: Dtype, precision: Option<Precision>) -> DType {
    if names::stays_f32(name) {
        return DType::F32;
    }
    match (precision, stored) {
        (Some(precision), _) => precision.dtype(),
        // What eight bits and a scale say fits into it.
        (None, Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2) => DType::BF16,
        (None, Dtype::F16) => DType::F16,
        (None, _) => DType::F32,
    }
}

/// A tensor of a checkpoint as it is, under its published name; eight-bit weights as what they say, for their scales stay behind.
pub(crate) fn carried<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<Outgoing<'a>> {
    let info = checkpoint.info(name)?;
    let (file, stored) = checkpoint.find(name)?;
    if checkpoint.is_scaled(name) {
        return converted(checkpoint, name, Precision::Bf16).ok();
    }
    Some(Outgoing {
        name: name.to_owned(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: Box::new(move |sink| file.bytes(stored, sink)),
    })
}

/// A tensor of a checkpoint in another type.
pub(crate) fn converted<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    precision: Precision,
) -> Result<Outgoing<'a>, WeightsError> {
    let (file, stored) = checkpoint.find(name).expect("the name is one of the checkpoint's");
    let info = file.info(stored)?;
    if !numbers::is_float(info.dtype) && !checkpoint.is_scaled(name) {
        return Err(file.wrong_dtype(stored, info));
    }
    let dtype = if names::stays_f32(name) { DType::F32 } else { precision.dtype() };
    let count: usize = info.shape.iter().product();
    let own = name.to_owned();
    let bytes = move |sink: &mut Sink<'_>| {
        let mut values = vec![0; RUN.min(count) * dtype.size()];
        for first in (0..count).step_by(RUN) {
            let values = &mut values[..RUN.min(count - first) * dtype.size()];
            checkpoint.float_into(&own, first, dtype, values)?;
            sink(values)?;
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
