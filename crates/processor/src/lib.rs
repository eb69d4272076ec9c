#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`Processor::load`], [`Message`], [`Processor::encode`] → [`Sample`](glm4v_inputs::Sample). Results are equal to those of transformers, to the bit
//! for formats that both decode alike (golden tests of this crate). Special tokens in texts are errors without
//! [`Processor::with_special_tokens_allowed`], downloads without [`Processor::allow_http`].

mod expand;
mod folder;
mod image;
mod media;
mod messages;
mod processor;
mod special_token_guard;
mod template;
mod tokenizer;
mod video;
mod warning_throttle;

pub use expand::{LabeledText, MediaCountMismatch, PlaceholderError};
pub use folder::{ProcessorFilesError, TimestampFormat};
pub use image::{
    DecodeLimits, HttpError, HttpLimits, ImageCache, ImageConfig, ImageError, ImageProcessor, PatchedImage,
    PreprocessorConfigError, ResizeError, ResizeLimits, resize_bicubic, smart_resize,
};
pub use media::{ImageSource, Rgb, VideoInput, VideoSource};
pub use messages::{Content, ContentPart, Message, MessagesError, parse_messages};
pub use processor::{MediaGrids, Processor, ProcessorError};
pub use special_token_guard::MessageLocation;
pub use template::{ChatTemplateOptions, RenderAborted, TemplateError};
pub use tokenizer::{SpecialIds, Tokenizer, TokenizerError, token};
pub use video::{
    FrameSamplingConfig, FrameSamplingRule, PatchedVideo, VideoConfig, VideoError, VideoLimits,
    VideoMetadata, VideoProcessor,
};
