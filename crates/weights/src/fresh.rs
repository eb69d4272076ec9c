//! Random weights in files, without a network in between.

use std::path::Path;

use burn::tensor::DType;
use glm4v_model::{Fresh, Precision};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::folder::layout;
use crate::layout::{Published, Whole};
use crate::shards::{ShardSize, write_shards};
use crate::sides::{copy_side_files, write_config};
use crate::write::{Outgoing, Sink};
use crate::{ModelFolder, Watch, WeightsError, names, numbers};

/// Values that one thread makes at once.
const CHUNK: usize = 1 << 16;

/// Values that are made at once.
const RUN: usize = 1 << 21;

impl ModelFolder {
    /// Writes random weights for the folder's config into `out`, with all that lies beside it but weights; returns how
    /// many parameters they are.
    ///
    /// The values are those of [`initialize`](glm4v_model::initialize), made and written a chunk at a time. `out` must
    /// exist; use a [`StagedFolder`](crate::StagedFolder) to have it appear whole.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn init(
        &self,
        out: &Path,
        seed: u64,
        precision: Precision,
        size: ShardSize,
        watch: Watch<'_>,
    ) -> Result<usize, WeightsError> {
        copy_side_files(self.path(), out)?;
        write_config(self.path(), out, Some(precision))?;
        let layout = layout(self.config());
        let fresh = Fresh::new(self.config(), seed);
        let of = |whole| {
            let fresh = &fresh;
            Whole::published(whole).into_iter().map(move |part| outgoing(whole, part, fresh, precision))
        };
        let tensors: Vec<Outgoing<'_>> = layout.wholes().iter().flat_map(of).collect();
        write_shards(out, tensors, size, watch)?;
        Ok(layout.wholes().iter().map(|whole| whole.shape.iter().product::<usize>()).sum())
    }
}

fn outgoing<'a>(whole: &'a Whole, part: Published, fresh: &'a Fresh, precision: Precision) -> Outgoing<'a> {
    let dtype = if names::stays_f32(&whole.name) { DType::F32 } else { precision.dtype() };
    let width = whole.width();
    let (first, count) = (part.rows.start * width, part.rows.len() * width);
    let bytes = move |sink: &mut Sink<'_>| {
        let mut out = vec![0; RUN.min(count) * dtype.size()];
        for run in (0..count).step_by(RUN) {
            let out = &mut out[..RUN.min(count - run) * dtype.size()];
            out.par_chunks_mut(CHUNK * dtype.size()).enumerate().for_each_init(
                || (Vec::new(), Vec::new()),
                |(values, bytes): &mut (Vec<f32>, Vec<u8>), (number, out)| {
                    values.resize(out.len() / dtype.size(), 0.0);
                    fresh.fill(&whole.name, width, first + run + number * CHUNK, values);
                    bytes.clear();
                    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                    numbers::convert(bytes, Dtype::F32, dtype, out);
                },
            );
            sink(out)?;
        }
        Ok(())
    };
    Outgoing { name: part.name, dtype: numbers::file_dtype(dtype), shape: part.shape, bytes: Box::new(bytes) }
}
