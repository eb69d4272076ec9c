//! One record: a conversation to train on.
//!
//! Every style of record becomes the same messages: keys and roles get the names of chat templates, every `<image>` in a text and
//! every part without a source takes the next entry of `images`, paths are resolved. Records that would train the model on
//! something else than they seem to are refused.

mod attached_media;
mod error;
mod key_location;
mod keys;
mod media;
mod media_paths;
mod messages;
mod prompt_response;
#[cfg(test)]
mod test_records;
mod validate;

use std::path::Path;

use glm4v_processor::{ImageSource, Message, VideoInput, parse_messages};
use serde_json::{Map, Value};

pub(crate) use attached_media::media_reference;
pub use error::{MediaListMismatch, RecordError};
pub use key_location::KeyLocation;
pub(crate) use keys::is_empty_value;
pub(crate) use media::{media_keys, modality_of};

use crate::location::RecordLocation;
use crate::names::join_names;
use crate::schema::{RecordSchema, key_or};
use attached_media::attach;
use keys::{UnknownKeys, check_remaining, refuse_unsupported, take_loss};
use media::MediaLists;
use media_paths::prefer_existing;
use messages::{take_messages, take_system_prompt};
use validate::{check_audio, check_message};

/// A conversation to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// File and line, for error messages.
    pub location: RecordLocation,
    /// The messages, with media in place of placeholders and paths resolved; roles are `system`, `user`, `assistant` and
    /// `tool`.
    pub messages: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Option<Value>,
    /// Unknown keys, which were ignored, as `messages[].key`.
    pub unknown_keys: Vec<String>,
}

impl Record {
    /// Parses a record. Media paths are relative to `media_dir` where they exist there, else to `records_dir`.
    ///
    /// # Errors
    ///
    /// The first problem of the record.
    pub fn parse(
        value: Value,
        location: RecordLocation,
        schema: &RecordSchema,
        records_dir: &Path,
        media_dir: Option<&Path>,
    ) -> Result<Self, RecordError> {
        Self::parse_with_media(value, Vec::new(), location, schema, records_dir, media_dir)
    }

    /// As [`parse`](Self::parse), with contents of images and videos beside the value.
    pub(crate) fn parse_with_media(
        value: Value,
        contents: Vec<Vec<u8>>,
        location: RecordLocation,
        schema: &RecordSchema,
        records_dir: &Path,
        media_dir: Option<&Path>,
    ) -> Result<Self, RecordError> {
        let Value::Object(mut record) = value else {
            return Err(RecordError::wrong_type("the record", Some(&value), "an object"));
        };
        let mut unknown = UnknownKeys::default();
        let mut media = MediaLists::take(&mut record, schema)?;
        refuse_unsupported(KeyLocation::Record, &record)?;
        let tools = take_tools(&mut record, schema)?;
        if take_loss(KeyLocation::Record, &mut record)? == Some(0.0) {
            return Err(RecordError::NoLoss);
        }
        let mut messages = take_messages(&mut record, schema, &media.placeholder_text(), &mut unknown)?;
        take_system_prompt(&mut record, schema, &mut messages)?;
        check_audio(&record, &messages)?;
        check_remaining(KeyLocation::Record, &record, &mut unknown)?;
        place_media(&mut media, &mut messages)?;
        let mut messages =
            parse_messages(&Value::Array(messages).to_string(), media_dir.unwrap_or(records_dir))?;
        attach(&mut messages, &contents);
        if let Some(media_dir) = media_dir {
            messages.iter_mut().for_each(|message| prefer_existing(message, media_dir, records_dir));
        }
        messages.iter().enumerate().try_for_each(|(index, message)| check_message(index, message))?;
        if !messages.iter().any(|message| message.role == "assistant") {
            let found = join_names(messages.iter().map(|message| message.role.as_str()));
            return Err(RecordError::NoAssistantMessage { found });
        }
        Ok(Self { location, messages, tools, unknown_keys: unknown.into_names() })
    }

    /// The images, in the order of their placeholders.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.messages.iter().flat_map(Message::images)
    }

    /// The videos, in the order of their placeholders.
    pub fn videos(&self) -> impl Iterator<Item = &VideoInput> {
        self.messages.iter().flat_map(Message::videos)
    }
}

