//! Records out of JSONL files and JSON lists, one at a time.
//!
//! The first character that is not blank decides: `[` opens a list, anything else is JSONL, whatever
//! the file is called. At most one record is in memory at a time, and none may be longer than
//! [`RecordReader::MAX_BYTES`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm4v_files::FileError;
use rayon::prelude::*;
use serde_json::Value;

use crate::file_kind::FileKind;
use crate::layout::Layout;
use crate::location::Location;
use crate::record::{Record, RecordError};

/// Why the records of a file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no such file, or it is none.
    #[error(transparent)]
    Open(#[from] FileError),
    /// A kind of file that is not read.
    #[error("{}: is {kind}, needed a file of json records; {}", .file.display(), kind.remedy(file))]
    Kind {
        /// The file.
        file: PathBuf,
        /// What it is.
        kind: FileKind,
    },
    /// Not JSON.
    #[error("{at}: not valid json, column {column}: {problem}")]
    Json {
        /// The record.
        at: Location,
        /// Column of the fault in its line, from 1; counted from the start of the record in a list.
        column: usize,
        /// What the JSON reader met.
        problem: String,
    },
    /// A list of records that is not well formed between them.
    #[error("{at}: found {found}, needed {needed}")]
    List {
        /// The record.
        at: Location,
        /// What stands there.
        found: String,
        /// What should stand there.
        needed: &'static str,
    },
    /// A record that would fill the memory; probably not a file of records.
    #[error("{at}: longer than {limit} bytes; are the records separated by line breaks?")]
    TooLong {
        /// The record.
        at: Location,
        /// Bytes allowed.
        limit: usize,
    },
    /// JSON, but not a record that can be learned from.
    #[error("{at}: {problem}")]
    Record {
        /// The record.
        at: Location,
        /// What is wrong with it.
        problem: RecordError,
    },
    /// A file without records.
    #[error("{}: holds no records", .file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
}

/// What to do about a record that ends too early.
const ONE_LINE: &str = "a record stands on one line, or all of them in one list";

/// Whether records are lines or elements, and how far the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    /// The index of the next element.
    List(usize),
    /// At the end, or given up after an error that hides where the next record begins.
    Done,
}

/// A record as it stands in the file.
#[derive(Debug)]
struct Raw {
    at: Location,
    json: Vec<u8>,
}

/// Reads the records of one file.
///
/// A record that is wrong is an `Err` in its place, and reading goes on behind it where that is possible,
/// so that a check can report all of them.
#[derive(Debug)]
pub struct RecordReader<R = BufReader<File>> {
    input: R,
    file: Arc<Path>,
    folder: PathBuf,
    layout: Layout,
    media_dir: Option<PathBuf>,
    form: Form,
    /// Line that is read next, from 1.
    line: usize,
    limit: usize,
}

impl RecordReader {
    /// Longest record: room for a few images as `data:` URLs.
    pub const MAX_BYTES: usize = 64 << 20;

    /// Opens `file`. Media are relative to it, or to `media_dir` where they exist there.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or is one that is not read.
    pub fn open(file: &Path, layout: &Layout, media_dir: Option<&Path>) -> Result<Self, ReadError> {
        let io = |source| ReadError::Io { file: file.to_owned(), source };
        if let Ok(Some(kind)) = FileKind::of(file) {
            return Err(ReadError::Kind { file: file.to_owned(), kind });
        }
        let input = BufReader::with_capacity(1 << 16, glm4v_files::open(file)?);
        RecordReader::new(input, file, layout, media_dir).map_err(io)
    }
}

