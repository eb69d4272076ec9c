//! The messages of a record, with the keys and roles of chat templates.

use serde_json::{Map, Value, json};

use super::error::RecordError;
use super::key_location::KeyLocation;
use super::keys::{UnknownKeys, check_remaining, is_empty_value, take_loss};
use super::prompt_response::take_prompt_response;
use crate::names::join_names;
use crate::schema::{Formatting, RecordSchema, Role, key_or};

/// Takes the messages out of a record of any style. `placeholders` are those of all its listed media, for styles with one place for
/// them.
pub(super) fn take_messages(
    record: &mut Map<String, Value>,
    schema: &RecordSchema,
    placeholders: &str,
    unknown: &mut UnknownKeys,
) -> Result<Vec<Value>, RecordError> {
    let (values, schema) = match take_prompt_response(record, schema, placeholders)? {
        Some(values) => (values, &RecordSchema { formatting: Formatting::OpenAi, ..RecordSchema::default() }),
        None => (take_list(record, schema)?, schema),
    };
    let messages = values.into_iter().enumerate();
    messages.map(|(index, value)| convert_message(index, value, schema, unknown)).collect()
}

/// Moves the system prompt of a record into a first message.
pub(super) fn take_system_prompt(
    record: &mut Map<String, Value>,
    schema: &RecordSchema,
    messages: &mut Vec<Value>,
) -> Result<(), RecordError> {
    let key = key_or(&schema.columns.system, "system");
    match record.shift_remove(key) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => messages.insert(0, json!({"role": "system", "content": text})),
        other => {
            return Err(RecordError::wrong_type(format!("\"{key}\""), other.as_ref(), "a string"));
        }
    }
    Ok(())
}

/// Takes `messages` or `conversations`.
fn take_list(record: &mut Map<String, Value>, schema: &RecordSchema) -> Result<Vec<Value>, RecordError> {
    let column = match (&schema.columns.messages, schema.formatting) {
        (Some(column), _) => column.as_str(),
        (None, Formatting::OpenAi) => "messages",
        (None, Formatting::ShareGpt) => "conversations",
        (None, _) => match ["messages", "conversations"].map(|key| record.contains_key(key)) {
            [true, true] => return Err(RecordError::TwoConversations),
            [false, true] => "conversations",
            _ => "messages",
        },
    };
    let key = format!("\"{column}\"");
    let needed = "a list of messages";
    match record.shift_remove(column) {
        Some(Value::Array(values)) if !values.is_empty() => Ok(values),
        Some(Value::Array(_)) => Err(RecordError::WrongType { key, found: "empty", needed }),
        None => Err(no_messages(record, column)),
        other => Err(RecordError::wrong_type(key, other.as_ref(), needed)),
    }
}

/// The error of a record without messages, by its other keys.
fn no_messages(record: &Map<String, Value>, column: &str) -> RecordError {
    let text = ["text", "content"].into_iter().find(|key| record.get(*key).is_some_and(Value::is_string));
    match text {
        Some(key) => RecordError::PlainText { key },
        None => {
            let found = join_names(record.keys().map(String::as_str));
            RecordError::NoMessages { needed: column.to_owned(), found }
        }
    }
}

fn convert_message(
    index: usize,
    value: Value,
    schema: &RecordSchema,
    unknown: &mut UnknownKeys,
) -> Result<Value, RecordError> {
    let location = KeyLocation::Message { message: index };
    let Value::Object(mut keys) = value else {
        return Err(RecordError::wrong_type(format!("message {index}"), Some(&value), "an object"));
    };
    let message_keys = MessageKeys::find(&keys, schema);
    let role = take_role(location, &mut keys, message_keys.role, schema)?;
    let content = take_content(location, &mut keys, message_keys.content, schema)?;
    check_parts(index, &content, unknown)?;
    let loss = take_loss(location, &mut keys)?;
    if loss.is_some_and(|weight| weight > 0.0) && role.name() != "assistant" {
        return Err(RecordError::LossOutsideAssistant { message: index, role: role.name() });
    }
    check_remaining(location, &keys, unknown)?;

    let mut message = json!({"role": role.name(), "content": content});
    if role == Role::FunctionCall {
        message["tool_calls"] = parse_tool_calls(index, &message["content"])?;
        message["content"] = Value::String(String::new());
    }
    match loss {
        Some(0.0) => message["loss"] = Value::Bool(false),
        Some(weight) if weight != 1.0 => message["weight"] = weight.into(),
        _ => {}
    }
    for (key, value) in keys {
        message[key] = value;
    }
    Ok(message)
}

