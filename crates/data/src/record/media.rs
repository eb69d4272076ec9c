//! Images and videos that a record lists apart from its text.
//!
//! A placeholder is `<image>` (or `<video>`) in a message of plain text, or a part of that type without a source, as Hugging Face
//! datasets write it. Placeholders are filled in order. Within a list of parts `<image>` is ordinary text.
//!
//! An entry of `videos` may be a list of images, its frames, and an object may have a `frame_rate`.

use std::collections::VecDeque;

use glm4v_inputs::Modality;
use serde_json::{Map, Value, json};

use super::error::{MediaListMismatch, RecordError};
use super::keys::is_empty_value;
use crate::schema::RecordSchema;

/// How one modality is written.
struct MediaKind {
    /// Type of a part, and the key of a record with a single file (LLaVA).
    part_type: &'static str,
    placeholder: &'static str,
    /// The key of the list by default.
    list: &'static str,
}

const KINDS: [MediaKind; 2] = [
    MediaKind { part_type: "image", placeholder: "<image>", list: "images" },
    MediaKind { part_type: "video", placeholder: "<video>", list: "videos" },
];

/// The modality of a file by its extension, which is written in any case.
pub(crate) fn modality_of(extension: &str) -> Option<Modality> {
    match extension.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "png" | "webp" | "gif" | "bmp" | "tif" | "tiff" => Some(Modality::Image),
        "mp4" | "mkv" | "webm" | "mov" | "avi" => Some(Modality::Video),
        _ => None,
    }
}

/// Keys of one file and of several.
pub(crate) fn media_keys(modality: Modality) -> [&'static str; 2] {
    let kind = if modality == Modality::Video { &KINDS[1] } else { &KINDS[0] };
    [kind.part_type, kind.list]
}

/// Number of placeholders by kind, in the order of [`KINDS`].
pub(super) type PlaceholderCounts = [usize; KINDS.len()];

/// Entries of one kind that have not been placed yet.
#[derive(Debug)]
struct MediaList {
    /// Parts of message content.
    entries: VecDeque<Value>,
    column: String,
}

/// The media of a record, in the order of [`KINDS`].
#[derive(Debug)]
pub(super) struct MediaLists([MediaList; KINDS.len()]);

impl MediaLists {
    /// Takes the lists out of a record.
    pub(super) fn take(record: &mut Map<String, Value>, schema: &RecordSchema) -> Result<Self, RecordError> {
        let columns = [&schema.columns.images, &schema.columns.videos];
        let columns =
            [list_column(record, columns[0], &KINDS[0])?, list_column(record, columns[1], &KINDS[1])?];
        let [images, videos] = columns;
        Ok(Self([MediaList::take(record, images, &KINDS[0])?, MediaList::take(record, videos, &KINDS[1])?]))
    }

    /// A placeholder for each entry.
    pub(super) fn placeholder_text(&self) -> String {
        KINDS.iter().zip(&self.0).map(|(kind, list)| kind.placeholder.repeat(list.entries.len())).collect()
    }

    /// Placeholders in the content of a message.
    pub(super) fn placeholders(content: &Value) -> PlaceholderCounts {
        KINDS.map(|kind| match content {
            Value::String(text) => text.matches(kind.placeholder).count(),
            Value::Array(parts) => parts.iter().filter(|part| is_placeholder(part, &kind)).count(),
            _ => 0,
        })
    }

    /// Compares the placeholders of all messages with the lists.
    pub(super) fn check(&self, messages: &[PlaceholderCounts]) -> Result<(), MediaListMismatch> {
        for (index, (kind, list)) in KINDS.iter().zip(&self.0).enumerate() {
            let counts: Vec<usize> = messages.iter().map(|counts| counts[index]).collect();
            let placeholders = counts.iter().sum();
            if placeholders != list.entries.len() {
                return Err(MediaListMismatch {
                    placeholder: kind.placeholder,
                    placeholders,
                    by_message: counts_by_message(&counts),
                    column: list.column.clone(),
                    listed: list.entries.len(),
                });
            }
        }
        Ok(())
    }

