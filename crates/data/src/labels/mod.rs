//! Label spans: the text of a conversation that carries loss.
//!
//! Labels are, for each turn of the assistant, the text after its generation prompt (`<|assistant|>\n`) and the token that ends it:
//! the role token of the next turn, and `<|endoftext|>` after the last. The chat template itself defines the boundaries. A turn
//! begins where the conversation before it, rendered with the generation prompt, ends; and it ends where the conversation rendered
//! with it ends. So the model is trained on exactly the prompts that it is given for generation.
//!
//! LLaMA-Factory also trains the line break after `<|assistant|>`, which the prompt contains already; and loss masks without the
//! token at the end give models that do not stop.
//!
//! A message with `"loss": false` has no labels. Messages and keys that a template ignores are refused.

mod error;
mod ignored_keys;
mod renderer;
#[cfg(test)]
mod test_renderer;

use std::borrow::Cow;

use glm4v_processor::{ChatTemplateOptions, LabeledText, Message, Processor, TemplateError, token};

pub use error::LabelError;

use crate::record::Record;
use error::MAX_MESSAGES;
use ignored_keys::{check_ignored_keys, same_text};
use renderer::Renderer;

/// Tokens that may end a turn of the assistant within a conversation.
const END_TOKENS: [&str; 3] = [token::USER, token::OBSERVATION, token::SYSTEM];

/// Splits the rendered record into text with and without loss; joined, the spans are the rendered conversation and `<|endoftext|>`.
///
/// # Errors
///
/// When the template fails on the record, or its text has no clear labels.
pub fn label_spans(
    record: &Record,
    processor: &Processor,
    enable_thinking: Option<bool>,
) -> Result<Vec<LabeledText>, LabelError> {
    let options = ChatTemplateOptions { enable_thinking, tools: record.tools.clone(), ..Default::default() };
    let spans = RenderedConversation::new(&record.messages, processor, options.clone())?.label_spans()?;
    check_ignored_keys(&record.messages, processor, &options)?;
    Ok(spans)
}

/// A conversation with the text that the template renders for it.
struct RenderedConversation<'a, R> {
    messages: &'a [Message],
    renderer: &'a R,
    /// Without the generation prompt.
    options: ChatTemplateOptions,
    /// With the generation prompt.
    prompt_options: ChatTemplateOptions,
    text: String,
}

/// A turn of the assistant in the rendered text.
struct Answer {
    /// Offset after the generation prompt.
    start: usize,
    /// Offset of the end token.
    end: usize,
    /// Empty if the template writes it as part of the turn.
    end_token: &'static str,
}

impl<'a, R: Renderer> RenderedConversation<'a, R> {
    fn new(
        messages: &'a [Message],
        renderer: &'a R,
        options: ChatTemplateOptions,
    ) -> Result<Self, LabelError> {
        check_messages(messages)?;
        let options = ChatTemplateOptions { add_generation_prompt: false, ..options };
        let prompt_options = ChatTemplateOptions { add_generation_prompt: true, ..options.clone() };
        let text = renderer.render(messages, &options)?;
        let conversation = Self { messages, renderer, options, prompt_options, text };
        conversation.check_ignored_messages()?;
        Ok(conversation)
    }

    /// Templates render `user` and `assistant`; some ignore other roles without an error.
    fn check_ignored_messages(&self) -> Result<(), LabelError> {
        for (index, message) in self.messages.iter().enumerate().skip(1) {
            let role = message.role.as_str();
            let (before, with) = (&self.messages[..index], &self.messages[..=index]);
            if role != "user"
                && role != "assistant"
                && same_text(self.renderer, (with, &self.options), (before, &self.options))
            {
                return Err(LabelError::IgnoredMessage { message: index, role: role.to_owned() });
            }
        }
        Ok(())
    }

