//! Images: from a file to the `pixel_values` of the vision tower.
//!
//! [`ImageProcessor`] follows `preprocessor_config.json`: decode, resize within the limits, normalize, split into patches.

mod cache;
mod color_key;
mod config;
mod decode;
mod http;
mod jpeg;
mod patch;
mod resize;
mod smart_resize;

pub use cache::ImageCache;
pub(crate) use config::check_value;
pub use config::{ImageConfig, PreprocessorConfigError};
pub use decode::{DecodeLimits, ImageError};
pub(crate) use decode::{ImageFile, convert_to_rgb, saturating_side};
pub use http::{HttpError, HttpLimits};
pub use resize::resize_bicubic;
pub use smart_resize::{ResizeError, ResizeLimits, smart_resize};

pub(crate) use patch::{NormalizationTable, PatchGeometry};

use crate::media::{ImageSource, Rgb};

/// Patches of an image, the input of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchedImage {
    /// `[P, 1176]`, where `P` is the product of the grid.
    pub pixel_values: Vec<f32>,
    /// `grid_thw`: patches along time, height and width.
    pub grid: [usize; 3],
}

/// Turns images into patches, with the settings of one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    geometry: PatchGeometry,
    normalization: NormalizationTable,
    min_pixels: usize,
    max_pixels: usize,
    decode_limits: DecodeLimits,
}

impl ImageProcessor {
    /// A processor with the settings of a `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// Invalid JSON, or a value that is not supported.
    pub fn from_json(json: &str) -> Result<Self, PreprocessorConfigError> {
        Ok(Self::new(&ImageConfig::from_json(json)?))
    }

    /// A processor with these settings.
    pub fn new(config: &ImageConfig) -> Self {
        Self {
            geometry: PatchGeometry {
                patch_size: config.patch_size,
                temporal_patch_size: config.temporal_patch_size,
                merge_size: config.merge_size,
            },
            normalization: NormalizationTable::new(
                config.image_mean,
                config.image_std,
                config.rescale_factor,
            ),
            min_pixels: config.min_pixels,
            max_pixels: config.max_pixels,
            decode_limits: DecodeLimits::default(),
        }
    }

    /// Sets the maximum number of pixels per image, counted over both frames of a temporal patch.
    ///
    /// Fewer pixels are fewer tokens: a token is 28 x 28 pixels, so `2 * 28 * 28 * n` gives at most about `n` tokens. The
    /// default is the limit of the checkpoint.
    #[must_use]
    pub fn with_max_pixels(mut self, max_pixels: usize) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    /// Sets the minimum number of pixels per image, counted over both frames of a temporal patch.
    #[must_use]
    pub fn with_min_pixels(mut self, min_pixels: usize) -> Self {
        self.min_pixels = min_pixels;
        self
    }

    /// Sets the limits of decoding.
    #[must_use]
    pub fn with_decode_limits(mut self, limits: DecodeLimits) -> Self {
        self.decode_limits = limits;
        self
    }

    /// The limits of decoding.
    pub fn decode_limits(&self) -> &DecodeLimits {
        &self.decode_limits
    }

    /// Values in a row of `pixel_values`: `3 * temporal_patch_size * patch_size^2`.
    pub fn row_len(&self) -> usize {
        self.geometry.row_len()
    }

    /// Height and width of a patch in pixels.
    pub fn patch_size(&self) -> usize {
        self.geometry.patch_size
    }

    /// Minimum number of pixels per image, counted over both frames of a temporal patch.
    pub fn min_pixels(&self) -> usize {
        self.min_pixels
    }

    /// Copies of a still image in a temporal patch.
    pub fn temporal_patch_size(&self) -> usize {
        self.geometry.temporal_patch_size
    }

    /// Patches merged into one token: `merge_size^2`.
    pub fn patches_per_token(&self) -> usize {
        self.geometry.merge_size * self.geometry.merge_size
    }

    /// Reads and decodes an image within the default [`DecodeLimits`].
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is not an image, or is larger than the limits.
    pub fn load_image(source: &ImageSource) -> Result<Rgb, ImageError> {
        DecodeLimits::default().load(source)
    }

