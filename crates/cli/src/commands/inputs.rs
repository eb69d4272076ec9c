//! Flags of prompt, chat template and preprocessing, applied to the processor.

use std::path::Path;

use anyhow::{Context, ensure};
use glm4v_files::read_text;
use glm4v_processor::{
    ChatTemplateOptions, Content, ContentPart, HttpLimits, ImageSource, Message, Processor, VideoInput,
    parse_messages,
};

use crate::args::{Inputs, Prompt, Rendering, Switch};

/// Roles that the published chat templates render.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "observation"];

impl Inputs {
    /// The processor with the limits and permissions of the flags.
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
        if self.allow_http { processor.allow_http(HttpLimits::default()) } else { processor }
    }
}

impl Prompt {
    /// The conversation: `--messages`, or one user message with images, videos and `--prompt`.
    pub(super) fn messages(&self) -> anyhow::Result<Vec<Message>> {
        if let Some(path) = &self.messages {
            return read_messages(path);
        }
        let here = Path::new(".");
        let images = self.images.iter().map(|image| ContentPart::Image(ImageSource::parse(image, here)));
        let videos = self.videos.iter().map(|video| ContentPart::Video(VideoInput::parse(video, here)));
        let text = ContentPart::text(self.prompt.clone().unwrap_or_default());
        let parts: Vec<ContentPart> = images.chain(videos).chain([text]).collect();
        Ok(vec![Message::new("user", Content::Parts(parts))])
    }
}

impl Rendering {
    /// Options of the chat template.
    pub(super) fn options(&self) -> anyhow::Result<ChatTemplateOptions> {
        let mut options = ChatTemplateOptions::generation_prompt();
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

/// Maximum size of a file of messages or tools, in bytes; images in it are base64.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Reads the text of a JSON file.
fn read_json(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path, MAX_JSON_BYTES)?;
    // The byte order mark of some Windows editors.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Reads a conversation; paths in it are relative to the file.
fn read_messages(path: &Path) -> anyhow::Result<Vec<Message>> {
    let json = read_json(path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let messages = parse_messages(&json, dir).with_context(|| path.display().to_string())?;
    ensure!(!messages.is_empty(), "{}: holds no messages; needed: at least one of the user", path.display());
    for (index, message) in messages.iter().enumerate() {
        // Chat templates silently drop messages of unknown roles.
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
