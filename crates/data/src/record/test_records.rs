//! Records for tests.

use std::path::Path;

use serde_json::{Value, json};

use super::{Record, RecordError};
use crate::location::RecordLocation;
use crate::schema::RecordSchema;

pub(super) fn parse_with(value: Value, schema: &RecordSchema) -> Result<Record, RecordError> {
    let location = RecordLocation::line("d/x.jsonl".as_ref(), 1);
    Record::parse(value, location, schema, Path::new("d"), None)
}

pub(super) fn parse(value: Value) -> Result<Record, RecordError> {
    parse_with(value, &RecordSchema::default())
}

/// The error message of a record that is refused.
pub(super) fn refused(value: Value) -> String {
    parse(value).unwrap_err().to_string()
}

/// A conversation of one user and one assistant message.
pub(super) fn asked(user: Value, answer: Value) -> Value {
    json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]})
}
