//! The transparent color of a PNG (`tRNS`).
//!
//! Pillow drops an alpha channel when it converts to RGB but keeps a transparent *color*, and transformers makes every pixel of
//! that color white (`convert_to_rgb`). The `image` crate does not report the color, so it is read from the file's chunks.

use crate::media::Rgb;

/// Makes every pixel of the transparent color white.
pub(super) fn replace_with_white(png: &[u8], image: &mut Rgb) {
    let Some(key) = transparent_color(png) else {
        return;
    };
    for pixel in image.pixels_mut().chunks_exact_mut(3) {
        if pixel == key {
            pixel.fill(255);
        }
    }
}

fn transparent_color(png: &[u8]) -> Option<[u8; 3]> {
    let mut header = None;
    let mut palette = None;
    let mut rest = png.get(8..)?;
    loop {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (kind, tail) = tail.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let data = tail.get(..length)?;
        match kind {
            b"IHDR" => header = Some((*data.get(8)?, *data.get(9)?)),
            b"PLTE" => palette = Some(data),
            b"tRNS" => return parse_trns(header?, palette, data),
            b"IDAT" => return None,
            _ => {}
        }
        rest = tail.get(length + 4..)?; // past the checksum
    }
}

/// Parses a `tRNS` chunk. Pillow keeps a color for gray and 8-bit RGB, and for palettes where exactly one entry is fully
/// transparent and all others are opaque. It compares the gray value of the file with pixels that are already
/// scaled or clipped to 8 bits, so that at depths other than 1 and 8 only some values ever match.
fn parse_trns((depth, color_type): (u8, u8), palette: Option<&[u8]>, data: &[u8]) -> Option<[u8; 3]> {
    match (color_type, depth, data) {
        (0, 1, &[_, gray]) => Some([if gray == 0 { 0 } else { 255 }; 3]),
        (0, _, &[_, gray]) => Some([gray; 3]),
        (2, 8, &[_, r, _, g, _, b]) => Some([r, g, b]),
        (3, _, alphas) => {
            let index = alphas.iter().position(|&alpha| alpha != 255)?;
            let only = alphas[index] == 0 && alphas[index + 1..].iter().all(|&alpha| alpha == 255);
            let entry = palette?.get(index * 3..index * 3 + 3)?;
            only.then(|| [entry[0], entry[1], entry[2]])
        }
        _ => None,
    }
}
