#![doc = include_str!("../README.md")]

mod suggest;

use std::fmt;
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use suggest::did_you_mean;

/// Maximum bytes of a config, index, chat template or similar file. The largest published ones, indices of checkpoints with
/// experts, have about 3 MB.
pub const LONGEST_CONFIG: u64 = 64 << 20;

/// Maximum bytes of a `tokenizer.json`. The published ones have about 20 MB.
pub const LONGEST_TOKENIZER: u64 = 256 << 20;

/// Error of reading a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system returned an error.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
    /// The path is not a regular file.
    #[error("{}: is {found}; needed: a regular file", path.display())]
    NotRegular {
        /// Path of the file.
        path: PathBuf,
        /// Kind of file found.
        found: NonRegularFile,
    },
    /// The file is longer than allowed.
    #[error("{}: longer than {max_bytes} bytes, the limit for a file of its kind", path.display())]
    TooLong {
        /// Path of the file.
        path: PathBuf,
        /// Bytes allowed.
        max_bytes: u64,
    },
    /// The text is not UTF-8.
    #[error("{}: not UTF-8; save it as UTF-8", path.display())]
    Encoding {
        /// Path of the file.
        path: PathBuf,
    },
}

impl FileError {
    /// Whether the path does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Kinds of files other than regular ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NonRegularFile {
    /// A directory.
    Directory,
    /// A named pipe.
    Pipe,
    /// A device, such as `/dev/zero`.
    Device,
    /// A socket.
    Socket,
    /// Any other kind.
    Other,
}

impl fmt::Display for NonRegularFile {
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

impl NonRegularFile {
    fn new(found: FileType) -> Self {
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

/// Opens a regular file, or a pipe whose path refers to an open file descriptor: `/dev/stdin`, or the `/dev/fd/63` of a shell's
/// `<(command)`.
///
/// # Errors
///
/// When the file cannot be opened, or is of another kind.
pub fn open(path: &Path) -> Result<File, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    // Before opening, which would wait for a writer on a pipe.
    let found = fs::metadata(path).map_err(io)?.file_type();
    let kind = NonRegularFile::new(found);
    if found.is_file() || (kind == NonRegularFile::Pipe && is_open_descriptor(path)) {
        File::open(path).map_err(io)
    } else {
        Err(FileError::NotRegular { path: path.to_owned(), found: kind })
    }
}

/// Reads a file of at most `max_bytes`.
///
/// # Errors
///
/// When it cannot be read, is not a regular file, or is longer.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let too_long = || FileError::TooLong { path: path.to_owned(), max_bytes };
    let file = open(path)?;
    let length = file.metadata().map_err(io)?.len();
    if length > max_bytes {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // Limited again: a pipe has no length, and a file may grow.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes { Err(too_long()) } else { Ok(bytes) }
}

/// Reads a text of at most `max_bytes`.
///
/// # Errors
///
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String, FileError> {
    let bytes = read(path, max_bytes)?;
    String::from_utf8(bytes).map_err(|_| FileError::Encoding { path: path.to_owned() })
}

/// Fills `bytes` from a place in a file, whatever its cursor.
///
/// # Errors
///
/// When the file ends before, or the operating system returns an error.
#[cfg(unix)]
pub fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Fills `bytes` from a place in a file, whatever its cursor.
///
/// # Errors
///
/// When the file ends before, or the operating system returns an error.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => (bytes, at) = (&mut bytes[read..], at + read as u64),
        }
    }
    Ok(())
}

fn is_open_descriptor(path: &Path) -> bool {
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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");

        fs::write(&path, "{\"a\": 1}").unwrap();
        assert_eq!(read_text(&path, 8).unwrap(), "{\"a\": 1}");
        fs::write(&path, "{\"a\": 1}\n").unwrap();
        assert_eq!(refusal(&path), "longer than 8 bytes, the limit for a file of its kind");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(refusal(&path), "not UTF-8; save it as UTF-8");
        assert_eq!(read(&path, 8).unwrap(), [0xff, 0xfe]);
    }

    #[test]
    fn a_missing_file_differs_from_an_unreadable_one() {
        let dir = tempfile::tempdir().unwrap();

        assert!(read(&dir.path().join("a"), 8).unwrap_err().is_missing());
        assert!(!read(dir.path(), 8).unwrap_err().is_missing());
        assert_eq!(refusal(dir.path()), "is a directory; needed: a regular file");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_do_not_block() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;
        use std::process::Command;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(dir.path(), at("link")).unwrap();
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
    fn a_system_file_without_a_length_is_limited_too() {
        assert!(fs::metadata("/proc/self/maps").unwrap().len() == 0);

        assert_eq!(
            refusal("/proc/self/maps".as_ref()),
            "longer than 8 bytes, the limit for a file of its kind"
        );
    }
}
