//! Copies of checkpoint tensors on their way to another model directory.

use burn::tensor::DType;
use glm4v_model::{Glm4vConfig, ParamName, Precision};
use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::dtype;
use crate::error::WeightsError;
use crate::layout::Layout;
use crate::names::HEAD;
use crate::shards::ShardSize;
use crate::write::{ByteSink, LazyTensor};

/// Elements converted at once.
const RUN: usize = 1 << 20;

/// Format of the weights that an export writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExportOptions {
    /// Type of the weights; `None` keeps the type of every tensor.
    pub precision: Option<Precision>,
    /// Maximum size of a weights file.
    pub shard_size: ShardSize,
}

/// Canonical names of a checkpoint's tensors that the network does not use, in the order of the files.
pub(crate) fn unused_tensors<'a>(
    layout: &'a Layout,
    checkpoint: &'a Checkpoint,
    config: &'a Glm4vConfig,
) -> impl Iterator<Item = &'a str> {
    let names = checkpoint.names().iter().map(String::as_str);
    names.filter(move |name| !is_used(name, layout, config))
}

/// Whether a checkpoint tensor is part of the network; a tied LM head may be stored all the same.
pub(crate) fn is_used(name: &str, layout: &Layout, config: &Glm4vConfig) -> bool {
    layout.contains(name) || (config.text.tie_word_embeddings && name == HEAD)
}

/// The type that a tensor of the network is written in.
pub(crate) fn target_dtype(name: &str, stored: Dtype, precision: Option<Precision>) -> DType {
    let dtype = match (precision, stored) {
        (Some(precision), _) => precision.dtype(),
        // FP8 weights are written dequantized.
        (None, Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2) => DType::BF16,
        (None, Dtype::F16) => DType::F16,
        (None, _) => DType::F32,
    };
    ParamName(name).dtype(dtype)
}

/// A tensor with its stored bytes, under its canonical name; FP8 weights are dequantized, since their scales are not copied.
pub(crate) fn pass_through<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<LazyTensor<'a>> {
    let info = checkpoint.info(name)?;
    let (file, stored_name) = checkpoint.find(name)?;
    if checkpoint.is_scaled(name) {
        return cast(checkpoint, name, Precision::Bf16).ok();
    }
    Some(LazyTensor::new(name.to_owned(), info.dtype, info.shape.clone(), move |sink| {
        file.for_each_chunk(stored_name, sink)
    }))
}

/// A tensor in another type.
pub(crate) fn cast<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    precision: Precision,
) -> Result<LazyTensor<'a>, WeightsError> {
    let (file, stored_name) = checkpoint.expect(name);
    let info = file.info(stored_name)?;
    if !dtype::is_float(info.dtype) && !checkpoint.is_scaled(name) {
        return Err(file.wrong_dtype(stored_name, info));
    }
    let dtype = target_dtype(name, info.dtype, Some(precision));
    let count: usize = info.shape.iter().product();
    let own_name = name.to_owned();
    let bytes = move |sink: &mut ByteSink<'_>| {
        let mut values = vec![0; RUN.min(count) * dtype.size()];
        for first in (0..count).step_by(RUN) {
            let values = &mut values[..RUN.min(count - first) * dtype.size()];
            checkpoint.float_into(&own_name, first, dtype, values)?;
            sink(values)?;
        }
        Ok(())
    };
    Ok(LazyTensor::new(name.to_owned(), dtype::safetensors_dtype(dtype), info.shape.clone(), bytes))
}
