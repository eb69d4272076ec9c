//! Image files to 8-bit RGB, as transformers' `load_image` decodes them.
//!
//! transformers treats images differently by how they are passed; this is `load_image` (Pillow):
//!
//! - the EXIF orientation is applied;
//! - alpha is dropped, not blended; a single transparent color (PNG `tRNS`, GIF) becomes white;
//! - 16-bit gray is clipped at 255, other 16-bit images keep their high byte;
//! - of an animation the first frame is taken.
//!
//! Every format is equal to the bit; JPEG has its own decoder for that, see `jpeg.rs`. Some kinds of TIFF that Pillow reads are
//! refused (palettes, YCbCr, floats, fax and newer compressions), and JPEG inside of TIFF differs by a level here and there.
//!
//! A file is refused by its header before its pixels are allocated, see [`DecodeLimits`], and a JPEG or PNG that ends early is an
//! error, not an image with a gray rest.

use std::borrow::Cow;
use std::fs;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use glm4v_files::FileError;
use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, Limits};
use memchr::memmem;

use super::http::{HttpError, HttpLimits};
use super::jpeg::Jpeg;
use super::smart_resize::ResizeError;
use super::{color_key, jpeg};
use crate::media::{ImageSource, Rgb};
use crate::warning_throttle::WarningThrottle;

/// Error of loading an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The path is empty.
    #[error("the path of the image is empty, needed an image file")]
    NoPath,
    /// The file is longer than allowed.
    #[error("{name}: {bytes} bytes, more than the limit of {limit}")]
    FileSize {
        /// Path, or a description of another source.
        name: String,
        /// Length of the file.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The file has no bytes.
    #[error("{name}: is empty")]
    Empty {
        /// Path, or a description of another source.
        name: String,
    },
    /// The format is not supported.
    #[error("{name}: not an image; png, jpeg, webp, gif, bmp and tiff are known")]
    NotAnImage {
        /// Path, or a description of another source.
        name: String,
    },
    /// The header declares more pixels than allowed.
    #[error("{name}: announces {width}x{height} pixels, more than {max_side} a side or {max_pixels} in all")]
    TooLarge {
        /// Path, or a description of another source.
        name: String,
        /// Width in pixels, from the header.
        width: u32,
        /// Height in pixels, from the header.
        height: u32,
        /// Longest side allowed.
        max_side: u32,
        /// Pixels allowed.
        max_pixels: u64,
    },
    /// The file ends early.
    #[error("{name}: ends early, the file is cut off")]
    Truncated {
        /// Path, or a description of another source.
        name: String,
    },
    /// The file is damaged, or uses an unsupported feature of its format.
    #[error("{name}: damaged or unsupported {format}")]
    Decode {
        /// Path, or a description of another source.
        name: String,
        /// Format by the first bytes of the file.
        format: &'static str,
        /// Error of the decoder.
        #[source]
        source: image::ImageError,
    },
    /// An `http(s)` URL, while downloads are off.
    #[error("{url}: fetching over the network is off; needed: a local path or a data: URL")]
    Remote {
        /// The URL.
        url: String,
    },
    /// The download failed.
    #[error("{url}: cannot be fetched")]
    Http {
        /// The URL.
        url: String,
        /// Error of the download.
        #[source]
        source: HttpError,
    },
    /// A `data:` URL without base64 data.
    #[error("data URL: has no ;base64, in it; needed: data:<type>;base64,<data>")]
    DataUrl,
    /// A `data:` URL with invalid base64.
    #[error("data URL: the base64 is damaged: {0}")]
    Base64(base64::DecodeError),
    /// A URL with an unsupported scheme.
    #[error("{url}: unknown kind of URL; http, https, data and file are known")]
    Scheme {
        /// The URL.
        url: String,
    },
    /// The image has no valid target size.
    #[error(transparent)]
    Resize(#[from] ResizeError),
}

/// Limits of loading an image; beyond them a file is refused before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Maximum side in pixels; 16384.
    pub max_side: u32,
    /// Maximum number of pixels; 89,478,485, where Pillow starts to warn of decompression bombs (256 MiB of RGB).
    pub max_pixels: u64,
    /// Maximum bytes of a file; 256 MiB.
    pub max_file_bytes: u64,
    /// Maximum bytes that a decoder may allocate for one image; 1 GiB.
    pub max_memory: u64,
    /// Limits of downloads from `http(s)` URLs; off by default.
    pub http: Option<HttpLimits>,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            max_side: 16_384,
            max_pixels: 89_478_485,
            max_file_bytes: 256 << 20,
            max_memory: 1 << 30,
            http: None,
        }
    }
}

