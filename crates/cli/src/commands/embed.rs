//! `glm4v embed`

use burn::tensor::TensorData;
use glm4v_infer::MultimodalEmbedder;
use glm4v_model::{ComputeError, Modality, Precision};
use glm4v_weights::{cast_floats, write_tensors};
use serde_json::json;

use super::trace::{check_out, input_tensors};
use super::{load_model, open_model, print_line};
use crate::args::{Embed, Global};
use crate::device;

pub(crate) fn embed(args: &Embed, global: &Global) -> anyhow::Result<()> {
    check_out(&args.out)?;
    let (device_spec, precision) = device::open(global)?;
    let (model_dir, processor) = open_model(&args.model)?;
    let processor = args.inputs.apply(processor);
    let (messages, options) = (args.prompt.messages()?, args.rendering.options()?);
    let model = load_model(&model_dir, args.adapter.as_deref(), &device_spec, precision, global.quiet)?;

    let embedded = MultimodalEmbedder::new(&processor, &model).embed(&[messages], &options)?;
    let f32 = |data: TensorData| cast_floats(data, Precision::F32.dtype());
    let [_, length, hidden] = embedded.input.inputs_embeds.dims();
    let mut tensors = input_tensors(&embedded.batch, &embedded.input);
    // The file has the image embeddings instead of the pixels.
    tensors.retain(|(name, _)| !name.starts_with("pixel_values"));
    for (modality, embeddings) in embedded.embeddings.iter() {
        let data = embeddings.clone().try_into_data().map_err(ComputeError::from)?;
        tensors.push((format!("{modality}_embeds"), f32(data)));
    }
    let count = |modality| embedded.embeddings.get(modality).map_or(0, |embeddings| embeddings.dims()[0]);
    let [images, videos] = [count(Modality::Image), count(Modality::Video)];
    let embeds = embedded.input.inputs_embeds.try_into_data().map_err(ComputeError::from)?;
    tensors.push(("inputs_embeds".to_owned(), f32(embeds)));
    write_tensors(&args.out, tensors, &[])?;
    if args.json {
        return print_line(
            &json!({"has_images": images > 0, "has_videos": videos > 0, "num_image_tokens": images,
                "num_video_tokens": videos, "sequence_length": length, "hidden_size": hidden})
            .to_string(),
        );
    }
    for (name, value) in [
        ("has_images", (images > 0).to_string()),
        ("has_videos", (videos > 0).to_string()),
        ("num_image_tokens", images.to_string()),
        ("num_video_tokens", videos.to_string()),
        ("sequence_length", length.to_string()),
        ("hidden_size", hidden.to_string()),
    ] {
        print_line(&format!("{name:17} {value}"))?;
    }
    Ok(())
}
