//! Where the records of a JSONL file or a JSON list begin.
//!
//! The first character other than white space decides, not the name of the file: `[` opens a list, anything else is JSONL. Records are
//! found, not parsed, so that a file of millions opens at the speed of its disk, and takes eight bytes of memory for each.

use std::io::{self, BufRead};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memchr::{memchr, memchr3};

use super::error::ReadError;
use super::line_numbers::LineNumbers;
use crate::location::{RecordLocation, RecordPosition};

/// The records of one file.
#[derive(Debug)]
pub(super) struct JsonIndex {
    /// Offset of the first byte of each record; in JSONL, of its line.
    starts: Vec<u64>,
    /// End of the last record.
    end: u64,
    lines: LineNumbers,
    is_list: bool,
    /// Maximum number of bytes of a record.
    limit: usize,
}

impl JsonIndex {
    /// Finds all records of at most `limit` bytes; `file` is for errors.
    ///
    /// # Errors
    ///
    /// When the input cannot be read, a record is too long, a list is malformed between its records, or there is none.
    pub(super) fn scan(input: impl BufRead, file: &Arc<Path>, limit: usize) -> Result<Self, ReadError> {
        let lines = LineNumbers::default();
        let index = Self { starts: Vec::new(), end: 0, lines, is_list: false, limit };
        let mut scan = Scan { input, file, limit, offset: 0, line: 1, index };
        scan.skip_byte_order_mark()?;
        // Blank lines before a list belong to no record, before JSONL they do no harm.
        match scan.peek()? {
            Some(b'[') => {
                scan.advance(1);
                scan.index.is_list = true;
                scan.elements()?;
            }
            Some(_) => scan.lines()?,
            None => {}
        }
        let mut index = scan.index;
        if index.starts.is_empty() {
            return Err(ReadError::Empty { file: file.to_path_buf() });
        }
        index.starts.shrink_to_fit();
        Ok(index)
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The bytes of a record, with white space and the comma that may follow it; never many more than the longest record has.
    pub(super) fn span(&self, index: usize) -> Range<u64> {
        let start = self.starts[index];
        let end = self.starts.get(index + 1).copied().unwrap_or(self.end);
        start..end.min(start + self.limit as u64 + 2)
    }

    pub(super) fn position(&self, index: usize) -> RecordPosition {
        let line = self.lines.get(index);
        if self.is_list { RecordPosition::Element { index, line } } else { RecordPosition::Line(line) }
    }

    /// The record within the bytes of its [`span`](Self::span).
    pub(super) fn record<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        // Also for the column of an error at the end, which would be one of the next line.
        let bytes = bytes.trim_ascii_end();
        if !self.is_list {
            return bytes;
        }
        bytes.strip_suffix(b",").unwrap_or(bytes).trim_ascii_end()
    }
}

/// The progress of a scan.
struct Scan<'a, R> {
    input: R,
    file: &'a Arc<Path>,
    limit: usize,
    /// Offset of the next byte.
    offset: u64,
    /// Line of the next byte, from 1.
    line: usize,
    index: JsonIndex,
}

