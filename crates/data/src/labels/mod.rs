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
//! [`LossPolicy`] selects the turns, and decides with which token the labels end:
//!
//! | policy | labels | ends with |
//! |---|---|---|
//! | `assistant` | each answer | the role token after it; `<|endoftext|>` after the last |
//! | `last` | the last answer | `<|endoftext|>` |
//! | `all` | the whole text, without placeholders of media | `<|endoftext|>` |
//!
//! A message with `"loss": false` has no labels, with any policy, nor does the token that ends it. Messages and keys that a template
//! ignores are refused. Reasoning that the template leaves out of earlier turns has no labels, because the model never sees it: the
//! labels of such a turn are what the template writes for it.

mod error;
mod ignored_keys;
mod renderer;
#[cfg(test)]
mod test_renderer;

use std::borrow::Cow;
use std::ops::Range;

use glm4v_processor::{ChatTemplateOptions, LabeledText, Message, Processor, TemplateError, token};

pub use error::LabelError;

use crate::options::{LabelOptions, LossPolicy};
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
    labels: LabelOptions,
) -> Result<Vec<LabeledText>, LabelError> {
    let enable_thinking = labels.enable_thinking;
    let options = ChatTemplateOptions { enable_thinking, tools: record.tools.clone(), ..Default::default() };
    let conversation = RenderedConversation::new(&record.messages, processor, options.clone())?;
    let spans = conversation.label_spans(labels.loss)?;
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

/// A turn in the rendered text; of one of the assistant, what comes after the generation prompt.
struct Turn {
    range: Range<usize>,
    /// Empty if the template writes it as part of the turn, and for other turns than the assistant's.
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

    fn label_spans(&self, policy: LossPolicy) -> Result<Vec<LabeledText>, LabelError> {
        let outside = if policy == LossPolicy::All { 1.0 } else { 0.0 };
        let mut spans = Vec::new();
        let mut done = 0;
        for (index, weight) in self.weighted_turns(policy)? {
            let Turn { range, end_token } = self.find_turn(index)?;
            spans.push(self.span(done..range.start, outside));
            spans.push(self.span(range.clone(), weight));
            let end = range.end + end_token.len();
            // In a span of its own: tokenizers split text at special tokens, so the ids do not change.
            if weight > 0.0 || end <= self.text.len() {
                spans.push(LabeledText { text: end_token.to_owned(), loss_weight: weight });
            }
            done = end.min(self.text.len());
        }
        spans.push(self.span(done..self.text.len(), outside));
        spans.retain(|span| !span.text.is_empty());
        Ok(spans)
    }

    /// The messages whose place in the text matters, in order, with their weight in the loss.
    fn weighted_turns(&self, policy: LossPolicy) -> Result<Vec<(usize, f32)>, LabelError> {
        let last = self.messages.len() - 1;
        let weights = self.messages.iter().map(loss_weight).enumerate();
        let turns: Vec<(usize, f32)> = match policy {
            LossPolicy::Assistant => weights
                .filter(|(index, weight)| self.messages[*index].role == "assistant" && *weight > 0.0)
                .collect(),
            LossPolicy::Last => weights.filter(|(index, weight)| *index == last && *weight > 0.0).collect(),
            // The last one too, for the token that ends it.
            LossPolicy::All => weights.filter(|(index, weight)| *weight != 1.0 || *index == last).collect(),
        };
        match policy {
            _ if !turns.is_empty() => Ok(turns),
            LossPolicy::Last => Err(LabelError::NoLabelsInLast { message: last }),
            _ => Err(LabelError::NoLabels),
        }
    }

    fn find_turn(&self, message: usize) -> Result<Turn, LabelError> {
        let whole = self.render_through(message)?;
        if self.messages[message].role != "assistant" {
            let before = self.renderer.render(&self.messages[..message], &self.options)?;
            if !whole.starts_with(&before) || !self.text.starts_with(whole.as_ref()) {
                return Err(LabelError::RewrittenTurn { message });
            }
            return Ok(Turn { range: before.len()..whole.len(), end_token: "" });
        }
        let prompt = self.renderer.render(&self.messages[..message], &self.prompt_options)?;
        let range = match self.text.starts_with(whole.as_ref()) {
            true if whole.starts_with(prompt.as_str()) => prompt.len()..whole.len(),
            true => return Err(LabelError::PromptMismatch { message }),
            false => self.find_rewritten(message, &prompt)?,
        };
        if range.is_empty() {
            return Err(LabelError::EmptyTurn { message });
        }
        let end_token = match &self.text[range.end..] {
            "" if self.text.ends_with(token::END_OF_TEXT) => "",
            "" => token::END_OF_TEXT,
            rest => {
                let end = END_TOKENS.into_iter().find(|end| rest.starts_with(end));
                end.ok_or(LabelError::NoEndToken { message })?
            }
        };
        Ok(Turn { range, end_token })
    }

    /// A turn that the template writes in another way once later turns follow, as without its reasoning: from the generation
    /// prompt to the next role token. Texts cannot spell these tokens, so they count the turns.
    fn find_rewritten(&self, message: usize, prompt: &str) -> Result<Range<usize>, LabelError> {
        let answers = |messages: &[Message]| messages.iter().filter(|m| m.role == "assistant").count();
        let starts: Vec<usize> = self.text.match_indices(token::ASSISTANT).map(|(at, _)| at).collect();
        if starts.len() != answers(self.messages) {
            return Err(LabelError::RewrittenTurn { message });
        }
        let start = starts[answers(&self.messages[..message])];
        let prompt = prompt.rfind(token::ASSISTANT).map_or(prompt, |at| &prompt[at..]);
        if !self.text[start..].starts_with(prompt) {
            return Err(LabelError::PromptMismatch { message });
        }
        let start = start + prompt.len();
        let ends = END_TOKENS.into_iter().chain([token::ASSISTANT]);
        let end = ends.filter_map(|end| self.text[start..].find(end)).min();
        Ok(start..end.map_or(self.text.len(), |length| start + length))
    }

    fn span(&self, range: Range<usize>, loss_weight: f32) -> LabeledText {
        LabeledText { text: self.text[range].to_owned(), loss_weight }
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

/// Factor of the loss of a message, 0 without loss.
pub(crate) fn loss_weight(message: &Message) -> f32 {
    let key = |key| message.extra.get(key);
    match key("loss").and_then(serde_json::Value::as_bool) {
        Some(false) => 0.0,
        _ => key("weight").and_then(serde_json::Value::as_f64).map_or(1.0, |weight| weight as f32),
    }
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
            .label_spans(LossPolicy::Assistant)
    }

    fn with_policy(messages: &[Message], policy: LossPolicy) -> Result<Vec<LabeledText>, LabelError> {
        RenderedConversation::new(messages, &FnRenderer(glm), ChatTemplateOptions::default())?
            .label_spans(policy)
    }

    fn labels(spans: &[LabeledText]) -> Vec<&str> {
        spans.iter().filter(|s| s.is_label()).map(|s| s.text.as_str()).collect()
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
    fn the_last_policy_trains_the_last_answer_and_its_end_alone() {
        let mut messages = talk(&["q", "a", "r", "b"]);

        let found = with_policy(&messages, LossPolicy::Last).unwrap();

        assert_eq!(labels(&found), ["b", "<|endoftext|>"]);
        messages[3].extra.insert("loss".to_owned(), json!(false));
        let error = with_policy(&messages, LossPolicy::Last).unwrap_err().to_string();
        assert_eq!(
            error,
            "message 3: has \"loss\": false, and no other turn than the last carries loss here"
        );
    }

    #[test]
    fn the_all_policy_trains_every_text_but_that_of_excluded_messages() {
        let mut messages = talk(&["q", "a", "r", "b"]);
        let whole = glm(&messages, false).unwrap();

        let joined = |messages: &[Message]| labels(&with_policy(messages, LossPolicy::All).unwrap()).concat();

        assert_eq!(joined(&messages), format!("{whole}<|endoftext|>"));
        messages[1].extra.insert("loss".to_owned(), json!(false));
        assert_eq!(
            joined(&messages),
            "[gMASK]<sop><|user|>\nq<|assistant|>\n\nr<|assistant|>\nb<|endoftext|>"
        );
        messages[1].extra.clear();
        messages[2].extra.insert("loss".to_owned(), json!(false));
        assert_eq!(joined(&messages), "[gMASK]<sop><|user|>\nq<|assistant|>\na<|assistant|>\nb<|endoftext|>");
        messages[2].extra.clear();
        messages[3].extra.insert("loss".to_owned(), json!(false));
        let without_last = with_policy(&messages, LossPolicy::All).unwrap();
        assert_eq!(labels(&without_last).concat(), whole.strip_suffix('b').unwrap());
        assert_eq!(without_last.iter().map(|s| s.text.as_str()).collect::<String>(), whole);
    }

    #[test]
    fn a_weight_is_that_of_the_answer_and_its_end() {
        let mut messages = talk(&["q", "a", "r", "b"]);
        messages[1].extra.insert("weight".to_owned(), json!(0.25));

        let weighted = |policy| {
            let spans = with_policy(&messages, policy).unwrap();
            let other = spans.iter().filter(|s| ![0.0, 1.0].contains(&s.loss_weight));
            other.map(|s| (s.text.clone(), s.loss_weight)).collect::<Vec<_>>()
        };

        let answer = [("a".to_owned(), 0.25), ("<|user|>".to_owned(), 0.25)];
        assert_eq!(weighted(LossPolicy::Assistant), answer);
        assert_eq!(weighted(LossPolicy::All), answer);
        assert_eq!(weighted(LossPolicy::Last), []);
    }

    #[test]
    fn of_a_turn_that_the_template_rewrites_the_labels_are_what_it_leaves() {
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

        let found = spans(&messages, forgets).unwrap();

        assert_eq!(labels(&found), ["a", "<|user|>", "<think>u</think>b", "<|endoftext|>"]);
        let joined: String = found.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(joined, forgets(&messages, false).unwrap() + "<|endoftext|>");
        messages[1].extra.insert("loss".to_owned(), json!(false));
        let without = spans(&messages, forgets).unwrap();
        assert_eq!(labels(&without), ["<think>u</think>b", "<|endoftext|>"]);
    }

    #[test]
    fn a_template_that_merges_rewritten_turns_is_refused() {
        // One <|assistant|> for all answers so far.
        let merges = |messages: &[Message], generate: bool| {
            let text = glm(messages, generate)?;
            Ok(match text.match_indices("<|assistant|>").count() {
                0 | 1 => text,
                _ => text.replacen("<|assistant|>\n", "<|user|>\n", 1),
            })
        };

        let error = spans(&talk(&["q", "a", "r", "b"]), merges).unwrap_err().to_string();

        assert!(error.starts_with("message 1: the chat template writes this turn in another way"), "{error}");
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
