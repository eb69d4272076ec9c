//! Conversations in JSON: `[{"role", "content"}]`.
//!
//! The format is OpenAI's, extended by the forms of Hugging Face for local files. Content is a string or a list of parts:
//!
//! - `{"type":"text","text"}`
//! - `{"type":"image","path"|"url"|"image"}` and `{"type":"image_url","image_url":{"url"}}`
//! - the same two for `video`, whose value may also be a folder or a list of images, with an optional `frame_rate`
//!
//! A value is a path, a `file://` or a `data:` URL, or an `http(s)` URL where downloads are allowed. Other keys of a message
//! (`reasoning_content`, `tool_calls`, `metadata`) are passed to the chat template unchanged.

mod message;
mod parse;

pub use message::{Content, ContentPart, Message};
pub use parse::{MessagesError, parse_messages};
