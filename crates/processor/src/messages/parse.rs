//! Messages from JSON and back, with the index of message and part in errors.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::message::{Content, ContentPart, Message};
use crate::media::{ImageSource, VideoInput, VideoSource};

/// Error of parsing messages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessagesError {
    /// Invalid JSON.
    #[error("messages, line {line}, column {column}: not valid json")]
    Json {
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// JSON, but not a list of messages.
    #[error("messages: found {found}, needed a list of objects with \"role\" and \"content\"")]
    NotAList {
        /// Type of the value.
        found: &'static str,
    },
    /// An entry of the list is not an object.
    #[error("message {message}: found {found}, needed an object with \"role\" and \"content\"")]
    NotAnObject {
        /// Index of the message.
        message: usize,
        /// Type of the value.
        found: &'static str,
    },
    /// A required key is missing or has the wrong type.
    #[error("message {message}: \"{key}\" is {found}, needed {needed}")]
    Key {
        /// Index of the message.
        message: usize,
        /// Name of the key.
        key: &'static str,
        /// Type of the value.
        found: &'static str,
        /// Valid types.
        needed: &'static str,
    },
    /// A part of a type that no model of this family supports.
    #[error(
        "message {message}, part {part}: unknown type \"{found}\"; \
         known are text, image, image_url, video, video_url"
    )]
    PartType {
        /// Index of the message.
        message: usize,
        /// Index of the part.
        part: usize,
        /// Value of `type`.
        found: String,
    },
    /// A part without the key of its content, or with a value of the wrong type.
    #[error("message {message}, part {part}: found {found}, needed {needed}")]
    PartValue {
        /// Index of the message.
        message: usize,
        /// Index of the part.
        part: usize,
        /// Type of the part.
        found: &'static str,
        /// Valid keys and values.
        needed: &'static str,
    },
}

/// Parses a conversation; paths are relative to `base_dir`.
///
/// # Errors
///
/// Invalid JSON with line and column, or the first invalid message or part.
///
/// # Examples
///
/// ```
/// use glm4v_processor::parse_messages;
///
/// let json = r#"[{"role": "user", "content": [
///     {"type": "image", "path": "scan.png"},
///     {"type": "text", "text": "What digit is this?"}
/// ]}]"#;
/// let messages = parse_messages(json, "/data".as_ref())?;
/// assert_eq!(messages[0].images().count(), 1);
///
/// let error = parse_messages(r#"[{"role": "user"}]"#, "/data".as_ref()).unwrap_err();
/// assert!(error.to_string().starts_with("message 0: \"content\" is missing"));
/// # Ok::<(), glm4v_processor::MessagesError>(())
/// ```
pub fn parse_messages(json: &str, base_dir: &Path) -> Result<Vec<Message>, MessagesError> {
    let value: Value = serde_json::from_str(json).map_err(|source| MessagesError::Json {
        line: source.line(),
        column: source.column(),
        source,
    })?;
    let Value::Array(values) = value else {
        return Err(MessagesError::NotAList { found: type_name(&value) });
    };
    let indexed = values.into_iter().enumerate();
    indexed.map(|(index, value)| message(index, value, base_dir)).collect()
}

fn message(index: usize, value: Value, base: &Path) -> Result<Message, MessagesError> {
    let Value::Object(mut keys) = value else {
        return Err(MessagesError::NotAnObject { message: index, found: type_name(&value) });
    };
    let bad = |key, value: Option<Value>, needed| MessagesError::Key {
        message: index,
        key,
        found: value.as_ref().map_or("missing", type_name),
        needed,
    };
    let role = match keys.shift_remove("role") {
        Some(Value::String(role)) => role,
        other => return Err(bad("role", other, "a string")),
    };
    let content = match keys.shift_remove("content") {
        Some(Value::String(text)) => Content::Text(text),
        Some(Value::Array(values)) => {
            let indexed = values.into_iter().enumerate();
            let parts = indexed.map(|(at, value)| part(index, at, value, base));
            Content::Parts(parts.collect::<Result<_, _>>()?)
        }
        // OpenAI writes null, or leaves the key out, for a message that only calls tools.
        None | Some(Value::Null) if keys.contains_key("tool_calls") => Content::Text(String::new()),
        other => return Err(bad("content", other, "a string or a list of parts")),
    };
    Ok(Message { role, content, extra: keys })
}

