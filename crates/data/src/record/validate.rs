//! Checks of parsed messages.

use glm4v_processor::{ContentPart, Message, token};
use serde_json::{Map, Value};

use super::error::RecordError;

/// Tokens reserved for the chat template and the processor.
const CONTROL_TOKENS: [&str; 11] = [
    token::IMAGE,
    token::VIDEO,
    token::BEGIN_OF_IMAGE,
    token::END_OF_IMAGE,
    token::BEGIN_OF_VIDEO,
    token::END_OF_VIDEO,
    token::END_OF_TEXT,
    token::SYSTEM,
    token::USER,
    token::ASSISTANT,
    token::OBSERVATION,
];

/// Refuses control tokens in texts, media that chat templates do not render, and empty answers.
pub(super) fn check_message(index: usize, message: &Message) -> Result<(), RecordError> {
    let control =
        CONTROL_TOKENS.into_iter().find(|token| message.content.texts().any(|text| text.contains(token)));
    if let Some(token) = control {
        return Err(RecordError::ControlToken { message: index, token });
    }
    let text_only = message.role == "assistant" || message.role == "system";
    if text_only && message.content.parts().iter().any(|part| !matches!(part, ContentPart::Text { .. })) {
        return Err(RecordError::MediaInTextMessage { message: index, role: message.role.clone() });
    }
    let is_empty = message.content.texts().all(|text| text.trim().is_empty());
    if message.role == "assistant" && is_empty && !message.extra.contains_key("tool_calls") {
        return Err(RecordError::EmptyAnswer { message: index });
    }
    Ok(())
}

/// Refuses `<audio>` in a text whose placeholders stand for media: the model would be trained on its letters. Within a list of
/// parts it is ordinary text, as `<image>` is.
pub(super) fn check_audio(record: &Map<String, Value>, messages: &[Value]) -> Result<(), RecordError> {
    let has_audio =
        |message: &Value| message["content"].as_str().is_some_and(|text| text.contains("<audio>"));
    let Some(message) = messages.iter().position(has_audio) else { return Ok(()) };
    let listed = ["audio", "audios"].into_iter().find(|key| record.contains_key(*key));
    Err(RecordError::Audio { message, key: listed.unwrap_or("audios") })
}
