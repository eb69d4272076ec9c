//! Records that are longer than `max_length`: smaller images, or fewer turns.
//!
//! Either keeps what is left whole: a shrunk image has as many placeholders as its smaller grid has tokens, and turns are removed with
//! their images, never a part of a turn.

use glm4v_inputs::{Modality, Sample};
use glm4v_processor::{ChatTemplateOptions, ImageProcessor, ImageSource, Message, Processor, ProcessorError};

use crate::options::{DatasetOptions, LengthPolicy, TruncateFrom};
use crate::record::Record;
use crate::sample::{SampleError, encode, encode_with_images};

/// What was changed of a record that was too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortening {
    /// Images were resized to at most so many tokens each.
    ShrunkImages { max_tokens: usize },
    /// Messages were removed.
    Truncated { messages: usize },
}

/// Encodes a record; one longer than `max_length` is made to fit as [`LengthPolicy`] allows.
///
/// # Errors
///
/// When the record cannot be encoded, or is too long and cannot be made to fit.
pub(crate) fn encode_to_fit(
    record: &Record,
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<(Sample, Option<Shortening>), SampleError> {
    let encoded = encode(record, processor, options.labels);
    let Some(max_length) = options.max_length else { return Ok((encoded?, None)) };
    let (tokens, whole) = match encoded {
        Ok(sample) if sample.len() <= max_length => return Ok((sample, None)),
        Ok(sample) => (Some(sample.len()), Some(sample)),
        Err(error) if error.is_too_long() => (None, None),
        Err(error) => return Err(error),
    };
    let fit = Fit { record, processor, options, max_length };
    let fitted = match options.on_long {
        LengthPolicy::ShrinkImages => fit.shrink_images(whole.as_ref())?,
        LengthPolicy::Truncate => fit.truncate()?,
        LengthPolicy::Error | LengthPolicy::Drop => None,
    };
    match (fitted, tokens) {
        (Some((sample, shortening)), _) => Ok((sample, Some(shortening))),
        (None, Some(tokens)) => {
            Err(SampleError::TooLong { location: record.location.clone(), tokens, max_length })
        }
        (None, None) => {
            Err(SampleError::FarTooLong { location: record.location.clone(), max_tokens: max_length })
        }
    }
}

struct Fit<'a> {
    record: &'a Record,
    processor: &'a Processor,
    options: &'a DatasetOptions,
    max_length: usize,
}

type Fitted = Option<(Sample, Shortening)>;

