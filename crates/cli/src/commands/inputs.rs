//! Flags that say what a model is asked, and how its inputs are made.

use std::path::Path;

use anyhow::{Context, ensure};
use glm4v_files::read_text;
use glm4v_processor::{
    Content, HttpLimits, ImageSource, Message, Part, Processor, RenderOptions, VideoSource, parse_messages,
};

use crate::args::{Inputs, Prompt, Rendering, Switch};

/// Who may speak in a conversation.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "observation"];

impl Inputs {
    /// The processor with the limits that the flags set.
    pub(super) fn apply(&self, processor: Processor) -> Processor {
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
    pub(super) fn messages(&self) -> anyhow::Result<Vec<Message>> {
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

impl Rendering {
    /// How the prompt is written.
    pub(super) fn options(&self) -> anyhow::Result<RenderOptions> {
        let mut options = RenderOptions::prompt();
        options.enable_thinking = self.thinking.map(Switch::is_on);
        if let Some(path) = &self.tools {
            let json = read_json(path)?;
            let tools: serde_json::Value =
                serde_json::from_str(&json).with_context(|| format!("{}: not valid json", path.display()))?;
            ensure!(
                tools.is_array(),
                "{}: needed a list of tools, as in [{{\"type\": \"function\", …}}]",
                path.display()
            );
            options.tools = Some(tools);
        }
        Ok(options)
    }
}

/// Longest file of messages or tools; images in it are base64.
const LONGEST: u64 = 256 << 20;

/// Reads json.
fn read_json(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path, LONGEST)?;
    // The mark that some editors of Windows put first.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Reads a conversation; paths in it are relative to the file.
fn read_messages(path: &Path) -> anyhow::Result<Vec<Message>> {
    let json = read_json(path)?;
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
