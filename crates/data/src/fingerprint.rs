//! One number for what a dataset holds, so that a run that goes on notices when it changed.

use std::path::{Path, PathBuf};

use glm4v_processor::{Content, ImageSource, Message, Part, VideoData};
use sha2::{Digest, Sha256};

use crate::record::Record;

/// The SHA-256 of records in their order, in hexadecimal digits: roles, texts, tools, and the names of media.
///
/// Paths below the data file's folder, or below `media_dir`, count from there: a dataset that moved is the same. The
/// contents of images and videos are not looked at.
pub fn fingerprint(records: &[Record], media_dir: Option<&Path>) -> String {
    let mut sum = Sum { hash: Sha256::new(), roots: Vec::new() };
    for record in records {
        sum.roots = media_dir.into_iter().chain(record.at.file.parent()).map(Path::to_owned).collect();
        sum.record(record);
    }
    sum.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Sum {
    hash: Sha256,
    /// Where the media of a record may lie.
    roots: Vec<PathBuf>,
}

impl Sum {
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

    fn part(&mut self, part: &Part) {
        match part {
            Part::Text { text } => self.piece("text", text.as_bytes()),
            Part::Image(source) => self.image(source),
            Part::Video(video) => {
                self.piece("rate", format!("{:?}", video.frame_rate).as_bytes());
                match &video.data {
                    VideoData::Path(path) => self.path(path),
                    VideoData::Frames(frames) => frames.iter().for_each(|frame| self.image(frame)),
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

    /// Lengths go in front, so that no two records run into each other the same way.
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
    use crate::layout::Layout;
    use crate::location::Location;

    fn read(folder: &str, records: &[Value]) -> String {
        let file: std::sync::Arc<Path> = Path::new(folder).join("x.jsonl").as_path().into();
        let records = records.iter().enumerate().map(|(index, value)| {
            let at = Location { file: file.clone(), line: index + 1, index: None };
            Record::parse(value.clone(), at, &Layout::default(), Path::new(folder), None).unwrap()
        });
        fingerprint(&records.collect::<Vec<_>>(), None)
    }

    fn asked(image: &str, answer: &str) -> Value {
        json!({"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": answer}],
            "images": [image]})
    }

    #[test]
    fn a_data_set_that_moved_is_the_same_and_any_other_change_is_one() {
        let [one, two] = [asked("a/1.png", "one"), asked("b/1.png", "two")];
        let found = read("d", &[one.clone(), two.clone()]);

        assert_eq!(read("elsewhere/d", &[one.clone(), two.clone()]), found);
        assert_eq!(found.len(), 64);
        let mut unlearned = two.clone();
        unlearned["messages"][1]["loss"] = json!(false);
        for other in [
            vec![two.clone(), one.clone()],
            vec![one.clone()],
            vec![one.clone(), asked("b/1.png", "tw")],
            vec![one.clone(), asked("a/1.png", "two")],
            vec![one.clone(), unlearned],
        ] {
            assert_ne!(read("d", &other), found, "{other:?}");
        }
    }
}
