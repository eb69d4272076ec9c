//! Placeholders to as many tokens as their images and videos take.
//!
//! transformers repeats `<|image|>` in the text and tokenises the result. We tokenise first and repeat
//! the id: the token is cut out of the text before anything else is looked at, so both give the same
//! ids, and a long run of placeholders costs nothing. `tests/template_golden.rs` shows it.
//!
//! A `<|video|>` becomes, for each pair of frames, `<|begin_of_image|>`, a run of `<|image|>`,
//! `<|end_of_image|>` and the time of the pair. Times are tokenised alone, which is the same as within
//! the text because special tokens stand on both sides of them.

use crate::image::PatchedImage;
use crate::tokenizer::{SpecialIds, token};

/// A conversation as the model reads it.
///
/// `S` tokens, `P` patches of all images, `Q` of all videos; the rows of images follow each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// Token ids, `[S]`.
    pub input_ids: Vec<u32>,
    /// What stands at each token, `[S]`: 0 text, 1 image, 2 video.
    pub mm_token_type_ids: Vec<u8>,
    /// Whether the model carries loss to produce the token, `[S]`; false everywhere but in
    /// [`Processor::encode_segments`](crate::Processor::encode_segments).
    pub loss_mask: Vec<bool>,
    /// Patches of the images, `[P, 1176]`.
    pub pixel_values: Vec<f32>,
    /// Frame pairs, patch rows and patch columns of each image.
    pub image_grid_thw: Vec<[usize; 3]>,
    /// Patches of the videos, `[Q, 1176]`.
    pub pixel_values_videos: Vec<f32>,
    /// Frame pairs, patch rows and patch columns of each video.
    pub video_grid_thw: Vec<[usize; 3]>,
}

/// A stretch of a rendered conversation that is tokenised on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The text, with one `<|image|>` for each image and one `<|video|>` for each video.
    pub text: String,
    /// Whether the model carries loss to produce it.
    pub is_label: bool,
}

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaKind {
    /// `<|image|>`
    Image,
    /// `<|video|>`
    Video,
}

impl MediaKind {
    pub(crate) fn token(self) -> &'static str {
        match self {
            Self::Image => token::IMAGE,
            Self::Video => token::VIDEO,
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Image => "images",
            Self::Video => "videos",
        }
    }
}

/// The message in which the numbers begin to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// Index of the message.
    pub message: usize,
    /// Index of its first part of the kind, if it has one.
    pub part: Option<usize>,
    /// Placeholders that the chat template writes for the message.
    pub found: usize,
    /// Parts of the kind in the message.
    pub given: usize,
}

/// Why images could not be placed in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpandError {
    /// The text has more or fewer places for images or videos than there are.
    #[error(
        "the prompt has {found} {} placeholders, but {given} {} were given{}",
        .kind.token(), .kind.plural(), blame(*.kind, .culprit.as_ref())
    )]
    Count {
        /// What is placed.
        kind: MediaKind,
        /// Placeholders in the text.
        found: usize,
        /// Images or videos given.
        given: usize,
        /// The first message whose own numbers differ, where that is known.
        culprit: Option<Culprit>,
    },
    /// Patches that do not make whole tokens.
    #[error("{} {index} of the conversation has a grid of {grid:?} patches, which {patches_per_token} patches a token do not divide", name(*.kind))]
    Tokens {
        /// What is placed.
        kind: MediaKind,
        /// Which of its kind, from 0.
        index: usize,
        /// Frame pairs, patch rows and patch columns.
        grid: [usize; 3],
        /// Patches that become one token.
        patches_per_token: usize,
    },
    /// A video for a tokenizer without the tokens of videos.
    #[error(
        "the conversation holds a video, but the tokenizer has no token {}; is this the tokenizer of the model?",
        token::VIDEO
    )]
    NoVideoToken,
}

fn name(kind: MediaKind) -> &'static str {
    match kind {
        MediaKind::Image => "image",
        MediaKind::Video => "video",
    }
}

fn blame(kind: MediaKind, culprit: Option<&Culprit>) -> String {
    let Some(Culprit { message, part, found, given }) = culprit else {
        return String::new();
    };
    let part = part.map(|part| format!(", part {part}")).unwrap_or_default();
    format!("; message {message}{part}: {found} placeholders for {given} {}", kind.plural())
}

/// A video and the tokens of the times between its frames.
pub(crate) struct TimedVideo {
    /// Patches and grid.
    pub(crate) pixel_values: Vec<f32>,
    pub(crate) grid: [usize; 3],
    /// Tokens behind each frame pair.
    pub(crate) times: Vec<Vec<u32>>,
}

