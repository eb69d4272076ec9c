//! `video_preprocessor_config.json`: what a checkpoint wants done to a video.

use serde::Deserialize;

use super::sampling::{Sampling, SamplingRule};
use crate::image::{ConfigError, ImageConfig};

/// What a checkpoint wants done to a video; read with [`from_json`](Self::from_json).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoConfig {
    /// What is done to a frame; pixels are counted over all frames of a video.
    pub frame: ImageConfig,
    /// Which frames are taken.
    pub sampling: Sampling,
    /// Whether frames are chosen at all; else every frame is taken.
    pub sample_frames: bool,
}

impl VideoConfig {
    /// Reads and checks the text of a `video_preprocessor_config.json`; keys left out have the defaults
    /// of transformers' `Glm4vVideoProcessor`.
    ///
    /// The text may be that of a `preprocessor_config.json`, which stands in where a checkpoint has no
    /// file for videos (GLM-OCR).
    ///
    /// # Errors
    ///
    /// When it is not JSON, or asks for something that the models of this family do not do.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let raw: Raw = serde_json::from_str(json)?;
        let frame = ImageConfig::or_size(json, [112 * 112, 28 * 28 * 2 * 30_000])?;
        let check = |key, value: f64, most: f64, needed| match value > 0.0 && value <= most {
            true => Ok(value),
            false => Err(ConfigError::Value { key, found: value, needed }),
        };
        let names = [&raw.video_processor_type, &raw.image_processor_type, &raw.processor_class];
        let newer = names.into_iter().flatten().next().is_some_and(|name| name.starts_with("Glm46V"));
        let sampling = Sampling {
            rule: if newer { SamplingRule::Glm46v } else { SamplingRule::Glm4v },
            fps: check("fps", raw.fps, 1000.0, "more than 0, at most 1000")?,
            max_duration: check("max_duration", raw.max_duration, 86_400.0, "more than 0, at most 86400")?,
            temporal_patch_size: frame.temporal_patch_size,
        };
        Ok(Self { frame, sampling, sample_frames: raw.do_sample_frames })
    }
}

/// The keys that images do not have.
#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    fps: f64,
    max_duration: f64,
    do_sample_frames: bool,
    video_processor_type: Option<String>,
    image_processor_type: Option<String>,
    processor_class: Option<String>,
}

impl Default for Raw {
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
    fn an_empty_configuration_has_the_defaults_of_upstream() {
        let config = VideoConfig::from_json("{}").unwrap();

        assert_eq!((config.frame.min_pixels, config.frame.max_pixels), (12_544, 47_040_000));
        assert_eq!((config.sampling.fps, config.sampling.max_duration), (2.0, 300.0));
        assert_eq!(config.sampling.rule, SamplingRule::Glm4v);
        assert!(config.sample_frames);
    }

    #[test]
    fn the_rule_follows_the_name_of_the_processor() {
        let rule = |json| VideoConfig::from_json(json).unwrap().sampling.rule;

        assert_eq!(rule(r#"{"video_processor_type": "Glm46VVideoProcessor"}"#), SamplingRule::Glm46v);
        // The file of the images, where there is none of its own.
        assert_eq!(rule(r#"{"image_processor_type": "Glm46VImageProcessor"}"#), SamplingRule::Glm46v);
        let both = r#"{"video_processor_type": "Glm4vVideoProcessor", "processor_class": "Glm46VProcessor"}"#;
        assert_eq!(rule(both), SamplingRule::Glm4v);
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let refused = |json| VideoConfig::from_json(json).unwrap_err().to_string();

        assert_eq!(refused(r#"{"fps": 0}"#), "\"fps\" is 0, needed more than 0, at most 1000");
        assert_eq!(
            refused(r#"{"max_duration": -1}"#),
            "\"max_duration\" is -1, needed more than 0, at most 86400"
        );
        assert_eq!(refused(r#"{"resample": 2}"#), "\"resample\" is 2, needed 3 (bicubic)");
    }
}
