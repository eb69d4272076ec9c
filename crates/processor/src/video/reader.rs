//! Frames of a video from any kind of source, one at a time.

use std::io::Read;
use std::path::Path;

use super::animation::Animation;
use super::deadline::Deadline;
use super::error::VideoError;
use super::ffmpeg::FfmpegVideo;
use super::image_sequence::images_in_folder;
use super::limits::VideoLimits;
use crate::image::ImageError;
use crate::media::{ImageSource, Rgb, VideoInput, VideoSource};

/// An opened video.
pub(super) struct VideoReader<'a> {
    /// Path or description of the source, for errors.
    pub(super) name: String,
    decoder: Decoder,
    limits: &'a VideoLimits,
    deadline: Deadline,
}

enum Decoder {
    /// One image file per frame.
    Images { images: Vec<ImageSource>, frame_rate: Option<f64> },
    /// A GIF, WebP or APNG.
    Animation(Animation),
    /// Any other format, decoded by ffmpeg.
    Ffmpeg(FfmpegVideo),
}

impl<'a> VideoReader<'a> {
    pub(super) fn open(
        source: &VideoInput,
        frame_rate: Option<f64>,
        limits: &'a VideoLimits,
    ) -> Result<Self, VideoError> {
        let name = source.to_string();
        let given = source.frame_rate;
        if let Some(rate) = given.or(frame_rate)
            && !(rate > 0.0 && rate <= MAX_FRAME_RATE)
        {
            return Err(VideoError::FrameRate { name, found: rate });
        }
        let deadline = Deadline::after(limits.max_seconds);
        let images = match &source.data {
            VideoSource::Frames(images) => Some(images.clone()),
            VideoSource::Path(path) if path.is_dir() => Some(images_in_folder(path)?),
            _ => None,
        };
        let decoder = match images {
            Some(images) if images.is_empty() => return Err(VideoError::NoFrames { name }),
            Some(images) => Decoder::Images { images, frame_rate: given.or(frame_rate) },
            None if given.is_some() => return Err(VideoError::FrameRateConflict { name }),
            None => open_file(&source.data, &name, limits, deadline)?,
        };
        let video = Self { name, decoder, limits, deadline };
        let found = video.len();
        if found > limits.max_frames {
            return Err(VideoError::TooManyFrames { name: video.name, found, limit: limits.max_frames });
        }
        Ok(video)
    }

    /// Number of frames.
    pub(super) fn len(&self) -> usize {
        match &self.decoder {
            Decoder::Images { images, .. } => images.len(),
            Decoder::Animation(animation) => animation.frames,
            Decoder::Ffmpeg(file) => file.frames,
        }
    }

    /// Frames per second and duration; none for images without a frame rate.
    pub(super) fn frame_rate_and_seconds(&self) -> Option<(f64, f64)> {
        let from_duration = |frames: usize, seconds: f64| Some((frames as f64 / seconds, seconds));
        match &self.decoder {
            Decoder::Images { images, frame_rate } => frame_rate.map(|r| (r, images.len() as f64 / r)),
            Decoder::Animation(animation) => from_duration(animation.frames, animation.seconds),
            Decoder::Ffmpeg(video) => from_duration(video.frames, video.seconds),
        }
    }

    /// Calls `on_frame` with the frames of these indices, which must be ascending.
    pub(super) fn read(
        &self,
        wanted: &[usize],
        on_frame: &mut dyn FnMut(Rgb) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        match &self.decoder {
            Decoder::Images { images, .. } => {
                for &frame in wanted {
                    self.deadline.check(&self.name)?;
                    let image = self.limits.frame.load(&images[frame]);
                    on_frame(image.map_err(|source| VideoError::Frame {
                        name: self.name.clone(),
                        frame,
                        source: source.into(),
                    })?)?;
                }
                Ok(())
            }
            Decoder::Animation(animation) => {
                animation.read(wanted, &self.name, self.limits, self.deadline, on_frame)
            }
            Decoder::Ffmpeg(video) => video.read(wanted, &self.name, self.limits, self.deadline, on_frame),
        }
    }
}

