//! How a dataset is encoded, and which of its records may be left out.

use serde::{Deserialize, Serialize};

/// What happens to records with more tokens than `max_length` (`data.on_long`). Nothing cuts through an image or an answer, and every
/// record that is left out or changed is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LengthPolicy {
    /// The run ends with an error that names the record.
    #[default]
    Error,
    /// The record is left out of its batch, which gets smaller, and counted.
    Drop,
    /// Its images are made smaller, as little as fits, down to [`DatasetOptions::min_image_tokens`]; a record that does not fit then is
    /// left out.
    ShrinkImages,
    /// Whole turns are removed ([`TruncateFrom`]); a record of which no turn fits is left out.
    Truncate,
}

/// Which turns [`LengthPolicy::Truncate`] removes (`data.truncate_from`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TruncateFrom {
    /// The last questions with their answers, and the images in them.
    #[default]
    End,
    /// The first questions with their answers. System messages stay, and so does every turn from the first image or video on, because
    /// later turns may be about it.
    Start,
}

/// What happens to records that cannot be used, because they are malformed or their media are missing or damaged (`data.on_bad`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BadRecordPolicy {
    /// The run ends with an error that names the records, before its first step if they are found without decoding media.
    #[default]
    Stop,
    /// The records are left out, named in a warning and counted.
    Skip,
}

/// What carries loss (`data.loss`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossPolicy {
    /// Every turn of the assistant, and the token that ends it.
    #[default]
    Assistant,
    /// The last turn of the assistant, and `<|endoftext|>`.
    Last,
    /// The whole text and `<|endoftext|>`, without the placeholders of images and videos.
    All,
}

/// How a record is rendered, and what of it carries loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LabelOptions {
    /// What carries loss.
    pub loss: LossPolicy,
    /// `enable_thinking` of the chat template; `None` for the template's default.
    pub enable_thinking: Option<bool>,
}

/// How records are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Maximum number of tokens of a record, those of images and videos included; `None` for no limit.
    pub max_length: Option<usize>,
    /// Policy for longer records.
    pub on_long: LengthPolicy,
    /// Tokens to which images may be shrunk by [`LengthPolicy::ShrinkImages`].
    pub min_image_tokens: usize,
    /// Turns that [`LengthPolicy::Truncate`] removes.
    pub truncate_from: TruncateFrom,
    /// Policy for records that cannot be used.
    pub on_bad: BadRecordPolicy,
    /// Maximum number of records that [`BadRecordPolicy::Skip`] leaves out; `None` for no limit.
    pub max_bad: Option<usize>,
    /// Memory for encoded samples, in bytes.
    pub cache_bytes: usize,
    /// Rendering and labels.
    pub labels: LabelOptions,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            on_long: LengthPolicy::Error,
            min_image_tokens: 64,
            truncate_from: TruncateFrom::End,
            on_bad: BadRecordPolicy::Stop,
            max_bad: None,
            cache_bytes: 512 << 20,
            labels: LabelOptions::default(),
        }
    }
}
