//! What carries loss: the stretches of a conversation that the model must produce by itself.
//!
//! Loss is on, for each turn of the model, the text behind its generation prompt (`<|assistant|>\n`)
//! and the token that ends it: the role token of the next turn, and `<|endoftext|>` behind the last.
//! The template itself says where that is: the conversation rendered up to the turn, with the generation
//! prompt, is where the turn begins; rendered with the turn, where it ends. So the prompt that is trained
//! on is the prompt that is generated from, letter for letter.
//!
//! LLaMA-Factory also trains the line break behind `<|assistant|>`, which the prompt already holds, and
//! masks that drop the token at the end give models that do not stop.
//!
//! A turn with the key `"loss": false` is left out. What a template passes over without a word, a message or a key of one, is
//! refused.

use glm4v_processor::{Message, Processor, RenderOptions, Segment, TemplateError, token};

use crate::keys::is_void;
use crate::record::Record;

/// Why it cannot be said what a conversation trains.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Words behind the last answer.
    #[error("message {message}: the last message must be the assistant's, found a turn of the {role}")]
    LastTurn {
        /// Index of the message.
        message: usize,
        /// Whose turn it is.
        role: String,
    },
    /// More messages than can be told apart in reasonable time.
    #[error(
        "holds {found} messages, needed at most {MAX_MESSAGES}; cut the conversation into several records"
    )]
    ManyMessages {
        /// Its messages.
        found: usize,
    },
    /// The template leaves a message out.
    #[error(
        "message {message}: the chat template writes nothing for the role \"{role}\"; remove the message"
    )]
    Ignored {
        /// Index of the message.
        message: usize,
        /// Whose turn it is.
        role: String,
    },
    /// The template writes an earlier turn in another way once later turns follow.
    #[error(
        "message {message}: the chat template writes this turn in another way once later turns follow, so it \
         cannot be is_label in this conversation; give it \"loss\": false, or a conversation that ends with it"
    )]
    Rewritten {
        /// Index of the message.
        message: usize,
    },
    /// The turn begins in another way than the prompt that the model is asked with.
    #[error("message {message}: the chat template does not begin this turn as it begins a generated one")]
    Prompt {
        /// Index of the message.
        message: usize,
    },
    /// The template writes nothing for a turn that is to carry loss.
    #[error("message {message}: the chat template writes nothing behind the prompt of this turn")]
    Nothing {
        /// Index of the message.
        message: usize,
    },
    /// No role token behind a turn.
    #[error(
        "message {message}: no turn of the user or a tool follows, so the model cannot learn to stop here"
    )]
    NoEnd {
        /// Index of the message.
        message: usize,
    },
    /// The template passes over a key that holds words.
    #[error(
        "message {message}: the chat template does not write \"{key}\" here, so it would not be learned; write its words into \
         \"content\", or take it out"
    )]
    IgnoredKey {
        /// Index of the message.
        message: usize,
        /// The key.
        key: &'static str,
    },
    /// The template passes over the tools.
    #[error(
        "the chat template of this model does not write \"tools\"; take them out, or use a model that knows them"
    )]
    IgnoredTools,
    /// Every turn has `"loss": false`.
    #[error("masks everything: every turn of the assistant has \"loss\": false")]
    MasksEverything,
}

/// Longest conversation. Where an answer stands is found by rendering what precedes it, so the time grows with the square
/// of this: some seconds here.
const MAX_MESSAGES: usize = 4096;

/// Tokens that may end a turn of the model within a conversation.
const ENDS: [&str; 3] = [token::USER, token::OBSERVATION, token::SYSTEM];

/// Cuts the rendered record into what carries loss and what is not; joined, the texts are the rendered
/// conversation with `<|endoftext|>` behind it.
///
/// # Errors
///
/// When the template fails on the record, or what it writes has no clear answers in it.
pub fn segments(
    record: &Record,
    processor: &Processor,
    enable_thinking: Option<bool>,
) -> Result<Vec<Segment>, LabelError> {
    let mut options = RenderOptions { enable_thinking, tools: record.tools.clone(), ..Default::default() };
    let pieces = cut(&record.messages, |messages, add_generation_prompt| {
        options.add_generation_prompt = add_generation_prompt;
        processor.render(messages, &options)
    })?;
    options.add_generation_prompt = false;
    reads_every_word(&record.messages, &options, |messages, options| processor.render(messages, options))?;
    Ok(pieces)
}

