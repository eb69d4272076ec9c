//! What the keys of a record mean that are not the conversation itself.
//!
//! Datasets come with keys of many tools. What says which turns are learned or what is shown is obeyed, or the record is
//! refused: meaning that is left out in silence cannot be found later. Keys that only describe a record are passed over,
//! and so are unknown ones, but these are named in a warning once for each dataset.

use std::fmt;

use serde_json::{Map, Value};

use crate::record::{RecordError, kind};

/// Where in a record a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Beside the turns.
    Record,
    /// In a turn.
    Message {
        /// Index of the turn.
        message: usize,
    },
    /// In a part of a turn.
    Part {
        /// Index of the turn.
        message: usize,
        /// Index of the part.
        part: usize,
    },
}

impl fmt::Display for Place {
    /// The beginning of a message about the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record => Ok(()),
            Self::Message { message } => write!(f, "message {message}: "),
            Self::Part { message, part } => write!(f, "message {message}, part {part}: "),
        }
    }
}

impl Place {
    /// The place without its number, as it is the same in every record.
    fn pattern(self) -> &'static str {
        match self {
            Self::Record => "",
            Self::Message { .. } => "messages[].",
            Self::Part { .. } => "messages[].content[].",
        }
    }

    fn refused(self) -> &'static [(&'static [&'static str], &'static str)] {
        match self {
            Self::Record => &OF_RECORDS,
            Self::Message { .. } => &OF_TURNS,
            Self::Part { .. } => &OF_PARTS,
        }
    }
}

const SOUND: &str = "is sound, which models of this family cannot take; leave such records out";

/// Keys beside the turns that ask for what is not done, and what to do instead.
const OF_RECORDS: [(&[&str], &str); 6] = [
    (&["audio", "audios"], SOUND),
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

/// The same in a turn.
const OF_TURNS: [(&[&str], &str); 5] = [
    (&["audio", "audios"], SOUND),
    (
        &["image", "images", "video", "videos"],
        "is not read in a turn; list it beside the turns, with <image> or <video> in the text, or write a part of \"content\"",
    ),
    (&["function_call"], "is not read; write it as \"tool_calls\""),
    (&["refusal"], "is not read; write its words into \"content\""),
    (&["train_detail", "training_detail"], "is not supported; a turn is trained on whole or not at all"),
];

/// The same in a part.
const OF_PARTS: [(&[&str], &str); 5] = [
    (&["audio", "audio_url", "input_audio"], SOUND),
    (
        &["min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"],
        "is not supported; preprocessor_config.json of the model sets the size of every image",
    ),
    (
        &["fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"],
        "is not supported; \"frame_rate\" is the rate of a folder or list of images, and a video is cut beforehand",
    ),
    (&["bytes"], "is not read; write the image to a file and give its path, or give it as a data: URL"),
    (&["loss", "weight", "train"], "is not read in a part; it belongs to a whole turn"),
];

/// Keys that describe a record, a turn or a part and change nothing of what is learned.
const DESCRIBE: [&str; 64] = [
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

/// Keys of a turn that chat templates read; whether this one does is found when it is rendered.
pub(crate) const FOR_TEMPLATES: [&str; 6] =
    ["tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking", "name"];

/// Keys that were passed over without being known, as `messages[].key`.
#[derive(Debug, Default)]
pub(crate) struct Unread(Vec<String>);

impl Unread {
    fn add(&mut self, place: Place, key: &str) {
        let name = format!("{}{key}", place.pattern());
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    pub(crate) fn into_keys(self) -> Vec<String> {
        self.0
    }
}

/// Whether a value says nothing, as tables fill in for keys that a record lacks.
pub(crate) fn is_void(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// Refuses the keys that carry a meaning which is not obeyed.
pub(crate) fn refuse<'a>(
    place: Place,
    keys: impl IntoIterator<Item = (&'a String, &'a Value)>,
) -> Result<(), RecordError> {
    for (key, value) in keys {
        let known = place.refused().iter().find(|(names, _)| names.contains(&key.as_str()));
        if let Some((_, why)) = known.filter(|_| !is_void(value)) {
            return Err(RecordError::Refused { place, key: key.clone(), why });
        }
    }
    Ok(())
}

/// Refuses what carries meaning, and notes what is unknown, of the keys that nobody took.
pub(crate) fn pass_over<'a>(
    place: Place,
    keys: impl IntoIterator<Item = (&'a String, &'a Value)> + Clone,
    unread: &mut Unread,
) -> Result<(), RecordError> {
    refuse(place, keys.clone())?;
    for (key, value) in keys {
        let read_by_templates =
            matches!(place, Place::Message { .. }) && FOR_TEMPLATES.contains(&key.as_str());
        let described = key.starts_with('_') || DESCRIBE.contains(&key.to_ascii_lowercase().as_str());
        if !is_void(value) && !read_by_templates && !described {
            unread.add(place, key);
        }
    }
    Ok(())
}

/// Keys that say whether there is a loss: ours and swift's, OpenAI's, axolotl's, and swift's again.
const LOSS: [&str; 4] = ["loss", "weight", "train", "loss_scale"];

/// Takes what the keys of a turn or record say about its loss; `None` when none of them is there.
pub(crate) fn take_loss(place: Place, keys: &mut Map<String, Value>) -> Result<Option<bool>, RecordError> {
    let mut said: Option<(&'static str, bool)> = None;
    for key in LOSS {
        let loss = match keys.shift_remove(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(loss)) => loss,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => false,
            Some(Value::Number(number)) if number.as_f64() == Some(1.0) => true,
            Some(Value::Number(found)) => return Err(RecordError::Weight { place, key, found }),
            other => return Err(kind(format!("{place}\"{key}\""), other.as_ref(), "true or false")),
        };
        match said {
            Some((first, other)) if other != loss => {
                return Err(RecordError::TwoLosses { place, first, second: key });
            }
            _ => said = Some((key, loss)),
        }
    }
    Ok(said.map(|(_, loss)| loss))
}
