//! Sources of images and videos, and decoded images.

use std::fmt;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

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

    /// The bytes, to change in place.
    pub(crate) fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The bytes themselves.
    pub(crate) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// Encodes the image as a PNG file.
    pub fn to_png(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let written =
            PngEncoder::new(&mut file).write_image(&self.pixels, width, height, ExtendedColorType::Rgb8);
        written.expect("pixels and size agree, and memory takes every file");
        file
    }
}

/// Source of an image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ImageSource {
    /// A local file.
    Path(PathBuf),
    /// The bytes of an image file.
    Bytes(Vec<u8>),
    /// A `data:` URL, or an `http(s)` URL where downloads are allowed.
    Url(String),
    /// A decoded image.
    Pixels(Rgb),
}

impl fmt::Display for ImageSource {
    /// The path, or the beginning of the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Url(url) if url.chars().count() > SHOWN => {
                write!(f, "{}…", url.chars().take(SHOWN).collect::<String>())
            }
            Self::Url(url) => f.write_str(url),
            Self::Bytes(_) | Self::Pixels(_) => f.write_str("an image in memory"),
        }
    }
}

/// Source of a video, with a frame rate for image sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInput {
    /// File, URL, bytes or frames.
    pub data: VideoSource,
    /// Frames per second of a folder or list of images; other videos have their own.
    pub frame_rate: Option<f64>,
}

/// Data of a video.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum VideoSource {
    /// A local file, or a folder of images.
    Path(PathBuf),
    /// The bytes of a video file.
    Bytes(Vec<u8>),
    /// A `data:` URL, or an `http(s)` URL where downloads are allowed.
    Url(String),
    /// One image per frame.
    Frames(Vec<ImageSource>),
}

impl fmt::Display for VideoInput {
    /// The path, or the beginning of the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            VideoSource::Path(path) => path.display().fmt(f),
            VideoSource::Url(url) => ImageSource::Url(url.clone()).fmt(f),
            VideoSource::Bytes(_) => f.write_str("a video in memory"),
            VideoSource::Frames(frames) => write!(f, "a list of {} images", frames.len()),
        }
    }
}

impl ImageSource {
    /// Parses a value of a message: a URL, or a path relative to `base`.
    pub fn parse(value: &str, base: &Path) -> Self {
        match locate(value, base) {
            Location::Path(path) => Self::Path(path),
            Location::Url(url) => Self::Url(url),
        }
    }
}

impl VideoInput {
    /// Parses a value of a message: a URL, or a path relative to `base`.
    pub fn parse(value: &str, base: &Path) -> Self {
        match locate(value, base) {
            Location::Path(path) => VideoSource::Path(path).into(),
            Location::Url(url) => VideoSource::Url(url).into(),
        }
    }
}

impl From<VideoSource> for VideoInput {
    fn from(data: VideoSource) -> Self {
        Self { data, frame_rate: None }
    }
}

impl From<PathBuf> for VideoInput {
    fn from(path: PathBuf) -> Self {
        VideoSource::Path(path).into()
    }
}

/// A path or a URL in a message.
enum Location {
    Path(PathBuf),
    Url(String),
}

/// `PATH_MAX` of Linux; other systems have shorter paths.
const MAX_PATH_LENGTH: usize = 4096;

fn is_scheme(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+')
}

/// Distinguishes URLs from paths and resolves the paths. An empty path stays empty: joined it would be the folder.
fn locate(value: &str, base: &Path) -> Location {
    let is = |scheme: &str| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if is("data:") || is("http://") || is("https://") {
        Location::Url(value.to_owned())
    } else if is("file://") {
        Location::Path(PathBuf::from(&value["file://".len()..]))
    } else if value.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
        Location::Url(value.to_owned())
    } else if value.len() > MAX_PATH_LENGTH {
        // Too long for a path: base64 without a header, which transformers' `load_image` accepts.
        Location::Url(format!("data:image;base64,{value}"))
    } else if value.is_empty() {
        Location::Path(PathBuf::new())
    } else {
        Location::Path(base.join(value))
    }
}
