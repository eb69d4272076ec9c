//! Files and folders that appear whole or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::WeightsError;

/// Ends the name of whatever is not whole yet.
const PARTIAL: &str = ".partial";

/// What this process has begun and not published.
static BEGUN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn begun() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the removal of a folder is tried that another thread still writes to.
const TRIES: usize = 20;

/// Removes everything that this process has begun to write and not published, for whoever is about to end it: nothing is
/// begun, published or given up any more; a thread that tries to waits for the end.
pub fn remove_unpublished() {
    let begun = begun();
    for path in begun.iter() {
        // Each file that appears meanwhile makes one try fail.
        let _ = (0..TRIES).find(|_| remove(path).is_ok());
    }
    std::mem::forget(begun);
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// A path that [`remove_unpublished`] knows; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
}

impl Staged {
    /// Where something is made that will be `target`: beside it, so that a rename is all that is left to do.
    pub(crate) fn beside(target: &Path) -> Self {
        let process = std::process::id();
        Self::at(beside(target, |name| format!(".{name}.{process}{PARTIAL}")))
    }

    fn at(path: PathBuf) -> Self {
        begun().insert(path.clone());
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it into place.
    pub(crate) fn publish(&self, target: &Path) -> io::Result<()> {
        self.publish_with(|staged| fs::rename(staged, target))
    }

    /// Moves it by `rename`, which no signal cuts in two.
    fn publish_with<E>(&self, rename: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
        let mut begun = begun();
        rename(&self.path)?;
        begun.remove(&self.path);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let mut begun = begun();
        if begun.remove(&self.path) {
            // What cannot be removed is no harm.
            let _ = remove(&self.path);
        }
    }
}

fn beside(target: &Path, name: impl FnOnce(&str) -> String) -> PathBuf {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.join(name(&target.file_name().unwrap_or_default().to_string_lossy()))
}

/// Removes what a program that was killed while writing left in `folder`; nobody else may be writing there.
pub fn remove_leftovers(folder: &Path) {
    remove_named(folder, |name| name.starts_with('.') && name.ends_with(PARTIAL));
}

fn remove_named(folder: &Path, is_meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_meant(&entry.file_name().to_string_lossy()) {
            // What cannot be removed is no harm.
            let _ = remove(&entry.path());
        }
    }
}

/// Writes a file beside its place and moves it there.
///
/// # Errors
///
/// When the system refuses; what was there before is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    let staged = Staged::beside(path);
    File::create(staged.path())
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| staged.publish(path))
        .map_err(WeightsError::write(path))
}

/// The right to make something at a path, which one process has at a time.
///
/// A locked file beside it says so: the system drops the lock with the process, however that ends.
#[derive(Debug)]
struct Claim {
    _locked: File,
    _path: Staged,
}

impl Claim {
    /// Claims `target`, and removes what processes that were killed left of it.
    fn of(target: &Path) -> Result<Self, WeightsError> {
        let path = beside(target, |name| format!(".{name}.lock"));
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let locked = loop {
            let file = open().map_err(WeightsError::write(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(WeightsError::Busy { path: target.to_owned() }),
                // A file system without locks: nobody can be seen, and nobody is waited for.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(source)) => return Err(WeightsError::write(&path)(source)),
            }
            // The process that had it before may have removed it between our two calls.
            if is_at(&file, &path) {
                break file;
            }
        };
        let claim = Self { _locked: locked, _path: Staged::at(path) };
        claim.remove_remains(target);
        Ok(claim)
    }

    fn remove_remains(&self, target: &Path) {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = beside(target, |_| String::new());
        remove_named(&folder, |found| {
            let process =
                found.strip_prefix(&format!(".{name}.")).and_then(|rest| rest.strip_suffix(PARTIAL));
            process.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
        });
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |opened: fs::Metadata, there: fs::Metadata| {
        (opened.dev(), opened.ino()) == (there.dev(), there.ino())
    };
    file.metadata().and_then(|opened| Ok(same(opened, fs::metadata(path)?))).unwrap_or(false)
}

/// An open file keeps its name.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// A folder in the making: files go into [`path`](Self::path), [`publish`](Self::publish) moves all of them into
/// place at once. Dropped unpublished, it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFolder {
    staged: Staged,
    target: PathBuf,
    /// None where the folder may replace another.
    claim: Option<Claim>,
}

impl StagedFolder {
    /// Starts a folder that will be `target`, making the folders above it; one that is there already will be replaced.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn new(target: &Path) -> Result<Self, WeightsError> {
        Self::begin(target, None)
    }