impl Fit<'_> {
    /// The record with its images as large as fits; `None` if they do not fit at the least size either. `whole` is the record as it
    /// is, if it could be encoded.
    fn shrink_images(&self, whole: Option<&Sample>) -> Result<Fitted, SampleError> {
        let sizes = self.image_sizes()?;
        let Some(fixed) = self.fixed_tokens(whole)?.filter(|fixed| *fixed <= self.max_length) else {
            return Ok(None);
        };
        let total = |cap: usize| {
            let image = self.image_processor(cap);
            sizes.iter().map(|size| image_tokens(&image, *size)).sum::<usize>()
        };
        let budget = self.max_length - fixed;
        let least = self.options.min_image_tokens.max(1);
        if sizes.is_empty() || total(least) > budget {
            return Ok(None);
        }
        // The largest cap that fits, below the largest image as it is.
        let unchanged = sizes.iter().map(|size| image_tokens(self.processor.image_processor(), *size));
        let (mut fits, mut too_large) = (least, unchanged.max().unwrap_or(0).max(least + 1));
        while fits + 1 < too_large {
            let middle = fits.midpoint(too_large);
            if total(middle) <= budget { fits = middle } else { too_large = middle }
        }
        let image = self.image_processor(fits);
        let sample = encode_with_images(self.record, self.processor, self.options.labels, Some(&image))?;
        let fitted = sample.len() <= self.max_length;
        Ok(fitted.then_some((sample, Shortening::ShrunkImages { max_tokens: fits })))
    }

    /// Height and width of all images.
    fn image_sizes(&self) -> Result<Vec<[usize; 2]>, SampleError> {
        let limits = self.processor.image_processor().decode_limits();
        let size = |(image, source): (usize, &ImageSource)| {
            limits.size(source).map_err(|source| {
                let source = Box::new(ProcessorError::Image { image, source });
                SampleError::Process { location: self.record.location.clone(), source }
            })
        };
        self.record.images().enumerate().map(size).collect()
    }

    /// Tokens other than those of images; `None` if they are not known, because a video was not decoded.
    fn fixed_tokens(&self, whole: Option<&Sample>) -> Result<Option<usize>, SampleError> {
        if let Some(sample) = whole {
            let images = sample.modalities.iter().filter(|modality| **modality == Some(Modality::Image));
            return Ok(Some(sample.len() - images.count()));
        }
        if self.record.videos().next().is_some() {
            return Ok(None);
        }
        let text = self.text_tokens(&self.record.messages)?;
        Ok(text.map(|tokens| tokens.saturating_sub(self.record.images().count())))
    }

    /// An image processor that makes no image of more tokens than `cap`.
    fn image_processor(&self, cap: usize) -> ImageProcessor {
        let image = self.processor.image_processor();
        let side = image.patch_size() * image.patch_size() * image.patches_per_token();
        // Below the minimum of the model no image is made.
        let pixels = (cap * side * image.temporal_patch_size()).max(image.min_pixels());
        image.clone().with_max_pixels(pixels)
    }

    /// The longest part of the conversation that fits, in whole turns.
    fn truncate(&self) -> Result<Fitted, SampleError> {
        /// Parts that are encoded at most: some may have no labels.
        const TRIES: usize = 8;
        let candidates = match self.options.truncate_from {
            TruncateFrom::End => from_end(&self.record.messages),
            TruncateFrom::Start => from_start(&self.record.messages),
        };
        let mut first = 0;
        let mut after = candidates.len();
        while first < after {
            let middle = first.midpoint(after);
            match self.least_tokens(&candidates[middle])? {
                Some(tokens) if tokens <= self.max_length => after = middle,
                _ => first = middle + 1,
            }
        }
        for messages in candidates.into_iter().skip(first).take(TRIES) {
            let removed = self.record.messages.len() - messages.len();
            let part = Record { messages, ..self.record.clone() };
            match encode(&part, self.processor, self.options.labels) {
                Ok(sample) if sample.len() <= self.max_length => {
                    return Ok(Some((sample, Shortening::Truncated { messages: removed })));
                }
                Err(SampleError::Label { .. }) | Ok(_) => {}
                Err(error) if error.is_too_long() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Tokens of a part of the conversation, each video counted as one; `None` for far too many.
    fn least_tokens(&self, messages: &[Message]) -> Result<Option<usize>, SampleError> {
        let Some(text) = self.text_tokens(messages)? else { return Ok(None) };
        let image = self.processor.image_processor();
        let sources = messages.iter().flat_map(Message::images);
        let sizes = sources.filter_map(|source| image.decode_limits().size(source).ok());
        let images = sizes.map(|size| image_tokens(image, size).saturating_sub(1)).sum::<usize>();
        Ok(Some(text + images))
    }

    /// Tokens of the rendered text, each image and video one of them; `None` for far too many.
    fn text_tokens(&self, messages: &[Message]) -> Result<Option<usize>, SampleError> {
        let location = || self.record.location.clone();
        let enable_thinking = self.options.labels.enable_thinking;
        let options =
            ChatTemplateOptions { enable_thinking, tools: self.record.tools.clone(), ..Default::default() };
        let text = self.processor.render(messages, &options);
        let text = text.map_err(|source| SampleError::Render { location: location(), source })?;
        let ids = self.processor.tokenizer().encode_within(&text, self.max_length.saturating_mul(2));
        let ids = ids.map_err(|source| SampleError::Process {
            location: location(),
            source: Box::new(source.into()),
        })?;
        // And the token that ends the last turn.
        Ok(ids.map(|ids| ids.len() + 1))
    }
}

/// Tokens of an image of this height and width; more than any limit for a shape that is refused.
fn image_tokens(image: &ImageProcessor, [height, width]: [usize; 2]) -> usize {
    image.grid(height, width).map_or(usize::MAX >> 16, |grid| image.tokens(grid))
}

/// The conversation without its last exchanges, the longest first: it ends with the last answer before a question of the user.
fn from_end(messages: &[Message]) -> Vec<Vec<Message>> {
    let ends = |at: &usize| messages[*at].role == "user" && messages[*at - 1].role == "assistant";
    (1..messages.len()).rev().filter(ends).map(|end| messages[..end].to_vec()).collect()
}

/// The conversation without its first exchanges, the longest first: system messages stay, and it begins with a question of the user. No
/// image or video is removed, because later turns may be about it.
fn from_start(messages: &[Message]) -> Vec<Vec<Message>> {
    let head = messages.iter().take_while(|message| message.role == "system").count();
    let has_media =
        |message: &Message| message.images().next().is_some() || message.videos().next().is_some();
    let removable = messages[head..].iter().take_while(|message| !has_media(message)).count();
    let begins = |at: &usize| messages[*at].role == "user" && messages[*at - 1].role == "assistant";
    let starts = (head + 1..messages.len().min(head + removable + 1)).filter(begins);
    starts.map(|start| [&messages[..head], &messages[start..]].concat()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{processor, record};
    use crate::proof::prove;

    fn options(on_long: LengthPolicy, max_length: usize) -> DatasetOptions {
        DatasetOptions { max_length: Some(max_length), on_long, min_image_tokens: 1, ..Default::default() }
    }

    /// A record with an image of 224 x 112 and one of 56 x 56 pixels.
    fn two_images(dir: &std::path::Path) -> Record {
        let image = |name: &str, width: u32, height: u32| {
            let pixels = vec![127; (width * height * 3) as usize];
            let image = glm4v_processor::Rgb::new(height as usize, width as usize, pixels).unwrap();
            let path = dir.join(name);
            std::fs::write(&path, image.to_png()).unwrap();
            path
        };
        record(
            json!({"messages": [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "a"}],
            "images": [image("a.png", 224, 112), image("b.png", 56, 56)]}),
        )
    }

    #[test]
    fn shrunk_images_fit_keep_their_placeholders_and_are_as_large_as_possible() {
        let dir = tempfile::tempdir().unwrap();
        let (processor, record) = (processor(), two_images(dir.path()));
        let whole = encode(&record, &processor, Default::default()).unwrap();
        let images = |sample: &Sample| -> Vec<usize> {
            sample.media.grids(Modality::Image).iter().map(|grid| grid.tokens(2)).collect()
        };
        assert_eq!(images(&whole), [32, 4]);
        let text = whole.len() - 36;

        for budget in 8..36 {
            let options = options(LengthPolicy::ShrinkImages, text + budget);
            let (sample, shortening) = encode_to_fit(&record, &processor, &options).unwrap();

            // Proven as every sample is: placeholders, grids and patches agree.
            let spans = crate::labels::label_spans(&record, &processor, Default::default()).unwrap();
            prove(&record, &spans, &sample, &processor, Default::default()).unwrap();
            assert!(sample.len() <= text + budget && sample.len() < whole.len(), "{budget}");
            let Some(Shortening::ShrunkImages { max_tokens }) = shortening else { panic!("{shortening:?}") };
            assert!(images(&sample).iter().all(|tokens| *tokens <= max_tokens));
            // One more token an image would not fit.
            let fit =
                Fit { record: &record, processor: &processor, options: &options, max_length: text + budget };
            let image = fit.image_processor(max_tokens + 1);
            let larger = encode_with_images(&record, &processor, Default::default(), Some(&image)).unwrap();
            assert!(larger.len() > text + budget, "{budget}");
        }
        let (sample, shortening) =
            encode_to_fit(&record, &processor, &options(LengthPolicy::ShrinkImages, whole.len())).unwrap();
        assert_eq!((sample, shortening), (whole, None));
    }

    #[test]
    fn images_are_shrunk_to_the_stated_least_only() {
        let dir = tempfile::tempdir().unwrap();
        let (processor, record) = (processor(), two_images(dir.path()));
        let text = encode(&record, &processor, Default::default()).unwrap().len() - 36;
        let mut options = options(LengthPolicy::ShrinkImages, text + 12);
        options.min_image_tokens = 16;

        let error = encode_to_fit(&record, &processor, &options).unwrap_err();

        assert!(error.is_too_long(), "{error}");
        options.min_image_tokens = 8;
        assert!(encode_to_fit(&record, &processor, &options).is_ok());
    }

    /// Three exchanges; the second has an image.
    fn exchanges() -> Record {
        record(json!({"messages": [{"role": "system", "content": "s"},
            {"role": "user", "content": "one"}, {"role": "assistant", "content": "eins"},
            {"role": "user", "content": "two<image>"}, {"role": "assistant", "content": "zwei"},
            {"role": "user", "content": "three"}, {"role": "assistant", "content": "drei"}],
            "images": ["../digits/images/0004.png"]}))
    }

    #[test]
    fn truncation_removes_whole_exchanges_with_their_images() {
        let (processor, record) = (processor(), exchanges());
        let labels = |sample: &Sample| {
            let labels = sample.input_ids.iter().zip(&sample.loss_mask).filter(|(_, label)| **label);
            processor.tokenizer().decode(&labels.map(|(id, _)| *id).collect::<Vec<_>>(), false)
        };
        let whole = encode(&record, &processor, Default::default()).unwrap().len();
        let mut seen = Vec::new();
        for max_length in (1..whole).rev() {
            let options = options(LengthPolicy::Truncate, max_length);
            let Ok((sample, shortening)) = encode_to_fit(&record, &processor, &options) else { break };
            assert!(sample.len() <= max_length);
            let item = (labels(&sample), shortening.unwrap(), sample.media.grids(Modality::Image).len());
            if seen.last() != Some(&item) {
                seen.push(item);
            }
        }

        let [two, four] = [2, 4].map(|messages| Shortening::Truncated { messages });
        assert_eq!(
            seen,
            [("eins<|user|>zwei<|endoftext|>".to_owned(), two, 1), ("eins<|endoftext|>".to_owned(), four, 0)]
        );
    }

    #[test]
    fn truncation_from_the_start_keeps_the_system_prompt_and_every_image() {
        let (processor, record) = (processor(), exchanges());
        let whole = encode(&record, &processor, Default::default()).unwrap().len();
        let mut options = options(LengthPolicy::Truncate, whole - 1);
        options.truncate_from = TruncateFrom::Start;

        let (sample, shortening) = encode_to_fit(&record, &processor, &options).unwrap();

        assert_eq!(shortening, Some(Shortening::Truncated { messages: 2 }));
        let text = processor.tokenizer().decode(&sample.input_ids, false);
        assert!(text.starts_with("[gMASK]<sop><|system|>\ns<|user|>\ntwo<|begin_of_image|>"), "{text}");
        assert_eq!(sample.media.grids(Modality::Image).len(), 1);
        // The next exchange has the image.
        options.max_length = Some(sample.len() - 1);
        assert!(encode_to_fit(&record, &processor, &options).unwrap_err().is_too_long());
    }

    #[test]
    fn a_conversation_is_never_cut_between_a_call_and_its_result() {
        let messages = |roles: &[&str]| roles.iter().map(|role| Message::new(*role, "x")).collect::<Vec<_>>();
        let conversation = messages(&["user", "assistant", "tool", "assistant", "user", "assistant"]);

        let [end, start] = [from_end(&conversation), from_start(&conversation)];

        assert_eq!(end, [conversation[..4].to_vec()]);
        assert_eq!(start, [conversation[4..].to_vec()]);
    }
}
