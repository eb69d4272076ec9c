//! Frames of a video, wherever they come from, one at a time.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::animation::Animation;
use super::ffmpeg::VideoFile;
use super::{VideoError, VideoLimits, frames};
use crate::image::{ImageError, Rgb};
use crate::messages::{ImageSource, VideoData, VideoSource};

/// An opened video.
pub(super) struct VideoReader<'a> {
    /// Where it comes from, for errors.
    pub(super) name: String,
    kind: Kind,
    limits: &'a VideoLimits,
    clock: Clock,
}

enum Kind {
    /// Images, each a frame.
    Frames { images: Vec<ImageSource>, frame_rate: Option<f64> },
    /// A GIF, WebP or APNG.
    Animation(Animation),
    /// What ffmpeg decodes.
    VideoFile(VideoFile),
}

/// The time that a video has left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    end: Instant,
    seconds: u64,
}

impl Clock {
    pub(super) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Says that the time is over.
    pub(super) fn over(&self, name: &str) -> VideoError {
        VideoError::Slow { name: name.to_owned(), seconds: self.seconds }
    }

    pub(super) fn check(&self, name: &str) -> Result<(), VideoError> {
        if self.left().is_zero() { Err(self.over(name)) } else { Ok(()) }
    }
}

impl<'a> VideoReader<'a> {
    pub(super) fn open(
        source: &VideoSource,
        frame_rate: Option<f64>,
        limits: &'a VideoLimits,
    ) -> Result<Self, VideoError> {
        let name = source.to_string();
        let given = source.frame_rate;
        if let Some(rate) = given.or(frame_rate)
            && !(rate > 0.0 && rate <= MOST_FRAMES_A_SECOND)
        {
            return Err(VideoError::FrameRate { name, found: rate });
        }
        let end = Instant::now() + Duration::from_secs(limits.max_seconds);
        let clock = Clock { end, seconds: limits.max_seconds };
        let images = match &source.data {
            VideoData::Frames(images) => Some(images.clone()),
            VideoData::Path(path) if path.is_dir() => Some(frames::of_folder(path)?),
            _ => None,
        };
        let kind = match images {
            Some(images) if images.is_empty() => return Err(VideoError::NoFrames { name }),
            Some(images) => Kind::Frames { images, frame_rate: given.or(frame_rate) },
            None if given.is_some() => return Err(VideoError::OwnRate { name }),
            None => open_file(&source.data, &name, limits, clock)?,
        };
        let video = Self { name, kind, limits, clock };
        let found = video.len();
        if found > limits.max_frames {
            return Err(VideoError::ManyFrames { name: video.name, found, limit: limits.max_frames });
        }
        Ok(video)
    }

    /// Frames in the video.
    pub(super) fn len(&self) -> usize {
        match &self.kind {
            Kind::Frames { images, .. } => images.len(),
            Kind::Animation(animation) => animation.frames,
            Kind::VideoFile(file) => file.frames,
        }
    }

    /// Frames a second, and seconds; nothing for images of which that is not known.
    pub(super) fn timing(&self) -> Option<(f64, f64)> {
        let of_length = |frames: usize, seconds: f64| Some((frames as f64 / seconds, seconds));
        match &self.kind {
            Kind::Frames { images, frame_rate } => frame_rate.map(|r| (r, images.len() as f64 / r)),
            Kind::Animation(animation) => of_length(animation.frames, animation.seconds),
            Kind::VideoFile(file) => of_length(file.frames, file.seconds),
        }
    }

    /// Hands over the frames of these indices, which ascend.
    pub(super) fn read(
        &self,
        wanted: &[usize],
        each: &mut dyn FnMut(Rgb) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        match &self.kind {
            Kind::Frames { images, .. } => {
                for &frame in wanted {
                    self.clock.check(&self.name)?;
                    let image = self.limits.frame.load(&images[frame]);
                    each(image.map_err(|source| VideoError::Frame {
                        name: self.name.clone(),
                        frame,
                        source: source.into(),
                    })?)?;
                }
                Ok(())
            }
            Kind::Animation(animation) => animation.read(wanted, &self.name, self.limits, self.clock, each),
            Kind::VideoFile(file) => file.read(wanted, &self.name, self.limits, self.clock, each),
        }
    }
}

