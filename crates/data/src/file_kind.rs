//! What a file is that holds no records, and what to do with it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// A kind of file that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A pipe (FIFO), socket or device.
    Special,
    /// A columnar file: `parquet`, `arrow` or `feather`.
    Columnar(&'static str),
    /// A table in text: `csv` or `tsv`.
    Table(&'static str),
    /// A compressed file, with the program that unpacks it.
    Compressed(&'static str, &'static str),
    /// Many files in one: `tar` or `zip`.
    Archive(&'static str),
    /// A text of another language: `yaml`.
    Yaml,
}

/// Kinds by the first bytes of a file.
const MAGIC: [(&[u8], FileKind); 8] = [
    (b"PAR1", FileKind::Columnar("parquet")),
    (b"ARROW1", FileKind::Columnar("arrow")),
    (b"FEA1", FileKind::Columnar("feather")),
    (b"\x1f\x8b", FileKind::Compressed("gzip", "gunzip")),
    (b"\x28\xb5\x2f\xfd", FileKind::Compressed("zstd", "unzstd")),
    (b"BZh", FileKind::Compressed("bzip2", "bunzip2")),
    (b"\xfd7zXZ\0", FileKind::Compressed("xz", "unxz")),
    (b"PK\x03\x04", FileKind::Archive("zip")),
];

/// Kinds by the ending of the name, for what first bytes do not tell.
const ENDINGS: [(&str, FileKind); 13] = [
    ("parquet", FileKind::Columnar("parquet")),
    ("arrow", FileKind::Columnar("arrow")),
    ("feather", FileKind::Columnar("feather")),
    ("csv", FileKind::Table("csv")),
    ("tsv", FileKind::Table("tsv")),
    ("gz", FileKind::Compressed("gzip", "gunzip")),
    ("zst", FileKind::Compressed("zstd", "unzstd")),
    ("bz2", FileKind::Compressed("bzip2", "bunzip2")),
    ("xz", FileKind::Compressed("xz", "unxz")),
    ("tar", FileKind::Archive("tar")),
    ("zip", FileKind::Archive("zip")),
    ("yaml", FileKind::Yaml),
    ("yml", FileKind::Yaml),
];

impl FileKind {
    /// What the file at `path` is, if it is none of records.
    ///
    /// # Errors
    ///
    /// When there is no such file or it cannot be read.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        let found = fs::metadata(path)?;
        if found.is_dir() {
            return Ok(Some(Self::Directory));
        }
        if !found.is_file() {
            return Ok(Some(Self::Special)); // opening one may wait for ever
        }
        let mut head = Vec::new();
        File::open(path)?.take(8).read_to_end(&mut head)?;
        let by_head = MAGIC.iter().find(|(magic, _)| head.starts_with(magic));
        let ending = path.extension().unwrap_or(OsStr::new(""));
        let by_ending =
            || ENDINGS.iter().find(|(known, _)| ending.eq_ignore_ascii_case(known)).map(|(_, k)| *k);
        Ok(by_head.map(|(_, kind)| *kind).or_else(by_ending))
    }

    /// What to do with the file.
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
            Self::Directory => match first_of_records(path) {
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
        }
    }
}

impl fmt::Display for FileKind {
    /// What the file is, with an article.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("a directory"),
            Self::Special => f.write_str("a pipe or device, not a regular file"),
            Self::Columnar(kind) | Self::Table(kind) | Self::Archive(kind) => {
                write!(f, "a {kind} file, which is not read yet")
            }
            Self::Compressed(kind, _) => write!(f, "compressed with {kind}, which is not read yet"),
            Self::Yaml => f.write_str("a yaml file, which holds no records"),
        }
    }
}

/// The first file of records in a directory, by name.
fn first_of_records(folder: &Path) -> Option<std::path::PathBuf> {
    let paths = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let records = |path: &std::path::PathBuf| {
        let ending = path.extension().unwrap_or(OsStr::new(""));
        ["json", "jsonl"].iter().any(|known| ending.eq_ignore_ascii_case(known))
    };
    paths.filter(records).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str, bytes: &[u8]) -> Option<FileKind> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        FileKind::of(&path).unwrap()
    }

    #[test]
    fn the_first_bytes_count_before_the_name() {
        assert_eq!(kind("a.jsonl", b"{}"), None);
        assert_eq!(kind("a", b"[]"), None);
        assert_eq!(kind("a.jsonl", b"\x1f\x8b\x08"), Some(FileKind::Compressed("gzip", "gunzip")));
        assert_eq!(kind("a.bin", b"PAR1"), Some(FileKind::Columnar("parquet")));
        assert_eq!(kind("a.CSV", b"a,b"), Some(FileKind::Table("csv")));
    }

    #[test]
    fn a_directory_names_a_file_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let remedy = |kind: FileKind| kind.remedy(folder.path());
        assert!(remedy(FileKind::Directory).contains("no .json or .jsonl file"));
        for name in ["b.jsonl", "a.json", "README.md"] {
            fs::write(folder.path().join(name), "").unwrap();
        }

        let first = folder.path().join("a.json");
        assert_eq!(remedy(FileKind::Directory), format!("name one of its files, as {}", first.display()));
    }
}
