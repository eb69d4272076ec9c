//! Placeholders to as many tokens as their images and videos take.
//!
//! transformers repeats `<|image|>` in the text and tokenises the result. We tokenise first and repeat
//! the id: the token is cut out of the text before anything else is looked at, so both give the same
//! ids, and a long run of placeholders costs nothing. `tests/template_golden.rs` shows it.
//!
//! A `<|video|>` becomes, for each pair of frames, `<|begin_of_image|>`, a run of `<|image|>`,
//! `<|end_of_image|>` and the time of the pair. Times are tokenised alone, which is the same as within
//! the text because special tokens stand on both sides of them.

use glm4v_inputs::{Grid, Modality, MultimodalInputs, Patches, Sample};

use crate::image::PatchedImage;
use crate::tokenizer::{SpecialIds, token};

/// A span of a rendered conversation that is tokenized on its own.
#[derive(Debug, Clone, PartialEq)]
pub struct LabeledText {
    /// The text, with one `<|image|>` for each image and one `<|video|>` for each video.
    pub text: String,
    /// Factor of the loss of its tokens; they are no labels if it is 0.
    pub loss_weight: f32,
}

impl LabeledText {
    /// A text whose tokens are labels of weight 1, or no labels.
    pub fn new(text: impl Into<String>, is_label: bool) -> Self {
        Self { text: text.into(), loss_weight: if is_label { 1.0 } else { 0.0 } }
    }

    /// Whether its tokens are labels.
    pub fn is_label(&self) -> bool {
        self.loss_weight > 0.0
    }
}

/// The placeholder of a modality before it is expanded.
pub(crate) fn placeholder(modality: Modality) -> &'static str {
    match modality {
        Modality::Video => token::VIDEO,
        _ => token::IMAGE,
    }
}

/// The first message with more or fewer placeholders than media.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaCountMismatch {
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
pub enum PlaceholderError {
    /// The text has more or fewer places for images or videos than there are.
    #[error(
        "the prompt has {found} {} placeholders, but {given} {modality}s were given{}",
        placeholder(*.modality), mismatch(*.modality, .message.as_ref())
    )]
    Count {
        /// Images or videos.
        modality: Modality,
        /// Placeholders in the text.
        found: usize,
        /// Images or videos given.
        given: usize,
        /// Where the counts begin to differ, if that is known.
        message: Option<MediaCountMismatch>,
    },
    /// Patches that do not make whole tokens.
    #[error(
        "{modality} {index} of the conversation has a grid of {:?} patches, which {patches_per_token} patches a token do \
         not divide",
        .grid.thw()
    )]
    Tokens {
        /// Images or videos.
        modality: Modality,
        /// Which of its kind, from 0.
        index: usize,
        /// Its patches.
        grid: Grid,
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

fn mismatch(modality: Modality, message: Option<&MediaCountMismatch>) -> String {
    let Some(MediaCountMismatch { message, part, found, given }) = message else {
        return String::new();
    };
    let part = part.map(|part| format!(", part {part}")).unwrap_or_default();
    format!("; message {message}{part}: {found} placeholders for {given} {modality}s")
}

/// A video and the tokens of its timestamps.
pub(crate) struct TimedVideo {
    pub(crate) pixel_values: Vec<f32>,
    pub(crate) grid: Grid,
    /// Tokens after each temporal patch.
    pub(crate) timestamps: Vec<Vec<u32>>,
}

/// The items of one modality that wait for their placeholder.
struct PendingMedia<T> {
    rest: std::vec::IntoIter<T>,
    given: usize,
    found: usize,
}

impl<T> PendingMedia<T> {
    fn new(all: Vec<T>) -> Self {
        Self { given: all.len(), rest: all.into_iter(), found: 0 }
    }

    /// Takes the next item for a placeholder; none when there are more placeholders, which `check` reports.
    fn next(&mut self) -> Option<T> {
        self.found += 1;
        self.rest.next()
    }

    fn check(&self, modality: Modality) -> Result<(), PlaceholderError> {
        if self.found == self.given {
            return Ok(());
        }
        Err(PlaceholderError::Count { modality, found: self.found, given: self.given, message: None })
    }
}

/// Joins token ids, images and videos into a [`Sample`].
pub(crate) struct PlaceholderExpansion<'a> {
    special: &'a SpecialIds,
    /// Tokens of each image.
    images: PendingMedia<usize>,
    /// Tokens of a temporal patch, and the timestamps after the temporal patches.
    videos: PendingMedia<(usize, Vec<Vec<u32>>)>,
    sample: Sample,
    /// Of each token.
    loss_weights: Vec<f32>,
}

