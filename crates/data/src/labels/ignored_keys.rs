//! Finds keys that the chat template ignores, with which the model would be trained on other text than the record holds.

use glm4v_processor::{ChatTemplateOptions, Message};
use serde_json::Value;

use super::error::LabelError;
use super::renderer::Renderer;
use crate::record::is_empty_value;

/// Keys of a message with text of the model.
const TEXT_KEYS: [&str; 4] = ["reasoning_content", "reasoning", "thinking", "tool_calls"];

/// Refuses tools and keys that make no difference to the rendered text.
pub(super) fn check_ignored_keys(
    messages: &[Message],
    renderer: &impl Renderer,
    options: &ChatTemplateOptions,
) -> Result<(), LabelError> {
    if is_filled(options.tools.as_ref()) {
        let without = ChatTemplateOptions { tools: None, ..options.clone() };
        if same_text(renderer, (messages, options), (messages, &without)) {
            return Err(LabelError::IgnoredTools);
        }
    }
    for (index, message) in messages.iter().enumerate() {
        for key in TEXT_KEYS.into_iter().filter(|key| is_filled(message.extra.get(*key))) {
            // Rendered as the last turn, because templates leave the reasoning of earlier turns out on purpose.
            let with = &messages[..=index];
            let mut without = with.to_vec();
            without[index].extra.shift_remove(key);
            if same_text(renderer, (with, options), (&without, options)) {
                return Err(LabelError::IgnoredKey { message: index, key });
            }
        }
    }
    Ok(())
}

fn is_filled(value: Option<&Value>) -> bool {
    value.is_some_and(|value| !is_empty_value(value))
}

/// Whether two conversations are rendered alike. A template that fails on one of them does read the difference.
pub(super) fn same_text(
    renderer: &impl Renderer,
    one: (&[Message], &ChatTemplateOptions),
    other: (&[Message], &ChatTemplateOptions),
) -> bool {
    let texts = (renderer.render(one.0, one.1), renderer.render(other.0, other.1));
    matches!(texts, (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::labels::test_renderer::{FnRenderer, glm, talk};

    #[test]
    fn a_key_that_the_template_ignores_is_refused() {
        let mut messages = talk(&["q", "a", "r", "b"]);
        messages[1].extra.insert("reasoning_content".to_owned(), json!("because"));
        let thinks = FnRenderer(|messages: &[Message], _| {
            let thought = |m: &Message| m.extra.get("reasoning_content").map(ToString::to_string);
            Ok(glm(messages, false)? + &messages.iter().filter_map(thought).collect::<String>())
        });
        let tools =
            ChatTemplateOptions { tools: Some(json!([{"name": "f"}])), ..ChatTemplateOptions::default() };
        let plain = ChatTemplateOptions::default();
        let ignores = FnRenderer(glm);
        let refused = |options| check_ignored_keys(&messages, &ignores, options).unwrap_err().to_string();

        assert!(check_ignored_keys(&messages, &thinks, &plain).is_ok());
        assert!(
            refused(&plain)
                .starts_with("message 1: the chat template does not write \"reasoning_content\" here")
        );
        assert!(refused(&tools).starts_with("the chat template of this model does not write \"tools\""));
    }
}
