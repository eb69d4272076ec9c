//! One message of a conversation and its content.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::media::{ImageSource, VideoInput};

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, `observation`.
    pub role: String,
    /// Texts, images and videos.
    pub content: Content,
    /// All other keys, passed to the chat template unchanged.
    pub extra: Map<String, Value>,
}

/// Content of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Texts, images and videos in the order of the prompt.
    Parts(Vec<ContentPart>),
}

/// Part of a message's content.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ContentPart {
    /// A piece of text.
    Text {
        /// The text.
        text: String,
    },
    /// A still image.
    Image(ImageSource),
    /// A video.
    Video(VideoInput),
}

impl Message {
    /// A message without extra keys.
    pub fn new(role: impl Into<String>, content: impl Into<Content>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// The images of this message, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.content.parts().iter().filter_map(|part| match part {
            ContentPart::Image(source) => Some(source),
            _ => None,
        })
    }

    /// The videos of this message, in order.
    pub fn videos(&self) -> impl Iterator<Item = &VideoInput> {
        self.content.parts().iter().filter_map(|part| match part {
            ContentPart::Video(source) => Some(source),
            _ => None,
        })
    }
}

impl Content {
    /// The parts, none when the content is plain text.
    pub fn parts(&self) -> &[ContentPart] {
        match self {
            Self::Text(_) => &[],
            Self::Parts(parts) => parts,
        }
    }

    /// The texts, in order and without the images and videos between them.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let plain = match self {
            Self::Text(text) => Some(text.as_str()),
            Self::Parts(_) => None,
        };
        plain.into_iter().chain(self.parts().iter().filter_map(|part| match part {
            ContentPart::Text { text } => Some(text.as_str()),
            _ => None,
        }))
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<ContentPart>> for Content {
    fn from(parts: Vec<ContentPart>) -> Self {
        Self::Parts(parts)
    }
}

impl ContentPart {
    /// A text part.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}
