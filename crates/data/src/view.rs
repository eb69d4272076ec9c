//! A record as the model sees it: its tokens as text, which of them are labels, its images and videos.
//!
//! Everything is read off the [`Sample`] that training would use, not off the text that was meant to become it.

use glm4v_inputs::{Grid, Modality, Sample};
use glm4v_processor::Processor;

use crate::location::RecordLocation;
use crate::record::Record;

/// A record as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordView {
    /// Location of the record.
    pub location: RecordLocation,
    /// The tokens in order.
    pub pieces: Vec<Piece>,
    /// Images, then videos, in the order of their placeholders.
    pub media: Vec<MediaView>,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of label tokens.
    pub labels: usize,
}

/// Tokens that belong together.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text between placeholders and changes of the loss.
    Text {
        /// The decoded tokens, special ones included.
        text: String,
        /// Factor of their loss; 0 if they are no labels.
        loss_weight: f32,
    },
    /// The placeholders of an image, or of one temporal patch of a video.
    Placeholders {
        /// Index in [`RecordView::media`].
        media: usize,
        /// Their number.
        tokens: usize,
        /// Index of the temporal patch.
        temporal_patch: usize,
    },
}

/// An image or video of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaView {
    /// Image or video.
    pub modality: Modality,
    /// Path or URL; `data:` URLs are shortened.
    pub name: String,
    /// Width and height before resizing; `None` for videos.
    pub size: Option<[usize; 2]>,
    /// Width and height that the model sees.
    pub resized: [usize; 2],
    /// Patches.
    pub grid: Grid,
    /// Number of placeholder tokens.
    pub tokens: usize,
}

impl RecordView {
    /// The view of a record whose sample is `sample`. Decodes images once more, for their size.
    pub fn new(record: &Record, sample: &Sample, processor: &Processor) -> Self {
        let media = media(record, sample, processor);
        Self {
            location: record.location.clone(),
            pieces: Pieces { sample, processor, media: &media }.split(),
            tokens: sample.len(),
            // Nothing comes before the first token, so nothing predicts it.
            labels: sample.loss_mask.iter().skip(1).filter(|label| **label).count(),
            media,
        }
    }
}

fn media(record: &Record, sample: &Sample, processor: &Processor) -> Vec<MediaView> {
    let image = processor.image_processor();
    let frame = &processor.video_processor().config().frame;
    let view = |modality, name: String, size, grid: Grid| {
        let (patch, tokens) = match modality {
            Modality::Video => (frame.patch_size, grid.tokens(frame.merge_size)),
            _ => (image.patch_size(), image.tokens(grid.thw())),
        };
        MediaView { modality, name, size, resized: [grid.w * patch, grid.h * patch], grid, tokens }
    };
    let images = record.images().zip(sample.media.grids(Modality::Image)).map(|(source, grid)| {
        let decoded = image.decode_limits().load(source).ok();
        let size = decoded.map(|image| [image.width(), image.height()]);
        view(Modality::Image, source.to_string(), size, *grid)
    });
    let videos = record.videos().zip(sample.media.grids(Modality::Video));
    images
        .chain(videos.map(|(source, grid)| view(Modality::Video, source.to_string(), None, *grid)))
        .collect()
}

/// Splits the tokens of a sample.
struct Pieces<'a> {
    sample: &'a Sample,
    processor: &'a Processor,
    media: &'a [MediaView],
}

