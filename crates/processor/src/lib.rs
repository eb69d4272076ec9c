#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`Processor::load`], [`Message`], [`Processor::encode`] → [`Encoded`]. What is computed is what transformers computes, to
//! the bit for what both decode alike; the golden tests of this crate hold it to that. Control tokens in texts:
//! [`Processor::with_special_tokens_allowed`]; the network: [`Processor::with_http`].

mod expand;
mod folder;
mod image;
mod messages;
mod notice;
mod processor;
mod spelled;
mod template;
mod tokenizer;
mod video;

pub use expand::{Culprit, Encoded, ExpandError, MediaKind, Segment};
pub use folder::{FolderError, TimestampStyle};
pub use image::{
    ConfigError, DecodeLimits, HttpError, HttpLimits, ImageConfig, ImageError, ImageProcessor, PatchedImage,
    ResizeError, Rgb, resize_bicubic, smart_resize,
};
pub use messages::{
    Content, ImageSource, Message, MessagesError, Part, VideoData, VideoSource, parse_messages,
};
pub use processor::{Processor, ProcessorError, ReadyMedia};
pub use spelled::Place;
pub use template::{RenderOptions, TemplateError, TemplateStopped};
pub use tokenizer::{SpecialIds, Tokenizer, TokenizerError, token};
pub use video::{
    PatchedVideo, Sampling, SamplingRule, VideoConfig, VideoError, VideoLimits, VideoMetadata, VideoProcessor,
};
