//! Text to token ids and back.
//!
//! A thin wrapper around the `tokenizers` crate. Special tokens are resolved by their text, never by a
//! number: the ids differ between checkpoints (151343 in GLM-4.1V, 1164 in the tiny test models).

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_TOKENIZER};

use crate::spelled::is_control;

/// Texts of the tokens that mark images, turns and ends.
pub mod token {
    /// Stands for one merged patch of an image.
    pub const IMAGE: &str = "<|image|>";
    /// Stands for a video in a rendered prompt; never in token ids.
    pub const VIDEO: &str = "<|video|>";
    /// Before an image, and before every frame pair of a video.
    pub const BEGIN_OF_IMAGE: &str = "<|begin_of_image|>";
    /// After an image.
    pub const END_OF_IMAGE: &str = "<|end_of_image|>";
    /// Before a video.
    pub const BEGIN_OF_VIDEO: &str = "<|begin_of_video|>";
    /// After a video.
    pub const END_OF_VIDEO: &str = "<|end_of_video|>";
    /// End of a text; also used as padding.
    pub const END_OF_TEXT: &str = "<|endoftext|>";
    /// Opens a turn of the system.
    pub const SYSTEM: &str = "<|system|>";
    /// Opens a turn of the user.
    pub const USER: &str = "<|user|>";
    /// Opens a turn of the model.
    pub const ASSISTANT: &str = "<|assistant|>";
    /// Opens the answer of a tool.
    pub const OBSERVATION: &str = "<|observation|>";
}

/// Why text could not become tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json` is not one.
    #[error("{path}: not a tokenizer")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the reader met.
        #[source]
        source: tokenizers::Error,
    },
    /// A text could become much longer before it is cut into tokens.
    #[error(
        "{path}: its normalizer may make a text {growth:.0} times longer, needed at most {MOST_GROWTH:.0}; is this the \
         tokenizer of a GLM vision model?"
    )]
    Normalizer {
        /// The file.
        path: PathBuf,
        /// Bytes out of one.
        growth: f64,
    },
    /// A token that the models of this family need does not exist.
    #[error("{path}: has no token {token}; is this the tokenizer of a GLM vision model?")]
    MissingToken {
        /// The file.
        path: PathBuf,
        /// The text of the token.
        token: &'static str,
    },
    /// The tokenizer refused a text.
    #[error("a text of {bytes} bytes could not be tokenised")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer met.
        #[source]
        source: tokenizers::Error,
    },
}

/// Most bytes that a normalizer may make of one; GLM's have none. Unicode's decompositions make 18 characters of one.
const MOST_GROWTH: f64 = 64.0;

/// Most bytes that a normalizer makes of one, as its json tells.
fn normalizer_growth(normalizer: &serde_json::Value) -> f64 {
    let length = |text: &serde_json::Value| text.as_str().map_or(0.0, |text| text.len() as f64);
    match normalizer["type"].as_str() {
        Some("Sequence") => {
            normalizer["normalizers"].as_array().into_iter().flatten().map(normalizer_growth).product()
        }
        // A regular expression may find its match at every place, and between any two.
        Some("Replace") => match normalizer["pattern"].get("String") {
            Some(pattern) => (length(&normalizer["content"]) / length(pattern).max(1.0)).max(1.0),
            None => 1.0 + length(&normalizer["content"]),
        },
        Some("NFD" | "NFKD" | "NFKC" | "Nmt" | "Precompiled") => 18.0,
        _ => 1.0,
    }
}

/// Ids of the tokens with a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecialIds {
    /// [`token::IMAGE`]
    pub image: u32,
    /// [`token::BEGIN_OF_IMAGE`]
    pub begin_of_image: u32,
    /// [`token::END_OF_IMAGE`]
    pub end_of_image: u32,
    /// [`token::END_OF_TEXT`]
    pub end_of_text: u32,
    /// [`token::SYSTEM`]
    pub system: u32,
    /// [`token::USER`]
    pub user: u32,
    /// [`token::ASSISTANT`]
    pub assistant: u32,
    /// [`token::OBSERVATION`]
    pub observation: u32,
    /// [`token::VIDEO`], where the tokenizer has it.
    pub video: Option<u32>,
    /// [`token::BEGIN_OF_VIDEO`], where the tokenizer has it.
    pub begin_of_video: Option<u32>,
    /// [`token::END_OF_VIDEO`], where the tokenizer has it.
    pub end_of_video: Option<u32>,
}

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    control: Vec<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// When the file is not a tokenizer, or lacks a token that GLM's vision models need.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let bytes = glm4v_files::read(path, LONGEST_TOKENIZER)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        let growth = normalizer_growth(&serde_json::to_value(inner.get_normalizer()).unwrap_or_default());
        if growth > MOST_GROWTH {
            return Err(TokenizerError::Normalizer { path: path.to_owned(), growth });
        }
        // Cutting or filling is the caller's business: a cut could go through an image.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;

        let needed = |token: &'static str| {
            inner
                .token_to_id(token)
                .ok_or_else(|| TokenizerError::MissingToken { path: path.to_owned(), token })
        };
        let special = SpecialIds {
            image: needed(token::IMAGE)?,
            begin_of_image: needed(token::BEGIN_OF_IMAGE)?,
            end_of_image: needed(token::END_OF_IMAGE)?,
            end_of_text: needed(token::END_OF_TEXT)?,
            system: needed(token::SYSTEM)?,
            user: needed(token::USER)?,
            assistant: needed(token::ASSISTANT)?,
            observation: needed(token::OBSERVATION)?,
            video: inner.token_to_id(token::VIDEO),
            begin_of_video: inner.token_to_id(token::BEGIN_OF_VIDEO),
            end_of_video: inner.token_to_id(token::END_OF_VIDEO),
        };
        let added = inner.get_added_tokens_decoder().into_values();
        let control = added.filter(|token| token.special && is_control(&token.content));
        let mut control: Vec<String> = control.map(|token| token.content).collect();
        control.sort();
        Ok(Self { inner, special, control })
    }

    /// The ids of `text`; nothing is added around them, the chat template has written it all.
    ///
    /// # Errors
    ///
    /// When the tokenizer itself fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|source| TokenizerError::Encode { bytes: text.len(), source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`encode`](Self::encode) for a text that should take at most `most` tokens: the ids, or `None` as soon as it is clear
    /// that there are more.
    ///
    /// A text of many megabytes would take minutes and gigabytes to be tokenised whole. Its beginning alone shows that it
    /// is too long: what comes behind a cut changes no more than the last word before it. Twice the tokens are waited for,
    /// in case that word is the whole text.
    ///
    /// # Errors
    ///
    /// When the tokenizer itself fails.
    pub fn encode_within(&self, text: &str, most: usize) -> Result<Option<Vec<u32>>, TokenizerError> {
        /// Bytes of a token that are generous in any language.
        const BYTES: usize = 16;
        let mut length = most.saturating_mul(BYTES).max(1 << 16);
        while length < text.len() {
            let beginning = &text[..text.floor_char_boundary(length)];
            if self.encode(beginning)?.len() > most.saturating_mul(2) {
                return Ok(None);
            }
            length = length.saturating_mul(2);
        }
        Ok(Some(self.encode(text)?).filter(|ids| ids.len() <= most))
    }

    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids that do not exist become nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Only a decoder that reads its own output as a pattern can fail; byte level never does.
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }

    /// The id of a token, given its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of entries, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Ids of the tokens with a meaning of their own.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Texts of the special tokens that only chat templates write, such as `<|user|>`.
    pub fn control_tokens(&self) -> &[String] {
        &self.control
    }
}