impl Pieces<'_> {
    fn split(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        // The next image and the next temporal patch of a video.
        let mut images = self.items(Modality::Image);
        let mut videos = self.items(Modality::Video);
        let mut at = 0;
        while at < self.sample.len() {
            let (piece, tokens) = match self.sample.modalities[at] {
                None => self.text(at),
                Some(modality) => {
                    let items = if modality == Modality::Video { &mut videos } else { &mut images };
                    let (media, temporal_patch, tokens) = items.next().unwrap_or((0, 0, 1));
                    (Piece::Placeholders { media, tokens, temporal_patch }, tokens.max(1))
                }
            };
            pieces.push(piece);
            at += tokens;
        }
        pieces
    }

    /// Index, temporal patch and number of tokens of each run of placeholders.
    fn items(&self, modality: Modality) -> impl Iterator<Item = (usize, usize, usize)> + use<'_> {
        let items = self.media.iter().enumerate().filter(move |(_, item)| item.modality == modality);
        items.flat_map(|(index, item)| {
            let runs = item.grid.t.max(1);
            (0..runs).map(move |temporal_patch| (index, temporal_patch, item.tokens / runs))
        })
    }

    /// The text from `at` to the next placeholder or change of the loss, and its number of tokens.
    fn text(&self, at: usize) -> (Piece, usize) {
        let loss_weight = self.loss_weight(at);
        let same = |index: &usize| {
            self.sample.modalities[*index].is_none() && self.loss_weight(*index) == loss_weight
        };
        let tokens = (at..self.sample.len()).take_while(same).count();
        let ids = &self.sample.input_ids[at..at + tokens];
        let text = self.processor.tokenizer().decode(ids, false);
        (Piece::Text { text, loss_weight }, tokens)
    }

    fn loss_weight(&self, at: usize) -> f32 {
        match (self.sample.loss_mask[at], &self.sample.loss_weights) {
            (false, _) => 0.0,
            (true, None) => 1.0,
            (true, Some(weights)) => weights[at],
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{processor, record, root};
    use crate::options::LabelOptions;
    use crate::sample::encode;

    fn view(value: serde_json::Value) -> (RecordView, Sample) {
        let (processor, record) = (processor(), record(value));
        let sample = encode(&record, &processor, LabelOptions::default()).unwrap();
        (RecordView::new(&record, &sample, &processor), sample)
    }

    #[test]
    fn pieces_hold_every_token_once_and_labels_are_apart() {
        let (view, sample) = view(json!({"messages": [
            {"role": "user", "content": "<image>and<image>?"}, {"role": "assistant", "content": "six", "weight": 0.5},
            {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}],
            "images": ["../digits/images/0004.png", "../digits/images/0005.png"]}));

        let labels = view.pieces.iter().filter_map(|piece| match piece {
            Piece::Text { text, loss_weight } if *loss_weight > 0.0 => Some((text.as_str(), *loss_weight)),
            _ => None,
        });
        assert_eq!(labels.collect::<Vec<_>>(), [("six<|user|>", 0.5), ("yes<|endoftext|>", 1.0)]);
        let runs = view.pieces.iter().filter_map(|piece| match piece {
            Piece::Placeholders { media, tokens, .. } => Some((*media, *tokens)),
            Piece::Text { .. } => None,
        });
        assert_eq!(runs.collect::<Vec<_>>(), [(0, 4), (1, 4)]);
        let labels = sample.loss_mask.iter().filter(|label| **label).count();
        assert_eq!((view.tokens, view.labels), (sample.len(), labels));
        let image = &view.media[1];
        assert!(image.name.ends_with("0005.png"));
        assert_eq!((image.resized, image.grid), ([56, 56], Grid::new(1, 4, 4)));
        assert_eq!(image.size, Some([56, 56]));
    }

    #[test]
    fn a_video_has_a_run_for_each_temporal_patch() {
        let video = root().join("tests/fixtures/processor/video/template_8x84x56.png").display().to_string();
        let (view, sample) = view(json!({"messages": [{"role": "user", "content": "<video>?"},
            {"role": "assistant", "content": "yes"}], "videos": [video]}));

        let runs = view.pieces.iter().filter_map(|piece| match piece {
            Piece::Placeholders { tokens, temporal_patch, .. } => Some((*temporal_patch, *tokens)),
            Piece::Text { .. } => None,
        });
        let runs: Vec<_> = runs.collect();
        let grid = sample.media.grids(Modality::Video)[0];
        assert_eq!(runs.len(), grid.t);
        assert!(runs.iter().enumerate().all(|(index, run)| *run == (index, grid.h * grid.w / 4)), "{runs:?}");
    }
}
