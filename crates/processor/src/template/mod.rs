//! The chat template of a checkpoint: messages to the text of a prompt.
//!
//! Templates are Jinja2 with the settings of transformers: `trim_blocks`, `lstrip_blocks`, no escaping, Python's string methods,
//! `tojson` with the format of `json.dumps`, `raise_exception`, `break` and `continue`.
//!
//! A template gets of a message its role, its content and every other key unchanged. Image and video parts are passed as
//! `{"type": "image"}` and `{"type": "video"}` in whichever form they were written, since templates know different forms. A
//! system or assistant message that is a list of texts is passed as one string: the template of GLM-4.1V would print the list as
//! Python does (`[{'type': ...`), and a model should not learn that.
//!
//! Templates come with downloaded checkpoints, so their cost is limited: length of the source ([`MAX_SOURCE`]), steps
//! ([`STEPS`]), length of the output ([`MAX_OUTPUT`]), depth of printed values, length of lists (`list_limits.rs`), time and
//! memory (`watchdog.rs`). Not covered: comparing or concatenating a namespace that contains itself overflows the stack and ends
//! the process.

mod list_limits;
mod python;
mod watchdog;

use std::error::Error as _;
use std::io;

use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json, json};

use crate::messages::{Content, ContentPart, Message};
use crate::special_token_guard::MessageLocation;

pub use watchdog::RenderAborted;

/// Steps (minijinja's fuel) of a template, and as many again for every [`PARTS_PER_STEPS`] messages and parts.
const STEPS: u64 = 10_000_000;

/// Messages and parts that add another [`STEPS`].
const PARTS_PER_STEPS: usize = 10_000;

/// Maximum bytes of output, on top of twice the length of the messages.
const MAX_OUTPUT: usize = 16 << 20;

/// Maximum bytes of a template; published ones have up to 30 KB.
const MAX_SOURCE: usize = 128 << 10;

/// Name of the template in error messages.
const NAME: &str = "chat template";

/// Error of compiling or rendering a chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja2.
    #[error("chat template, line {line}: {problem}")]
    Syntax {
        /// Line in the template, from 1.
        line: usize,
        /// Error of the parser.
        problem: minijinja::Error,
    },
    /// The template failed on this conversation, for example at an undefined value.
    #[error("chat template, line {line}: {problem}")]
    Render {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// Error of the renderer.
        problem: minijinja::Error,
    },
    /// The template called `raise_exception`.
    #[error("chat template, line {line}: refuses the conversation: {message}")]
    Raised {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// Argument of `raise_exception`.
        message: String,
    },
    /// The template took more steps than allowed.
    #[error("chat template, line {line}: no end after {steps} steps; does it loop?")]
    StepLimit {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// Steps allowed.
        steps: u64,
    },
    /// A text of the conversation contains a token that only the template may write.
    #[error(
        "{location}: its text spells {token}, which only the chat template writes; needed: a text without it"
    )]
    SpecialToken {
        /// Location of the text.
        location: MessageLocation,
        /// Text of the token, `<|user|>` for example.
        token: String,
    },
    /// The source of the template is longer than allowed.
    #[error("chat template: {bytes} bytes, more than the limit of {MAX_SOURCE}; is it a template?")]
    SourceTooLong {
        /// Length of the source.
        bytes: usize,
    },
    /// Rendering exceeded its time or memory limit.
    #[error("chat template: {source}")]
    Aborted {
        /// The limit that was exceeded.
        source: RenderAborted,
    },
    /// The output is longer than allowed.
    #[error("chat template: writes more than {limit} bytes")]
    OutputTooLong {
        /// Bytes allowed.
        limit: usize,
    },
}

/// Arguments of transformers' `apply_chat_template` beyond the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatTemplateOptions {
    /// Appends the header of an assistant message, so that the model continues with its content.
    pub add_generation_prompt: bool,
    /// Switches reasoning on or off; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// Tools that the model may call, as a list of JSON schemas.
    pub tools: Option<Json>,
}

impl ChatTemplateOptions {
    /// Options of a prompt for generation.
    pub fn generation_prompt() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Texts of special tokens (`eos_token`, ...), which some templates write.
    tokens: Map<String, Json>,
}

/// Call of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct RaisedException {
    message: String,
}

