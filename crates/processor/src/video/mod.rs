//! Videos: from a file to the rows that the vision tower reads, and the times between them.
//!
//! A video is a folder or list of images, an animated GIF, WebP or PNG, or a video file that `ffmpeg` decodes.
//! [`VideoProcessor`] does what the checkpoint says (`video_preprocessor_config.json`): choose frames,
//! bring them to a size that fits the limits over all of them, normalise, cut two at a time into patches.
//! Frames are resized and cut as they come; what is kept is the patches.
//!
//! Images have no frame rate of their own. Without one all of them are shown, and their times count 24
//! a second, as the published processors do with frames that were chosen before. With one
//! ([`VideoSource::frame_rate`](crate::VideoSource), [`VideoProcessor::with_frame_rate`]) they are a video
//! like any other, of which frames are chosen.

mod animation;
mod config;
mod ffmpeg;
mod frames;
mod reader;
mod sampling;

use crate::image::{
    DecodeLimits, Geometry, ImageError, Levels, ResizeError, Rgb, bounded_resize, resize_bicubic,
};
use crate::messages::VideoSource;
use crate::notice::Notice;

pub use config::VideoConfig;
pub use sampling::{Sampling, SamplingRule, VideoMetadata};

use reader::VideoReader;

/// Why there is no video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// A file or folder could not be read.
    #[error("{name}: cannot be read")]
    Read {
        /// Where the video comes from.
        name: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No path at all.
    #[error("the path of the video is empty, needed a video file or a folder of images")]
    NoPath,
    /// The file cannot be used.
    #[error(transparent)]
    File(Box<ImageError>),
    /// A frame cannot be used.
    #[error("{name}: frame {frame} cannot be used")]
    Frame {
        /// Where the video comes from.
        name: String,
        /// Index of the frame, from 0.
        frame: usize,
        /// What is wrong with it.
        #[source]
        source: Box<ImageError>,
    },
    /// An image that does not move.
    #[error("{name}: is a still image, needed a video; give it as an image")]
    Still {
        /// Where the video comes from.
        name: String,
    },
    /// Nothing to show.
    #[error("{name}: has no frames")]
    NoFrames {
        /// Where the video comes from.
        name: String,
    },
    /// Nothing says how fast the frames follow each other.
    #[error("{name}: says neither the times of its frames nor their rate; convert it to mp4")]
    NoTimes {
        /// Where the video comes from.
        name: String,
    },
    /// A frame rate that cannot be.
    #[error("{name}: the frame rate is {found}, needed more than 0, at most 1000")]
    FrameRate {
        /// Where the video comes from.
        name: String,
        /// The rate.
        found: f64,
    },
    /// A frame rate where the file has its own.
    #[error("{name}: was given a frame rate but has its own; a rate is for folders and lists of images")]
    OwnRate {
        /// Where the video comes from.
        name: String,
    },
    /// More frames than the limits allow.
    #[error("{name}: {found} frames or more, the limit is {limit}; cut the video")]
    ManyFrames {
        /// Where the video comes from.
        name: String,
        /// Frames found.
        found: usize,
        /// Most frames allowed.
        limit: usize,
    },
    /// More frames to show than the limits allow.
    #[error(
        "{name}: {found} frames would be shown, the limit is {limit}; cut the video or take fewer frames a second"
    )]
    ManyShown {
        /// Where the video comes from.
        name: String,
        /// Frames chosen.
        found: usize,
        /// Most frames allowed.
        limit: usize,
    },
    /// Fewer frames than a temporal patch takes.
    #[error("{name}: {found} frame to show, needed at least {needed}; give it as an image")]
    FewFrames {
        /// Where the video comes from.
        name: String,
        /// Frames to show.
        found: usize,
        /// Frames of a temporal patch.
        needed: usize,
    },
    /// Too short for the rule by which frames are chosen.
    #[error(
        "{name}: is {seconds} s long, and the model's rule takes no frame of a video under 1/6 s; give its frames as images"
    )]
    Short {
        /// Where the video comes from.
        name: String,
        /// Length in seconds.
        seconds: f64,
    },
    /// Frames of several sizes.
    #[error(
        "{name}: frame {frame} has {width}x{height} pixels, those before have {first_width}x{first_height}"
    )]
    FrameSize {
        /// Where the video comes from.
        name: String,
        /// Which of the frames that were chosen, from 0.
        frame: usize,
        /// Width of the frame.
        width: usize,
        /// Height of the frame.
        height: usize,
        /// Width of those before.
        first_width: usize,
        /// Height of those before.
        first_height: usize,
    },
    /// Frames that cannot be brought to a size of the model.
    #[error("{name}: {source}")]
    Resize {
        /// Where the video comes from.
        name: String,
        /// What is wrong with its size.
        source: ResizeError,
    },
    /// Fewer frames than the file announces.
    #[error("{name}: ends after {found} of the {needed} frames to show; the file is damaged or cut off")]
    CutOff {
        /// Where the video comes from.
        name: String,
        /// Frames found.
        found: usize,
        /// Frames that were chosen.
        needed: usize,
    },
    /// ffmpeg is not there.
    #[error(
        "{name}: reading it needs {program}, which is not installed; install it (Debian and Ubuntu: apt-get install \
         ffmpeg, Fedora: dnf install ffmpeg-free, macOS: brew install ffmpeg), or give the frames as a folder of images"
    )]
    NoFfmpeg {
        /// Where the video comes from.
        name: String,
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
    },
    /// ffmpeg is there and cannot be started.
    #[error("{name}: {program} cannot be started")]
    Start {
        /// Where the video comes from.
        name: String,
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// ffmpeg does not take the file.
    #[error("{name}: not a video that {program} can read: {said}")]
    Refused {
        /// Where the video comes from.
        name: String,
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// ffmpeg sent something else than images.
    #[error("{name}: ffmpeg sent something that is no image")]
    Stream {
        /// Where the video comes from.
        name: String,
    },
    /// Took too long.
    #[error("{name}: not read after {seconds} s, the limit; cut the video")]
    Slow {
        /// Where the video comes from.
        name: String,
        /// Seconds allowed.
        seconds: u64,
    },
}

/// What a video may cost before it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoLimits {
    /// What a frame may cost; 8192 a side and 40 million pixels, and for videos in memory 256 MiB.
    pub frame: DecodeLimits,
    /// Most frames in a video; 500,000, over four hours at 30 a second.
    pub max_frames: usize,
    /// Most frames of a video that are shown; 4096.
    pub max_shown: usize,
    /// Most seconds that reading a video may take; 600.
    pub max_seconds: u64,
}

