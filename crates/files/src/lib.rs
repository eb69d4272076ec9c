#![doc = include_str!("../README.md")]

use std::fmt;
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest config, index, chat template or other file of settings, in bytes. The largest published ones, indices of
/// checkpoints with experts, have about 3 MB.
pub const LONGEST_CONFIG: u64 = 64 << 20;

/// Longest `tokenizer.json`, in bytes. The published ones have about 20 MB.
pub const LONGEST_TOKENIZER: u64 = 256 << 20;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reports.
        source: io::Error,
    },
    /// Something other than a regular file.
    #[error("{}: is {found}; needed: a regular file", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: Kind,
    },
    /// More bytes than a file of its kind has.
    #[error("{}: longer than {most} bytes, the limit for a file of its kind", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        most: u64,
    },
    /// A text in another encoding.
    #[error("{}: not UTF-8; save it as UTF-8", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// Whether there is no such file, nor anything else of that name.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What a path may lead to instead of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A directory.
    Directory,
    /// A named pipe.
    Pipe,
    /// A device, such as `/dev/zero`.
    Device,
    /// A socket.
    Socket,
    /// Whatever else a system has.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Pipe => "a pipe",
            Self::Device => "a device",
            Self::Socket => "a socket",
            Self::Other => "not a regular file",
        })
    }
}

impl Kind {
    fn of(found: FileType) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            if found.is_fifo() {
                return Self::Pipe;
            }
            if found.is_char_device() || found.is_block_device() {
                return Self::Device;
            }
            if found.is_socket() {
                return Self::Socket;
            }
        }
        if found.is_dir() { Self::Directory } else { Self::Other }
    }
}

/// Opens a regular file, or a pipe that the path itself names as already open: `/dev/stdin`, or `/dev/fd/63`, which
/// is what a shell makes of `<(command)`.
///
/// # Errors
///
/// When the system refuses, or there is something else.
pub fn open(path: &Path) -> Result<File, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    // Looked at first: opening a pipe would wait for a writer.
    let found = fs::metadata(path).map_err(io)?.file_type();
    let kind = Kind::of(found);
    if found.is_file() || (kind == Kind::Pipe && is_open_already(path)) {
        File::open(path).map_err(io)
    } else {
        Err(FileError::Kind { path: path.to_owned(), found: kind })
    }
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
///
/// When the system refuses, there is something other than a file, or it is longer.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let too_long = || FileError::TooLong { path: path.to_owned(), most };
    let file = open(path)?;
    let length = file.metadata().map_err(io)?.len();
    if length > most {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // Bounded again: a pipe has no length, and a file may grow.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Reads a text of at most `most` bytes.
///
/// # Errors
///
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String, FileError> {
    let bytes = read(path, most)?;
    String::from_utf8(bytes).map_err(|_| FileError::Encoding { path: path.to_owned() })
}

fn is_open_already(path: &Path) -> bool {
    path == Path::new("/dev/stdin") || path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        let error = read_text(path, 8).unwrap_err().to_string();
        let name = format!("{}: ", path.display());
        error.strip_prefix(&name).unwrap_or_else(|| panic!("{error} names no file")).to_owned()
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");

        fs::write(&path, "{\"a\": 1}").unwrap();
        assert_eq!(read_text(&path, 8).unwrap(), "{\"a\": 1}");
        fs::write(&path, "{\"a\": 1}\n").unwrap();
        assert_eq!(refusal(&path), "longer than 8 bytes, the limit for a file of its kind");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(refusal(&path), "not UTF-8; save it as UTF-8");
        assert_eq!(read(&path, 8).unwrap(), [0xff, 0xfe]);
    }

    #[test]
    fn what_is_not_there_is_told_from_what_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();

        assert!(read(&folder.path().join("a"), 8).unwrap_err().is_missing());
        assert!(!read(folder.path(), 8).unwrap_err().is_missing());
        assert_eq!(refusal(folder.path()), "is a directory; needed: a regular file");
    }

    #[cfg(unix)]
    #[test]
    fn neither_a_pipe_nor_a_device_is_waited_for() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;
        use std::process::Command;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(folder.path(), at("link")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();

        for (name, found) in
            [("pipe", "a pipe"), ("socket", "a socket"), ("zero", "a device"), ("link", "a directory")]
        {
            assert_eq!(refusal(&at(name)), format!("is {found}; needed: a regular file"));
        }
        assert!(refusal(&at("loop")).starts_with("cannot read: "));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_of_the_system_without_a_length_is_bounded_too() {
        assert!(fs::metadata("/proc/self/maps").unwrap().len() == 0);

        assert_eq!(
            refusal("/proc/self/maps".as_ref()),
            "longer than 8 bytes, the limit for a file of its kind"
        );
    }
}
