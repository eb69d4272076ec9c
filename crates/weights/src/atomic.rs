//! Files and directories that appear complete or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::WeightsError;

/// Suffix of everything that is not complete yet.
const PARTIAL: &str = ".partial";

/// Partial paths of this process, for [`remove_unpublished`].
static UNPUBLISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unpublished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNPUBLISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attempts to remove a directory that another thread still writes to.
const REMOVE_ATTEMPTS: usize = 20;

/// Removes all partial files and directories of this process, which must be about to exit: the lock on them is never
/// released, so that any thread that starts or publishes another one blocks until the process ends.
pub fn remove_unpublished() {
    let unpublished = unpublished();
    for path in unpublished.iter() {
        // Each file created meanwhile makes one attempt fail.
        let _ = (0..REMOVE_ATTEMPTS).find(|_| remove(path).is_ok());
    }
    std::mem::forget(unpublished);
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// A partial path, registered for [`remove_unpublished`] and removed on drop.
#[derive(Debug)]
pub(crate) struct StagedPath {
    path: PathBuf,
}

impl StagedPath {
    /// Chooses a path in the directory of `target`, so that publishing is a rename within one file system.
    pub(crate) fn beside(target: &Path) -> Self {
        let process = std::process::id();
        Self::register(sibling(target, |name| format!(".{name}.{process}{PARTIAL}")))
    }

    fn register(path: PathBuf) -> Self {
        unpublished().insert(path.clone());
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to `target`.
    pub(crate) fn publish(&self, target: &Path) -> io::Result<()> {
        self.publish_with(|staged| fs::rename(staged, target))
    }

    /// Runs `rename` under the lock of the registry, so that [`remove_unpublished`] cannot interrupt it.
    fn publish_with<E>(&self, rename: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
        let mut unpublished = unpublished();
        rename(&self.path)?;
        unpublished.remove(&self.path);
        Ok(())
    }
}

impl Drop for StagedPath {
    fn drop(&mut self) {
        let mut unpublished = unpublished();
        if unpublished.remove(&self.path) {
            // Nothing depends on its removal.
            let _ = remove(&self.path);
        }
    }
}

/// The path in the directory of `target` with the name that `name` makes of its own.
fn sibling(target: &Path, name: impl FnOnce(&str) -> String) -> PathBuf {
    parent_dir(target).join(name(&target.file_name().unwrap_or_default().to_string_lossy()))
}

fn parent_dir(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the partial files that killed processes left in `dir`; no other process may be writing there.
pub fn remove_leftovers(dir: &Path) {
    remove_matching(dir, |name| name.starts_with('.') && name.ends_with(PARTIAL));
}

fn remove_matching(dir: &Path, matches: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if matches(&entry.file_name().to_string_lossy()) {
            // Nothing depends on its removal.
            let _ = remove(&entry.path());
        }
    }
}

/// Writes a file atomically: to a partial file in the same directory, which is then renamed.
///
/// # Errors
///
/// When writing fails; an existing file is then unchanged.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    let staged = StagedPath::beside(path);
    File::create(staged.path())
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| staged.publish(path))
        .map_err(WeightsError::write(path))
}

/// The exclusive right to create a directory.
///
/// A locked file in the same directory: the system releases the lock with the process, however that ends.
#[derive(Debug)]
struct DirLock {
    _locked: File,
    _path: StagedPath,
}

impl DirLock {
    /// Locks `target` and removes what killed processes left of it.
    fn acquire(target: &Path) -> Result<Self, WeightsError> {
        let path = sibling(target, |name| format!(".{name}.lock"));
        let locked = lock_file(&path, target)?;
        let lock = Self { _locked: locked, _path: StagedPath::register(path) };
        lock.remove_leftovers_of(target);
        Ok(lock)
    }

    /// Takes `self` because only the holder of the lock may do this.
    fn remove_leftovers_of(&self, target: &Path) {
        let prefix = format!(".{}.", target.file_name().unwrap_or_default().to_string_lossy());
        remove_matching(parent_dir(target), |found| {
            let process = found.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(PARTIAL));
            process.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
        });
    }
}