impl Default for VideoLimits {
    fn default() -> Self {
        let frame = DecodeLimits { max_side: 8192, max_pixels: 40_000_000, ..DecodeLimits::default() };
        Self { frame, max_frames: 500_000, max_shown: 4096, max_seconds: 600 }
    }
}

/// A video as the vision tower reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchedVideo {
    /// `[P, 1176]`, P being the product of the grid.
    pub pixel_values: Vec<f32>,
    /// Frame pairs, patch rows, patch columns.
    pub grid: [usize; 3],
    /// Second at which each frame pair begins.
    pub timestamps: Vec<f64>,
}

/// Turns videos into patches, as one checkpoint wants them.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoProcessor {
    config: VideoConfig,
    geometry: Geometry,
    levels: Levels,
    frame_rate: Option<f64>,
    limits: VideoLimits,
}

impl VideoProcessor {
    /// Frames a second of images whose rate is not known, as upstream has it.
    const UNKNOWN_RATE: f64 = 24.0;

    /// Makes a processor from a checked configuration.
    pub fn new(config: VideoConfig) -> Self {
        let frame = &config.frame;
        Self {
            geometry: Geometry {
                patch: frame.patch_size,
                temporal: frame.temporal_patch_size,
                merge: frame.merge_size,
            },
            levels: Levels::new(frame.image_mean, frame.image_std, frame.rescale_factor),
            frame_rate: None,
            limits: VideoLimits::default(),
            config,
        }
    }

    /// Replaces the most pixels a video may have, counted over all frames that are shown.
    #[must_use]
    pub fn with_max_pixels(mut self, max_pixels: usize) -> Self {
        self.config.frame.max_pixels = max_pixels;
        self
    }

    /// Replaces the fewest pixels a video may have, counted over all frames that are shown.
    #[must_use]
    pub fn with_min_pixels(mut self, min_pixels: usize) -> Self {
        self.config.frame.min_pixels = min_pixels;
        self
    }

    /// Sets the default frame rate for image sequences without one.
    #[must_use]
    pub fn with_frame_rate(mut self, frame_rate: f64) -> Self {
        self.frame_rate = Some(frame_rate);
        self
    }

