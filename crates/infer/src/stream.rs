//! Incremental detokenization.

use glm4v_processor::Tokenizer;

/// Decodes the tokens of one row one by one, holding back incomplete UTF-8 characters (transformers' `TextStreamer`).
#[derive(Debug)]
pub struct TextStreamer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Number of tokens whose text was returned.
    done: usize,
}

impl<'a> TextStreamer<'a> {
    /// A stream without tokens.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), done: 0 }
    }

    /// Adds a token and returns the text that is now complete, without special tokens.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.done..], true);
        // A character of several bytes may be split over tokens; until its last one it decodes to U+FFFD.
        if text.ends_with('\u{fffd}') {
            return String::new();
        }
        self.done = self.ids.len();
        text
    }

    /// The text held back at the end: bytes that are not a complete character.
    pub fn finish(self) -> String {
        self.tokenizer.decode(&self.ids[self.done..], true)
    }
}
