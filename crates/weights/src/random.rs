//! Random initialization of a model directory, without building the network.

use std::path::Path;

use burn::tensor::DType;
use glm4v_model::{ParamInit, ParamName, Precision};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::auxiliary_files::{copy_auxiliary_files, write_config};
use crate::dtype;
use crate::error::WeightsError;
use crate::folder::ModelFolder;
use crate::layout::{CheckpointTensor, FullTensor, Layout};
use crate::progress::ProgressFn;
use crate::shards::{ShardSize, write_shards};
use crate::write::{ByteSink, LazyTensor};

/// Elements that one thread generates at once.
const CHUNK: usize = 1 << 16;

/// Elements generated before they are written.
const RUN: usize = 1 << 21;

impl ModelFolder {
    /// Writes random weights for the config to `out`, with copies of the auxiliary files; returns the number of parameters.
    ///
    /// The values are those of [`initialize`](glm4v_model::initialize), generated and written a chunk at a time. `out` must
    /// exist: use an [`AtomicDir`](crate::AtomicDir) to have it appear complete or not at all.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written.
    pub fn init(
        &self,
        out: &Path,
        seed: u64,
        precision: Precision,
        size: ShardSize,
        progress: ProgressFn<'_>,
    ) -> Result<usize, WeightsError> {
        copy_auxiliary_files(self.path(), out)?;
        write_config(self.path(), out, Some(precision))?;
        let layout = Layout::from_config(self.config());
        let init = ParamInit::new(self.config(), seed);
        let mut tensors = Vec::new();
        for full in layout.tensors() {
            let parts = full.checkpoint_tensors().into_iter();
            tensors.extend(parts.map(|part| random_tensor(full, part, &init, precision)));
        }
        write_shards(out, tensors, size, progress)?;
        Ok(layout.tensors().iter().map(|full| full.shape.iter().product::<usize>()).sum())
    }
}

fn random_tensor<'a>(
    full: &'a FullTensor,
    part: CheckpointTensor,
    init: &'a ParamInit,
    precision: Precision,
) -> LazyTensor<'a> {
    let dtype = ParamName(&full.name).dtype(precision.dtype());
    let row_len = full.row_len();
    let (first, count) = (part.rows.start * row_len, part.rows.len() * row_len);
    let bytes = move |sink: &mut ByteSink<'_>| {
        let mut out = vec![0; RUN.min(count) * dtype.size()];
        for run in (0..count).step_by(RUN) {
            let out = &mut out[..RUN.min(count - run) * dtype.size()];
            fill_run(full, init, first + run, dtype, out);
            sink(out)?;
        }
        Ok(())
    };
    LazyTensor::new(part.name, dtype::safetensors_dtype(dtype), part.shape, bytes)
}

/// Fills `out` with random values of a full tensor from element `first` on, in parallel.
fn fill_run(full: &FullTensor, init: &ParamInit, first: usize, dtype: DType, out: &mut [u8]) {
    out.par_chunks_mut(CHUNK * dtype.size()).enumerate().for_each_init(
        || (Vec::new(), Vec::new()),
        |(values, bytes): &mut (Vec<f32>, Vec<u8>), (number, out)| {
            values.resize(out.len() / dtype.size(), 0.0);
            init.fill(&full.name, full.row_len(), first + number * CHUNK, values);
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            dtype::convert(bytes, Dtype::F32, dtype, out);
        },
    );
}
