//! A record as the network reads it.

use glm4v_model::Sample;
use glm4v_processor::{Processor, ProcessorError, Segment, TemplateError};

use crate::labels::{LabelError, segments};
use crate::location::Location;
use crate::record::Record;

/// Why a record could not become a sample.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// It is not clear what the record trains.
    #[error("{at}: {problem}")]
    Label {
        /// The record.
        at: Location,
        /// What is wrong with it.
        problem: LabelError,
    },
    /// The chat template failed.
    #[error("{at}: cannot be rendered")]
    Render {
        /// The record.
        at: Location,
        /// What the template met.
        #[source]
        source: TemplateError,
    },
    /// An image or video cannot be used, or the text cannot be tokenised.
    #[error("{at}: cannot be encoded")]
    Process {
        /// The record.
        at: Location,
        /// What the processor met.
        #[source]
        source: Box<ProcessorError>,
    },
    /// More tokens than are allowed. Nothing is ever cut off: a cut can go through an image or take the
    /// answer away.
    #[error(
        "{at}: takes {tokens} tokens, max_length is {max_length}; raise it, make the images smaller, or \
         have such records dropped"
    )]
    TooLong {
        /// The record.
        at: Location,
        /// Tokens of the record.
        tokens: usize,
        /// Tokens allowed.
        max_length: usize,
    },
    /// More tokens than the processor allows, which stopped counting there.
    #[error(
        "{at}: takes more than {max_tokens} tokens, the most that max_length or the model's longest sequence allows; shorten the \
         record, make its images smaller or fewer, or have such records dropped"
    )]
    FarTooLong {
        /// The record.
        at: Location,
        /// Tokens allowed.
        max_tokens: usize,
    },
}

impl SampleError {
    /// Whether the record is longer than allowed, and may be dropped for it.
    pub fn is_too_long(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::FarTooLong { .. })
    }
}

/// [`segments`], with the place of the record in errors.
pub(crate) fn label(
    record: &Record,
    processor: &Processor,
    enable_thinking: Option<bool>,
) -> Result<Vec<Segment>, SampleError> {
    let at = record.at.clone();
    segments(record, processor, enable_thinking).map_err(|problem| match problem {
        LabelError::Template(source) => SampleError::Render { at, source },
        problem => SampleError::Label { at, problem },
    })
}

