//! Lists of names in error messages.

/// Joins names with commas; `(none)` without any.
pub(crate) fn join_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() { "(none)".to_owned() } else { names.join(", ") }
}
