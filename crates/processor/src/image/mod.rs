//! Images: from a file to the rows that the vision tower reads.
//!
//! [`ImageProcessor`] does what the processor of the checkpoint says (`preprocessor_config.json`):
//! decode, bring to a size that fits the limits, normalise, cut into patches.

mod color_key;
mod config;
mod decode;
mod http;
mod jpeg;
mod patch;
mod resize;
mod smart_resize;

pub use config::{ConfigError, ImageConfig};
pub(crate) use decode::to_rgb;
pub use decode::{DecodeLimits, ImageError};
pub use http::{HttpError, HttpLimits};
pub use resize::resize_bicubic;
pub(crate) use smart_resize::bounded_resize;
pub use smart_resize::{ResizeError, smart_resize};

pub(crate) use patch::{Geometry, Levels};

use image::codecs::png::PngEncoder;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};

use crate::messages::ImageSource;

/// A decoded image, 8 bits, `[H, W, 3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    height: usize,
    width: usize,
    pixels: Vec<u8>,
}

impl Rgb {
    /// Wraps `pixels`, row by row, three bytes each; `None` when their number is not `H * W * 3` or
    /// there are none.
    pub fn new(height: usize, width: usize, pixels: Vec<u8>) -> Option<Self> {
        let needed = height.checked_mul(width)?.checked_mul(3)?;
        (needed == pixels.len() && needed > 0).then_some(Self { height, width, pixels })
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The bytes, row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The image as a PNG file.
    pub(crate) fn to_png(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let written =
            PngEncoder::new(&mut file).write_image(&self.pixels, width, height, ExtendedColorType::Rgb8);
        written.expect("pixels and size agree, and memory takes every file");
        file
    }
}

impl From<DynamicImage> for Rgb {
    /// Sees a decoded image as [`DecodeLimits::load`] sees a file: alpha is dropped, 16-bit grey is clipped.
    ///
    /// (transformers blends an image that it is handed on white; a file it does not.)
    ///
    /// # Panics
    ///
    /// When the image has no pixels.
    fn from(image: DynamicImage) -> Self {
        to_rgb(image, ImageFormat::Png).expect("an image has pixels")
    }
}

/// An image as the vision tower reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchedImage {
    /// `[P, 1176]`, P being the product of the grid.
    pub pixel_values: Vec<f32>,
    /// Frame pairs, patch rows, patch columns.
    pub grid: [usize; 3],
}

/// Turns images into patches, as one checkpoint wants them.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    geometry: Geometry,
    levels: Levels,
    min_pixels: usize,
    max_pixels: usize,
    decode_limits: DecodeLimits,
}

impl ImageProcessor {
    /// Makes a processor from the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// When it is not JSON, or asks for something that the models of this family do not do.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(Self::new(&ImageConfig::from_json(json)?))
    }

    /// Makes a processor from a checked configuration.
    pub fn new(config: &ImageConfig) -> Self {
        Self {
            geometry: Geometry {
                patch: config.patch_size,
                temporal: config.temporal_patch_size,
                merge: config.merge_size,
            },
            levels: Levels::new(config.image_mean, config.image_std, config.rescale_factor),
            min_pixels: config.min_pixels,
            max_pixels: config.max_pixels,
            decode_limits: DecodeLimits::default(),
        }
    }

    /// Replaces the most pixels an image may have, counted over the two frames it is shown for.
    ///
    /// Fewer pixels are fewer tokens: a token is 28 x 28 pixels, so `2 * 28 * 28 * n` gives at most
    /// about `n` tokens. Without this the limit of the checkpoint holds.
    #[must_use]
    pub fn with_max_pixels(mut self, max_pixels: usize) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    /// Replaces the fewest pixels an image may have, counted over the two frames it is shown for.
    #[must_use]
    pub fn with_min_pixels(mut self, min_pixels: usize) -> Self {
        self.min_pixels = min_pixels;
        self
    }

    /// Replaces what an image file may cost before it is refused.
    #[must_use]
    pub fn with_decode_limits(mut self, limits: DecodeLimits) -> Self {
        self.decode_limits = limits;
        self
    }

    /// What an image file may cost before it is refused.
    pub fn decode_limits(&self) -> &DecodeLimits {
        &self.decode_limits
    }

    /// Length of a row of `pixel_values`.
    pub fn row_len(&self) -> usize {
        self.geometry.row_len()
    }

    /// Patches that become one token.
    pub fn patches_per_token(&self) -> usize {
        self.geometry.merge * self.geometry.merge
    }

    /// Reads and decodes an image within the default [`DecodeLimits`].
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is not an image, or is larger than the limits.
    pub fn load_image(source: &ImageSource) -> Result<Rgb, ImageError> {
        DecodeLimits::default().load(source)
    }

    /// The grid that an image of this size gets, without looking at it.
    ///
    /// # Errors
    ///
    /// When one side is over 200 times the other.
    pub fn grid(&self, height: usize, width: usize) -> Result<[usize; 3], ResizeError> {
        let (height, width) = self.target(height, width)?;
        let patch = self.geometry.patch;
        Ok([1, height / patch, width / patch])
    }

    /// Tokens that an image with this grid takes in the prompt.
    pub fn tokens(&self, grid: [usize; 3]) -> usize {
        grid.iter().product::<usize>() / self.patches_per_token()
    }

    /// Resizes, normalises and cuts an image.
    ///
    /// # Errors
    ///
    /// When one side is over 200 times the other.
    pub fn process(&self, image: &Rgb) -> Result<PatchedImage, ImageError> {
        let grid = self.grid(image.height(), image.width())?;
        let [_, rows, columns] = grid;
        let patch = self.geometry.patch;
        let (height, width) = (rows * patch, columns * patch);
        let mut pixel_values = Vec::new();
        if (height, width) == (image.height(), image.width()) {
            self.geometry.cut(&[image], &self.levels, &mut pixel_values);
        } else {
            let resized = resize_bicubic(image, height, width);
            self.geometry.cut(&[&resized], &self.levels, &mut pixel_values);
        }
        Ok(PatchedImage { pixel_values, grid })
    }

    fn target(&self, height: usize, width: usize) -> Result<(usize, usize), ResizeError> {
        let Geometry { patch, temporal, merge } = self.geometry;
        // A still image is shown `temporal` times, and every showing counts.
        let limits = [self.min_pixels, self.max_pixels];
        let allowed = self.decode_limits.max_pixels;
        bounded_resize(temporal, [height, width], temporal, patch * merge, limits, allowed)
    }
}