impl<R: BufRead> Scan<'_, R> {
    fn chunk(&mut self) -> Result<&[u8], ReadError> {
        let file = self.file;
        // Borrowed twice, because the borrow of an error would last as long as that of the bytes.
        loop {
            match self.input.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Io { file: file.to_path_buf(), source }),
            }
        }
        self.input.fill_buf().map_err(|source| ReadError::Io { file: file.to_path_buf(), source })
    }

    fn advance(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.offset += bytes as u64;
    }

    fn skip_byte_order_mark(&mut self) -> Result<(), ReadError> {
        if self.chunk()?.starts_with(b"\xEF\xBB\xBF") {
            self.advance(3);
        }
        Ok(())
    }

    /// The next byte other than white space, which is not consumed; `None` at the end of the file.
    fn peek(&mut self) -> Result<Option<u8>, ReadError> {
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let blank = chunk.iter().position(|byte| !byte.is_ascii_whitespace());
            let skipped = &chunk[..blank.unwrap_or(chunk.len())];
            let lines = skipped.iter().filter(|byte| **byte == b'\n').count();
            let (bytes, found) = (skipped.len(), blank.map(|at| chunk[at]));
            self.line += lines;
            self.advance(bytes);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn location(&self, position: RecordPosition) -> RecordLocation {
        RecordLocation { file: self.file.clone(), position }
    }

    fn too_long(&self, position: RecordPosition) -> ReadError {
        ReadError::TooLong { location: self.location(position), limit: self.limit }
    }

    /// Every line with something in it, from the first such line.
    fn lines(&mut self) -> Result<(), ReadError> {
        while self.peek()?.is_some() {
            let (start, line) = (self.offset, self.line);
            self.index.lines.push(self.index.starts.len(), line);
            self.index.starts.push(start);
            self.skip_line(start)?;
            self.index.end = self.offset;
        }
        Ok(())
    }

    /// Moves behind the line break that ends the line.
    fn skip_line(&mut self, start: u64) -> Result<(), ReadError> {
        loop {
            let chunk = self.chunk()?;
            let found = memchr(b'\n', chunk);
            let bytes = found.map_or(chunk.len(), |at| at + 1);
            let is_end = chunk.is_empty();
            let line_break = match found {
                Some(_) => 2,
                None => u64::from(!is_end),
            };
            self.advance(bytes);
            if self.offset - start > self.limit as u64 + line_break {
                return Err(self.too_long(RecordPosition::Line(self.line)));
            }
            if found.is_some() {
                self.line += 1;
            }
            if is_end || found.is_some() {
                return Ok(());
            }
        }
    }

    /// Every object of a list whose bracket has been read.
    fn elements(&mut self) -> Result<(), ReadError> {
        while self.seek_element()? {
            let index = self.index.starts.len();
            let position = RecordPosition::Element { index, line: self.line };
            self.index.lines.push(index, self.line);
            self.index.starts.push(self.offset);
            self.skip_element(position)?;
            self.index.end = self.offset;
        }
        Ok(())
    }

    /// Skips the comma before the next element; false after the last element.
    fn seek_element(&mut self) -> Result<bool, ReadError> {
        let mut next = self.peek()?;
        if next == Some(b']') {
            self.advance(1);
            return match self.peek()? {
                None => Ok(false),
                rest => Err(self.misplaced(rest, "the end of the file after \"]\"")),
            };
        }
        if !self.index.starts.is_empty() {
            if next != Some(b',') {
                return Err(self.misplaced(next, "\",\" or \"]\" after a record"));
            }
            self.advance(1);
            next = self.peek()?;
        }
        if next == Some(b'{') { Ok(true) } else { Err(self.misplaced(next, "a record, an object")) }
    }

    fn misplaced(&self, found: Option<u8>, needed: &'static str) -> ReadError {
        let position = RecordPosition::Element { index: self.index.starts.len(), line: self.line };
        let found = found.map_or("the end of the file".to_owned(), |byte| format!("{:?}", char::from(byte)));
        ReadError::List { location: self.location(position), found, needed }
    }

    /// Moves behind the brace that closes an object. At the end of the file it is incomplete, an error of the JSON parser.
    fn skip_element(&mut self, position: RecordPosition) -> Result<(), ReadError> {
        let start = self.offset;
        let mut nesting = Nesting::default();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(());
            }
            let (bytes, lines) = nesting.read(chunk);
            self.line += lines;
            self.advance(bytes);
            if self.offset - start > self.limit as u64 {
                return Err(self.too_long(position));
            }
            if nesting.depth == 0 {
                return Ok(());
            }
        }
    }
}

