//! Everything before the network that needs no tensors: chat template, tokenizer, images and clips to
//! patches, placeholder expansion.
//!
//! [`Processor`] loads what a checkpoint folder says about its inputs and turns [`Message`]s into
//! [`Encoded`]: token ids, and the patches of the pictures and clips that stand among them. What it
//! computes is what transformers computes, to the bit for what both decode alike; the golden tests of
//! this crate hold it to that.
//!
//! Words that spell a control token (`<|user|>`, `<|image|>`) are refused, see
//! [`Processor::with_special_tokens_allowed`]; nothing is fetched from the network without
//! [`Processor::with_http`].
//!
//! ```no_run
//! use glm4v_processor::{Processor, RenderOptions, parse_messages};
//!
//! let processor = Processor::load("GLM-4.1V-9B-Thinking".as_ref())?;
//! let messages = parse_messages(
//!     r#"[{"role": "user", "content": [
//!         {"type": "image", "path": "scan.png"}, {"type": "text", "text": "Read the text."}]}]"#,
//!     ".".as_ref(),
//! )?;
//! let encoded = processor.encode(&messages, &RenderOptions::prompt())?;
//! assert_eq!(encoded.input_ids.len(), encoded.mm_token_type_ids.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
    ClipInfo, PatchedVideo, Sampling, SamplingRule, VideoConfig, VideoError, VideoLimits, VideoProcessor,
};