    /// Fills the placeholders of a message with the next entries. The counts have passed [`check`](Self::check).
    pub(super) fn fill(&mut self, content: &mut Value) {
        match content {
            Value::String(text) if KINDS.iter().any(|kind| text.contains(kind.placeholder)) => {
                *content = self.split_text(text);
            }
            Value::Array(parts) => parts.iter_mut().for_each(|part| self.fill_part(part)),
            _ => {}
        }
    }

    fn fill_part(&mut self, part: &mut Value) {
        for (kind, list) in KINDS.iter().zip(&mut self.0) {
            if is_placeholder(part, kind) {
                *part = list.next();
            }
        }
    }

    /// Splits text at its placeholders into parts.
    fn split_text(&mut self, text: &str) -> Value {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((position, index)) = first_placeholder(rest) {
            if position > 0 {
                parts.push(json!({"type": "text", "text": rest[..position]}));
            }
            parts.push(self.0[index].next());
            rest = &rest[position + KINDS[index].placeholder.len()..];
        }
        if !rest.is_empty() {
            parts.push(json!({"type": "text", "text": rest}));
        }
        Value::Array(parts)
    }
}

impl MediaList {
    /// The entries of a list: paths, URLs, or objects that hold one. A single entry needs no list.
    fn take(record: &mut Map<String, Value>, column: String, kind: &MediaKind) -> Result<Self, RecordError> {
        let values = match record.shift_remove(&column) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(single @ (Value::String(_) | Value::Object(_))) => vec![single],
            other => {
                return Err(RecordError::wrong_type(
                    format!("\"{column}\""),
                    other.as_ref(),
                    "a list of paths",
                ));
            }
        };
        let parts = values.iter().enumerate().map(|(index, value)| {
            media_part(value, kind.part_type).ok_or_else(|| {
                RecordError::wrong_type(format!("\"{column}\"[{index}]"), Some(value), "a path or URL")
            })
        });
        let entries = parts.collect::<Result<_, _>>()?;
        Ok(Self { entries, column })
    }

    fn next(&mut self) -> Value {
        self.entries.pop_front().expect("placeholders and entries were counted")
    }
}

/// Position of the first placeholder and the index of its kind.
fn first_placeholder(text: &str) -> Option<(usize, usize)> {
    let positions = KINDS.iter().enumerate();
    positions.filter_map(|(index, kind)| Some((text.find(kind.placeholder)?, index))).min()
}

/// ` (message 0: 2, message 3: 1)`; empty without placeholders.
fn counts_by_message(counts: &[usize]) -> String {
    let filled = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let texts: Vec<String> = filled.map(|(message, count)| format!("message {message}: {count}")).collect();
    if texts.is_empty() { String::new() } else { format!(" ({})", texts.join(", ")) }
}

/// The key of a list: the schema's, or `images`, or LLaVA's `image`.
fn list_column(
    record: &Map<String, Value>,
    given: &Option<String>,
    kind: &MediaKind,
) -> Result<String, RecordError> {
    let (singular, plural) = (kind.part_type, kind.list);
    let filled = |key: &str| record.get(key).is_some_and(|value| !is_empty_value(value));
    match given {
        Some(column) => Ok(column.clone()),
        None if filled(singular) && filled(plural) => Err(RecordError::TwoMediaLists { singular, plural }),
        None if filled(singular) => Ok(singular.to_owned()),
        None => Ok(plural.to_owned()),
    }
}

/// Whether a part has the type of `kind` and no source.
fn is_placeholder(part: &Value, kind: &MediaKind) -> bool {
    let Value::Object(keys) = part else { return false };
    let sources = ["path", "url", "image", "video", "image_url", "video_url"];
    let has_source = sources.iter().any(|key| keys.get(*key).is_some_and(|value| !value.is_null()));
    keys.get("type").and_then(Value::as_str) == Some(kind.part_type) && !has_source
}

/// The part of message content for one entry of a list; none without a path, URL or frames.
fn media_part(entry: &Value, part_type: &str) -> Option<Value> {
    let nested = || ["path", "url", part_type].into_iter().filter_map(|key| entry.get(key));
    let source = std::iter::once(entry).chain(nested()).find(|value| is_source(value, part_type))?;
    let key = if source.is_array() { part_type } else { "path" };
    let mut part = json!({"type": part_type, key: source});
    if let Some(rate) = entry.get("frame_rate") {
        part["frame_rate"] = rate.clone();
    }
    Some(part)
}

