//! Sampled frames of a video to patches.

use super::config::VideoConfig;
use super::error::VideoError;
use super::limits::VideoLimits;
use super::reader::{self, VideoReader};
use super::sampling::{VideoMetadata, timestamps};
use crate::image::{NormalizationTable, PatchGeometry, ResizeError, ResizeLimits, resize_bicubic};
use crate::media::{Rgb, VideoInput};
use crate::warning_throttle::WarningThrottle;

/// Patches of a video, the input of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchedVideo {
    /// `[P, 1176]`, where `P` is the product of the grid.
    pub pixel_values: Vec<f32>,
    /// `grid_thw`: patches along time, height and width.
    pub grid: [usize; 3],
    /// Start of each temporal patch in seconds.
    pub timestamps: Vec<f64>,
}

/// Turns videos into patches, with the settings of one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoProcessor {
    config: VideoConfig,
    geometry: PatchGeometry,
    normalization: NormalizationTable,
    frame_rate: Option<f64>,
    limits: VideoLimits,
}

impl VideoProcessor {
    /// Frames per second of image sequences without a frame rate, as in transformers.
    const UNKNOWN_RATE: f64 = 24.0;

    /// A processor with these settings.
    pub fn new(config: VideoConfig) -> Self {
        let frame = &config.frame;
        Self {
            geometry: PatchGeometry {
                patch_size: frame.patch_size,
                temporal_patch_size: frame.temporal_patch_size,
                merge_size: frame.merge_size,
            },
            normalization: NormalizationTable::new(frame.image_mean, frame.image_std, frame.rescale_factor),
            frame_rate: None,
            limits: VideoLimits::default(),
            config,
        }
    }

    /// Sets the maximum number of pixels per video, counted over all sampled frames.
    #[must_use]
    pub fn with_max_pixels(mut self, max_pixels: usize) -> Self {
        self.config.frame.max_pixels = max_pixels;
        self
    }

    /// Sets the minimum number of pixels per video, counted over all sampled frames.
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

    /// Sets the limits of loading.
    #[must_use]
    pub fn with_limits(mut self, limits: VideoLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The limits of loading.
    pub fn limits(&self) -> &VideoLimits {
        &self.limits
    }

    /// The configuration of the checkpoint.
    pub fn config(&self) -> &VideoConfig {
        &self.config
    }

    /// Reads a video, samples frames, and splits them into patches.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is not a video, has a shape that the model does not support, or exceeds the limits;
    /// when it is a video file and ffmpeg is not installed.
    pub fn load(&self, source: &VideoInput) -> Result<PatchedVideo, VideoError> {
        let video = VideoReader::open(source, self.frame_rate, &self.limits)?;
        let (frame_rate, indices) = self.sample_frames(&video)?;
        self.check_sampled(indices.len(), &video.name)?;

        let mut distinct = indices.clone();
        distinct.dedup();
        let mut patcher = FramePatcher::new(self, &video.name, indices.len());
        // A frame that is sampled twice is decoded once.
        let mut repeats = indices.chunk_by(|a, b| a == b).map(<[usize]>::len);
        video.read(&distinct, &mut |frame| {
            for _ in 1..repeats.next().unwrap_or(1) {
                patcher.push(frame.clone())?;
            }
            patcher.push(frame)
        })?;
        let (pixel_values, grid) = patcher.finish()?;
        let timestamps = timestamps(&indices, frame_rate, grid[0]);
        Ok(PatchedVideo { pixel_values, grid, timestamps })
    }

    /// Checks that a video exists and can be opened, without decoding it.
    pub(crate) fn probe(&self, source: &VideoInput) -> Result<(), VideoError> {
        reader::probe(source, &self.limits)
    }

    /// The frame rate, and the indices of the frames to decode.
    fn sample_frames(&self, video: &VideoReader<'_>) -> Result<(f64, Vec<usize>), VideoError> {
        let frames = video.len();
        let Some((frame_rate, seconds)) = video.frame_rate_and_seconds() else {
            warn_of_unknown_rate(&video.name, frames);
            return Ok((Self::UNKNOWN_RATE, (0..frames).collect()));
        };
        if !(frame_rate > 0.0 && frame_rate <= reader::MAX_FRAME_RATE && seconds.is_finite()) {
            return Err(VideoError::FrameRate { name: video.name.clone(), found: frame_rate });
        }
        if !self.config.sample_frames {
            return Ok((frame_rate, (0..frames).collect()));
        }
        let indices =
            self.config.sampling.indices(&VideoMetadata { frames, frame_rate, duration: Some(seconds) });
        if indices.is_empty() {
            return Err(VideoError::TooShort { name: video.name.clone(), seconds });
        }
        Ok((frame_rate, indices))
    }

    fn check_sampled(&self, found: usize, name: &str) -> Result<(), VideoError> {
        let (needed, limit) = (self.geometry.temporal_patch_size, self.limits.max_sampled_frames);
        if found < needed {
            return Err(VideoError::TooFewFrames { name: name.to_owned(), found, needed });
        }
        if found > limit {
            return Err(VideoError::TooManySampled { name: name.to_owned(), found, limit });
        }
        Ok(())
    }

    /// Height and width of the frames after resizing.
    fn target_size(&self, sampled: usize, size: [usize; 2]) -> Result<[usize; 2], ResizeError> {
        let PatchGeometry { patch_size, temporal_patch_size, merge_size } = self.geometry;
        let limits = ResizeLimits {
            temporal_factor: temporal_patch_size,
            factor: patch_size * merge_size,
            min_pixels: self.config.frame.min_pixels,
            max_pixels: self.config.frame.max_pixels,
        };
        limits.target_size(sampled, size, self.limits.frame.max_pixels)
    }
}

fn warn_of_unknown_rate(name: &str, frames: usize) {
    static UNKNOWN_RATE: WarningThrottle = WarningThrottle::new();
    if let Some(times) = UNKNOWN_RATE.count_if_due() {
        tracing::warn!(
            video = name,
            frames,
            times,
            "the frame rate is not known: all frames are shown, with times of 24 a second"
        );
    }
}

/// Resizes frames and splits them into patches, one at a time.
struct FramePatcher<'a> {
    processor: &'a VideoProcessor,
    name: &'a str,
    /// Frames to come, repeated ones included.
    sampled: usize,
    done: usize,
    sizes: Option<FrameSizes>,
    /// Frames of the temporal patch that is not complete yet.
    pending: Vec<Rgb>,
    pixel_values: Vec<f32>,
}

