//! Rendering of conversations, as far as labels need it.

use glm4v_processor::{ChatTemplateOptions, Message, Processor, TemplateError};

/// Renders conversations. A trait, so that tests can do without a template.
pub(super) trait Renderer {
    fn render(&self, messages: &[Message], options: &ChatTemplateOptions) -> Result<String, TemplateError>;
}

impl Renderer for Processor {
    fn render(&self, messages: &[Message], options: &ChatTemplateOptions) -> Result<String, TemplateError> {
        self.render(messages, options)
    }
}