fn part(message: usize, part: usize, value: Value, base: &Path) -> Result<ContentPart, MessagesError> {
    let bad = |found, needed| MessagesError::PartValue { message, part, found, needed };
    let keys = match value {
        Value::Object(keys) => keys,
        Value::String(text) => return Ok(ContentPart::Text { text }),
        other => return Err(bad(type_name(&other), "an object with \"type\"")),
    };
    let part_type = match keys.get("type") {
        Some(Value::String(name)) => name.as_str(),
        // Hugging Face's templates infer the type from the key when it is left out.
        None => ["image", "video", "text"]
            .into_iter()
            .find(|key| keys.contains_key(*key))
            .ok_or_else(|| bad("a part without \"type\"", "text, image or video"))?,
        Some(_) => return Err(bad("a \"type\" that is no string", "text, image or video")),
    };
    match part_type {
        "text" => match keys.get("text") {
            Some(Value::String(text)) => Ok(ContentPart::text(text)),
            _ => Err(bad("a text part", "\"text\" with a string")),
        },
        "image" | "image_url" => match source(&keys, "image", "image_url") {
            Some(value) => Ok(ContentPart::Image(ImageSource::parse(value, base))),
            None => Err(bad("an image part", "\"path\", \"url\" or \"image\" with a path or a URL")),
        },
        "video" | "video_url" => Ok(ContentPart::Video(video(&keys, base, bad)?)),
        other => Err(MessagesError::PartType { message, part, found: other.to_owned() }),
    }
}

/// The source and frame rate of a video part; `bad` makes errors.
fn video(
    keys: &Map<String, Value>,
    base: &Path,
    bad: impl Fn(&'static str, &'static str) -> MessagesError,
) -> Result<VideoInput, MessagesError> {
    let mut video = match (source(keys, "video", "video_url"), keys.get("video")) {
        (Some(value), _) => VideoInput::parse(value, base),
        (None, Some(Value::Array(frames))) => {
            let frames = frames.iter().map(|frame| Some(ImageSource::parse(frame.as_str()?, base)));
            let frames = frames.collect::<Option<Vec<_>>>();
            let error = || bad("a list of frames that are not strings", "paths or URLs of images");
            VideoSource::Frames(frames.ok_or_else(error)?).into()
        }
        _ => {
            let needed = "\"path\", \"url\" or \"video\" with a path or a URL, or a list of them";
            return Err(bad("a video part", needed));
        }
    };
    video.frame_rate = match keys.get("frame_rate") {
        None | Some(Value::Null) => None,
        Some(rate) => {
            let error = || bad("a \"frame_rate\" that is no number", "frames a second");
            Some(rate.as_f64().ok_or_else(error)?)
        }
    };
    Ok(video)
}

