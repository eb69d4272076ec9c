//! Keys of a record other than its conversation.
//!
//! Datasets have keys of many tools. A key that would change the training is followed or refused, because nobody would notice that
//! it was ignored. Metadata is ignored; so are unknown keys, with one warning per dataset.

use serde_json::{Map, Value};

use super::error::RecordError;
use super::key_location::KeyLocation;

const AUDIO: &str = "is audio, which models of this family do not support; leave such records out";

/// Unsupported keys of a record, each with the rest of the error message.
const UNSUPPORTED_IN_RECORD: [(&[&str], &str); 6] = [
    (&["audio", "audios"], AUDIO),
    (
        &["chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag"],
        "is for training on preferences (DPO, KTO), which is not supported; needed: one conversation a record",
    ),
    (&["functions"], "is not read; write the functions as \"tools\""),
    (&["objects"], "is not read; write the coordinates into the text"),
    (
        &["chat_template_kwargs", "enable_thinking"],
        "is not supported; a chat template has the same options for every record",
    ),
    (
        &["image", "images", "video", "videos"],
        "is not read; columns.images and columns.videos in dataset_info.json name the keys of media",
    ),
];

/// Unsupported keys of a message.
const UNSUPPORTED_IN_MESSAGE: [(&[&str], &str); 5] = [
    (&["audio", "audios"], AUDIO),
    (
        &["image", "images", "video", "videos"],
        "is not read in a turn; list it beside the turns, with <image> or <video> in the text, or write a part of \"content\"",
    ),
    (&["function_call"], "is not read; write it as \"tool_calls\""),
    (&["refusal"], "is not read; write its text into \"content\""),
    (&["train_detail", "training_detail"], "is not supported; a turn is trained on whole or not at all"),
];

/// Unsupported keys of a part.
const UNSUPPORTED_IN_PART: [(&[&str], &str); 5] = [
    (&["audio", "audio_url", "input_audio"], AUDIO),
    (
        &["min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"],
        "is not supported; preprocessor_config.json of the model sets the size of every image",
    ),
    (
        &["fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"],
        "is not supported; \"frame_rate\" is the rate of a directory or list of images, and a video is cut beforehand",
    ),
    (&["bytes"], "is not read; write the image to a file and give its path, or give it as a data: URL"),
    (&["loss", "weight", "train"], "is not read in a part; it belongs to a whole turn"),
];

/// Keys that describe a record, a message or a part and have no effect on training.
const METADATA: [&str; 64] = [
    "id",
    "uid",
    "uuid",
    "idx",
    "index",
    "record_id",
    "sample_id",
    "image_id",
    "video_id",
    "question_id",
    "answer_id",
    "conversation_id",
    "prompt_id",
    "source",
    "data_source",
    "origin",
    "dataset",
    "dataset_name",
    "metadata",
    "meta",
    "info",
    "category",
    "categories",
    "task",
    "task_type",
    "task_name",
    "type",
    "tags",
    "lang",
    "language",
    "license",
    "licence",
    "split",
    "subset",
    "version",
    "created",
    "created_at",
    "timestamp",
    "date",
    "author",
    "annotator",
    "model",
    "model_name",
    "generator",
    "score",
    "quality",
    "difficulty",
    "length",
    "num_turns",
    "num_tokens",
    "height",
    "width",
    "image_height",
    "image_width",
    "image_size",
    "comment",
    "comments",
    "note",
    "notes",
    "description",
    "channel",
    "url",
    "parallel_tool_calls",
    "cache_control",
];

/// Keys of a message for the chat template. Rendering finds out whether the template of the model reads them.
const TEMPLATE_KEYS: [&str; 6] =
    ["tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking", "name"];

/// Unsupported keys at a location.
fn unsupported(location: KeyLocation) -> &'static [(&'static [&'static str], &'static str)] {
    match location {
        KeyLocation::Record => &UNSUPPORTED_IN_RECORD,
        KeyLocation::Message { .. } => &UNSUPPORTED_IN_MESSAGE,
        KeyLocation::ContentPart { .. } => &UNSUPPORTED_IN_PART,
    }
}

/// Unknown keys that were ignored, as `messages[].key`, each once.
#[derive(Debug, Default)]
pub(super) struct UnknownKeys(Vec<String>);