/// Takes the tools out of a record: a list, or its JSON text as LLaMA-Factory writes it.
fn take_tools(record: &mut Map<String, Value>, schema: &RecordSchema) -> Result<Option<Value>, RecordError> {
    let wrong =
        |value: &Value| RecordError::wrong_type("\"tools\"", Some(value), "a list of tools, or its json");
    match record.shift_remove(key_or(&schema.columns.tools, "tools")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Array(tools)) => Ok(Some(Value::Array(tools))),
            _ => Err(wrong(&Value::String(text))),
        },
        Some(Value::Array(tools)) => Ok(Some(Value::Array(tools))),
        Some(other) => Err(wrong(&other)),
    }
}

/// Fills the placeholders of all messages with the listed media.
fn place_media(media: &mut MediaLists, messages: &mut [Value]) -> Result<(), MediaListMismatch> {
    let counts = messages.iter().map(|message| MediaLists::placeholders(&message["content"]));
    media.check(&counts.collect::<Vec<_>>())?;
    messages.iter_mut().for_each(|message| media.fill(&mut message["content"]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::test_records::{asked, refused};
    use super::*;

    #[test]
    fn unusable_records_are_refused() {
        let user = json!({"role": "user", "content": "q"});
        let cases = [
            (asked(json!("q"), json!(" \n")), "message 1: the answer is empty"),
            (asked(json!("q"), json!([])), "message 1: the answer is empty"),
            (
                asked(json!("q"), json!("six<|endoftext|>")),
                "message 1: its text spells <|endoftext|>, which the",
            ),
            (
                asked(json!([{"type": "text", "text": "<|image|>"}]), json!("a")),
                "message 0: its text spells <|im",
            ),
            (
                asked(json!("q"), json!([{"type": "image", "path": "p"}])),
                "message 1: a turn of the assistant holds",
            ),
            (
                json!({"messages": [user]}),
                "has no turn of the assistant, so there is nothing to train on; its roles are user",
            ),
            (
                json!({"messages": [{"role": "robot", "content": "q"}]}),
                "message 0: unknown role \"robot\"; known are user, human,",
            ),
            (json!({"messages": []}), "\"messages\" is empty, needed a list of messages"),
            (json!({"messages": 3}), "\"messages\" is a number, needed a list of messages"),
            (
                json!({"question": "x", "id": 1}),
                "has no \"messages\"; its keys are question, id; needed: a conversation as {\"messages\": [",
            ),
            (
                json!({"text": "x", "id": 1}),
                "\"text\" is plain text, and training on text without a conversation",
            ),
            (json!(3), "the record is a number, needed an object"),
            (json!({"messages": ["q"]}), "message 0 is a string, needed an object"),
            (
                asked(json!(5), json!("a")),
                "message 0: \"content\" is a number, needed a string or a list of parts",
            ),
            (
                asked(json!("q"), json!(null)),
                "message 1: \"content\" is null, needed a string or a list of parts",
            ),
            (json!({"messages": [{"content": "q"}]}), "message 0: \"role\" is missing, needed a string"),
            (asked(json!([{"type": "sound"}]), json!("a")), "message 0, part 0: unknown type \"sound\";"),
        ];
        for (value, start) in cases {
            let error = refused(value);
            assert!(error.starts_with(start), "{error}");
        }
        let mut wrong = asked(json!("q"), json!("a"));
        wrong["messages"][1]["loss"] = json!("no");
        assert_eq!(refused(wrong), "message 1: \"loss\" is a string, needed true or false");
        let mut wrong = asked(json!("<image>"), json!("a"));
        wrong["images"] = json!([""]);
        assert_eq!(refused(wrong), "\"images\"[0] is a string, needed a path or URL");
    }

    #[test]
    fn an_image_is_looked_up_in_the_media_dir_and_then_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (media, beside) = (dir.path().join("media"), dir.path().join("beside"));
        for file in [media.join("both.png"), beside.join("both.png"), beside.join("one.png")] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        let mut record = asked(json!("<image><image><image>"), json!("a"));
        record["images"] = json!(["both.png", "one.png", "none.png"]);
        let location = RecordLocation::line("x".as_ref(), 1);

        let record =
            Record::parse(record, location, &RecordSchema::default(), &beside, Some(&media)).unwrap();

        let paths = [media.join("both.png"), beside.join("one.png"), media.join("none.png")];
        assert_eq!(record.images().cloned().collect::<Vec<_>>(), paths.map(ImageSource::Path));
    }
}
