//! Resized images on disk, for epochs and runs after the first.
//!
//! An entry holds the 8-bit pixels at the size of the model's grid: an eighth of the patches, which are made from it anew, to the bit.
//! It is named by a hash of the image file's bytes and of the settings, so a changed image or setting finds no old pixels.
//! Nothing is evicted: every epoch needs every image once, in another order.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use glm4v_processor::{ImageCache, ImageError, Rgb};
use sha2::{Digest, Sha256};

/// First bytes of an entry, with the version of its format. Height, width and CRC-32 of height, width and pixels follow, 4 bytes each,
/// then the pixels.
const MAGIC: &[u8; 8] = b"glm4vpx1";
const HEADER_BYTES: usize = MAGIC.len() + 3 * 4;

/// Beginning of the name of an unfinished entry.
const PARTIAL: &str = ".partial-";

/// Age after which an unfinished entry belongs to no process any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Error of opening a [`PixelCache`].
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be used as a cache of images: {source}; needed: a directory that can be written to", dir.display())]
pub struct PixelCacheError {
    /// The directory.
    pub dir: PathBuf,
    /// Error of the operating system.
    pub source: io::Error,
}

/// What a [`PixelCache`] did since it was opened, in images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PixelCacheCounts {
    /// Found.
    pub hits: usize,
    /// Not found, decoded and written.
    pub written: usize,
    /// Found damaged or unreadable, and decoded again.
    pub damaged: usize,
    /// Decoded and not written, because there was no room or the disk failed.
    pub not_written: usize,
}

/// A directory of resized images, shared by threads and processes.
///
/// An entry appears whole or not at all, and its checksum is compared when it is read. A failing disk costs time, never a run: images
/// are decoded then, with a warning.
#[derive(Debug)]
pub struct PixelCache {
    dir: PathBuf,
    max_bytes: u64,
    /// Bytes of all entries: those found on opening, and those written since.
    bytes: AtomicU64,
    hits: AtomicUsize,
    written: AtomicUsize,
    damaged: AtomicUsize,
    not_written: AtomicUsize,
}

impl PixelCache {
    /// Opens or creates a cache that may grow to `max_bytes`; several processes that fill one at the same time may exceed it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be created or listed.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, PixelCacheError> {
        let error = |source| PixelCacheError { dir: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(error)?;
        let bytes = entry_bytes(dir).map_err(error)?;
        Ok(Self {
            dir: dir.to_owned(),
            max_bytes,
            bytes: bytes.into(),
            hits: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            damaged: AtomicUsize::new(0),
            not_written: AtomicUsize::new(0),
        })
    }

    /// What it did so far.
    pub fn counts(&self) -> PixelCacheCounts {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        PixelCacheCounts {
            hits: count(&self.hits),
            written: count(&self.written),
            damaged: count(&self.damaged),
            not_written: count(&self.not_written),
        }
    }

    /// Two characters of the name are a directory, as a directory of a million files is slow.
    fn path(&self, file: &[u8], settings: &str) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update((settings.len() as u64).to_le_bytes());
        hash.update(settings);
        hash.update(file);
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(&name[..2]).join(&name[2..])
    }

    /// The entry at `path`; none if there is none, or none that can be used.
    fn read(&self, path: &Path) -> Option<Rgb> {
        let problem = match read_entry(path) {
            Ok(image) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Some(image);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error,
        };
        if is_due(&self.damaged) {
            tracing::warn!("{}: entry of the image cache is left out: {problem}", path.display());
        }
        None
    }

    fn write(&self, path: &Path, image: &Rgb) {
        let bytes = (HEADER_BYTES + image.pixels().len()) as u64;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let problem = if before.saturating_add(bytes) > self.max_bytes {
            format!("it is full, {} of {} bytes are taken", before, self.max_bytes)
        } else {
            match write_entry(path, image) {
                Ok(()) => {
                    self.written.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(error) => format!("{}: {error}", path.display()),
            }
        };
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if is_due(&self.not_written) {
            tracing::warn!(
                "{}: the image cache takes no more: {problem}; images are decoded anew",
                self.dir.display()
            );
        }
    }
}

impl ImageCache for PixelCache {
    fn get_or_make(
        &self,
        file: &[u8],
        settings: &str,
        make: &mut dyn FnMut() -> Result<Rgb, ImageError>,
    ) -> Result<Rgb, ImageError> {
        let path = self.path(file, settings);
        if let Some(image) = self.read(&path) {
            return Ok(image);
        }
        let image = make()?;
        self.write(&path, &image);
        Ok(image)
    }
}

