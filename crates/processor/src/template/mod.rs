//! The chat template of a checkpoint: messages to the text of a prompt.
//!
//! Templates are Jinja2 as transformers runs it: `trim_blocks`, `lstrip_blocks`, no escaping, Python's
//! string methods, `tojson` that writes like `json.dumps`, `raise_exception`, `break` and `continue`.
//!
//! What a template sees of a message is its role, its content, and every other key as it was given.
//! Parts of images and videos are handed over as `{"type": "image"}` and `{"type": "video"}` however
//! they were written, since templates differ in the spellings they know. Where a turn of the system or
//! the model is a list of texts only, it is handed over as one string: the template of GLM-4.1V prints
//! such a list as Python would (`[{'type': ...`), and a model should not learn that.
//!
//! A template comes with a download, so it runs on a budget: its own length ([`MAX_SOURCE`]), steps ([`STEPS`]), length of
//! the output ([`MAX_OUTPUT`]), depth of printed values, length of lists (`bounds.rs`), time and memory (`guard.rs`). What is left: a namespace that holds itself,
//! compared or joined to a string, ends the process (stack overflow).

mod bounds;
mod guard;
mod python;

use std::error::Error as _;
use std::io;

use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json, json};

use crate::messages::{Content, Message, Part};
use crate::spelled::Place;

pub use guard::TemplateStopped;

/// Steps that a template may take, and as many again for every [`PARTS_PER_STEPS`] messages and parts.
const STEPS: u64 = 10_000_000;

/// Messages and parts that have one more [`STEPS`].
const PARTS_PER_STEPS: usize = 10_000;

/// Longest text that a template may write beyond the length of the messages.
const MAX_OUTPUT: usize = 16 << 20;

/// Longest template; published ones have up to 30 KB.
const MAX_SOURCE: usize = 128 << 10;

/// Name of the template in error messages.
const NAME: &str = "chat template";

/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Not Jinja2.
    #[error("chat template, line {line}: {problem}")]
    Syntax {
        /// Line in the template, from 1.
        line: usize,
        /// What is wrong there.
        problem: minijinja::Error,
    },
    /// The template failed on this conversation.
    #[error("chat template, line {line}: {problem}")]
    Render {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// What went wrong there.
        problem: minijinja::Error,
    },
    /// The template refuses this conversation (`raise_exception`).
    #[error("chat template, line {line}: refuses the conversation: {message}")]
    Raised {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// What the template says.
        message: String,
    },
    /// The template does not come to an end.
    #[error("chat template, line {line}: no end after {steps} steps; does it loop?")]
    Endless {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// Steps allowed.
        steps: u64,
    },
    /// The words of the conversation spell a token that only the template may write.
    #[error(
        "{place}: its text spells {token}, which only the chat template writes; needed: a text without it"
    )]
    Spelled {
        /// Where.
        place: Place,
        /// The token.
        token: String,
    },
    /// The template itself is too long to be one.
    #[error("chat template: {bytes} bytes, more than the limit of {MAX_SOURCE}; is it a template?")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The template takes too much time or memory.
    #[error("chat template: {source}")]
    Stopped {
        /// What was too much.
        source: TemplateStopped,
    },
    /// The template writes too much.
    #[error("chat template: writes more than {limit} bytes")]
    TooLong {
        /// Bytes allowed.
        limit: usize,
    },
}

/// How a conversation is rendered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// Whether the prompt ends with the header of the model's turn.
    pub add_generation_prompt: bool,
    /// Whether the model is to think; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// The tools that the model may call, as a list of JSON schemas.
    pub tools: Option<Json>,
}

impl RenderOptions {
    /// A prompt that the model is to answer.
    pub fn prompt() -> Self {
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

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    pub(crate) fn new(source: String, tokens: Map<String, Json>) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLarge { bytes: source.len() });
        }
        let environment = guarded(move || compiled(&source))??;
        Ok(Self { environment, tokens })
    }

    /// Another template with the same special tokens.
    pub(crate) fn replaced(&self, source: String) -> Result<Self, TemplateError> {
        Self::new(source, self.tokens.clone())
    }

    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let parts: usize = messages.iter().map(|m| 1 + m.content.parts().len()).sum();
        let steps = STEPS * (1 + parts / PARTS_PER_STEPS) as u64;
        let text: usize = messages.iter().flat_map(|m| m.content.texts()).map(str::len).sum();
        let mut out = Bounded { text: Vec::new(), limit: MAX_OUTPUT + 2 * text };

        let mut context = self.tokens.clone();
        context.insert("messages".to_owned(), messages.iter().map(view).collect());
        let generation = Json::Bool(options.add_generation_prompt);
        context.insert("add_generation_prompt".to_owned(), generation);
        if let Some(thinking) = options.enable_thinking {
            context.insert("enable_thinking".to_owned(), Json::Bool(thinking));
        }
        // transformers always passes the key, None without tools.
        context.insert("tools".to_owned(), options.tools.clone().unwrap_or(Json::Null));

        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        guarded(move || {
            let template = environment.get_template(NAME).expect("added when it was made");
            let rendered = template.render_captured_to(Value::from_serialize(&context), &mut out);
            match rendered.map(drop) {
                Ok(()) => Ok(String::from_utf8(out.text).expect("templates write text")),
                Err(_) if out.text.len() >= out.limit => Err(TemplateError::TooLong { limit: out.limit }),
                Err(problem) => Err(explain(problem, steps)),
            }
        })?
    }
}

