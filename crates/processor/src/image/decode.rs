//! Image files to 8-bit RGB, the way transformers' `load_image` sees them.
//!
//! Published behaviour differs by the door an image comes through; we follow `load_image` (Pillow):
//!
//! - the EXIF orientation is applied;
//! - alpha is dropped, not blended; a single transparent colour (PNG `tRNS`, GIF) becomes white;
//! - 16-bit grey is clipped at 255, other 16-bit images keep their high byte;
//! - of an animation the first frame is taken.
//!
//! Every format comes out bit for bit; JPEG has its own decoder for that, see `jpeg.rs`. Of TIFF some kinds that Pillow
//! knows are refused (palettes, YCbCr, floats, fax and newer compressions), and JPEG inside of TIFF is off by a level here
//! and there.
//!
//! A file is refused by its header before its pixels get memory, see [`DecodeLimits`], and a JPEG or
//! PNG that ends early is an error, not an image with a grey rest.

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
use super::{Rgb, color_key, jpeg};
use crate::messages::ImageSource;
use crate::notice::Notice;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No path at all.
    #[error("the path of the image is empty, needed an image file")]
    NoPath,
    /// More bytes than the limits allow.
    #[error("{name}: {bytes} bytes, more than the limit of {limit}")]
    FileSize {
        /// Where the image comes from.
        name: String,
        /// Size found.
        bytes: u64,
        /// Largest size allowed.
        limit: u64,
    },
    /// No bytes at all.
    #[error("{name}: is empty")]
    Empty {
        /// Where the image comes from.
        name: String,
    },
    /// Not a format that can be decoded.
    #[error("{name}: not an image; png, jpeg, webp, gif, bmp and tiff are known")]
    NotAnImage {
        /// Where the image comes from.
        name: String,
    },
    /// The header announces more than the limits allow.
    #[error("{name}: announces {width}x{height} pixels, more than {max_side} a side or {max_pixels} in all")]
    TooLarge {
        /// Where the image comes from.
        name: String,
        /// Width announced.
        width: u32,
        /// Height announced.
        height: u32,
        /// Longest side allowed.
        max_side: u32,
        /// Most pixels allowed.
        max_pixels: u64,
    },
    /// The file ends before the image does.
    #[error("{name}: ends early, the file is cut off")]
    Truncated {
        /// Where the image comes from.
        name: String,
    },
    /// The file is damaged, or uses something that the decoder does not know.
    #[error("{name}: damaged or unsupported {format}")]
    Decode {
        /// Where the image comes from.
        name: String,
        /// The format that the first bytes tell.
        format: &'static str,
        /// What the decoder met.
        #[source]
        source: image::ImageError,
    },
    /// A URL that would need the network.
    #[error("{url}: fetching over the network is off; needed: a local path or a data: URL")]
    Remote {
        /// The URL.
        url: String,
    },
    /// Nothing usable came over the network.
    #[error("{url}: cannot be fetched")]
    Http {
        /// The URL.
        url: String,
        /// What went wrong.
        #[source]
        source: HttpError,
    },
    /// A `data:` URL that is none.
    #[error("data URL: has no ;base64, in it; needed: data:<type>;base64,<data>")]
    DataUrl,
    /// A `data:` URL whose data is damaged.
    #[error("data URL: the base64 is damaged: {0}")]
    Base64(base64::DecodeError),
    /// A URL of a kind that is not known.
    #[error("{url}: unknown kind of URL; http, https, data and file are known")]
    Scheme {
        /// The URL.
        url: String,
    },
    /// An image that cannot be brought to a size of the model.
    #[error(transparent)]
    Resize(#[from] ResizeError),
}

/// What an image file may cost before it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Longest side in pixels; 16384.
    pub max_side: u32,
    /// Most pixels; 89,478,485, where Pillow begins to warn of decompression bombs (256 MiB of RGB).
    pub max_pixels: u64,
    /// Largest file; 256 MiB.
    pub max_file_bytes: u64,
    /// Most memory that a decoder may take for one image; 1 GiB.
    pub max_memory: u64,
    /// Whether `http(s)` URLs are fetched, and what that may cost; they are not.
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

impl DecodeLimits {
    /// Reads and decodes an image.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, is not an image, or is larger than these limits.
    pub fn load(&self, source: &ImageSource) -> Result<Rgb, ImageError> {
        match source {
            ImageSource::Path(path) => self.decode(&self.read(path)?, &path.display().to_string()),
            ImageSource::Bytes(bytes) => self.decode(bytes, "image in memory"),
            ImageSource::Url(url) => {
                let name = if url.starts_with("http") { url.as_str() } else { "data URL" };
                self.decode(&self.fetch(url)?, name)
            }
            ImageSource::Pixels(image) => {
                self.check_size(image.width() as u32, image.height() as u32, "image in memory")?;
                Ok(image.clone())
            }
        }
    }

