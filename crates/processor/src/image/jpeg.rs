//! JPEG decoding, bit for bit as in Pillow, and a check for truncated files.
//!
//! Pillow carries libjpeg-turbo, whose inverse transform, upsampling and color conversion decide the last
//! bits of every pixel; libjpeg-turbo-rs is a port of it to Rust that keeps them. Other decoders do not:
//! zune-jpeg 0.5.15, which the `image` crate uses, is off by up to 6 of 255 levels, jpeg-decoder 0.3.2 too.
//! Proof: `crates/processor/tests/image_golden.rs`.
//!
//! Decoders may fill missing parts with gray without an error, and a model would learn from the gray. So the segments are parsed
//! up to the end-of-image marker first, and a damaged scan is an error.

use image::ImageFormat;
use image::error::{
    DecodingError, ImageError, ImageFormatHint, LimitError, LimitErrorKind, UnsupportedError,
    UnsupportedErrorKind,
};
use image::metadata::Orientation;
use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat};
use memchr::memchr;

/// Maximum scans of a progressive file. Encoders write about ten; each costs a pass over the whole image, however few bytes it
/// has.
const MAX_SCANS: usize = 100;

/// A decoder that has read the header.
pub(super) struct Jpeg<'a>(Decoder<'a>);

impl<'a> Jpeg<'a> {
    /// Reads the header; decoding may take `max_memory` bytes.
    pub(super) fn open(bytes: &'a [u8], max_memory: u64) -> Result<Self, ImageError> {
        let limits =
            DecodeLimits { max_scans: MAX_SCANS, max_memory: Some(max_memory), ..DecodeLimits::default() };
        let decoder = Decoder::new_with_limits(bytes, limits).map_err(damaged)?;
        // Pillow refuses it too, and the decoder would return the upper bits only.
        let precision = decoder.header().precision;
        if precision != 8 {
            let kind = UnsupportedErrorKind::GenericFeature(format!("{precision} bits a sample, needed 8"));
            let format = ImageFormatHint::Exact(ImageFormat::Jpeg);
            return Err(ImageError::Unsupported(UnsupportedError::from_format_and_kind(format, kind)));
        }
        // On by default in libjpeg: it smooths progressive files without their finer scans.
        Ok(Self(decoder.with_output_format(PixelFormat::Rgb).with_block_smoothing(true)))
    }

    /// Width and height in pixels.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        let header = self.0.header();
        (u32::from(header.width), u32::from(header.height))
    }

    /// Orientation in the EXIF data.
    pub(super) fn orientation(&self) -> Orientation {
        let value = self.0.exif_orientation();
        value.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }

    /// Decodes to RGB, three bytes a pixel.
    pub(super) fn pixels(&self) -> Result<Vec<u8>, ImageError> {
        Ok(self.0.decode_image().map_err(damaged)?.data)
    }
}

fn damaged(error: JpegError) -> ImageError {
    match error {
        JpegError::UnexpectedEof => std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
        JpegError::AllocationFailed { .. } => {
            ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory))
        }
        error => ImageError::Decoding(DecodingError::new(ImageFormatHint::Exact(ImageFormat::Jpeg), error)),
    }
}

const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;

/// Whether the segments of a JPEG file reach its end-of-image marker.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let mut at = 2; // past the start-of-image marker
    let mut in_scan = false;
    while let Some(offset) = bytes.get(at..).and_then(|rest| memchr(0xFF, rest)) {
        at += offset + 1;
        match bytes.get(at) {
            None => return false,
            // A stuffed byte of a scan, a restart marker, or a fill byte before a marker.
            Some(0x00 | 0x01 | 0xD0..=0xD7) => at += 1,
            Some(0xFF) => {}
            Some(&END_OF_IMAGE) => return in_scan,
            Some(&marker) => {
                in_scan |= marker == START_OF_SCAN;
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else {
                    return false;
                };
                at += 1 + usize::from(u16::from_be_bytes([high, low]));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    // Start, one segment whose payload looks like an end marker, a scan, data with a stuffed byte, end.
    const FILE: &[u8] = &[
        0xFF, 0xD8, 0xFF, 0xE1, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 2, 7, 0xFF, 0x00, 0xFF, 0xD0, 9, 0xFF, 0xD9,
    ];

    #[test]
    fn only_the_whole_file_is_complete() {
        assert!(is_complete(FILE));
        for len in 0..FILE.len() {
            assert!(!is_complete(&FILE[..len]), "the first {len} bytes");
        }
    }
}
