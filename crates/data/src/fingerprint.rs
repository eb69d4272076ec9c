//! A hash of a dataset, with which a resumed run detects changed data.

use std::path::{Path, PathBuf};

use glm4v_processor::{Content, ContentPart, ImageSource, Message, VideoSource};
use sha2::{Digest, Sha256};

use crate::record::Record;

/// SHA-256 of the roles, texts, tools and media paths of records in order, in hexadecimal digits.
///
/// Paths are relative to the directory of the records or to `media_dir`, so that a moved dataset keeps its fingerprint. Contents of
/// images and videos are not hashed.
pub fn fingerprint(records: &[Record], media_dir: Option<&Path>) -> String {
    let mut hasher = RecordHasher { hash: Sha256::new(), roots: Vec::new() };
    for record in records {
        hasher.roots =
            media_dir.into_iter().chain(record.location.file.parent()).map(Path::to_owned).collect();
        hasher.record(record);
    }
    hasher.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

struct RecordHasher {
    hash: Sha256,
    /// Directories that media paths of a record may be relative to.
    roots: Vec<PathBuf>,
}

impl RecordHasher {
    fn record(&mut self, record: &Record) {
        self.piece("record", &(record.messages.len() as u64).to_le_bytes());
        for message in &record.messages {
            self.message(message);
        }
        if let Some(tools) = &record.tools {
            self.piece("tools", tools.to_string().as_bytes());
        }
    }

    fn message(&mut self, message: &Message) {
        self.piece("role", message.role.as_bytes());
        match &message.content {
            Content::Text(text) => self.piece("text", text.as_bytes()),
            Content::Parts(parts) => parts.iter().for_each(|part| self.part(part)),
        }
        for (key, value) in &message.extra {
            self.piece(key, value.to_string().as_bytes());
        }
    }

    fn part(&mut self, part: &ContentPart) {
        match part {
            ContentPart::Text { text } => self.piece("text", text.as_bytes()),
            ContentPart::Image(source) => self.image(source),
            ContentPart::Video(video) => {
                self.piece("rate", format!("{:?}", video.frame_rate).as_bytes());
                match &video.data {
                    VideoSource::Path(path) => self.path(path),
                    VideoSource::Frames(frames) => frames.iter().for_each(|frame| self.image(frame)),
                    other => self.piece("video", format!("{other:?}").as_bytes()),
                }
            }
            other => self.piece("part", format!("{other:?}").as_bytes()),
        }
    }

    fn image(&mut self, source: &ImageSource) {
        match source {
            ImageSource::Path(path) => self.path(path),
            ImageSource::Url(url) => self.piece("url", url.as_bytes()),
            other => self.piece("image", format!("{other:?}").as_bytes()),
        }
    }

    fn path(&mut self, path: &Path) {
        let below = self.roots.iter().find_map(|root| path.strip_prefix(root).ok()).unwrap_or(path);
        let below = below.to_string_lossy().into_owned();
        self.piece("path", below.as_bytes());
    }

    /// Hashes lengths first, so that pieces with other boundaries have another hash.
    fn piece(&mut self, kind: &str, bytes: &[u8]) {
        for part in [kind.as_bytes(), bytes] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::location::RecordLocation;
    use crate::schema::RecordSchema;

    fn fingerprint_in(dir: &str, records: &[Value]) -> String {
        let file: std::sync::Arc<Path> = Path::new(dir).join("x.jsonl").as_path().into();
        let records = records.iter().enumerate().map(|(index, value)| {
            let location = RecordLocation { file: file.clone(), line: index + 1, index: None };
            Record::parse(value.clone(), location, &RecordSchema::default(), Path::new(dir), None).unwrap()
        });
        fingerprint(&records.collect::<Vec<_>>(), None)
    }

    fn asked(image: &str, answer: &str) -> Value {
        json!({"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": answer}],
            "images": [image]})
    }

    #[test]
    fn a_moved_dataset_keeps_its_fingerprint_and_a_changed_one_does_not() {
        let [one, two] = [asked("a/1.png", "one"), asked("b/1.png", "two")];
        let found = fingerprint_in("d", &[one.clone(), two.clone()]);

        assert_eq!(fingerprint_in("elsewhere/d", &[one.clone(), two.clone()]), found);
        assert_eq!(found.len(), 64);
        let mut without_loss = two.clone();
        without_loss["messages"][1]["loss"] = json!(false);
        for other in [
            vec![two.clone(), one.clone()],
            vec![one.clone()],
            vec![one.clone(), asked("b/1.png", "tw")],
            vec![one.clone(), asked("a/1.png", "two")],
            vec![one.clone(), without_loss],
        ] {
            assert_ne!(fingerprint_in("d", &other), found, "{other:?}");
        }
    }
}
