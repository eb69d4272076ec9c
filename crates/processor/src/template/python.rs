//! Values written the way Python writes them.
//!
//! Jinja2 prints a value with Python's `str`, and templates call `json.dumps`. Both differ from Rust in
//! the small: `True`, `None`, quotes, the space after a comma.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Output, State, Value};
use serde_json::Value as Json;

/// Prints the value of `{{ ... }}`.
pub(super) fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            repr(&mut text, value);
            Ok(out.write_str(&text)?)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `repr`.
fn repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            out.push('[');
            let items = value.try_iter().into_iter().flatten();
            for (index, item) in items.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, &item);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let keys = value.try_iter().into_iter().flatten();
            for (index, key) in keys.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, &key);
                out.push_str(": ");
                repr(out, &value.get_item(&key).unwrap_or_default());
            }
            out.push('}');
        }
        _ => write(out, format_args!("{value}")),
    }
}

/// A string as Python shows it: single quotes unless it holds one and no double quote.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => write(out, format_args!("\\{c}")),
            c if c.is_ascii_control() => write(out, format_args!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// `json.dumps(value, ensure_ascii=ascii, indent=indent)`.
pub(super) fn dumps(value: &Json, ascii: bool, indent: Option<usize>) -> String {
    let mut out = String::new();
    let style = Style { ascii, indent };
    style.value(&mut out, value, 0);
    out
}

struct Style {
    ascii: bool,
    indent: Option<usize>,
}

impl Style {
    fn value(&self, out: &mut String, value: &Json, depth: usize) {
        match value {
            Json::Array(items) if items.is_empty() => out.push_str("[]"),
            Json::Object(items) if items.is_empty() => out.push_str("{}"),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.separate(out, index, depth + 1);
                    self.value(out, item, depth + 1);
                }
                self.line(out, depth);
                out.push(']');
            }
            Json::Object(items) => {
                out.push('{');
                for (index, (key, item)) in items.iter().enumerate() {
                    self.separate(out, index, depth + 1);
                    self.string(out, key);
                    out.push_str(": ");
                    self.value(out, item, depth + 1);
                }
                self.line(out, depth);
                out.push('}');
            }
            Json::String(text) => self.string(out, text),
            other => write(out, format_args!("{other}")),
        }
    }

    fn separate(&self, out: &mut String, index: usize, depth: usize) {
        if index > 0 {
            out.push_str(if self.indent.is_some() { "," } else { ", " });
        }
        self.line(out, depth);
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write(out, format_args!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn write(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes every text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_written_like_python() {
        let value = json!({"b": [1, 2.5, null, true], "a": "é\"\n🙂", "c": {}, "d": []});

        let plain = dumps(&value, false, None);
        let ascii = dumps(&value["a"], true, None);
        let indented = dumps(&json!({"a": [1], "b": {}}), false, Some(2));

        let expected = r#"{"b": [1, 2.5, null, true], "a": "é\"\n🙂", "c": {}, "d": []}"#;
        assert_eq!(plain, expected);
        assert_eq!(ascii, r#""\u00e9\"\n\ud83d\ude42""#);
        assert_eq!(indented, "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
    }

    #[test]
    fn values_are_printed_like_python() {
        let value = Value::from_serialize(json!([{"type": "text", "n": null}, true, "it's", "a'\"b"]));
        let mut out = String::new();
        repr(&mut out, &value);
        assert_eq!(out, r#"[{'type': 'text', 'n': None}, True, "it's", 'a\'"b']"#);
    }
}
