//! Limits of loading a video.

use super::error::VideoError;
use crate::image::DecodeLimits;

/// Limits of loading a video; beyond them it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoLimits {
    /// Limits of a frame; 8192 pixels a side, 40 million in all. The length of a file is limited for animations and downloads.
    pub frame: DecodeLimits,
    /// Maximum frames of a video; 500,000, over four hours at 30 a second.
    pub max_frames: usize,
    /// Maximum frames sampled from a video; 4096.
    pub max_sampled_frames: usize,
    /// Maximum seconds for reading a video; 600.
    pub max_seconds: u64,
}

impl Default for VideoLimits {
    fn default() -> Self {
        let frame = DecodeLimits { max_side: 8192, max_pixels: 40_000_000, ..DecodeLimits::default() };
        Self { frame, max_frames: 500_000, max_sampled_frames: 4096, max_seconds: 600 }
    }
}

impl VideoLimits {
    /// Compares the size of a frame with the limits.
    pub(super) fn check_frame_size(&self, width: u32, height: u32, name: &str) -> Result<(), VideoError> {
        Ok(self.frame.check_size(width, height, name)?)
    }
}
