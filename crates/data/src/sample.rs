//! Encoding of records.

use glm4v_inputs::Sample;
use glm4v_processor::{ImageProcessor, LabeledText, Processor, ProcessorError, TemplateError};

use crate::labels::{LabelError, label_spans};
use crate::location::RecordLocation;
use crate::options::LabelOptions;
use crate::proof::{ProofError, prove};
use crate::reader::ReadError;
use crate::record::Record;

/// Error of a record that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The record cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The labels of the record cannot be determined.
    #[error("{location}: {problem}")]
    Label {
        /// Location of the record.
        location: RecordLocation,
        /// Error of the labels.
        problem: LabelError,
    },
    /// The chat template failed.
    #[error("{location}: cannot be rendered")]
    Render {
        /// Location of the record.
        location: RecordLocation,
        /// Error of the template.
        #[source]
        source: TemplateError,
    },
    /// An image or video cannot be used, or the text cannot be tokenized.
    #[error("{location}: cannot be encoded")]
    Process {
        /// Location of the record.
        location: RecordLocation,
        /// Error of the processor.
        #[source]
        source: Box<ProcessorError>,
    },
    /// The encoded record is not what it seems to be.
    #[error("{location}: {problem}")]
    Proof {
        /// Location of the record.
        location: RecordLocation,
        /// What is wrong.
        problem: Box<ProofError>,
    },
    /// More records than allowed cannot be used.
    #[error(
        "{skipped} records cannot be used so far, at most {max_bad} may be left out; the last one: {last}"
    )]
    TooManyBad {
        /// Number of such records.
        skipped: usize,
        /// Maximum number.
        max_bad: usize,
        /// Error of the last one, with its causes.
        last: String,
    },
    /// The record has more tokens than `max_length`.
    #[error(
        "{location}: takes {tokens} tokens, max_length is {max_length}; raise it, make the images smaller, or \
         have such records dropped"
    )]
    TooLong {
        /// Location of the record.
        location: RecordLocation,
        /// Number of tokens of the record.
        tokens: usize,
        /// Maximum number of tokens.
        max_length: usize,
    },
    /// The record has so many more tokens that counting stopped.
    #[error(
        "{location}: takes more than {max_tokens} tokens, the most that max_length or the model's longest sequence allows; shorten the \
         record, make its images smaller or fewer, or have such records dropped"
    )]
    FarTooLong {
        /// Location of the record.
        location: RecordLocation,
        /// Maximum number of tokens.
        max_tokens: usize,
    },
}

impl SampleError {
    /// Whether [`LengthPolicy`](crate::LengthPolicy) applies to the record.
    pub fn is_too_long(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::FarTooLong { .. })
    }
}

/// [`label_spans`], with the location of the record in errors.
pub(crate) fn record_spans(
    record: &Record,
    processor: &Processor,
    options: LabelOptions,
) -> Result<Vec<LabeledText>, SampleError> {
    let location = record.location.clone();
    label_spans(record, processor, options).map_err(|problem| match problem {
        LabelError::Template(source) => SampleError::Render { location, source },
        problem => SampleError::Label { location, problem },
    })
}

/// Encodes a record for training: token ids with the loss mask, and the patches of its media; proves that placeholders, grids and
/// patches agree and that the labels are the answers.
///
/// # Errors
///
/// When the labels cannot be determined, or an image or video cannot be used.
pub fn encode(record: &Record, processor: &Processor, options: LabelOptions) -> Result<Sample, SampleError> {
    encode_with_images(record, processor, options, None)
}

