//! Where the rows of a full tensor are stored in a checkpoint.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::DType;

use crate::checkpoint::Checkpoint;
use crate::error::WeightsError;
use crate::layout::{CheckpointTensor, FullTensor, Layout, intersect};
use crate::names::{self, EMBEDDING, HEAD};

/// Rows of a full tensor inside a tensor of a checkpoint.
#[derive(Debug, PartialEq)]
pub(crate) struct TensorSlice {
    /// Canonical name of the checkpoint's tensor.
    tensor: String,
    /// Rows of the full tensor.
    rows: Range<usize>,
    /// Index of the first of these rows in the checkpoint's tensor, counted in rows of `row_len` elements.
    first: usize,
    /// Elements in a row of the full tensor.
    row_len: usize,
}

impl TensorSlice {
    /// Canonical name of the checkpoint's tensor.
    pub(crate) fn tensor(&self) -> &str {
        &self.tensor
    }

    /// Stored bytes of the slice.
    pub(crate) fn stored_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        self.stored_bytes_of(self.rows.len(), checkpoint)
    }

    fn stored_bytes_of(&self, rows: usize, checkpoint: &Checkpoint) -> u64 {
        let bits = checkpoint.info(&self.tensor).map_or(0, |info| info.dtype.bitsize());
        (rows * self.row_len * bits / 8) as u64
    }
}

/// Why a full tensor is not in a checkpoint.
#[derive(Debug, PartialEq)]
enum LocateError {
    /// Names of missing tensors.
    Missing(Vec<String>),
    /// Tensors of another shape: name, shape found, shape needed.
    Misshapen(Vec<(String, Vec<usize>, Vec<usize>)>),
}

/// The slices of every full tensor of a network, by name.
///
/// # Errors
///
/// When tensors are missing or have another shape, with all of them; `dir` is the checkpoint's directory.
pub(crate) fn locate_all(
    layout: &Layout,
    checkpoint: &Checkpoint,
    tied: bool,
    dir: &Path,
) -> Result<HashMap<String, Vec<TensorSlice>>, WeightsError> {
    let mut found = HashMap::new();
    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    for full in layout.tensors() {
        match locate(full, checkpoint, tied) {
            Ok(slices) => {
                found.insert(full.name.clone(), slices);
            }
            Err(LocateError::Missing(names)) => missing.extend(names),
            Err(LocateError::Misshapen(tensors)) => misshapen.extend(tensors),
        }
    }
    if missing.is_empty() && misshapen.is_empty() {
        return Ok(found);
    }
    Err(WeightsError::Mismatch { dir: dir.to_owned(), missing, misshapen })
}

/// Locates a full tensor: in a stack of experts, under its checkpoint names, or for tied embeddings as the LM head.
fn locate(full: &FullTensor, checkpoint: &Checkpoint, tied: bool) -> Result<Vec<TensorSlice>, LocateError> {
    let mut stored = full.checkpoint_tensors();
    if let Some((stack, expert)) = names::expert_stack(&full.name)
        && !stored.iter().any(|part| checkpoint.contains(&part.name))
        && checkpoint.contains(&stack)
    {
        return locate_in_stack(full, checkpoint, stack, expert).map(|slice| vec![slice]);
    }
    if tied && full.name == EMBEDDING && !checkpoint.contains(EMBEDDING) && checkpoint.contains(HEAD) {
        stored = stored.into_iter().map(|part| CheckpointTensor { name: HEAD.into(), ..part }).collect();
    }
    let missing: Vec<String> =
        stored.iter().filter(|part| !checkpoint.contains(&part.name)).map(|part| part.name.clone()).collect();
    if !missing.is_empty() {
        return Err(LocateError::Missing(missing));
    }
    let misshapen = stored.iter().filter_map(|part| {
        let found = &checkpoint.info(&part.name)?.shape;
        (*found != part.shape).then(|| (part.name.clone(), found.clone(), part.shape.clone()))
    });
    let misshapen: Vec<_> = misshapen.collect();
    if !misshapen.is_empty() {
        return Err(LocateError::Misshapen(misshapen));
    }
    let row_len = full.row_len();
    let slice =
        |part: CheckpointTensor| TensorSlice { tensor: part.name, rows: part.rows, first: 0, row_len };
    Ok(stored.into_iter().map(slice).collect())
}

fn locate_in_stack(
    full: &FullTensor,
    checkpoint: &Checkpoint,
    stack: String,
    expert: usize,
) -> Result<TensorSlice, LocateError> {
    let found = checkpoint.info(&stack).map(|info| info.shape.clone()).unwrap_or_default();
    let rows = full.shape[0];
    match found.split_first() {
        Some((count, shape)) if shape == full.shape && expert < *count => {
            Ok(TensorSlice { tensor: stack, rows: 0..rows, first: expert * rows, row_len: full.row_len() })
        }
        _ => {
            let needed = [&[expert + 1][..], &full.shape].concat();
            Err(LocateError::Misshapen(vec![(stack, found, needed)]))
        }
    }
}

