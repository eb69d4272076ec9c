//! From files to a network.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_model::{Glm4v, Glm4vConfig, NamedMapper, Precision, Site, map_named};

use crate::checkpoint::Checkpoint;
use crate::layout::{Layout, Published, Whole, shared};
use crate::names::{self, EMBEDDING, HEAD};
use crate::{LISTED, ModelFolder, Watch, WeightsError, list_names, numbers};

impl ModelFolder {
    /// Builds the network on a device that takes tensors of any size, with the folder's weights in the wanted type, one
    /// tensor at a time.
    ///
    /// Tensors that the network does not know are left alone, with a warning that lists them.
    ///
    /// # Errors
    ///
    /// When a file is broken, or tensors are missing or have another shape: all of them are listed.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<Glm4v, WeightsError> {
        self.load_on(&Site::unbounded(device), precision, &mut |_, _| {})
    }

    /// As [`load`](Self::load), on a device that may bound the size of a tensor; `watch` hears how far it is.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_on(
        &self,
        site: &Site,
        precision: Precision,
        watch: Watch<'_>,
    ) -> Result<Glm4v, WeightsError> {
        let start = Instant::now();
        let checkpoint = self.checkpoint()?;
        let config = self.config_for(&checkpoint)?;
        let model = site.build(&config)?;
        let layout = Layout::of(&model);
        let sources = self.locate(&layout, &checkpoint, config.tie_word_embeddings)?;
        let total = sources.values().flatten().map(|source| source.bytes(&checkpoint)).sum();
        let mut loader = Loader {
            checkpoint: &checkpoint,
            layout: &layout,
            sources,
            precision,
            done: 0,
            total,
            watch,
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
        self.mention_unknown(&layout, &checkpoint, &config);
        Ok(model)
    }

    /// Finds all of a network in a checkpoint, by the name of each whole.
    pub(crate) fn locate(
        &self,
        layout: &Layout,
        checkpoint: &Checkpoint,
        tied: bool,
    ) -> Result<HashMap<String, Vec<Source>>, WeightsError> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        for whole in layout.wholes() {
            match locate(whole, checkpoint, tied) {
                Ok(sources) => {
                    found.insert(whole.name.clone(), sources);
                }
                Err(Absence::Missing(names)) => missing.extend(names),
                Err(Absence::Misshapen(tensors)) => misshapen.extend(tensors),
            }
        }
        if missing.is_empty() && misshapen.is_empty() {
            return Ok(found);
        }
        Err(WeightsError::Mismatch { folder: self.path().to_owned(), missing, misshapen })
    }

    fn mention_unknown(&self, layout: &Layout, checkpoint: &Checkpoint, config: &Glm4vConfig) {
        let unknown: Vec<String> = unknown(layout, checkpoint, config).map(str::to_owned).collect();
        if unknown.is_empty() {
            return;
        }
        let text = format!(
            "{}: {} tensors have no place in this network: {}; they are kept when it is saved",
            self.path().display(),
            unknown.len(),
            list_names(&unknown, LISTED)
        );
        // Published checkpoints have layers for multi-token prediction (MTP) after the last one, which is expected.
        let ahead = |name: &String| {
            let rest = name.strip_prefix("model.language_model.layers.");
            let layer = rest.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            layer.is_some_and(|layer| layer >= config.text.num_hidden_layers)
        };
        if unknown.iter().all(ahead) {
            tracing::info!("{text}");
        } else {
            tracing::warn!("{text}");
        }
    }
}

/// Published names of a checkpoint's tensors that are no part of the network, in the order of the files.
pub(crate) fn unknown<'a>(
    layout: &'a Layout,
    checkpoint: &'a Checkpoint,
    config: &'a Glm4vConfig,
) -> impl Iterator<Item = &'a str> {
    // A tied head may be stored all the same.
    let known = move |name: &str| layout.knows(name) || (config.tie_word_embeddings && name == HEAD);
    checkpoint.names().iter().map(String::as_str).filter(move |name| !known(name))
}

/// Rows of a whole in a tensor of a checkpoint.
#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    /// Published name of the tensor.
    tensor: String,
    /// The rows of the whole.
    rows: Range<usize>,
    /// Which row of the tensor, seen as rows as wide as the whole's, is the first of them.
    first: usize,
    /// Values in a row.
    width: usize,
}

impl Source {
    /// Published name of the tensor.
    pub(crate) fn tensor(&self) -> &str {
        &self.tensor
    }

    fn bytes(&self, checkpoint: &Checkpoint) -> u64 {
        let bits = checkpoint.info(&self.tensor).map_or(0, |info| info.dtype.bitsize());
        (self.rows.len() * self.width * bits / 8) as u64
    }
}

