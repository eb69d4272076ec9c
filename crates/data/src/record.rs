//! One record: a conversation to learn from, checked for what would otherwise fail silently.
//!
//! Every form becomes the same messages: keys and speakers get the names that chat templates know, every
//! `<image>` in a text and every part without a source takes the next entry of `images`, paths are
//! resolved.

use std::path::{Path, PathBuf};

use glm4v_processor::{
    Content, ImageSource, Message, MessagesError, Part, VideoData, VideoSource, parse_messages, token,
};
use serde_json::{Map, Number, Value};

use crate::keys::{self, Place, Unread};
use crate::layout::Layout;
use crate::location::Location;
use crate::media::{Media, MediaCount};
use crate::suggest::list;
use crate::turn::{turns, with_system};

/// Why a record cannot be learned from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A value of the wrong kind, or none.
    #[error("{key} is {found}, needed {needed}")]
    Kind {
        /// The key, with the number of the message where it belongs to one.
        key: String,
        /// The kind of the value found.
        found: &'static str,
        /// What the key may hold.
        needed: &'static str,
    },
    /// No list of turns.
    #[error(
        "has no \"{needed}\"; its keys are {found}; needed: a conversation as {EXAMPLE}, or one under another key that \
         columns.messages names in dataset_info.json"
    )]
    NoMessages {
        /// The key that was looked for.
        needed: String,
        /// The keys of the record.
        found: String,
    },
    /// A text that nobody says.
    #[error(
        "\"{key}\" is plain text, and training on text without a conversation (pretraining) is not supported; needed: a \
         conversation as {EXAMPLE}"
    )]
    PlainText {
        /// The key of the text.
        key: &'static str,
    },
    /// A key whose meaning is not obeyed.
    #[error("{place}\"{key}\" {why}")]
    Refused {
        /// Where it stands.
        place: Place,
        /// The key.
        key: String,
        /// Why, and what to do instead.
        why: &'static str,
    },
    /// A loss that is neither on nor off.
    #[error("{place}\"{key}\" is {found}, needed 0 (no loss) or 1 (loss); other weights are not supported")]
    Weight {
        /// Where it stands.
        place: Place,
        /// The key.
        key: &'static str,
        /// The number.
        found: Number,
    },
    /// Two keys that contradict each other.
    #[error("{place}\"{first}\" and \"{second}\" contradict each other; keep one")]
    TwoLosses {
        /// Where they stand.
        place: Place,
        /// One key.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A loss on what the model does not say.
    #[error(
        "message {message}: asks for a loss on a turn of the {role}, and only turns of the assistant are trained on; \
         take the key out"
    )]
    LossElsewhere {
        /// Index of the message.
        message: usize,
        /// Whose turn it is.
        role: &'static str,
    },
    /// A place for a sound.
    #[error(
        "message {message}: <audio> stands for an entry of \"{key}\", and models of this family cannot take sound"
    )]
    Sound {
        /// Index of the message.
        message: usize,
        /// The list of sounds.
        key: &'static str,
    },
    /// A record that is marked as not to be learned.
    #[error("is marked as without loss; leave the record out of the file")]
    NoLoss,
    /// A part with two contents.
    #[error("{place}holds \"{first}\" and \"{second}\", needed one; write two parts")]
    TwoThings {
        /// Where it stands.
        place: Place,
        /// A key that says what the part holds.
        first: String,
        /// Another.
        second: String,
    },
    /// Two lists of media.
    #[error("has \"{singular}\" and \"{plural}\"; columns.{plural} in dataset_info.json says which")]
    TwoLists {
        /// `image` or `video`.
        singular: &'static str,
        /// `images` or `videos`.
        plural: &'static str,
    },
    /// Two lists of turns.
    #[error("has \"messages\" and \"conversations\"; columns.messages says which, in dataset_info.json")]
    TwoConversations,
    /// A speaker that is not known.
    #[error("{place}unknown role \"{found}\"; known are {known}")]
    UnknownRole {
        /// The message.
        place: Place,
        /// The name found.
        found: String,
        /// The names known.
        known: String,
    },
    /// A call of a function that is not one.
    #[error("message {message}: a function call needs json with \"name\" and \"arguments\", found {found:?}")]
    FunctionCall {
        /// Index of the message.
        message: usize,
        /// What stands there, cut after a few words.
        found: String,
    },
    /// A message that is not understood.
    #[error(transparent)]
    Message(#[from] MessagesError),
    /// Texts and lists disagree on how many images or videos there are.
    #[error(transparent)]
    MediaCount(#[from] MediaCount),
    /// An image or video where chat templates take text only.
    #[error("message {message}: a turn of the {role} holds an image or video, needed text only")]
    Shown {
        /// Index of the message.
        message: usize,
        /// Whose turn it is.
        role: String,
    },
    /// A text that spells a token which only the chat template may write.
    #[error(
        "message {message}: its text spells {token}, which the chat template writes by itself; remove it"
    )]
    ControlToken {
        /// Index of the message.
        message: usize,
        /// The token.
        token: &'static str,
    },
    /// An answer without words: the model would learn to say nothing.
    #[error("message {message}: the answer is empty")]
    EmptyAnswer {
        /// Index of the message.
        message: usize,
    },
    /// No turn of the model.
    #[error("has no turn of the assistant, so there is nothing to learn; its roles are {found}")]
    NoAnswer {
        /// The roles of the record.
        found: String,
    },
}

