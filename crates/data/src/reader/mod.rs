//! A reader of JSONL files and JSON lists.
//!
//! The first character other than white space decides, not the name of the file: `[` opens a list, anything else is JSONL. One record
//! is in memory at a time, of at most [`RecordReader::MAX_BYTES`].

mod error;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

pub use error::ReadError;

use crate::location::RecordLocation;
use crate::record::Record;
use crate::schema::RecordSchema;
use crate::unsupported_file::UnsupportedFile;

/// Advice for a line that ends within a record.
const ONE_LINE: &str = "write each record on one line, or all of them in one list";

/// The style of the file and the progress of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    JsonLines,
    JsonList {
        /// Index of the next element.
        next: usize,
    },
    /// At the end, or after an error that hides the beginning of the next record.
    Done,
}

/// A record before parsing.
#[derive(Debug)]
struct RawRecord {
    location: RecordLocation,
    json: Vec<u8>,
}

/// Reads the records of one file.
///
/// A bad record is an `Err` in its place. Reading continues after it if the next record can be found, so that a check reports all bad
/// records.
#[derive(Debug)]
pub struct RecordReader<R = BufReader<File>> {
    input: R,
    file: Arc<Path>,
    dir: PathBuf,
    schema: RecordSchema,
    media_dir: Option<PathBuf>,
    state: ReadState,
    /// Number of the next line, from 1.
    line: usize,
    /// Maximum number of bytes of a record.
    limit: usize,
}

impl RecordReader {
    /// Maximum number of bytes of a record, enough for a few images as `data:` URLs.
    pub const MAX_BYTES: usize = 64 << 20;

    /// Opens `file`. Media paths are relative to `media_dir` where they exist there, else to the file.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or has another format.
    pub fn open(file: &Path, schema: &RecordSchema, media_dir: Option<&Path>) -> Result<Self, ReadError> {
        let io = |source| ReadError::Io { file: file.to_owned(), source };
        if let Ok(Some(found)) = UnsupportedFile::detect(file) {
            return Err(ReadError::Unsupported { file: file.to_owned(), found });
        }
        let input = BufReader::with_capacity(1 << 16, glm4v_files::open(file)?);
        RecordReader::new(input, file, schema, media_dir).map_err(io)
    }
}

impl<R: BufRead> RecordReader<R> {
    /// Reads records from `input`; `file` is for errors and media paths.
    fn new(mut input: R, file: &Path, schema: &RecordSchema, media_dir: Option<&Path>) -> io::Result<Self> {
        if input.fill_buf()?.starts_with(b"\xEF\xBB\xBF") {
            input.consume(3);
        }
        let first = input.fill_buf()?.iter().position(|b| !b.is_ascii_whitespace());
        let mut line = 1;
        let state = match first {
            Some(at) if input.fill_buf()?[at] == b'[' => {
                line += input.fill_buf()?[..at].iter().filter(|b| **b == b'\n').count();
                input.consume(at + 1);
                ReadState::JsonList { next: 0 }
            }
            _ => ReadState::JsonLines,
        };
        Ok(Self {
            input,
            file: file.into(),
            dir: file.parent().unwrap_or(Path::new("")).to_owned(),
            schema: schema.clone(),
            media_dir: media_dir.map(Path::to_owned),
            state,
            line,
            limit: RecordReader::MAX_BYTES,
        })
    }

    fn location(&self, index: Option<usize>) -> RecordLocation {
        RecordLocation { file: self.file.clone(), line: self.line, index }
    }

    fn parse(&self, RawRecord { location, json }: RawRecord) -> Result<Record, ReadError> {
        let value: Value = serde_json::from_slice(&json).map_err(|error| ReadError::Json {
            location: location.clone(),
            column: error.column(),
            problem: match without_position(&error.to_string()) {
                problem if error.is_eof() && location.index.is_none() => format!("{problem}; {ONE_LINE}"),
                problem => problem.to_owned(),
            },
        })?;
        Record::parse(value, location.clone(), &self.schema, &self.dir, self.media_dir.as_deref())
            .map_err(|problem| ReadError::Record { location, problem })
    }

    fn io(&mut self, source: io::Error) -> ReadError {
        self.state = ReadState::Done;
        ReadError::Io { file: self.file.to_path_buf(), source }
    }

    fn next_line(&mut self) -> Option<Result<RawRecord, ReadError>> {
        loop {
            let mut json = Vec::new();
            let limit = self.limit as u64;
            // Two bytes above the limit: one for the line break, and one that shows that the line is too long.
            if let Err(source) = (&mut self.input).take(limit + 2).read_until(b'\n', &mut json) {
                return Some(Err(self.io(source)));
            }
            let location = self.location(None);
            if json.is_empty() {
                self.state = ReadState::Done;
                return None;
            }
            if json.trim_ascii_end().len() > self.limit {
                self.state = ReadState::Done;
                return Some(Err(ReadError::TooLong { location, limit: self.limit }));
            }
            self.line += 1;
            if !json.trim_ascii().is_empty() {
                return Some(Ok(RawRecord { location, json }));
            }
        }
    }

    /// The next byte other than white space, which is not consumed; `None` at the end of the file.
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

    fn next_element(&mut self, index: usize) -> Option<Result<RawRecord, ReadError>> {
        match self.seek_element(index) {
            Ok(true) => {}
            end => {
                self.state = ReadState::Done;
                return end.err().map(Err);
            }
        }
        let location = self.location(Some(index));
        self.state = ReadState::JsonList { next: index + 1 };
        let mut json = Vec::new();
        match self.copy_element(&mut json) {
            Ok(()) if json.len() > self.limit => {
                self.state = ReadState::Done;
                Some(Err(ReadError::TooLong { location, limit: self.limit }))
            }
            Ok(()) => Some(Ok(RawRecord { location, json })),
            Err(source) => Some(Err(self.io(source))),
        }
    }

