//! `video_preprocessor_config.json`: frame sampling, and preprocessing of the frames.

use serde::Deserialize;

use super::sampling::{FrameSamplingConfig, FrameSamplingRule};
use crate::image::{ImageConfig, PreprocessorConfigError, check_value};

/// Preprocessing of videos under the names of transformers; read with [`from_json`](Self::from_json).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoConfig {
    /// Preprocessing of a frame; pixels are counted over all sampled frames of a video.
    pub frame: ImageConfig,
    /// Selection of frames.
    pub sampling: FrameSamplingConfig,
    /// Whether frames are sampled (`do_sample_frames`); otherwise every frame is used.
    pub sample_frames: bool,
}

impl VideoConfig {
    /// Reads and checks the text of a `video_preprocessor_config.json`; keys left out have the defaults
    /// of transformers' `Glm4vVideoProcessor`.
    ///
    /// The text may be that of a `preprocessor_config.json`, the fallback for checkpoints without a file for videos (GLM-OCR).
    ///
    /// # Errors
    ///
    /// Invalid JSON, or a value that is not supported.
    pub fn from_json(json: &str) -> Result<Self, PreprocessorConfigError> {
        let raw: RawVideoConfig = serde_json::from_str(json)?;
        let frame = ImageConfig::with_default_pixels(json, [112 * 112, 28 * 28 * 2 * 30_000])?;
        let RawVideoConfig { fps, max_duration, .. } = raw;
        check_value("fps", fps, fps > 0.0 && fps <= 1000.0, "more than 0, at most 1000")?;
        let is_duration = max_duration > 0.0 && max_duration <= 86_400.0;
        check_value("max_duration", max_duration, is_duration, "more than 0, at most 86400")?;
        let names = [&raw.video_processor_type, &raw.image_processor_type, &raw.processor_class];
        let is_glm46v = names.into_iter().flatten().next().is_some_and(|name| name.starts_with("Glm46V"));
        let sampling = FrameSamplingConfig {
            rule: if is_glm46v { FrameSamplingRule::Glm46v } else { FrameSamplingRule::Glm4v },
            fps,
            max_duration,
            temporal_patch_size: frame.temporal_patch_size,
        };
        Ok(Self { frame, sampling, sample_frames: raw.do_sample_frames })
    }
}

/// The keys that are not in [`ImageConfig`].
#[derive(Deserialize)]
#[serde(default)]
#[serde(expecting = "an object")]
struct RawVideoConfig {
    fps: f64,
    max_duration: f64,
    do_sample_frames: bool,
    video_processor_type: Option<String>,
    image_processor_type: Option<String>,
    processor_class: Option<String>,
}

impl Default for RawVideoConfig {
    fn default() -> Self {
        Self {
            fps: 2.0,
            max_duration: 300.0,
            do_sample_frames: true,
            video_processor_type: None,
            image_processor_type: None,
            processor_class: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_has_the_defaults_of_transformers() {
        let config = VideoConfig::from_json("{}").unwrap();

        assert_eq!((config.frame.min_pixels, config.frame.max_pixels), (12_544, 47_040_000));
        assert_eq!((config.sampling.fps, config.sampling.max_duration), (2.0, 300.0));
        assert_eq!(config.sampling.rule, FrameSamplingRule::Glm4v);
        assert!(config.sample_frames);
    }

    #[test]
    fn the_sampling_rule_follows_the_class_of_the_processor() {
        let rule = |json| VideoConfig::from_json(json).unwrap().sampling.rule;

        assert_eq!(rule(r#"{"video_processor_type": "Glm46VVideoProcessor"}"#), FrameSamplingRule::Glm46v);
        // The file of the images, where there is none of its own.
        assert_eq!(rule(r#"{"image_processor_type": "Glm46VImageProcessor"}"#), FrameSamplingRule::Glm46v);
        let both = r#"{"video_processor_type": "Glm4vVideoProcessor", "processor_class": "Glm46VProcessor"}"#;
        assert_eq!(rule(both), FrameSamplingRule::Glm4v);
    }

    #[test]
    fn unsupported_values_are_named() {
        let refused = |json| VideoConfig::from_json(json).unwrap_err().to_string();

        assert_eq!(refused(r#"{"fps": 0}"#), "\"fps\" is 0, needed more than 0, at most 1000");
        assert_eq!(
            refused(r#"{"max_duration": -1}"#),
            "\"max_duration\" is -1, needed more than 0, at most 86400"
        );
        assert_eq!(refused(r#"{"resample": 2}"#), "\"resample\" is 2, needed 3 (bicubic)");
    }
}