/// A conversation of one turn each.
const EXAMPLE: &str =
    r#"{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}"#;

/// A conversation to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it stands.
    pub at: Location,
    /// Its turns, with media in their places and paths resolved; roles are `system`, `user`,
    /// `assistant` and `tool`.
    pub messages: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Option<Value>,
    /// Keys that are not known and were not read, as `messages[].key`.
    pub unread: Vec<String>,
}

impl Record {
    /// Reads a record. Media are relative to `folder`, or to `media_dir` where they exist there.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn parse(
        value: Value,
        at: Location,
        layout: &Layout,
        folder: &Path,
        media_dir: Option<&Path>,
    ) -> Result<Self, RecordError> {
        let Value::Object(mut record) = value else {
            return Err(kind("the record", Some(&value), "an object"));
        };
        let mut unread = Unread::default();
        let mut media = Media::take(&mut record, layout)?;
        keys::refuse(Place::Record, &record)?;
        let tools = tools(record.shift_remove(name(&layout.columns.tools, "tools")))?;
        if keys::take_loss(Place::Record, &mut record)? == Some(false) {
            return Err(RecordError::NoLoss);
        }
        let mut turns = turns(&mut record, layout, &mut unread)?;
        with_system(&mut record, layout, &mut turns)?;
        check_sound(&record, &turns)?;
        keys::pass_over(Place::Record, &record, &mut unread)?;
        let places = turns.iter().map(|turn| media.places(&turn["content"]));
        media.check(&places.collect::<Vec<_>>())?;
        for turn in &mut turns {
            media.fill(&mut turn["content"]);
        }
        let text = Value::Array(turns).to_string();
        let mut messages = parse_messages(&text, media_dir.unwrap_or(folder))?;
        if let Some(media_dir) = media_dir {
            messages.iter_mut().for_each(|message| prefer_existing(message, media_dir, folder));
        }
        messages.iter().enumerate().try_for_each(|(index, message)| check(index, message))?;
        if !messages.iter().any(|message| message.role == "assistant") {
            return Err(RecordError::NoAnswer { found: list(messages.iter().map(|m| m.role.as_str())) });
        }
        Ok(Self { at, messages, tools, unread: unread.into_keys() })
    }

    /// The images, in the order in which the model sees them.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.messages.iter().flat_map(Message::images)
    }

    /// The videos, in the order in which the model sees them.
    pub fn videos(&self) -> impl Iterator<Item = &VideoSource> {
        self.messages.iter().flat_map(Message::videos)
    }
}

