//! What is taught: the stretches of a conversation that the model must produce by itself.
//!
//! Taught are, for each turn of the model, the text behind its generation prompt (`<|assistant|>\n`)
//! and the token that ends it: the role token of the next turn, and `<|endoftext|>` behind the last.
//! The template itself says where that is: the conversation rendered up to the turn, with the generation
//! prompt, is where the turn begins; rendered with the turn, where it ends. So the prompt that is trained
//! on is the prompt that is generated from, letter for letter.
//!
//! LLaMA-Factory also teaches the line break behind `<|assistant|>`, which the prompt already holds, and
//! masks that drop the token at the end give models that do not stop.
//!
//! A turn with the key `"loss": false` is left out.

use glm4v_processor::{Message, Processor, RenderOptions, Segment, TemplateError, token};

use crate::record::Record;

/// Why it cannot be said what a conversation teaches.
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
    /// The template leaves a message out.
    #[error("message {message}: the chat template writes nothing for the role \"{role}\"; remove the message")]
    Ignored {
        /// Index of the message.
        message: usize,
        /// Whose turn it is.
        role: String,
    },
    /// The template writes an earlier turn in another way once later turns follow.
    #[error(
        "message {message}: the chat template writes this turn in another way once later turns follow, so it \
         cannot be taught in this conversation; give it \"loss\": false, or a conversation that ends with it"
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
    /// The template writes nothing for a turn that is to be taught.
    #[error("message {message}: the chat template writes nothing behind the prompt of this turn")]
    Nothing {
        /// Index of the message.
        message: usize,
    },
    /// No role token behind a turn.
    #[error("message {message}: no turn of the user or a tool follows, so the model cannot learn to stop here")]
    NoEnd {
        /// Index of the message.
        message: usize,
    },
    /// Every turn has `"loss": false`.
    #[error("masks everything: every turn of the assistant has \"loss\": false")]
    MasksEverything,
}

/// Tokens that may end a turn of the model within a conversation.
const ENDS: [&str; 3] = [token::USER, token::OBSERVATION, token::SYSTEM];

/// Cuts the rendered record into what is taught and what is not; joined, the texts are the rendered
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
    cut(&record.messages, |messages, add_generation_prompt| {
        options.add_generation_prompt = add_generation_prompt;
        processor.render(messages, &options)
    })
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
    let full = render(messages, false)?;
    let mut out = Vec::new();
    let mut done = 0;
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            // Templates know `user`; of other roles a template may know nothing and say so to nobody.
            if message.role != "user" && index > 0 && adds_nothing(messages, index, &mut render) {
                return Err(LabelError::Ignored { message: index, role: message.role.clone() });
            }
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
        out.push(Segment { text: full[done..head.len()].to_owned(), taught: false });
        out.push(Segment { text: answer.to_owned(), taught: true });
        // A piece of its own: a special token is cut out of any text, so the ids stay what they are.
        out.push(Segment { text: end.to_owned(), taught: true });
        done = (tail.len() + end.len()).min(full.len());
    }
    if out.is_empty() {
        return Err(LabelError::MasksEverything);
    }
    out.push(Segment { text: full[done..].to_owned(), taught: false });
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
