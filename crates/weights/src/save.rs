//! From a network to files.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{Glm4v, NamedVisitor, Precision, visit_named};

use crate::checkpoint::Checkpoint;
use crate::convert::carried;
use crate::layout::{Layout, Published, Whole, shared};
use crate::load::unknown;
use crate::shards::{ShardSize, write_shards};
use crate::sides::{copy_side_files, write_config};
use crate::write::{Outgoing, Sink};
use crate::{Watch, WeightsError, floats, names, numbers};

/// Values that leave the device at once: enough to keep it busy, little beside the largest tensor.
const RUN: usize = 1 << 24;

/// Writes a network into `folder`, with what else the folder holds that it came from.
///
/// `folder` must exist; use a [`StagedFolder`](crate::StagedFolder) to have it appear whole. The network's tensors have
/// their published names and the wanted type; adapters are left out. `config.json` is that of `origin` with the type put
/// right, and every other file that is not weights is copied as it is. Tensors of `origin` that the network does not know
/// go along, bytes and type unchanged, and without passing through the device.
///
/// # Errors
///
/// When the system refuses.
pub fn save_model(
    model: &Glm4v,
    origin: &Path,
    folder: &Path,
    precision: Precision,
) -> Result<(), WeightsError> {
    save_model_in(model, origin, folder, precision, ShardSize::default(), &mut |_, _| {})
}

/// As [`save_model`], in files of another size than 5 GB; `watch` hears how far it is.
///
/// # Errors
///
/// As [`save_model`].
pub fn save_model_in(
    model: &Glm4v,
    origin: &Path,
    folder: &Path,
    precision: Precision,
    size: ShardSize,
    watch: Watch<'_>,
) -> Result<(), WeightsError> {
    copy_side_files(origin, folder)?;
    write_config(origin, folder, Some(precision))?;
    let layout = Layout::of(model);
    let mut parameters = Parameters(HashMap::new());
    visit_named(model, &mut parameters);
    let checkpoint = opened(origin);
    let mut tensors = Vec::new();
    for whole in layout.wholes() {
        for part in whole.published() {
            tensors.push(outgoing(whole, part, &parameters, precision));
        }
    }
    if let Some(checkpoint) = &checkpoint {
        tensors
            .extend(unknown(&layout, checkpoint, &model.config).filter_map(|name| carried(checkpoint, name)));
    }
    write_shards(folder, tensors, size, watch)
}

/// The weights that a network came from, if they are still there: what it learned is worth more than what they hold
/// beside it.
fn opened(origin: &Path) -> Option<Checkpoint> {
    if !Checkpoint::is_in(origin) {
        return None; // it was initialised from a bare config
    }
    Checkpoint::open(origin)
        .inspect_err(|error| {
            tracing::warn!("tensors that the network does not know cannot be carried along: {error}");
        })
        .ok()
}

/// A tensor of the network; it leaves the device when the writer comes to it.
fn outgoing<'a>(
    whole: &'a Whole,
    part: Published,
    parameters: &'a Parameters,
    precision: Precision,
) -> Outgoing<'a> {
    let dtype = if names::stays_f32(&whole.name) { DType::F32 } else { precision.dtype() };
    let Published { name, shape, rows } = part;
    let run = (RUN / whole.width().max(1)).max(1);
    let bytes = move |sink: &mut Sink<'_>| {
        for piece in &whole.pieces {
            let Some(fetch) = parameters.0.get(&piece.parameter) else { continue };
            let wanted = shared(&piece.rows, &rows);
            for start in wanted.clone().step_by(run) {
                let end = wanted.end.min(start + run);
                let here = start - piece.rows.start..end - piece.rows.start;
                sink(floats(fetch(here), dtype).as_bytes())?;
            }
        }
        Ok(())
    };
    Outgoing { name, dtype: numbers::file_dtype(dtype), shape, bytes: Box::new(bytes) }
}

/// A copy on the host of some rows of a parameter.
type Fetch = Box<dyn Fn(Range<usize>) -> TensorData>;

/// Handles of a network's parameters by name; numbers stay on the device until they are asked for.
struct Parameters(HashMap<String, Fetch>);

impl NamedVisitor for Parameters {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let value = param.val();
        let fetch = move |rows: Range<usize>| {
            let value = value.clone();
            let all = value.dims()[0] == rows.len();
            if all { value.into_data() } else { value.narrow(0, rows.start, rows.len()).into_data() }
        };
        self.0.insert(name.to_owned(), Box::new(fetch));
    }
}