/// Reads a full tensor by its slices.
pub(crate) struct SliceReader<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) slices: &'a [TensorSlice],
}

impl SliceReader<'_> {
    /// Fills `out` with some rows of the full tensor as `dtype`; `progress` is called with the stored bytes of every read.
    pub(crate) fn read(
        &self,
        rows: &Range<usize>,
        dtype: DType,
        out: &mut [u8],
        mut progress: impl FnMut(u64),
    ) -> Result<(), WeightsError> {
        for slice in self.slices {
            let wanted = intersect(&slice.rows, rows);
            if wanted.is_empty() {
                continue;
            }
            let row_bytes = slice.row_len * dtype.size();
            let out = &mut out[(wanted.start - rows.start) * row_bytes..][..wanted.len() * row_bytes];
            let first = (slice.first + wanted.start - slice.rows.start) * slice.row_len;
            self.checkpoint.float_into(&slice.tensor, first, dtype, out)?;
            progress(slice.stored_bytes_of(wanted.len(), self.checkpoint));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::layout;
    use crate::shard_index::SINGLE_FILE;
    use crate::write::write_tensors;
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
        write_tensors(&folder.path().join(SINGLE_FILE), tensors.collect(), &[]).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, checkpoint)
    }

    /// The values of a parameter as loading it gives them.
    fn values(layout: &Layout, checkpoint: &Checkpoint, parameter: &str) -> Vec<f32> {
        let (full, shard) = layout.find(parameter).unwrap();
        let slices = locate(full, checkpoint, false).unwrap();
        let mut bytes = vec![0; shard.rows.len() * full.row_len() * 4];
        let reader = SliceReader { checkpoint, slices: &slices };
        reader.read(&shard.rows, DType::F32, &mut bytes, |_| {}).unwrap();
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
    fn an_expert_is_sliced_from_a_stack() {
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

            let error = locate(&layout.tensors()[0], &checkpoint, false).unwrap_err();

            let name = "x.mlp.experts.gate_up_proj".to_owned();
            assert_eq!(error, LocateError::Misshapen(vec![(name, shape.to_vec(), vec![2, 4, 3])]));
        }
    }

    #[test]
    fn row_shards_get_their_own_rows() {
        let parameters: [(&str, &[usize]); 3] =
            [("a.weight.0", &[3, 2]), ("a.weight.1", &[3, 2]), ("a.weight.2", &[1, 2])];
        let layout = layout(&parameters);
        let (_folder, checkpoint) = checkpoint(&[("a.weight", &[7, 2])]);

        for (number, (name, shape)) in parameters.iter().enumerate() {
            assert_eq!(values(&layout, &checkpoint, name), range(number * 6, shape[0] * 2));
        }
    }

    #[test]
    fn row_shards_may_end_within_an_expert_s_half() {
        let shards = [format!("{BOTH}.0"), format!("{BOTH}.1")];
        let layout = layout(&[(&shards[0], &[3, 3]), (&shards[1], &[1, 3])]);
        let (_folder, checkpoint) = checkpoint(&[
            ("x.mlp.experts.1.gate_proj.weight", &[2, 3]),
            ("x.mlp.experts.1.up_proj.weight", &[2, 3]),
        ]);

        assert_eq!(values(&layout, &checkpoint, &shards[0]), [range(0, 6), range(100, 3)].concat());
        assert_eq!(values(&layout, &checkpoint, &shards[1]), range(103, 3));
    }

    #[test]
    fn a_missing_half_has_its_checkpoint_name() {
        let layout = layout(&[(BOTH, &[4, 3])]);
        let (_folder, checkpoint) = checkpoint(&[("x.mlp.experts.1.gate_proj.weight", &[2, 3])]);

        let error = locate(&layout.tensors()[0], &checkpoint, false).unwrap_err();

        assert_eq!(error, LocateError::Missing(vec!["x.mlp.experts.1.up_proj.weight".into()]));
    }

    #[test]
    fn either_of_a_tied_pair_is_enough() {
        let layout = layout(&[(EMBEDDING, &[3, 2])]);
        let (_folder, checkpoint) = checkpoint(&[(HEAD, &[3, 2])]);

        let slices = locate(&layout.tensors()[0], &checkpoint, true).unwrap();

        assert_eq!(slices, [TensorSlice { tensor: HEAD.into(), rows: 0..3, first: 0, row_len: 2 }]);
        assert!(locate(&layout.tensors()[0], &checkpoint, false).is_err());
    }
}
