//! A record as a question with a known answer.

use glm4v_processor::Message;
use serde_json::Value;

use crate::location::Location;
use crate::record::Record;

/// What a model is asked, and what it should say.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalItem {
    /// Everything up to the last turn of the model.
    pub prompt: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Option<Value>,
    /// The text of the last turn of the model.
    pub answer: String,
    /// Where the record stands.
    pub at: Location,
    /// The images of the prompt, for people to look at.
    pub images: Vec<String>,
    /// Its videos.
    pub videos: Vec<String>,
}

impl EvalItem {
    /// Takes the last turn of the model as the answer, and what comes before as the question.
    ///
    /// `None` for a record without a turn of the model, which reading does not let through.
    pub fn of(record: &Record) -> Option<Self> {
        let last = record.messages.iter().rposition(|message| message.role == "assistant")?;
        let prompt = record.messages[..last].to_vec();
        let images = prompt.iter().flat_map(Message::images).map(ToString::to_string).collect();
        let videos = prompt.iter().flat_map(Message::videos).map(ToString::to_string).collect();
        let answer = record.messages[last].content.texts().collect();
        Some(Self { prompt, tools: record.tools.clone(), answer, at: record.at.clone(), images, videos })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::layout::Layout;

    #[test]
    fn the_last_answer_is_asked_for_with_all_that_comes_before() {
        let long = format!("data:image/png;base64,{}", "A".repeat(100));
        let value = serde_json::json!({"conversations": [
            {"from": "human", "value": "<video><image>one"}, {"from": "gpt", "value": "first"},
            {"from": "human", "value": "two<image>"}, {"from": "gpt", "value": "second"}],
            "images": ["a.png", long], "videos": "a.mp4"});
        let at = Location { file: Path::new("d/x.jsonl").into(), line: 3, index: None };
        let record = Record::parse(value, at.clone(), &Layout::default(), Path::new("d"), None).unwrap();

        let item = EvalItem::of(&record).unwrap();

        assert_eq!(item.prompt, record.messages[..3]);
        assert_eq!(item.answer, "second");
        assert_eq!(item.at, at);
        assert_eq!(item.images[0], "d/a.png");
        assert_eq!(item.videos, ["d/a.mp4"]);
        assert_eq!(item.images[1].chars().count(), 61);
    }
}
