//! Lists of names inside error texts and log lines.

/// Names listed in one message before the rest is only counted: a checkpoint can miss thousands.
pub(crate) const MAX_LISTED: usize = 8;

/// Joins names with commas; those after the first `max` are counted.
pub(crate) fn list_names(names: &[String], max: usize) -> String {
    let shown = names.iter().take(max).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(max) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
