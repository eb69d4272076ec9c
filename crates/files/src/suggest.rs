//! The known name nearest to a misspelled one, for errors about keys and names in files that people write.

/// Minimum Jaro-Winkler similarity (0 to 1) of a name and its shortened form. Below it a suggestion would be a guess.
const MIN_SIMILARITY: f64 = 0.75;

/// `did you mean "NAME"?` with the nearest of the `known` names; none if no name is near.
///
/// # Examples
///
/// ```
/// use glm4v_files::did_you_mean;
///
/// let keys = ["file_name", "formatting", "splits"];
/// assert_eq!(did_you_mean("split", keys).unwrap(), "did you mean \"splits\"?");
/// assert_eq!(did_you_mean("file", keys).unwrap(), "did you mean \"file_name\"?");
/// assert_eq!(did_you_mean("revision", keys), None);
/// ```
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if found.is_empty() {
        return None; // as near to any short name as a slip of the fingers
    }
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = fewest_edits(found, &known).or_else(|| most_similar(found, &known))?;
    Some(format!("did you mean \"{nearest}\"?"))
}

/// Finds slips of the fingers: letters that are missing, wrong or swapped.
fn fewest_edits<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let edits = |name: &str| strsim::damerau_levenshtein(found, name);
    let nearest = known.iter().copied().min_by_key(|name| edits(name))?;
    // A third of the letters, but at least one, as in rustc's suggestions.
    let max_edits = found.chars().count().max(nearest.chars().count()).max(3) / 3;
    (edits(nearest) <= max_edits).then_some(nearest)
}

/// Finds names that share their beginning.
fn most_similar<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let similarity = |name: &str| strsim::jaro_winkler(found, name);
    let nearest = known.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(nearest) >= MIN_SIMILARITY).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_finds_none() {
        let suggested = |found, known: &[&'static str]| did_you_mean(found, known.iter().copied());
        let datasets = ["digits", "demo-sharegpt"];

        for (found, known, nearest) in [
            ("digit", &datasets[..], "digits"),
            ("demo_sharegpt", &datasets, "demo-sharegpt"),
            ("tset", &["train", "test"], "test"),
            ("rl", &["lr", "betas"], "lr"),
            ("optm", &["optim", "model"], "optim"),
            ("wieght_decay", &["weight_decay", "lr"], "weight_decay"),
            ("file", &["splits", "file_name", "folder"], "file_name"),
        ] {
            assert_eq!(suggested(found, known), Some(format!("did you mean \"{nearest}\"?")));
        }
        assert_eq!(suggested("wikipedia", &datasets), None);
        assert_eq!(suggested("", &["x"]), None);
        assert_eq!(suggested("dev", &["train", "test"]), None);
        assert_eq!(suggested("x", &[]), None);
    }
}
