//! Damaged, hostile and wrong image files are errors with a reason, never a crash.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use glm4v_processor::{DecodeLimits, ImageError, ImageProcessor, ImageSource, Rgb};
use image::{ImageFormat, RgbImage};
use support::golden;

fn load(bytes: &[u8]) -> Result<Rgb, ImageError> {
    ImageProcessor::load_image(&ImageSource::Bytes(bytes.to_vec()))
}

fn refused(source: ImageSource) -> String {
    ImageProcessor::load_image(&source).unwrap_err().to_string()
}

fn file(name: &str) -> Vec<u8> {
    fs::read(golden().join("images").join(name)).unwrap()
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(37, 23, |x, y| image::Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8]));
    let mut bytes = Vec::new();
    let rgba = format == ImageFormat::Gif;
    let image = image::DynamicImage::ImageRgb8(image);
    let image = if rgba { image.into_rgba8().into() } else { image };
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A PNG chunk with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    let crc = !body.iter().fold(u32::MAX, |crc, &byte| {
        let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        (0..8).fold(crc ^ u32::from(byte), step)
    });
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc.to_be_bytes()].concat()
}

#[test]
fn a_truncated_file_is_reported_as_truncated() {
    for name in ["shapes_56x56.png", "jpeg_150x100.jpg"] {
        let whole = file(name);
        assert!(load(&whole).is_ok());
        for share in [2, 3, 10] {
            let error = load(&whole[..whole.len() - whole.len() / share]).unwrap_err().to_string();
            assert_eq!(error, "image in memory: ends early, the file is cut off", "{name}");
        }
    }
}

#[test]
fn a_jpeg_of_12_bits_is_refused_as_pillow_refuses_it() {
    let mut bytes = file("jpeg_150x100.jpg");
    let start_of_frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    bytes[start_of_frame + 4] = 12;

    let error = load(&bytes).unwrap_err();

    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("12 bits a sample, needed 8"), "{error}: {cause}");
}

#[test]
fn a_damaged_png_is_reported_as_damaged() {
    let mut bytes = file("shapes_56x56.png");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    assert_eq!(load(&bytes).unwrap_err().to_string(), "image in memory: damaged or unsupported png");
}

#[test]
fn a_header_beyond_the_limits_is_refused_before_decoding() {
    let side = 20_000u32.to_be_bytes();
    let header = chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat());
    let data = chunk(b"IDAT", &[0x78, 0x9C, 3, 0, 0, 0, 0, 1]);
    let png = [b"\x89PNG\r\n\x1a\n", &header[..], &data, &chunk(b"IEND", &[])].concat();
    let mut bmp = encoded(ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&20_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&20_000u32.to_le_bytes());

    for bytes in [png, bmp] {
        let error = load(&bytes).unwrap_err().to_string();
        let needed =
            "image in memory: announces 20000x20000 pixels, more than 16384 a side or 89478485 in all";
        assert_eq!(error, needed);
    }
}

#[test]
fn decode_limits_can_be_changed() {
    let source = ImageSource::Bytes(file("shapes_56x56.png"));
    let small = |limits: DecodeLimits| limits.load(&source);
    let limits = DecodeLimits::default;

    assert!(small(limits()).is_ok());
    assert!(matches!(
        small(DecodeLimits { max_side: 55, ..limits() }),
        Err(ImageError::TooLarge { width: 56, .. })
    ));
    assert!(matches!(
        small(DecodeLimits { max_pixels: 3135, ..limits() }),
        Err(ImageError::TooLarge { height: 56, .. })
    ));
    let path = ImageSource::Path(golden().join("images/shapes_56x56.png"));
    let file = DecodeLimits { max_file_bytes: 100, ..limits() }.load(&path);
    assert!(matches!(file, Err(ImageError::FileSize { bytes: 1194, limit: 100, .. })));
}

#[test]
fn files_that_are_not_images_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty.png"), "").unwrap();
    fs::write(at("words.png"), "these are words").unwrap();
    let path = |p: &Path| ImageSource::Path(p.to_owned());
    let name = |n: &str| at(n).display().to_string();

    assert!(refused(path(&at("none.png"))).starts_with(&format!("{}: cannot read: ", name("none.png"))));
    assert_eq!(refused(path(&at("empty.png"))), format!("{}: is empty", name("empty.png")));
    let words = "not an image; png, jpeg, webp, gif, bmp and tiff are known";
    assert_eq!(refused(path(&at("words.png"))), format!("{}: {words}", name("words.png")));
    let needed = format!("{}: is a directory; needed: a regular file", folder.path().display());
    assert_eq!(refused(path(folder.path())), needed);
    #[cfg(unix)]
    assert_eq!(refused(path(Path::new("/dev/zero"))), "/dev/zero: is a device; needed: a regular file");
}