/// Keys of a turn that hold words of the model.
const WORDS: [&str; 4] = ["reasoning_content", "reasoning", "thinking", "tool_calls"];

/// Refuses keys that the template passes over: what it writes is the same without them.
fn reads_every_word(
    messages: &[Message],
    options: &RenderOptions,
    mut render: impl FnMut(&[Message], &RenderOptions) -> Result<String, TemplateError>,
) -> Result<(), LabelError> {
    // A template that refuses to render without a key reads it.
    let mut same = |with: (&[Message], &RenderOptions), without: (&[Message], &RenderOptions)| matches!((render(with.0, with.1), render(without.0, without.1)), (Ok(a), Ok(b)) if a == b);
    let said = |value: Option<&serde_json::Value>| value.is_some_and(|value| !is_void(value));
    if said(options.tools.as_ref()) {
        let without = RenderOptions { tools: None, ..options.clone() };
        if same((messages, options), (messages, &without)) {
            return Err(LabelError::IgnoredTools);
        }
    }
    for (index, message) in messages.iter().enumerate() {
        for key in WORDS.into_iter().filter(|key| said(message.extra.get(*key))) {
            // As the last turn: of earlier ones templates leave thoughts out on purpose.
            let with = &messages[..=index];
            let mut without = with.to_vec();
            without[index].extra.shift_remove(key);
            if same((with, options), (&without, options)) {
                return Err(LabelError::IgnoredKey { message: index, key });
            }
        }
    }
    Ok(())
}

/// [`segments`] with any way to render: messages, and whether the prompt of an answer follows.
fn cut(
    messages: &[Message],
    mut render: impl FnMut(&[Message], bool) -> Result<String, TemplateError>,
) -> Result<Vec<Segment>, LabelError> {
    let last = messages.len().saturating_sub(1);
    match messages.last() {
        Some(message) if message.role == "assistant" => {}
        other => {
            let role = other.map_or("nobody", |message| message.role.as_str()).to_owned();
            return Err(LabelError::LastTurn { message: last, role });
        }
    }
    if messages.len() > MAX_MESSAGES {
        return Err(LabelError::ManyMessages { found: messages.len() });
    }
    let full = render(messages, false)?;
    // Templates know `user` and `assistant`; of other roles one may know nothing and say so to nobody.
    let others = messages.iter().enumerate().filter(|(_, m)| m.role != "user" && m.role != "assistant");
    for (index, message) in others {
        if index > 0 && adds_nothing(messages, index, &mut render) {
            return Err(LabelError::Ignored { message: index, role: message.role.clone() });
        }
    }
    let mut out = Vec::new();
    let mut done = 0;
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        if message.extra.get("loss").and_then(|loss| loss.as_bool()) == Some(false) {
            continue;
        }
        let head = render(&messages[..index], true)?;
        let tail = if index == last { full.clone() } else { render(&messages[..=index], false)? };
        if !full.starts_with(&tail) {
            return Err(LabelError::Rewritten { message: index });
        }
        let Some(answer) = tail.strip_prefix(head.as_str()) else {
            return Err(LabelError::Prompt { message: index });
        };
        if answer.is_empty() {
            return Err(LabelError::Nothing { message: index });
        }
        let rest = &full[tail.len()..];
        let end = match rest {
            // A template may write it by itself.
            "" if answer.ends_with(token::END_OF_TEXT) => "",
            "" => token::END_OF_TEXT,
            _ => ENDS
                .into_iter()
                .find(|end| rest.starts_with(end))
                .ok_or(LabelError::NoEnd { message: index })?,
        };
        out.push(Segment { text: full[done..head.len()].to_owned(), is_label: false });
        out.push(Segment { text: answer.to_owned(), is_label: true });
        // A piece of its own: a special token is cut out of any text, so the ids stay what they are.
        out.push(Segment { text: end.to_owned(), is_label: true });
        done = (tail.len() + end.len()).min(full.len());
    }
    if out.is_empty() {
        return Err(LabelError::MasksEverything);
    }
    out.push(Segment { text: full[done..].to_owned(), is_label: false });
    out.retain(|segment| !segment.text.is_empty());
    Ok(out)
}