/// The keys of role and content in one message.
struct MessageKeys<'a> {
    role: &'a str,
    content: &'a str,
}

impl<'a> MessageKeys<'a> {
    fn find(keys: &Map<String, Value>, schema: &'a RecordSchema) -> Self {
        let is_share_gpt = match schema.formatting {
            Formatting::ShareGpt => true,
            Formatting::Auto => !keys.contains_key("role") && keys.contains_key("from"),
            Formatting::OpenAi | Formatting::Alpaca => false,
        };
        let [role, content] = if is_share_gpt { ["from", "value"] } else { ["role", "content"] };
        Self { role: key_or(&schema.tags.role_tag, role), content: key_or(&schema.tags.content_tag, content) }
    }
}

fn take_role(
    location: KeyLocation,
    keys: &mut Map<String, Value>,
    key: &str,
    schema: &RecordSchema,
) -> Result<Role, RecordError> {
    let found = match keys.shift_remove(key) {
        Some(Value::String(found)) => found,
        other => {
            return Err(RecordError::wrong_type(format!("{location}\"{key}\""), other.as_ref(), "a string"));
        }
    };
    schema.role(&found).ok_or_else(|| RecordError::UnknownRole {
        location,
        known: join_names(schema.role_names()),
        found,
    })
}

fn take_content(
    location: KeyLocation,
    keys: &mut Map<String, Value>,
    key: &str,
    schema: &RecordSchema,
) -> Result<Value, RecordError> {
    let text_only = schema.formatting == Formatting::ShareGpt;
    match keys.shift_remove(key) {
        Some(Value::Array(mut parts)) if !text_only => {
            parts.iter_mut().for_each(rename_value);
            Ok(Value::Array(parts))
        }
        Some(Value::String(text)) => Ok(Value::String(text)),
        None | Some(Value::Null) if keys.contains_key("tool_calls") => Ok(Value::String(String::new())),
        other => {
            let needed = match text_only {
                true => "a string; a list of parts has the formatting \"openai\"",
                false => "a string or a list of parts",
            };
            Err(RecordError::wrong_type(format!("{location}\"{key}\""), other.as_ref(), needed))
        }
    }
}

/// Renames `value` in a part, as LLaMA-Factory's newer datasets call every content.
fn rename_value(part: &mut Value) {
    let Value::Object(keys) = part else { return };
    let key = match keys.get("type").and_then(Value::as_str) {
        Some(key @ ("text" | "image" | "image_url" | "video" | "video_url")) => key.to_owned(),
        _ => return,
    };
    if !keys.contains_key(&key)
        && let Some(value) = keys.shift_remove("value")
    {
        keys.insert(key, value);
    }
}

/// Keys of a part's content other than text.
const SOURCES: [&str; 6] = ["path", "url", "image", "video", "image_url", "video_url"];

/// Checks the keys of content that is a list of parts. Values that are no objects are refused where parts are parsed.
fn check_parts(message: usize, content: &Value, unknown: &mut UnknownKeys) -> Result<(), RecordError> {
    for (part, value) in content.as_array().into_iter().flatten().enumerate() {
        if let Value::Object(keys) = value {
            check_part(KeyLocation::ContentPart { message, part }, keys, unknown)?;
        }
    }
    Ok(())
}