/// Why a whole cannot be read.
#[derive(Debug, PartialEq)]
enum Absence {
    Missing(Vec<String>),
    /// Name, shape found, shape needed.
    Misshapen(Vec<(String, Vec<usize>, Vec<usize>)>),
}

/// Finds a whole: under its published names, in a stack of experts, or as the other one of a tied pair.
fn locate(whole: &Whole, checkpoint: &Checkpoint, tied: bool) -> Result<Vec<Source>, Absence> {
    let has = |name: &str| checkpoint.find(name).is_some();
    let source =
        |tensor: String, rows: Range<usize>, first| Source { tensor, rows, first, width: whole.width() };
    let published = whole.published();
    if let Some((stack, number)) = names::stack(&whole.name)
        && !published.iter().any(|part| has(&part.name))
        && let Some(info) = checkpoint.info(&stack)
    {
        let rows = whole.shape[0];
        return match info.shape.split_first() {
            Some((count, shape)) if shape == whole.shape && number < *count => {
                Ok(vec![source(stack, 0..rows, number * rows)])
            }
            _ => {
                let needed = [&[number + 1][..], &whole.shape].concat();
                Err(Absence::Misshapen(vec![(stack, info.shape.clone(), needed)]))
            }
        };
    }
    let published = match tied && whole.name == EMBEDDING && !has(EMBEDDING) && has(HEAD) {
        true => published.into_iter().map(|part| Published { name: HEAD.into(), ..part }).collect(),
        false => published,
    };
    let missing: Vec<String> =
        published.iter().filter(|part| !has(&part.name)).map(|part| part.name.clone()).collect();
    if !missing.is_empty() {
        return Err(Absence::Missing(missing));
    }
    let misshapen = published.iter().filter_map(|part| {
        let found = &checkpoint.info(&part.name)?.shape;
        (*found != part.shape).then(|| (part.name.clone(), found.clone(), part.shape.clone()))
    });
    let misshapen: Vec<_> = misshapen.collect();
    if !misshapen.is_empty() {
        return Err(Absence::Misshapen(misshapen));
    }
    Ok(published.into_iter().map(|part| source(part.name, part.rows, 0)).collect())
}

/// Fills `out` with rows of a whole as values of `dtype`.
pub(crate) fn read(
    checkpoint: &Checkpoint,
    sources: &[Source],
    rows: &Range<usize>,
    dtype: DType,
    out: &mut [u8],
    mut watch: impl FnMut(u64),
) -> Result<(), WeightsError> {
    for source in sources {
        let wanted = shared(&source.rows, rows);
        if wanted.is_empty() {
            continue;
        }
        let row = source.width * dtype.size();
        let place = &mut out[(wanted.start - rows.start) * row..][..wanted.len() * row];
        checkpoint.float_into(
            &source.tensor,
            (source.first + wanted.start - source.rows.start) * source.width,
            dtype,
            place,
        )?;
        watch(Source { rows: wanted, tensor: source.tensor.clone(), ..*source }.bytes(checkpoint));
    }
    Ok(())
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    sources: HashMap<String, Vec<Source>>,
    precision: Precision,
    done: u64,
    total: u64,
    watch: Watch<'a>,
    failed: Option<WeightsError>,
}

