//! Files without records, detected by their first bytes or extension, with the way to convert them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The format of a file that cannot be read as records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsupportedFile {
    /// A directory.
    Directory,
    /// A named pipe, socket or device.
    Special,
    /// A columnar file: `arrow` or `feather`, or `parquet` where the crate is built without it.
    Columnar(&'static str),
    /// A text table: `csv` or `tsv`.
    Table(&'static str),
    /// A compressed file: format and the program that decompresses it.
    Compressed(&'static str, &'static str),
    /// An archive: `zip`.
    Archive(&'static str),
    /// YAML, as of a LLaMA-Factory config.
    Yaml,
    /// An image: `png`, `jpeg` or `gif`.
    Image(&'static str),
}

/// Formats by the first bytes of a file.
const MAGIC: &[(&[u8], UnsupportedFile)] = &[
    #[cfg(not(feature = "parquet"))]
    (b"PAR1", UnsupportedFile::Columnar("parquet")),
    (b"ARROW1", UnsupportedFile::Columnar("arrow")),
    (b"FEA1", UnsupportedFile::Columnar("feather")),
    (b"\x1f\x8b", UnsupportedFile::Compressed("gzip", "gunzip")),
    (b"\x28\xb5\x2f\xfd", UnsupportedFile::Compressed("zstd", "unzstd")),
    (b"BZh", UnsupportedFile::Compressed("bzip2", "bunzip2")),
    (b"\xfd7zXZ\0", UnsupportedFile::Compressed("xz", "unxz")),
    (b"PK\x03\x04", UnsupportedFile::Archive("zip")),
    (b"\x89PNG", UnsupportedFile::Image("png")),
    (b"\xff\xd8\xff", UnsupportedFile::Image("jpeg")),
    (b"GIF8", UnsupportedFile::Image("gif")),
];

/// Formats by extension, for files whose first bytes are not conclusive.
const EXTENSIONS: &[(&str, UnsupportedFile)] = &[
    #[cfg(not(feature = "parquet"))]
    ("parquet", UnsupportedFile::Columnar("parquet")),
    ("arrow", UnsupportedFile::Columnar("arrow")),
    ("feather", UnsupportedFile::Columnar("feather")),
    ("csv", UnsupportedFile::Table("csv")),
    ("tsv", UnsupportedFile::Table("tsv")),
    ("gz", UnsupportedFile::Compressed("gzip", "gunzip")),
    ("zst", UnsupportedFile::Compressed("zstd", "unzstd")),
    ("bz2", UnsupportedFile::Compressed("bzip2", "bunzip2")),
    ("xz", UnsupportedFile::Compressed("xz", "unxz")),
    ("zip", UnsupportedFile::Archive("zip")),
    ("yaml", UnsupportedFile::Yaml),
    ("yml", UnsupportedFile::Yaml),
];

impl UnsupportedFile {
    /// The format of the file at `path`; `None` if it may hold records.
    ///
    /// # Errors
    ///
    /// When there is no such file or it cannot be read.
    pub(crate) fn detect(path: &Path) -> io::Result<Option<Self>> {
        let found = fs::metadata(path)?;
        if found.is_dir() {
            return Ok(Some(Self::Directory));
        }
        if !found.is_file() {
            return Ok(Some(Self::Special)); // opening a pipe may block forever
        }
        let mut head = Vec::new();
        File::open(path)?.take(8).read_to_end(&mut head)?;
        let extension = path.extension().unwrap_or(OsStr::new(""));
        let by_head = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, file)| *file);
        let by_extension = EXTENSIONS.iter().find(|(known, _)| extension.eq_ignore_ascii_case(known));
        Ok(by_head.or(by_extension.map(|(_, file)| *file)))
    }

    /// Advice on the conversion of the file at `path`.
    pub(crate) fn remedy(self, path: &Path) -> String {
        let from = path.display();
        let to = path.with_extension("jsonl");
        let to = to.display();
        let pandas = |read: &str| {
            format!(
                "convert it: python3 -c \"import pandas; pandas.{read}.to_json('{to}', orient='records', lines=True, \
                 force_ascii=False)\""
            )
        };
        match self {
            Self::Directory => match first_records_file(path) {
                Some(file) => format!("name one of its files, as {}", file.display()),
                None => "it holds no .json or .jsonl file either; convert what it holds to JSONL".to_owned(),
            },
            Self::Special => "write the records to a .jsonl file first".to_owned(),
            Self::Columnar("parquet") => pandas(&format!("read_parquet('{from}')")),
            Self::Columnar(_) => pandas(&format!("read_feather('{from}')")),
            Self::Table("tsv") => pandas(&format!("read_csv('{from}', sep='\\t')")),
            Self::Table(_) => pandas(&format!("read_csv('{from}')")),
            Self::Compressed(_, program) => format!("unpack it: {program} -k '{from}'"),
            Self::Archive(_) => "unpack it, and list its records in a .jsonl file".to_owned(),
            Self::Yaml => "convert it to JSONL; a run's config is given to the command train".to_owned(),
            Self::Image(_) => "write a .jsonl file whose records name it".to_owned(),
        }
    }
}

impl fmt::Display for UnsupportedFile {
    /// The format with an article.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("a directory"),
            Self::Special => f.write_str("a pipe or device, not a regular file"),
            Self::Columnar(kind) | Self::Table(kind) | Self::Archive(kind) => {
                let article = if kind.starts_with('a') { "an" } else { "a" };
                write!(f, "{article} {kind} file, which is not read yet")
            }
            Self::Compressed(kind, _) => write!(f, "compressed with {kind}, which is not read yet"),
            Self::Yaml => f.write_str("a yaml file, which holds no records"),
            Self::Image(kind) => write!(f, "a {kind} image, which holds no records"),
        }
    }
}

/// The first file with records in a directory, by name.
fn first_records_file(dir: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| has_records_extension(path)).min()
}

fn has_records_extension(path: &Path) -> bool {
    let extension = path.extension().unwrap_or(OsStr::new(""));
    ["json", "jsonl"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(name: &str, bytes: &[u8]) -> Option<UnsupportedFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        UnsupportedFile::detect(&path).unwrap()
    }

    #[test]
    fn the_first_bytes_count_before_the_name() {
        assert_eq!(detected("a.jsonl", b"{}"), None);
        assert_eq!(detected("a", b"[]"), None);
        assert_eq!(detected("a.jsonl", b"\x89PNG\r\n"), Some(UnsupportedFile::Image("png")));
        assert_eq!(detected("a.jsonl", b"\x1f\x8b\x08"), Some(UnsupportedFile::Compressed("gzip", "gunzip")));
        assert_eq!(detected("a.bin", b"ARROW1"), Some(UnsupportedFile::Columnar("arrow")));
        assert_eq!(detected("a.CSV", b"a,b"), Some(UnsupportedFile::Table("csv")));
    }

    #[test]
    fn a_format_has_its_article() {
        assert_eq!(UnsupportedFile::Columnar("arrow").to_string(), "an arrow file, which is not read yet");
        assert_eq!(UnsupportedFile::Table("csv").to_string(), "a csv file, which is not read yet");
    }

    #[test]
    fn a_directory_names_a_file_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let remedy = |file: UnsupportedFile| file.remedy(dir.path());
        assert!(remedy(UnsupportedFile::Directory).contains("no .json or .jsonl file"));
        for name in ["b.jsonl", "a.json", "README.md"] {
            fs::write(dir.path().join(name), "").unwrap();
        }

        let first = dir.path().join("a.json");
        assert_eq!(
            remedy(UnsupportedFile::Directory),
            format!("name one of its files, as {}", first.display())
        );
    }
}
