//! Contents of images and videos that a file holds beside a record's text, as parquet and tar do.
//!
//! The value of the record refers to them by number, in place of a path. A path cannot spell such a reference, because it begins with
//! a zero byte; a text that spells one as a path names contents of its own record at most.

use std::path::Path;

use glm4v_processor::{Content, ContentPart, ImageSource, Message, VideoSource};
use serde_json::Value;

const MARK: &str = "\0media:";

/// The value of a path or URL that stands for the contents of that number.
pub(crate) fn media_reference(number: usize) -> Value {
    Value::String(format!("{MARK}{number}"))
}

/// Replaces references in parsed messages by contents.
pub(super) fn attach(messages: &mut [Message], media: &[Vec<u8>]) {
    if media.is_empty() {
        return;
    }
    for message in messages {
        if let Content::Parts(parts) = &mut message.content {
            parts.iter_mut().for_each(|part| attach_part(part, media));
        }
    }
}

fn attach_part(part: &mut ContentPart, media: &[Vec<u8>]) {
    match part {
        ContentPart::Image(image) => attach_image(image, media),
        ContentPart::Video(video) => match &mut video.data {
            VideoSource::Frames(frames) => frames.iter_mut().for_each(|frame| attach_image(frame, media)),
            VideoSource::Path(path) => {
                if let Some(bytes) = referred(path, media) {
                    video.data = VideoSource::Bytes(bytes.clone());
                }
            }
            _ => {}
        },
        _ => {}
    }
}

fn attach_image(image: &mut ImageSource, media: &[Vec<u8>]) {
    if let ImageSource::Path(path) = image
        && let Some(bytes) = referred(path, media)
    {
        *image = ImageSource::Bytes(bytes.clone());
    }
}

/// The contents that a path refers to; it was made relative to a directory.
fn referred<'a>(path: &Path, media: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
    media.get(path.file_name()?.to_str()?.strip_prefix(MARK)?.parse::<usize>().ok()?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use crate::location::RecordLocation;
    use crate::record::Record;
    use crate::schema::RecordSchema;

    #[test]
    fn a_reference_is_replaced_wherever_a_path_may_be() {
        let media = vec![vec![1], vec![2], vec![3]];
        let reference = media_reference;
        let value = json!({"messages": [
            {"role": "user", "content": "<image><image><video><video>"}, {"role": "assistant", "content": "a"}],
            "images": [reference(2), {"path": reference(0)}],
            "videos": [{"path": reference(1), "frame_rate": 2.0}, [reference(0), reference(9)]]});
        let location = RecordLocation::line("d/x.parquet".as_ref(), 1);

        let parse = |media: Vec<Vec<u8>>| {
            let schema = RecordSchema::default();
            let dir = Path::new("d");
            Record::parse_with_media(value.clone(), media, location.clone(), &schema, dir, None).unwrap()
        };
        let record = parse(media);

        let bytes = |byte: u8| ImageSource::Bytes(vec![byte]);
        assert_eq!(record.images().cloned().collect::<Vec<_>>(), [bytes(3), bytes(1)]);
        let videos: Vec<_> = record.videos().map(|video| (video.data.clone(), video.frame_rate)).collect();
        let missing = ImageSource::Path(PathBuf::from("d/\0media:9"));
        let frames = VideoSource::Frames(vec![bytes(1), missing]);
        assert_eq!(videos, [(VideoSource::Bytes(vec![2]), Some(2.0)), (frames, None)]);
        assert!(parse(Vec::new()).images().all(|image| matches!(image, ImageSource::Path(_))));
    }
}
