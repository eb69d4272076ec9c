//! A walk through the network on synthetic inputs: every intermediate shape, and the file that computes it.
//!
//!     cargo run --release --example walk-through [MODEL_FOLDER]
//!
//! Without a folder it loads the tiny checkpoint of the tests and takes a second. Activations have the names of the modules, as in
//! `glm4v trace --activations`, which puts `mid.` before them. `docs/reading.md` walks through the same files in the same order.
#![expect(clippy::print_stdout, reason = "an example talks to people")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use glm4v_infer::{EmbeddedBatch, GenerationConfig, MultimodalEmbedder, generate};
use glm4v_model::{ActivationRecorder, Backend, CausalLm, DecoderOptions, Glm4v, Modality, Precision};
use glm4v_processor::{
    ChatTemplateOptions, Content, ContentPart, ImageSource, Message, Processor, Rgb, VideoInput, VideoSource,
};
use glm4v_weights::ModelFolder;

fn main() -> anyhow::Result<()> {
    walk(&std::env::args_os().nth(1).map_or_else(tiny, PathBuf::from))
}

/// The checkpoint of the tests.
fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/checkpoints/glm4v")
}

fn walk(folder: &Path) -> anyhow::Result<()> {
    let processor = Processor::load(folder)?;
    let model = ModelFolder::open(folder)?.load(&Backend::Cpu.open()?, Precision::F32)?;
    let walk = Walk { processor: &processor, model: &model };

    walk.parts();
    walk.text_only()?;
    walk.one_image()?;
    walk.three_images()?;
    walk.video()?;
    walk.long_text()?;
    walk.generation()
}

struct Walk<'a> {
    processor: &'a Processor,
    model: &'a Glm4v,
}

