//! Animated GIF, WebP and PNG.
//!
//! The frame rate is the number of frames over the duration, as in torchcodec, even where the delays of frames differ. A frame
//! without a delay counts as a tenth of a second, as in browsers and in ffmpeg.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frame, Frames, ImageDecoder, ImageFormat};

use super::deadline::Deadline;
use super::error::VideoError;
use super::limits::VideoLimits;
use crate::image::{ImageError, convert_to_rgb, saturating_side};
use crate::media::Rgb;

/// An animation. Its frames are decoded again for every read, so that none is kept in memory.
pub(super) struct Animation {
    format: ImageFormat,
    bytes: Vec<u8>,
    /// Number of frames.
    pub(super) frames: usize,
    /// Sum of their delays.
    pub(super) seconds: f64,
}

impl Animation {
    /// The format of a file by its first bytes, if it can be an animation.
    pub(super) fn format(head: &[u8]) -> Option<ImageFormat> {
        let format = image::guess_format(head).ok()?;
        matches!(format, ImageFormat::Gif | ImageFormat::WebP | ImageFormat::Png).then_some(format)
    }

    pub(super) fn open(
        format: ImageFormat,
        bytes: Vec<u8>,
        name: &str,
        limits: &VideoLimits,
        deadline: Deadline,
    ) -> Result<Self, VideoError> {
        let mut animation = Self { format, bytes, frames: 0, seconds: 0.0 };
        if format == ImageFormat::Gif {
            // Checks the size in the header.
            animation.decode(name, limits)?;
            (animation.frames, animation.seconds) = animation.gif_frames_and_seconds(name, limits)?;
            return Ok(animation);
        }
        // Sums of whole milliseconds are exact; those of tenths of seconds are not, and would change the sampled frames.
        let (mut count, mut milliseconds) = (0, 0.0);
        for frame in animation.decode(name, limits)? {
            deadline.check(name)?;
            let frame = frame.map_err(|problem| animation.damaged(name, count, problem))?;
            count += 1;
            milliseconds += delay_ms(&frame);
            if count > limits.max_frames {
                return Err(VideoError::TooManyFrames {
                    name: name.to_owned(),
                    found: count,
                    limit: limits.max_frames,
                });
            }
        }
        if count == 0 {
            return Err(VideoError::NoFrames { name: name.to_owned() });
        }
        (animation.frames, animation.seconds) = (count, milliseconds / 1000.0);
        Ok(animation)
    }

    /// Frames and duration of a GIF, from the headers of its frames.
    fn gif_frames_and_seconds(&self, name: &str, limits: &VideoLimits) -> Result<(usize, f64), VideoError> {
        let mut options = gif::DecodeOptions::new();
        options.skip_frame_decoding(true);
        let damaged = |frame, problem: gif::DecodingError| {
            let problem = image::error::DecodingError::new(ImageFormat::Gif.into(), problem);
            self.damaged(name, frame, image::ImageError::Decoding(problem))
        };
        let mut decoder = options.read_info(self.bytes.as_slice()).map_err(|problem| damaged(0, problem))?;
        let (mut count, mut milliseconds) = (0, 0.0);
        while let Some(frame) = decoder.next_frame_info().map_err(|problem| damaged(count, problem))? {
            count += 1;
            let delay = f64::from(frame.delay) * 10.0;
            milliseconds += if delay < MIN_GIF_DELAY_MS { DEFAULT_DELAY_MS } else { delay };
            if count > limits.max_frames {
                let (found, limit) = (count, limits.max_frames);
                return Err(VideoError::TooManyFrames { name: name.to_owned(), found, limit });
            }
        }
        if count == 0 {
            return Err(VideoError::NoFrames { name: name.to_owned() });
        }
        Ok((count, milliseconds / 1000.0))
    }

    pub(super) fn read(
        &self,
        wanted: &[usize],
        name: &str,
        limits: &VideoLimits,
        deadline: Deadline,
        on_frame: &mut dyn FnMut(Rgb) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        let mut wanted = wanted.iter().peekable();
        for (index, frame) in self.decode(name, limits)?.enumerate() {
            deadline.check(name)?;
            let Some(next) = wanted.peek() else { break };
            let frame = frame.map_err(|problem| self.damaged(name, index, problem))?;
            if **next == index {
                wanted.next();
                let image = convert_to_rgb(DynamicImage::ImageRgba8(frame.into_buffer()), self.format);
                on_frame(image.ok_or_else(|| VideoError::NoFrames { name: name.to_owned() })?)?;
            }
        }
        Ok(())
    }

    fn decode(&self, name: &str, limits: &VideoLimits) -> Result<Frames<'_>, VideoError> {
        let damaged = |problem| self.damaged(name, 0, problem);
        let still = || VideoError::Still { name: name.to_owned() };
        let bytes = Cursor::new(self.bytes.as_slice());
        if let Ok(size) = imagesize::blob_size(&self.bytes) {
            limits.check_frame_size(saturating_side(size.width), saturating_side(size.height), name)?;
        }
        let memory = limits.frame.memory_limits(&self.bytes);
        match self.format {
            ImageFormat::Gif => {
                let mut decoder = GifDecoder::new(bytes).map_err(damaged)?;
                let (width, height) = decoder.dimensions();
                limits.check_frame_size(width, height, name)?;
                decoder.set_limits(memory).map_err(damaged)?;
                Ok(decoder.into_frames())
            }
            ImageFormat::WebP => {
                let mut decoder = WebPDecoder::new(bytes).map_err(damaged)?;
                let (width, height) = decoder.dimensions();
                limits.check_frame_size(width, height, name)?;
                decoder.set_limits(memory).map_err(damaged)?;
                if decoder.has_animation() { Ok(decoder.into_frames()) } else { Err(still()) }
            }
            _ => {
                let decoder = PngDecoder::with_limits(bytes, memory).map_err(damaged)?;
                let (width, height) = decoder.dimensions();
                limits.check_frame_size(width, height, name)?;
                match decoder.is_apng().map_err(damaged)? {
                    true => Ok(decoder.apng().map_err(damaged)?.into_frames()),
                    false => Err(still()),
                }
            }
        }
    }

    fn damaged(&self, name: &str, frame: usize, problem: image::ImageError) -> VideoError {
        let format = match self.format {
            ImageFormat::Gif => "gif",
            ImageFormat::WebP => "webp",
            _ => "png",
        };
        let source = ImageError::Decode { name: name.to_owned(), format, source: problem };
        VideoError::Frame { name: name.to_owned(), frame, source: source.into() }
    }
}

/// Delay of a frame without one.
const DEFAULT_DELAY_MS: f64 = 100.0;

/// Shorter delays in a GIF count as none; ffmpeg's threshold.
const MIN_GIF_DELAY_MS: f64 = 20.0;

/// Delay of a frame of a WebP or PNG.
fn delay_ms(frame: &Frame) -> f64 {
    let (numerator, denominator) = frame.delay().numer_denom_ms();
    let delay = f64::from(numerator) / f64::from(denominator.max(1));
    if delay < f64::MIN_POSITIVE { DEFAULT_DELAY_MS } else { delay }
}
