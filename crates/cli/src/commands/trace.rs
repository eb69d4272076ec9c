//! `glm4v trace`

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::ensure;
use burn::tensor::TensorData;
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::{
    ActivationRecorder, Batch, CausalLm, ComputeError, DecoderInput, DecoderOptions, Glm4v, Modality,
    PaddingSide, Patches, Precision, copy_tensor_data,
};
use glm4v_weights::{cast_floats, write_tensors};

use super::{load_model, open_model, print_line};
use crate::args::{Global, Trace};
use crate::device;

pub(crate) fn trace(args: &Trace, global: &Global) -> anyhow::Result<()> {
    check_out(&args.out)?;
    let (device_spec, precision) = device::open(global)?;
    let (model_dir, processor) = open_model(&args.model)?;
    let processor = args.inputs.apply(processor);
    let sample = processor.encode(&args.prompt.messages()?, &args.rendering.options()?)?;
    let pad = processor.tokenizer().special().end_of_text;
    let batch = Batch::collate(&[sample], pad, PaddingSide::Left);
    let model = load_model(&model_dir, args.adapter.as_deref(), &device_spec, precision, global.quiet)?;

    let mut tensors = forward(&model, &batch, recorder(args))?;
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

/// Recorder of activations and attention weights, if either is asked for.
fn recorder(args: &Trace) -> Option<ActivationRecorder> {
    let recorder = if args.activations { ActivationRecorder::new() } else { ActivationRecorder::default() };
    match (args.activations, args.attentions) {
        (false, false) => None,
        (true, false) => Some(recorder),
        (_, true) => Some(recorder.with_attentions()),
    }
}

/// Inputs, logits and recorded tensors of one forward pass, by their names in the file.
fn forward(
    model: &Glm4v,
    batch: &Batch,
    mut recorder: Option<ActivationRecorder>,
) -> anyhow::Result<Vec<(String, TensorData)>> {
    let input = model.embed_with_recorder(batch, recorder.as_mut())?;
    let mut tensors = input_tensors(batch, &input);
    let options = DecoderOptions { recorder: recorder.as_mut(), ..DecoderOptions::default() };
    let logits = model.logits(model.decoder_forward(input, options).hidden_states);
    let [rows, length] = batch.shape;
    let vocab = logits.dims()[1];
    let logits = logits.reshape([rows, length, vocab]).try_into_data().map_err(ComputeError::from)?;
    tensors.push(("logits".to_owned(), cast_floats(copy_tensor_data(&logits), Precision::F32.dtype())));
    for (name, data) in recorder.map(ActivationRecorder::into_activations).unwrap_or_default() {
        tensors.push((record_name(&name), data));
    }
    Ok(tensors)
}

/// `attentions.{i}` for attention weights, as transformers numbers them; `mid.*` for activations.
fn record_name(name: &str) -> String {
    let layer =
        name.strip_prefix("text.layers.").and_then(|rest| rest.strip_suffix(".self_attn.attn_weights"));
    match layer {
        Some(layer) => format!("attentions.{layer}"),
        None => format!("mid.{name}"),
    }
}

/// Checks that `--out` can be written, before anything is computed.
pub(super) fn check_out(path: &Path) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(dir.is_dir(), "--out {}: no directory {}; make it first", path.display(), dir.display());
    // The file is moved into place, and would replace a device such as /dev/null.
    let is_special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    ensure!(!is_special, "--out {}: is not a file; needed: the path of a file to make", path.display());
    Ok(())
}

/// Inputs of the forward pass, with names and shapes of transformers.
pub(super) fn input_tensors(batch: &Batch, input: &DecoderInput) -> Vec<(String, TensorData)> {
    let [rows, length] = batch.shape;
    let ids: Vec<i64> = batch.input_ids.iter().map(|id| i64::from(*id)).collect();
    let mask: Vec<i64> = batch.attention_mask().into_iter().map(i64::from).collect();
    let types = batch.modalities.iter().map(|modality| modality.map_or(0, Modality::token_type_id));
    let types: Vec<i64> = types.map(i64::from).collect();
    let positions = &input.positions;
    let mut tensors = vec![
        ("input_ids".to_owned(), TensorData::new(ids, [rows, length])),
        ("attention_mask".to_owned(), TensorData::new(mask, [rows, length])),
        ("position_ids".to_owned(), TensorData::new(positions.position_ids.concat(), [3, rows, length])),
        ("rope_deltas".to_owned(), TensorData::new(positions.rope_deltas.clone(), [rows, 1])),
        ("mm_token_type_ids".to_owned(), TensorData::new(types, [rows, length])),
    ];
    for (modality, patches) in batch.media.iter() {
        let values = if modality == Modality::Video { "pixel_values_videos" } else { "pixel_values" };
        tensors.push((format!("{modality}_grid_thw"), grid_thw(patches)));
        let count = patches.count();
        let shape = [count, patches.values.len() / count.max(1)];
        tensors.push((values.to_owned(), TensorData::new(patches.values.clone(), shape)));
    }
    tensors
}

fn grid_thw(patches: &Patches) -> TensorData {
    let sizes: Vec<i64> = patches.grids.iter().flat_map(|grid| grid.thw()).map(|size| size as i64).collect();
    TensorData::new(sizes, [patches.grids.len(), 3])
}