/// Tokens of an item of which `patches` form one grid or, of a video, one temporal patch.
fn tokens_of(
    (modality, index): (Modality, usize),
    grid: Grid,
    patches: usize,
    patches_per_token: usize,
) -> Result<usize, PlaceholderError> {
    if patches > 0 && patches.is_multiple_of(patches_per_token) {
        return Ok(patches / patches_per_token);
    }
    Err(PlaceholderError::Tokens { modality, index, grid, patches_per_token })
}

impl<'a> PlaceholderExpansion<'a> {
    /// Starts with the media; `[image, video]` of their patches become one token.
    pub(crate) fn new(
        special: &'a SpecialIds,
        images: Vec<PatchedImage>,
        videos: Vec<TimedVideo>,
        patches_per_token: [usize; 2],
    ) -> Result<Self, PlaceholderError> {
        let mut counts = Vec::with_capacity(images.len());
        let (mut image_rows, mut image_grids) = (Vec::new(), Vec::new());
        for (index, image) in images.into_iter().enumerate() {
            let grid = Grid::from(image.grid);
            counts.push(tokens_of((Modality::Image, index), grid, grid.patches(), patches_per_token[0])?);
            image_rows.push(image.pixel_values);
            image_grids.push(grid);
        }
        let mut timed = Vec::with_capacity(videos.len());
        let (mut video_rows, mut video_grids) = (Vec::new(), Vec::new());
        for (index, TimedVideo { pixel_values, grid, timestamps }) in videos.into_iter().enumerate() {
            let tokens = tokens_of((Modality::Video, index), grid, grid.h * grid.w, patches_per_token[1])?;
            timed.push((tokens, timestamps));
            video_rows.push(pixel_values);
            video_grids.push(grid);
        }
        let media = MultimodalInputs::from_iter([
            (Modality::Image, Patches { values: joined(image_rows), grids: image_grids }),
            (Modality::Video, Patches { values: joined(video_rows), grids: video_grids }),
        ]);
        let sample = Sample { media, ..Sample::default() };
        Ok(Self {
            special,
            images: PendingMedia::new(counts),
            videos: PendingMedia::new(timed),
            sample,
            loss_weights: Vec::new(),
        })
    }

    /// Appends tokens, repeating placeholders. Placeholders are never labels.
    pub(crate) fn push(&mut self, ids: &[u32], loss_weight: f32) {
        let special = self.special;
        for &id in ids {
            if id == special.image {
                let count = self.images.next().unwrap_or(0);
                self.placeholders(Modality::Image, count);
            } else if Some(id) == special.video {
                let Some((count, timestamps)) = self.videos.next() else { continue };
                for timestamp in timestamps {
                    self.text(special.begin_of_image, 0.0);
                    self.placeholders(Modality::Video, count);
                    self.text(special.end_of_image, 0.0);
                    timestamp.into_iter().for_each(|id| self.text(id, 0.0));
                }
            } else {
                self.text(id, loss_weight);
            }
        }
    }

    fn text(&mut self, id: u32, loss_weight: f32) {
        self.sample.input_ids.push(id);
        self.sample.modalities.push(None);
        self.sample.loss_mask.push(loss_weight > 0.0);
        self.loss_weights.push(loss_weight);
    }

    /// Images and videos share one placeholder token.
    fn placeholders(&mut self, modality: Modality, count: usize) {
        let length = self.sample.len() + count;
        self.sample.input_ids.resize(length, self.special.image);
        self.sample.modalities.resize(length, Some(modality));
        self.sample.loss_mask.resize(length, false);
        self.loss_weights.resize(length, 0.0);
    }

    /// Ends the prompt.
    pub(crate) fn finish(mut self) -> Result<Sample, PlaceholderError> {
        self.images.check(Modality::Image)?;
        if self.videos.given > 0 && self.special.video.is_none() {
            return Err(PlaceholderError::NoVideoToken);
        }
        self.videos.check(Modality::Video)?;
        if self.loss_weights.iter().any(|weight| ![0.0, 1.0].contains(weight)) {
            self.sample.loss_weights = Some(self.loss_weights);
        }
        Ok(self.sample)
    }
}

/// All rows in one vector. The common case of one item moves its rows instead of copying them.
fn joined(all: Vec<Vec<f32>>) -> Vec<f32> {
    let rows: usize = all.iter().map(Vec::len).sum();
    let mut all = all.into_iter();
    let mut out = all.next().unwrap_or_default();
    out.reserve_exact(rows - out.len());
    all.for_each(|more| out.extend_from_slice(&more));
    out
}