/// Whether the rendered text is the same with and without a message. A template that refuses a
/// conversation cut there is no proof of it.
fn adds_nothing(
    messages: &[Message],
    index: usize,
    render: &mut impl FnMut(&[Message], bool) -> Result<String, TemplateError>,
) -> bool {
    let with = render(&messages[..=index], false);
    let without = render(&messages[..index], false);
    matches!((with, without), (Ok(with), Ok(without)) if with == without)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A conversation from texts, the user first.
    fn talk(texts: &[&str]) -> Vec<Message> {
        let role = |i| if i % 2 == 0 { "user" } else { "assistant" };
        texts.iter().enumerate().map(|(i, text)| Message::new(role(i), *text)).collect()
    }

    /// A template in the manner of GLM-4.1V, which knows of user, system and assistant only.
    fn glm(messages: &[Message], generate: bool) -> Result<String, TemplateError> {
        let turn = |m: &Message| match m.role.as_str() {
            "tool" => String::new(),
            role => format!("<|{role}|>\n{}", m.content.texts().collect::<String>()),
        };
        let end = if generate { "<|assistant|>\n" } else { "" };
        Ok(format!("[gMASK]<sop>{}{end}", messages.iter().map(turn).collect::<String>()))
    }

    fn labels(segments: &[Segment]) -> Vec<&str> {
        segments.iter().filter(|s| s.is_label).map(|s| s.text.as_str()).collect()
    }

    #[test]
    fn a_conversation_without_end_is_refused_before_it_takes_hours() {
        let long = talk(&["x"; MAX_MESSAGES + 2]);

        let error = cut(&long, |_, _| panic!("rendered")).unwrap_err();

        assert_eq!(
            error.to_string(),
            "holds 4098 messages, needed at most 4096; cut the conversation into several records"
        );
    }

    #[test]
    fn answers_and_the_tokens_that_end_them_carry_loss() {
        let messages = talk(&["q", "a", "r", "b"]);

        let segments = cut(&messages, glm).unwrap();

        assert_eq!(labels(&segments), ["a", "<|user|>", "b", "<|endoftext|>"]);
        let joined: String = segments.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(joined, glm(&messages, false).unwrap() + "<|endoftext|>");
    }

    #[test]
    fn what_comes_before_an_answer_is_the_prompt_of_generation() {
        let messages = talk(&["q", "a", "r", "b"]);

        let segments = cut(&messages, glm).unwrap();

        for (turn, at) in [(1, 1), (3, 4)] {
            let before: String = segments[..at].iter().map(|s| s.text.as_str()).collect();
            assert_eq!(before, glm(&messages[..turn], true).unwrap());
        }
    }

    #[test]
    fn a_turn_without_loss_is_prompt_only() {
        let mut messages = talk(&["q", "a", "r", "b"]);
        messages[1].extra.insert("loss".to_owned(), json!(false));
        assert_eq!(labels(&cut(&messages, glm).unwrap()), ["b", "<|endoftext|>"]);

        messages[1].extra.insert("loss".to_owned(), json!(true));
        messages[3].extra.insert("loss".to_owned(), json!(false));
        let segments = cut(&messages, glm).unwrap();
        assert_eq!(labels(&segments), ["a", "<|user|>"]);
        let joined: String = segments.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(joined, glm(&messages, false).unwrap());

        messages[1].extra.insert("loss".to_owned(), json!(false));
        let said = cut(&messages, glm).unwrap_err().to_string();
        assert_eq!(said, "masks everything: every turn of the assistant has \"loss\": false");
    }

    #[test]
    fn the_end_that_a_template_writes_does_not_carry_loss_twice() {
        let ends = |messages: &[Message], generate| {
            let text = glm(messages, generate)?;
            let ended = !generate && messages.last().is_some_and(|m| m.role == "assistant");
            Ok(if ended { text + "<|endoftext|>" } else { text })
        };

        assert_eq!(labels(&cut(&talk(&["q", "a"]), ends).unwrap()), ["a<|endoftext|>"]);
    }

    #[test]
    fn conversations_without_clear_answers_are_refused_by_turn() {
        let said = |messages: &[Message]| cut(messages, glm).unwrap_err().to_string();

        let trailing = said(&talk(&["q", "a", "r"]));
        assert_eq!(trailing, "message 2: the last message must be the assistant's, found a turn of the user");
        let mut tool = talk(&["q", "a", "r", "b"]);
        tool[2].role = "tool".to_owned();
        let needed = "message 2: the chat template writes nothing for the role \"tool\"; remove the message";
        assert_eq!(said(&tool), needed);
        let mut twice = talk(&["q", "a", "r", "b"]);
        twice[2].role = "assistant".to_owned();
        assert!(said(&twice).starts_with("message 1: no turn of the user or a tool follows"));
        let silent = said(&talk(&["q", ""]));
        assert_eq!(silent, "message 1: the chat template writes nothing behind the prompt of this turn");
    }

    #[test]
    fn a_key_that_the_template_passes_over_is_refused() {
        let mut messages = talk(&["q", "a", "r", "b"]);
        messages[1].extra.insert("reasoning_content".to_owned(), json!("because"));
        let thinks = |messages: &[Message], _: &RenderOptions| {
            let thought = |m: &Message| m.extra.get("reasoning_content").map(ToString::to_string);
            Ok(glm(messages, false)? + &messages.iter().filter_map(thought).collect::<String>())
        };
        let tools = RenderOptions { tools: Some(json!([{"name": "f"}])), ..RenderOptions::default() };
        let plain = RenderOptions::default();
        let deaf = |messages: &[Message], _: &RenderOptions| glm(messages, false);
        let said = |options| reads_every_word(&messages, options, deaf).unwrap_err().to_string();

        assert!(reads_every_word(&messages, &plain, thinks).is_ok());
        assert!(
            said(&plain)
                .starts_with("message 1: the chat template does not write \"reasoning_content\" here")
        );
        assert!(said(&tools).starts_with("the chat template of this model does not write \"tools\""));
    }

    #[test]
    fn a_template_that_rewrites_history_is_found_out() {
        // As GLM-OCR does: thoughts are kept in the turns behind the last question only.
        let forgets = |messages: &[Message], generate: bool| {
            let last_user = messages.iter().rposition(|m| m.role == "user").unwrap_or(0);
            let mut messages = messages.to_vec();
            for message in &mut messages[..last_user] {
                let text: String = message.content.texts().collect();
                message.content = text.rsplit("</think>").next().unwrap_or_default().into();
            }
            glm(&messages, generate)
        };
        let mut messages = talk(&["q", "<think>t</think>a", "r", "<think>u</think>b"]);

        let said = cut(&messages, forgets).unwrap_err().to_string();

        assert!(said.starts_with("message 1: the chat template writes this turn in another way"), "{said}");
        messages[1].extra.insert("loss".to_owned(), json!(false));
        let remedied = cut(&messages, forgets).unwrap();
        assert_eq!(labels(&remedied), ["<think>u</think>b", "<|endoftext|>"]);
    }

    #[test]
    fn a_turn_that_begins_unlike_its_prompt_is_found_out() {
        let thinks = |messages: &[Message], generate| {
            Ok(glm(messages, generate)? + if generate { "<think>" } else { "" })
        };

        let said = cut(&talk(&["q", "a"]), thinks).unwrap_err().to_string();

        let needed = "message 1: the chat template does not begin this turn as it begins a generated one";
        assert_eq!(said, needed);
    }
}