/// Refuses a part with two contents or an unsupported key.
fn check_part(
    location: KeyLocation,
    keys: &Map<String, Value>,
    unknown: &mut UnknownKeys,
) -> Result<(), RecordError> {
    let filled = |key: &&str| keys.get(*key).is_some_and(|value| !is_empty_value(value));
    let contents: Vec<&str> = SOURCES.into_iter().chain(["text"]).filter(filled).collect();
    if let [first, second, ..] = contents.as_slice()
        && keys.get(*first) != keys.get(*second)
    {
        let (first, second) = ((*first).to_owned(), (*second).to_owned());
        return Err(RecordError::AmbiguousPart { location, first, second });
    }
    let part_type = keys.get("type").and_then(Value::as_str).unwrap_or_default();
    let is_video = part_type.starts_with("video") || keys.contains_key("video");
    let is_read = |key: &str| {
        ["type", "text"].contains(&key) || SOURCES.contains(&key) || (is_video && key == "frame_rate")
    };
    check_remaining(location, keys.iter().filter(|(key, _)| !is_read(key)), unknown)?;
    for url in ["image_url", "video_url"].into_iter().filter_map(|key| keys.get(key)?.as_object()) {
        // "auto" is OpenAI's default.
        let is_read = |key: &str, value: &Value| key == "url" || (key == "detail" && value == "auto");
        check_remaining(location, url.iter().filter(|(key, value)| !is_read(key, value)), unknown)?;
    }
    Ok(())
}

/// The tool calls in the text of a sharegpt `function_call`.
fn parse_tool_calls(message: usize, content: &Value) -> Result<Value, RecordError> {
    let text = content.as_str().unwrap_or_default();
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call) => vec![call],
        Err(_) => Vec::new(),
    };
    let is_call = |call: &Value| call.get("name").is_some() && call.get("arguments").is_some();
    if calls.is_empty() || !calls.iter().all(is_call) {
        return Err(RecordError::FunctionCall { message, found: text.chars().take(60).collect() });
    }
    Ok(calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect())
}

#[cfg(test)]
mod tests {
    use glm4v_processor::{ImageSource, Message};
    use serde_json::json;

    use super::*;
    use crate::record::test_records::{asked, parse, parse_with, refused};
    use crate::schema::Tags;

