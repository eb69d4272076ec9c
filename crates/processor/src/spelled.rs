//! Control tokens that the words of a conversation spell.
//!
//! A tokenizer cuts `<|user|>` out of any text, so words that spell it would open a turn that nobody
//! took, and words that spell `<|image|>` would take the image of another place. The published
//! processors let them. Here a text that spells such a token is refused, in content, in every other key
//! of a message and in the tools; `Processor::with_special_tokens_allowed` gives the published way.
//!
//! What a model writes itself (`<think>`, `<answer>`, boxes, calls of tools) is no control token here,
//! whatever the tokenizer calls it: conversations hold it.

use std::fmt;

use serde_json::Value;

use crate::messages::{Content, Message, Part};
use crate::template::RenderOptions;

/// Tokens that stand in answers.
const OF_ANSWERS: [&str; 15] = [
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
pub(crate) fn is_control(token: &str) -> bool {
    !token.is_empty() && !OF_ANSWERS.contains(&token)
}

/// Where in a conversation words stand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The content of a message.
    Message {
        /// Index of the message.
        message: usize,
    },
    /// A part of a message, or the seam behind it.
    Part {
        /// Index of the message.
        message: usize,
        /// Index of the part.
        part: usize,
    },
    /// Another key of a message.
    Key {
        /// Index of the message.
        message: usize,
        /// The key.
        key: String,
    },
    /// The tools.
    Tools,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { message } => write!(f, "message {message}"),
            Self::Part { message, part } => write!(f, "message {message}, part {part}"),
            Self::Key { message, key } => write!(f, "message {message}, \"{key}\""),
            Self::Tools => f.write_str("tools"),
        }
    }
}

/// The first place that spells one of the tokens, and which.
pub(crate) fn find<'a>(
    messages: &[Message],
    options: &RenderOptions,
    control: &'a [String],
) -> Option<(Place, &'a str)> {
    let first = |text: &str| control.iter().find(|token| text.contains(token.as_str())).map(String::as_str);
    let of_message = |(message, own): (usize, &Message)| {
        let content = match &own.content {
            Content::Text(text) => first(text).map(|token| (Place::Message { message }, token)),
            Content::Parts(parts) => of_parts(message, parts, &first),
        };
        let role = || first(&own.role).map(|token| (Place::Key { message, key: "role".to_owned() }, token));
        let extra = || {
            own.extra.iter().find_map(|(key, value)| {
                let token = first(key).or_else(|| within(value, &first))?;
                Some((Place::Key { message, key: key.clone() }, token))
            })
        };
        content.or_else(role).or_else(extra)
    };
    let tools = || within(options.tools.as_ref()?, &first).map(|token| (Place::Tools, token));
    messages.iter().enumerate().find_map(of_message).or_else(tools)
}

/// Parts that follow each other are joined by templates, so a token may begin in one and end in another.
fn of_parts<'a>(
    message: usize,
    parts: &[Part],
    first: &impl Fn(&str) -> Option<&'a str>,
) -> Option<(Place, &'a str)> {
    let mut joined = String::new();
    let mut begin = 0;
    for (part, own) in parts.iter().enumerate() {
        let Part::Text { text } = own else {
            joined.clear();
            begin = part + 1;
            continue;
        };
        joined.push_str(text);
        if let Some(token) = first(&joined) {
            // The part in which it begins.
            let at = joined.find(token).unwrap_or(0);
            let mut end = 0;
            let holds = parts[begin..].iter().position(|own| {
                let Part::Text { text } = own else { return true };
                end += text.len();
                at < end
            });
            return Some((Place::Part { message, part: begin + holds.unwrap_or(0) }, token));
        }
    }
    None
}

fn within<'a>(value: &Value, first: &impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    match value {
        Value::String(text) => first(text),
        Value::Array(items) => items.iter().find_map(|item| within(item, first)),
        Value::Object(items) => {
            items.iter().find_map(|(key, item)| first(key).or_else(|| within(item, first)))
        }
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
        let options = RenderOptions { tools, ..RenderOptions::default() };
        find(&messages, &options, &control).map(|(place, token)| format!("{place}: {token}"))
    }

    fn user(content: Value) -> Value {
        json!([{"role": "system", "content": "s"}, {"role": "user", "content": content}])
    }

    #[test]
    fn every_place_of_a_conversation_is_looked_at() {
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
    fn what_stands_in_answers_is_no_control_token() {
        assert!(is_control("<|user|>") && is_control("[gMASK]"));
        assert!(!is_control("<think>") && !is_control("/nothink"));
    }
}
