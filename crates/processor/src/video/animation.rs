//! Animated GIF, WebP and PNG.
//!
//! The rate of a video is its frames over its length, as torchcodec has it for every file, so frames that
//! stay longer than others are not told apart. A frame without a time stays for a tenth of a second, as
//! in browsers and in ffmpeg.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, Frame, Frames, ImageDecoder, ImageFormat};

use super::reader::Clock;
use super::{VideoError, VideoLimits};
use crate::image::{ImageError, Rgb, to_rgb};

/// An animation; it is decoded anew whenever its frames are read, so that none of them is kept.
pub(super) struct Animation {
    format: ImageFormat,
    bytes: Vec<u8>,
    /// Frames found.
    pub(super) frames: usize,
    /// Sum of their times.
    pub(super) seconds: f64,
}

impl Animation {
    /// Whether a file that begins so may be an animation.
    pub(super) fn format(head: &[u8]) -> Option<ImageFormat> {
        let format = image::guess_format(head).ok()?;
        matches!(format, ImageFormat::Gif | ImageFormat::WebP | ImageFormat::Png).then_some(format)
    }

    pub(super) fn open(
        format: ImageFormat,
        bytes: Vec<u8>,
        name: &str,
        limits: &VideoLimits,
        clock: Clock,
    ) -> Result<Self, VideoError> {
        let mut animation = Self { format, bytes, frames: 0, seconds: 0.0 };
        if format == ImageFormat::Gif {
            // To be sized before anything is decoded.
            animation.decode(name, limits)?;
            (animation.frames, animation.seconds) = animation.gif_times(name, limits)?;
            return Ok(animation);
        }
        // Whole milliseconds add up exactly; tenths of seconds do not, and would move the frames that are taken.
        let (mut count, mut milliseconds) = (0, 0.0);
        for frame in animation.decode(name, limits)? {
            clock.check(name)?;
            let frame = frame.map_err(|problem| animation.damaged(name, count, problem))?;
            count += 1;
            milliseconds += time(&frame);
            if count > limits.max_frames {
                return Err(VideoError::ManyFrames {
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

    /// Frames and length of a GIF, whose frames are only walked over.
    fn gif_times(&self, name: &str, limits: &VideoLimits) -> Result<(usize, f64), VideoError> {
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
            let time = f64::from(frame.delay) * 10.0;
            milliseconds += if time < LEAST_OF_GIF { UNTIMED } else { time };
            if count > limits.max_frames {
                let (found, limit) = (count, limits.max_frames);
                return Err(VideoError::ManyFrames { name: name.to_owned(), found, limit });
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
        clock: Clock,
        each: &mut dyn FnMut(Rgb) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        let mut wanted = wanted.iter().peekable();
        for (index, frame) in self.decode(name, limits)?.enumerate() {
            clock.check(name)?;
            let Some(next) = wanted.peek() else { break };
            let frame = frame.map_err(|problem| self.damaged(name, index, problem))?;
            if **next == index {
                wanted.next();
                let image = to_rgb(DynamicImage::ImageRgba8(frame.into_buffer()), self.format);
                each(image.ok_or_else(|| VideoError::NoFrames { name: name.to_owned() })?)?;
            }
        }
        Ok(())
    }

    fn decode(&self, name: &str, limits: &VideoLimits) -> Result<Frames<'_>, VideoError> {
        let damaged = |problem| self.damaged(name, 0, problem);
        let still = || VideoError::Still { name: name.to_owned() };
        let bytes = Cursor::new(self.bytes.as_slice());
        if let Ok(size) = imagesize::blob_size(&self.bytes) {
            let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
            let checked = limits.frame.check_size(side(size.width), side(size.height), name);
            checked.map_err(|source| VideoError::File(source.into()))?;
        }
        let memory = limits.frame.memory(&self.bytes);
        let check = |(width, height): (u32, u32)| limits.frame.check_size(width, height, name);
        let sized = |size| check(size).map_err(|source| VideoError::File(source.into()));
        match self.format {
            ImageFormat::Gif => {
                let mut decoder = GifDecoder::new(bytes).map_err(damaged)?;
                sized(decoder.dimensions())?;
                decoder.set_limits(memory).map_err(damaged)?;
                Ok(decoder.into_frames())
            }
            ImageFormat::WebP => {
                let mut decoder = WebPDecoder::new(bytes).map_err(damaged)?;
                sized(decoder.dimensions())?;
                decoder.set_limits(memory).map_err(damaged)?;
                if decoder.has_animation() { Ok(decoder.into_frames()) } else { Err(still()) }
            }
            _ => {
                let decoder = PngDecoder::with_limits(bytes, memory).map_err(damaged)?;
                sized(decoder.dimensions())?;
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

/// Milliseconds of a frame without a time.
const UNTIMED: f64 = 100.0;

/// Fewest milliseconds that count in a GIF; ffmpeg's threshold.
const LEAST_OF_GIF: f64 = 20.0;

/// How long a frame of a WebP or PNG stays, in milliseconds.
fn time(frame: &Frame) -> f64 {
    let (numerator, denominator) = frame.delay().numer_denom_ms();
    let time = f64::from(numerator) / f64::from(denominator.max(1));
    if time < f64::MIN_POSITIVE { UNTIMED } else { time }
}