/// Height and width of all frames.
#[derive(Clone, Copy)]
struct FrameSizes {
    decoded: [usize; 2],
    resized: [usize; 2],
}

impl<'a> FramePatcher<'a> {
    fn new(processor: &'a VideoProcessor, name: &'a str, sampled: usize) -> Self {
        let (sizes, pending, pixel_values) = (None, Vec::new(), Vec::new());
        Self { processor, name, sampled, done: 0, sizes, pending, pixel_values }
    }

    fn push(&mut self, frame: Rgb) -> Result<(), VideoError> {
        let [height, width] = [frame.height(), frame.width()];
        let FrameSizes { decoded, resized } = match self.sizes {
            Some(sizes) => sizes,
            None => self.start([height, width])?,
        };
        if [height, width] != decoded {
            return Err(VideoError::FrameSize {
                name: self.name.to_owned(),
                frame: self.done,
                width,
                height,
                first_width: decoded[1],
                first_height: decoded[0],
            });
        }
        self.done += 1;
        let frame = if resized == decoded { frame } else { resize_bicubic(&frame, resized[0], resized[1]) };
        self.pending.push(frame);
        if self.pending.len() == self.processor.geometry.temporal_patch_size {
            self.patchify();
        }
        Ok(())
    }

    /// Chooses the size by the first frame, and allocates all patches.
    fn start(&mut self, decoded: [usize; 2]) -> Result<FrameSizes, VideoError> {
        let resized = self.processor.target_size(self.sampled, decoded);
        let resized = resized.map_err(|source| VideoError::Resize { name: self.name.to_owned(), source })?;
        let patches: usize = self.grid(resized).iter().product();
        self.pixel_values.reserve_exact(patches * self.processor.geometry.row_len());
        Ok(*self.sizes.insert(FrameSizes { decoded, resized }))
    }

    /// `grid_thw` of frames of this size.
    fn grid(&self, [height, width]: [usize; 2]) -> [usize; 3] {
        let PatchGeometry { patch_size, temporal_patch_size, .. } = self.processor.geometry;
        [self.sampled.div_ceil(temporal_patch_size), height / patch_size, width / patch_size]
    }

    fn patchify(&mut self) {
        let frames: Vec<&Rgb> = self.pending.iter().collect();
        self.processor.geometry.patchify(&frames, &self.processor.normalization, &mut self.pixel_values);
        self.pending.clear();
    }

    /// Completes the last temporal patch by repeating the last frame; returns `pixel_values` and `grid_thw`.
    fn finish(mut self) -> Result<(Vec<f32>, [usize; 3]), VideoError> {
        let (Some(sizes), true) = (self.sizes, self.done == self.sampled) else {
            let (found, needed) = (self.done, self.sampled);
            return Err(VideoError::Truncated { name: self.name.to_owned(), found, needed });
        };
        if !self.pending.is_empty() {
            self.patchify();
        }
        let grid = self.grid(sizes.resized);
        Ok((self.pixel_values, grid))
    }
}
