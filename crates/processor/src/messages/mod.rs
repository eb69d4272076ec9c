//! Conversations as people write them: `[{"role", "content"}]`.
//!
//! The wire format is OpenAI's, with the local forms of Hugging Face beside it. Content is a string or
//! a list of parts:
//!
//! - `{"type":"text","text"}`
//! - `{"type":"image","path"|"url"|"image"}` and `{"type":"image_url","image_url":{"url"}}`
//! - the same two for `video`, whose value may also be a folder or a list of images, with `frame_rate`
//!   beside it
//!
//! A value is a path, a `file://` or a `data:` URL; `http(s)` is kept as a URL and refused when the
//! image is loaded. Keys that are not known here (`reasoning_content`, `tool_calls`, `metadata`)
//! reach the chat template untouched.

mod parse;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::image::Rgb;

pub use parse::{MessagesError, parse_messages};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, `observation`.
    pub role: String,
    /// What is said and shown.
    pub content: Content,
    /// Every other key of the message, handed to the chat template as it is.
    pub extra: Map<String, Value>,
}

/// What a message holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text, images and videos in the order in which the model sees them.
    Parts(Vec<Part>),
}

/// One piece of a message.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Part {
    /// Words.
    Text {
        /// The words.
        text: String,
    },
    /// A still image.
    Image(ImageSource),
    /// A video.
    Video(VideoSource),
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ImageSource {
    /// A file on this machine.
    Path(PathBuf),
    /// The bytes of an image file.
    Bytes(Vec<u8>),
    /// A `data:` URL. Others are refused when the image is loaded.
    Url(String),
    /// A decoded image.
    Pixels(Rgb),
}

impl fmt::Display for ImageSource {
    /// The path of an image, or the beginning of its URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Url(url) if url.chars().count() > SHOWN => {
                write!(f, "{}…", url.chars().take(SHOWN).collect::<String>())
            }
            Self::Url(url) => f.write_str(url),
            Self::Bytes(_) | Self::Pixels(_) => f.write_str("an image in memory"),
        }
    }
}

/// A video.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoSource {
    /// Where it comes from.
    pub data: VideoData,
    /// Frames a second, for a folder or list of images; other videos say it themselves.
    pub frame_rate: Option<f64>,
}

/// Where a video comes from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum VideoData {
    /// A file on this machine, or a folder of images.
    Path(PathBuf),
    /// The bytes of a video file.
    Bytes(Vec<u8>),
    /// A `data:` URL. Others are refused when the video is loaded.
    Url(String),
    /// Images, each a frame.
    Frames(Vec<ImageSource>),
}

impl fmt::Display for VideoSource {
    /// The path of a video, or the beginning of its URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            VideoData::Path(path) => path.display().fmt(f),
            VideoData::Url(url) => ImageSource::Url(url.clone()).fmt(f),
            VideoData::Bytes(_) => f.write_str("a video in memory"),
            VideoData::Frames(frames) => write!(f, "a list of {} images", frames.len()),
        }
    }
}

impl Message {
    /// Makes a message of one role without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<Content>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// The images of this message, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.content.parts().iter().filter_map(|part| match part {
            Part::Image(source) => Some(source),
            _ => None,
        })
    }

    /// The videos of this message, in order.
    pub fn videos(&self) -> impl Iterator<Item = &VideoSource> {
        self.content.parts().iter().filter_map(|part| match part {
            Part::Video(source) => Some(source),
            _ => None,
        })
    }
}

impl Content {
    /// The parts, none when the content is plain text.
    pub fn parts(&self) -> &[Part] {
        match self {
            Self::Text(_) => &[],
            Self::Parts(parts) => parts,
        }
    }

    /// The texts of this content, in order and without what is shown between them.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let whole = match self {
            Self::Text(text) => Some(text.as_str()),
            Self::Parts(_) => None,
        };
        whole.into_iter().chain(self.parts().iter().filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
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

impl From<Vec<Part>> for Content {
    fn from(parts: Vec<Part>) -> Self {
        Self::Parts(parts)
    }
}

impl Part {
    /// A part of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

impl ImageSource {
    /// Reads a value of a message: a URL, or a path that is relative to `base`.
    pub fn parse(value: &str, base: &Path) -> Self {
        match parse::locate(value, base) {
            parse::Location::Path(path) => Self::Path(path),
            parse::Location::Url(url) => Self::Url(url),
        }
    }
}

impl VideoSource {
    /// Reads a value of a message: a URL, or a path that is relative to `base`.
    pub fn parse(value: &str, base: &Path) -> Self {
        match parse::locate(value, base) {
            parse::Location::Path(path) => VideoData::Path(path).into(),
            parse::Location::Url(url) => VideoData::Url(url).into(),
        }
    }
}

impl From<VideoData> for VideoSource {
    fn from(data: VideoData) -> Self {
        Self { data, frame_rate: None }
    }
}

impl From<PathBuf> for VideoSource {
    fn from(path: PathBuf) -> Self {
        VideoData::Path(path).into()
    }
}
