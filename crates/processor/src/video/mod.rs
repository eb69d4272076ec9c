//! Videos: from a file to the `pixel_values_videos` of the vision tower, and the timestamps of its frames.
//!
//! A video is a folder or list of images, an animated GIF, WebP or PNG, or a video file that `ffmpeg` decodes. [`VideoProcessor`]
//! follows `video_preprocessor_config.json`: sample frames, resize them within limits over all of them, normalize, split each two
//! into patches. Frames are processed one at a time; only the patches are kept in memory.
//!
//! Image sequences have no frame rate of their own. Without one all frames are used, with timestamps at 24 frames per second, as
//! the published processors do with frames sampled before. With one ([`VideoInput::frame_rate`](crate::VideoInput),
//! [`VideoProcessor::with_frame_rate`]) frames are sampled as from any other video.

mod animation;
mod config;
mod deadline;
mod error;
mod ffmpeg;
mod image_sequence;
mod limits;
mod processor;
mod reader;
mod sampling;

pub use config::VideoConfig;
pub use error::VideoError;
pub use limits::VideoLimits;
pub use processor::{PatchedVideo, VideoProcessor};
pub use sampling::{FrameSamplingConfig, FrameSamplingRule, VideoMetadata};
