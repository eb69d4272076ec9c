//! Images and videos that a record lists apart from its text.
//!
//! A place for one is `<image>` (or `<video>`) in a message that is plain text, or a part of that type
//! without a source, which is how Hugging Face datasets write it. Places are filled in order. In a list
//! of parts `<image>` is a text like any other.
//!
//! An entry of `videos` may be a list of images, its frames, and an object may have a `frame_rate`.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::keys::is_void;
use crate::layout::Layout;
use crate::record::{RecordError, kind};

/// Texts and lists that disagree on how many images or videos there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {places} {placeholder} in its messages{counted} but {given} in \"{column}\"; \
     needs one entry for each place{}", if *.places == 0 { unplaced(.placeholder) } else { "" }
)]
pub struct MediaCount {
    /// `<image>` or `<video>`.
    pub placeholder: &'static str,
    /// Places in all messages.
    pub places: usize,
    /// The messages that have places, as ` (message 0: 2, message 3: 1)`; empty without places.
    pub counted: String,
    /// The key of the list.
    pub column: String,
    /// Entries of the list.
    pub given: usize,
}

/// What to do about media that no text refers to. LLaMA-Factory refuses them as well; swift and TRL put them before the
/// first question, which is a guess where there are several.
fn unplaced(placeholder: &str) -> &'static str {
    match placeholder {
        "<video>" => "; write <video> in the text where each is shown, as in \"<video>What happens?\"",
        _ => "; write <image> in the text where each is shown, as in \"<image>What is this?\"",
    }
}

/// Both kinds of media: the type of the part, the text that stands for one, the key of the list.
const KINDS: [(&str, &str, &str); 2] = [("image", "<image>", "images"), ("video", "<video>", "videos")];

/// The media lists of a record, images first.
#[derive(Debug)]
pub(crate) struct Media {
    /// What is put into the places.
    lists: [VecDeque<Value>; 2],
    columns: [String; 2],
}

impl Media {
    /// Takes the lists out of a record.
    pub(crate) fn take(record: &mut Map<String, Value>, layout: &Layout) -> Result<Self, RecordError> {
        let columns = [&layout.columns.images, &layout.columns.videos];
        let columns = [column(record, columns[0], 0)?, column(record, columns[1], 1)?];
        let mut parts = |i: usize| parts(KINDS[i].0, &columns[i], record.shift_remove(&columns[i]));
        let lists = [parts(0)?, parts(1)?];
        Ok(Self { lists, columns })
    }

    /// Places in a message, images first.
    pub(crate) fn places(&self, content: &Value) -> [usize; 2] {
        KINDS.map(|(part_type, placeholder, _)| match content {
            Value::String(text) => text.matches(placeholder).count(),
            Value::Array(parts) => parts.iter().filter(|part| is_place(part, part_type)).count(),
            _ => 0,
        })
    }

    /// Compares the places of all messages with the lists.
    pub(crate) fn check(&self, places: &[[usize; 2]]) -> Result<(), MediaCount> {
        for (i, (_, placeholder, _)) in KINDS.into_iter().enumerate() {
            let total: usize = places.iter().map(|place| place[i]).sum();
            if total != self.lists[i].len() {
                let with_places = places.iter().enumerate().filter(|(_, place)| place[i] > 0);
                let counted: Vec<String> =
                    with_places.map(|(m, place)| format!("message {m}: {}", place[i])).collect();
                return Err(MediaCount {
                    placeholder,
                    places: total,
                    counted: match counted.join(", ") {
                        none if none.is_empty() => none,
                        some => format!(" ({some})"),
                    },
                    column: self.columns[i].clone(),
                    given: self.lists[i].len(),
                });
            }
        }
        Ok(())
    }