impl ChatTemplate {
    pub(crate) fn new(source: String, tokens: Map<String, Json>) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::SourceTooLong { bytes: source.len() });
        }
        let environment = run_limited(move || compile(&source))??;
        Ok(Self { environment, tokens })
    }

    /// Another template with the same special tokens.
    pub(crate) fn replaced(&self, source: String) -> Result<Self, TemplateError> {
        Self::new(source, self.tokens.clone())
    }

    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &ChatTemplateOptions,
    ) -> Result<String, TemplateError> {
        let parts: usize = messages.iter().map(|m| 1 + m.content.parts().len()).sum();
        let steps = STEPS * (1 + parts / PARTS_PER_STEPS) as u64;
        let text: usize = messages.iter().flat_map(|m| m.content.texts()).map(str::len).sum();
        let mut out = LimitedBuffer { text: Vec::new(), limit: MAX_OUTPUT + 2 * text };

        let mut context = self.tokens.clone();
        context.insert("messages".to_owned(), messages.iter().map(message_value).collect());
        let generation = Json::Bool(options.add_generation_prompt);
        context.insert("add_generation_prompt".to_owned(), generation);
        if let Some(thinking) = options.enable_thinking {
            context.insert("enable_thinking".to_owned(), Json::Bool(thinking));
        }
        // transformers always passes the key, None without tools.
        context.insert("tools".to_owned(), options.tools.clone().unwrap_or(Json::Null));

        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        run_limited(move || {
            let template = environment.get_template(NAME).expect("added when it was made");
            let rendered = template.render_captured_to(Value::from_serialize(&context), &mut out);
            match rendered.map(drop) {
                Ok(()) => Ok(String::from_utf8(out.text).expect("templates write text")),
                Err(_) if out.text.len() >= out.limit => {
                    Err(TemplateError::OutputTooLong { limit: out.limit })
                }
                Err(problem) => Err(classify(problem, steps)),
            }
        })?
    }
}

/// Compiles or renders within the limits of time and memory.
fn run_limited<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TemplateError> {
    watchdog::run(work).map_err(|source| TemplateError::Aborted { source })
}

/// Compiles a template with the settings and functions of transformers.
fn compile(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::format);
    environment.add_filter("string", python::string);
    environment.add_filter("round", python::round);
    environment.add_filter("e", python::escape);
    environment.add_filter("escape", python::escape);
    environment.add_filter("tojson", tojson);
    list_limits::register(&mut environment);
    environment.add_function("raise_exception", |message: String| {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, "refused");
        Err::<Value, _>(error.with_source(RaisedException { message }))
    });
    let syntax =
        |problem: minijinja::Error| TemplateError::Syntax { line: problem.line().unwrap_or(0), problem };
    let source = list_limits::with_length_checks(NAME, &without_generation_tags(source)).map_err(syntax)?;
    environment.add_template_owned(NAME, source).map_err(syntax)?;
    Ok(environment)
}

/// Replaces the tags that mark assistant tokens for training (`{% generation %}`, for transformers' `return_assistant_tokens_mask`)
/// by a block that is always rendered: minijinja does not know them.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let words = tag.trim_start_matches(['-', '+']);
        let sign = &tag[..tag.len() - words.len()];
        let word = words.trim_start();
        let replaced =
            [("generation", " if true "), ("endgeneration", " endif ")].into_iter().find_map(|(name, by)| {
                let after = word.strip_prefix(name)?.trim_start();
                (after.starts_with("%}") || after.starts_with("-%}")).then_some((by, after))
            });
        rest = match replaced {
            Some((by, after)) => {
                out.push_str(sign);
                out.push_str(by);
                after
            }
            None => tag,
        };
    }
    out + rest
}

/// The variant for an error of minijinja.
fn classify(problem: minijinja::Error, steps: u64) -> TemplateError {
    let line = problem.line().unwrap_or(0);
    if problem.kind() == ErrorKind::OutOfFuel {
        return TemplateError::StepLimit { line, steps };
    }
    let raised = problem.source().and_then(|source| source.downcast_ref::<RaisedException>());
    match raised {
        Some(RaisedException { message }) => TemplateError::Raised { line, message: message.clone() },
        None => TemplateError::Render { line, problem },
    }
}

