//! Records without a list of messages: a prompt and a response under keys of their own.
//!
//! - alpaca: `instruction`, `input`, `output`, and LLaMA-Factory's `history`
//! - swift: `query`, `response`, `history`
//! - TRL and OpenAI's first format: `prompt` and `completion`, two texts or two lists of messages
//! - captions: images with `caption` or `text`, without a prompt
//!
//! As in LLaMA-Factory, `input` follows `instruction` on a line of its own, and the responses of `history` carry loss too.

use serde_json::{Map, Value, json};

use super::error::RecordError;
use crate::schema::{Formatting, RecordSchema, key_or};

/// The keys of a prompt and its response.
struct PromptResponseKeys<'a> {
    prompt: &'a str,
    /// Second part of the prompt.
    input: Option<&'a str>,
    response: &'a str,
    history: Option<&'a str>,
}

/// Takes prompt and response out of a record, as messages; `None` if the record has a list of messages or neither.
pub(super) fn take_prompt_response(
    record: &mut Map<String, Value>,
    schema: &RecordSchema,
    placeholders: &str,
) -> Result<Option<Vec<Value>>, RecordError> {
    let Some(keys) = find_keys(record, schema) else {
        return Ok(take_caption(record, schema, placeholders));
    };
    if let (Some(Value::Array(_)), Some(Value::Array(_))) =
        (record.get(keys.prompt), record.get(keys.response))
    {
        return Ok(Some(take_message_lists(record, &keys)));
    }
    let mut messages = match keys.history {
        Some(key) => take_history(record, key)?,
        None => Vec::new(),
    };
    let (prompt, response) = (take_text(record, keys.prompt)?, take_text(record, keys.response)?);
    let input = match keys.input {
        Some(key) => take_optional_text(record, key)?,
        None => String::new(),
    };
    let lines: Vec<&str> = [prompt.as_str(), &input].into_iter().filter(|text| !text.is_empty()).collect();
    let mut prompt = lines.join("\n");
    // Of one question there is one place for media that have none; of several it would be a guess.
    if messages.is_empty() && !["<image>", "<video>"].into_iter().any(|mark| prompt.contains(mark)) {
        prompt.insert_str(0, placeholders);
    }
    messages.push(json!({"role": "user", "content": prompt}));
    messages.push(json!({"role": "assistant", "content": response}));
    Ok(Some(messages))
}

/// An image, or several, with a text that describes it, as datasets of captions have them: the images alone are the prompt.
fn take_caption(
    record: &mut Map<String, Value>,
    schema: &RecordSchema,
    placeholders: &str,
) -> Option<Vec<Value>> {
    let has_messages = ["messages", "conversations"].into_iter().any(|key| record.contains_key(key));
    if placeholders.is_empty()
        || has_messages
        || schema.formatting != Formatting::Auto
        || schema.columns.messages.is_some()
    {
        return None;
    }
    let given = schema.columns.response.as_deref();
    let key = given
        .into_iter()
        .chain(["caption", "text"])
        .find(|key| record.get(*key).is_some_and(Value::is_string))?;
    let caption = record.shift_remove(key)?;
    let prompt = json!({"role": "user", "content": placeholders});
    Some(vec![prompt, json!({"role": "assistant", "content": caption})])
}

fn find_keys<'a>(record: &Map<String, Value>, schema: &'a RecordSchema) -> Option<PromptResponseKeys<'a>> {
    let columns = &schema.columns;
    let alpaca = PromptResponseKeys {
        prompt: key_or(&columns.prompt, "instruction"),
        input: Some(key_or(&columns.query, "input")),
        response: key_or(&columns.response, "output"),
        history: Some(key_or(&columns.history, "history")),
    };
    if schema.formatting == Formatting::Alpaca {
        return Some(alpaca);
    }
    let has = |key: &str| record.contains_key(key);
    if schema.formatting != Formatting::Auto
        || columns.messages.is_some()
        || has("messages")
        || has("conversations")
    {
        return None;
    }
    let swift =
        PromptResponseKeys { prompt: "query", input: None, response: "response", history: Some("history") };
    let completion =
        PromptResponseKeys { prompt: "prompt", input: None, response: "completion", history: None };
    [alpaca, swift, completion].into_iter().find(|keys| has(keys.prompt) && has(keys.response))
}