/// Counts an event; whether it is the first, second, fourth, … and worth a warning.
fn is_due(counter: &AtomicUsize) -> bool {
    (counter.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two()
}

/// Bytes of all entries. Abandoned parts of entries are removed.
fn entry_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for part in fs::read_dir(dir)? {
        let part = part?;
        // Other files in the directory are not ours.
        if !part.file_type()?.is_dir() || part.file_name().len() != 2 {
            continue;
        }
        for entry in fs::read_dir(part.path())? {
            let entry = entry?;
            // Another process may have renamed it.
            let Ok(found) = entry.metadata() else { continue };
            let is_partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
            if is_partial && found.modified().is_ok_and(is_abandoned) {
                let _ = fs::remove_file(entry.path()); // only a matter of disk space
            } else {
                bytes += found.len();
            }
        }
    }
    Ok(bytes)
}

fn is_abandoned(modified: SystemTime) -> bool {
    modified.elapsed().is_ok_and(|age| age > ABANDONED)
}

fn read_entry(path: &Path) -> io::Result<Rgb> {
    let damaged = |problem| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let (magic, numbers) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("not an entry of this version"));
    }
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| numbers[4 * at + byte]));
    let (height, width, checksum) = (number(0) as usize, number(1) as usize, number(2));
    // Before memory is taken for what a damaged header announces.
    let announced = height.saturating_mul(width).saturating_mul(3);
    if file.metadata()?.len() != announced.saturating_add(HEADER_BYTES) as u64 {
        return Err(damaged("its length is not that of its image"));
    }
    let mut pixels = Vec::with_capacity(announced);
    file.take(announced as u64).read_to_end(&mut pixels)?;
    if crc(&numbers[..8], &pixels) != checksum {
        return Err(damaged("its checksum differs"));
    }
    Rgb::new(height, width, pixels).ok_or_else(|| damaged("its length is not that of its image"))
}

fn write_entry(path: &Path, image: &Rgb) -> io::Result<()> {
    let dir = path.parent().expect("an entry is in a directory of two characters");
    fs::create_dir_all(dir)?;
    // Removed on drop, unless it is renamed.
    let mut file = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(dir)?;
    let sides = [image.height() as u32, image.width() as u32].map(u32::to_le_bytes).concat();
    file.write_all(MAGIC)?;
    file.write_all(&sides)?;
    file.write_all(&crc(&sides, image.pixels()).to_le_bytes())?;
    file.write_all(image.pixels())?;
    file.persist(path)?;
    Ok(())
}