#[test]
fn urls_are_data_or_refused() {
    use base64::Engine;
    let png = base64::engine::general_purpose::STANDARD.encode(file("tiny_10x10.png"));
    let url = |text: String| ImageSource::Url(text);

    let data = ImageProcessor::load_image(&url(format!("data:image/png;base64,{png}"))).unwrap();

    assert_eq!((data.height(), data.width()), (10, 10));
    // Line breaks, no padding, the URL-safe alphabet, and no header: as lenient as Python.
    let lines: Vec<&str> = png.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let safe = png.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let long = png.clone() + &" ".repeat(5000);
    for source in [
        url(format!("data:image/png;base64,{}", lines.join("\r\n"))),
        url(format!("data:image/png;base64,{safe}")),
        ImageSource::parse(&long, "".as_ref()),
    ] {
        assert_eq!(ImageProcessor::load_image(&source).unwrap(), data);
    }
    let needed = "data URL: has no ;base64, in it; needed: data:<type>;base64,<data>";
    for bad in ["data:image/png,abc", "data:image/png;base64"] {
        assert_eq!(refused(url(bad.to_owned())), needed);
    }
    let damaged = refused(url("data:image/png;base64,QU@D".to_owned()));
    assert!(damaged.starts_with("data URL: the base64 is damaged: Invalid symbol 64, offset 2"), "{damaged}");
    assert_eq!(
        refused(ImageSource::parse("ftp://example.org/a.png", "".as_ref())),
        "ftp://example.org/a.png: unknown kind of URL; http, https, data and file are known"
    );
    assert_eq!(
        refused(url("https://example.org/a.png".to_owned())),
        "https://example.org/a.png: fetching over the network is off; needed: a local path or a data: URL"
    );
}

#[test]
fn impossible_limits_are_refused() {
    let image = Rgb::new(30, 40, vec![9; 3600]).unwrap();
    let refused = |least, most| {
        let processor = ImageProcessor::from_json("{}").unwrap();
        let processor = processor.with_min_pixels(least).with_max_pixels(most);
        processor.process(&image).unwrap_err().to_string()
    };
    let contrary = refused(100_000, 50_000);
    assert!(contrary.starts_with("at least 100000 and at most 50000 pixels are asked for"), "{contrary}");
    for least in [1 << 30, usize::MAX] {
        let huge = refused(least, usize::MAX);
        assert!(
            huge.starts_with("would be enlarged to ") && huge.ends_with("needed: a lower minimum of pixels"),
            "{huge}"
        );
    }
}

#[test]
fn an_extreme_aspect_ratio_is_refused() {
    let processor = ImageProcessor::from_json("{}").unwrap();
    let narrow = Rgb::new(1, 300, vec![9; 900]).unwrap();
    let error = processor.process(&narrow).unwrap_err().to_string();
    assert_eq!(error, "absolute aspect ratio must be smaller than 200, got 300.0");
}

#[test]
fn no_damage_makes_a_decoder_crash() {
    let mut files: Vec<Vec<u8>> =
        ["jpeg_rotated_120x80.jpg", "palette_transparent_96x64.png", "gray16_80x60.png"].map(file).into();
    let formats =
        [ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Png];
    files.extend(formats.map(encoded));
    let rounds: u32 = std::env::var("GLM4V_FUZZ").map_or(300, |rounds| rounds.parse().unwrap());
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for whole in &files {
        assert!(load(whole).is_ok());
        for _ in 0..rounds {
            let mut bytes = whole.clone();
            // Half of the changes near the header, where sizes and offsets are.
            let reach = if random(2) == 0 { 64.min(bytes.len()) } else { bytes.len() };
            for _ in 0..=random(4) {
                let at = random(reach);
                bytes[at] = [random(256) as u8, 0, 255][random(3)];
            }
            if random(3) == 0 {
                bytes.truncate(random(bytes.len()));
            }
            // Any result but a crash.
            let _ = load(&bytes);
        }
    }
}