/// An image that was read, and not yet decoded.
pub(crate) enum ImageFile<'a> {
    /// The bytes of a file.
    Encoded {
        bytes: Cow<'a, [u8]>,
        /// Path, or a description of another source.
        name: String,
    },
    /// An image that needs no decoding.
    Decoded(&'a Rgb),
}

impl DecodeLimits {
    /// Reads and decodes an image.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is not an image, or is larger than these limits.
    pub fn load(&self, source: &ImageSource) -> Result<Rgb, ImageError> {
        match self.file(source)? {
            ImageFile::Encoded { bytes, name } => self.decode(&bytes, &name),
            ImageFile::Decoded(image) => Ok(image.clone()),
        }
    }

    /// Reads an image without decoding it.
    pub(crate) fn file<'a>(&self, source: &'a ImageSource) -> Result<ImageFile<'a>, ImageError> {
        let (bytes, name) = match source {
            ImageSource::Path(path) => (self.read(path)?.into(), path.display().to_string()),
            ImageSource::Bytes(bytes) => (bytes.into(), "image in memory".to_owned()),
            ImageSource::Url(url) => {
                let name = if url.starts_with("http") { url.as_str() } else { "data URL" };
                (self.fetch(url)?.into(), name.to_owned())
            }
            ImageSource::Pixels(image) => {
                self.check_size(image.width() as u32, image.height() as u32, "image in memory")?;
                return Ok(ImageFile::Decoded(image));
            }
        };
        Ok(ImageFile::Encoded { bytes, name })
    }

    /// Height and width of an image, from its header where that tells.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is not an image, or is larger than these limits.
    pub fn size(&self, source: &ImageSource) -> Result<[usize; 2], ImageError> {
        if let Some((width, height)) = self.probe(source)? {
            return Ok([height as usize, width as usize]);
        }
        let image = self.load(source)?;
        Ok([image.height(), image.width()])
    }

    pub(crate) fn read(&self, path: &Path) -> Result<Vec<u8>, ImageError> {
        self.check_file(path)?;
        Ok(glm4v_files::read(path, self.max_file_bytes)?)
    }

    /// Checks path and length of a file before it is opened.
    fn check_file(&self, path: &Path) -> Result<(), ImageError> {
        if path.as_os_str().is_empty() {
            return Err(ImageError::NoPath);
        }
        let name = || path.display().to_string();
        match fs::metadata(path) {
            Ok(found) if found.is_file() && found.len() == 0 => Err(ImageError::Empty { name: name() }),
            Ok(found) => self.check_len(found.len(), name),
            Err(_) => Ok(()), // reported when it is opened
        }
    }

    /// Checks that an image exists and is within the limits without decoding it; width and height, where the header is
    /// read and has them.
    pub(crate) fn probe(&self, source: &ImageSource) -> Result<Option<(u32, u32)>, ImageError> {
        match source {
            ImageSource::Path(path) => {
                self.check_file(path)?;
                let file = glm4v_files::open(path)?;
                self.probe_header(BufReader::with_capacity(HEADER_BYTES, file), &path.display().to_string())
            }
            ImageSource::Bytes(bytes) => self.probe_header(Cursor::new(bytes), "image in memory"),
            ImageSource::Pixels(image) => Ok(Some((image.width() as u32, image.height() as u32))),
            ImageSource::Url(url) if url.starts_with("data:") => Ok(None),
            ImageSource::Url(url) if self.http.is_none() => self.fetch(url).map(|_| None),
            ImageSource::Url(_) => Ok(None),
        }
    }

    fn probe_header(
        &self,
        mut file: impl BufRead + Seek,
        name: &str,
    ) -> Result<Option<(u32, u32)>, ImageError> {
        let format = file.fill_buf().ok().and_then(guess_format);
        if format.is_none() {
            return Err(ImageError::NotAnImage { name: name.to_owned() });
        }
        // A damaged header is reported by the decoder, with the reason.
        let Ok(size) = imagesize::reader_size(file) else { return Ok(None) };
        let (width, height) = (saturating_side(size.width), saturating_side(size.height));
        self.check_size(width, height, name)?;
        Ok((width > 0 && height > 0).then_some((width, height)))
    }

    /// The bytes of a `data:` URL, or of an `http(s)` URL where that is allowed.
    pub(crate) fn fetch(&self, url: &str) -> Result<Vec<u8>, ImageError> {
        let is = |scheme: &str| url.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
        if is("data:") {
            return self.decode_data_url(url);
        }
        if !is("http") {
            return Err(ImageError::Scheme { url: url.to_owned() });
        }
        let Some(http) = &self.http else {
            return Err(ImageError::Remote { url: url.to_owned() });
        };
        let body = http.fetch(url, self.max_file_bytes);
        body.map_err(|source| ImageError::Http { url: url.to_owned(), source })
    }

    fn decode_data_url(&self, url: &str) -> Result<Vec<u8>, ImageError> {
        let (head, data) = url.split_once(',').ok_or(ImageError::DataUrl)?;
        if !head.ends_with(";base64") {
            return Err(ImageError::DataUrl);
        }
        self.check_len(data.len() as u64 / 4 * 3, || "data URL".to_owned())?;
        // As lenient as Python: line breaks are skipped, and the padding may be missing.
        let data = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>();
        let url_safe = data.iter().any(|byte| matches!(byte, b'-' | b'_'));
        let engine = GeneralPurpose::new(if url_safe { &URL_SAFE } else { &STANDARD }, PADDING);
        engine.decode(data).map_err(ImageError::Base64)
    }

    fn check_len(&self, bytes: u64, name: impl Fn() -> String) -> Result<(), ImageError> {
        if bytes > self.max_file_bytes {
            return Err(ImageError::FileSize { name: name(), bytes, limit: self.max_file_bytes });
        }
        Ok(())
    }

    /// Compares the size in a header with the limits.
    pub(crate) fn check_size(&self, width: u32, height: u32, name: &str) -> Result<(), ImageError> {
        let pixels = u64::from(width) * u64::from(height);
        if width.max(height) > self.max_side || pixels > self.max_pixels {
            return Err(ImageError::TooLarge {
                name: name.to_owned(),
                width,
                height,
                max_side: self.max_side,
                max_pixels: self.max_pixels,
            });
        }
        Ok(())
    }

    /// Bytes that the decoder may allocate for this file: its pixels at the largest type, and a margin. A constant limit would
    /// let a small image decompress a color profile of a gigabyte.
    pub(crate) fn memory_limits(&self, bytes: &[u8]) -> Limits {
        /// Bytes of a pixel, 16 bits each of four channels, once in the file's layout and once in ours.
        const PIXEL: u64 = 16;
        /// Profiles, palettes, texts.
        const MARGIN: u64 = 32 << 20;
        let pixels = imagesize::blob_size(bytes).map(|size| size.width as u64 * size.height as u64);
        let needed = pixels.map_or(u64::MAX, |pixels| (pixels * PIXEL).saturating_add(MARGIN));
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(self.max_memory.min(needed));
        limits
    }

    pub(crate) fn decode(&self, bytes: &[u8], name: &str) -> Result<Rgb, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty { name: name.to_owned() });
        }
        let Some(format) = guess_format(bytes) else {
            return Err(ImageError::NotAnImage { name: name.to_owned() });
        };
        if format == ImageFormat::Jpeg {
            self.decode_jpeg(bytes, name)
        } else {
            self.decode_with_image_crate(bytes, format, name)
        }
    }

    fn decode_jpeg(&self, bytes: &[u8], name: &str) -> Result<Rgb, ImageError> {
        if !jpeg::is_complete(bytes) {
            return Err(ImageError::Truncated { name: name.to_owned() });
        }
        let failed = |source| decode_error(source, ImageFormat::Jpeg, name);
        let file = Jpeg::open(bytes, self.max_memory).map_err(failed)?;
        let (width, height) = file.dimensions();
        self.check_size(width, height, name)?;
        let pixels = file.pixels().map_err(failed)?;
        let image = Rgb::new(height as usize, width as usize, pixels);
        let image = image.ok_or_else(|| ImageError::NotAnImage { name: name.to_owned() })?;
        Ok(apply_orientation(image, file.orientation()))
    }

    fn decode_with_image_crate(
        &self,
        bytes: &[u8],
        format: ImageFormat,
        name: &str,
    ) -> Result<Rgb, ImageError> {
        let failed = |source| decode_error(source, format, name);
        if let Ok(size) = imagesize::blob_size(bytes) {
            self.check_size(saturating_side(size.width), saturating_side(size.height), name)?;
        }
        warn_if_animated(bytes, format, name);
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(self.memory_limits(bytes));
        let mut decoder = reader.into_decoder().map_err(failed)?;
        let (width, height) = decoder.dimensions();
        self.check_size(width, height, name)?;
        // Damaged EXIF is ignored, as in Pillow.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
        let is_gray_png = format == ImageFormat::Png && bytes.get(PNG_COLOR_TYPE) == Some(&0);
        let decoded = if is_gray_png { without_gray_alpha(decoded) } else { decoded };
        let image = convert_to_rgb(decoded, format);
        let mut image = image.ok_or_else(|| ImageError::NotAnImage { name: name.to_owned() })?;
        if format == ImageFormat::Png {
            color_key::replace_with_white(bytes, &mut image);
        }
        Ok(apply_orientation(image, orientation))
    }
}

