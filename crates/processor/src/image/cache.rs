//! Where resized images outlive their processor.

use std::fmt;

use super::decode::ImageError;
use crate::media::Rgb;

/// A cache of images at the size that the model reads, 8 bits a channel.
///
/// Decoding and resizing are most of the work on an image; patches are made anew from what is kept, to the bit.
pub trait ImageCache: fmt::Debug + Send + Sync {
    /// The resized image of a file, from the cache or from `make`. `settings` are those that it depends on besides the `file`'s bytes.
    ///
    /// # Errors
    ///
    /// Those of `make`. A cache that fails calls `make`.
    fn get_or_make(
        &self,
        file: &[u8],
        settings: &str,
        make: &mut dyn FnMut() -> Result<Rgb, ImageError>,
    ) -> Result<Rgb, ImageError>;
}
