//! Conversations and templates for tests.

use glm4v_processor::{ChatTemplateOptions, Message, TemplateError};

use super::renderer::Renderer;

/// A function of messages and `add_generation_prompt`.
pub(super) struct FnRenderer<F>(pub(super) F);

impl<F: Fn(&[Message], bool) -> Result<String, TemplateError>> Renderer for FnRenderer<F> {
    fn render(&self, messages: &[Message], options: &ChatTemplateOptions) -> Result<String, TemplateError> {
        self.0(messages, options.add_generation_prompt)
    }
}

/// A conversation from texts, the user first.
pub(super) fn talk(texts: &[&str]) -> Vec<Message> {
    let role = |i| if i % 2 == 0 { "user" } else { "assistant" };
    texts.iter().enumerate().map(|(i, text)| Message::new(role(i), *text)).collect()
}

/// The template of GLM-4.1V, which ignores messages of tools.
pub(super) fn glm(messages: &[Message], generate: bool) -> Result<String, TemplateError> {
    let turn = |m: &Message| match m.role.as_str() {
        "tool" => String::new(),
        role => format!("<|{role}|>\n{}", m.content.texts().collect::<String>()),
    };
    let end = if generate { "<|assistant|>\n" } else { "" };
    Ok(format!("[gMASK]<sop>{}{end}", messages.iter().map(turn).collect::<String>()))
}
