//! Placeholders to as many tokens as their pictures take.
//!
//! transformers repeats `<|image|>` in the text and tokenises the result. We tokenise first and repeat
//! the id: the token is cut out of the text before anything else is looked at, so both give the same
//! ids, and a long run of placeholders costs nothing. `tests/template_golden.rs` shows it.

use crate::image::PatchedImage;
use crate::tokenizer::{SpecialIds, token};

/// A conversation as the model reads it.
///
/// `S` tokens, `P` patches of all images; the rows of pictures follow each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// Token ids, `[S]`.
    pub input_ids: Vec<u32>,
    /// What stands at each token, `[S]`: 0 text, 1 image, 2 video.
    pub mm_token_type_ids: Vec<u8>,
    /// Whether the model is taught to produce the token, `[S]`; false everywhere but in
    /// [`Processor::encode_segments`](crate::Processor::encode_segments).
    pub taught: Vec<bool>,
    /// Patches of the images, `[P, 1176]`.
    pub pixel_values: Vec<f32>,
    /// Frame pairs, patch rows and patch columns of each image.
    pub image_grid_thw: Vec<[usize; 3]>,
    /// Patches of the clips; empty in this version.
    pub pixel_values_videos: Vec<f32>,
    /// Grid of each clip; empty in this version.
    pub video_grid_thw: Vec<[usize; 3]>,
}

/// A stretch of a rendered conversation that is tokenised on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The text, with one `<|image|>` for each picture.
    pub text: String,
    /// Whether the model is taught to produce it.
    pub taught: bool,
}

/// Why pictures could not be placed in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpandError {
    /// The text has more or fewer places for pictures than there are pictures.
    #[error(
        "the prompt has {found} {} placeholders, but {images} images were given{}",
        token::IMAGE, spelled(*.message)
    )]
    Count {
        /// Placeholders in the text.
        found: usize,
        /// Images given.
        images: usize,
        /// The first message whose own text spells the placeholder.
        message: Option<usize>,
    },
    /// The text of a message holds the placeholder, and would get a picture that belongs elsewhere.
    #[error("message {message}: its text spells {}, which stands for a picture", token::IMAGE)]
    Spelled {
        /// Index of the message.
        message: usize,
    },
    /// A clip.
    #[error("video is not supported by this version yet{}", at(*.message))]
    Video {
        /// The message that holds it, where known.
        message: Option<usize>,
    },
}

fn spelled(message: Option<usize>) -> String {
    let say = |m| format!("; message {m} spells the placeholder in its text");
    message.map(say).unwrap_or_default()
}

fn at(message: Option<usize>) -> String {
    message.map(|m| format!(" (message {m})")).unwrap_or_default()
}

/// Puts token ids and pictures together.
pub(crate) struct Expander<'a> {
    special: &'a SpecialIds,
    /// Tokens that each image takes.
    counts: std::vec::IntoIter<usize>,
    images: usize,
    found: usize,
    /// How many clips have begun and not ended.
    open_clips: i64,
    out: Encoded,
}

impl<'a> Expander<'a> {
    /// Starts with the pictures; `patches_per_token` of their rows become one token.
    pub(crate) fn new(special: &'a SpecialIds, images: Vec<PatchedImage>, patches_per_token: usize) -> Self {
        let tokens = |image: &PatchedImage| image.grid.iter().product::<usize>() / patches_per_token;
        let counts: Vec<usize> = images.iter().map(tokens).collect();
        let mut out =
            Encoded { image_grid_thw: images.iter().map(|image| image.grid).collect(), ..Encoded::default() };
        let rows: usize = images.iter().map(|image| image.pixel_values.len()).sum();
        let mut images = images.into_iter();
        // The common case of one picture moves its rows instead of copying them.
        out.pixel_values = images.next().map(|image| image.pixel_values).unwrap_or_default();
        out.pixel_values.reserve_exact(rows - out.pixel_values.len());
        for image in images {
            out.pixel_values.extend_from_slice(&image.pixel_values);
        }
        Self { special, images: counts.len(), counts: counts.into_iter(), found: 0, open_clips: 0, out }
    }

    /// Appends tokens, repeating placeholders.
    pub(crate) fn push(&mut self, ids: &[u32], taught: bool) -> Result<(), ExpandError> {
        let special = self.special;
        for &id in ids {
            let is = |token: Option<u32>| token == Some(id);
            if is(special.video) {
                return Err(ExpandError::Video { message: None });
            }
            self.open_clips += i64::from(is(special.begin_of_video)) - i64::from(is(special.end_of_video));
            let (kind, repeat) = if id == special.image {
                self.found += 1;
                let kind = if self.open_clips > 0 { 2 } else { 1 };
                // Without a picture for it the count is wrong, which `finish` reports.
                (kind, self.counts.next().unwrap_or(0))
            } else {
                (0, 1)
            };
            let len = self.out.input_ids.len() + repeat;
            self.out.input_ids.resize(len, id);
            self.out.mm_token_type_ids.resize(len, kind);
            self.out.taught.resize(len, taught);
        }
        Ok(())
    }

    /// Ends the prompt; `suspect` is a message whose text spells the placeholder.
    pub(crate) fn finish(self, suspect: Option<usize>) -> Result<Encoded, ExpandError> {
        if self.found != self.images {
            return Err(ExpandError::Count { found: self.found, images: self.images, message: suspect });
        }
        match suspect {
            Some(message) => Err(ExpandError::Spelled { message }),
            None => Ok(self.out),
        }
    }
}