impl<R: BufRead> RecordReader<R> {
    /// Reads records from `input`, which errors call `file`.
    fn new(mut input: R, file: &Path, layout: &Layout, media_dir: Option<&Path>) -> io::Result<Self> {
        if input.fill_buf()?.starts_with(b"\xEF\xBB\xBF") {
            input.consume(3);
        }
        let first = input.fill_buf()?.iter().position(|b| !b.is_ascii_whitespace());
        let mut line = 1;
        let form = match first {
            Some(at) if input.fill_buf()?[at] == b'[' => {
                line += input.fill_buf()?[..at].iter().filter(|b| **b == b'\n').count();
                input.consume(at + 1);
                Form::List(0)
            }
            _ => Form::Lines,
        };
        Ok(Self {
            input,
            file: file.into(),
            folder: file.parent().unwrap_or(Path::new("")).to_owned(),
            layout: layout.clone(),
            media_dir: media_dir.map(Path::to_owned),
            form,
            line,
            limit: RecordReader::MAX_BYTES,
        })
    }

    fn here(&self, index: Option<usize>) -> Location {
        Location { file: self.file.clone(), line: self.line, index }
    }

    fn record(&self, Raw { at, json }: Raw) -> Result<Record, ReadError> {
        let value: Value = serde_json::from_slice(&json).map_err(|error| ReadError::Json {
            at: at.clone(),
            column: error.column(),
            problem: match without_place(&error.to_string()) {
                cut if error.is_eof() && at.index.is_none() => format!("{cut}; {ONE_LINE}"),
                other => other.to_owned(),
            },
        })?;
        Record::parse(value, at.clone(), &self.layout, &self.folder, self.media_dir.as_deref())
            .map_err(|problem| ReadError::Record { at, problem })
    }

    fn io(&mut self, source: io::Error) -> ReadError {
        self.form = Form::Done;
        ReadError::Io { file: self.file.to_path_buf(), source }
    }

    fn next_line(&mut self) -> Option<Result<Raw, ReadError>> {
        loop {
            let mut json = Vec::new();
            let limit = self.limit as u64;
            // One more than allowed for the line break, and one to see that it is too long.
            if let Err(source) = (&mut self.input).take(limit + 2).read_until(b'\n', &mut json) {
                return Some(Err(self.io(source)));
            }
            let at = self.here(None);
            if json.is_empty() {
                self.form = Form::Done;
                return None;
            }
            if json.trim_ascii_end().len() > self.limit {
                self.form = Form::Done;
                return Some(Err(ReadError::TooLong { at, limit: self.limit }));
            }
            self.line += 1;
            if !json.trim_ascii().is_empty() {
                return Some(Ok(Raw { at, json }));
            }
        }
    }

    /// The next byte that is not blank, left in place; `None` at the end of the file.
    fn peek(&mut self) -> Result<Option<u8>, ReadError> {
        loop {
            let byte = match self.input.fill_buf() {
                Ok(bytes) => bytes.first().copied(),
                Err(source) => return Err(self.io(source)),
            };
            let Some(byte) = byte else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line += usize::from(byte == b'\n');
            self.input.consume(1);
        }
    }

    fn next_element(&mut self, index: usize) -> Option<Result<Raw, ReadError>> {
        match self.seek_element(index) {
            Ok(true) => {}
            end => {
                self.form = Form::Done;
                return end.err().map(Err);
            }
        }
        let at = self.here(Some(index));
        self.form = Form::List(index + 1);
        let mut json = Vec::new();
        match self.copy_element(&mut json) {
            Ok(()) if json.len() > self.limit => {
                self.form = Form::Done;
                Some(Err(ReadError::TooLong { at, limit: self.limit }))
            }
            Ok(()) => Some(Ok(Raw { at, json })),
            Err(source) => Some(Err(self.io(source))),
        }
    }

    /// Goes over the comma to the next element; false behind the last.
    fn seek_element(&mut self, index: usize) -> Result<bool, ReadError> {
        let mut next = self.peek()?;
        if next == Some(b']') {
            self.input.consume(1);
            return match self.peek()? {
                None => Ok(false),
                rest => Err(self.misplaced(index, rest, "the end of the file behind \"]\"")),
            };
        }
        if index > 0 {
            if next != Some(b',') {
                return Err(self.misplaced(index, next, "\",\" or \"]\" behind a record"));
            }
            self.input.consume(1);
            next = self.peek()?;
        }
        if next == Some(b'{') { Ok(true) } else { Err(self.misplaced(index, next, "a record, an object")) }
    }

