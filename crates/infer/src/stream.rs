//! Text from tokens as they come.

use glm4v_processor::Tokenizer;

/// Turns tokens of one answer into text, holding back characters that are not whole yet.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Tokens whose text is out.
    done: usize,
}

impl<'a> TextStream<'a> {
    /// Starts an answer.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), done: 0 }
    }

    /// Takes a token and returns the text that is certain now, special tokens left out.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.done..], true);
        // A character of several bytes may be spread over tokens; until the last one came it decodes to U+FFFD.
        if text.ends_with('\u{fffd}') {
            return String::new();
        }
        self.done = self.ids.len();
        text
    }

    /// What was held back to the end: bytes that never became a character.
    pub fn finish(self) -> String {
        self.tokenizer.decode(&self.ids[self.done..], true)
    }
}
