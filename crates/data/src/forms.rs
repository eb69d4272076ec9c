//! Records without a list of turns: a question and an answer under keys of their own.
//!
//! - alpaca: `instruction`, `input`, `output`, and LLaMA-Factory's `history`
//! - swift: `query`, `response`, `history`
//! - TRL and OpenAI's first format: `prompt` and `completion`, two texts or two lists of messages
//!
//! As in LLaMA-Factory, `input` follows `instruction` on a line of its own, and the answers of `history` are learned too.

use serde_json::{Map, Value, json};

use crate::layout::{Formatting, Layout};
use crate::record::{RecordError, kind, name};
use crate::suggest::list;

/// The keys of a question and its answer.
struct Form<'a> {
    question: &'a str,
    /// What is asked about, on a line of its own.
    input: Option<&'a str>,
    answer: &'a str,
    history: Option<&'a str>,
}

/// Takes question and answer out of a record that has them instead of a list of turns.
pub(crate) fn take(
    record: &mut Map<String, Value>,
    layout: &Layout,
) -> Result<Option<Vec<Value>>, RecordError> {
    let Some(form) = find(record, layout) else { return Ok(None) };
    if let (Some(Value::Array(_)), Some(Value::Array(_))) =
        (record.get(form.question), record.get(form.answer))
    {
        return Ok(Some(joined(record, &form)));
    }
    let mut turns = match form.history.and_then(|key| Some((key, record.shift_remove(key)?))) {
        None | Some((_, Value::Null)) => Vec::new(),
        Some((key, value)) => history(key, value)?,
    };
    let mut text = |key: &str| match record.shift_remove(key) {
        Some(Value::String(text)) => Ok(text),
        other => Err(kind(format!("\"{key}\""), other.as_ref(), "a string")),
    };
    let (question, answer) = (text(form.question)?, text(form.answer)?);
    let input = match form.input.and_then(|key| record.shift_remove(key)) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        other => {
            return Err(kind(format!("{:?}", form.input.unwrap_or_default()), other.as_ref(), "a string"));
        }
    };
    let asked: Vec<&str> = [question.as_str(), &input].into_iter().filter(|text| !text.is_empty()).collect();
    turns.push(json!({"role": "user", "content": asked.join("\n")}));
    turns.push(json!({"role": "assistant", "content": answer}));
    Ok(Some(turns))
}

fn find<'a>(record: &Map<String, Value>, layout: &'a Layout) -> Option<Form<'a>> {
    let columns = &layout.columns;
    let alpaca = Form {
        question: name(&columns.prompt, "instruction"),
        input: Some(name(&columns.query, "input")),
        answer: name(&columns.response, "output"),
        history: Some(name(&columns.history, "history")),
    };
    if layout.formatting == Formatting::Alpaca {
        return Some(alpaca);
    }
    let has = |key: &str| record.contains_key(key);
    if layout.formatting != Formatting::Auto
        || columns.messages.is_some()
        || has("messages")
        || has("conversations")
    {
        return None;
    }
    let swift = Form { question: "query", input: None, answer: "response", history: Some("history") };
    let completion = Form { question: "prompt", input: None, answer: "completion", history: None };
    [alpaca, swift, completion].into_iter().find(|form| has(form.question) && has(form.answer))
}

/// Two lists of messages, of which the second is learned.
fn joined(record: &mut Map<String, Value>, form: &Form<'_>) -> Vec<Value> {
    let mut take = |key| match record.shift_remove(key) {
        Some(Value::Array(values)) => values,
        _ => Vec::new(),
    };
    let mut turns = take(form.question);
    for turn in turns.iter_mut().filter_map(Value::as_object_mut) {
        if turn.get("role").and_then(Value::as_str) == Some("assistant") {
            turn.insert("loss".to_owned(), Value::Bool(false));
        }
    }
    turns.append(&mut take(form.answer));
    turns
}

/// Earlier questions and answers, `[["q", "a"], …]`.
fn history(key: &str, value: Value) -> Result<Vec<Value>, RecordError> {
    let needed = "a list of pairs of texts, question and answer";
    let wrong = |value: &Value| kind(format!("\"{key}\""), Some(value), needed);
    let mut turns = Vec::new();
    for pair in value.as_array().ok_or_else(|| wrong(&value))? {
        match pair.as_array().map(Vec::as_slice) {
            Some([question @ Value::String(_), answer @ Value::String(_)]) => {
                turns.push(json!({"role": "user", "content": question}));
                turns.push(json!({"role": "assistant", "content": answer}));
            }
            _ => return Err(wrong(pair)),
        }
    }
    Ok(turns)
}

/// Says what a record without turns is, as far as its keys tell.
pub(crate) fn missing(record: &Map<String, Value>, column: &str) -> RecordError {
    let only = |key: &str| record.get(key).is_some_and(Value::is_string);
    if only("text") || only("content") {
        return RecordError::PlainText { key: if only("text") { "text" } else { "content" } };
    }
    RecordError::NoMessages { needed: column.to_owned(), found: list(record.keys().map(String::as_str)) }
}
