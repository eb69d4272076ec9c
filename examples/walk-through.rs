//! A walk through the parts of the model on made-up inputs: what goes in, what becomes of it, which file does it.
//!
//!     cargo run --release --example walk-through [MODEL_FOLDER]
//!
//! Without a folder it walks through the tiny checkpoint of the tests, in a second. The names of activations are those of
//! the checkpoint's tensors, `mid.` ones of `glm4v trace --activations` too.
#![expect(clippy::print_stdout, reason = "an example talks to people")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use glm4v_infer::{Embedded, GenerationConfig, Pipeline, generate};
use glm4v_model::{Backend, Glm4v, Precision, Probe};
use glm4v_processor::{
    Content, ImageSource, Message, Part, Processor, RenderOptions, Rgb, VideoData, VideoSource,
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
        let sizes = config.sizes(&self.model.device());
        line("family", config.architecture, "config.json, crates/model/src/config/read.rs");
        line("parameters", sizes.total(), "crates/model/src/size.rs");
        let tower = format!("{} blocks of width {}", vision.depth, vision.hidden_size);
        line("vision tower", tower, "sees patches: crates/model/src/vision/");
        let merger =
            format!("{} x {} patches become a token", vision.spatial_merge_size, vision.spatial_merge_size);
        line("merger", merger, "from the tower's width to the text's: crates/model/src/vision/merger.rs");
        let decoder = format!("{} layers of width {}", text.num_hidden_layers, text.hidden_size);
        line("text decoder", decoder, "predicts the next token: crates/model/src/text/");
        let heads = format!(
            "{} of queries, {} of keys and values",
            text.num_attention_heads, text.num_key_value_heads
        );
        line("heads", heads, "several queries share keys: crates/model/src/text/attention.rs");
    }

    fn text_only(&self) -> anyhow::Result<()> {
        title("Text only");
        let messages = vec![ask(vec![Part::text("What is a patch?")])];
        let rendered = self.processor.render(&messages, &RenderOptions::prompt())?;
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
            "made up here; files go through crates/processor/src/image/decode.rs",
        );
        let embedded = self.embed(vec![ask(vec![image, Part::text("What is this?")])])?;
        let [grid] = embedded.batch.images.grids[..] else { anyhow::bail!("one image has one grid") };
        let patch = self.model.config.vision.patch_size;
        let resized = format!("{} x {} pixels", grid.h * patch, grid.w * patch);
        line(
            "resized",
            resized,
            "to multiples of a token's side: crates/processor/src/image/smart_resize.rs",
        );
        let values = embedded.batch.images.values.len() / grid.patches();
        line(
            "pixel_values",
            shape([grid.patches(), values]),
            "a row a patch, colours x 2 frames x pixels: crates/processor/src/image/patch.rs",
        );
        line("image_grid_thw", shape([grid.t, grid.h, grid.w]), "frame pairs, patch rows, patch columns");
        self.positions(&embedded);

        let mut probe = Probe::on();
        self.model.encode(&embedded.batch, &mut probe)?;
        let seen = probe.into_kept();
        for (name, from) in [
            ("vision.patch_embed", "each patch times one matrix: crates/model/src/vision/embed.rs"),
            ("vision.embeddings", "and where it lies in the image, from a table of learned places"),
            ("vision.blocks.0.attn.qkv", "queries, keys, values: patches of one image look at each other"),
            ("vision.blocks.0.mlp.gate_proj", "inside the feed-forward, which every patch passes alone"),
            ("vision.blocks.0", "after the first block; the shape stays to the last"),
            ("vision.downsample", "four neighbours become one: a convolution"),
            ("vision.merger", "in the width of the text: these are the image's tokens"),
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
        let embedded = self.embed(vec![ask(images.chain([Part::text("Compare.")]).collect())])?;
        let merge = self.model.config.vision.spatial_merge_size;
        for (grid, (height, width)) in embedded.batch.images.grids.iter().zip(sizes) {
            let became = format!("{} patches, {} tokens", grid.patches(), grid.tokens(merge));
            line(&format!("{height} x {width} pixels"), became, "each keeps its shape; nothing is padded");
        }
        let features = embedded.features.images.as_ref().context("three images have features")?.dims();
        line("image_embeds", shape(features), "all in one matrix, in the order of the prompt");
        self.positions(&embedded);
        self.decode(embedded)
    }

    fn video(&self) -> anyhow::Result<()> {
        title("A video");
        let frames = (0..8).map(|hue| ImageSource::Pixels(pixels(56, 84, hue))).collect();
        let source = VideoSource { data: VideoData::Frames(frames), frame_rate: Some(2.0) };
        line(
            "video",
            "8 frames of 56 x 84 pixels, 4 seconds",
            "made up here; files go through crates/processor/src/video/",
        );
        let embedded = self.embed(vec![ask(vec![Part::Video(source), Part::text("What happens?")])])?;
        let [grid] = embedded.batch.videos.grids[..] else { anyhow::bail!("one video has one grid") };
        line(
            "video_grid_thw",
            shape([grid.t, grid.h, grid.w]),
            "chosen frames, two to a patch: crates/processor/src/video/sampling.rs",
        );
        let ids = &embedded.batch.input_ids;
        let spelled = self.processor.tokenizer().decode(&runs(ids), false);
        line(
            "prompt",
            format!("{spelled:?}"),
            "a time behind each pair (repeats left out): crates/processor/src/expand.rs",
        );
        self.positions(&embedded);
        self.decode(embedded)
    }

    fn long_text(&self) -> anyhow::Result<()> {
        title("Long text");
        let embedded = self.embed(vec![ask(vec![Part::text("All the king's horses. ".repeat(40))])])?;
        let [rows, length] = embedded.batch.shape;
        let config = &self.model.config.text;
        let scores = [rows, config.num_attention_heads, length, length];
        line("scores", shape(scores), "every token and all before it: work grows with the square");
        let cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length;
        line(
            "cache",
            format!("{cache} values"),
            "keys and values, so that a new token does not read all again",
        );
        line("longest", config.max_position_embeddings, "max_position_embeddings of config.json");
        self.decode(embedded)
    }

    fn generation(&self) -> anyhow::Result<()> {
        title("Generation");
        let pipeline = Pipeline::new(self.processor, self.model);
        let question = ask(vec![image(56, 84, 1), Part::text("What is this?")]);
        let batch = pipeline.process(&[vec![question]], &RenderOptions::prompt())?;
        line("prefill", shape(batch.shape), "the prompt once, all tokens together");
        let settings = GenerationConfig::greedy(&self.model.config, 6);
        let mut steps = 0;
        let answers = generate(self.model, &batch, &settings, |_, _| {
            steps += 1;
            ControlFlow::Continue(())
        })?;
        line("steps", steps, "one token each, with the cache: crates/infer/src/generate.rs");
        let text = self.processor.tokenizer().decode(&answers[0].ids, false);
        line("answer", format!("{text:?}"), "nonsense, if nothing was learned");
        Ok(())
    }

    /// Everything before the text decoder.
    fn embed(&self, messages: Vec<Message>) -> anyhow::Result<Embedded> {
        let embedded =
            Pipeline::new(self.processor, self.model).run(&[messages], &RenderOptions::prompt())?;
        line(
            "input_ids",
            shape(embedded.batch.shape),
            "rows, tokens; a placeholder for each feature: tokenizer.json",
        );
        Ok(embedded)
    }

    fn positions(&self, embedded: &Embedded) {
        let positions = &embedded.positions;
        let [rows, length] = positions.shape;
        line("position_ids", shape([3, rows, length]), "time, row, column: crates/model/src/positions.rs");
        for (axis, name) in positions.axes.iter().zip(["  time", "  row", "  column"]) {
            line(name, abridged(axis), "");
        }
        line("rope_deltas", format!("{:?}", positions.deltas), "images take more tokens than positions");
    }

    /// The text decoder, fed by hand.
    fn decode(&self, embedded: Embedded) -> anyhow::Result<()> {
        let whole = self.model.forward(&embedded.batch)?;
        line(
            "inputs_embeds",
            shape(embedded.inputs_embeds.dims()),
            "rows of embed_tokens, features in place: crates/model/src/fusion.rs",
        );
        let mut probe = Probe::on();
        let hidden = self.model.decode(embedded.into_text_input(), None, &mut probe);
        let layers = probe.into_kept();
        if let Some((_, cosines)) = layers.iter().find(|(name, _)| name == "text.rotary.cos") {
            line(
                "rotary angles",
                shape(cosines.shape()),
                "from the three positions: crates/model/src/rope.rs",
            );
        }
        let last = format!("text.layers.{}", self.model.config.text.num_hidden_layers - 1);
        line(&last, shape(hidden.dims()), "the stream of the text, the same width after every layer");
        let logits = self.model.head(hidden);
        line("logits", shape(logits.dims()), "lm_head: a score for each entry of the vocabulary");
        let apart = (whole - logits).abs().max().into_scalar::<f32>();
        line("largest difference", apart, "from the logits of the whole model in one call");
        anyhow::ensure!(apart == 0.0, "fed by hand, the text decoder gives other logits");
        Ok(())
    }
}

fn ask(parts: Vec<Part>) -> Message {
    Message::new("user", Content::Parts(parts))
}

fn image(height: usize, width: usize, hue: usize) -> Part {
    Part::Image(ImageSource::Pixels(pixels(height, width, hue)))
}

/// Stripes, as good as any photograph for a model that has learned nothing.
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
    // What is longer than the column has a line to itself.
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
