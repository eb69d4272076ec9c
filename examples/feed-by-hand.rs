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
use glm4v_infer::{GenerationConfig, MultimodalEmbedder, generate};
use glm4v_model::{Backend, CausalLm, DecoderInput, DecoderOptions, Glm4v, Modality, Precision};
use glm4v_processor::{
    ChatTemplateOptions, Content, ContentPart, ImageSource, MediaGrids, Message, Processor,
};
use glm4v_weights::ModelFolder;

const NEW_TOKENS: usize = 8;

fn main() -> anyhow::Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden");
    let folder = golden.join("checkpoints/glm4v");
    let processor = Processor::load(&folder)?;
    let model = ModelFolder::open(&folder)?.load(&Backend::Cpu.open()?, Precision::F32)?;
    let embedder = MultimodalEmbedder::new(&processor, &model);
    let image = ContentPart::Image(ImageSource::Path(golden.join("images/chelsea_113x75.png")));
    let conversation =
        vec![Message::new("user", Content::Parts(vec![image, ContentPart::text("Who is this?")]))];
    let options = ChatTemplateOptions::generation_prompt();

    // Step by step: text and patches on the host, features of the image, both in one sequence.
    let batch = embedder.process(std::slice::from_ref(&conversation), &options)?;
    let features = embedder.embed_multimodal(&batch)?;
    let embedded = embedder.merge_embeddings(batch.clone(), features.clone())?;
    println!(
        "inputs_embeds {:?}, rope_deltas {:?}",
        embedded.input.inputs_embeds.dims(),
        embedded.input.positions.rope_deltas
    );

    // The text decoder and the head alone.
    let whole = model.forward(&batch)?.squeeze_dim::<2>(0); // one row
    let output = model.decoder_forward(embedded.input.clone(), DecoderOptions::default());
    let apart = (model.logits(output.hidden_states) - whole).abs().max().into_scalar::<f32>();
    println!("largest difference from the logits of the whole model: {apart}");
    ensure!(apart == 0.0, "the parts give other logits than the whole");

    // Features made earlier, by this tower or another: of the image only its grid is needed then.
    let grids = batch.media.grids(Modality::Image).to_vec();
    let ready = MediaGrids { images: grids, videos: Vec::new() };
    let early =
        embedder.merge_embeddings(embedder.process_with_grids(&conversation, &options, &ready)?, features)?;
    let apart =
        (early.input.inputs_embeds.clone() - embedded.input.inputs_embeds).abs().max().into_scalar::<f32>();
    println!("largest difference with features made earlier: {apart}");
    ensure!(apart == 0.0, "features made earlier give other embeddings");

    let answer = greedy(&model, early.input)?;
    let settings = GenerationConfig::greedy(&model.config, NEW_TOKENS);
    let expected = generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(()))?.remove(0);
    println!("decoded by hand {answer:?}, by generate() {:?}", expected.ids);
    ensure!(answer.starts_with(&expected.ids), "decoding by hand gives another answer");
    Ok(())
}

/// The likeliest token, again and again: the prompt once, then a token a step with the cache.
fn greedy(model: &Glm4v, prompt: DecoderInput) -> anyhow::Result<Vec<u32>> {
    let [rows, length, _] = prompt.inputs_embeds.dims();
    let rope_deltas = prompt.positions.rope_deltas.clone();
    let mut cache = model.kv_cache(rows, length + NEW_TOKENS);
    let last = DecoderOptions {
        cache: Some(&mut cache),
        positions: Some(&[length - 1]),
        ..DecoderOptions::default()
    };
    let mut logits = model.logits(model.decoder_forward(prompt, last).hidden_states);
    let mut ids = Vec::new();
    while ids.len() < NEW_TOKENS {
        ids.push(likeliest(logits)?);
        logits = model.decode_step(&ids[ids.len() - 1..], &rope_deltas, &mut cache);
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
