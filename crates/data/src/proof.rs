//! Proof that an encoded record is what it seems to be: what training depends on and nobody would notice.

use glm4v_inputs::{Modality, Sample};
use glm4v_processor::{LabeledText, Message, Processor};

use crate::labels::loss_weight;
use crate::options::LossPolicy;
use crate::record::Record;

/// What is wrong with an encoded record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// Fewer or more images or videos than the record has.
    #[error("holds {found} {modality}s, needed the {needed} of the record")]
    Media {
        /// Images or videos.
        modality: Modality,
        /// Number of grids.
        found: usize,
        /// Number of items in the record.
        needed: usize,
    },
    /// Placeholders that are more or fewer than the tokens of the grids.
    #[error("has {found} placeholders of {modality}s, needed {needed} by their grids")]
    Placeholders {
        /// Images or videos.
        modality: Modality,
        /// Placeholder tokens.
        found: usize,
        /// Tokens of the grids.
        needed: usize,
    },
    /// Pixel values that are more or fewer than the patches of the grids.
    #[error("has {found} values of {modality} patches, needed {needed} by the grids")]
    Features {
        /// Images or videos.
        modality: Modality,
        /// Values.
        found: usize,
        /// Values of all patches.
        needed: usize,
    },
    /// A placeholder token that belongs to no image or video.
    #[error("token {position} is a placeholder of no image or video")]
    StrayPlaceholder {
        /// Index of the token.
        position: usize,
    },
    /// No label.
    #[error("no token carries loss")]
    NoLabels,
    /// Labels that are another text than that which should carry loss.
    #[error("the labels spell {found:?}, needed {needed:?}")]
    Labels {
        /// Beginning of the labels where they differ.
        found: String,
        /// Beginning of the text that should carry loss.
        needed: String,
    },
    /// An answer that the template does not write as it is in the record.
    #[error("message {message}: the chat template does not write {needed:?}, the beginning of the answer")]
    Answer {
        /// Index of the message.
        message: usize,
        /// Beginning of the answer, without its reasoning.
        needed: String,
    },
}

/// Proves that placeholders, patches and grids agree, and that the labels are the answers of the record.
///
/// `spans` are the texts that `sample` was made of.
pub(crate) fn prove(
    record: &Record,
    spans: &[LabeledText],
    sample: &Sample,
    processor: &Processor,
    policy: LossPolicy,
) -> Result<(), ProofError> {
    let images = record.images().count();
    prove_media(sample, processor, Modality::Image, images)?;
    prove_media(sample, processor, Modality::Video, record.videos().count())?;
    let image = processor.tokenizer().special().image;
    let stray =
        |position: &usize| (sample.input_ids[*position] == image) != sample.modalities[*position].is_some();
    if let Some(position) = (0..sample.len()).find(stray) {
        return Err(ProofError::StrayPlaceholder { position });
    }
    prove_labels(spans, sample, processor)?;
    prove_answers(record, spans, policy)
}

fn prove_media(
    sample: &Sample,
    processor: &Processor,
    modality: Modality,
    needed: usize,
) -> Result<(), ProofError> {
    let patches = sample.media.patches(modality);
    let found = patches.grids.len();
    if found != needed {
        return Err(ProofError::Media { modality, found, needed });
    }
    let frame = &processor.video_processor().config().frame;
    let (merged, row) = match modality {
        Modality::Video => {
            let row = 3 * frame.temporal_patch_size * frame.patch_size * frame.patch_size;
            (frame.merge_size * frame.merge_size, row)
        }
        _ => (processor.image_processor().patches_per_token(), processor.image_processor().row_len()),
    };
    let found = sample.modalities.iter().filter(|found| **found == Some(modality)).count();
    let needed = patches.count() / merged.max(1);
    if found != needed {
        return Err(ProofError::Placeholders { modality, found, needed });
    }
    let (found, needed) = (patches.values.len(), patches.count() * row);
    if found != needed {
        return Err(ProofError::Features { modality, found, needed });
    }
    Ok(())
}

/// The label tokens, decoded, are the text that carries loss.
fn prove_labels(spans: &[LabeledText], sample: &Sample, processor: &Processor) -> Result<(), ProofError> {
    let tokenizer = processor.tokenizer();
    let (image, video) = (tokenizer.special().image, tokenizer.special().video);
    let labels = sample.input_ids.iter().zip(&sample.loss_mask).filter(|(_, label)| **label);
    let ids: Vec<u32> = labels.map(|(id, _)| *id).collect();
    if ids.is_empty() {
        return Err(ProofError::NoLabels);
    }
    let text = |span: &LabeledText| {
        let without_image = span.text.replace(glm4v_processor::token::IMAGE, "");
        without_image.replace(glm4v_processor::token::VIDEO, "")
    };
    let needed: String = spans.iter().filter(|span| span.is_label()).map(text).collect();
    let found = tokenizer.decode(&ids, false);
    if found == needed {
        return Ok(());
    }
    // A tokenizer may normalize text; then the ids decide.
    let encode = |span: &LabeledText| tokenizer.encode(&span.text).unwrap_or_default();
    let of_spans = spans.iter().filter(|span| span.is_label()).flat_map(encode);
    if of_spans.filter(|id| *id != image && Some(*id) != video).eq(ids) {
        return Ok(());
    }
    let same = found.chars().zip(needed.chars()).take_while(|(one, other)| one == other).count();
    Err(ProofError::Labels { found: beginning(&found, same), needed: beginning(&needed, same) })
}