/// The image of a gray PNG with a transparent gray value, which the `image` crate decodes with alpha and Pillow does not.
fn without_gray_alpha(decoded: DynamicImage) -> DynamicImage {
    let DynamicImage::ImageLumaA16(image) = decoded else {
        return decoded;
    };
    let gray = image.pixels().map(|pixel| pixel.0[0]).collect();
    let gray = ImageBuffer::from_raw(image.width(), image.height(), gray);
    DynamicImage::ImageLuma16(gray.expect("a value for each pixel"))
}

fn decode_error(source: image::ImageError, format: ImageFormat, name: &str) -> ImageError {
    let name = name.to_owned();
    match &source {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated { name }
        }
        _ => ImageError::Decode { name, format: format_name(format).unwrap_or("image"), source },
    }
}

/// The format of a file by its first bytes, if it is one that is decoded here.
fn guess_format(bytes: &[u8]) -> Option<ImageFormat> {
    image::guess_format(bytes).ok().filter(|format| format_name(*format).is_some())
}

/// A side as the limits count it; one beyond `u32` fails them in any case.
pub(crate) fn saturating_side(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Bytes to read for the header of a file; nearly every header is shorter.
const HEADER_BYTES: usize = 4096;

const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Offset of the color type in a PNG.
const PNG_COLOR_TYPE: usize = 25;

/// Name of a format that is decoded here.
fn format_name(format: ImageFormat) -> Option<&'static str> {
    match format {
        ImageFormat::Png => Some("png"),
        ImageFormat::Jpeg => Some("jpeg"),
        ImageFormat::WebP => Some("webp"),
        ImageFormat::Gif => Some("gif"),
        ImageFormat::Bmp => Some("bmp"),
        ImageFormat::Tiff => Some("tiff"),
        _ => None,
    }
}

