//! Target size of an image: multiples of a block, within the limits on pixels.

/// Error of an image or video without a valid target size.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// Fewer frames than one temporal patch holds.
    #[error("t:{frames} must be larger than temporal_factor:{temporal_factor}")]
    Frames {
        /// Frames given.
        frames: usize,
        /// Frames in one temporal patch.
        temporal_factor: usize,
    },
    /// One side is much longer than the other.
    #[error("absolute aspect ratio must be smaller than 200, got {ratio:?}")]
    AspectRatio {
        /// Long side over short side, after bringing the short side to one block.
        ratio: f64,
    },
    /// A minimum above the maximum.
    #[error(
        "at least {min_pixels} and at most {max_pixels} pixels are asked for; needed: a minimum below the maximum"
    )]
    Limits {
        /// Minimum number of pixels.
        min_pixels: usize,
        /// Maximum number of pixels.
        max_pixels: usize,
    },
    /// A target size beyond the limits of decoding.
    #[error(
        "would be enlarged to {width}x{height} pixels, more than {max_pixels} in all; needed: a lower minimum of pixels"
    )]
    Enlarged {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Pixels allowed.
        max_pixels: u64,
    },
    /// A side of zero pixels.
    #[error("an image of {width}x{height} pixels has nothing to see")]
    Empty {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
    },
}

/// Arguments of [`smart_resize`] that are the same for all images, under the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeLimits {
    /// Frames of a temporal patch.
    pub temporal_factor: usize,
    /// Divisor of height and width: side of a block in pixels.
    pub factor: usize,
    /// Minimum number of pixels over all frames.
    pub min_pixels: usize,
    /// Maximum number of pixels over all frames.
    pub max_pixels: usize,
}

/// Height and width, multiples of `factor`, whose volume over all frames is within the limits.
///
/// Follows transformers 5: pixels are counted over `num_frames`, so a still image, which is doubled
/// to fill a temporal patch of two, counts twice. Rounding is Python's, half to even.
///
/// # Errors
///
/// Fewer frames than `temporal_factor`, or a side over 200 times the other. The texts are those of transformers.
pub fn smart_resize(
    num_frames: usize,
    height: usize,
    width: usize,
    limits: ResizeLimits,
) -> Result<(usize, usize), ResizeError> {
    let ResizeLimits { temporal_factor, factor, min_pixels, max_pixels } = limits;
    if num_frames < temporal_factor {
        return Err(ResizeError::Frames { frames: num_frames, temporal_factor });
    }
    if height == 0 || width == 0 {
        return Err(ResizeError::Empty { height, width });
    }
    let (mut h, mut w) = (height as f64, width as f64);
    let block = factor as f64;
    if h < block || w < block {
        let scale = (block / h).max(block / w);
        (h, w) = ((h * scale).trunc(), (w * scale).trunc());
    }
    let ratio = h.max(w) / h.min(w);
    if ratio > 200.0 {
        return Err(ResizeError::AspectRatio { ratio });
    }

    let frames = num_frames as f64;
    let (least, most) = (min_pixels as f64, max_pixels as f64);
    let nearest = |side: f64| (side / block).round_ties_even() * block;
    let (mut h_bar, mut w_bar) = (nearest(h), nearest(w));
    let t_bar = (frames / temporal_factor as f64).round_ties_even() * temporal_factor as f64;
    if t_bar * h_bar * w_bar > most {
        let beta = ((frames * h * w) / most).sqrt();
        let shrunk = |side: f64| block.max((side / beta / block).floor() * block);
        (h_bar, w_bar) = (shrunk(h), shrunk(w));
    } else if t_bar * h_bar * w_bar < least {
        let beta = (least / (frames * h * w)).sqrt();
        let grown = |side: f64| (side * beta / block).ceil() * block;
        (h_bar, w_bar) = (grown(h), grown(w));
    }
    Ok((h_bar as usize, w_bar as usize))
}

impl ResizeLimits {
    /// [`smart_resize`] after a check of the limits themselves, to at most `max_decoded` pixels a frame, which bounds memory.
    pub(crate) fn target_size(
        self,
        num_frames: usize,
        [height, width]: [usize; 2],
        max_decoded: u64,
    ) -> Result<[usize; 2], ResizeError> {
        let Self { min_pixels, max_pixels, .. } = self;
        if min_pixels > max_pixels {
            return Err(ResizeError::Limits { min_pixels, max_pixels });
        }
        let (height, width) = smart_resize(num_frames, height, width, self)?;
        // In f64, where no product of limits overflows.
        if height as f64 * width as f64 > max_decoded as f64 {
            return Err(ResizeError::Enlarged { height, width, max_pixels: max_decoded });
        }
        Ok([height, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(min_pixels: usize, max_pixels: usize) -> ResizeLimits {
        ResizeLimits { temporal_factor: 2, factor: 28, min_pixels, max_pixels }
    }

    fn still(height: usize, width: usize) -> Result<(usize, usize), ResizeError> {
        smart_resize(2, height, width, limits(12_544, 9_633_792))
    }

    #[test]
    fn sizes_are_those_of_published_checkpoints() {
        // Width x height -> patches, as the processors of the published checkpoints print them.
        assert_eq!(still(4000, 6000), Ok((128 * 14, 192 * 14)));
        assert_eq!(still(2200, 1700), Ok((158 * 14, 122 * 14)));
        assert_eq!(still(1080, 1920), Ok((78 * 14, 138 * 14)));
        assert_eq!(still(28, 28), Ok((6 * 14, 6 * 14)));
    }

    #[test]
    fn errors_have_the_texts_of_transformers() {
        let long = still(1, 201).unwrap_err().to_string();
        assert_eq!(long, "absolute aspect ratio must be smaller than 200, got 201.0");
        let short = smart_resize(1, 50, 50, limits(1, 100)).unwrap_err().to_string();
        assert_eq!(short, "t:1 must be larger than temporal_factor:2");
        assert!(still(0, 5).is_err());
    }
}