impl UnknownKeys {
    fn add(&mut self, location: KeyLocation, key: &str) {
        let name = format!("{}{key}", location.pattern());
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    pub(super) fn into_names(self) -> Vec<String> {
        self.0
    }
}

/// Whether a value is null or empty, as tables fill in for keys that a record lacks.
pub(crate) fn is_empty_value(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// Refuses keys that would change the training and are not supported.
pub(super) fn refuse_unsupported<'a>(
    location: KeyLocation,
    keys: impl IntoIterator<Item = (&'a String, &'a Value)>,
) -> Result<(), RecordError> {
    let unsupported = unsupported(location);
    for (key, value) in keys {
        let found = unsupported.iter().find(|(names, _)| names.contains(&key.as_str()));
        if let Some((_, reason)) = found.filter(|_| !is_empty_value(value)) {
            return Err(RecordError::UnsupportedKey { location, key: key.clone(), reason });
        }
    }
    Ok(())
}

/// Checks the keys that no other step has taken: refuses unsupported ones and collects unknown ones.
pub(super) fn check_remaining<'a>(
    location: KeyLocation,
    keys: impl IntoIterator<Item = (&'a String, &'a Value)> + Clone,
    unknown: &mut UnknownKeys,
) -> Result<(), RecordError> {
    refuse_unsupported(location, keys.clone())?;
    for (key, value) in keys {
        let for_template =
            matches!(location, KeyLocation::Message { .. }) && TEMPLATE_KEYS.contains(&key.as_str());
        if !is_empty_value(value) && !for_template && !is_metadata(key) {
            unknown.add(location, key);
        }
    }
    Ok(())
}

fn is_metadata(key: &str) -> bool {
    key.starts_with('_') || METADATA.contains(&key.to_ascii_lowercase().as_str())
}

/// Keys of the loss: ours and swift's, OpenAI's, axolotl's, and a second one of swift.
const LOSS_KEYS: [&str; 4] = ["loss", "weight", "train", "loss_scale"];

/// Those of them that may be a factor of the loss.
const WEIGHT_KEYS: [&str; 2] = ["weight", "loss_scale"];

/// Largest factor of the loss: one of a thousand already is a mistake.
const MAX_LOSS_WEIGHT: f64 = 1000.0;

