//! The known name nearest to a misspelled one.

/// Below this similarity (Jaro-Winkler, 0 to 1) a suggestion would be a guess.
const CLOSE: f64 = 0.75;

/// Writes `; did you mean "x"?` for the nearest of `known`, or nothing when none is near.
pub(crate) fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = |name: &&'a str| strsim::jaro_winkler(found, name);
    let nearest = known.into_iter().max_by(|a, b| near(a).total_cmp(&near(b)));
    match nearest {
        Some(name) if near(&name) >= CLOSE => format!("; did you mean \"{name}\"?"),
        _ => String::new(),
    }
}

/// Joins names for a message, `(none)` when there are none.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() { "(none)".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_finds_none() {
        let known = ["digits", "demo-sharegpt"];

        assert_eq!(did_you_mean("digit", known), "; did you mean \"digits\"?");
        assert_eq!(did_you_mean("demo_sharegpt", known), "; did you mean \"demo-sharegpt\"?");
        assert_eq!(did_you_mean("wikipedia", known), "");
    }
}
