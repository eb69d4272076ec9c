//! `glm4v trace`

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::ensure;
use burn::tensor::TensorData;
use glm4v_infer::{GenerationConfig, generate, prompt_sample};
use glm4v_model::{Batch, ComputeError, PaddingSide, Positions, Precision, Probe, owned};
use glm4v_weights::{floats, write_tensors};

use super::{load_model, open_model, print_line};
use crate::args::{Global, Trace};
use crate::device;

pub(crate) fn trace(args: &Trace, global: &Global) -> anyhow::Result<()> {
    check_target(&args.out)?;
    let (site, precision) = device::open(global)?;
    let (folder, processor) = open_model(&args.model)?;
    let processor = args.inputs.apply(processor);
    let encoded = processor.encode(&args.prompt.messages()?, &args.rendering.options()?)?;
    let pad = processor.tokenizer().special().end_of_text;
    let batch = Batch::collate(&[prompt_sample(encoded)], pad, PaddingSide::Left);
    let model = load_model(&folder, args.adapter.as_deref(), &site, precision, global.quiet)?;

    let mut probe = if args.activations { Probe::on() } else { Probe::off() };
    let input = model.embed(&batch, &mut probe)?;
    let positions = input.positions.clone();
    let logits = model.head(model.decode(input, None, &mut probe));
    let mut tensors = inputs(&batch, &positions);
    let logits = logits.try_into_data().map_err(ComputeError::from)?;
    tensors.push(("logits".to_owned(), floats(owned(&logits), Precision::F32.dtype())));
    for (name, data) in probe.into_kept() {
        tensors.push((format!("mid.{name}"), data));
    }
    if args.max_new_tokens > 0 {
        let config = GenerationConfig::greedy(&model.config, args.max_new_tokens);
        let answers = generate(&model, &batch, &config, |_, _| ControlFlow::Continue(()))?;
        let ids: Vec<i64> = answers[0].ids.iter().map(|id| i64::from(*id)).collect();
        let count = ids.len();
        tensors.push(("generated".to_owned(), TensorData::new(ids, [count])));
    }
    let count = tensors.len();
    write_tensors(&args.out, tensors, &[])?;
    print_line(&format!("{}: {count} tensors, {} tokens", args.out.display(), batch.shape[1]))
}

/// Refuses before anything is computed what could not be written after it.
pub(super) fn check_target(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "--out {}: no folder {}; make it first", path.display(), folder.display());
    // The file is moved into place, and would replace a device such as /dev/null.
    let in_the_way = std::fs::metadata(path).is_ok_and(|there| !there.is_file());
    ensure!(!in_the_way, "--out {}: is not a file; needed: the path of a file to make", path.display());
    Ok(())
}

/// What went in, as the reference shapes it.
pub(super) fn inputs(batch: &Batch, positions: &Positions) -> Vec<(String, TensorData)> {
    let [rows, width] = batch.shape;
    let ids: Vec<i64> = batch.input_ids.iter().map(|id| i64::from(*id)).collect();
    let mask: Vec<i64> = batch.attention_mask.iter().map(|real| i64::from(*real)).collect();
    let kinds: Vec<i64> = batch.kinds.iter().map(|kind| *kind as i64).collect();
    let mut tensors = vec![
        ("input_ids".to_owned(), TensorData::new(ids, [rows, width])),
        ("attention_mask".to_owned(), TensorData::new(mask, [rows, width])),
        ("position_ids".to_owned(), TensorData::new(positions.axes.concat(), [3, rows, width])),
        ("rope_deltas".to_owned(), TensorData::new(positions.deltas.clone(), [rows, 1])),
        ("mm_token_type_ids".to_owned(), TensorData::new(kinds, [rows, width])),
    ];
    let media = [
        ("pixel_values", "image_grid_thw", &batch.images),
        ("pixel_values_videos", "video_grid_thw", &batch.videos),
    ];
    for (values, grids, patches) in media.into_iter().filter(|(_, _, patches)| !patches.grids.is_empty()) {
        let count = patches.count();
        let sizes: Vec<i64> =
            patches.grids.iter().flat_map(|grid| [grid.t, grid.h, grid.w]).map(|n| n as i64).collect();
        tensors.push((grids.to_owned(), TensorData::new(sizes, [patches.grids.len(), 3])));
        let width = patches.values.len() / count.max(1);
        tensors.push((values.to_owned(), TensorData::new(patches.values.clone(), [count, width])));
    }
    tensors
}
