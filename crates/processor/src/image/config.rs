//! `preprocessor_config.json`: resizing, normalization and patch sizes of images.

use serde::Deserialize;

/// Error of reading a `preprocessor_config.json` or `video_preprocessor_config.json`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessorConfigError {
    /// Invalid JSON, or a value of the wrong type.
    #[error("not a preprocessor configuration")]
    Json(#[from] serde_json::Error),
    /// A value outside the supported range.
    #[error("\"{key}\" is {found}, needed {needed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value found.
        found: f64,
        /// The supported values.
        needed: &'static str,
    },
    /// A step of preprocessing is disabled; it cannot be left out here.
    #[error("\"{key}\" is false; this version always does that step")]
    DisabledStep {
        /// The key.
        key: &'static str,
    },
}

/// Preprocessing of images under the names of transformers; read with [`from_json`](Self::from_json).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the block that becomes one token.
    pub merge_size: usize,
    /// Minimum number of pixels, counted over the frames of a temporal patch (`size.shortest_edge`).
    pub min_pixels: usize,
    /// Maximum number of pixels, counted over the frames of a temporal patch (`size.longest_edge`).
    pub max_pixels: usize,
    /// Mean of each channel.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel.
    pub image_std: [f64; 3],
    /// Factor from 8-bit values to those that mean and standard deviation apply to, 1/255.
    pub rescale_factor: f64,
}

impl ImageConfig {
    /// Reads and checks the text of a `preprocessor_config.json`; keys left out have the defaults of
    /// transformers' `Glm4vImageProcessor`.
    ///
    /// # Errors
    ///
    /// Invalid JSON, or a value that is not supported.
    pub fn from_json(json: &str) -> Result<Self, PreprocessorConfigError> {
        Self::with_default_pixels(json, [112 * 112, 28 * 28 * 15_000])
    }

    /// [`from_json`](Self::from_json) with other defaults of `min_pixels` and `max_pixels`.
    pub(crate) fn with_default_pixels(
        json: &str,
        [min_pixels, max_pixels]: [usize; 2],
    ) -> Result<Self, PreprocessorConfigError> {
        let raw: RawImageConfig = serde_json::from_str(json)?;
        for (key, on) in
            [("do_resize", raw.do_resize), ("do_rescale", raw.do_rescale), ("do_normalize", raw.do_normalize)]
        {
            if !on {
                return Err(PreprocessorConfigError::DisabledStep { key });
            }
        }
        check_value("resample", raw.resample.into(), raw.resample == 3, "3 (bicubic)")?;
        for (key, value) in [
            ("patch_size", raw.patch_size),
            ("temporal_patch_size", raw.temporal_patch_size),
            ("merge_size", raw.merge_size),
        ] {
            check_value(key, value as f64, (1..=256).contains(&value), "1 to 256")?;
        }
        for value in raw.image_std {
            check_value("image_std", value, value > 0.0, "more than 0")?;
        }
        let factor = raw.rescale_factor;
        check_value("rescale_factor", factor, factor > 0.0, "more than 0")?;
        let size = raw.size.unwrap_or(RawSize { shortest_edge: min_pixels, longest_edge: max_pixels });
        let max_pixels = size.longest_edge;
        check_value("longest_edge", max_pixels as f64, max_pixels > 0, "more than 0")?;
        Ok(Self {
            patch_size: raw.patch_size,
            temporal_patch_size: raw.temporal_patch_size,
            merge_size: raw.merge_size,
            min_pixels: size.shortest_edge,
            max_pixels,
            image_mean: raw.image_mean,
            image_std: raw.image_std,
            rescale_factor: factor,
        })
    }
}

/// An error unless `is_valid`.
pub(crate) fn check_value(
    key: &'static str,
    found: f64,
    is_valid: bool,
    needed: &'static str,
) -> Result<(), PreprocessorConfigError> {
    if is_valid { Ok(()) } else { Err(PreprocessorConfigError::Value { key, found, needed }) }
}

/// The keys as written. Others are ignored, as in transformers.
#[derive(Deserialize)]
#[serde(default)]
#[serde(expecting = "an object")]
struct RawImageConfig {
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    size: Option<RawSize>,
    image_mean: [f64; 3],
    image_std: [f64; 3],
    rescale_factor: f64,
    resample: u32,
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct RawSize {
    shortest_edge: usize,
    longest_edge: usize,
}

impl Default for RawImageConfig {
    fn default() -> Self {
        Self {
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            size: None,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            rescale_factor: 1.0 / 255.0,
            resample: 3,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_has_the_defaults_of_transformers() {
        let config = ImageConfig::from_json("{}").unwrap();
        assert_eq!((config.min_pixels, config.max_pixels), (12_544, 11_760_000));
    }

    #[test]
    fn unsupported_values_are_named() {
        let refused = |json| ImageConfig::from_json(json).unwrap_err().to_string();
        let bicubic = "\"resample\" is 2, needed 3 (bicubic)";
        assert_eq!(refused(r#"{"resample": 2}"#), bicubic);
        let patch = "\"patch_size\" is 0, needed 1 to 256";
        assert_eq!(refused(r#"{"patch_size": 0}"#), patch);
        let off = "\"do_rescale\" is false; this version always does that step";
        assert_eq!(refused(r#"{"do_rescale": false}"#), off);
        assert_eq!(refused("{"), "not a preprocessor configuration");
    }
}