/// A message as the template gets it.
fn message_value(message: &Message) -> Json {
    let content = match &message.content {
        Content::Text(text) => Json::from(text.as_str()),
        Content::Parts(parts) => match joined_text(parts) {
            Some(text) if message.role == "system" || message.role == "assistant" => Json::from(text),
            _ => parts.iter().map(part_value).collect(),
        },
    };
    let mut keys = Map::new();
    keys.insert("role".to_owned(), Json::from(message.role.as_str()));
    keys.insert("content".to_owned(), content);
    keys.extend(message.extra.clone());
    Json::Object(keys)
}

fn part_value(part: &ContentPart) -> Json {
    match part {
        ContentPart::Text { text } => json!({"type": "text", "text": text}),
        ContentPart::Image(_) => json!({"type": "image"}),
        ContentPart::Video(_) => json!({"type": "video"}),
    }
}

fn joined_text(parts: &[ContentPart]) -> Option<String> {
    let text = |part: &ContentPart| match part {
        ContentPart::Text { text } => Some(text.clone()),
        _ => None,
    };
    parts.iter().map(text).collect()
}

/// `tojson` as transformers defines it: `json.dumps` with `ensure_ascii=False` by default.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let separators =
        options.get::<Option<Vec<String>>>("separators")?.map(|both| match <[String; 2]>::try_from(both) {
            Ok([item, key]) => Ok((item, key)),
            Err(_) => Err(minijinja::Error::new(
                ErrorKind::InvalidOperation,
                "separators: needed one for items and one for keys",
            )),
        });
    let style = python::JsonStyle {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get("indent")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: separators.transpose()?,
    };
    options.assert_all_used()?;
    // An indent of a billion is a gigabyte a line.
    if style.indent.is_some_and(|indent| indent > 64) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "indent: needed at most 64"));
    }
    python::check_depth(value)?;
    let json = serde_json::to_value(value)
        .map_err(|source| minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(source))?;
    let text = python::dumps(&json, &style);
    Ok(Value::from_safe_string(text))
}

/// A buffer with a maximum length.
struct LimitedBuffer {
    text: Vec<u8>,
    limit: usize,
}

impl io::Write for LimitedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.limit - self.text.len();
        if bytes.len() > room {
            // Full, so that the caller sees why.
            self.text.extend_from_slice(&bytes[..room]);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, messages: &[Message], options: &ChatTemplateOptions) -> String {
        let tokens = Map::from_iter([("eos_token".to_owned(), json!("<e>"))]);
        let template = ChatTemplate::new(template.to_owned(), tokens).unwrap();
        template.render(messages, options).unwrap()
    }

    #[test]
    fn block_lines_leave_no_blank_lines() {
        let template = "a\n  {% if true %}\nb\n  {% endif %}\n{{ '<&' }}{{ eos_token }}\n";
        let text = rendered(template, &[], &ChatTemplateOptions::default());
        assert_eq!(text, "a\nb\n<&<e>");
    }

    #[test]
    fn tools_are_written_in_the_order_of_their_keys() {
        let tools = json!([{"type": "function", "function": {"name": "wetter", "a": "für"}}]);
        let options = ChatTemplateOptions { tools: Some(tools), ..ChatTemplateOptions::default() };
        let template = "{% for t in tools %}{{ t | tojson(ensure_ascii=False) }}{% endfor %}";
        let needed = r#"{"type": "function", "function": {"name": "wetter", "a": "für"}}"#;
        assert_eq!(rendered(template, &[], &options), needed);
    }

    #[test]
    fn options_left_out_are_undefined() {
        let template = "{{ enable_thinking is defined }} {{ tools }} {{ add_generation_prompt }}";
        let silent = rendered(template, &[], &ChatTemplateOptions::default());
        assert_eq!(silent, "False None False");
        let asked =
            ChatTemplateOptions { enable_thinking: Some(false), ..ChatTemplateOptions::generation_prompt() };
        assert_eq!(rendered(template, &[], &asked), "True None True");
    }

    #[test]
    fn keys_of_a_message_and_python_methods_are_there() {
        let mut message = Message::new("assistant", " a ");
        message.extra.insert("reasoning_content".to_owned(), json!("because"));
        let template = "{% for m in messages %}{% if loop.index0 > 0 %}{% break %}{% endif %}\
                        {{ m.content.strip() }}{{ m.reasoning_content.split('c')[0] }}{% endfor %}";
        let text = rendered(template, &[message.clone(), message], &ChatTemplateOptions::default());
        assert_eq!(text, "abe");
    }
}
