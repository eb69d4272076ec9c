//! Tar archives in webdataset's layout: members with the same name up to its first dot are one record.
//!
//! `.json` is the record, or `.txt` the answer to the images alone; image and video members are its media. Nothing is unpacked, and of
//! the archive only headers are read until a record is needed.

use std::fs::File;
use std::path::{Component, Path};
use std::sync::Arc;

use glm4v_inputs::Modality;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header, PaxExtensions};

use super::error::{ReadError, ShardError};
use super::stamp::FileStamp;
use super::{MAX_BYTES, RawRecord, parse_json};
use crate::location::{RecordLocation, RecordPosition};
use crate::record::{media_keys, media_reference, modality_of};

const BLOCK: u64 = 512;

/// Maximum bytes of a long name and of the other attributes that precede a member.
const LONGEST_EXTENSION: u64 = 64 << 10;

/// Maximum bytes of all members of one record.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// Maximum members of an archive, which bounds the memory of its index to some hundred megabytes.
const MAX_MEMBERS: usize = 4 << 20;

/// The records of one archive.
#[derive(Debug)]
pub(super) struct ShardIndex {
    records: Vec<ShardRecord>,
}

#[derive(Debug)]
struct ShardRecord {
    /// What the names of its members begin with.
    name: Arc<str>,
    members: Vec<Member>,
}

/// The contents of a member in the archive.
#[derive(Debug)]
struct Member {
    /// The name from its first dot on, as it is written.
    extension: Box<str>,
    at: u64,
    size: u64,
}

/// A header, with the name and size that extended headers before it gave.
struct Entry {
    kind: EntryType,
    name: String,
    at: u64,
    size: u64,
}