/// Looks whether there is anything to decode.
pub(super) fn probe(source: &VideoSource, limits: &VideoLimits) -> Result<(), VideoError> {
    let name = source.to_string();
    let frames = match &source.data {
        VideoData::Frames(frames) => frames.clone(),
        VideoData::Path(path) if path.is_dir() => frames::of_folder(path)?,
        VideoData::Path(path) => return head(path, &name).and_then(|head| not_empty(&head, &name)),
        VideoData::Url(url) if !url.starts_with("data:") && limits.frame.http.is_none() => {
            let refused = |source: ImageError| VideoError::File(source.into());
            return limits.frame.fetch(url).map(drop).map_err(refused);
        }
        VideoData::Url(_) | VideoData::Bytes(_) => return Ok(()),
    };
    if frames.is_empty() {
        return Err(VideoError::NoFrames { name });
    }
    for (frame, image) in frames.iter().enumerate() {
        limits.frame.probe(image).map_err(|source| VideoError::Frame {
            name: name.clone(),
            frame,
            source: source.into(),
        })?;
    }
    Ok(())
}

fn not_empty(head: &[u8], name: &str) -> Result<(), VideoError> {
    if head.is_empty() {
        return Err(VideoError::File(ImageError::Empty { name: name.to_owned() }.into()));
    }
    Ok(())
}

/// Frame rates beyond this are taken for a mistake.
pub(super) const MOST_FRAMES_A_SECOND: f64 = 1000.0;

fn open_file(data: &VideoData, name: &str, limits: &VideoLimits, clock: Clock) -> Result<Kind, VideoError> {
    let unusable = |source: ImageError| VideoError::File(source.into());
    let (path, bytes) = match data {
        VideoData::Path(path) => (Some(path), None),
        VideoData::Bytes(bytes) => (None, Some(bytes.clone())),
        VideoData::Url(url) => (None, Some(limits.frame.fetch(url).map_err(unusable)?)),
        VideoData::Frames(_) => return Err(VideoError::NoFrames { name: name.to_owned() }),
    };
    let head = match (path, &bytes) {
        (Some(path), _) => head(path, name)?,
        (None, Some(bytes)) => bytes[..bytes.len().min(HEAD)].to_vec(),
        (None, None) => Vec::new(),
    };
    not_empty(&head, name)?;
    if let Some(format) = Animation::format(&head) {
        let bytes = match (path, bytes) {
            (Some(path), _) => limits.frame.read(path).map_err(unusable)?,
            (None, bytes) => bytes.unwrap_or_default(),
        };
        return Ok(Kind::Animation(Animation::open(format, bytes, name, limits, clock)?));
    }
    if image::guess_format(&head).is_ok() {
        return Err(VideoError::Still { name: name.to_owned() });
    }
    match (path, bytes) {
        (Some(path), _) => Ok(Kind::VideoFile(VideoFile::open(path.clone(), None, name, limits, clock)?)),
        (None, bytes) => {
            let file = written(&bytes.unwrap_or_default())
                .map_err(|source| VideoError::Read { name: name.to_owned(), source })?;
            Ok(Kind::VideoFile(VideoFile::open(file.path().to_owned(), Some(file), name, limits, clock)?))
        }
    }
}

/// Bytes that tell the format.
const HEAD: usize = 64;

fn head(path: &Path, name: &str) -> Result<Vec<u8>, VideoError> {
    if path.as_os_str().is_empty() {
        return Err(VideoError::NoPath);
    }
    let unreadable = |source| VideoError::Read { name: name.to_owned(), source };
    let file = glm4v_files::open(path).map_err(|error| VideoError::File(Box::new(error.into())))?;
    let mut head = Vec::new();
    file.take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
    Ok(head)
}

/// A file for ffmpeg, which reads mp4 back and forth.
fn written(bytes: &[u8]) -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, bytes)?;
    Ok(file)
}

/// Paths as ffmpeg takes them for files, whatever they begin with.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