    /// `grid_thw` of an image of this size.
    ///
    /// # Errors
    ///
    /// When one side is over 200 times the other.
    pub fn grid(&self, height: usize, width: usize) -> Result<[usize; 3], ResizeError> {
        let [height, width] = self.target_size(height, width)?;
        let patch = self.geometry.patch_size;
        Ok([1, height / patch, width / patch])
    }

    /// Tokens of an image with this grid in the prompt.
    pub fn tokens(&self, grid: [usize; 3]) -> usize {
        grid.iter().product::<usize>() / self.patches_per_token()
    }

    /// Resizes, normalizes and splits an image into patches.
    ///
    /// # Errors
    ///
    /// When one side is over 200 times the other.
    pub fn process(&self, image: &Rgb) -> Result<PatchedImage, ImageError> {
        Ok(match self.resized(image)? {
            Some(resized) => self.patchify(&resized),
            None => self.patchify(image),
        })
    }

    /// As [`process`](Self::process) of a source, whose resized image comes from a cache if it is there.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is not an image, is larger than the limits, or has one side over 200 times the other.
    pub fn process_cached(
        &self,
        source: &ImageSource,
        cache: &dyn ImageCache,
    ) -> Result<PatchedImage, ImageError> {
        let (bytes, name) = match self.decode_limits.file(source)? {
            ImageFile::Encoded { bytes, name } => (bytes, name),
            ImageFile::Decoded(image) => return self.process(image),
        };
        let mut make = || {
            let image = self.decode_limits.decode(&bytes, &name)?;
            Ok(self.resized(&image)?.unwrap_or(image))
        };
        let image = cache.get_or_make(&bytes, &self.cache_settings(), &mut make)?;
        // A file of the cache is a file of somebody else's.
        let block = self.geometry.patch_size * self.geometry.merge_size;
        let fits = image.height().is_multiple_of(block) && image.width().is_multiple_of(block);
        Ok(self.patchify(&if fits { image } else { make()? }))
    }

    /// The image at the size of its grid; none if it has that size.
    fn resized(&self, image: &Rgb) -> Result<Option<Rgb>, ResizeError> {
        let [height, width] = self.target_size(image.height(), image.width())?;
        let resize = [height, width] != [image.height(), image.width()];
        Ok(resize.then(|| resize_bicubic(image, height, width)))
    }

    /// The patches of an image at the size of its grid.
    fn patchify(&self, image: &Rgb) -> PatchedImage {
        let patch = self.geometry.patch_size;
        let mut pixel_values = Vec::new();
        self.geometry.patchify(&[image], &self.normalization, &mut pixel_values);
        PatchedImage { pixel_values, grid: [1, image.height() / patch, image.width() / patch] }
    }

    /// Everything that decides which resized image a file becomes, or whether it is refused.
    fn cache_settings(&self) -> String {
        let Self { geometry, min_pixels, max_pixels, decode_limits, normalization: _ } = self;
        let PatchGeometry { patch_size, temporal_patch_size, merge_size } = geometry;
        let DecodeLimits { max_side, max_pixels: max_decoded, max_file_bytes, max_memory, http: _ } =
            decode_limits;
        format!(
            "patches {patch_size} {temporal_patch_size} {merge_size}, pixels {min_pixels} {max_pixels}, \
             limits {max_side} {max_decoded} {max_file_bytes} {max_memory}"
        )
    }

    fn target_size(&self, height: usize, width: usize) -> Result<[usize; 2], ResizeError> {
        let PatchGeometry { patch_size, temporal_patch_size, merge_size } = self.geometry;
        let limits = ResizeLimits {
            temporal_factor: temporal_patch_size,
            factor: patch_size * merge_size,
            min_pixels: self.min_pixels,
            max_pixels: self.max_pixels,
        };
        // A still image fills a temporal patch alone, and every copy counts.
        limits.target_size(temporal_patch_size, [height, width], self.decode_limits.max_pixels)
    }
}