fn lock_file(path: &Path, target: &Path) -> Result<File, WeightsError> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(WeightsError::write(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(WeightsError::Locked { path: target.to_owned() }),
            // On a file system without locks other processes go unnoticed.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => return Err(WeightsError::write(path)(source)),
        }
        // The previous holder may have removed the file between our two calls.
        if is_at(&file, path) {
            return Ok(file);
        }
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

/// A directory that appears complete or not at all: files are written under [`path`](Self::path), and
/// [`publish`](Self::publish) renames the directory to its target. Dropped unpublished, it is removed.
#[derive(Debug)]
pub struct AtomicDir {
    staged: StagedPath,
    target: PathBuf,
    /// `None` if an existing directory may be replaced.
    lock: Option<DirLock>,
}

impl AtomicDir {
    /// Starts a directory that will replace `target` if that exists; creates its parents.
    ///
    /// # Errors
    ///
    /// When creating the partial directory fails.
    pub fn new(target: &Path) -> Result<Self, WeightsError> {
        Self::with_lock(target, None)
    }

    /// Starts a directory at a path that must not exist, exclusively among processes, and removes partial directories that
    /// killed processes left there.
    ///
    /// # Errors
    ///
    /// When `target` exists, another process is creating it, or creating the partial directory fails.
    pub fn create(target: &Path) -> Result<Self, WeightsError> {
        let exists = || WeightsError::Exists { path: target.to_owned() };
        // Checked before locking too, so that no lock file appears beside an existing directory.
        if target.exists() {
            return Err(exists());
        }
        let parent = parent_dir(target);
        fs::create_dir_all(parent).map_err(WeightsError::write(parent))?;
        let lock = DirLock::acquire(target)?;
        if target.exists() {
            return Err(exists());
        }
        Self::with_lock(target, Some(lock))
    }

    fn with_lock(target: &Path, lock: Option<DirLock>) -> Result<Self, WeightsError> {
        let staged = StagedPath::beside(target);
        let _ = remove(staged.path());
        fs::create_dir_all(staged.path()).map_err(WeightsError::write(staged.path()))?;
        Ok(Self { staged, target: target.to_owned(), lock })
    }

    /// The partial directory, to write files into.
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Renames the partial directory to its target and removes the directory it replaces.
    ///
    /// # Errors
    ///
    /// When the rename fails; a directory that was to be replaced is then restored. Also when one appeared at a target
    /// that must not exist.
    pub fn publish(self) -> Result<(), WeightsError> {
        let target = &self.target;
        if self.lock.is_some() && target.exists() {
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
    fn an_unpublished_directory_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");

        let staged = AtomicDir::new(&target).unwrap();
        fs::write(staged.path().join("a"), "1").unwrap();
        drop(staged);

        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_leftovers_of_a_killed_program_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");
        std::mem::forget(AtomicDir::new(&target).unwrap()); // as if killed
        fs::write(parent.path().join(".metrics.jsonl.7.partial"), "").unwrap();
        fs::write(parent.path().join("notes.partial"), "").unwrap();

        remove_leftovers(parent.path());

        let left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.partial"]);
    }

    #[test]
    fn a_failed_publish_restores_the_replaced_directory() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), "1").unwrap();

        let staged = AtomicDir::new(&target).unwrap();
        fs::remove_dir(staged.path()).unwrap(); // nothing is left to move into place
        assert!(staged.publish().is_err());

        assert!(target.join("a").exists());
    }

    #[test]
    fn a_published_directory_replaces_the_one_before() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("final");
        for name in ["a", "b"] {
            let staged = AtomicDir::new(&target).unwrap();
            fs::write(staged.path().join(name), "1").unwrap();
            staged.publish().unwrap();
        }

        assert!(target.join("b").exists() && !target.join("a").exists());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_created_by_one_process_at_a_time_and_replaces_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("above/out");

        let first = AtomicDir::create(&target).unwrap();
        let second = AtomicDir::create(&target).unwrap_err();
        first.publish().unwrap();
        let third = AtomicDir::create(&target).unwrap_err();

        assert!(matches!(second, WeightsError::Locked { .. }), "{second}");
        assert!(matches!(third, WeightsError::Exists { .. }), "{third}");
        let left: Vec<_> = fs::read_dir(target.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn creating_a_directory_removes_only_its_own_leftovers() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        for left in [".out.7.partial", ".out.b.8.partial", ".other.7.partial", ".out.x.partial"] {
            fs::create_dir(at(left)).unwrap();
            fs::write(at(left).join("a"), "1").unwrap();
        }
        fs::write(at(".out.lock"), "").unwrap(); // the lock file of a killed process

        AtomicDir::create(&at("out")).unwrap().publish().unwrap();

        let mut left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".other.7.partial", ".out.b.8.partial", ".out.x.partial", "out"]);
    }

    #[test]
    fn a_directory_that_appeared_meanwhile_is_not_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");

        let staged = AtomicDir::create(&target).unwrap();
        fs::create_dir(&target).unwrap();

        assert!(matches!(staged.publish().unwrap_err(), WeightsError::Exists { .. }));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
