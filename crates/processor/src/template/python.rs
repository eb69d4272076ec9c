//! Values written the way Python writes them.
//!
//! Jinja2 prints a value with Python's `str`, and templates call `json.dumps`. Both differ from Rust in details: `True`, `None`,
//! quotes, the space after a comma.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};
use serde_json::Value as Json;

/// Prints the value of `{{ ... }}`.
pub(super) fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => {
            check_depth(value)?;
            let mut text = String::new();
            repr(&mut text, value);
            Ok(out.write_str(&text)?)
        }
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            // Python raises ZeroDivisionError instead.
            Ok(number) if !number.is_finite() => {
                Err(Error::new(ErrorKind::InvalidOperation, "the result is not a number"))
            }
            Ok(number) => Ok(out.write_str(&float(number))?),
            Err(_) => minijinja::escape_formatter(out, state, value),
        },
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `repr` of a float: with an exponent from 1e16 on and below 1e-4.
fn float(number: f64) -> String {
    let plain = format!("{number:?}");
    let size = number.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) || !number.is_finite() {
        return plain;
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

/// The filter `string`: Python's `str`.
pub(super) fn string(value: &Value) -> Result<String, Error> {
    check_depth(value)?;
    let mut text = String::new();
    match value.as_str() {
        Some(own) => text.push_str(own),
        None => repr(&mut text, value),
    }
    Ok(text)
}

/// The filter `round`: ties go to the even digit, as in Python.
pub(super) fn round(value: &Value, precision: Option<usize>, method: Option<&str>) -> Result<Value, Error> {
    if value.is_integer() {
        return Ok(value.clone());
    }
    let number = f64::try_from(value.clone())?;
    let precision = precision.unwrap_or(0).min(300);
    let scale = 10f64.powi(precision as i32);
    match method.unwrap_or("common") {
        // Formatting rounds the exact value, half to even.
        "common" => Ok(Value::from(format!("{number:.precision$}").parse::<f64>().unwrap_or(number))),
        "ceil" => Ok(Value::from((number * scale).ceil() / scale)),
        "floor" => Ok(Value::from((number * scale).floor() / scale)),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "round: needed common, ceil or floor")),
    }
}

/// The filter `escape`, with the entities of markupsafe.
pub(super) fn escape(value: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for c in string(value)?.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// Maximum nesting of a printed value.
const MAX_DEPTH: usize = 200;

/// Fails on values that nest too deeply to be printed, such as a namespace that contains itself.
pub(super) fn check_depth(value: &Value) -> Result<(), Error> {
    fn fits(value: &Value, left: usize) -> bool {
        let mut items = match value.kind() {
            ValueKind::Seq | ValueKind::Map => value.try_iter().into_iter().flatten(),
            _ => return true,
        };
        let item = |key: &Value| match value.kind() {
            ValueKind::Map => value.get_item(key).unwrap_or_default(),
            _ => key.clone(),
        };
        left > 0 && items.all(|key| fits(&item(&key), left - 1))
    }
    if fits(value, MAX_DEPTH) {
        return Ok(());
    }
    let problem = format!("a value nests over {MAX_DEPTH} deep, or holds itself");
    Err(Error::new(ErrorKind::InvalidOperation, problem))
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
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float));
        }
        _ => write(out, format_args!("{value}")),
    }
}

/// Python's `repr` of a string: single quotes unless it holds one and no double quote.
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