/// Warns that only the first frame of an animation is used. An animated PNG has `acTL` before its first `IDAT`.
fn warn_if_animated(bytes: &[u8], format: ImageFormat, name: &str) {
    static ANIMATED: WarningThrottle = WarningThrottle::new();
    let is_animated = match format {
        ImageFormat::Gif => gif_frames(bytes) > 1,
        ImageFormat::WebP => {
            bytes.get(12..16) == Some(b"VP8X") && bytes.get(20).is_some_and(|flags| flags & 2 != 0)
        }
        ImageFormat::Png => {
            let head = &bytes[..bytes.len().min(HEADER_BYTES)];
            let before = memmem::find(head, b"IDAT").unwrap_or(head.len());
            memmem::find(&head[..before], b"acTL").is_some()
        }
        _ => false,
    };
    if is_animated && let Some(times) = ANIMATED.count_if_due() {
        let frames =
            if format == ImageFormat::Gif { gif_frames(bytes).to_string() } else { "several".to_owned() };
        tracing::warn!(
            times,
            "{name}: an animation of {frames} frames, the first is used; as a video all are"
        );
    }
}

/// Frames of a GIF, counted without decoding them.
fn gif_frames(bytes: &[u8]) -> usize {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let Ok(mut decoder) = options.read_info(bytes) else { return 0 };
    std::iter::from_fn(|| decoder.next_frame_info().ok().flatten().map(drop)).count()
}

