//! Everything before the text model made apart, then fed to the text model by hand: the same logits as the whole model,
//! and the same answer.
//!
//!     cargo run --release --example feed-by-hand
//!
//! Any other text model of this width can be fed with the same `inputs_embeds`, `position_ids` and `attention_mask`;
//! `glm4v embed` writes them to a file.
#![expect(clippy::print_stdout, reason = "an example talks to people")]

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, ensure};
use burn::tensor::{ElementConversion, Tensor};
use glm4v_infer::{GenerationConfig, Pipeline, generate};
use glm4v_model::{Backend, Glm4v, Precision, Probe, TextInput};
use glm4v_processor::{Content, ImageSource, Message, Part, Processor, ReadyMedia, RenderOptions};
use glm4v_weights::ModelFolder;

const NEW_TOKENS: usize = 8;

fn main() -> anyhow::Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden");
    let folder = golden.join("checkpoints/glm4v");
    let processor = Processor::load(&folder)?;
    let model = ModelFolder::open(&folder)?.load(&Backend::Cpu.open()?, Precision::F32)?;
    let pipeline = Pipeline::new(&processor, &model);
    let image = Part::Image(ImageSource::Path(golden.join("images/chelsea_113x75.png")));
    let conversation = vec![Message::new("user", Content::Parts(vec![image, Part::text("Who is this?")]))];
    let options = RenderOptions::prompt();

    // Step by step: text and patches on the host, features of the image, both in one sequence.
    let batch = pipeline.process(std::slice::from_ref(&conversation), &options)?;
    let features = pipeline.features(&batch)?;
    let embedded = pipeline.embed(batch.clone(), features.clone())?;
    println!(
        "inputs_embeds {:?}, rope_deltas {:?}",
        embedded.inputs_embeds.dims(),
        embedded.positions.deltas
    );

    // The text decoder and the head alone.
    let whole = model.forward(&batch)?;
    let hidden = model.decode(embedded.clone().into_text_input(), None, &mut Probe::off());
    let apart = (model.head(hidden) - whole).abs().max().into_scalar::<f32>();
    println!("largest difference from the logits of the whole model: {apart}");
    ensure!(apart == 0.0, "the parts give other logits than the whole");

    // Features made earlier, by this tower or another: of the image only its grid is needed then.
    let grids = batch.images.grids.iter().map(|grid| [grid.t, grid.h, grid.w]).collect();
    let ready = ReadyMedia { images: grids, videos: Vec::new() };
    let early = pipeline.embed(pipeline.process_ready(&conversation, &options, &ready)?, features)?;
    let apart = (early.inputs_embeds.clone() - embedded.inputs_embeds).abs().max().into_scalar::<f32>();
    println!("largest difference with features made earlier: {apart}");
    ensure!(apart == 0.0, "features made earlier give other embeddings");

    let answer = greedy(&model, early.into_text_input())?;
    let settings = GenerationConfig::greedy(&model.config, NEW_TOKENS);
    let expected = generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(()))?.remove(0);
    println!("decoded by hand {answer:?}, by generate() {:?}", expected.ids);
    ensure!(answer.starts_with(&expected.ids), "decoding by hand gives another answer");
    Ok(())
}

/// The likeliest token, again and again: the prompt once, then a token a step with the cache.
fn greedy(model: &Glm4v, prompt: TextInput) -> anyhow::Result<Vec<u32>> {
    let [rows, length, _] = prompt.embeds.dims();
    let deltas = prompt.positions.deltas.clone();
    let mut cache = model.cache(rows, length + NEW_TOKENS);
    let hidden = model.decode_at(prompt, &[length - 1], Some(&mut cache), &mut Probe::off());
    let mut logits = model.head(hidden);
    let mut ids = Vec::new();
    while ids.len() < NEW_TOKENS {
        ids.push(likeliest(logits)?);
        logits = model.step(&ids[ids.len() - 1..], &deltas, &mut cache);
    }
    Ok(ids)
}

fn likeliest(logits: Tensor<2>) -> anyhow::Result<u32> {
    let index = logits.argmax(1).into_scalar::<i64>();
    u32::try_from(index.elem::<i64>()).context("an index is not negative")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_parts_give_what_the_whole_gives() {
        super::main().unwrap();
    }
}
