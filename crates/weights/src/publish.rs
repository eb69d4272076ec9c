//! Files and folders that appear whole or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::WeightsError;

/// Ends the name of whatever is not whole yet.
const PARTIAL: &str = ".partial";

/// Where something is made that will be `target`: beside it, so that a rename is all that is left to do.
pub(crate) fn staged(target: &Path) -> PathBuf {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    parent.join(format!(".{name}.{}{PARTIAL}", std::process::id()))
}

/// Removes what a program that was killed while writing left in `folder`; nobody else may be writing there.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(PARTIAL) {
            // What cannot be removed is no harm.
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}

/// Writes a file beside its place and moves it there.
///
/// # Errors
///
/// When the system refuses; what was there before is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    let staged = staged(path);
    let written = fs::File::create(&staged)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&staged, path));
    if written.is_err() {
        let _ = fs::remove_file(&staged);
    }
    written.map_err(WeightsError::write(path))
}

/// A folder in the making: files go into [`path`](Self::path), [`publish`](Self::publish) moves all of them into
/// place at once. Dropped unpublished, it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFolder {
    staged: PathBuf,
    target: PathBuf,
}

impl StagedFolder {
    /// Starts a folder that will be `target`, making the folders above it.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn new(target: &Path) -> Result<Self, WeightsError> {
        let staged = staged(target);
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged).map_err(WeightsError::write(&staged))?;
        Ok(Self { staged, target: target.to_owned() })
    }

    /// Where to put the files.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Moves the folder into place; one that was there before is replaced.
    ///
    /// # Errors
    ///
    /// When the system refuses; what was there before is then there again.
    pub fn publish(self) -> Result<(), WeightsError> {
        let old = self.staged.with_extension("old");
        if self.target.exists() {
            let _ = fs::remove_dir_all(&old);
            fs::rename(&self.target, &old).map_err(WeightsError::write(&self.target))?;
        }
        if let Err(source) = fs::rename(&self.staged, &self.target) {
            let _ = fs::rename(&old, &self.target);
            return Err(WeightsError::write(&self.target)(source));
        }
        let _ = fs::remove_dir_all(&old);
        Ok(())
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.staged);
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
}
