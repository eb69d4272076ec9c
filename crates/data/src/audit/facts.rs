//! What one record adds to the report of a dataset.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use glm4v_inputs::Modality;
use glm4v_processor::{ContentPart, ImageSource, Processor, VideoSource};
use sha2::{Digest, Sha256};

use crate::check::BadRecordError;
use crate::fit::encode_to_fit;
use crate::options::{DatasetOptions, LengthPolicy};
use crate::proof::visible_texts;
use crate::record::Record;

/// First half of a SHA-256.
pub(super) type Hash = [u8; 16];

/// A record that can be used.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) tokens: usize,
    pub(super) labels: usize,
    pub(super) turns: usize,
    /// Tokens of each image and video.
    pub(super) media_tokens: Vec<usize>,
    /// Of images, texts and roles.
    pub(super) whole: Hash,
    /// Of images and texts without the answers.
    pub(super) question: Hash,
    /// Of the last answer.
    pub(super) answer: Hash,
    /// Beginning of the last answer.
    pub(super) answer_text: String,
    /// Whether the last answer has neither a letter nor a digit.
    pub(super) is_answer_empty: bool,
}

/// A record that cannot be used as it is.
#[derive(Debug)]
pub(super) struct Unusable {
    pub(super) error: Box<BadRecordError>,
    /// For one that is too long: whether smaller images, and fewer turns, would make it fit.
    pub(super) fits: Option<[bool; 2]>,
}

/// Encodes a record as training does, and looks at the result.
pub(super) fn examine(
    record: &Record,
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<Facts, Unusable> {
    let strict = DatasetOptions { on_long: LengthPolicy::Error, ..options.clone() };
    let (sample, _) = encode_to_fit(record, processor, &strict).map_err(|error| {
        let fits = error.is_too_long().then(|| {
            [LengthPolicy::ShrinkImages, LengthPolicy::Truncate].map(|on_long| {
                encode_to_fit(record, processor, &DatasetOptions { on_long, ..options.clone() }).is_ok()
            })
        });
        Unusable { error: Box::new(error.into()), fits }
    })?;
    let merge = processor.video_processor().config().frame.merge_size;
    let image = processor.image_processor();
    let images = sample.media.grids(Modality::Image).iter().map(|grid| image.tokens(grid.thw()));
    let videos = sample.media.grids(Modality::Video).iter().map(|grid| grid.tokens(merge));
    let answer = record.messages.iter().rfind(|message| message.role == "assistant");
    let answer = answer.map(visible_texts).unwrap_or_default().join(" ");
    Ok(Facts {
        tokens: sample.len(),
        labels: sample.loss_mask.iter().skip(1).filter(|label| **label).count(),
        turns: record.messages.iter().filter(|message| message.role == "assistant").count(),
        media_tokens: images.chain(videos).collect(),
        whole: hash(record, true),
        question: hash(record, false),
        answer: shorten(Sha256::digest(answer.trim())),
        is_answer_empty: !answer.chars().any(char::is_alphanumeric) && !has_tool_calls(record),
        answer_text: answer.chars().take(60).collect(),
    })
}

fn has_tool_calls(record: &Record) -> bool {
    record.messages.last().is_some_and(|message| message.extra.contains_key("tool_calls"))
}

fn shorten(digest: impl AsRef<[u8]>) -> Hash {
    std::array::from_fn(|byte| digest.as_ref()[byte])
}

/// Of roles, texts and the contents of media; the same image under another name has the same hash.
fn hash(record: &Record, answers: bool) -> Hash {
    let mut hash = Sha256::new();
    for message in record.messages.iter().filter(|message| answers || message.role != "assistant") {
        piece(&mut hash, message.role.as_bytes());
        match message.content.parts() {
            [] => message.content.texts().for_each(|text| piece(&mut hash, text.trim().as_bytes())),
            parts => parts.iter().for_each(|part| add_part(&mut hash, part)),
        }
    }
    shorten(hash.finalize())
}

fn add_part(hash: &mut Sha256, part: &ContentPart) {
    match part {
        ContentPart::Text { text } => piece(hash, text.trim().as_bytes()),
        ContentPart::Image(image) => add_image(hash, image),
        ContentPart::Video(video) => match &video.data {
            VideoSource::Frames(frames) => frames.iter().for_each(|frame| add_image(hash, frame)),
            VideoSource::Path(path) => add_file(hash, path),
            VideoSource::Bytes(bytes) => piece(hash, bytes),
            other => piece(hash, format!("{other:?}").as_bytes()),
        },
        other => piece(hash, format!("{other:?}").as_bytes()),
    }
}

fn add_image(hash: &mut Sha256, image: &ImageSource) {
    match image {
        ImageSource::Path(path) => add_file(hash, path),
        ImageSource::Bytes(bytes) => piece(hash, bytes),
        ImageSource::Url(url) => piece(hash, url.as_bytes()),
        ImageSource::Pixels(image) => piece(hash, image.pixels()),
        other => piece(hash, format!("{other:?}").as_bytes()),
    }
}

/// The contents of a file, which was read a moment ago; the path of a directory.
fn add_file(hash: &mut Sha256, path: &Path) {
    let digest =
        digest_file(path).unwrap_or_else(|_| Sha256::digest(path.to_string_lossy().as_bytes()).into());
    piece(hash, &digest);
}

fn digest_file(path: &Path) -> io::Result<[u8; 32]> {
    let mut file: File = glm4v_files::open(path).map_err(io::Error::other)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// The length first, so that pieces with other boundaries have another hash.
fn piece(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