impl ShardIndex {
    /// Finds the records of an archive, and hashes its headers.
    pub(super) fn scan(
        opened: &File,
        file: &Path,
        stamp: FileStamp,
        hash: &mut Sha256,
    ) -> Result<Self, ReadError> {
        let mut headers = Headers { file: opened, path: file, length: stamp.length(), at: 0, hash };
        let (mut records, mut members): (Vec<ShardRecord>, usize) = (Vec::new(), 0);
        while let Some(entry) = headers.next()? {
            let refuse =
                |problem| ReadError::Shard { file: file.to_owned(), member: entry.name.clone(), problem };
            match entry.kind {
                EntryType::Regular | EntryType::Continuous => {}
                EntryType::Directory => continue,
                EntryType::Link | EntryType::Symlink => return Err(refuse(ShardError::Link)),
                _ => return Err(refuse(ShardError::Kind)),
            }
            let Some((name, extension)) = split_name(&entry.name).map_err(refuse)? else { continue };
            members += 1;
            if members > MAX_MEMBERS {
                return Err(refuse(ShardError::TooManyMembers { limit: MAX_MEMBERS }));
            }
            let member = Member { extension: extension.into(), at: entry.at, size: entry.size };
            match records.last_mut().filter(|record| &*record.name == name) {
                Some(record) => record.members.push(member),
                None => records.push(ShardRecord { name: name.into(), members: vec![member] }),
            }
        }
        match records.is_empty() {
            true => Err(ReadError::Empty { file: file.to_owned() }),
            false => Ok(Self { records }),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn position(&self, index: usize) -> RecordPosition {
        RecordPosition::Members(self.records[index].name.clone())
    }

    /// Reads the members of a record.
    pub(super) fn read(
        &self,
        index: usize,
        file: &Path,
        stamp: FileStamp,
        location: &RecordLocation,
    ) -> Result<RawRecord, ReadError> {
        let ShardRecord { name, members } = &self.records[index];
        if members.iter().map(|member| member.size).sum::<u64>() > MAX_RECORD_BYTES {
            return Err(ReadError::TooLong { location: location.clone(), limit: MAX_RECORD_BYTES as usize });
        }
        let (mut record, mut media) = (ShardValue::default(), Vec::new());
        for member in members {
            let text = || match member.size > MAX_BYTES as u64 {
                true => Err(ReadError::TooLong { location: location.clone(), limit: MAX_BYTES }),
                false => stamp.read(file, member.at, member.size as usize),
            };
            match kind_of(&member.extension) {
                Kind::Json => record.set_object(parse_json(&text()?, location)?, file, name)?,
                Kind::Text => record.caption = Some(utf8(text()?, file, name, &member.extension)?),
                Kind::Media(modality) => {
                    let reference = media_reference(media.len());
                    media.push(stamp.read(file, member.at, member.size as usize)?);
                    record.media.push((modality, format!("{name}.{}", member.extension), reference));
                }
                Kind::Other => record.other.push(member.extension.to_string()),
            }
        }
        Ok(RawRecord { value: record.into_value(), media })
    }
}

fn utf8(bytes: Vec<u8>, file: &Path, name: &str, extension: &str) -> Result<String, ReadError> {
    String::from_utf8(bytes).map_err(|_| ReadError::Shard {
        file: file.to_owned(),
        member: format!("{name}.{extension}"),
        problem: ShardError::Encoding,
    })
}

/// What a member holds, by the end of its name.
enum Kind {
    Json,
    Text,
    Media(Modality),
    Other,
}

fn kind_of(extension: &str) -> Kind {
    let last = extension.rsplit('.').next().unwrap_or(extension).to_ascii_lowercase();
    match last.as_str() {
        "json" => Kind::Json,
        "txt" | "caption" => Kind::Text,
        other => modality_of(other).map_or(Kind::Other, Kind::Media),
    }
}

/// A record as its members are read.
#[derive(Default)]
struct ShardValue {
    object: Option<Map<String, Value>>,
    caption: Option<String>,
    /// Modality, name and reference of each media member.
    media: Vec<(Modality, String, Value)>,
    other: Vec<String>,
}

impl ShardValue {
    fn set_object(&mut self, value: Value, file: &Path, name: &str) -> Result<(), ReadError> {
        match value {
            Value::Object(keys) if self.object.is_none() => {
                self.object = Some(keys);
                Ok(())
            }
            found => Err(ReadError::Shard {
                file: file.to_owned(),
                member: format!("{name}.json"),
                problem: if found.is_object() { ShardError::TwoObjects } else { ShardError::NotAnObject },
            }),
        }
    }

    /// The record: listed media that are members are these; without a list, all are media of the record.
    fn into_value(self) -> Value {
        let mut record = self.object.unwrap_or_default();
        if let Some(caption) = self.caption {
            record.entry("caption").or_insert(Value::String(caption));
        }
        for modality in [Modality::Image, Modality::Video] {
            let of_kind = self.media.iter().filter(|(kind, ..)| *kind == modality);
            let [singular, plural] = media_keys(modality);
            match [singular, plural].into_iter().find(|key| record.contains_key(*key)) {
                Some(key) => {
                    of_kind.for_each(|(_, name, reference)| refer(&mut record[key], name, reference))
                }
                None => {
                    let all: Vec<Value> = of_kind.map(|(.., reference)| reference.clone()).collect();
                    if !all.is_empty() {
                        record.insert(plural.to_owned(), Value::Array(all));
                    }
                }
            }
        }
        for extension in self.other {
            // A key of the record that is not known, so that it is reported as one.
            record.entry(extension).or_insert(Value::Bool(true));
        }
        Value::Object(record)
    }
}

/// Replaces the name of a member by the reference to it, wherever a list has it.
fn refer(value: &mut Value, member: &str, reference: &Value) {
    let file_name = member.rsplit('/').next().unwrap_or(member);
    match value {
        Value::String(name) if name == member || name == file_name => *value = reference.clone(),
        Value::Array(values) => values.iter_mut().for_each(|value| refer(value, member, reference)),
        Value::Object(keys) => {
            for key in ["path", "url", "image", "video"] {
                if let Some(value) = keys.get_mut(key) {
                    refer(value, member, reference);
                }
            }
        }
        _ => {}
    }
}

/// Name of the record and extension of a member; none for files that the system adds.
fn split_name(path: &str) -> Result<Option<(&str, &str)>, ShardError> {
    let path = path.strip_prefix("./").unwrap_or(path);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if path.is_empty() || path.contains('\0') || !Path::new(path).components().all(is_plain) {
        return Err(ShardError::Path);
    }
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[start..].find('.') {
        Some(0) => Ok(None),
        Some(dot) => Ok(Some((&path[..start + dot], &path[start + dot + 1..]))),
        None => Ok(Some((path, ""))),
    }
}

/// Reads the headers of an archive one by one.
struct Headers<'a> {
    file: &'a File,
    path: &'a Path,
    length: u64,
    /// Offset of the next header.
    at: u64,
    hash: &'a mut Sha256,
}

impl Headers<'_> {
    fn refuse(&self, member: impl Into<String>, problem: ShardError) -> ReadError {
        ReadError::Shard { file: self.path.to_owned(), member: member.into(), problem }
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { file: self.path.to_owned(), source };
        glm4v_files::read_exact_at(self.file, bytes, at).map_err(io)
    }