fn gray_to_rgb(values: impl IntoIterator<Item = u8>) -> Vec<u8> {
    values.into_iter().flat_map(|value| [value; 3]).collect()
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

fn transparent_to_white([r, g, b, a]: [u8; 4]) -> [u8; 3] {
    if a == 0 { [255; 3] } else { [r, g, b] }
}

/// Pillow's `convert("RGB")`.
pub(crate) fn convert_to_rgb(decoded: DynamicImage, format: ImageFormat) -> Option<Rgb> {
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let pixels: Vec<u8> = match decoded {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => gray_to_rgb(image.into_raw()),
        DynamicImage::ImageLumaA8(image) => gray_to_rgb(image.pixels().map(|p| p.0[0])),
        DynamicImage::ImageLuma16(image) => gray_to_rgb(image.pixels().map(|p| p.0[0].min(255) as u8)),
        DynamicImage::ImageLumaA16(image) => gray_to_rgb(image.pixels().map(|p| high_byte(p.0[0]))),
        DynamicImage::ImageRgb16(image) => image.pixels().flat_map(|p| p.0.map(high_byte)).collect(),
        DynamicImage::ImageRgba16(image) => {
            let colors = image.pixels().map(|p| [p.0[0], p.0[1], p.0[2]]);
            colors.flat_map(|color| color.map(high_byte)).collect()
        }
        DynamicImage::ImageRgba8(image) if format == ImageFormat::Gif => {
            // Transparency is a color of the palette in a GIF, which Pillow replaces by white.
            image.pixels().flat_map(|p| transparent_to_white(p.0)).collect()
        }
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        other => other.into_rgb8().into_raw(),
    };
    Rgb::new(height, width, pixels)
}

impl From<DynamicImage> for Rgb {
    /// Converts a decoded image as [`DecodeLimits::load`] converts a file: alpha is dropped, 16-bit gray is clipped.
    ///
    /// (transformers blends with white when it is passed an image object instead of a file.)
    ///
    /// # Panics
    ///
    /// When the image has no pixels.
    fn from(image: DynamicImage) -> Self {
        convert_to_rgb(image, ImageFormat::Png).expect("an image has pixels")
    }
}

fn apply_orientation(image: Rgb, orientation: Orientation) -> Rgb {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let (width, height) = (image.width() as u32, image.height() as u32);
    let buffer = image::RgbImage::from_raw(width, height, image.into_pixels());
    let mut oriented = DynamicImage::ImageRgb8(buffer.expect("three bytes a pixel"));
    oriented.apply_orientation(orientation);
    let (width, height) = (oriented.width() as usize, oriented.height() as usize);
    let pixels = oriented.into_rgb8().into_raw();
    Rgb::new(height, width, pixels).expect("orientation keeps every pixel")
}