/// Whether a value is a path or URL, or the frames of a video.
fn is_source(value: &Value, part_type: &str) -> bool {
    let is_path = |value: &Value| value.as_str().is_some_and(|path| !path.is_empty());
    match value {
        Value::Array(frames) => part_type == "video" && !frames.is_empty() && frames.iter().all(is_path),
        value => is_path(value),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use glm4v_processor::{ContentPart, ImageSource};

    use super::*;
    use crate::record::test_records::{asked, parse, parse_with, refused};

    fn filled(content: &str, record: Value) -> Result<Value, String> {
        let Value::Object(mut record) = record else { panic!("a record is an object") };
        let mut media =
            MediaLists::take(&mut record, &RecordSchema::default()).map_err(|error| error.to_string())?;
        let mut content = Value::from(content);
        media.check(&[MediaLists::placeholders(&content)]).map_err(|error| error.to_string())?;
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
    fn an_image_is_no_list_and_a_frame_is_a_path() {
        let list = filled("<image>", json!({"images": [["1.png", "2.png"]]}));
        assert_eq!(list, Err("\"images\"[0] is a list, needed a path or URL".to_owned()));
        let number = filled("<video>", json!({"videos": [["1.png", 2]]}));
        assert_eq!(number, Err("\"videos\"[0] is a list, needed a path or URL".to_owned()));
    }

    #[test]
    fn images_are_taken_in_order_over_all_messages() {
        let record = json!({"messages": [
            {"role": "user", "content": "<image>x<video>"}, {"role": "assistant", "content": "a"},
            {"role": "user", "content": "<image>"}, {"role": "assistant", "content": "b"}],
            "images": ["1.png", "2.png"], "videos": "v.mp4"});

        let messages = parse(record).unwrap().messages;

        let path = |p: &str| ContentPart::Image(ImageSource::Path(p.into()));
        let video = ContentPart::Video(PathBuf::from("d/v.mp4").into());
        assert_eq!(messages[0].content.parts(), [path("d/1.png"), ContentPart::text("x"), video]);
        assert_eq!(messages[2].content.parts(), [path("d/2.png")]);
    }

    #[test]
    fn a_mismatch_of_images_and_placeholders_is_counted_by_message() {
        let mut one = asked(json!("<image>a<image>"), json!("b"));
        one["images"] = json!(["1.png"]);
        let mut none = asked(json!([{"type": "text", "text": "<image>"}]), json!("b"));
        none["images"] = json!(["1.png"]);

        let needed = "found 2 <image> in its messages (message 0: 2) but 1 in \"images\"; \
                      needs one entry for each place";
        assert_eq!(refused(one), needed);
        assert!(refused(none).starts_with("found 0 <image> in its messages but 1 in \"images\""));
        let video = refused(asked(json!("<video>"), json!("b")));
        assert!(video.starts_with("found 1 <video> in its messages (message 0: 1) but 0 in \"videos\""));
    }

    #[test]
    fn llavas_single_image_has_a_key_of_its_own_and_needs_a_placeholder() {
        let llava = json!({"id": "0", "image": "1.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "b"}]});
        assert_eq!(parse(llava.clone()).unwrap().images().count(), 1);

        let mut unplaced = llava.clone();
        unplaced["conversations"][0]["value"] = json!("What?");
        let error = refused(unplaced);
        assert!(error.starts_with("found 0 <image> in its messages but 1 in \"image\"; needs"), "{error}");
        assert!(
            error.ends_with("write <image> in the text where each is shown, as in \"<image>What is this?\"")
        );
        let mut both = llava.clone();
        both["images"] = json!(["2.png"]);
        assert!(
            refused(both)
                .starts_with("has \"image\" and \"images\"; name one as columns.images in dataset_info.json")
        );
        let mut schema = RecordSchema::default();
        schema.columns.images = Some("images".to_owned());
        let error = parse_with(llava, &schema).unwrap_err().to_string();
        assert!(error.starts_with("\"image\" is not read; columns.images"), "{error}");
    }
}
