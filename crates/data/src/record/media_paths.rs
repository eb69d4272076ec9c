//! Paths of media files that lie beside the records.

use std::path::{Path, PathBuf};

use glm4v_processor::{Content, ContentPart, ImageSource, Message, VideoInput, VideoSource};

/// Replaces paths below `media_dir` by paths below `records_dir` where a file exists only there, as LLaMA-Factory does.
pub(super) fn prefer_existing(message: &mut Message, media_dir: &Path, records_dir: &Path) {
    for path in media_paths(message) {
        if let Ok(written) = path.strip_prefix(media_dir).map(PathBuf::from)
            && !path.exists()
            && records_dir.join(&written).exists()
        {
            *path = records_dir.join(written);
        }
    }
}

fn media_paths(message: &mut Message) -> Vec<&mut PathBuf> {
    let Content::Parts(parts) = &mut message.content else { return Vec::new() };
    parts.iter_mut().flat_map(part_paths).collect()
}

fn part_paths(part: &mut ContentPart) -> Vec<&mut PathBuf> {
    match part {
        ContentPart::Image(ImageSource::Path(path)) => vec![path],
        ContentPart::Video(VideoInput { data: VideoSource::Path(path), .. }) => vec![path],
        ContentPart::Video(VideoInput { data: VideoSource::Frames(frames), .. }) => {
            frames.iter_mut().filter_map(frame_path).collect()
        }
        _ => Vec::new(),
    }
}

fn frame_path(frame: &mut ImageSource) -> Option<&mut PathBuf> {
    match frame {
        ImageSource::Path(path) => Some(path),
        _ => None,
    }
}