/// The answers of the record are in the text that carries loss, in their order and without their reasoning, which templates move or
/// leave out.
fn prove_answers(record: &Record, spans: &[LabeledText], policy: LossPolicy) -> Result<(), ProofError> {
    let labels: String = spans.iter().filter(|span| span.is_label()).map(|span| span.text.as_str()).collect();
    let mut rest = labels.as_str();
    let last = record.messages.len().saturating_sub(1);
    for (message, answer) in record.messages.iter().enumerate() {
        let is_label = policy != LossPolicy::Last || message == last;
        if answer.role != "assistant" || !is_label || loss_weight(answer) == 0.0 {
            continue;
        }
        for text in visible_texts(answer) {
            let needed = || beginning(&text, 0);
            let at = rest.find(&text).ok_or_else(|| ProofError::Answer { message, needed: needed() })?;
            rest = &rest[at + text.len()..];
        }
    }
    Ok(())
}

/// The texts of an answer after its reasoning, trimmed.
pub(crate) fn visible_texts(answer: &Message) -> Vec<String> {
    let mut texts = Vec::new();
    for text in answer.content.texts() {
        let visible = match text.rsplit_once("</think>") {
            Some((_, visible)) => {
                texts.clear();
                visible
            }
            None => text,
        };
        texts.push(visible.trim().to_owned());
    }
    texts.retain(|text| !text.is_empty());
    texts
}

/// Some characters of a text for an error message.
fn beginning(text: &str, from: usize) -> String {
    text.chars().skip(from).take(40).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{processor, record};
    use crate::labels::label_spans;
    use crate::options::LabelOptions;

    struct Encoded {
        record: Record,
        spans: Vec<LabeledText>,
        sample: Sample,
    }

    fn encoded() -> Encoded {
        let record = record(json!({"messages": [
            {"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "six"},
            {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}],
            "images": ["../digits/images/0004.png"]}));
        let spans = label_spans(&record, &processor(), LabelOptions::default()).unwrap();
        let images: Vec<_> = record.images().cloned().collect();
        let sample = processor().encode_spans(&spans, &images, &[]).unwrap();
        Encoded { record, spans, sample }
    }

    fn proven(Encoded { record, spans, sample }: &Encoded) -> Result<(), ProofError> {
        prove(record, spans, sample, &processor(), LossPolicy::Assistant)
    }

    #[test]
    fn a_sample_as_it_should_be_is_proven() {
        assert_eq!(proven(&encoded()), Ok(()));
    }

    #[test]
    fn each_way_in_which_a_sample_can_lie_is_found() {
        type Damage = fn(&mut Encoded);
        let damages: [(&str, Damage); 8] = [
            ("has 3 placeholders of images, needed 4 by their grids", |e| {
                let at = e.sample.modalities.iter().position(Option::is_some).unwrap();
                e.sample.input_ids.remove(at);
                e.sample.modalities.remove(at);
                e.sample.loss_mask.remove(at);
            }),
            ("has 3 placeholders of images, needed 4", |e| {
                let at = e.sample.modalities.iter().position(Option::is_some).unwrap();
                e.sample.modalities[at] = None;
            }),
            ("token 18 is a placeholder of no image or video", |e| {
                e.sample.input_ids[18] = processor().tokenizer().special().image;
            }),
            ("values of image patches, needed 18816 by the grids", |e| {
                e.sample.media.patches_mut(Modality::Image).values.pop();
            }),
            ("holds 0 images, needed the 1 of the record", |e| e.sample.media = Default::default()),
            ("no token carries loss", |e| e.sample.loss_mask.fill(false)),
            // One token to the right, the classic mistake.
            ("the labels spell", |e| e.sample.loss_mask.rotate_right(1)),
            ("message 3: the chat template does not write \"no\"", |e| {
                e.record.messages[3].content = "no".into();
            }),
        ];
        for (expected, damage) in damages {
            let mut damaged = encoded();
            damage(&mut damaged);

            let error = proven(&damaged).expect_err(expected).to_string();

            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn reasoning_is_no_part_of_the_visible_answer() {
        let texts = |text: &str| visible_texts(&Message::new("assistant", text));

        assert_eq!(texts("<think>a</think>\n b "), ["b"]);
        assert_eq!(texts("b"), ["b"]);
        assert!(texts("<think>a</think>").is_empty());
    }
}