    fn label_spans(&self) -> Result<Vec<LabeledText>, LabelError> {
        let mut spans = Vec::new();
        let mut done = 0;
        for index in (0..self.messages.len()).filter(|index| has_loss(&self.messages[*index])) {
            let Answer { start, end, end_token } = self.find_answer(index)?;
            spans.push(span(&self.text[done..start], false));
            spans.push(span(&self.text[start..end], true));
            // In a span of its own: tokenizers split text at special tokens, so the ids do not change.
            spans.push(span(end_token, true));
            done = (end + end_token.len()).min(self.text.len());
        }
        if spans.is_empty() {
            return Err(LabelError::NoLabels);
        }
        spans.push(span(&self.text[done..], false));
        spans.retain(|span| !span.text.is_empty());
        Ok(spans)
    }

    fn find_answer(&self, message: usize) -> Result<Answer, LabelError> {
        let prompt = self.renderer.render(&self.messages[..message], &self.prompt_options)?;
        let whole = self.render_through(message)?;
        let Some(rest) = self.text.strip_prefix(whole.as_ref()) else {
            return Err(LabelError::RewrittenTurn { message });
        };
        let Some(answer) = whole.strip_prefix(prompt.as_str()) else {
            return Err(LabelError::PromptMismatch { message });
        };
        if answer.is_empty() {
            return Err(LabelError::EmptyTurn { message });
        }
        let end_token = match rest {
            "" if answer.ends_with(token::END_OF_TEXT) => "",
            "" => token::END_OF_TEXT,
            _ => {
                let end = END_TOKENS.into_iter().find(|end| rest.starts_with(end));
                end.ok_or(LabelError::NoEndToken { message })?
            }
        };
        Ok(Answer { start: prompt.len(), end: whole.len(), end_token })
    }

    /// The conversation up to and including a message.
    fn render_through(&self, message: usize) -> Result<Cow<'_, str>, TemplateError> {
        if message + 1 == self.messages.len() {
            return Ok(Cow::Borrowed(&self.text));
        }
        self.renderer.render(&self.messages[..=message], &self.options).map(Cow::Owned)
    }
}

fn check_messages(messages: &[Message]) -> Result<(), LabelError> {
    let role = messages.last().map_or("nobody", |message| message.role.as_str());
    if role != "assistant" {
        let message = messages.len().saturating_sub(1);
        return Err(LabelError::LastMessage { message, role: role.to_owned() });
    }
    if messages.len() > MAX_MESSAGES {
        return Err(LabelError::TooManyMessages { found: messages.len() });
    }
    Ok(())
}

fn has_loss(message: &Message) -> bool {
    message.role == "assistant"
        && message.extra.get("loss").and_then(serde_json::Value::as_bool) != Some(false)
}