impl Walk<'_> {
    fn parts(&self) {
        title("The parts");
        let config = &self.model.config;
        let (vision, text) = (&config.vision, &config.text);
        let params = config.param_counts(&self.model.device());
        line("family", config.architecture, "config.json, crates/model/src/config/family.rs");
        line("parameters", params.total(), "crates/model/src/params/counts.rs");
        let tower = format!("{} blocks, hidden size {}", vision.depth, vision.hidden_size);
        line("vision tower", tower, "encodes patches: crates/model/src/vision/");
        let merger =
            format!("{} x {} patches to one token", vision.spatial_merge_size, vision.spatial_merge_size);
        line("merger", merger, "vision hidden size to text hidden size: crates/model/src/vision/merger.rs");
        let decoder = format!("{} layers, hidden size {}", text.num_hidden_layers, text.hidden_size);
        line("text decoder", decoder, "predicts the next token: crates/model/src/text/");
        let heads =
            format!("{} query heads, {} key-value heads", text.num_attention_heads, text.num_key_value_heads);
        line("attention", heads, "grouped queries: crates/model/src/text/attention.rs");
    }

    fn text_only(&self) -> anyhow::Result<()> {
        title("Text only");
        let messages = vec![ask(vec![ContentPart::text("What is a patch?")])];
        let rendered = self.processor.render(&messages, &ChatTemplateOptions::generation_prompt())?;
        line("rendered", format!("{rendered:?}"), "the checkpoint's chat_template.jinja");
        let embedded = self.embed(messages)?;
        self.positions(&embedded);
        self.decode(embedded)
    }

    fn one_image(&self) -> anyhow::Result<()> {
        title("One image");
        let image = image(90, 130, 0);
        line(
            "image",
            "90 x 130 pixels",
            "synthetic; files are decoded by crates/processor/src/image/decode.rs",
        );
        let embedded = self.embed(vec![ask(vec![image, ContentPart::text("What is this?")])])?;
        let [grid] = embedded.batch.media.grids(Modality::Image) else {
            anyhow::bail!("one image has one grid")
        };
        let patch = self.model.config.vision.patch_size;
        let resized = format!("{} x {} pixels", grid.h * patch, grid.w * patch);
        line(
            "resized",
            resized,
            "to multiples of patch_size x merge_size: crates/processor/src/image/smart_resize.rs",
        );
        let values = embedded.batch.media.patches(Modality::Image).values.len() / grid.patches();
        line(
            "pixel_values",
            shape([grid.patches(), values]),
            "one patch a row, channels x 2 frames x pixels: crates/processor/src/image/patch.rs",
        );
        line(
            "image_grid_thw",
            shape([grid.t, grid.h, grid.w]),
            "temporal patches, patch rows, patch columns",
        );
        self.positions(&embedded);

        let mut recorder = ActivationRecorder::new();
        self.model.embed_with_recorder(&embedded.batch, Some(&mut recorder))?;
        let seen = recorder.into_activations();
        for (name, from) in [
            ("vision.patch_embed", "a convolution with kernel = stride: crates/model/src/vision/embed.rs"),
            ("vision.embeddings", "plus learned position embeddings, interpolated to the grid: same file"),
            (
                "vision.blocks.0.attn.qkv",
                "queries, keys, values within one image: crates/model/src/vision/attention.rs",
            ),
            (
                "vision.blocks.0.mlp.gate_proj",
                "inside the gated feed-forward, patch by patch: crates/model/src/nn/mlp.rs",
            ),
            ("vision.blocks.0", "output of the first block; every block keeps the shape"),
            ("vision.downsample", "2 x 2 patches to one, a convolution: crates/model/src/vision/merger.rs"),
            ("vision.merger", "image embeddings, one for each placeholder token"),
        ] {
            // Not every member of the family has each part.
            if let Some((_, data)) = seen.iter().find(|(other, _)| other == name) {
                line(name, shape(data.shape()), from);
            }
        }
        self.decode(embedded)
    }

    fn three_images(&self) -> anyhow::Result<()> {
        title("Three images of three sizes");
        let sizes = [(56, 56), (60, 140), (150, 80)];
        let images = sizes.iter().enumerate().map(|(hue, &(height, width))| image(height, width, hue));
        let embedded = self.embed(vec![ask(images.chain([ContentPart::text("Compare.")]).collect())])?;
        let merge = self.model.config.vision.spatial_merge_size;
        for (grid, (height, width)) in embedded.batch.media.grids(Modality::Image).iter().zip(sizes) {
            let became = format!("{} patches, {} tokens", grid.patches(), grid.tokens(merge));
            line(&format!("{height} x {width} pixels"), became, "aspect ratio kept, no padding");
        }
        let features =
            embedded.embeddings.get(Modality::Image).context("three images have embeddings")?.dims();
        line("image_embeds", shape(features), "of all images, in the order of the prompt");
        self.positions(&embedded);
        self.decode(embedded)
    }

    fn video(&self) -> anyhow::Result<()> {
        title("A video");
        let frames = (0..8).map(|hue| ImageSource::Pixels(pixels(56, 84, hue))).collect();
        let source = VideoInput { data: VideoSource::Frames(frames), frame_rate: Some(2.0) };
        line(
            "video",
            "8 frames of 56 x 84 pixels, 4 seconds",
            "synthetic; files are decoded by crates/processor/src/video/",
        );
        let embedded =
            self.embed(vec![ask(vec![ContentPart::Video(source), ContentPart::text("What happens?")])])?;
        let [grid] = embedded.batch.media.grids(Modality::Video) else {
            anyhow::bail!("one video has one grid")
        };
        line(
            "video_grid_thw",
            shape([grid.t, grid.h, grid.w]),
            "sampled frames, two to a temporal patch: crates/processor/src/video/sampling.rs",
        );
        let ids = &embedded.batch.input_ids;
        let decoded = self.processor.tokenizer().decode(&runs(ids), false);
        line(
            "prompt",
            format!("{decoded:?}"),
            "a timestamp after each temporal patch (repeats left out): crates/processor/src/expand.rs",
        );
        self.positions(&embedded);
        self.decode(embedded)
    }

    fn long_text(&self) -> anyhow::Result<()> {
        title("Long text");
        let embedded =
            self.embed(vec![ask(vec![ContentPart::text("All the king's horses. ".repeat(40))])])?;
        let [rows, length] = embedded.batch.shape;
        let config = &self.model.config.text;
        let scores = [rows, config.num_attention_heads, length, length];
        line(
            "attention scores",
            shape(scores),
            "quadratic in the sequence length: crates/model/src/nn/attention.rs",
        );
        let cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length;
        line("KV cache", format!("{cache} values"), "linear in it: crates/model/src/text/kv_cache.rs");
        line("longest sequence", config.max_position_embeddings, "max_position_embeddings of config.json");
        self.decode(embedded)
    }

    fn generation(&self) -> anyhow::Result<()> {
        title("Generation");
        let pipeline = MultimodalEmbedder::new(self.processor, self.model);
        let question = ask(vec![image(56, 84, 1), ContentPart::text("What is this?")]);
        let batch = pipeline.process(&[vec![question]], &ChatTemplateOptions::generation_prompt())?;
        line("prefill", shape(batch.shape), "all tokens of the prompt in one forward pass");
        let settings = GenerationConfig::greedy(&self.model.config, 6);
        let mut steps = 0;
        let answers = generate(self.model, &batch, &settings, |_, _| {
            steps += 1;
            ControlFlow::Continue(())
        })?;
        line("steps", steps, "one token each, on the KV cache: crates/infer/src/generate.rs");
        let text = self.processor.tokenizer().decode(&answers[0].ids, false);
        line("answer", format!("{text:?}"), "random weights answer nonsense");
        Ok(())
    }

    /// Template, tokenizer, vision tower and merge: the inputs of the text decoder.
    fn embed(&self, messages: Vec<Message>) -> anyhow::Result<EmbeddedBatch> {
        let embedded = MultimodalEmbedder::new(self.processor, self.model)
            .embed(&[messages], &ChatTemplateOptions::generation_prompt())?;
        line(
            "input_ids",
            shape(embedded.batch.shape),
            "[rows, tokens], one placeholder for each image embedding: tokenizer.json",
        );
        Ok(embedded)
    }

    fn positions(&self, embedded: &EmbeddedBatch) {
        let positions = &embedded.input.positions;
        let [rows, length] = positions.shape;
        line("position_ids", shape([3, rows, length]), "time, row, column: crates/model/src/nn/positions.rs");
        for (axis, name) in positions.position_ids.iter().zip(["  time", "  row", "  column"]) {
            line(name, abridged(axis), "");
        }
        line(
            "rope_deltas",
            format!("{:?}", positions.rope_deltas),
            "next position minus number of tokens; an image takes more tokens than positions",
        );
    }

    /// The text decoder on prepared embeddings, compared with the whole model.
    fn decode(&self, embedded: EmbeddedBatch) -> anyhow::Result<()> {
        let whole = self.model.forward(&embedded.batch)?.squeeze_dim::<2>(0); // one row
        line(
            "inputs_embeds",
            shape(embedded.input.inputs_embeds.dims()),
            "embed_tokens, image embeddings merged in: crates/model/src/multimodal.rs",
        );
        let mut recorder = ActivationRecorder::new();
        let options = DecoderOptions { recorder: Some(&mut recorder), ..DecoderOptions::default() };
        let hidden = self.model.decoder_forward(embedded.input, options).hidden_states;
        let layers = recorder.into_activations();
        if let Some((_, cosines)) = layers.iter().find(|(name, _)| name == "text.rotary.cos") {
            line(
                "rotary.cos",
                shape(cosines.shape()),
                "from the three position ids: crates/model/src/nn/rope.rs",
            );
        }
        line(
            "hidden_states",
            shape(hidden.dims()),
            "after all layers and the last norm: crates/model/src/text/layer.rs",
        );
        let logits = self.model.logits(hidden);
        line("logits", shape(logits.dims()), "lm_head, over the vocabulary: crates/model/src/causal_lm.rs");
        let apart = (whole - logits).abs().max().into_scalar::<f32>();
        line("largest difference", apart, "to the logits of Glm4v::forward on the same batch");
        anyhow::ensure!(
            apart == 0.0,
            "the text decoder on prepared embeddings gives other logits than the whole model"
        );
        Ok(())
    }
}