/// Two lists of messages. Only the second carries loss.
fn take_message_lists(record: &mut Map<String, Value>, keys: &PromptResponseKeys<'_>) -> Vec<Value> {
    let mut messages = take_list(record, keys.prompt);
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        if message.get("role").and_then(Value::as_str) == Some("assistant") {
            message.insert("loss".to_owned(), Value::Bool(false));
        }
    }
    messages.append(&mut take_list(record, keys.response));
    messages
}

fn take_list(record: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match record.shift_remove(key) {
        Some(Value::Array(values)) => values,
        _ => Vec::new(),
    }
}

fn take_text(record: &mut Map<String, Value>, key: &str) -> Result<String, RecordError> {
    match record.shift_remove(key) {
        Some(Value::String(text)) => Ok(text),
        other => Err(RecordError::wrong_type(format!("\"{key}\""), other.as_ref(), "a string")),
    }
}

fn take_optional_text(record: &mut Map<String, Value>, key: &str) -> Result<String, RecordError> {
    match record.shift_remove(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        other => Err(RecordError::wrong_type(format!("\"{key}\""), other.as_ref(), "a string")),
    }
}

/// Earlier prompts and responses, `[["q", "a"], …]`.
fn take_history(record: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>, RecordError> {
    let pairs = match record.shift_remove(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => return Err(wrong_history(key, &other)),
    };
    let mut messages = Vec::new();
    for pair in &pairs {
        match pair.as_array().map(Vec::as_slice) {
            Some([prompt @ Value::String(_), response @ Value::String(_)]) => {
                messages.push(json!({"role": "user", "content": prompt}));
                messages.push(json!({"role": "assistant", "content": response}));
            }
            _ => return Err(wrong_history(key, pair)),
        }
    }
    Ok(messages)
}

fn wrong_history(key: &str, found: &Value) -> RecordError {
    let needed = "a list of pairs of texts, question and answer";
    RecordError::wrong_type(format!("\"{key}\""), Some(found), needed)
}

#[cfg(test)]
mod tests {
    use glm4v_processor::Message;
    use serde_json::json;

    use crate::record::Record;
    use crate::record::test_records::{asked, parse, parse_with, refused};
    use crate::schema::{Formatting, RecordSchema};

    #[test]
    fn prompts_with_responses_are_conversations() {
        let conversation = asked(json!("<image>\nWhat?"), json!("a"));
        let mut conversation = conversation;
        conversation["images"] = json!(["1.png"]);
        let same = parse(conversation).unwrap();
        let forms = [
            json!({"instruction": "<image>", "input": "What?", "output": "a", "images": ["1.png"]}),
            json!({"query": "<image>\nWhat?", "response": "a", "history": [], "images": ["1.png"]}),
            json!({"prompt": "<image>\nWhat?", "completion": "a", "images": ["1.png"]}),
            json!({"prompt": [{"role": "user", "content": "<image>\nWhat?"}],
                "completion": [{"role": "assistant", "content": "a"}], "images": ["1.png"]}),
        ];
        for form in forms {
            assert_eq!(parse(form.clone()).unwrap(), same, "{form}");
        }

        let long =
            json!({"instruction": "r", "input": "", "output": "b", "system": "s", "history": [["q", "a"]]});
        let roles = |record: &Record| record.messages.iter().map(|m| m.role.clone()).collect::<Vec<_>>();
        let record = parse(long.clone()).unwrap();
        assert_eq!(roles(&record), ["system", "user", "assistant", "user", "assistant"]);
        assert_eq!(record.messages[3], Message::new("user", "r"));
        let alpaca = RecordSchema { formatting: Formatting::Alpaca, ..RecordSchema::default() };
        assert_eq!(parse_with(long, &alpaca).unwrap(), record);
        let mut named = alpaca.clone();
        named.columns.prompt = Some("question".to_owned());
        named.columns.response = Some("reply".to_owned());
        assert!(parse_with(json!({"question": "q", "reply": "a"}), &named).is_ok());

        let pairs = json!({"instruction": "q", "output": ["good", "bad"]});
        assert_eq!(refused(pairs), "\"output\" is a list, needed a string");
        let history = json!({"query": "q", "response": "a", "history": ["x"]});
        assert_eq!(
            refused(history),
            "\"history\" is a string, needed a list of pairs of texts, question and answer"
        );
        let earlier = json!({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "old"},
            {"role": "user", "content": "r"}], "completion": [{"role": "assistant", "content": "new"}]});
        let messages = parse(earlier).unwrap().messages;
        assert_eq!(messages[1].extra.get("loss"), Some(&json!(false)));
        assert_eq!(messages[3].extra.get("loss"), None);
    }
}