fn span(text: &str, is_label: bool) -> LabeledText {
    LabeledText { text: text.to_owned(), is_label }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::test_renderer::{FnRenderer, glm, talk};
    use super::*;

    fn spans(
        messages: &[Message],
        template: impl Fn(&[Message], bool) -> Result<String, TemplateError>,
    ) -> Result<Vec<LabeledText>, LabelError> {
        RenderedConversation::new(messages, &FnRenderer(template), ChatTemplateOptions::default())?
            .label_spans()
    }

    fn labels(spans: &[LabeledText]) -> Vec<&str> {
        spans.iter().filter(|s| s.is_label).map(|s| s.text.as_str()).collect()
    }

    #[test]
    fn a_conversation_of_too_many_messages_is_not_rendered() {
        let long = talk(&["x"; MAX_MESSAGES + 2]);

        let error = spans(&long, |_, _| panic!("rendered")).unwrap_err();

        assert_eq!(
            error.to_string(),
            "holds 4098 messages, needed at most 4096; cut the conversation into several records"
        );
    }

    #[test]
    fn answers_and_the_tokens_that_end_them_carry_loss() {
        let messages = talk(&["q", "a", "r", "b"]);

        let found = spans(&messages, glm).unwrap();

        assert_eq!(labels(&found), ["a", "<|user|>", "b", "<|endoftext|>"]);
        let joined: String = found.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(joined, glm(&messages, false).unwrap() + "<|endoftext|>");
    }

    #[test]
    fn the_text_before_an_answer_is_the_prompt_of_generation() {
        let messages = talk(&["q", "a", "r", "b"]);

        let found = spans(&messages, glm).unwrap();

        for (turn, at) in [(1, 1), (3, 4)] {
            let before: String = found[..at].iter().map(|s| s.text.as_str()).collect();
            assert_eq!(before, glm(&messages[..turn], true).unwrap());
        }
    }

    #[test]
    fn a_turn_without_loss_is_prompt_only() {
        let mut messages = talk(&["q", "a", "r", "b"]);
        messages[1].extra.insert("loss".to_owned(), json!(false));
        assert_eq!(labels(&spans(&messages, glm).unwrap()), ["b", "<|endoftext|>"]);

        messages[1].extra.insert("loss".to_owned(), json!(true));
        messages[3].extra.insert("loss".to_owned(), json!(false));
        let found = spans(&messages, glm).unwrap();
        assert_eq!(labels(&found), ["a", "<|user|>"]);
        let joined: String = found.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(joined, glm(&messages, false).unwrap());

        messages[1].extra.insert("loss".to_owned(), json!(false));
        let error = spans(&messages, glm).unwrap_err().to_string();
        assert_eq!(error, "masks everything: every turn of the assistant has \"loss\": false");
    }

    #[test]
    fn the_end_that_a_template_writes_does_not_carry_loss_twice() {
        let ends = |messages: &[Message], generate| {
            let text = glm(messages, generate)?;
            let ended = !generate && messages.last().is_some_and(|m| m.role == "assistant");
            Ok(if ended { text + "<|endoftext|>" } else { text })
        };

        assert_eq!(labels(&spans(&talk(&["q", "a"]), ends).unwrap()), ["a<|endoftext|>"]);
    }

    #[test]
    fn conversations_without_clear_answers_are_refused_by_turn() {
        let refused = |messages: &[Message]| spans(messages, glm).unwrap_err().to_string();

        let trailing = refused(&talk(&["q", "a", "r"]));
        assert_eq!(trailing, "message 2: the last message must be the assistant's, found a turn of the user");
        let mut tool = talk(&["q", "a", "r", "b"]);
        tool[2].role = "tool".to_owned();
        let needed = "message 2: the chat template writes nothing for the role \"tool\"; remove the message";
        assert_eq!(refused(&tool), needed);
        let mut twice = talk(&["q", "a", "r", "b"]);
        twice[2].role = "assistant".to_owned();
        assert!(refused(&twice).starts_with("message 1: no turn of the user or a tool follows"));
        let silent = refused(&talk(&["q", ""]));
        assert_eq!(silent, "message 1: the chat template writes nothing after the prompt of this turn");
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_refused() {
        // As GLM-OCR does: thoughts are kept in the turns after the last question only.
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

        let error = spans(&messages, forgets).unwrap_err().to_string();

        assert!(error.starts_with("message 1: the chat template writes this turn in another way"), "{error}");
        messages[1].extra.insert("loss".to_owned(), json!(false));
        let remedied = spans(&messages, forgets).unwrap();
        assert_eq!(labels(&remedied), ["<think>u</think>b", "<|endoftext|>"]);
    }

    #[test]
    fn a_turn_that_does_not_begin_with_the_generation_prompt_is_refused() {
        let thinks = |messages: &[Message], generate| {
            Ok(glm(messages, generate)? + if generate { "<think>" } else { "" })
        };

        let error = spans(&talk(&["q", "a"]), thinks).unwrap_err().to_string();

        let needed = "message 1: the chat template does not begin this turn as it begins a generated one";
        assert_eq!(error, needed);
    }
}