pub(crate) fn name<'a>(given: &'a Option<String>, own: &'static str) -> &'a str {
    given.as_deref().unwrap_or(own)
}

/// Says that `value` is of the wrong kind.
pub(crate) fn kind(key: impl Into<String>, value: Option<&Value>, needed: &'static str) -> RecordError {
    let found = match value {
        None => "missing",
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a string",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    };
    RecordError::Kind { key: key.into(), found, needed }
}

/// The tools of a record: a list, or the text of one as LLaMA-Factory writes it.
fn tools(value: Option<Value>) -> Result<Option<Value>, RecordError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Array(tools)) => Ok(Some(Value::Array(tools))),
            _ => Err(kind("\"tools\"", Some(&Value::String(text)), "a list of tools, or its json")),
        },
        Some(Value::Array(tools)) => Ok(Some(Value::Array(tools))),
        other => Err(kind("\"tools\"", other.as_ref(), "a list of tools, or its json")),
    }
}

/// Refuses `<audio>` in a text whose placeholders stand for media: it would be learned as letters. In a list of parts it is
/// only text, as `<image>` is.
fn check_sound(record: &Map<String, Value>, turns: &[Value]) -> Result<(), RecordError> {
    let spells = |turn: &Value| turn["content"].as_str().is_some_and(|text| text.contains("<audio>"));
    let listed = ["audio", "audios"].into_iter().find(|key| record.contains_key(*key));
    match turns.iter().position(spells) {
        Some(message) => Err(RecordError::Sound { message, key: listed.unwrap_or("audios") }),
        None => Ok(()),
    }
}

