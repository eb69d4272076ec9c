//! One file a command.

mod eval;
mod generate;
mod info;
mod init;
mod trace;
mod train;

pub(crate) use eval::eval;
pub(crate) use generate::generate;
pub(crate) use info::info;
pub(crate) use init::init;
pub(crate) use trace::trace;
pub(crate) use train::train;

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, ensure};
use glm4v_processor::{
    Content, HttpLimits, ImageSource, Message, Part, Processor, VideoSource, parse_messages,
};
use glm4v_weights::ModelFolder;

use crate::args::{Inputs, Prompt};

/// Who may speak in a conversation.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "observation"];

/// Opens a model folder with its processor, and makes sure that the two belong together.
fn open_model(path: &Path) -> anyhow::Result<(ModelFolder, Processor)> {
    let folder = ModelFolder::open(path)?;
    let processor = Processor::load(path)?;
    let (config, tokenizer) = (folder.config().image_token_id, processor.tokenizer().special().image);
    ensure!(
        config == tokenizer,
        "{}: image_token_id is {config} in config.json, but <|image|> is {tokenizer} in tokenizer.json; take both \
         from the same checkpoint",
        path.display()
    );
    Ok((folder, processor))
}

impl Inputs {
    /// The processor with the limits that the flags set.
    fn apply(&self, processor: Processor) -> Processor {
        let mut image = processor.image_processor().clone();
        let mut video = processor.video_processor().clone();
        if let Some(pixels) = self.min_pixels {
            image = image.with_min_pixels(pixels);
        }
        if let Some(pixels) = self.max_pixels {
            image = image.with_max_pixels(pixels);
        }
        if let Some(pixels) = self.max_video_pixels {
            video = video.with_max_pixels(pixels);
        }
        if let Some(rate) = self.frame_rate {
            video = video.with_frame_rate(rate);
        }
        let processor = processor.with_image_processor(image).with_video_processor(video);
        let processor = processor.with_special_tokens_allowed(self.allow_special_tokens);
        if self.allow_http { processor.with_http(HttpLimits::default()) } else { processor }
    }
}

impl Prompt {
    /// The conversation that the flags spell.
    fn messages(&self) -> anyhow::Result<Vec<Message>> {
        if let Some(path) = &self.messages {
            return read_messages(path);
        }
        let here = Path::new(".");
        let images = self.images.iter().map(|image| Part::Image(ImageSource::parse(image, here)));
        let videos = self.videos.iter().map(|video| Part::Video(VideoSource::parse(video, here)));
        let text = Part::text(self.prompt.clone().unwrap_or_default());
        let parts: Vec<Part> = images.chain(videos).chain([text]).collect();
        Ok(vec![Message::new("user", Content::Parts(parts))])
    }
}

/// Writes a line to stdout; a reader that went away is an error, not a panic.
fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(stdout().lock(), "{line}").context("cannot write to stdout")
}

/// Reads a conversation; paths in it are relative to the file.
fn read_messages(path: &Path) -> anyhow::Result<Vec<Message>> {
    let json = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let messages = parse_messages(&json, folder).with_context(|| path.display().to_string())?;
    ensure!(!messages.is_empty(), "{}: holds no messages; needed: at least one of the user", path.display());
    for (index, message) in messages.iter().enumerate() {
        // Chat templates pass over a role that they do not know without a word.
        ensure!(
            ROLES.contains(&message.role.as_str()),
            "{}: message {index}: unknown role \"{}\"; known are {}",
            path.display(),
            message.role,
            ROLES.join(", ")
        );
    }
    Ok(messages)
}
