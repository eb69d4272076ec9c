//! Errors of records.

use glm4v_processor::MessagesError;
use serde_json::{Number, Value};

use super::key_location::KeyLocation;

/// Error of a record that cannot be trained on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A value is missing or of the wrong type.
    #[error("{key} is {found}, needed {needed}")]
    WrongType {
        /// The key, with the index of its message if it belongs to one.
        key: String,
        /// JSON type of the value found.
        found: &'static str,
        /// Types allowed.
        needed: &'static str,
    },
    /// There is no list of messages, and no prompt with a response.
    #[error(
        "has no \"{needed}\"; its keys are {found}; needed: a conversation as {EXAMPLE}, or one under another key that \
         columns.messages names in dataset_info.json"
    )]
    NoMessages {
        /// The key of the list.
        needed: String,
        /// The keys of the record.
        found: String,
    },
    /// Text without a conversation, as for pretraining.
    #[error(
        "\"{key}\" is plain text, and training on text without a conversation (pretraining) is not supported; needed: a \
         conversation as {EXAMPLE}"
    )]
    PlainText {
        /// The key of the text.
        key: &'static str,
    },
    /// A key that would change the training and is not supported.
    #[error("{location}\"{key}\" {reason}")]
    UnsupportedKey {
        /// Location of the key.
        location: KeyLocation,
        /// The key.
        key: String,
        /// The reason, with the alternative.
        reason: &'static str,
    },
    /// A factor of the loss out of range.
    #[error("{location}\"{key}\" is {found}, needed a number from 0 (no loss) to 1000")]
    LossWeight {
        /// Location of the key.
        location: KeyLocation,
        /// The key.
        key: &'static str,
        /// The weight.
        found: Number,
    },
    /// A number where the loss is on or off.
    #[error(
        "{location}\"{key}\" is {found}, needed true or false; a turn of the assistant may have a \"weight\""
    )]
    LossSwitch {
        /// Location of the key.
        location: KeyLocation,
        /// The key.
        key: &'static str,
        /// The number.
        found: Number,
    },
    /// Two loss keys that differ.
    #[error("{location}\"{first}\" and \"{second}\" contradict each other; keep one")]
    ConflictingLoss {
        /// Location of the keys.
        location: KeyLocation,
        /// One key.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Loss on a message that is not the assistant's.
    #[error(
        "message {message}: asks for a loss on a turn of the {role}, and only turns of the assistant are trained on; \
         take the key out"
    )]
    LossOutsideAssistant {
        /// Index of the message.
        message: usize,
        /// Role of the message.
        role: &'static str,
    },
    /// A placeholder of audio.
    #[error(
        "message {message}: <audio> stands for an entry of \"{key}\", and models of this family do not support audio"
    )]
    Audio {
        /// Index of the message.
        message: usize,
        /// The key that lists audio files.
        key: &'static str,
    },
    /// The whole record is marked as without loss.
    #[error("is marked as without loss; leave the record out of the file")]
    NoLoss,
    /// A part with two contents.
    #[error("{location}holds \"{first}\" and \"{second}\", needed one; write two parts")]
    AmbiguousPart {
        /// Location of the part.
        location: KeyLocation,
        /// Key of one content.
        first: String,
        /// Key of the other.
        second: String,
    },
    /// Two lists of images, or of videos.
    #[error("has \"{singular}\" and \"{plural}\"; name one as columns.{plural} in dataset_info.json")]
    TwoMediaLists {
        /// `image` or `video`.
        singular: &'static str,
        /// `images` or `videos`.
        plural: &'static str,
    },
    /// Two lists of messages.
    #[error("has \"messages\" and \"conversations\"; name one as columns.messages in dataset_info.json")]
    TwoConversations,
    /// An unknown role.
    #[error("{location}unknown role \"{found}\"; known are {known}")]
    UnknownRole {
        /// Location of the message.
        location: KeyLocation,
        /// The name found.
        found: String,
        /// The names known.
        known: String,
    },
    /// A `function_call` message that holds no call.
    #[error("message {message}: a function call needs json with \"name\" and \"arguments\", found {found:?}")]
    FunctionCall {
        /// Index of the message.
        message: usize,
        /// Beginning of its text.
        found: String,
    },
    /// A message cannot be parsed.
    #[error(transparent)]
    Message(#[from] MessagesError),
    /// Placeholders and listed media differ in number.
    #[error(transparent)]
    MediaCountError(#[from] MediaListMismatch),
    /// An image or video in a message for which chat templates render text only.
    #[error("message {message}: a turn of the {role} holds an image or video, needed text only")]
    MediaInTextMessage {
        /// Index of the message.
        message: usize,
        /// Role of the message.
        role: String,
    },
    /// Text that contains a token reserved for the chat template.
    #[error(
        "message {message}: its text spells {token}, which the chat template writes by itself; remove it"
    )]
    ControlToken {
        /// Index of the message.
        message: usize,
        /// The token.
        token: &'static str,
    },
    /// An assistant message without text, which would train the model to end at once.
    #[error("message {message}: the answer is empty")]
    EmptyAnswer {
        /// Index of the message.
        message: usize,
    },
    /// There is no assistant message, so no token carries loss.
    #[error("has no turn of the assistant, so there is nothing to train on; its roles are {found}")]
    NoAssistantMessage {
        /// The roles of the record.
        found: String,
    },
}

/// A conversation of one user and one assistant message.
const EXAMPLE: &str =
    r#"{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}"#;

/// Error of a record whose placeholders and listed images or videos differ in number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {placeholders} {placeholder} in its messages{by_message} but {listed} in \"{column}\"; \
     needs one entry for each place{}", if *.placeholders == 0 { placement_hint(.placeholder) } else { "" }
)]
pub struct MediaListMismatch {
    /// `<image>` or `<video>`.
    pub placeholder: &'static str,
    /// Placeholders in all messages.
    pub placeholders: usize,
    /// Placeholders by message, as ` (message 0: 2, message 3: 1)`; empty without any.
    pub by_message: String,
    /// The key of the list.
    pub column: String,
    /// Entries of the list.
    pub listed: usize,
}

/// The remedy for media without any placeholder. LLaMA-Factory refuses them as well; swift and TRL put them before the first
/// question, which is a guess where there are several.
fn placement_hint(placeholder: &str) -> &'static str {
    match placeholder {
        "<video>" => "; write <video> in the text where each is shown, as in \"<video>What happens?\"",
        _ => "; write <image> in the text where each is shown, as in \"<image>What is this?\"",
    }
}

impl RecordError {
    /// A value that is missing or of the wrong type.
    pub(super) fn wrong_type(key: impl Into<String>, value: Option<&Value>, needed: &'static str) -> Self {
        let found = match value {
            None => "missing",
            Some(Value::Null) => "null",
            Some(Value::Bool(_)) => "a boolean",
            Some(Value::Number(_)) => "a number",
            Some(Value::String(_)) => "a string",
            Some(Value::Array(_)) => "a list",
            Some(Value::Object(_)) => "an object",
        };
        Self::WrongType { key: key.into(), found, needed }
    }
}