    /// Replaces what a video may cost before it is refused.
    #[must_use]
    pub fn with_limits(mut self, limits: VideoLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What a video may cost before it is refused.
    pub fn limits(&self) -> &VideoLimits {
        &self.limits
    }

    /// What the checkpoint says.
    pub fn config(&self) -> &VideoConfig {
        &self.config
    }

    /// Reads a video, chooses its frames, and cuts them into patches.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is no video, has a shape that the model cannot take, or is larger
    /// than the limits; when it is a video file and ffmpeg is not installed.
    pub fn load(&self, source: &VideoSource) -> Result<PatchedVideo, VideoError> {
        let video = VideoReader::open(source, self.frame_rate, &self.limits)?;
        let (frame_rate, indices) = self.choose(&video)?;
        let temporal = self.geometry.temporal;
        let shown = indices.len();
        if shown < temporal {
            return Err(VideoError::FewFrames { name: video.name, found: shown, needed: temporal });
        }
        if shown > self.limits.max_shown {
            let (found, limit) = (shown, self.limits.max_shown);
            return Err(VideoError::ManyShown { name: video.name, found, limit });
        }

        let mut distinct = indices.clone();
        distinct.dedup();
        let mut cutter = Cutter {
            processor: self,
            name: &video.name,
            shown,
            done: 0,
            sizes: None,
            held: Vec::new(),
            out: Vec::new(),
        };
        // A frame that is shown twice is read once.
        let mut times = indices.chunk_by(|a, b| a == b).map(<[usize]>::len);
        video.read(&distinct, &mut |frame| {
            for _ in 1..times.next().unwrap_or(1) {
                cutter.push(frame.clone())?;
            }
            cutter.push(frame)
        })?;
        let (pixel_values, [rows, columns]) = cutter.finish(shown)?;
        let pairs = shown.div_ceil(temporal);
        let timestamps = sampling::timestamps(&indices, frame_rate, pairs);
        Ok(PatchedVideo { pixel_values, grid: [pairs, rows, columns], timestamps })
    }

    /// Looks at a video without decoding it: that there is a file that may be read, or frames.
    pub(crate) fn probe(&self, source: &VideoSource) -> Result<(), VideoError> {
        reader::probe(source, &self.limits)
    }

    /// The frame rate, and the frames to show.
    fn choose(&self, video: &VideoReader<'_>) -> Result<(f64, Vec<usize>), VideoError> {
        let frames = video.len();
        let Some((frame_rate, seconds)) = video.timing() else {
            static UNKNOWN: Notice = Notice::new();
            if let Some(times) = UNKNOWN.due() {
                tracing::warn!(
                    video = video.name,
                    frames,
                    times,
                    "the frame rate is not known: all frames are shown, with times of 24 a second"
                );
            }
            return Ok((Self::UNKNOWN_RATE, (0..frames).collect()));
        };
        if !(frame_rate > 0.0 && frame_rate <= reader::MOST_FRAMES_A_SECOND && seconds.is_finite()) {
            return Err(VideoError::FrameRate { name: video.name.clone(), found: frame_rate });
        }
        if !self.config.sample_frames {
            return Ok((frame_rate, (0..frames).collect()));
        }
        let indices =
            self.config.sampling.indices(&VideoMetadata { frames, frame_rate, duration: Some(seconds) });
        if indices.is_empty() {
            return Err(VideoError::Short { name: video.name.clone(), seconds });
        }
        Ok((frame_rate, indices))
    }

    /// Height and width that the frames are brought to.
    fn target(&self, shown: usize, height: usize, width: usize) -> Result<[usize; 2], ResizeError> {
        let Geometry { patch, temporal, merge } = self.geometry;
        let frame = &self.config.frame;
        let limits = [frame.min_pixels, frame.max_pixels];
        let allowed = self.limits.frame.max_pixels;
        let target = bounded_resize(shown, [height, width], temporal, patch * merge, limits, allowed);
        target.map(|(height, width)| [height, width])
    }
}

/// Resizes frames as they come and cuts them into patches.
struct Cutter<'a> {
    processor: &'a VideoProcessor,
    name: &'a str,
    shown: usize,
    done: usize,
    /// Size of the first frame, and the size that all are brought to.
    sizes: Option<([usize; 2], [usize; 2])>,
    /// Frames of a temporal patch that is not full.
    held: Vec<Rgb>,
    out: Vec<f32>,
}

impl Cutter<'_> {
    fn push(&mut self, frame: Rgb) -> Result<(), VideoError> {
        let geometry = self.processor.geometry;
        let size = [frame.height(), frame.width()];
        let (first, target) = match self.sizes {
            Some(sizes) => sizes,
            None => {
                let [height, width] = size;
                let target = self.processor.target(self.shown, height, width);
                let target =
                    target.map_err(|source| VideoError::Resize { name: self.name.to_owned(), source })?;
                let patches = self.shown.div_ceil(geometry.temporal)
                    * (target[0] / geometry.patch)
                    * (target[1] / geometry.patch);
                self.out.reserve_exact(patches * geometry.row_len());
                *self.sizes.insert((size, target))
            }
        };
        if size != first {
            return Err(VideoError::FrameSize {
                name: self.name.to_owned(),
                frame: self.done,
                width: size[1],
                height: size[0],
                first_width: first[1],
                first_height: first[0],
            });
        }
        self.done += 1;
        self.held.push(if size == target { frame } else { resize_bicubic(&frame, target[0], target[1]) });
        if self.held.len() == geometry.temporal {
            self.cut();
        }
        Ok(())
    }

    fn cut(&mut self) {
        let frames: Vec<&Rgb> = self.held.iter().collect();
        self.processor.geometry.cut(&frames, &self.processor.levels, &mut self.out);
        self.held.clear();
    }

    /// Fills the last temporal patch with the last frame; gives the patches, and how many stand in a column
    /// and a row.
    fn finish(mut self, needed: usize) -> Result<(Vec<f32>, [usize; 2]), VideoError> {
        let (Some((_, target)), true) = (self.sizes, self.done == needed) else {
            return Err(VideoError::CutOff { name: self.name.to_owned(), found: self.done, needed });
        };
        if !self.held.is_empty() {
            self.cut();
        }
        Ok((self.out, target.map(|side| side / self.processor.geometry.patch)))
    }
}