fn crc(sides: &[u8], pixels: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(sides);
    crc.update(pixels);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use glm4v_inputs::Sample;
    use glm4v_processor::Processor;
    use serde_json::json;

    use super::*;
    use crate::fixture::{processor, record, root};
    use crate::sample::encode;

    const ENOUGH: u64 = 1 << 30;

    /// A cache, and the encoding of a record of two images through it.
    struct Cached {
        cache: Arc<PixelCache>,
        processor: Processor,
        images: [PathBuf; 2],
    }

    impl Cached {
        fn open(dir: &Path, max_bytes: u64) -> Self {
            let cache = Arc::new(PixelCache::open(&dir.join("cache"), max_bytes).unwrap());
            let images = ["astronaut_150x150.png", "jpeg_150x100.jpg"].map(|name| {
                let path = dir.join(name);
                fs::copy(root().join("tests/fixtures/golden/images").join(name), &path).unwrap();
                path
            });
            Self { processor: (*processor()).clone().with_image_cache(cache.clone()), cache, images }
        }

        fn sample(&self) -> Sample {
            self.sample_by(&self.processor)
        }

        fn sample_by(&self, processor: &Processor) -> Sample {
            let record = record(json!({"images": self.images, "messages": [
                {"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "a"}]}));
            encode(&record, processor, Default::default()).unwrap()
        }

        fn counts(&self) -> [usize; 4] {
            let PixelCacheCounts { hits, written, damaged, not_written } = self.cache.counts();
            [hits, written, damaged, not_written]
        }

        /// Paths of all entries.
        fn entries(&self) -> Vec<PathBuf> {
            let list = |dir: &Path| {
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
            };
            list(&self.cache.dir).iter().flat_map(|dir| list(dir)).collect()
        }
    }

    #[test]
    fn an_image_of_the_cache_equals_the_decoded_one_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::open(dir.path(), ENOUGH);

        let plain = cached.sample_by(&processor());
        let [first, second] = [cached.sample(), cached.sample()];

        assert_eq!([&first, &second], [&plain, &plain]);
        assert_eq!(cached.counts(), [2, 2, 0, 0]);
        assert_eq!(Cached::open(dir.path(), ENOUGH).sample(), plain, "another process");
    }

    #[test]
    fn a_changed_image_and_a_changed_setting_are_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::open(dir.path(), ENOUGH);
        cached.sample();

        fs::copy(root().join("tests/fixtures/golden/images/chelsea_113x75.png"), &cached.images[0]).unwrap();
        assert_eq!(cached.sample(), cached.sample_by(&processor()));
        assert_eq!(cached.counts(), [1, 3, 0, 0]);

        let small = |processor: Processor| {
            let image = processor.image_processor().clone().with_max_pixels(2 * 28 * 28 * 6);
            processor.with_image_processor(image)
        };
        let plain = small((*processor()).clone());
        assert_ne!(cached.sample_by(&plain), cached.sample());
        assert_eq!(cached.sample_by(&small(cached.processor.clone())), cached.sample_by(&plain));
    }

    #[test]
    fn a_damaged_entry_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Cached::open(dir.path(), ENOUGH).sample();
        type Damage = fn(&mut Vec<u8>);
        let damages: [Damage; 5] = [
            |entry| entry[5000] ^= 1,
            |entry| entry.truncate(5000),
            |entry| entry.clear(),
            |entry| entry[8..12].copy_from_slice(&u32::MAX.to_le_bytes()),
            |entry| entry[0] = b'x',
        ];
        for damage in damages {
            let cached = Cached::open(dir.path(), ENOUGH);
            let entry = &cached.entries()[0];
            let whole = fs::read(entry).unwrap();
            let mut damaged = whole.clone();
            damage(&mut damaged);
            fs::write(entry, damaged).unwrap();

            assert_eq!(cached.sample(), plain);

            assert_eq!(cached.counts(), [1, 1, 1, 0]);
            assert_eq!(fs::read(entry).unwrap(), whole);
        }
    }

    #[test]
    fn a_full_cache_takes_no_more_and_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let all: u64 = {
            let cached = Cached::open(dir.path(), ENOUGH);
            cached.sample();
            cached.entries().iter().map(|entry| entry.metadata().unwrap().len()).sum()
        };
        fs::remove_dir_all(dir.path().join("cache")).unwrap();
        let cached = Cached::open(dir.path(), all - 1);

        let samples = [cached.sample(), cached.sample(), cached.sample()];

        assert_eq!(cached.counts(), [2, 1, 0, 3], "one of both fits");
        assert!(samples.iter().all(|sample| *sample == cached.sample_by(&processor())));
        assert!(cached.cache.bytes.load(Ordering::Relaxed) < all);
        let again = Cached::open(dir.path(), all - 1);
        assert_eq!(again.cache.bytes.load(Ordering::Relaxed), cached.cache.bytes.load(Ordering::Relaxed));
    }

    #[test]
    fn a_disk_that_fails_costs_no_record_and_leaves_nothing_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::open(dir.path(), ENOUGH);
        cached.sample();
        let parts: Vec<PathBuf> =
            cached.entries().iter().map(|entry| entry.parent().unwrap().to_owned()).collect();
        for part in &parts {
            // A file in place of a directory: neither reading nor writing works, for any user.
            fs::remove_dir_all(part).unwrap();
            fs::write(part, "").unwrap();
        }

        assert_eq!(cached.sample(), cached.sample_by(&processor()));

        let [_, written, damaged, not_written] = cached.counts();
        assert_eq!((written, damaged, not_written), (2, 2, 2));
        assert!(parts.iter().all(|part| part.is_file()));
        let refused = PixelCache::open(&cached.images[0], ENOUGH).unwrap_err().to_string();
        assert!(refused.contains("cannot be used as a cache of images"), "{refused}");
    }

    #[test]
    fn abandoned_parts_of_entries_are_removed_and_those_of_other_processes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::open(dir.path(), ENOUGH);
        cached.sample();
        let part = cached.entries()[0].parent().unwrap().to_owned();
        let [old, new] = ["old", "new"].map(|name| part.join(format!("{PARTIAL}{name}")));
        for path in [&old, &new] {
            fs::write(path, "x").unwrap();
        }
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();

        PixelCache::open(&dir.path().join("cache"), ENOUGH).unwrap();

        assert!(!old.exists() && new.exists());
    }
}
