//! The turns of a record, with the keys and roles that chat templates know.

use serde_json::{Map, Value, json};

use crate::forms;
use crate::keys::{self, Place, Unread};
use crate::layout::{Formatting, Layout, Speaker};
use crate::record::{RecordError, kind, name};
use crate::suggest::list;

/// Takes the turns out of a record, whatever its form.
pub(crate) fn turns(
    record: &mut Map<String, Value>,
    layout: &Layout,
    unread: &mut Unread,
) -> Result<Vec<Value>, RecordError> {
    let (values, layout) = match forms::take(record, layout)? {
        Some(values) => (values, &Layout { formatting: Formatting::OpenAi, ..Layout::default() }),
        None => (listed(record, layout)?, layout),
    };
    let turns = values.into_iter().enumerate().map(|(index, value)| turn(index, value, layout, unread));
    turns.collect()
}

/// Puts the text of the system that stands beside the turns before them.
pub(crate) fn with_system(
    record: &mut Map<String, Value>,
    layout: &Layout,
    turns: &mut Vec<Value>,
) -> Result<(), RecordError> {
    let key = name(&layout.columns.system, "system");
    match record.shift_remove(key) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => turns.insert(0, json!({"role": "system", "content": text})),
        other => return Err(kind(format!("\"{key}\""), other.as_ref(), "a string")),
    }
    Ok(())
}

/// The list of turns of the two forms that have one.
fn listed(record: &mut Map<String, Value>, layout: &Layout) -> Result<Vec<Value>, RecordError> {
    let column = match (&layout.columns.messages, layout.formatting) {
        (Some(column), _) => column.as_str(),
        (None, Formatting::OpenAi) => "messages",
        (None, Formatting::ShareGpt) => "conversations",
        (None, _) => match ["messages", "conversations"].map(|key| record.contains_key(key)) {
            [true, true] => return Err(RecordError::TwoConversations),
            [false, true] => "conversations",
            _ => "messages",
        },
    };
    match record.shift_remove(column) {
        Some(Value::Array(values)) if !values.is_empty() => Ok(values),
        Some(Value::Array(_)) => Err(RecordError::Kind {
            key: format!("\"{column}\""),
            found: "empty",
            needed: "a list of messages",
        }),
        None => Err(forms::missing(record, column)),
        other => Err(kind(format!("\"{column}\""), other.as_ref(), "a list of messages")),
    }
}

fn turn(index: usize, value: Value, layout: &Layout, unread: &mut Unread) -> Result<Value, RecordError> {
    let place = Place::Message { message: index };
    let Value::Object(mut keys) = value else {
        return Err(kind(format!("message {index}"), Some(&value), "an object"));
    };
    let speaker = speaker(place, &mut keys, layout)?;
    let content = content(place, &mut keys, layout, unread)?;
    let loss = keys::take_loss(place, &mut keys)?;
    if loss == Some(true) && speaker.role() != "assistant" {
        return Err(RecordError::LossElsewhere { message: index, role: speaker.role() });
    }
    keys::pass_over(place, &keys, unread)?;

    let mut turn = json!({"role": speaker.role(), "content": content});
    if speaker == Speaker::FunctionCall {
        turn["tool_calls"] = tool_calls(index, &turn["content"])?;
        turn["content"] = Value::String(String::new());
    }
    if loss == Some(false) {
        turn["loss"] = Value::Bool(false);
    }
    for (key, value) in keys {
        turn[key] = value;
    }
    Ok(turn)
}

/// Whether the keys of a turn are sharegpt's.
fn is_share_gpt(keys: &Map<String, Value>, layout: &Layout) -> bool {
    match layout.formatting {
        Formatting::ShareGpt => true,
        Formatting::Auto => !keys.contains_key("role") && keys.contains_key("from"),
        Formatting::OpenAi | Formatting::Alpaca => false,
    }
}