    #[test]
    fn every_style_of_one_conversation_gives_the_same_messages() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "image", "path": "1.png"},
            {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "2.png"}}]);
        let open_ai = parse(asked(parts, json!("c"))).unwrap();

        let mut with_list = asked(json!("a<image>b<image>"), json!("c"));
        with_list["images"] = json!(["1.png", {"path": "2.png", "bytes": null}]);
        let share_gpt = json!({"conversations": [{"from": "human", "value": "a<image>b<image>"},
            {"from": "gpt", "value": "c"}], "images": ["1.png", "2.png"]});
        let mut hugging_face = asked(
            json!([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"},
                {"type": "image", "text": null}]),
            json!([{"type": "text", "text": "c"}]),
        );
        hugging_face["images"] = with_list["images"].clone();

        assert_eq!(parse(with_list).unwrap(), open_ai);
        assert_eq!(parse(share_gpt).unwrap(), open_ai);
        let hugging_face = parse(hugging_face).unwrap();
        assert_eq!(hugging_face.messages[0], open_ai.messages[0]);
        let path = |p: &str| ImageSource::Path(p.into());
        assert_eq!(open_ai.images().cloned().collect::<Vec<_>>(), ["d/1.png", "d/2.png"].map(path));
    }

    #[test]
    fn parts_of_newer_llama_factory_datasets_have_a_value() {
        let newer = json!([{"type": "text", "value": "a"}, {"type": "image_url", "value": "1.png"},
            {"type": "video_url", "value": "v.mp4"}]);
        let open_ai = json!([{"type": "text", "text": "a"}, {"type": "image", "path": "1.png"},
            {"type": "video", "path": "v.mp4"}]);

        assert_eq!(parse(asked(newer, json!("b"))).unwrap(), parse(asked(open_ai, json!("b"))).unwrap());
        let audio = refused(asked(json!([{"type": "audio_url", "value": "a.wav"}]), json!("b")));
        assert!(audio.starts_with("message 0, part 0: unknown type \"audio_url\""), "{audio}");
        let both = parse(asked(json!([{"type": "text", "text": "a", "value": "b"}]), json!("b"))).unwrap();
        assert_eq!(both.unknown_keys, ["messages[].content[].value"]);
    }

    #[test]
    fn system_and_tools_may_be_keys_of_the_record() {
        let mut record = asked(json!("a"), json!("b"));
        record["system"] = json!("s");
        record["tools"] = json!("[{\"name\": \"t\"}]");

        let record = parse(record).unwrap();

        assert_eq!(record.messages[0], Message::new("system", "s"));
        assert_eq!(record.messages.len(), 3);
        assert_eq!(record.tools, Some(json!([{"name": "t"}])));
    }

    #[test]
    fn a_function_call_becomes_tool_calls() {
        let turns = |call: &str| {
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": call},
                {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}]})
        };

        let messages = parse(turns(r#"{"name": "f", "arguments": {"x": 1}}"#)).unwrap().messages;

        let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        assert_eq!(messages[1].role, "assistant");
        assert_eq!(messages[1].extra["tool_calls"], call);
        assert_eq!(messages[2].role, "tool");
        let error = "message 1: a function call needs json with \"name\" and \"arguments\", found \"f(1)\"";
        assert_eq!(refused(turns("f(1)")), error);
    }

    #[test]
    fn columns_and_tags_of_the_schema_come_before_detected_ones() {
        let text = |text: &str| Some(text.to_owned());
        let tags = Tags { role_tag: text("who"), content_tag: text("text"), ..Tags::default() };
        let tags = Tags { user_tag: text("me"), assistant_tag: text("it"), ..tags };
        let mut schema = RecordSchema { tags, ..RecordSchema::default() };
        schema.columns.messages = text("talk");
        schema.columns.images = text("scans");
        let mut record = json!({"talk": [{"who": "me", "text": "<image>"}, {"who": "it", "text": "b"}],
            "messages": "ignored", "scans": ["1.png"]});

        assert_eq!(parse_with(record.clone(), &schema).unwrap().images().count(), 1);

        record["talk"][0]["who"] = json!("user");
        let error = parse_with(record, &schema).unwrap_err().to_string();
        let known = "known are me, it, tool, observation, function_call, system";
        assert_eq!(error, format!("message 0: unknown role \"user\"; {known}"));
    }

    #[test]
    fn a_given_formatting_is_not_detected() {
        let open_ai = asked(json!([{"type": "text", "text": "a"}]), json!("b"));
        let share_gpt =
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]});
        let as_form = |value: &Value, formatting| {
            let schema = RecordSchema { formatting, ..RecordSchema::default() };
            parse_with(value.clone(), &schema).map(|_| ()).map_err(|error| error.to_string())
        };

        assert_eq!(as_form(&open_ai, Formatting::OpenAi), Ok(()));
        assert_eq!(as_form(&share_gpt, Formatting::ShareGpt), Ok(()));
        let missing = as_form(&share_gpt, Formatting::OpenAi).unwrap_err();
        assert!(missing.starts_with("has no \"messages\"; its keys are conversations;"), "{missing}");
        let mut both = open_ai;
        both["conversations"] = both["messages"].clone();
        assert_eq!(as_form(&both, Formatting::OpenAi), Ok(()));
        assert!(as_form(&both, Formatting::Auto).unwrap_err().starts_with("has \"messages\" and"));
        both["conversations"][0] = json!({"from": "human", "value": [{"type": "text", "text": "a"}]});
        let parts = as_form(&both, Formatting::ShareGpt).unwrap_err();
        assert_eq!(
            parts,
            "message 0: \"value\" is a list, needed a string; a list of parts has the formatting \"openai\""
        );
    }
}