    fn misplaced(&self, index: usize, found: Option<u8>, needed: &'static str) -> ReadError {
        let found = found.map_or("the end of the file".to_owned(), |b| format!("{:?}", char::from(b)));
        ReadError::List { at: self.here(Some(index)), found, needed }
    }

    /// Copies one object, up to the brace that closes it or to one byte more than is allowed.
    fn copy_element(&mut self, json: &mut Vec<u8>) -> io::Result<()> {
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(()); // cut off: the JSON reader says so
            }
            let mut used = 0;
            let mut closed = false;
            for &byte in chunk {
                used += 1;
                self.line += usize::from(byte == b'\n');
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b'{' | b'[' if !quoted => depth += 1,
                    b'}' | b']' if !quoted => {
                        depth -= 1;
                        closed = depth == 0;
                    }
                    _ => {}
                }
                if closed {
                    break;
                }
            }
            json.extend_from_slice(&chunk[..used]);
            self.input.consume(used);
            if closed || json.len() > self.limit {
                return Ok(());
            }
        }
    }
}

impl<R: BufRead> RecordReader<R> {
    /// The next record as it stands in the file.
    fn next_raw(&mut self) -> Option<Result<Raw, ReadError>> {
        match self.form {
            Form::Lines => self.next_line(),
            Form::List(index) => self.next_element(index),
            Form::Done => None,
        }
    }
}

impl<R: BufRead> Iterator for RecordReader<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_raw()?.and_then(|raw| self.record(raw)))
    }
}

/// Bytes of records that are parsed at once, on all threads.
const CHUNK: usize = 8 << 20;

/// Reads all records of `file`, up to the first that is wrong.
///
/// # Errors
///
/// When the file cannot be read, a record is wrong, or there is none.
pub fn read_records(
    file: &Path,
    layout: &Layout,
    media_dir: Option<&Path>,
) -> Result<Vec<Record>, ReadError> {
    read_all(file, layout, media_dir)?.into_iter().collect()
}

/// Reads all records of `file`, and why others cannot be learned from, in the order of the file.
///
/// # Errors
///
/// When the file cannot be read, something in it hides where the next record begins, or it holds none.
pub(crate) fn read_all(
    file: &Path,
    layout: &Layout,
    media_dir: Option<&Path>,
) -> Result<Vec<Result<Record, ReadError>>, ReadError> {
    let mut reader = RecordReader::open(file, layout, media_dir)?;
    let mut records = Vec::new();
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK
            && let Some(raw) = reader.next_raw()
        {
            let raw = raw?;
            bytes += raw.json.len();
            chunk.push(raw);
        }
        if chunk.is_empty() {
            break;
        }
        records.par_extend(chunk.into_par_iter().map(|raw| reader.record(raw)));
    }
    if records.is_empty() { Err(ReadError::Empty { file: file.to_owned() }) } else { Ok(records) }
}