/// Runs a part of a template's work, watched.
fn guarded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TemplateError> {
    guard::run(work).map_err(|source| TemplateError::Stopped { source })
}

/// The template in the dialect of transformers.
fn compiled(source: &str) -> Result<Environment<'static>, TemplateError> {
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
    bounds::register(&mut environment);
    environment.add_function("raise_exception", |message: String| {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, "refused");
        Err::<Value, _>(error.with_source(Refusal(message)))
    });
    let syntax =
        |problem: minijinja::Error| TemplateError::Syntax { line: problem.line().unwrap_or(0), problem };
    let source = bounds::measured(&without_generation(source)).map_err(syntax)?;
    environment.add_template_owned(NAME, source).map_err(syntax)?;
    Ok(environment)
}

/// The template without the marks around answers (`{% generation %}`) that trainers may ask of
/// transformers; what they enclose is written as it stands.
fn without_generation(source: &str) -> String {
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
                let behind = word.strip_prefix(name)?.trim_start();
                (behind.starts_with("%}") || behind.starts_with("-%}")).then_some((by, behind))
            });
        rest = match replaced {
            Some((by, behind)) => {
                out.push_str(sign);
                out.push_str(by);
                behind
            }
            None => tag,
        };
    }
    out + rest
}

/// Sorts what minijinja reports.
fn explain(problem: minijinja::Error, steps: u64) -> TemplateError {
    let line = problem.line().unwrap_or(0);
    if problem.kind() == ErrorKind::OutOfFuel {
        return TemplateError::Endless { line, steps };
    }
    let refusal = problem.source().and_then(|source| source.downcast_ref::<Refusal>());
    match refusal {
        Some(Refusal(message)) => TemplateError::Raised { line, message: message.clone() },
        None => TemplateError::Render { line, problem },
    }
}

/// What the template sees of a message.
fn view(message: &Message) -> Json {
    let content = match &message.content {
        Content::Text(text) => Json::from(text.as_str()),
        Content::Parts(parts) => match all_text(parts) {
            Some(text) if message.role == "system" || message.role == "assistant" => Json::from(text),
            _ => parts.iter().map(part_view).collect(),
        },
    };
    let mut keys = Map::new();
    keys.insert("role".to_owned(), Json::from(message.role.as_str()));
    keys.insert("content".to_owned(), content);
    keys.extend(message.extra.clone());
    Json::Object(keys)
}

fn part_view(part: &Part) -> Json {
    match part {
        Part::Text { text } => json!({"type": "text", "text": text}),
        Part::Image(_) => json!({"type": "image"}),
        Part::Video(_) => json!({"type": "video"}),
    }
}

fn all_text(parts: &[Part]) -> Option<String> {
    let text = |part: &Part| match part {
        Part::Text { text } => Some(text.clone()),
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
    let style = python::Style {
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

/// A buffer that refuses to grow without end.
struct Bounded {
    text: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
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

    fn rendered(template: &str, messages: &[Message], options: &RenderOptions) -> String {
        let tokens = Map::from_iter([("eos_token".to_owned(), json!("<e>"))]);
        let template = ChatTemplate::new(template.to_owned(), tokens).unwrap();
        template.render(messages, options).unwrap()
    }

    #[test]
    fn lines_of_blocks_leave_nothing_behind() {
        let template = "a\n  {% if true %}\nb\n  {% endif %}\n{{ '<&' }}{{ eos_token }}\n";
        let text = rendered(template, &[], &RenderOptions::default());
        assert_eq!(text, "a\nb\n<&<e>");
    }

    #[test]
    fn tools_are_written_in_the_order_of_their_keys() {
        let tools = json!([{"type": "function", "function": {"name": "wetter", "a": "für"}}]);
        let options = RenderOptions { tools: Some(tools), ..RenderOptions::default() };
        let template = "{% for t in tools %}{{ t | tojson(ensure_ascii=False) }}{% endfor %}";
        let needed = r#"{"type": "function", "function": {"name": "wetter", "a": "für"}}"#;
        assert_eq!(rendered(template, &[], &options), needed);
    }

    #[test]
    fn what_was_not_asked_for_is_not_defined() {
        let template = "{{ enable_thinking is defined }} {{ tools }} {{ add_generation_prompt }}";
        let silent = rendered(template, &[], &RenderOptions::default());
        assert_eq!(silent, "False None False");
        let asked = RenderOptions { enable_thinking: Some(false), ..RenderOptions::prompt() };
        assert_eq!(rendered(template, &[], &asked), "True None True");
    }

    #[test]
    fn keys_of_a_message_and_python_methods_are_there() {
        let mut message = Message::new("assistant", " a ");
        message.extra.insert("reasoning_content".to_owned(), json!("because"));
        let template = "{% for m in messages %}{% if loop.index0 > 0 %}{% break %}{% endif %}\
                        {{ m.content.strip() }}{{ m.reasoning_content.split('c')[0] }}{% endfor %}";
        let text = rendered(template, &[message.clone(), message], &RenderOptions::default());
        assert_eq!(text, "abe");
    }
}