/// Checks that there is something to decode.
pub(super) fn probe(source: &VideoInput, limits: &VideoLimits) -> Result<(), VideoError> {
    let name = source.to_string();
    let frames = match &source.data {
        VideoSource::Frames(frames) => frames.clone(),
        VideoSource::Path(path) if path.is_dir() => images_in_folder(path)?,
        VideoSource::Path(path) => {
            return first_bytes(path, &name).and_then(|head| check_not_empty(&head, &name));
        }
        VideoSource::Url(url) if !url.starts_with("data:") && limits.frame.http.is_none() => {
            return Ok(limits.frame.fetch(url).map(drop)?);
        }
        VideoSource::Url(_) | VideoSource::Bytes(_) => return Ok(()),
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

fn check_not_empty(head: &[u8], name: &str) -> Result<(), VideoError> {
    if head.is_empty() {
        return Err(ImageError::Empty { name: name.to_owned() }.into());
    }
    Ok(())
}

/// Frame rates above are taken for a mistake.
pub(super) const MAX_FRAME_RATE: f64 = 1000.0;

fn open_file(
    data: &VideoSource,
    name: &str,
    limits: &VideoLimits,
    deadline: Deadline,
) -> Result<Decoder, VideoError> {
    let (path, bytes) = match data {
        VideoSource::Path(path) => (Some(path), None),
        VideoSource::Bytes(bytes) => (None, Some(bytes.clone())),
        VideoSource::Url(url) => (None, Some(limits.frame.fetch(url)?)),
        VideoSource::Frames(_) => return Err(VideoError::NoFrames { name: name.to_owned() }),
    };
    let head = match (path, &bytes) {
        (Some(path), _) => first_bytes(path, name)?,
        (None, Some(bytes)) => bytes[..bytes.len().min(MAGIC_BYTES)].to_vec(),
        (None, None) => Vec::new(),
    };
    check_not_empty(&head, name)?;
    if let Some(format) = Animation::format(&head) {
        let bytes = match (path, bytes) {
            (Some(path), _) => limits.frame.read(path)?,
            (None, bytes) => bytes.unwrap_or_default(),
        };
        return Ok(Decoder::Animation(Animation::open(format, bytes, name, limits, deadline)?));
    }
    if image::guess_format(&head).is_ok() {
        return Err(VideoError::Still { name: name.to_owned() });
    }
    match (path, bytes) {
        (Some(path), _) => {
            Ok(Decoder::Ffmpeg(FfmpegVideo::open(path.clone(), None, name, limits, deadline)?))
        }
        (None, bytes) => {
            let file = temporary_file(&bytes.unwrap_or_default())
                .map_err(|source| VideoError::Read { name: name.to_owned(), source })?;
            Ok(Decoder::Ffmpeg(FfmpegVideo::open(
                file.path().to_owned(),
                Some(file),
                name,
                limits,
                deadline,
            )?))
        }
    }
}

/// Bytes that are enough to identify the format.
const MAGIC_BYTES: usize = 64;

fn first_bytes(path: &Path, name: &str) -> Result<Vec<u8>, VideoError> {
    if path.as_os_str().is_empty() {
        return Err(VideoError::NoPath);
    }
    let unreadable = |source| VideoError::Read { name: name.to_owned(), source };
    let file = glm4v_files::open(path).map_err(ImageError::from)?;
    let mut head = Vec::new();
    file.take(MAGIC_BYTES as u64).read_to_end(&mut head).map_err(unreadable)?;
    Ok(head)
}

/// Writes a temporary file for ffmpeg, which needs to seek in mp4.
fn temporary_file(bytes: &[u8]) -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, bytes)?;
    Ok(file)
}