    pub(crate) fn read(&self, path: &Path) -> Result<Vec<u8>, ImageError> {
        self.check_file(path)?;
        Ok(glm4v_files::read(path, self.max_file_bytes)?)
    }

    /// Whether there is a file that may be read.
    fn check_file(&self, path: &Path) -> Result<(), ImageError> {
        if path.as_os_str().is_empty() {
            return Err(ImageError::NoPath);
        }
        let name = || path.display().to_string();
        match fs::metadata(path) {
            Ok(found) if found.is_file() && found.len() == 0 => Err(ImageError::Empty { name: name() }),
            Ok(found) => self.check_len(found.len(), name),
            Err(_) => Ok(()), // told when it is opened
        }
    }

    /// Looks at an image without decoding it: that there is one, that it is allowed, and its width and height where the
    /// header tells them.
    pub(crate) fn probe(&self, source: &ImageSource) -> Result<Option<(u32, u32)>, ImageError> {
        match source {
            ImageSource::Path(path) => {
                self.check_file(path)?;
                let file = glm4v_files::open(path)?;
                self.probe_header(BufReader::with_capacity(HEADER, file), &path.display().to_string())
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
        let known = file.fill_buf().ok().and_then(|head| known(image::guess_format(head).ok()?));
        if known.is_none() {
            return Err(ImageError::NotAnImage { name: name.to_owned() });
        }
        // A damaged header is the decoder's to describe.
        let Ok(size) = imagesize::reader_size(file) else { return Ok(None) };
        let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let (width, height) = (side(size.width), side(size.height));
        self.check_size(width, height, name)?;
        Ok((width > 0 && height > 0).then_some((width, height)))
    }

    pub(crate) fn fetch(&self, url: &str) -> Result<Vec<u8>, ImageError> {
        let is_data = url.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("data:"));
        let is_http = url.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("http"));
        if !is_data && !is_http {
            return Err(ImageError::Scheme { url: url.to_owned() });
        }
        if !is_data {
            let Some(http) = &self.http else {
                return Err(ImageError::Remote { url: url.to_owned() });
            };
            let fetched = http.fetch(url, self.max_file_bytes);
            return fetched.map_err(|source| ImageError::Http { url: url.to_owned(), source });
        }
        let (head, data) = url.split_once(',').ok_or(ImageError::DataUrl)?;
        if !head.ends_with(";base64") {
            return Err(ImageError::DataUrl);
        }
        self.check_len(data.len() as u64 / 4 * 3, || "data URL".to_owned())?;
        // As forgiving as Python: lines may be broken, and what only fills up may be missing.
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

    /// Compares what a header announces with the limits.
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

    /// What a decoder may take for this file: its pixels at the widest, and some more. Without the pixels in the sum a small
    /// image could bring a colour profile of a gigabyte, well compressed.
    pub(crate) fn memory(&self, bytes: &[u8]) -> Limits {
        /// Bytes of a pixel, 16 bits each of four channels, once in the file's layout and once in ours.
        const PIXEL: u64 = 16;
        /// Profiles, palettes, texts.
        const ELSE: u64 = 32 << 20;
        let pixels = imagesize::blob_size(bytes).map(|size| size.width as u64 * size.height as u64);
        let needed = pixels.map_or(u64::MAX, |pixels| (pixels * PIXEL).saturating_add(ELSE));
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(self.max_memory.min(needed));
        limits
    }

    fn decode(&self, bytes: &[u8], name: &str) -> Result<Rgb, ImageError> {
        let name = || name.to_owned();
        if bytes.is_empty() {
            return Err(ImageError::Empty { name: name() });
        }
        let format = image::guess_format(bytes).ok().and_then(|f| Some((f, known(f)?)));
        let Some((format, format_name)) = format else {
            return Err(ImageError::NotAnImage { name: name() });
        };
        if format == ImageFormat::Jpeg && !jpeg::is_whole(bytes) {
            return Err(ImageError::Truncated { name: name() });
        }
        let damaged = |source: image::ImageError| match &source {
            image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                ImageError::Truncated { name: name() }
            }
            _ => ImageError::Decode { name: name(), format: format_name, source },
        };

        let too_large = |(width, height)| self.check_size(width, height, &name());
        let (image, orientation) = if format == ImageFormat::Jpeg {
            let file = Jpeg::open(bytes, self.max_memory).map_err(damaged)?;
            let (width, height) = file.dimensions();
            too_large((width, height))?;
            let pixels = file.pixels().map_err(damaged)?;
            (Rgb::new(height as usize, width as usize, pixels), file.orientation())
        } else {
            if let Ok(size) = imagesize::blob_size(bytes) {
                let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
                too_large((side(size.width), side(size.height)))?;
            }
            say_if_animated(bytes, format, &name());
            let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
            reader.limits(self.memory(bytes));
            let mut decoder = reader.into_decoder().map_err(damaged)?;
            too_large(decoder.dimensions())?;
            // An image with damaged EXIF is shown as it lies in the file.
            let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
            let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
            // A transparent level of grey comes as alpha; the image is grey all the same.
            if format == ImageFormat::Png
                && let (DynamicImage::ImageLumaA16(levels), Some(0)) = (&decoded, bytes.get(PNG_COLOR_TYPE))
            {
                let gray = levels.pixels().map(|p| p.0[0]).collect();
                let gray = ImageBuffer::from_raw(levels.width(), levels.height(), gray);
                decoded = DynamicImage::ImageLuma16(gray.expect("a level for each pixel"));
            }
            (to_rgb(decoded, format), orientation)
        };
        let mut image = image.ok_or_else(|| ImageError::NotAnImage { name: name() })?;
        if format == ImageFormat::Png {
            color_key::paint_white(bytes, &mut image);
        }
        Ok(orient(image, orientation))
    }
}