/// As [`encode`], with another image processor of the same patches.
pub(crate) fn encode_with_images(
    record: &Record,
    processor: &Processor,
    options: LabelOptions,
    image_processor: Option<&ImageProcessor>,
) -> Result<Sample, SampleError> {
    let image_processor = image_processor.unwrap_or(processor.image_processor());
    let spans = record_spans(record, processor, options)?;
    let images: Vec<_> = record.images().cloned().collect();
    let videos: Vec<_> = record.videos().cloned().collect();
    let sample =
        processor.encode_spans_with(image_processor, &spans, &images, &videos).map_err(|source| {
            let location = record.location.clone();
            match source {
                ProcessorError::TooLong { max_tokens } => SampleError::FarTooLong { location, max_tokens },
                source => SampleError::Process { location, source: source.into() },
            }
        })?;
    prove(record, &spans, &sample, processor, options.loss).map_err(|problem| SampleError::Proof {
        location: record.location.clone(),
        problem: Box::new(problem),
    })?;
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use glm4v_inputs::Modality;
    use glm4v_processor::ChatTemplateOptions;
    use serde_json::json;

    use super::*;
    use crate::fixture::{processor, record, records, root};

    #[test]
    fn a_digit_is_encoded_as_prompt_word_and_end_of_text() {
        let processor = processor();
        let records = records("digits:train");

        let sample = encode(&records[0], &processor, LabelOptions::default()).unwrap();

        // digits_torch.py: rendered prompt, word, end of text.
        let tokenizer = processor.tokenizer();
        let image = "<|begin_of_image|><|image|><|image|><|image|><|image|><|end_of_image|>";
        let prompt = format!("[gMASK]<sop><|user|>\n{image}What digit is this?<|assistant|>\n");
        let prompt = tokenizer.encode(&prompt).unwrap();
        let answer = [tokenizer.encode("six").unwrap(), vec![tokenizer.special().end_of_text]].concat();
        assert_eq!(sample.input_ids, [prompt.clone(), answer.clone()].concat());
        assert_eq!(sample.loss_mask, [vec![false; prompt.len()], vec![true; answer.len()]].concat());
        assert_eq!(
            sample.modalities.iter().filter(|modality| **modality == Some(Modality::Image)).count(),
            4
        );
        assert_eq!(sample.media.patches(Modality::Image).values.len(), 16 * 1176);
    }

    #[test]
    fn of_two_turns_both_answers_and_the_next_role_carry_loss() {
        let processor = processor();
        let record = &records("demo-sharegpt")[2];

        let sample = encode(record, &processor, LabelOptions::default()).unwrap();

        let labels = sample.input_ids.iter().zip(&sample.loss_mask).filter(|(_, label)| **label);
        let ids: Vec<u32> = labels.map(|(id, _)| *id).collect();
        let text = processor.tokenizer().decode(&ids, false);
        assert_eq!(text, "seven<|user|>eight<|endoftext|>");
        let whole = processor.tokenizer().encode(&text).unwrap();
        assert_eq!(ids, whole);
        assert_eq!(sample.media.grids(Modality::Image).len(), 2);
    }

    #[test]
    fn videos_fill_their_placeholders_and_carry_no_loss() {
        let processor = processor();
        let videos = root().join("tests/fixtures/processor/video");
        let video = |name: &str| videos.join(name).display().to_string();
        let record = record(json!({"messages": [
            {"role": "user", "content": "<video>like <image>or<video>?"}, {"role": "assistant", "content": "yes"}],
            "images": ["../digits/images/0004.png"],
            "videos": [video("template_8x84x56.png"), [video("odd_5x84x56.png"), video("odd_5x84x56.png")]]}));

        let sample = encode(&record, &processor, LabelOptions::default()).unwrap();

        // The prompt is what the model is asked, token for token, and the answer follows.
        let asked =
            processor.encode(&record.messages[..1], &ChatTemplateOptions::generation_prompt()).unwrap();
        let tokenizer = processor.tokenizer();
        let answer = [tokenizer.encode("yes").unwrap(), vec![tokenizer.special().end_of_text]].concat();
        assert_eq!(sample.input_ids, [asked.input_ids, answer.clone()].concat());
        let prompt = sample.input_ids.len() - answer.len();
        assert!(sample.loss_mask[..prompt].iter().all(|label| !label));
        assert!(sample.loss_mask[prompt..].iter().all(|label| *label));
        assert_eq!(sample.media.patches(Modality::Video).values, asked.media.patches(Modality::Video).values);
        assert_eq!(sample.media.grids(Modality::Video).iter().map(|grid| grid.t).collect::<Vec<_>>(), [2, 1]);
        let count = |modality| sample.modalities.iter().filter(|found| **found == Some(modality)).count();
        let tokens: usize = sample.media.grids(Modality::Video).iter().map(|grid| grid.tokens(2)).sum();
        assert_eq!((count(Modality::Image), count(Modality::Video)), (4, tokens));
    }

    #[test]
    fn a_template_that_forgets_the_thoughts_of_earlier_turns_leaves_the_rest_as_labels() {
        // The rule of GLM-OCR's template.
        let template = r"[gMASK]<sop>{%- set ns = namespace(last=-1) %}
            {%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
            {%- for m in messages %}{{ '<|' + m.role + '|>' }}
            {%- if m.role == 'user' %}{{ '\n' + m.content }}
            {%- elif loop.index0 > ns.last %}{{ '\n' + m.content.replace('</think>', '</think>\n') }}
            {%- else %}{{ '\n<think></think>\n' + m.content.split('</think>')[-1] }}{% endif %}{% endfor %}
            {%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
        let processor = Processor::clone(&processor()).with_template(template.to_owned()).unwrap();
        let record = record(json!({"messages": [
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>early</think>first"},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "<think>late</think>second"}]}));

        let sample = encode(&record, &processor, LabelOptions::default()).unwrap();

        let labels = sample.input_ids.iter().zip(&sample.loss_mask).filter(|(_, label)| **label);
        let ids: Vec<u32> = labels.map(|(id, _)| *id).collect();
        assert_eq!(
            processor.tokenizer().decode(&ids, false),
            "<think></think>\nfirst<|user|><think>late</think>\nsecond<|endoftext|>"
        );
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

        let missing = encode(&missing, &processor, LabelOptions::default()).unwrap_err();
        let video = encode(&video, &processor, LabelOptions::default()).unwrap_err();
        let trailing = encode(&trailing, &processor, LabelOptions::default()).unwrap_err();

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