    /// Fills the places of a message with the next entries.
    pub(crate) fn fill(&mut self, content: &mut Value) {
        match content {
            Value::String(text) if KINDS.iter().any(|(_, placeholder, _)| text.contains(placeholder)) => {
                *content = self.split(text);
            }
            Value::Array(parts) => {
                for part in parts {
                    for (i, (part_type, ..)) in KINDS.into_iter().enumerate() {
                        if is_place(part, part_type) {
                            *part = self.next_part(i);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn next_part(&mut self, i: usize) -> Value {
        self.lists[i].pop_front().expect("places and entries were counted")
    }

    /// Text with places to parts.
    fn split(&mut self, text: &str) -> Value {
        let mut parts = Vec::new();
        let mut rest = text;
        let first = |rest: &str| {
            let found = |i: usize| rest.find(KINDS[i].1).map(|at| (at, i));
            [0, 1].into_iter().filter_map(found).min()
        };
        while let Some((at, i)) = first(rest) {
            if at > 0 {
                parts.push(json!({"type": "text", "text": rest[..at]}));
            }
            parts.push(self.next_part(i));
            rest = &rest[at + KINDS[i].1.len()..];
        }
        if !rest.is_empty() {
            parts.push(json!({"type": "text", "text": rest}));
        }
        Value::Array(parts)
    }
}

/// The key of a list: the one that is given, or `images`, or LLaVA's `image`.
fn column(record: &Map<String, Value>, given: &Option<String>, i: usize) -> Result<String, RecordError> {
    let (singular, _, plural) = KINDS[i];
    let filled = |key: &str| record.get(key).is_some_and(|value| !is_void(value));
    match given {
        Some(column) => Ok(column.clone()),
        None if filled(singular) && filled(plural) => Err(RecordError::TwoLists { singular, plural }),
        None if filled(singular) => Ok(singular.to_owned()),
        None => Ok(plural.to_owned()),
    }
}

/// Whether a part is of this type and does not say which one.
fn is_place(part: &Value, part_type: &str) -> bool {
    let Value::Object(keys) = part else { return false };
    let sources = ["path", "url", "image", "video", "image_url", "video_url"];
    let empty = |key: &&str| keys.get(*key).is_none_or(Value::is_null);
    keys.get("type").and_then(Value::as_str) == Some(part_type) && sources.iter().all(empty)
}

/// The entries of a list, as parts: paths or URLs, or objects that hold one; one alone may stand without a
/// list.
fn parts(part_type: &str, column: &str, value: Option<Value>) -> Result<VecDeque<Value>, RecordError> {
    let values = match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(single @ (Value::String(_) | Value::Object(_))) => vec![single],
        other => return Err(kind(format!("\"{column}\""), other.as_ref(), "a list of paths")),
    };
    let part = |(index, value): (usize, Value)| {
        let filled = |value: &&Value| match value {
            Value::String(source) => !source.is_empty(),
            Value::Array(frames) => {
                let path = |frame: &Value| frame.as_str().is_some_and(|path| !path.is_empty());
                part_type == "video" && !frames.is_empty() && frames.iter().all(path)
            }
            _ => false,
        };
        let nested = || ["path", "url", part_type].into_iter().find_map(|key| value.get(key).filter(filled));
        let Some(source) = Some(&value).filter(filled).or_else(nested) else {
            return Err(kind(format!("\"{column}\"[{index}]"), Some(&value), "a path or URL"));
        };
        let key = if source.is_array() { part_type } else { "path" };
        let mut part = json!({"type": part_type, key: source});
        if let Some(rate) = value.get("frame_rate") {
            part["frame_rate"] = rate.clone();
        }
        Ok(part)
    };
    values.into_iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(content: &str, record: Value) -> Result<Value, String> {
        let Value::Object(mut record) = record else { panic!("a record is an object") };
        let mut media = Media::take(&mut record, &Layout::default()).map_err(|error| error.to_string())?;
        let mut content = Value::from(content);
        media.check(&[media.places(&content)]).map_err(|error| error.to_string())?;
        media.fill(&mut content);
        Ok(content)
    }

    #[test]
    fn videos_are_files_or_lists_of_frames_and_may_have_a_rate() {
        let videos =
            json!([["1.png", "2.png"], {"path": "folder", "frame_rate": 4}, {"video": ["3.png", "4.png"]}]);
        let parts = json!([
            {"type": "video", "video": ["1.png", "2.png"]},
            {"type": "text", "text": "a"},
            {"type": "image", "path": "i.png"},
            {"type": "video", "path": "folder", "frame_rate": 4},
            {"type": "video", "video": ["3.png", "4.png"]},
        ]);

        let content = filled("<video>a<image><video><video>", json!({"images": ["i.png"], "videos": videos}));

        assert_eq!(content, Ok(parts));
    }

    #[test]
    fn a_image_is_no_list_and_a_frame_is_a_path() {
        let list = filled("<image>", json!({"images": [["1.png", "2.png"]]}));
        assert_eq!(list, Err("\"images\"[0] is a list, needed a path or URL".to_owned()));
        let number = filled("<video>", json!({"videos": [["1.png", 2]]}));
        assert_eq!(number, Err("\"videos\"[0] is a list, needed a path or URL".to_owned()));
    }
}