/// Bytes of a file in which nearly every header ends.
const HEADER: usize = 4096;

const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Where the header of a PNG says what its samples are.
const PNG_COLOR_TYPE: usize = 25;

/// The formats we decode, by name.
fn known(format: ImageFormat) -> Option<&'static str> {
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

/// Says that of an animation one frame is shown. A PNG that moves is told from others by its first chunks.
fn say_if_animated(bytes: &[u8], format: ImageFormat, name: &str) {
    static ANIMATED: Notice = Notice::new();
    let moves = match format {
        ImageFormat::Gif => gif_frames(bytes) > 1,
        ImageFormat::WebP => {
            bytes.get(12..16) == Some(b"VP8X") && bytes.get(20).is_some_and(|flags| flags & 2 != 0)
        }
        ImageFormat::Png => {
            let head = &bytes[..bytes.len().min(HEADER)];
            let before = memmem::find(head, b"IDAT").unwrap_or(head.len());
            memmem::find(&head[..before], b"acTL").is_some()
        }
        _ => false,
    };
    if moves && let Some(times) = ANIMATED.due() {
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

/// Pillow's `convert("RGB")`.
pub(crate) fn to_rgb(decoded: DynamicImage, format: ImageFormat) -> Option<Rgb> {
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let gray = |levels: &mut dyn Iterator<Item = u8>| levels.flat_map(|v| [v; 3]).collect();
    let high = |value: u16| (value >> 8) as u8;
    let pixels: Vec<u8> = match decoded {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => gray(&mut image.into_raw().into_iter()),
        DynamicImage::ImageLumaA8(image) => gray(&mut image.pixels().map(|p| p.0[0])),
        DynamicImage::ImageLuma16(image) => gray(&mut image.pixels().map(|p| p.0[0].min(255) as u8)),
        DynamicImage::ImageLumaA16(image) => gray(&mut image.pixels().map(|p| high(p.0[0]))),
        DynamicImage::ImageRgb16(image) => image.pixels().flat_map(|p| p.0.map(high)).collect(),
        DynamicImage::ImageRgba16(image) => {
            let colors = image.pixels().map(|p| [p.0[0], p.0[1], p.0[2]]);
            colors.flat_map(|color| color.map(high)).collect()
        }
        DynamicImage::ImageRgba8(image) if format == ImageFormat::Gif => {
            // In a GIF transparency is a colour of the palette, which Pillow paints white.
            let seen = |p: [u8; 4]| if p[3] == 0 { [255; 3] } else { [p[0], p[1], p[2]] };
            image.pixels().flat_map(|p| seen(p.0)).collect()
        }
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        other => other.into_rgb8().into_raw(),
    };
    Rgb::new(height, width, pixels)
}

fn orient(image: Rgb, orientation: Orientation) -> Rgb {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let Rgb { height, width, pixels } = image;
    let buffer = image::RgbImage::from_raw(width as u32, height as u32, pixels);
    let mut turned = DynamicImage::ImageRgb8(buffer.expect("three bytes a pixel"));
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width() as usize, turned.height() as usize);
    let pixels = turned.into_rgb8().into_raw();
    Rgb::new(height, width, pixels).expect("turning keeps every pixel")
}
