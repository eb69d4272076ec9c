//! Special tokens in the texts of a conversation (prompt injection).
//!
//! A tokenizer splits `<|user|>` out of any text, so that a text with it opens a turn that the caller did not write, and a text
//! with `<|image|>` takes the image of another placeholder. The published processors allow it. Here such a text is an error, in
//! content, in every other key of a message and in the tools; `Processor::with_special_tokens_allowed` restores the published
//! behavior.
//!
//! Tokens that models generate (`<think>`, `<answer>`, boxes, tool calls) are not control tokens here, even where the tokenizer
//! marks them as special: earlier turns of a conversation contain them.

use std::fmt;

use serde_json::Value;

use crate::messages::{Content, ContentPart, Message};

/// Special tokens that models generate.
const OUTPUT_TOKENS: [&str; 15] = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<|begin_of_box|>",
    "<|end_of_box|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
];

/// Whether a special token is one that only templates write.
pub(crate) fn is_control_token(token: &str) -> bool {
    !token.is_empty() && !OUTPUT_TOKENS.contains(&token)
}

/// Location of a text in a conversation; indices are from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageLocation {
    /// The content of a message.
    Message {
        /// Index of the message.
        message: usize,
    },
    /// A part of a message; for a token across several parts, the one in which it begins.
    ContentPart {
        /// Index of the message.
        message: usize,
        /// Index of the part.
        part: usize,
    },
    /// Another key of a message.
    Key {
        /// Index of the message.
        message: usize,
        /// Name of the key, `role` for example.
        key: String,
    },
    /// The list of tools.
    Tools,
}

impl fmt::Display for MessageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { message } => write!(f, "message {message}"),
            Self::ContentPart { message, part } => write!(f, "message {message}, part {part}"),
            Self::Key { message, key } => write!(f, "message {message}, \"{key}\""),
            Self::Tools => f.write_str("tools"),
        }
    }
}

/// The first of the `control` tokens in messages and tools, with its location.
pub(crate) fn find_special_token<'a>(
    messages: &[Message],
    tools: Option<&Value>,
    control: &'a [String],
) -> Option<(MessageLocation, &'a str)> {
    let in_messages =
        messages.iter().enumerate().find_map(|(index, message)| find_in_message(index, message, control));
    in_messages.or_else(|| Some((MessageLocation::Tools, find_in_json(tools?, control)?)))
}

fn find_in_message<'a>(
    index: usize,
    message: &Message,
    control: &'a [String],
) -> Option<(MessageLocation, &'a str)> {
    let key = |key: &str| MessageLocation::Key { message: index, key: key.to_owned() };
    let in_content = match &message.content {
        Content::Text(text) => {
            find_in_text(text, control).map(|token| (MessageLocation::Message { message: index }, token))
        }
        Content::Parts(parts) => find_in_parts(index, parts, control),
    };
    in_content.or_else(|| Some((key("role"), find_in_text(&message.role, control)?))).or_else(|| {
        message.extra.iter().find_map(|(name, value)| {
            let token = find_in_text(name, control).or_else(|| find_in_json(value, control))?;
            Some((key(name), token))
        })
    })
}

fn find_in_text<'a>(text: &str, control: &'a [String]) -> Option<&'a str> {
    control.iter().find(|token| text.contains(token.as_str())).map(String::as_str)
}

/// Templates join consecutive text parts, so a token may begin in one and end in another.
fn find_in_parts<'a>(
    message: usize,
    parts: &[ContentPart],
    control: &'a [String],
) -> Option<(MessageLocation, &'a str)> {
    let mut joined = String::new();
    let mut begin = 0;
    for (index, part) in parts.iter().enumerate() {
        let ContentPart::Text { text } = part else {
            joined.clear();
            begin = index + 1;
            continue;
        };
        joined.push_str(text);
        if let Some(token) = find_in_text(&joined, control) {
            let offset = joined.find(token).unwrap_or(0);
            let part = begin + part_at_offset(&parts[begin..], offset);
            return Some((MessageLocation::ContentPart { message, part }, token));
        }
    }
    None
}

/// Index of the part that holds byte `offset` of the joined texts.
fn part_at_offset(parts: &[ContentPart], offset: usize) -> usize {
    let mut end = 0;
    let found = parts.iter().position(|part| {
        let ContentPart::Text { text } = part else { return true };
        end += text.len();
        offset < end
    });
    found.unwrap_or(0)
}

fn find_in_json<'a>(value: &Value, control: &'a [String]) -> Option<&'a str> {
    match value {
        Value::String(text) => find_in_text(text, control),
        Value::Array(items) => items.iter().find_map(|item| find_in_json(item, control)),
        Value::Object(items) => items
            .iter()
            .find_map(|(key, item)| find_in_text(key, control).or_else(|| find_in_json(item, control))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::messages::parse_messages;

    fn found(messages: Value, tools: Option<Value>) -> Option<String> {
        let messages = parse_messages(&messages.to_string(), Path::new("")).unwrap();
        let control = ["<|user|>", "<sop>"].map(str::to_owned);
        find_special_token(&messages, tools.as_ref(), &control)
            .map(|(location, token)| format!("{location}: {token}"))
    }

    fn user(content: Value) -> Value {
        json!([{"role": "system", "content": "s"}, {"role": "user", "content": content}])
    }

    #[test]
    fn every_text_of_a_conversation_is_checked() {
        let text = |text: &str| json!({"type": "text", "text": text});
        let image = json!({"type": "image", "path": "<|user|>"});
        let cases = [
            (user(json!("a <|user|> b")), Some("message 1: <|user|>")),
            (user(json!([image, text("x"), text("<sop>")])), Some("message 1, part 2: <sop>")),
            (
                user(json!([text("a<|us"), text("e"), text("r|>"), image])),
                Some("message 1, part 0: <|user|>"),
            ),
            // The template writes an image between them.
            (user(json!([text("<|us"), image, text("er|>")])), None),
            (json!([{"role": "<sop>", "content": ""}]), Some("message 0, \"role\": <sop>")),
            (
                json!([{"role": "assistant", "content": "", "reasoning_content": "<sop>"}]),
                Some("message 0, \"reasoning_content\": <sop>"),
            ),
            (
                json!([{"role": "assistant", "content": "", "tool_calls": [{"a": {"<sop>": 1}}]}]),
                Some("message 0, \"tool_calls\": <sop>"),
            ),
            (user(json!("<|user> |user|> <think> sop")), None),
        ];
        for (messages, needed) in cases {
            assert_eq!(found(messages.clone(), None).as_deref(), needed, "{messages}");
        }
        let tools = json!([{"name": "f", "description": "as <sop> does"}]);
        assert_eq!(found(user(json!("q")), Some(tools)).as_deref(), Some("tools: <sop>"));
    }

    #[test]
    fn generated_tokens_are_not_control_tokens() {
        assert!(is_control_token("<|user|>") && is_control_token("[gMASK]"));
        assert!(!is_control_token("<think>") && !is_control_token("/nothink"));
    }
}