/// What serde_json says without its own line and column, which count from the start of the record.
fn without_place(problem: &str) -> &str {
    problem.split(" at line ").next().unwrap_or(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

    fn reader(text: &str) -> RecordReader<BufReader<&[u8]>> {
        // A buffer of a few bytes, so that every boundary falls inside of something.
        let input = BufReader::with_capacity(16, text.as_bytes());
        RecordReader::new(input, Path::new("d/x.json"), &Layout::default(), None).unwrap()
    }

    fn outcomes(text: &str) -> Vec<String> {
        let said = |r: Result<Record, ReadError>| r.map_or_else(|e| e.to_string(), |r| r.at.to_string());
        reader(text).map(said).collect()
    }

    #[test]
    fn blank_lines_carriage_returns_and_a_byte_order_mark_are_tolerated() {
        let text = format!("\u{feff}\r\n{GOOD}\r\n\n  \n{GOOD}");

        assert_eq!(outcomes(&text), ["d/x.json: line 2", "d/x.json: line 5"]);
    }

    #[test]
    fn a_list_is_read_record_by_record() {
        let brace = GOOD.replace("\"q\"", r#""a \\\" } ] { \\\\""#);
        let text = format!("\u{feff}[\n{GOOD},\n\n {brace}\n,{GOOD}]\n");

        let places = outcomes(&text);

        let placed = |i: usize, line: usize| format!("d/x.json: record [{i}] (line {line})");
        assert_eq!(places, [placed(0, 2), placed(1, 4), placed(2, 5)]);
    }

    #[test]
    fn malformed_json_on_line_17_is_named_and_reading_goes_on() {
        let mut lines = vec![GOOD; 20];
        lines[16] = r#"{"messages": nonsense}"#;

        let outcomes = outcomes(&lines.join("\n"));

        assert_eq!(outcomes.len(), 20);
        assert_eq!(outcomes[16], "d/x.json: line 17: not valid json, column 15: expected ident");
        assert_eq!(outcomes[19], "d/x.json: line 20");
    }

    #[test]
    fn a_record_over_several_lines_says_what_is_needed() {
        let outcomes = outcomes("{\n\"messages\": []}");

        let needed = "d/x.json: line 1: not valid json, column 0: EOF while parsing an object; \
                      a record stands on one line, or all of them in one list";
        assert_eq!(outcomes[0], needed);
    }

    #[test]
    fn a_broken_list_is_named_at_its_place() {
        let cases = [
            (format!("[{GOOD}\n{GOOD}]"), 1, "record [1] (line 2): found '{', needed \",\" or \"]\" behind"),
            (format!("[{GOOD},]"), 1, "record [1] (line 1): found ']', needed a record, an object"),
            (format!("[{GOOD}"), 1, "record [1] (line 1): found the end of the file, needed"),
            (format!("[{GOOD}] 3"), 1, "record [1] (line 1): found '3', needed the end of the file"),
            ("[\n 3]".to_owned(), 0, "record [0] (line 2): found '3', needed a record, an object"),
            ("[{\"a\": ".to_owned(), 0, "record [0] (line 1): not valid json, column 6: EOF while parsing"),
        ];
        for (text, at, said) in cases {
            let outcomes = outcomes(&text);
            assert!(outcomes[at].contains(said), "{}", outcomes[at]);
        }
    }

    #[test]
    fn a_record_without_end_does_not_fill_the_memory() {
        for (text, place) in [(GOOD.to_owned(), "line 1"), (format!("[{GOOD}]"), "record [0] (line 1)")] {
            let mut reader = reader(&text);
            reader.limit = GOOD.len() - 1;

            let error = reader.next().unwrap().unwrap_err().to_string();

            assert!(error.starts_with(&format!("d/x.json: {place}: longer than")), "{error}");
            assert!(reader.next().is_none());
        }
    }

    #[test]
    fn a_record_of_exactly_the_limit_is_read() {
        for text in [format!("{GOOD}\r\n{GOOD}"), format!("[{GOOD}]")] {
            let mut reader = reader(&text);
            reader.limit = GOOD.len();

            assert!(reader.all(|r| r.is_ok()));
        }
    }

    #[test]
    fn a_file_that_is_missing_or_empty_or_parquet_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.jsonl");
        std::fs::write(&empty, " \n").unwrap();
        let read = |name: &str| {
            let error = read_records(&folder.path().join(name), &Layout::default(), None).unwrap_err();
            error.to_string()
        };

        assert!(read("none.jsonl").contains("none.jsonl: cannot read: "));
        assert!(read("empty.jsonl").ends_with("empty.jsonl: holds no records"));
        std::fs::write(folder.path().join("x.PARQUET"), "PAR1").unwrap();
        let parquet = read("x.PARQUET");
        assert!(parquet.contains("x.PARQUET: is a parquet file, which is not read yet"), "{parquet}");
        assert!(parquet.contains("pandas.read_parquet("), "{parquet}");
    }
}
