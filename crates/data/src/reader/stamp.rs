//! Length and time of a file, by which a change during a run is noticed.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::error::ReadError;

/// What a file was when it was opened.
///
/// Files are opened anew for each read: datasets may have more files than a process may hold open, and a file that was replaced would
/// be read as it was. A read costs a few microseconds more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl FileStamp {
    pub(super) fn new(metadata: &Metadata) -> Self {
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }

    pub(super) fn length(self) -> u64 {
        self.length
    }

    /// Opens the file again, if it is still the same.
    pub(super) fn reopen(self, file: &Path) -> Result<File, ReadError> {
        let opened = glm4v_files::open(file)?;
        self.check(&opened, file)?;
        Ok(opened)
    }

    fn check(self, opened: &File, file: &Path) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { file: file.to_owned(), source };
        let now = Self::new(&opened.metadata().map_err(io)?);
        let file = file.to_owned();
        match now == self {
            true => Ok(()),
            false => Err(ReadError::Changed { file, was: self.length, now: now.length }),
        }
    }

    /// The bytes of a part of the file. A change that happens during the read is an error as well.
    pub(super) fn read(self, file: &Path, at: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        let opened = self.reopen(file)?;
        let mut bytes = vec![0; length];
        let read = glm4v_files::read_exact_at(&opened, &mut bytes, at);
        self.check(&opened, file)?;
        read.map_err(|source: io::Error| ReadError::Io { file: file.to_owned(), source })?;
        Ok(bytes)
    }
}