    /// The next member; none at the end of the archive.
    fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let (mut long_name, mut long_size) = (None, None);
        while let Some(header) = self.header()? {
            let path = header.path_bytes();
            let short_name = String::from_utf8_lossy(&path);
            let short_name = short_name.trim_end_matches('\0');
            let damaged = || self.refuse(format!("{short_name} at byte {}", self.at), ShardError::Header);
            let kind = header.entry_type();
            let is_extension = matches!(
                kind,
                EntryType::XHeader
                    | EntryType::XGlobalHeader
                    | EntryType::GNULongName
                    | EntryType::GNULongLink
            );
            let written = header.entry_size().map_err(|_| damaged())?;
            let size = if is_extension { written } else { long_size.unwrap_or(written) };
            let at = self.at + BLOCK;
            let end = at.checked_add(size).filter(|end| *end <= self.length);
            let Some(end) = end else {
                let (size, left) = (size, self.length.saturating_sub(at));
                return Err(self.refuse(short_name, ShardError::Truncated { size, left }));
            };
            if is_extension && size > LONGEST_EXTENSION {
                let limit = LONGEST_EXTENSION;
                return Err(self.refuse(short_name, ShardError::LongExtension { size, limit }));
            }
            self.at = end.div_ceil(BLOCK) * BLOCK;
            if !is_extension {
                let name = long_name.unwrap_or_else(|| short_name.to_owned());
                return Ok(Some(Entry { kind, name, at, size }));
            }
            let mut bytes = vec![0; size as usize];
            self.read(at, &mut bytes)?;
            self.hash.update(&bytes);
            match kind {
                EntryType::GNULongName => long_name = Some(text(&bytes)),
                EntryType::XHeader => (long_name, long_size) = extensions(&bytes, long_name, long_size),
                _ => {}
            }
        }
        Ok(None)
    }

    /// The header at the next offset; none at the end, which is a block of zeros or that of the file.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        if self.at >= self.length {
            return Ok(None);
        }
        if self.at + BLOCK > self.length {
            return Err(self.refuse(format!("at byte {}", self.at), ShardError::Header));
        }
        let mut header = Header::new_old();
        self.read(self.at, header.as_mut_bytes())?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        self.hash.update(bytes);
        // The field of the sum counts as spaces.
        let field = 148..156;
        let outside = bytes.iter().enumerate().filter(|(at, _)| !field.contains(at));
        let sum: u32 = outside.map(|(_, byte)| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(found) if found == sum => Ok(Some(header)),
            _ => Err(self.refuse(format!("at byte {}", self.at), ShardError::Header)),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// Name and size of the next member in an extended header; those found before if it has none.
fn extensions(
    bytes: &[u8],
    mut name: Option<String>,
    mut size: Option<u64>,
) -> (Option<String>, Option<u64>) {
    for extension in PaxExtensions::new(bytes).flatten() {
        match extension.key() {
            Ok("path") => name = Some(text(extension.value_bytes())),
            Ok("size") => size = extension.value().ok().and_then(|value| value.parse().ok()).or(size),
            _ => {}
        }
    }
    (name, size)
}