    /// Skips the comma before the next element; false after the last element.
    fn seek_element(&mut self, index: usize) -> Result<bool, ReadError> {
        let mut next = self.peek()?;
        if next == Some(b']') {
            self.input.consume(1);
            return match self.peek()? {
                None => Ok(false),
                rest => Err(self.misplaced(index, rest, "the end of the file after \"]\"")),
            };
        }
        if index > 0 {
            if next != Some(b',') {
                return Err(self.misplaced(index, next, "\",\" or \"]\" after a record"));
            }
            self.input.consume(1);
            next = self.peek()?;
        }
        if next == Some(b'{') { Ok(true) } else { Err(self.misplaced(index, next, "a record, an object")) }
    }

    fn misplaced(&self, index: usize, found: Option<u8>, needed: &'static str) -> ReadError {
        let found = found.map_or("the end of the file".to_owned(), |b| format!("{:?}", char::from(b)));
        ReadError::List { location: self.location(Some(index)), found, needed }
    }

    /// Copies one object up to its closing brace, or until it is longer than the limit.
    fn copy_element(&mut self, json: &mut Vec<u8>) -> io::Result<()> {
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(()); // incomplete, an error of the JSON parser
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
    /// The next record before parsing.
    fn next_raw(&mut self) -> Option<Result<RawRecord, ReadError>> {
        match self.state {
            ReadState::JsonLines => self.next_line(),
            ReadState::JsonList { next } => self.next_element(next),
            ReadState::Done => None,
        }
    }
}

impl<R: BufRead> Iterator for RecordReader<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_raw()?.and_then(|raw| self.parse(raw)))
    }
}

/// Bytes of records that are parsed at once, by all threads.
const CHUNK_BYTES: usize = 8 << 20;

/// Reads all records of `file`.
///
/// # Errors
///
/// When the file cannot be read, one of its records is bad, or there is none.
pub fn read_records(
    file: &Path,
    schema: &RecordSchema,
    media_dir: Option<&Path>,
) -> Result<Vec<Record>, ReadError> {
    read_all(file, schema, media_dir)?.into_iter().collect()
}

/// Reads all records of `file` in order, with the errors of bad ones.
///
/// # Errors
///
/// When the file cannot be read, an error hides the beginning of the next record, or there is no record.
pub(crate) fn read_all(
    file: &Path,
    schema: &RecordSchema,
    media_dir: Option<&Path>,
) -> Result<Vec<Result<Record, ReadError>>, ReadError> {
    let mut reader = RecordReader::open(file, schema, media_dir)?;
    let mut records = Vec::new();
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES
            && let Some(raw) = reader.next_raw()
        {
            let raw = raw?;
            bytes += raw.json.len();
            chunk.push(raw);
        }
        if chunk.is_empty() {
            break;
        }
        records.par_extend(chunk.into_par_iter().map(|raw| reader.parse(raw)));
    }
    if records.is_empty() { Err(ReadError::Empty { file: file.to_owned() }) } else { Ok(records) }
}

/// The message of serde_json without its line and column, which count from the start of the record.
fn without_position(problem: &str) -> &str {
    problem.split(" at line ").next().unwrap_or(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

    fn reader(text: &str) -> RecordReader<BufReader<&[u8]>> {
        // A buffer of a few bytes, so that every boundary falls inside of something.
        let input = BufReader::with_capacity(16, text.as_bytes());
        RecordReader::new(input, Path::new("d/x.json"), &RecordSchema::default(), None).unwrap()
    }

    fn outcomes(text: &str) -> Vec<String> {
        let outcome =
            |r: Result<Record, ReadError>| r.map_or_else(|e| e.to_string(), |r| r.location.to_string());
        reader(text).map(outcome).collect()
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
                      write each record on one line, or all of them in one list";
        assert_eq!(outcomes[0], needed);
    }

    #[test]
    fn a_broken_list_is_named_at_its_place() {
        let cases = [
            (format!("[{GOOD}\n{GOOD}]"), 1, "record [1] (line 2): found '{', needed \",\" or \"]\" after"),
            (format!("[{GOOD},]"), 1, "record [1] (line 1): found ']', needed a record, an object"),
            (format!("[{GOOD}"), 1, "record [1] (line 1): found the end of the file, needed"),
            (format!("[{GOOD}] 3"), 1, "record [1] (line 1): found '3', needed the end of the file"),
            ("[\n 3]".to_owned(), 0, "record [0] (line 2): found '3', needed a record, an object"),
            ("[{\"a\": ".to_owned(), 0, "record [0] (line 1): not valid json, column 6: EOF while parsing"),
        ];
        for (text, index, expected) in cases {
            let outcomes = outcomes(&text);
            assert!(outcomes[index].contains(expected), "{}", outcomes[index]);
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
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.jsonl");
        std::fs::write(&empty, " \n").unwrap();
        let read = |name: &str| {
            let error = read_records(&dir.path().join(name), &RecordSchema::default(), None).unwrap_err();
            error.to_string()
        };

        assert!(read("none.jsonl").contains("none.jsonl: cannot read: "));
        assert!(read("empty.jsonl").ends_with("empty.jsonl: holds no records"));
        std::fs::write(dir.path().join("x.PARQUET"), "PAR1").unwrap();
        let parquet = read("x.PARQUET");
        assert!(parquet.contains("x.PARQUET: is a parquet file, which is not read yet"), "{parquet}");
        assert!(parquet.contains("pandas.read_parquet("), "{parquet}");
    }
}
