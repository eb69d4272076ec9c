//! Whether a JPEG file is whole.
//!
//! Decoders fill what is missing with grey and say nothing; a model would learn from the grey. So the
//! segments are walked to the end-of-image marker first.

const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;

/// Whether the segments of a JPEG file reach its end-of-image marker.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2; // past the start-of-image marker
    let mut in_scan = false;
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF)) {
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
    fn only_the_whole_file_is_whole() {
        assert!(is_whole(FILE));
        for len in 0..FILE.len() {
            assert!(!is_whole(&FILE[..len]), "the first {len} bytes");
        }
    }
}
