//! Folders whose images are the frames of a video.

use std::cmp::Ordering;
use std::fs;
use std::path::Path;

use super::error::VideoError;
use crate::media::ImageSource;

/// Extensions of image files; other files of the folder are ignored.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// The images of a folder in natural order: `2.png` before `10.png`.
pub(super) fn images_in_folder(folder: &Path) -> Result<Vec<ImageSource>, VideoError> {
    let unreadable = |source| VideoError::Read { name: folder.display().to_string(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension =
            path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) && path.is_file() {
            names.push(path);
        }
    }
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    names.sort_by(|a, b| natural_order(&name(a), &name(b)));
    Ok(names.into_iter().map(ImageSource::Path).collect())
}

/// Compares names, digits by the value of their number.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (m, n) = (digits(left), digits(right));
        let order = if m > 0 && n > 0 {
            let (x, y) = (left[..m].trim_start_matches('0'), right[..n].trim_start_matches('0'));
            (left, right) = (&left[m..], &right[n..]);
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            let (mut chars, mut others) = (left.chars(), right.chars());
            let (x, y) = (chars.next(), others.next());
            if x.is_none() && y.is_none() {
                // `01` and `1` have the same value: compare as text.
                return a.cmp(b);
            }
            (left, right) = (chars.as_str(), others.as_str());
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_in_natural_order() {
        let mut names = ["b1", "a10.png", "a2.png", "a2b", "a02.png", "a", "10", "9", "é1"];

        names.sort_by(|a, b| natural_order(a, b));

        assert_eq!(names, ["9", "10", "a", "a02.png", "a2.png", "a2b", "a10.png", "b1", "é1"]);
    }
}