/// Takes the loss keys out of a record or message: 0 switches the loss off, another number is its factor; `None` without any.
pub(super) fn take_loss(
    location: KeyLocation,
    keys: &mut Map<String, Value>,
) -> Result<Option<f64>, RecordError> {
    let mut found: Option<(&'static str, f64)> = None;
    for key in LOSS_KEYS {
        let Some(weight) = loss_value(location, key, keys.shift_remove(key))? else { continue };
        found = match found {
            // "loss": true with a weight is the weight.
            Some((_, 1.0)) if weight > 0.0 => Some((key, weight)),
            Some((first, other)) if other != weight && !(other > 0.0 && weight == 1.0) => {
                return Err(RecordError::ConflictingLoss { location, first, second: key });
            }
            Some(found) => Some(found),
            None => Some((key, weight)),
        };
    }
    Ok(found.map(|(_, weight)| weight))
}

fn loss_value(
    location: KeyLocation,
    key: &'static str,
    value: Option<Value>,
) -> Result<Option<f64>, RecordError> {
    let is_weight = WEIGHT_KEYS.contains(&key) && matches!(location, KeyLocation::Message { .. });
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(loss)) => Ok(Some(f64::from(u8::from(loss)))),
        Some(Value::Number(found)) => match found.as_f64() {
            Some(weight) if weight == 0.0 || weight == 1.0 => Ok(Some(weight)),
            Some(weight) if is_weight && (0.0..=MAX_LOSS_WEIGHT).contains(&weight) => Ok(Some(weight)),
            _ if is_weight => Err(RecordError::LossWeight { location, key, found }),
            _ => Err(RecordError::LossSwitch { location, key, found }),
        },
        other => {
            Err(RecordError::wrong_type(format!("{location}\"{key}\""), other.as_ref(), "true or false"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::test_records::{asked, parse, refused};

    /// A conversation with a key beside its messages.
    fn in_record(key: &str, value: Value) -> Value {
        let mut record = asked(json!("q"), json!("a"));
        record[key] = value;
        record
    }

    /// A conversation with a key in its first message.
    fn in_message(key: &str, value: Value) -> Value {
        let mut record = asked(json!("q"), json!("a"));
        record["messages"][0][key] = value;
        record
    }

    /// A conversation with a key in its answer.
    fn with(key: &str, value: Value) -> Value {
        let mut record = asked(json!("q"), json!("a"));
        record["messages"][1][key] = value;
        record
    }

    #[test]
    fn a_weight_scales_the_loss_of_a_turn() {
        let weight = |record: Value| parse(record).unwrap().messages[1].extra.get("weight").cloned();

        assert_eq!(weight(with("weight", json!(0.5))), Some(json!(0.5)));
        assert_eq!(weight(with("loss_scale", json!(2))), Some(json!(2.0)));
        let mut both = with("weight", json!(0.5));
        both["messages"][1]["loss"] = json!(true);
        assert_eq!(weight(both.clone()), Some(json!(0.5)));
        both["messages"][1]["loss"] = json!(false);
        assert_eq!(refused(both), "message 1: \"loss\" and \"weight\" contradict each other; keep one");
        let needed = "needed a number from 0 (no loss) to 1000";
        assert_eq!(refused(with("weight", json!(-1))), format!("message 1: \"weight\" is -1, {needed}"));
        assert_eq!(
            refused(with("weight", json!(1e9))),
            format!("message 1: \"weight\" is 1000000000.0, {needed}")
        );
        let switch = refused(with("loss", json!(0.5)));
        assert!(switch.starts_with("message 1: \"loss\" is 0.5, needed true or false;"), "{switch}");
        let mut whole = asked(json!("q"), json!("a"));
        whole["weight"] = json!(0.5);
        assert!(refused(whole).starts_with("\"weight\" is 0.5, needed true or false;"));
    }

    #[test]
    fn every_loss_key_switches_the_loss_off() {
        let loss = |record: Value| parse(record).unwrap().messages[1].extra.get("loss").cloned();

        for key in ["loss", "weight", "train", "loss_scale"] {
            for off in [json!(0), json!(0.0), json!(false)] {
                assert_eq!(loss(with(key, off)), Some(json!(false)), "{key}");
            }
            for on in [json!(1), json!(1.0), json!(true), json!(null)] {
                assert_eq!(loss(with(key, on)), None, "{key}");
            }
        }
        let mut both = with("weight", json!(0));
        both["messages"][1]["train"] = json!(true);
        assert_eq!(refused(both), "message 1: \"weight\" and \"train\" contradict each other; keep one");
        let mut asks = asked(json!("q"), json!("a"));
        asks["messages"][0]["weight"] = json!(0);
        assert!(parse(asks.clone()).is_ok());
        asks["messages"][0]["weight"] = json!(1);
        assert!(refused(asks).starts_with("message 0: asks for a loss on a turn of the user, and only"));
        let mut whole = asked(json!("q"), json!("a"));
        whole["train"] = json!(false);
        assert_eq!(refused(whole), "is marked as without loss; leave the record out of the file");
    }

    #[test]
    fn an_unsupported_key_is_refused_with_the_alternative() {
        let in_part = |part: Value| asked(json!([part]), json!("a"));
        let cases = [
            (
                in_record("audios", json!(["a.wav"])),
                "\"audios\" is audio, which models of this family do not support",
            ),
            (in_record("kto_tag", json!(true)), "\"kto_tag\" is for training on preferences (DPO, KTO)"),
            (in_record("chosen", json!("b")), "\"chosen\" is for training on preferences (DPO, KTO)"),
            (
                in_record("functions", json!([{"name": "f"}])),
                "\"functions\" is not read; write the functions as \"tools\"",
            ),
            (
                in_message("images", json!(["a.png"])),
                "message 0: \"images\" is not read in a turn; list it beside",
            ),
            (
                in_message("refusal", json!("no")),
                "message 0: \"refusal\" is not read; write its text into \"content\"",
            ),
            (
                in_part(json!({"type": "image", "path": "a.png", "max_pixels": 1000})),
                "message 0, part 0: \"max_pixels\" is not supported; preprocessor_config.json",
            ),
            (
                in_part(json!({"type": "video", "path": "a.mp4", "fps": 1})),
                "message 0, part 0: \"fps\" is not supported; \"frame_rate\"",
            ),
            (
                in_part(json!({"type": "image", "path": "a.png", "text": "words"})),
                "message 0, part 0: holds \"path\" and \"text\", needed one; write two parts",
            ),
            (
                in_part(json!({"type": "image", "path": "a.png", "url": "b.png"})),
                "message 0, part 0: holds \"path\" and \"url\", needed one",
            ),
        ];
        for (record, start) in cases {
            let refused = refused(record);
            assert!(refused.starts_with(start), "{refused}");
        }
    }

    #[test]
    fn a_placeholder_of_audio_is_refused() {
        let mut listed = in_record("audios", json!([]));
        listed["messages"][0]["content"] = json!("<audio>What is said?");
        let unlisted = asked(json!("<audio>What?"), json!("a"));

        assert!(refused(listed).starts_with("message 0: <audio> stands for an entry of \"audios\""));
        assert!(refused(unlisted).starts_with("message 0: <audio> stands for"));
    }

    #[test]
    fn empty_values_count_as_missing_keys() {
        for empty in [json!(null), json!(""), json!([]), json!({})] {
            assert!(parse(in_record("audios", empty.clone())).is_ok());
            assert!(parse(in_message("refusal", empty)).is_ok());
        }
    }

    #[test]
    fn unknown_keys_are_collected_and_metadata_is_not() {
        let mut record = asked(json!([{"type": "text", "text": "q", "mood": "glad"}]), json!("a"));
        record["id"] = json!(7);
        record["_internal"] = json!("x");
        record["reward"] = json!(0.5);
        record["empty"] = json!(null);
        record["messages"][1]["tone"] = json!("dry");
        record["messages"][1]["name"] = json!("it");

        let unknown = parse(record).unwrap().unknown_keys;

        assert_eq!(unknown, ["messages[].content[].mood", "messages[].tone", "reward"]);
    }
}