/// Python's string methods; `minijinja_contrib` lacks some of them.
pub(super) fn method(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), "split" | "rsplit") = (value.as_str(), method) {
        return Ok(split(text, args, method == "rsplit")?.into_iter().map(Value::from).collect());
    }
    if method == "format" && super::list_limits::has_large_width(value) {
        return Err(Error::new(ErrorKind::InvalidOperation, "format: asks for too many characters"));
    }
    let own = value.as_str().and_then(|text| match (method, args) {
        ("removeprefix", [start]) => Some(text.strip_prefix(start.as_str()?).unwrap_or(text).into()),
        ("removesuffix", [end]) => Some(text.strip_suffix(end.as_str()?).unwrap_or(text).into()),
        _ => None,
    });
    match own {
        Some(value) => Ok(value),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Python's `split` and `rsplit`, with `sep` and `maxsplit`.
fn split<'a>(text: &'a str, args: &[Value], from_end: bool) -> Result<Vec<&'a str>, Error> {
    let (at, most, words) = from_args::<(Option<Value>, Option<i64>, Kwargs)>(args)?;
    let at = at.or(words.get("sep")?).filter(|at| !at.is_none());
    let most = most.or(words.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    words.assert_all_used()?;
    let wrong = || Error::new(ErrorKind::InvalidOperation, "split: needed a text that is not empty");
    let at = at.as_ref().map(|at| at.as_str().filter(|at| !at.is_empty()).ok_or_else(wrong)).transpose()?;
    let mut parts = Vec::new();
    let mut rest = match (at, from_end) {
        (Some(_), _) => text,
        (None, false) => text.trim_start(),
        (None, true) => text.trim_end(),
    };
    while most.is_none_or(|most| parts.len() < most) {
        let found = match (at, from_end) {
            (Some(at), false) => rest.split_once(at),
            (Some(at), true) => rest.rsplit_once(at).map(|(before, after)| (after, before)),
            (None, false) => rest.split_once(char::is_whitespace).map(|(a, b)| (a, b.trim_start())),
            (None, true) => rest.rsplit_once(char::is_whitespace).map(|(a, b)| (b, a.trim_end())),
        };
        let Some((part, others)) = found else { break };
        parts.push(part);
        rest = others;
    }
    if at.is_some() || !rest.is_empty() {
        parts.push(rest);
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts)
}

/// Arguments of `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct JsonStyle {
    pub(super) ascii: bool,
    pub(super) indent: Option<usize>,
    pub(super) sort_keys: bool,
    /// Between items, and after a key.
    pub(super) separators: Option<(String, String)>,
}

/// `json.dumps(value, …)`.
pub(super) fn dumps(value: &Json, style: &JsonStyle) -> String {
    let mut out = String::new();
    style.value(&mut out, value, 0);
    out
}

impl JsonStyle {
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
                let mut items: Vec<_> = items.iter().collect();
                if self.sort_keys {
                    items.sort_by_key(|(key, _)| *key);
                }
                for (index, (key, item)) in items.into_iter().enumerate() {
                    self.separate(out, index, depth + 1);
                    self.string(out, key);
                    out.push_str(self.separators.as_ref().map_or(": ", |(_, key)| key));
                    self.value(out, item, depth + 1);
                }
                self.line(out, depth);
                out.push('}');
            }
            Json::String(text) => self.string(out, text),
            Json::Number(number) if number.is_f64() => {
                out.push_str(&number.as_f64().map_or_else(|| number.to_string(), float));
            }
            other => write(out, format_args!("{other}")),
        }
    }

    fn separate(&self, out: &mut String, index: usize, depth: usize) {
        if index > 0 {
            let own = if self.indent.is_some() { "," } else { ", " };
            out.push_str(self.separators.as_ref().map_or(own, |(item, _)| item));
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

        let plain = dumps(&value, &JsonStyle::default());
        let ascii = dumps(&value["a"], &JsonStyle { ascii: true, ..JsonStyle::default() });
        let indented =
            dumps(&json!({"a": [1], "b": {}}), &JsonStyle { indent: Some(2), ..JsonStyle::default() });

        let expected = r#"{"b": [1, 2.5, null, true], "a": "é\"\n🙂", "c": {}, "d": []}"#;
        assert_eq!(plain, expected);
        assert_eq!(ascii, r#""\u00e9\"\n\ud83d\ude42""#);
        assert_eq!(indented, "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
    }

    #[test]
    fn floats_have_an_exponent_where_python_gives_them_one() {
        let cases = [
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (-2.5e300, "-2.5e+300"),
        ];
        for (number, needed) in cases {
            assert_eq!(float(number), needed);
        }
    }

    #[test]
    fn values_are_printed_like_python() {
        let value = Value::from_serialize(json!([{"type": "text", "n": null}, true, "it's", "a'\"b"]));
        let mut out = String::new();
        repr(&mut out, &value);
        assert_eq!(out, r#"[{'type': 'text', 'n': None}, True, "it's", 'a\'"b']"#);
    }
}