/// The path or URL of a part, under any of the keys in use.
fn source<'a>(keys: &'a Map<String, Value>, own: &str, nested: &str) -> Option<&'a str> {
    let plain = ["path", "url", own];
    let mut plain = plain.into_iter().filter_map(|key| keys.get(key)?.as_str());
    plain.next().or_else(|| {
        let value = keys.get(nested)?;
        value.as_str().or_else(|| value.get("url")?.as_str())
    })
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl TryFrom<Value> for Message {
    type Error = MessagesError;

    /// Parses one message; paths stay relative.
    fn try_from(value: Value) -> Result<Self, MessagesError> {
        message(0, value, Path::new(""))
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Self {
        let content = match message.content {
            Content::Text(text) => Value::String(text),
            Content::Parts(parts) => parts.into_iter().map(part_value).collect(),
        };
        let mut keys = Map::new();
        keys.insert("role".to_owned(), Value::String(message.role));
        keys.insert("content".to_owned(), content);
        keys.extend(message.extra);
        Value::Object(keys)
    }
}

fn part_value(part: ContentPart) -> Value {
    match part {
        ContentPart::Text { text } => json!({"type": "text", "text": text}),
        ContentPart::Image(image) => {
            let (key, value) = image_value(image);
            json!({"type": "image", key: value})
        }
        ContentPart::Video(VideoInput { data, frame_rate }) => {
            let mut part = match data {
                VideoSource::Path(path) => json!({"type": "video", "path": path.to_string_lossy()}),
                VideoSource::Url(url) => json!({"type": "video", "url": url}),
                VideoSource::Bytes(bytes) => json!({"type": "video", "url": data_url(&bytes)}),
                VideoSource::Frames(frames) => {
                    let frames: Value = frames.into_iter().map(|frame| image_value(frame).1).collect();
                    json!({"type": "video", "video": frames})
                }
            };
            if let Some(rate) = frame_rate {
                part["frame_rate"] = json!(rate);
            }
            part
        }
    }
}

/// Key and value of an image in JSON.
fn image_value(image: ImageSource) -> (&'static str, String) {
    match image {
        ImageSource::Path(path) => ("path", path.to_string_lossy().into_owned()),
        ImageSource::Url(url) => ("url", url),
        ImageSource::Bytes(bytes) => ("url", data_url(&bytes)),
        ImageSource::Pixels(image) => ("url", data_url(&image.to_png())),
    }
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:application/octet-stream;base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn refused(json: &str) -> String {
        let error = parse_messages(json, Path::new("/data")).unwrap_err();
        error.to_string()
    }

    #[test]
    fn every_form_of_an_image_is_parsed() {
        let json = r#"[{"role": "user", "content": [
            {"type": "image", "path": "a.png"}, {"type": "image", "url": "b.png"},
            {"type": "image", "image": "c.png"}, {"image": "d.png"},
            {"type": "image_url", "image_url": {"url": "file:///e.png"}},
            {"type": "image_url", "image_url": "/f.png"},
            {"type": "image", "url": "DATA:image/png;base64,AA=="},
            {"type": "image", "url": "https://example.org/g.png"}]}]"#;

        let messages = parse_messages(json, Path::new("/data")).unwrap();
        let found: Vec<_> = messages[0].images().cloned().collect();

        let path = |p: &str| ImageSource::Path(PathBuf::from(p));
        let url = |u: &str| ImageSource::Url(u.to_owned());
        let beside = ["/data/a.png", "/data/b.png", "/data/c.png", "/data/d.png"];
        assert_eq!(found[..4], beside.map(path));
        assert_eq!(found[4..6], ["/e.png", "/f.png"].map(path));
        assert_eq!(found[6], url("DATA:image/png;base64,AA=="));
        assert_eq!(found[7], url("https://example.org/g.png"));
    }

    #[test]
    fn unknown_keys_of_a_message_are_kept_in_order() {
        let json = r#"[{"role": "assistant", "reasoning_content": "r", "content": "c", "name": "n"}]"#;

        let messages = parse_messages(json, Path::new("")).unwrap();

        let keys: Vec<_> = messages[0].extra.keys().collect();
        assert_eq!(keys, ["reasoning_content", "name"]);
    }

    #[test]
    fn a_message_that_only_calls_tools_may_have_no_content() {
        let json = r#"[{"role": "assistant", "content": null, "tool_calls": []}]"#;

        let messages = parse_messages(json, Path::new("")).unwrap();

        assert_eq!(messages[0].content, Content::Text(String::new()));
    }

    #[test]
    fn messages_survive_a_round_trip() {
        let json = r#"[{"role": "user", "content": [{"type": "text", "text": "a"},
            {"type": "video", "path": "v.mp4"},
            {"type": "image", "url": "data:image/png;base64,AA=="}], "name": "x"}]"#;
        let messages = parse_messages(json, Path::new("/d")).unwrap();

        let written = serde_json::to_string(&messages).unwrap();

        let read: Vec<Message> = serde_json::from_str(&written).unwrap();
        assert_eq!(read, messages);
    }

    #[test]
    fn invalid_json_is_located_by_line_and_column() {
        let text = refused("[\n  {\"role\": }\n]");
        assert_eq!(text, "messages, line 2, column 12: not valid json");
    }

    #[test]
    fn an_unknown_part_is_located_by_index() {
        let json = r#"[{"role": "system", "content": "s"}, {"role": "user", "content": [
            {"type": "text", "text": "t"}, {"type": "audio", "path": "x"}]}]"#;
        let text = refused(json);
        let needed = "message 1, part 1: unknown type \"audio\"; \
                      known are text, image, image_url, video, video_url";
        assert_eq!(text, needed);
    }

    #[test]
    fn wrong_types_are_named() {
        let user = |content: &str| format!(r#"[{{"role": "user", "content": {content}}}]"#);
        let part = |part: &str| user(&format!("[{part}]"));
        let cases = [
            ("{}".to_owned(), "messages: found an object, needed a list"),
            ("[3]".to_owned(), "message 0: found a number, needed an object"),
            (r#"[{"content": ""}]"#.to_owned(), "message 0: \"role\" is missing"),
            (user("1"), "message 0: \"content\" is a number, needed a string"),
            (user("null"), "message 0: \"content\" is null, needed a string"),
            (part(r#"{"type": "image"}"#), "message 0, part 0: found an image part, needed"),
            (part(r#"{"type": "text"}"#), "message 0, part 0: found a text part, needed"),
            (part(r#"{"type": 3}"#), "message 0, part 0: found a \"type\" that is no string"),
            (part("{}"), "message 0, part 0: found a part without \"type\""),
            (part("7"), "message 0, part 0: found a number, needed an object"),
        ];
        for (json, start) in cases {
            let text = refused(&json);
            assert!(text.starts_with(start), "{json}: {text}");
        }
    }
}
