//! Errors of labels.

use glm4v_processor::TemplateError;

/// Error of the labels of a conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The last message is not the assistant's.
    #[error("message {message}: the last message must be the assistant's, found a turn of the {role}")]
    LastMessage {
        /// Index of the message.
        message: usize,
        /// Role of the message.
        role: String,
    },
    /// The conversation has more messages than can be rendered one by one in reasonable time.
    #[error(
        "holds {found} messages, needed at most {MAX_MESSAGES}; cut the conversation into several records"
    )]
    TooManyMessages {
        /// Number of messages.
        found: usize,
    },
    /// The template ignores a message.
    #[error(
        "message {message}: the chat template writes nothing for the role \"{role}\"; remove the message"
    )]
    IgnoredMessage {
        /// Index of the message.
        message: usize,
        /// Role of the message.
        role: String,
    },
    /// The template renders an earlier turn in another way once later turns follow, and its place is not clear.
    #[error(
        "message {message}: the chat template writes this turn in another way once later turns follow, so it \
         cannot carry loss in this conversation; give it \"loss\": false, or a conversation that ends with it"
    )]
    RewrittenTurn {
        /// Index of the message.
        message: usize,
    },
    /// The turn does not begin with the generation prompt.
    #[error("message {message}: the chat template does not begin this turn as it begins a generated one")]
    PromptMismatch {
        /// Index of the message.
        message: usize,
    },
    /// The template renders nothing for a turn with loss.
    #[error("message {message}: the chat template writes nothing after the prompt of this turn")]
    EmptyTurn {
        /// Index of the message.
        message: usize,
    },
    /// No role token follows the turn.
    #[error(
        "message {message}: no turn of the user or a tool follows, so the model would not be trained to stop here"
    )]
    NoEndToken {
        /// Index of the message.
        message: usize,
    },
    /// The template ignores a key with text of the model.
    #[error(
        "message {message}: the chat template does not write \"{key}\" here, so the model would not be trained on it; write its text into \
         \"content\", or take it out"
    )]
    IgnoredKey {
        /// Index of the message.
        message: usize,
        /// The key.
        key: &'static str,
    },
    /// The template ignores the tools.
    #[error(
        "the chat template of this model does not write \"tools\"; take them out, or use a model that knows them"
    )]
    IgnoredTools,
    /// The only turn that may carry loss has `"loss": false`.
    #[error("message {message}: has \"loss\": false, and no other turn than the last carries loss here")]
    NoLabelsInLast {
        /// Index of the message.
        message: usize,
    },
    /// Every turn has `"loss": false`.
    #[error("masks everything: every turn of the assistant has \"loss\": false")]
    NoLabels,
}

/// Maximum number of messages. The start of an answer is found by rendering all messages before it, so the time grows with the square
/// of this number: some seconds here.
pub(super) const MAX_MESSAGES: usize = 4096;
