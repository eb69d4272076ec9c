//! Stop strings, in a text that is streamed.

/// Collects a generated text up to the first stop string, and returns the parts of it that are safe to show.
///
/// A stop string may be split over tokens, so as many bytes as the longest one has are held back until more text follows.
///
/// # Examples
///
/// ```
/// use glm4v_infer::StopStrings;
///
/// let mut text = StopStrings::new(["<stop>"]);
/// assert_eq!(text.push("four words. <st"), "four word");
/// assert_eq!(text.push("op> and more"), "s. ");
/// assert!(text.is_stopped());
/// assert_eq!(text.text(), "four words. ");
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    stop: Vec<String>,
    /// Bytes of the longest stop string.
    held_back: usize,
    text: String,
    /// Bytes of `text` that were returned.
    shown: usize,
    is_stopped: bool,
}

impl StopStrings {
    /// An empty text that ends before the first of `stop`.
    pub fn new(stop: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let stop: Vec<String> = stop.into_iter().map(Into::into).collect();
        let held_back = stop.iter().map(String::len).max().unwrap_or(0);
        Self { stop, held_back, text: String::new(), shown: 0, is_stopped: false }
    }

    /// Appends generated text and returns the part that can be shown now; nothing after a stop string.
    pub fn push(&mut self, text: &str) -> &str {
        if self.is_stopped {
            return "";
        }
        self.text.push_str(text);
        // Earlier text was searched before it was shown.
        let searched = &self.text[self.shown..];
        let found = self.stop.iter().filter_map(|stop| searched.find(stop.as_str())).min();
        let end = match found {
            Some(offset) => {
                self.is_stopped = true;
                self.text.truncate(self.shown + offset);
                self.text.len()
            }
            None => self.text.floor_char_boundary(self.text.len().saturating_sub(self.held_back)),
        };
        self.show_to(end)
    }

    /// The text held back, once generation has ended.
    pub fn finish(&mut self) -> &str {
        self.show_to(self.text.len())
    }

    /// The whole text so far, without a stop string.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a stop string was found.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    fn show_to(&mut self, end: usize) -> &str {
        let start = self.shown;
        self.shown = self.shown.max(end);
        &self.text[start..self.shown]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All parts in order, those held back last.
    fn parts(stop: &[&str], pushed: &[&str]) -> Vec<String> {
        let mut text = StopStrings::new(stop.iter().copied());
        let mut parts: Vec<String> = pushed.iter().map(|part| text.push(part).to_owned()).collect();
        parts.push(text.finish().to_owned());
        parts
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        assert_eq!(parts(&[], &["a", "", "bc"]), ["a", "", "bc", ""]);
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_never_shown() {
        assert_eq!(parts(&["stop"], &["one s", "t", "o", "p two", "x"]), ["o", "n", "e", " ", "", ""]);
    }

    #[test]
    fn the_beginning_of_a_stop_string_alone_is_shown_in_the_end() {
        assert_eq!(parts(&["stop"], &["one sto"]), ["one", " sto"]);
    }

    #[test]
    fn the_first_of_several_stop_strings_ends_the_text() {
        let mut text = StopStrings::new(["\n\n", "b"]);

        text.push("a b\n\n");

        assert!(text.is_stopped());
        assert_eq!(text.text(), "a ");
    }

    #[test]
    fn characters_of_several_bytes_stay_whole() {
        assert_eq!(parts(&["ab"], &["é", "ü", "ß"]), ["", "é", "ü", "ß"]);
        assert_eq!(parts(&["abc"], &["éü", "ß"]), ["", "é", "üß"]);
    }
}