/// How deep within an object a scan is.
#[derive(Default)]
struct Nesting {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Nesting {
    /// Reads up to the end of the object or of the chunk; the bytes and line breaks that were read.
    fn read(&mut self, chunk: &[u8]) -> (usize, usize) {
        let (mut at, mut lines) = (0, 0);
        while at < chunk.len() {
            if self.quoted && !self.escaped {
                // Most of a record is text.
                let Some(special) = memchr3(b'"', b'\\', b'\n', &chunk[at..]) else {
                    return (chunk.len(), lines);
                };
                at += special;
            }
            let byte = chunk[at];
            at += 1;
            lines += usize::from(byte == b'\n');
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                b'{' | b'[' if !self.quoted => self.depth += 1,
                b'}' | b']' if !self.quoted => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        break;
                    }
                }
                _ => {}
            }
        }
        (at, lines)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use serde_json::Value;

    use super::*;

    const GOOD: &str = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

    fn scanned(text: &str, limit: usize) -> Result<JsonIndex, String> {
        // A buffer of a few bytes, so that every boundary falls inside of something.
        let input = BufReader::with_capacity(16, text.as_bytes());
        JsonIndex::scan(input, &Path::new("d/x.json").into(), limit).map_err(|error| error.to_string())
    }

    /// The place of each record, and the record.
    fn records(text: &str) -> Vec<(String, Value)> {
        let index = scanned(text, 1000).unwrap();
        let record = |at: usize| {
            let span = index.span(at);
            let bytes = &text.as_bytes()[span.start as usize..span.end as usize];
            let location = RecordLocation { file: Path::new("x").into(), position: index.position(at) };
            (location.to_string(), serde_json::from_slice(index.record(bytes)).unwrap())
        };
        (0..index.len()).map(record).collect()
    }

    #[test]
    fn blank_lines_carriage_returns_and_a_byte_order_mark_are_tolerated() {
        let text = format!("\u{feff}\r\n{GOOD}\r\n\n  \n{GOOD}");

        let records = records(&text);

        let good: Value = serde_json::from_str(GOOD).unwrap();
        assert_eq!(records, [("x: line 2".to_owned(), good.clone()), ("x: line 5".to_owned(), good)]);
    }

    #[test]
    fn a_list_is_found_record_by_record() {
        let brace = GOOD.replace("\"q\"", r#""a \\\" } ] { \\""#);
        let text = format!("\u{feff}\n[\n{GOOD},\n\n {brace}\n,{GOOD}]\n");

        let records = records(&text);

        let placed = |i: usize, line: usize, text: &str| {
            (format!("x: record [{i}] (line {line})"), serde_json::from_str(text).unwrap())
        };
        assert_eq!(records, [placed(0, 3, GOOD), placed(1, 5, &brace), placed(2, 6, GOOD)]);
    }

    #[test]
    fn a_broken_list_is_named_at_its_place() {
        let cases = [
            (format!("[{GOOD}\n{GOOD}]"), "record [1] (line 2): found '{', needed \",\" or \"]\" after"),
            (format!("[{GOOD},]"), "record [1] (line 1): found ']', needed a record, an object"),
            (format!("[{GOOD}"), "record [1] (line 1): found the end of the file, needed"),
            (format!("[{GOOD}] 3"), "record [1] (line 1): found '3', needed the end of the file"),
            ("[\n 3]".to_owned(), "record [0] (line 2): found '3', needed a record, an object"),
            ("[{\"a\": ".to_owned(), "record [1] (line 1): found the end of the file, needed"),
            ("[]".to_owned(), "holds no records"),
            (" \n\n".to_owned(), "holds no records"),
        ];
        for (text, expected) in cases {
            let error = scanned(&text, 1000).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_record_without_end_does_not_fill_the_memory() {
        for (text, place) in [(GOOD.to_owned(), "line 1"), (format!("[{GOOD}]"), "record [0] (line 1)")] {
            let error = scanned(&text, GOOD.len() - 1).unwrap_err();

            assert!(error.starts_with(&format!("d/x.json: {place}: longer than")), "{error}");
        }
    }

    #[test]
    fn a_record_of_exactly_the_limit_is_found_whatever_follows_it() {
        let blank = " ".repeat(1000);
        for text in [format!("{GOOD}\r\n\n{blank}\n{GOOD}"), format!("[{GOOD}{blank}]")] {
            let index = scanned(&text, GOOD.len()).unwrap();

            assert!(
                (0..index.len()).all(|at| index.span(at).end - index.span(at).start <= GOOD.len() as u64 + 2)
            );
        }
    }

    #[test]
    fn a_long_file_takes_eight_bytes_a_record() {
        let index = scanned(&"{}\n".repeat(10_000), 1000).unwrap();

        assert_eq!((index.starts.capacity(), index.span(9_999)), (10_000, 29_997..30_000));
    }
}
