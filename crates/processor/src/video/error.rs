//! Errors of loading a video.

use crate::image::{ImageError, ResizeError};

/// Error of loading a video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// A file or folder cannot be read.
    #[error("{name}: cannot be read")]
    Read {
        /// Path, or a description of another source.
        name: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The path is empty.
    #[error("the path of the video is empty, needed a video file or a directory of images")]
    NoPath,
    /// The file as a whole cannot be used.
    #[error(transparent)]
    File(Box<ImageError>),
    /// A frame cannot be used.
    #[error("{name}: frame {frame} cannot be used")]
    Frame {
        /// Path, or a description of another source.
        name: String,
        /// Index of the frame, from 0.
        frame: usize,
        /// The reason.
        #[source]
        source: Box<ImageError>,
    },
    /// The file is a still image.
    #[error("{name}: is a still image, needed a video; give it as an image")]
    Still {
        /// Path, or a description of another source.
        name: String,
    },
    /// The video has no frames.
    #[error("{name}: has no frames")]
    NoFrames {
        /// Path, or a description of another source.
        name: String,
    },
    /// The file has neither timestamps nor a frame rate.
    #[error("{name}: says neither the times of its frames nor their rate; convert it to mp4")]
    NoTimestamps {
        /// Path, or a description of another source.
        name: String,
    },
    /// The frame rate is out of range.
    #[error("{name}: the frame rate is {found}, needed more than 0, at most 1000")]
    FrameRate {
        /// Path, or a description of another source.
        name: String,
        /// Frames per second.
        found: f64,
    },
    /// A frame rate was given for a file that has its own.
    #[error("{name}: was given a frame rate but has its own; a rate is for directories and lists of images")]
    FrameRateConflict {
        /// Path, or a description of another source.
        name: String,
    },
    /// The video has more frames than allowed.
    #[error("{name}: {found} frames or more, the limit is {limit}; cut the video")]
    TooManyFrames {
        /// Path, or a description of another source.
        name: String,
        /// Frames found.
        found: usize,
        /// Frames allowed.
        limit: usize,
    },
    /// More frames were sampled than allowed.
    #[error(
        "{name}: {found} frames would be shown, the limit is {limit}; cut the video or take fewer frames a second"
    )]
    TooManySampled {
        /// Path, or a description of another source.
        name: String,
        /// Frames sampled.
        found: usize,
        /// Frames allowed.
        limit: usize,
    },
    /// Fewer frames were sampled than a temporal patch holds.
    #[error("{name}: {found} frame to show, needed at least {needed}; give it as an image")]
    TooFewFrames {
        /// Path, or a description of another source.
        name: String,
        /// Frames sampled.
        found: usize,
        /// Frames of a temporal patch.
        needed: usize,
    },
    /// The video is too short for the sampling rule.
    #[error(
        "{name}: is {seconds} s long, and the model's rule takes no frame of a video under 1/6 s; give its frames as images"
    )]
    TooShort {
        /// Path, or a description of another source.
        name: String,
        /// Duration in seconds.
        seconds: f64,
    },
    /// The frames differ in size.
    #[error(
        "{name}: frame {frame} has {width}x{height} pixels, those before have {first_width}x{first_height}"
    )]
    FrameSize {
        /// Path, or a description of another source.
        name: String,
        /// Index among the sampled frames, from 0.
        frame: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Width of the first frame.
        first_width: usize,
        /// Height of the first frame.
        first_height: usize,
    },
    /// The frames have no valid target size.
    #[error("{name}: {source}")]
    Resize {
        /// Path, or a description of another source.
        name: String,
        /// The reason.
        source: ResizeError,
    },
    /// The file ends before the last sampled frame.
    #[error("{name}: ends after {found} of the {needed} frames to show; the file is damaged or cut off")]
    Truncated {
        /// Path, or a description of another source.
        name: String,
        /// Sampled frames found.
        found: usize,
        /// Frames sampled.
        needed: usize,
    },
    /// ffmpeg is not installed.
    #[error(
        "{name}: reading it needs {program}, which is not installed; install it (Debian and Ubuntu: apt-get install \
         ffmpeg, Fedora: dnf install ffmpeg-free, macOS: brew install ffmpeg), or give the frames as a directory of images"
    )]
    NoFfmpeg {
        /// Path, or a description of another source.
        name: String,
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
    },
    /// ffmpeg cannot be started.
    #[error("{name}: {program} cannot be started")]
    Start {
        /// Path, or a description of another source.
        name: String,
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// ffmpeg failed on the file.
    #[error("{name}: not a video that {program} can read: {message}")]
    Ffmpeg {
        /// Path, or a description of another source.
        name: String,
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
        /// Its error message.
        message: String,
    },
    /// The output of ffmpeg is not the expected format.
    #[error("{name}: ffmpeg sent something that is no image")]
    InvalidOutput {
        /// Path, or a description of another source.
        name: String,
    },
    /// Reading took longer than allowed.
    #[error("{name}: not read after {seconds} s, the limit; cut the video")]
    Timeout {
        /// Path, or a description of another source.
        name: String,
        /// Seconds allowed.
        seconds: u64,
    },
}

impl From<ImageError> for VideoError {
    fn from(source: ImageError) -> Self {
        Self::File(source.into())
    }
}
