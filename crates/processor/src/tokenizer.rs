//! Text to token ids and back.
//!
//! A thin wrapper around the `tokenizers` crate. Special tokens are looked up by their text, never by
//! id: the ids differ between checkpoints (151343 in GLM-4.1V, 1164 in the tiny test models).

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_TOKENIZER};

use crate::special_token_guard::is_control_token;

/// Texts of the special tokens of images, videos, roles and ends.
pub mod token {
    /// Placeholder of one merged patch of an image or frame.
    pub const IMAGE: &str = "<|image|>";
    /// Placeholder of a video in a rendered prompt; never in token ids.
    pub const VIDEO: &str = "<|video|>";
    /// Before an image, and before every temporal patch of a video.
    pub const BEGIN_OF_IMAGE: &str = "<|begin_of_image|>";
    /// After an image, and after every temporal patch of a video.
    pub const END_OF_IMAGE: &str = "<|end_of_image|>";
    /// Before a video.
    pub const BEGIN_OF_VIDEO: &str = "<|begin_of_video|>";
    /// After a video.
    pub const END_OF_VIDEO: &str = "<|end_of_video|>";
    /// End of a text; also used as padding.
    pub const END_OF_TEXT: &str = "<|endoftext|>";
    /// Opens a system message.
    pub const SYSTEM: &str = "<|system|>";
    /// Opens a user message.
    pub const USER: &str = "<|user|>";
    /// Opens an assistant message.
    pub const ASSISTANT: &str = "<|assistant|>";
    /// Opens a tool message.
    pub const OBSERVATION: &str = "<|observation|>";
}

/// Error of loading or running a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json` is not a tokenizer.
    #[error("{path}: not a tokenizer")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the parser.
        #[source]
        source: tokenizers::Error,
    },
    /// The normalizer could make a text much longer before it is split into tokens.
    #[error(
        "{path}: its normalizer may make a text {growth:.0} times longer, needed at most {MAX_GROWTH:.0}; is this the \
         tokenizer of a GLM vision model?"
    )]
    Normalizer {
        /// The file.
        path: PathBuf,
        /// Bytes of output per byte of input.
        growth: f64,
    },
    /// A token that all models of this family need is missing.
    #[error("{path}: has no token {token}; is this the tokenizer of a GLM vision model?")]
    MissingToken {
        /// The file.
        path: PathBuf,
        /// The text of the token.
        token: &'static str,
    },
    /// The tokenizer failed on a text.
    #[error("a text of {bytes} bytes could not be tokenised")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// Error of the tokenizer.
        #[source]
        source: tokenizers::Error,
    },
}

/// Maximum bytes of output per byte of input; GLM has no normalizer. Unicode decompositions expand a character to up to 18.
const MAX_GROWTH: f64 = 64.0;

/// Upper bound on the bytes of output per byte of input, from the JSON of a normalizer.
fn normalizer_growth(normalizer: &serde_json::Value) -> f64 {
    let length = |text: &serde_json::Value| text.as_str().map_or(0.0, |text| text.len() as f64);
    match normalizer["type"].as_str() {
        Some("Sequence") => {
            normalizer["normalizers"].as_array().into_iter().flatten().map(normalizer_growth).product()
        }
        // A regular expression may match at every byte, and between any two.
        Some("Replace") => match normalizer["pattern"].get("String") {
            Some(pattern) => (length(&normalizer["content"]) / length(pattern).max(1.0)).max(1.0),
            None => 1.0 + length(&normalizer["content"]),
        },
        Some("NFD" | "NFKD" | "NFKC" | "Nmt" | "Precompiled") => 18.0,
        _ => 1.0,
    }
}

/// Ids of the special tokens in [`token`].
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
        if growth > MAX_GROWTH {
            return Err(TokenizerError::Normalizer { path: path.to_owned(), growth });
        }
        // The caller truncates and pads: here a truncation could split an image.
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
        let control = added.filter(|token| token.special && is_control_token(&token.content));
        let mut control: Vec<String> = control.map(|token| token.content).collect();
        control.sort();
        Ok(Self { inner, special, control })
    }

    /// The ids of `text`, without added special tokens: the chat template has written all of them.
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

    /// [`encode`](Self::encode) for at most `max_tokens` tokens; `None` as soon as it is clear that there are more.
    ///
    /// Tokenizing many megabytes takes minutes and gigabytes, while a prefix is enough to show that a text is too long: the
    /// text after it changes at most the tokens of its last word. The limit for a prefix is twice `max_tokens`, in case that
    /// word is all of it.
    ///
    /// # Errors
    ///
    /// When the tokenizer itself fails.
    pub fn encode_within(&self, text: &str, max_tokens: usize) -> Result<Option<Vec<u32>>, TokenizerError> {
        /// Generous in any language.
        const BYTES_PER_TOKEN: usize = 16;
        let mut length = max_tokens.saturating_mul(BYTES_PER_TOKEN).max(1 << 16);
        while length < text.len() {
            let prefix = &text[..text.floor_char_boundary(length)];
            if self.encode(prefix)?.len() > max_tokens.saturating_mul(2) {
                return Ok(None);
            }
            length = length.saturating_mul(2);
        }
        Ok(Some(self.encode(text)?).filter(|ids| ids.len() <= max_tokens))
    }

    /// The text of `ids`; invalid UTF-8 becomes U+FFFD, unknown ids are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Only decoders with regular expressions can fail; the byte-level one cannot.
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }

    /// The id of a token by its text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Size of the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Ids of the special tokens in [`token`].
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Texts of the special tokens that only chat templates write, such as `<|user|>`.
    pub fn control_tokens(&self) -> &[String] {
        &self.control
    }
}