fn ask(parts: Vec<ContentPart>) -> Message {
    Message::new("user", Content::Parts(parts))
}

fn image(height: usize, width: usize, hue: usize) -> ContentPart {
    ContentPart::Image(ImageSource::Pixels(pixels(height, width, hue)))
}

/// Stripes: a model with random weights needs no photograph.
fn pixels(height: usize, width: usize, hue: usize) -> Rgb {
    let level = |at: usize| ((at / width / 3 * 5 + at / 3 % width * 3 + (at % 3 + hue) * 80) % 256) as u8;
    Rgb::new(height, width, (0..height * width * 3).map(level).collect()).expect("three bytes a pixel")
}

/// Ids without the repeats of placeholders.
fn runs(ids: &[u32]) -> Vec<u32> {
    ids.chunk_by(|a, b| a == b).map(|run| run[0]).collect()
}

fn abridged(values: &[i64]) -> String {
    let text = |values: &[i64]| values.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    match values.len() {
        0..=24 => text(values),
        length => format!("{} … {}", text(&values[..18]), text(&values[length - 4..])),
    }
}

fn shape(dims: impl AsRef<[usize]>) -> String {
    format!("{:?}", dims.as_ref())
}

fn title(words: &str) {
    println!("\n## {words}\n");
}

fn line(name: &str, value: impl ToString, from: &str) {
    let value = value.to_string();
    // A value longer than its column gets a line of its own.
    match value.chars().count() {
        0..=38 => println!("{name:<30} {value:<39}{from}"),
        _ => println!("{name:<30} {:<39}{from}\n    {value}", ""),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_walk_arrives_with_every_member_of_the_family() {
        for member in ["glm4v", "glm4v_moe", "glm_ocr"] {
            super::walk(&super::tiny().with_file_name(member)).unwrap();
        }
    }
}