/// The media of one kind that wait for their places.
struct Waiting<T> {
    rest: std::vec::IntoIter<T>,
    given: usize,
    found: usize,
}

impl<T> Waiting<T> {
    fn new(all: Vec<T>) -> Self {
        Self { given: all.len(), rest: all.into_iter(), found: 0 }
    }

    /// Takes the next for a place; none when there are more places, which `check` reports.
    fn next(&mut self) -> Option<T> {
        self.found += 1;
        self.rest.next()
    }

    fn check(&self, kind: MediaKind) -> Result<(), ExpandError> {
        if self.found == self.given {
            return Ok(());
        }
        Err(ExpandError::Count { kind, found: self.found, given: self.given, culprit: None })
    }
}

/// Puts token ids, images and videos together.
pub(crate) struct Expander<'a> {
    special: &'a SpecialIds,
    /// Tokens that each image takes.
    images: Waiting<usize>,
    /// Tokens that a frame pair takes, and the tokens of the times behind the pairs.
    videos: Waiting<(usize, Vec<Vec<u32>>)>,
    out: Encoded,
}

impl<'a> Expander<'a> {
    /// Starts with the media; `[image, video]` of their patches become one token.
    pub(crate) fn new(
        special: &'a SpecialIds,
        images: Vec<PatchedImage>,
        videos: Vec<TimedVideo>,
        patches_per_token: [usize; 2],
    ) -> Result<Self, ExpandError> {
        let tokens = |kind, index, grid: [usize; 3], patches: usize, per_token: usize| match patches > 0
            && patches.is_multiple_of(per_token)
        {
            true => Ok(patches / per_token),
            false => Err(ExpandError::Tokens { kind, index, grid, patches_per_token: per_token }),
        };
        let mut out = Encoded::default();
        let mut counts = Vec::with_capacity(images.len());
        for (index, image) in images.iter().enumerate() {
            let patches = image.grid.iter().product();
            counts.push(tokens(MediaKind::Image, index, image.grid, patches, patches_per_token[0])?);
            out.image_grid_thw.push(image.grid);
        }
        let mut timed = Vec::with_capacity(videos.len());
        let mut rows = Vec::with_capacity(videos.len());
        for (index, TimedVideo { pixel_values, grid, times }) in videos.into_iter().enumerate() {
            let patches = grid[1] * grid[2];
            timed.push((tokens(MediaKind::Video, index, grid, patches, patches_per_token[1])?, times));
            out.video_grid_thw.push(grid);
            rows.push(pixel_values);
        }
        out.pixel_values = joined(images.into_iter().map(|image| image.pixel_values).collect());
        out.pixel_values_videos = joined(rows);
        Ok(Self { special, images: Waiting::new(counts), videos: Waiting::new(timed), out })
    }

    /// Appends tokens, repeating placeholders. What stands for images and videos is never trained on.
    pub(crate) fn push(&mut self, ids: &[u32], is_label: bool) {
        let special = self.special;
        for &id in ids {
            if id == special.image {
                let count = self.images.next().unwrap_or(0);
                self.append(id, 1, false, count);
            } else if Some(id) == special.video {
                let Some((count, times)) = self.videos.next() else { continue };
                for time in times {
                    self.append(special.begin_of_image, 0, false, 1);
                    self.append(special.image, 2, false, count);
                    self.append(special.end_of_image, 0, false, 1);
                    time.into_iter().for_each(|id| self.append(id, 0, false, 1));
                }
            } else {
                self.append(id, 0, is_label, 1);
            }
        }
    }

    fn append(&mut self, id: u32, kind: u8, is_label: bool, times: usize) {
        let len = self.out.input_ids.len() + times;
        self.out.input_ids.resize(len, id);
        self.out.mm_token_type_ids.resize(len, kind);
        self.out.loss_mask.resize(len, is_label);
    }

    /// Ends the prompt.
    pub(crate) fn finish(self) -> Result<Encoded, ExpandError> {
        self.images.check(MediaKind::Image)?;
        if self.videos.given > 0 && self.special.video.is_none() {
            return Err(ExpandError::NoVideoToken);
        }
        self.videos.check(MediaKind::Video)?;
        Ok(self.out)
    }
}

/// Rows of all, one after another. The common case of one moves its rows instead of copying them.
fn joined(all: Vec<Vec<f32>>) -> Vec<f32> {
    let rows: usize = all.iter().map(Vec::len).sum();
    let mut all = all.into_iter();
    let mut out = all.next().unwrap_or_default();
    out.reserve_exact(rows - out.len());
    all.for_each(|more| out.extend_from_slice(&more));
    out
}