    /// Starts a folder that will be `target` and must not be there yet, as the only process that does so. What others left
    /// of it when they were killed is removed.
    ///
    /// # Errors
    ///
    /// When it exists, another process is making it, or the system refuses.
    pub fn create(target: &Path) -> Result<Self, WeightsError> {
        let exists = || WeightsError::Exists { path: target.to_owned() };
        // Asked first, so that nothing is made beside a folder that stays as it is.
        if target.exists() {
            return Err(exists());
        }
        let above = beside(target, |_| String::new());
        fs::create_dir_all(&above).map_err(WeightsError::write(&above))?;
        let claim = Claim::of(target)?;
        if target.exists() {
            return Err(exists());
        }
        Self::begin(target, Some(claim))
    }

    fn begin(target: &Path, claim: Option<Claim>) -> Result<Self, WeightsError> {
        let staged = Staged::beside(target);
        let _ = remove(staged.path());
        fs::create_dir_all(staged.path()).map_err(WeightsError::write(staged.path()))?;
        Ok(Self { staged, target: target.to_owned(), claim })
    }

    /// Where to put the files.
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Moves the folder into place; one that was there before is replaced, unless this one was to be new.
    ///
    /// # Errors
    ///
    /// When the system refuses; what was there before is then there again.
    pub fn publish(self) -> Result<(), WeightsError> {
        let target = &self.target;
        if self.claim.is_some() && target.exists() {
            return Err(WeightsError::Exists { path: target.clone() });
        }
        self.staged.publish_with(|staged| {
            let old = staged.with_extension("old");
            if target.exists() {
                let _ = fs::remove_dir_all(&old);
                fs::rename(target, &old).map_err(WeightsError::write(target))?;
            }
            if let Err(source) = fs::rename(staged, target) {
                let _ = fs::rename(&old, target);
                return Err(WeightsError::write(target)(source));
            }
            let _ = fs::remove_dir_all(&old);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_published_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");

        let staged = StagedFolder::new(&target).unwrap();
        fs::write(staged.path().join("a"), "1").unwrap();
        drop(staged);

        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_program_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");
        std::mem::forget(StagedFolder::new(&target).unwrap()); // as if killed
        fs::write(parent.path().join(".metrics.jsonl.7.partial"), "").unwrap();
        fs::write(parent.path().join("notes.partial"), "").unwrap();

        remove_leftovers(parent.path());

        let left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.partial"]);
    }

    #[test]
    fn a_folder_that_cannot_be_published_leaves_the_one_before() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), "1").unwrap();

        let staged = StagedFolder::new(&target).unwrap();
        fs::remove_dir(staged.path()).unwrap(); // nothing is left to move into place
        assert!(staged.publish().is_err());

        assert!(target.join("a").exists());
    }

    #[test]
    fn a_published_folder_replaces_the_one_before() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");
        for name in ["a", "b"] {
            let staged = StagedFolder::new(&target).unwrap();
            fs::write(staged.path().join(name), "1").unwrap();
            staged.publish().unwrap();
        }

        assert!(target.join("b").exists() && !target.join("a").exists());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_folder_is_made_by_one_at_a_time_and_replaces_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("above/out");

        let first = StagedFolder::create(&target).unwrap();
        let second = StagedFolder::create(&target).unwrap_err();
        first.publish().unwrap();
        let third = StagedFolder::create(&target).unwrap_err();

        assert!(matches!(second, WeightsError::Busy { .. }), "{second}");
        assert!(matches!(third, WeightsError::Exists { .. }), "{third}");
        let left: Vec<_> = fs::read_dir(target.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_new_folder_takes_away_what_was_left_of_itself_and_of_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        for left in [".out.7.partial", ".out.b.8.partial", ".other.7.partial", ".out.x.partial"] {
            fs::create_dir(at(left)).unwrap();
            fs::write(at(left).join("a"), "1").unwrap();
        }
        fs::write(at(".out.lock"), "").unwrap(); // a lock that nobody holds any more

        StagedFolder::create(&at("out")).unwrap().publish().unwrap();

        let mut left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".other.7.partial", ".out.b.8.partial", ".out.x.partial", "out"]);
    }

    #[test]
    fn a_folder_that_appeared_meanwhile_is_not_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");

        let staged = StagedFolder::create(&target).unwrap();
        fs::create_dir(&target).unwrap();

        assert!(matches!(staged.publish().unwrap_err(), WeightsError::Exists { .. }));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
