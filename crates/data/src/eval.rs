//! Records for evaluation.

use glm4v_processor::Message;
use serde_json::Value;

use crate::location::RecordLocation;
use crate::record::Record;

/// A prompt with its reference answer.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalExample {
    /// The messages before the last one of the assistant.
    pub prompt: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Option<Value>,
    /// The text of the last message of the assistant.
    pub answer: String,
    /// Location of the record.
    pub location: RecordLocation,
    /// Paths or URLs of the prompt's images; `data:` URLs are shortened.
    pub images: Vec<String>,
    /// Paths of the prompt's videos.
    pub videos: Vec<String>,
}

impl EvalExample {
    /// Splits a record before the last message of the assistant.
    ///
    /// `None` without such a message; [`Record::parse`] refuses these records.
    pub fn from_record(record: &Record) -> Option<Self> {
        let last = record.messages.iter().rposition(|message| message.role == "assistant")?;
        let prompt = record.messages[..last].to_vec();
        let images = prompt.iter().flat_map(Message::images).map(ToString::to_string).collect();
        let videos = prompt.iter().flat_map(Message::videos).map(ToString::to_string).collect();
        let answer = record.messages[last].content.texts().collect();
        let (tools, location) = (record.tools.clone(), record.location.clone());
        Some(Self { prompt, tools, answer, location, images, videos })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::schema::RecordSchema;

    #[test]
    fn the_prompt_is_everything_before_the_last_answer() {
        let long = format!("data:image/png;base64,{}", "A".repeat(100));
        let value = serde_json::json!({"conversations": [
            {"from": "human", "value": "<video><image>one"}, {"from": "gpt", "value": "first"},
            {"from": "human", "value": "two<image>"}, {"from": "gpt", "value": "second"}],
            "images": ["a.png", long], "videos": "a.mp4"});
        let location = RecordLocation::line("d/x.jsonl".as_ref(), 3);
        let record =
            Record::parse(value, location.clone(), &RecordSchema::default(), Path::new("d"), None).unwrap();

        let example = EvalExample::from_record(&record).unwrap();

        assert_eq!(example.prompt, record.messages[..3]);
        assert_eq!(example.answer, "second");
        assert_eq!(example.location, location);
        assert_eq!(example.images[0], "d/a.png");
        assert_eq!(example.videos, ["d/a.mp4"]);
        assert_eq!(example.images[1].chars().count(), 61);
    }
}