fn speaker(place: Place, keys: &mut Map<String, Value>, layout: &Layout) -> Result<Speaker, RecordError> {
    let own = if is_share_gpt(keys, layout) { "from" } else { "role" };
    // What the content is called depends on the key that is taken here.
    let key = name(&layout.tags.role_tag, own);
    let found = match keys.get(key) {
        Some(Value::String(found)) => found,
        other => return Err(kind(format!("{place}\"{key}\""), other, "a string")),
    };
    layout.speaker(found).ok_or_else(|| RecordError::UnknownRole {
        place,
        found: found.clone(),
        known: list(layout.speaker_names()),
    })
}

fn content(
    place: Place,
    keys: &mut Map<String, Value>,
    layout: &Layout,
    unread: &mut Unread,
) -> Result<Value, RecordError> {
    let own = if is_share_gpt(keys, layout) { ["from", "value"] } else { ["role", "content"] };
    keys.shift_remove(name(&layout.tags.role_tag, own[0]));
    let key = name(&layout.tags.content_tag, own[1]);
    let of = |other: Option<&Value>, needed| kind(format!("{place}\"{key}\""), other, needed);
    match keys.shift_remove(key) {
        Some(Value::Array(parts)) if layout.formatting != Formatting::ShareGpt => {
            for (index, part) in parts.iter().enumerate() {
                check_part(place, index, part, unread)?;
            }
            Ok(Value::Array(parts))
        }
        Some(Value::String(text)) => Ok(Value::String(text)),
        None | Some(Value::Null) if keys.contains_key("tool_calls") => Ok(Value::String(String::new())),
        other if layout.formatting == Formatting::ShareGpt => {
            Err(of(other.as_ref(), "a string; a list of parts has the formatting \"openai\""))
        }
        other => Err(of(other.as_ref(), "a string or a list of parts")),
    }
}

/// Keys that say what a part shows.
const SOURCES: [&str; 6] = ["path", "url", "image", "video", "image_url", "video_url"];

/// Refuses a part that holds two things, or a key whose meaning is not obeyed.
fn check_part(place: Place, part: usize, value: &Value, unread: &mut Unread) -> Result<(), RecordError> {
    let (Place::Message { message }, Value::Object(keys)) = (place, value) else {
        return Ok(()); // what is no part is refused where parts are read
    };
    let place = Place::Part { message, part };
    let filled = |key: &&str| keys.get(*key).is_some_and(|value| !keys::is_void(value));
    let of_type = keys.get("type").and_then(Value::as_str);
    let held: Vec<&str> = SOURCES.into_iter().chain(["text"]).filter(filled).collect();
    if let [first, second, ..] = held.as_slice()
        && keys.get(*first) != keys.get(*second)
    {
        return Err(RecordError::TwoThings {
            place,
            first: (*first).to_owned(),
            second: (*second).to_owned(),
        });
    }
    let is_video = of_type.is_some_and(|of| of.starts_with("video")) || keys.contains_key("video");
    let read = |key: &str| {
        ["type", "text"].contains(&key) || SOURCES.contains(&key) || (is_video && key == "frame_rate")
    };
    keys::pass_over(place, keys.iter().filter(|(key, _)| !read(key)), unread)?;
    let nested = ["image_url", "video_url"].into_iter().filter_map(|key| keys.get(key)?.as_object());
    for url in nested {
        // "auto" is what OpenAI does without the key.
        let of_url = |key: &str, value: &Value| key == "url" || (key == "detail" && value == "auto");
        keys::pass_over(place, url.iter().filter(|(key, value)| !of_url(key, value)), unread)?;
    }
    Ok(())
}

/// The calls that a `function_call` of sharegpt spells as text.
fn tool_calls(message: usize, content: &Value) -> Result<Value, RecordError> {
    let text = content.as_str().unwrap_or_default();
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call) => vec![call],
        Err(_) => Vec::new(),
    };
    let call = |call: &Value| call.get("name").is_some() && call.get("arguments").is_some();
    if calls.is_empty() || !calls.iter().all(call) {
        return Err(RecordError::FunctionCall { message, found: text.chars().take(60).collect() });
    }
    Ok(calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect())
}