impl NamedMapper for Loader<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // An adapter's parameters have no place.
        let Some((whole, piece)) = self.layout.find(name).filter(|_| self.failed.is_none()) else {
            return param;
        };
        let dtype = if names::stays_f32(name) { DType::F32 } else { self.precision.dtype() };
        let sources = self.sources.get(&whole.name).map_or(&[][..], Vec::as_slice);
        let (done, total, watch) = (&mut self.done, self.total, &mut self.watch);
        let data = numbers::tensor(param.lazy_shape().to_vec(), dtype, |out| {
            read(self.checkpoint, sources, &piece.rows, dtype, out, |bytes| {
                *done += bytes;
                watch(*done, total);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::SINGLE;
    use crate::layout::tests::layout;
    use crate::write_tensors;
    use burn::tensor::TensorData;
    use tempfile::TempDir;

    /// A checkpoint whose values count up from 0 in each tensor, and in hundreds from tensor to tensor.
    fn checkpoint(tensors: &[(&str, &[usize])]) -> (TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let tensors = tensors.iter().enumerate().map(|(number, (name, shape))| {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| (100 * number + i) as f32).collect();
            ((*name).to_owned(), TensorData::new(values, shape.to_vec()))
        });
        write_tensors(&folder.path().join(SINGLE), tensors.collect(), &[]).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, checkpoint)
    }

    /// The values of a parameter as loading it gives them.
    fn values(layout: &Layout, checkpoint: &Checkpoint, parameter: &str) -> Vec<f32> {
        let (whole, piece) = layout.find(parameter).unwrap();
        let sources = locate(whole, checkpoint, false).unwrap();
        let mut bytes = vec![0; piece.rows.len() * whole.width() * 4];
        read(checkpoint, &sources, &piece.rows, DType::F32, &mut bytes, |_| {}).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn range(first: usize, count: usize) -> Vec<f32> {
        (first..first + count).map(|value| value as f32).collect()
    }

    const BOTH: &str = "x.mlp.experts.1.gate_up_proj.weight";
    const DOWN: &str = "x.mlp.experts.1.down_proj.weight";

    #[test]
    fn an_expert_s_halves_are_joined_gate_first() {
        let layout = layout(&[(BOTH, &[4, 3]), (DOWN, &[3, 2])]);
        let (_folder, checkpoint) = checkpoint(&[
            ("x.mlp.experts.1.up_proj.weight", &[2, 3]),
            ("x.mlp.experts.1.gate_proj.weight", &[2, 3]),
            (DOWN, &[3, 2]),
        ]);

        assert_eq!(values(&layout, &checkpoint, BOTH), [range(100, 6), range(0, 6)].concat());
        assert_eq!(values(&layout, &checkpoint, DOWN), range(200, 6));
    }

    #[test]
    fn an_expert_is_cut_from_a_stack() {
        let layout = layout(&[(BOTH, &[4, 3]), (DOWN, &[3, 2])]);
        let stacks: [(&str, &[usize]); 2] =
            [("x.mlp.experts.gate_up_proj", &[2, 4, 3]), ("x.mlp.experts.down_proj", &[2, 3, 2])];
        let (_folder, checkpoint) = checkpoint(&stacks);

        assert_eq!(values(&layout, &checkpoint, BOTH), range(12, 12));
        assert_eq!(values(&layout, &checkpoint, DOWN), range(106, 6));
    }

    #[test]
    fn a_stack_of_too_few_experts_or_another_shape_is_named() {
        let layout = layout(&[(BOTH, &[4, 3])]);
        for shape in [&[1, 4, 3][..], &[2, 3, 4], &[4, 3], &[]] {
            let (_folder, checkpoint) = checkpoint(&[("x.mlp.experts.gate_up_proj", shape)]);

            let absence = locate(&layout.wholes()[0], &checkpoint, false).unwrap_err();

            let name = "x.mlp.experts.gate_up_proj".to_owned();
            assert_eq!(absence, Absence::Misshapen(vec![(name, shape.to_vec(), vec![2, 4, 3])]));
        }
    }

    #[test]
    fn pieces_get_their_own_rows() {
        let parameters: [(&str, &[usize]); 3] =
            [("a.weight.0", &[3, 2]), ("a.weight.1", &[3, 2]), ("a.weight.2", &[1, 2])];
        let layout = layout(&parameters);
        let (_folder, checkpoint) = checkpoint(&[("a.weight", &[7, 2])]);

        for (number, (name, shape)) in parameters.iter().enumerate() {
            assert_eq!(values(&layout, &checkpoint, name), range(number * 6, shape[0] * 2));
        }
    }

    #[test]
    fn pieces_may_end_within_an_expert_s_half() {
        let pieces = [format!("{BOTH}.0"), format!("{BOTH}.1")];
        let layout = layout(&[(&pieces[0], &[3, 3]), (&pieces[1], &[1, 3])]);
        let (_folder, checkpoint) = checkpoint(&[
            ("x.mlp.experts.1.gate_proj.weight", &[2, 3]),
            ("x.mlp.experts.1.up_proj.weight", &[2, 3]),
        ]);

        assert_eq!(values(&layout, &checkpoint, &pieces[0]), [range(0, 6), range(100, 3)].concat());
        assert_eq!(values(&layout, &checkpoint, &pieces[1]), range(103, 3));
    }

    #[test]
    fn a_missing_half_is_named_as_published() {
        let layout = layout(&[(BOTH, &[4, 3])]);
        let (_folder, checkpoint) = checkpoint(&[("x.mlp.experts.1.gate_proj.weight", &[2, 3])]);

        let absence = locate(&layout.wholes()[0], &checkpoint, false).unwrap_err();

        assert_eq!(absence, Absence::Missing(vec!["x.mlp.experts.1.up_proj.weight".into()]));
    }

    #[test]
    fn either_of_a_tied_pair_is_enough() {
        let layout = layout(&[(EMBEDDING, &[3, 2])]);
        let (_folder, checkpoint) = checkpoint(&[(HEAD, &[3, 2])]);

        let sources = locate(&layout.wholes()[0], &checkpoint, true).unwrap();

        assert_eq!(sources, [Source { tensor: HEAD.into(), rows: 0..3, first: 0, width: 2 }]);
        assert!(locate(&layout.wholes()[0], &checkpoint, false).is_err());
    }
}