/// Turns a record into a sample for training: everything that is said, and what of it carries loss.
///
/// # Errors
///
/// When it is not clear what the record trains, or an image or video cannot be used.
pub fn encode(
    record: &Record,
    processor: &Processor,
    enable_thinking: Option<bool>,
) -> Result<Sample, SampleError> {
    let at = || record.at.clone();
    let segments = label(record, processor, enable_thinking)?;
    let images: Vec<_> = record.images().cloned().collect();
    let videos: Vec<_> = record.videos().cloned().collect();
    let encoded = processor.encode_segments(&segments, &images, &videos).map_err(|source| match source {
        ProcessorError::TooLong { max_tokens } => SampleError::FarTooLong { at: at(), max_tokens },
        source => SampleError::Process { at: at(), source: source.into() },
    })?;
    Ok(Sample::from_parts(
        encoded.input_ids,
        &encoded.mm_token_type_ids,
        encoded.loss_mask,
        (encoded.pixel_values, &encoded.image_grid_thw),
        (encoded.pixel_values_videos, &encoded.video_grid_thw),
    ))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use glm4v_model::TokenKind;
    use glm4v_processor::RenderOptions;
    use serde_json::json;

    use super::*;
    use crate::fixture::{processor, record, records, root};

    #[test]
    fn a_digit_is_the_prompt_the_word_and_the_end() {
        let processor = processor();
        let records = records("digits:train");

        let sample = encode(&records[0], &processor, None).unwrap();

        // digits_torch.py: rendered prompt, word, end of text.
        let tokenizer = processor.tokenizer();
        let image = "<|begin_of_image|><|image|><|image|><|image|><|image|><|end_of_image|>";
        let prompt = format!("[gMASK]<sop><|user|>\n{image}What digit is this?<|assistant|>\n");
        let prompt = tokenizer.encode(&prompt).unwrap();
        let answer = [tokenizer.encode("six").unwrap(), vec![tokenizer.special().end_of_text]].concat();
        assert_eq!(sample.input_ids, [prompt.clone(), answer.clone()].concat());
        assert_eq!(sample.loss_mask, [vec![false; prompt.len()], vec![true; answer.len()]].concat());
        assert_eq!(sample.kinds.iter().filter(|kind| **kind == TokenKind::Image).count(), 4);
        assert_eq!(sample.images.values.len(), 16 * 1176);
    }

    #[test]
    fn of_two_turns_both_answers_and_the_next_role_carry_loss() {
        let processor = processor();
        let record = &records("demo-sharegpt")[2];

        let sample = encode(record, &processor, None).unwrap();

        let labels = sample.input_ids.iter().zip(&sample.loss_mask).filter(|(_, label)| **label);
        let ids: Vec<u32> = labels.map(|(id, _)| *id).collect();
        let text = processor.tokenizer().decode(&ids, false);
        assert_eq!(text, "seven<|user|>eight<|endoftext|>");
        let whole = processor.tokenizer().encode(&text).unwrap();
        assert_eq!(ids, whole);
        assert_eq!(sample.images.grids.len(), 2);
    }

    #[test]
    fn videos_take_their_places_and_none_of_them_carries_loss() {
        let processor = processor();
        let videos = root().join("tests/fixtures/processor/video");
        let video = |name: &str| videos.join(name).display().to_string();
        let record = record(json!({"messages": [
            {"role": "user", "content": "<video>like <image>or<video>?"}, {"role": "assistant", "content": "yes"}],
            "images": ["../digits/images/0004.png"],
            "videos": [video("template_8x84x56.png"), [video("odd_5x84x56.png"), video("odd_5x84x56.png")]]}));

        let sample = encode(&record, &processor, None).unwrap();

        // The prompt is what the model is asked, token for token, and the answer follows.
        let asked = processor.encode(&record.messages[..1], &RenderOptions::prompt()).unwrap();
        let tokenizer = processor.tokenizer();
        let answer = [tokenizer.encode("yes").unwrap(), vec![tokenizer.special().end_of_text]].concat();
        assert_eq!(sample.input_ids, [asked.input_ids, answer.clone()].concat());
        let prompt = sample.input_ids.len() - answer.len();
        assert!(sample.loss_mask[..prompt].iter().all(|label| !label));
        assert!(sample.loss_mask[prompt..].iter().all(|label| *label));
        assert_eq!(sample.videos.values, asked.pixel_values_videos);
        assert_eq!(sample.videos.grids.iter().map(|grid| grid.t).collect::<Vec<_>>(), [2, 1]);
        let count = |kind| sample.kinds.iter().filter(|found| **found == kind).count();
        let tokens: usize = sample.videos.grids.iter().map(|grid| grid.tokens(2)).sum();
        assert_eq!((count(TokenKind::Image), count(TokenKind::Video)), (4, tokens));
    }

    #[test]
    fn a_record_that_cannot_be_encoded_is_named() {
        let processor = processor();
        let missing = record(json!({"messages": [{"role": "user", "content": "<image>"},
            {"role": "assistant", "content": "a"}], "images": ["none.png"]}));
        let video = record(json!({"messages": [{"role": "user", "content": "<video>"},
            {"role": "assistant", "content": "a"}], "videos": ["v.mp4"]}));
        let trailing = record(json!({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]}));

        let missing = encode(&missing, &processor, None).unwrap_err();
        let video = encode(&video, &processor, None).unwrap_err();
        let trailing = encode(&trailing, &processor, None).unwrap_err();

        assert_eq!(missing.to_string(), "x.jsonl: line 7: cannot be encoded");
        let causes = |error: &dyn Error| {
            let (mut causes, mut next) = (String::new(), error.source());
            while let Some(error) = next {
                causes += &format!(": {error}");
                next = error.source();
            }
            causes
        };
        let found = causes(&missing);
        assert!(found.contains("image 0") && found.contains("none.png"), "{found}");
        assert_eq!(video.to_string(), "x.jsonl: line 7: cannot be encoded");
        let causes = causes(&video);
        assert!(causes.contains("video 0") && causes.contains("v.mp4: cannot read"), "{causes}");
        let needed =
            "x.jsonl: line 7: message 2: the last message must be the assistant's, found a turn of the user";
        assert_eq!(trailing.to_string(), needed);
    }
}
