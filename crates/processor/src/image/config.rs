//! `preprocessor_config.json`: what a checkpoint wants done to an image.

use serde::Deserialize;

/// Why a `preprocessor_config.json` cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or a value of another kind.
    #[error("not a preprocessor configuration")]
    Json(#[from] serde_json::Error),
    /// A value that no model of this family uses.
    #[error("\"{key}\" is {found}, needed {needed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value found.
        found: f64,
        /// What is possible.
        needed: &'static str,
    },
    /// A step that is switched off.
    #[error("\"{key}\" is false; this version always does that step")]
    SwitchedOff {
        /// The key.
        key: &'static str,
    },
}

/// What a checkpoint wants done to an image; read with [`from_json`](Self::from_json).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the block that becomes one token.
    pub merge_size: usize,
    /// Fewest pixels, over the frames of a temporal patch (`size.shortest_edge`).
    pub min_pixels: usize,
    /// Most pixels, over the frames of a temporal patch (`size.longest_edge`).
    pub max_pixels: usize,
    /// Mean of each channel.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel.
    pub image_std: [f64; 3],
    /// What a level of 8 bits is multiplied with.
    pub rescale_factor: f64,
}

impl ImageConfig {
    /// Reads and checks the text of a `preprocessor_config.json`; keys left out have the defaults of
    /// transformers' `Glm4vImageProcessor`.
    ///
    /// # Errors
    ///
    /// When it is not JSON, or asks for something that the models of this family do not do.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Self::or_size(json, [112 * 112, 28 * 28 * 15_000])
    }

    /// [`from_json`](Self::from_json) with the fewest and most pixels where the text does not say.
    pub(crate) fn or_size(json: &str, [least, most]: [usize; 2]) -> Result<Self, ConfigError> {
        let raw: Raw = serde_json::from_str(json)?;
        for (key, on) in
            [("do_resize", raw.do_resize), ("do_rescale", raw.do_rescale), ("do_normalize", raw.do_normalize)]
        {
            if !on {
                return Err(ConfigError::SwitchedOff { key });
            }
        }
        let check = |key, value: f64, good: bool, needed| match good {
            true => Ok(()),
            false => Err(ConfigError::Value { key, found: value, needed }),
        };
        check("resample", raw.resample.into(), raw.resample == 3, "3 (bicubic)")?;
        for (key, value) in [
            ("patch_size", raw.patch_size),
            ("temporal_patch_size", raw.temporal_patch_size),
            ("merge_size", raw.merge_size),
        ] {
            check(key, value as f64, (1..=256).contains(&value), "1 to 256")?;
        }
        for value in raw.image_std {
            check("image_std", value, value > 0.0, "more than 0")?;
        }
        let factor = raw.rescale_factor;
        check("rescale_factor", factor, factor > 0.0, "more than 0")?;
        let size = raw.size.unwrap_or(Size { shortest_edge: least, longest_edge: most });
        let most = size.longest_edge;
        check("longest_edge", most as f64, most > 0, "more than 0")?;
        Ok(Self {
            patch_size: raw.patch_size,
            temporal_patch_size: raw.temporal_patch_size,
            merge_size: raw.merge_size,
            min_pixels: size.shortest_edge,
            max_pixels: most,
            image_mean: raw.image_mean,
            image_std: raw.image_std,
            rescale_factor: factor,
        })
    }
}

/// The keys as written. Unknown ones are upstream's business and stay unread.
#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    size: Option<Size>,
    image_mean: [f64; 3],
    image_std: [f64; 3],
    rescale_factor: f64,
    resample: u32,
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
}

#[derive(Deserialize)]
struct Size {
    shortest_edge: usize,
    longest_edge: usize,
}

impl Default for Raw {
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
    fn an_empty_configuration_has_the_defaults_of_upstream() {
        let config = ImageConfig::from_json("{}").unwrap();
        assert_eq!((config.min_pixels, config.max_pixels), (12_544, 11_760_000));
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
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