/// Takes a file beside the records for one that is not in the media folder, as LLaMA-Factory does.
fn prefer_existing(message: &mut Message, media_dir: &Path, folder: &Path) {
    let Content::Parts(parts) = &mut message.content else { return };
    let prefer = |path: &mut PathBuf| {
        if let Ok(written) = path.strip_prefix(media_dir).map(PathBuf::from)
            && !path.exists()
            && folder.join(&written).exists()
        {
            *path = folder.join(written);
        }
    };
    for part in parts {
        match part {
            Part::Image(ImageSource::Path(path)) => prefer(path),
            Part::Video(VideoSource { data: VideoData::Path(path), .. }) => prefer(path),
            Part::Video(VideoSource { data: VideoData::Frames(frames), .. }) => {
                for frame in frames {
                    if let ImageSource::Path(path) = frame {
                        prefer(path);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Tokens that only the chat template and the processor may write.
const CONTROL: [&str; 11] = [
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

fn check(index: usize, message: &Message) -> Result<(), RecordError> {
    let spelled = CONTROL.into_iter().find(|token| message.content.texts().any(|text| text.contains(token)));
    if let Some(token) = spelled {
        return Err(RecordError::ControlToken { message: index, token });
    }
    let speaks_only = message.role == "assistant" || message.role == "system";
    if speaks_only && message.content.parts().iter().any(|part| !matches!(part, Part::Text { .. })) {
        return Err(RecordError::Shown { message: index, role: message.role.clone() });
    }
    let silent = message.content.texts().all(|text| text.trim().is_empty());
    if message.role == "assistant" && silent && !message.extra.contains_key("tool_calls") {
        return Err(RecordError::EmptyAnswer { message: index });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::layout::{Formatting, Tags};

    fn parse_as(value: Value, layout: &Layout) -> Result<Record, RecordError> {
        let at = Location { file: Path::new("d/x.jsonl").into(), line: 1, index: None };
        Record::parse(value, at, layout, Path::new("d"), None)
    }

    fn parse(value: Value) -> Result<Record, RecordError> {
        parse_as(value, &Layout::default())
    }

    fn refused(value: Value) -> String {
        parse(value).unwrap_err().to_string()
    }

    fn asked(user: Value, answer: Value) -> Value {
        json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]})
    }

    #[test]
    fn every_form_of_one_conversation_gives_the_same_messages() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "image", "path": "1.png"},
            {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "2.png"}}]);
        let open_ai = parse(asked(parts, json!("c"))).unwrap();

        let mut with_list = asked(json!("a<image>b<image>"), json!("c"));
        with_list["images"] = json!(["1.png", {"path": "2.png", "bytes": null}]);
        let share_gpt = json!({"conversations": [{"from": "human", "value": "a<image>b<image>"},
            {"from": "gpt", "value": "c"}], "images": ["1.png", "2.png"]});
        let mut hugging_face = asked(
            json!([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"},
                {"type": "image", "text": null}]),
            json!([{"type": "text", "text": "c"}]),
        );
        hugging_face["images"] = with_list["images"].clone();

        assert_eq!(parse(with_list).unwrap(), open_ai);
        assert_eq!(parse(share_gpt).unwrap(), open_ai);
        let hugging_face = parse(hugging_face).unwrap();
        assert_eq!(hugging_face.messages[0], open_ai.messages[0]);
        let path = |p: &str| ImageSource::Path(p.into());
        assert_eq!(open_ai.images().cloned().collect::<Vec<_>>(), ["d/1.png", "d/2.png"].map(path));
    }

    #[test]
    fn images_are_taken_in_order_over_all_turns() {
        let record = json!({"messages": [
            {"role": "user", "content": "<image>x<video>"}, {"role": "assistant", "content": "a"},
            {"role": "user", "content": "<image>"}, {"role": "assistant", "content": "b"}],
            "images": ["1.png", "2.png"], "videos": "v.mp4"});

        let messages = parse(record).unwrap().messages;

        let path = |p: &str| Part::Image(ImageSource::Path(p.into()));
        let video = Part::Video(PathBuf::from("d/v.mp4").into());
        assert_eq!(messages[0].content.parts(), [path("d/1.png"), Part::text("x"), video]);
        assert_eq!(messages[2].content.parts(), [path("d/2.png")]);
    }

    #[test]
    fn images_and_places_that_differ_in_number_are_counted() {
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
    fn a_loss_that_is_switched_off_is_switched_off_whatever_the_key() {
        let with = |key: &str, value: Value| {
            let mut record = asked(json!("q"), json!("a"));
            record["messages"][1][key] = value;
            record
        };
        let loss = |record: Value| parse(record).unwrap().messages[1].extra.get("loss").cloned();

        for key in ["loss", "weight", "train", "loss_scale"] {
            for off in [json!(0), json!(0.0), json!(false)] {
                assert_eq!(loss(with(key, off)), Some(json!(false)), "{key}");
            }
            for on in [json!(1), json!(1.0), json!(true), json!(null)] {
                assert_eq!(loss(with(key, on)), None, "{key}");
            }
        }
        let half = refused(with("weight", json!(0.5)));
        assert_eq!(
            half,
            "message 1: \"weight\" is 0.5, needed 0 (no loss) or 1 (loss); other weights are not supported"
        );
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
    fn a_key_that_carries_meaning_is_refused_with_the_way_out() {
        let beside = |key: &str, value: Value| {
            let mut record = asked(json!("q"), json!("a"));
            record[key] = value;
            record
        };
        let in_turn = |key: &str, value: Value| {
            let mut record = asked(json!("q"), json!("a"));
            record["messages"][0][key] = value;
            record
        };
        let in_part = |part: Value| asked(json!([part]), json!("a"));
        let cases = [
            (
                beside("audios", json!(["a.wav"])),
                "\"audios\" is sound, which models of this family cannot take",
            ),
            (beside("kto_tag", json!(true)), "\"kto_tag\" is for training on preferences (DPO, KTO)"),
            (beside("chosen", json!("b")), "\"chosen\" is for training on preferences (DPO, KTO)"),
            (
                beside("functions", json!([{"name": "f"}])),
                "\"functions\" is not read; write the functions as \"tools\"",
            ),
            (
                in_turn("images", json!(["a.png"])),
                "message 0: \"images\" is not read in a turn; list it beside",
            ),
            (
                in_turn("refusal", json!("no")),
                "message 0: \"refusal\" is not read; write its words into \"content\"",
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
        for (record, said) in cases {
            let refused = refused(record);
            assert!(refused.starts_with(said), "{refused}");
        }
        let mut sound = beside("audios", json!([]));
        sound["messages"][0]["content"] = json!("<audio>What is said?");
        assert!(refused(sound).starts_with("message 0: <audio> stands for an entry of \"audios\""));
        assert!(
            refused(asked(json!("<audio>What?"), json!("a"))).starts_with("message 0: <audio> stands for")
        );
        // What tables fill in for keys that a record lacks.
        for void in [json!(null), json!(""), json!([]), json!({})] {
            assert!(parse(beside("audios", void.clone())).is_ok());
            assert!(parse(in_turn("refusal", void)).is_ok());
        }
    }

    #[test]
    fn keys_that_are_not_known_are_named_and_those_that_describe_are_not() {
        let mut record = asked(json!([{"type": "text", "text": "q", "mood": "glad"}]), json!("a"));
        record["id"] = json!(7);
        record["_internal"] = json!("x");
        record["reward"] = json!(0.5);
        record["empty"] = json!(null);
        record["messages"][1]["tone"] = json!("dry");
        record["messages"][1]["name"] = json!("it");

        let unread = parse(record).unwrap().unread;

        assert_eq!(unread, ["messages[].content[].mood", "messages[].tone", "reward"]);
    }

    #[test]
    fn one_image_may_stand_under_its_own_key_and_needs_a_place() {
        let llava = json!({"id": "0", "image": "1.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "b"}]});
        assert_eq!(parse(llava.clone()).unwrap().images().count(), 1);

        let mut unplaced = llava.clone();
        unplaced["conversations"][0]["value"] = json!("What?");
        let said = refused(unplaced);
        assert!(said.starts_with("found 0 <image> in its messages but 1 in \"image\"; needs"), "{said}");
        assert!(
            said.ends_with("write <image> in the text where each is shown, as in \"<image>What is this?\"")
        );
        let mut both = llava.clone();
        both["images"] = json!(["2.png"]);
        assert!(
            refused(both).starts_with("has \"image\" and \"images\"; columns.images in dataset_info.json")
        );
        let mut layout = Layout::default();
        layout.columns.images = Some("images".to_owned());
        let said = parse_as(llava, &layout).unwrap_err().to_string();
        assert!(said.starts_with("\"image\" is not read; columns.images"), "{said}");
    }

    #[test]
    fn questions_with_answers_are_conversations() {
        let conversation = asked(json!("<image>\nWhat?"), json!("a"));
        let mut conversation = conversation;
        conversation["images"] = json!(["1.png"]);
        let same = parse(conversation).unwrap();
        let forms = [
            json!({"instruction": "<image>", "input": "What?", "output": "a", "images": ["1.png"]}),
            json!({"query": "<image>\nWhat?", "response": "a", "history": [], "images": ["1.png"]}),
            json!({"prompt": "<image>\nWhat?", "completion": "a", "images": ["1.png"]}),
            json!({"prompt": [{"role": "user", "content": "<image>\nWhat?"}],
                "completion": [{"role": "assistant", "content": "a"}], "images": ["1.png"]}),
        ];
        for form in forms {
            assert_eq!(parse(form.clone()).unwrap(), same, "{form}");
        }

        let long =
            json!({"instruction": "r", "input": "", "output": "b", "system": "s", "history": [["q", "a"]]});
        let roles = |record: &Record| record.messages.iter().map(|m| m.role.clone()).collect::<Vec<_>>();
        let record = parse(long.clone()).unwrap();
        assert_eq!(roles(&record), ["system", "user", "assistant", "user", "assistant"]);
        assert_eq!(record.messages[3], Message::new("user", "r"));
        let alpaca = Layout { formatting: Formatting::Alpaca, ..Layout::default() };
        assert_eq!(parse_as(long, &alpaca).unwrap(), record);
        let mut named = alpaca.clone();
        named.columns.prompt = Some("question".to_owned());
        named.columns.response = Some("reply".to_owned());
        assert!(parse_as(json!({"question": "q", "reply": "a"}), &named).is_ok());

        let pairs = json!({"instruction": "q", "output": ["good", "bad"]});
        assert_eq!(refused(pairs), "\"output\" is a list, needed a string");
        let history = json!({"query": "q", "response": "a", "history": ["x"]});
        assert_eq!(
            refused(history),
            "\"history\" is a string, needed a list of pairs of texts, question and answer"
        );
        let earlier = json!({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "old"},
            {"role": "user", "content": "r"}], "completion": [{"role": "assistant", "content": "new"}]});
        let messages = parse(earlier).unwrap().messages;
        assert_eq!(messages[1].extra.get("loss"), Some(&json!(false)));
        assert_eq!(messages[3].extra.get("loss"), None);
    }

    #[test]
    fn system_and_tools_may_stand_beside_the_turns() {
        let mut record = asked(json!("a"), json!("b"));
        record["system"] = json!("s");
        record["tools"] = json!("[{\"name\": \"t\"}]");

        let record = parse(record).unwrap();

        assert_eq!(record.messages[0], Message::new("system", "s"));
        assert_eq!(record.messages.len(), 3);
        assert_eq!(record.tools, Some(json!([{"name": "t"}])));
    }

    #[test]
    fn a_function_call_becomes_a_turn_that_calls_a_tool() {
        let turns = |call: &str| {
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": call},
                {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"}]})
        };

        let messages = parse(turns(r#"{"name": "f", "arguments": {"x": 1}}"#)).unwrap().messages;

        let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        assert_eq!(messages[1].role, "assistant");
        assert_eq!(messages[1].extra["tool_calls"], call);
        assert_eq!(messages[2].role, "tool");
        let said = "message 1: a function call needs json with \"name\" and \"arguments\", found \"f(1)\"";
        assert_eq!(refused(turns("f(1)")), said);
    }

    #[test]
    fn keys_and_speakers_of_the_registry_come_before_those_found() {
        let text = |text: &str| Some(text.to_owned());
        let tags = Tags { role_tag: text("who"), content_tag: text("says"), ..Tags::default() };
        let tags = Tags { user_tag: text("me"), assistant_tag: text("it"), ..tags };
        let mut layout = Layout { tags, ..Layout::default() };
        layout.columns.messages = text("talk");
        layout.columns.images = text("scans");
        let mut record = json!({"talk": [{"who": "me", "says": "<image>"}, {"who": "it", "says": "b"}],
            "messages": "ignored", "scans": ["1.png"]});

        assert_eq!(parse_as(record.clone(), &layout).unwrap().images().count(), 1);

        record["talk"][0]["who"] = json!("user");
        let error = parse_as(record, &layout).unwrap_err().to_string();
        let known = "known are me, it, tool, observation, function_call, system";
        assert_eq!(error, format!("message 0: unknown role \"user\"; {known}"));
    }

    #[test]
    fn a_formatting_that_is_given_is_not_guessed() {
        let open_ai = asked(json!([{"type": "text", "text": "a"}]), json!("b"));
        let share_gpt =
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]});
        let as_form = |value: &Value, formatting| {
            let layout = Layout { formatting, ..Layout::default() };
            parse_as(value.clone(), &layout).map(|_| ()).map_err(|error| error.to_string())
        };

        assert_eq!(as_form(&open_ai, Formatting::OpenAi), Ok(()));
        assert_eq!(as_form(&share_gpt, Formatting::ShareGpt), Ok(()));
        let missing = as_form(&share_gpt, Formatting::OpenAi).unwrap_err();
        assert!(missing.starts_with("has no \"messages\"; its keys are conversations;"), "{missing}");
        let mut both = open_ai;
        both["conversations"] = both["messages"].clone();
        assert_eq!(as_form(&both, Formatting::OpenAi), Ok(()));
        assert!(as_form(&both, Formatting::Auto).unwrap_err().starts_with("has \"messages\" and"));
        both["conversations"][0] = json!({"from": "human", "value": [{"type": "text", "text": "a"}]});
        let parts = as_form(&both, Formatting::ShareGpt).unwrap_err();
        assert_eq!(
            parts,
            "message 0: \"value\" is a list, needed a string; a list of parts has the formatting \"openai\""
        );
    }

    #[test]
    fn what_would_be_learned_wrong_in_silence_is_refused() {
        let user = json!({"role": "user", "content": "q"});
        let cases = [
            (asked(json!("q"), json!(" \n")), "message 1: the answer is empty"),
            (asked(json!("q"), json!([])), "message 1: the answer is empty"),
            (
                asked(json!("q"), json!("six<|endoftext|>")),
                "message 1: its text spells <|endoftext|>, which the",
            ),
            (
                asked(json!([{"type": "text", "text": "<|image|>"}]), json!("a")),
                "message 0: its text spells <|im",
            ),
            (
                asked(json!("q"), json!([{"type": "image", "path": "p"}])),
                "message 1: a turn of the assistant holds",
            ),
            (
                json!({"messages": [user]}),
                "has no turn of the assistant, so there is nothing to learn; its roles are user",
            ),
            (
                json!({"messages": [{"role": "robot", "content": "q"}]}),
                "message 0: unknown role \"robot\"; known are user, human,",
            ),
            (json!({"messages": []}), "\"messages\" is empty, needed a list of messages"),
            (json!({"messages": 3}), "\"messages\" is a number, needed a list of messages"),
            (
                json!({"question": "x", "id": 1}),
                "has no \"messages\"; its keys are question, id; needed: a conversation as {\"messages\": [",
            ),
            (
                json!({"text": "x", "id": 1}),
                "\"text\" is plain text, and training on text without a conversation",
            ),
            (json!(3), "the record is a number, needed an object"),
            (json!({"messages": ["q"]}), "message 0 is a string, needed an object"),
            (
                asked(json!(5), json!("a")),
                "message 0: \"content\" is a number, needed a string or a list of parts",
            ),
            (
                asked(json!("q"), json!(null)),
                "message 1: \"content\" is null, needed a string or a list of parts",
            ),
            (json!({"messages": [{"content": "q"}]}), "message 0: \"role\" is missing, needed a string"),
            (asked(json!([{"type": "sound"}]), json!("a")), "message 0, part 0: unknown type \"sound\";"),
        ];
        for (value, start) in cases {
            let said = refused(value);
            assert!(said.starts_with(start), "{said}");
        }
        let mut wrong = asked(json!("q"), json!("a"));
        wrong["messages"][1]["loss"] = json!("no");
        assert_eq!(refused(wrong), "message 1: \"loss\" is a string, needed true or false");
        let mut wrong = asked(json!("<image>"), json!("a"));
        wrong["images"] = json!([""]);
        assert_eq!(refused(wrong), "\"images\"[0] is a string, needed a path or URL");
    }

    #[test]
    fn a_image_is_looked_for_in_the_media_folder_and_then_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (media, beside) = (folder.path().join("media"), folder.path().join("beside"));
        for file in [media.join("both.png"), beside.join("both.png"), beside.join("one.png")] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        let mut record = asked(json!("<image><image><image>"), json!("a"));
        record["images"] = json!(["both.png", "one.png", "none.png"]);
        let at = Location { file: Path::new("x").into(), line: 1, index: None };

        let record = Record::parse(record, at, &Layout::default(), &beside, Some(&media)).unwrap();

        let paths = [media.join("both.png"), beside.join("one.png"), media.join("none.png")];
        assert_eq!(record.images().cloned().collect::<Vec<_>>(), paths.map(ImageSource::Path));
    }
}
