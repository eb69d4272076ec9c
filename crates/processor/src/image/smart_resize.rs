//! The size that an image is brought to before it is cut into patches.

/// Why an image has no size that the model could take.
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
    /// Limits that exclude each other.
    #[error(
        "at least {min_pixels} and at most {max_pixels} pixels are asked for; needed: a minimum below the maximum"
    )]
    Limits {
        /// Fewest pixels.
        min_pixels: usize,
        /// Most pixels.
        max_pixels: usize,
    },
    /// A size that the limits of decoding would refuse.
    #[error(
        "would be enlarged to {width}x{height} pixels, more than {max_pixels} in all; needed: a lower minimum of pixels"
    )]
    Enlarged {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Most pixels allowed.
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

/// Height and width, multiples of `factor`, whose volume over all frames is within the limits.
///
/// Follows transformers 5: pixels are counted over `num_frames`, so a still image, which is doubled
/// to fill a temporal patch of two, counts twice. Rounding is Python's, half to even.
///
/// # Errors
///
/// Fewer frames than `temporal_factor`, or a side over 200 times the other. The texts are upstream's.
pub fn smart_resize(
    num_frames: usize,
    height: usize,
    width: usize,
    temporal_factor: usize,
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> Result<(usize, usize), ResizeError> {
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

/// [`smart_resize`] within limits that make sense, to a size that can be held in memory.
pub(crate) fn bounded_resize(
    num_frames: usize,
    [height, width]: [usize; 2],
    temporal_factor: usize,
    factor: usize,
    [min_pixels, max_pixels]: [usize; 2],
    allowed: u64,
) -> Result<(usize, usize), ResizeError> {
    if min_pixels > max_pixels {
        return Err(ResizeError::Limits { min_pixels, max_pixels });
    }
    let (height, width) =
        smart_resize(num_frames, height, width, temporal_factor, factor, min_pixels, max_pixels)?;
    // In f64, where no product of limits overflows.
    if height as f64 * width as f64 > allowed as f64 {
        return Err(ResizeError::Enlarged { height, width, max_pixels: allowed });
    }
    Ok((height, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn still(height: usize, width: usize) -> Result<(usize, usize), ResizeError> {
        smart_resize(2, height, width, 2, 28, 12_544, 9_633_792)
    }

    #[test]
    fn sizes_of_published_checkpoints_are_met() {
        // Width x height -> patches, as the processors of the published checkpoints print them.
        assert_eq!(still(4000, 6000), Ok((128 * 14, 192 * 14)));
        assert_eq!(still(2200, 1700), Ok((158 * 14, 122 * 14)));
        assert_eq!(still(1080, 1920), Ok((78 * 14, 138 * 14)));
        assert_eq!(still(28, 28), Ok((6 * 14, 6 * 14)));
    }

    #[test]
    fn errors_speak_like_upstream() {
        let long = still(1, 201).unwrap_err().to_string();
        assert_eq!(long, "absolute aspect ratio must be smaller than 200, got 201.0");
        let short = smart_resize(1, 50, 50, 2, 28, 1, 100).unwrap_err().to_string();
        assert_eq!(short, "t:1 must be larger than temporal_factor:2");
        assert!(still(0, 5).is_err());
    }
}
