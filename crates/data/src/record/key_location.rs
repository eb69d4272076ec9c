//! Locations of keys within a record.

use std::fmt;

/// The object of a record that holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyLocation {
    /// The record itself.
    Record,
    /// A message.
    Message {
        /// Index of the message.
        message: usize,
    },
    /// A part of a message's content.
    ContentPart {
        /// Index of the message.
        message: usize,
        /// Index of the part.
        part: usize,
    },
}

impl fmt::Display for KeyLocation {
    /// The beginning of an error message: `message 3, part 0: `, empty for the record itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record => Ok(()),
            Self::Message { message } => write!(f, "message {message}: "),
            Self::ContentPart { message, part } => write!(f, "message {message}, part {part}: "),
        }
    }
}

impl KeyLocation {
    /// The location without indices, equal in all records: `messages[].content[].`.
    pub(super) fn pattern(self) -> &'static str {
        match self {
            Self::Record => "",
            Self::Message { .. } => "messages[].",
            Self::ContentPart { .. } => "messages[].content[].",
        }
    }
}
