//! `glm4v embed`

use burn::tensor::TensorData;
use glm4v_infer::Pipeline;
use glm4v_model::{ComputeError, Precision};
use glm4v_weights::{floats, write_tensors};
use serde_json::json;

use super::trace::{check_target, inputs};
use super::{load_model, open_model, print_line};
use crate::args::{Embed, Global};
use crate::device;

pub(crate) fn embed(args: &Embed, global: &Global) -> anyhow::Result<()> {
    check_target(&args.out)?;
    let (site, precision) = device::open(global)?;
    let (folder, processor) = open_model(&args.model)?;
    let processor = args.inputs.apply(processor);
    let (messages, options) = (args.prompt.messages()?, args.rendering.options()?);
    let model = load_model(&folder, args.adapter.as_deref(), &site, precision, global.quiet)?;

    let embedded = Pipeline::new(&processor, &model).run(&[messages], &options)?;
    let f32 = |data: TensorData| floats(data, Precision::F32.dtype());
    let [_, length, width] = embedded.inputs_embeds.dims();
    let mut tensors = inputs(&embedded.batch, &embedded.positions);
    // Pixels went in; their features come out.
    tensors.retain(|(name, _)| !name.starts_with("pixel_values"));
    let features = [("image_embeds", embedded.features.images), ("video_embeds", embedded.features.videos)];
    let mut counts = [0, 0];
    for (count, (name, features)) in counts.iter_mut().zip(features) {
        let Some(features) = features else { continue };
        *count = features.dims()[0];
        tensors.push((name.to_owned(), f32(features.try_into_data().map_err(ComputeError::from)?)));
    }
    let embeds = embedded.inputs_embeds.try_into_data().map_err(ComputeError::from)?;
    tensors.push(("inputs_embeds".to_owned(), f32(embeds)));
    write_tensors(&args.out, tensors, &[])?;
    let [images, videos] = counts;
    if args.json {
        return print_line(
            &json!({"has_images": images > 0, "has_videos": videos > 0, "num_image_tokens": images,
                "num_video_tokens": videos, "sequence_length": length, "hidden_size": width})
            .to_string(),
        );
    }
    for (name, value) in [
        ("has_images", (images > 0).to_string()),
        ("has_videos", (videos > 0).to_string()),
        ("num_image_tokens", images.to_string()),
        ("num_video_tokens", videos.to_string()),
        ("sequence_length", length.to_string()),
        ("hidden_size", width.to_string()),
    ] {
        print_line(&format!("{name:17} {value}"))?;
    }
    Ok(())
}
