//! Files of records in every format, as people have them.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm4v_data::{
    BadRecordPolicy, Dataset, DatasetOptions, DatasetRegistry, DatasetSource, Record, RecordSchema, Records,
};
use glm4v_processor::{ImageSource, Processor};
use serde_json::{Value, json};
use tempfile::tempdir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The bytes of a scan of the digits.
fn digit(number: usize) -> Vec<u8> {
    fs::read(root().join(format!("datasets/digits/images/{number:04}.png"))).unwrap()
}

fn open(file: &Path, schema: RecordSchema) -> Records {
    Records::open(&DatasetSource { schema, ..DatasetSource::of_file(file) }, None).unwrap()
}

fn all(records: &Records) -> Vec<Record> {
    (0..records.len()).map(|index| records.read(index).unwrap()).collect()
}

fn refused(file: &Path) -> String {
    let read = || -> Result<(), glm4v_data::ReadError> {
        let records = Records::open(&DatasetSource::of_file(file), None)?;
        (0..records.len()).try_for_each(|index| records.read(index).map(|_| ()))
    };
    let error = read().unwrap_err().to_string();
    error.strip_prefix(&format!("{}: ", file.display())).unwrap_or_else(|| panic!("{error}")).to_owned()
}

fn bytes(record: &Record) -> Vec<Vec<u8>> {
    let bytes = |image: &ImageSource| match image {
        ImageSource::Bytes(bytes) => bytes.clone(),
        other => panic!("{other}"),
    };
    record.images().map(bytes).collect()
}

fn text(record: &Record, message: usize) -> String {
    record.messages[message].content.texts().collect()
}

/// A tar archive of these members.
fn archive(file: &Path, members: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(File::create(file).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

fn asked(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

#[test]
fn members_of_a_shard_with_one_name_are_one_record() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("shard-000.tar");
    let long = format!("{}/0003", "a".repeat(120));
    let mut listed = asked("<image> or <image>?", "both");
    listed["images"] = json!(["0002.b.png", "0002.a.png"]);
    let one = asked("<image>What?", "one").to_string();
    let listed = listed.to_string();
    let [first, second, third] = [1, 2, 3].map(digit);
    archive(
        &file,
        &[
            ("./0001.png", first.as_slice()),
            ("./0001.json", one.as_bytes()),
            ("0002.a.png", second.as_slice()),
            ("0002.b.png", third.as_slice()),
            ("0002.json", listed.as_bytes()),
            (&format!("{long}.txt"), b"a caption"),
            (&format!("{long}.PNG"), first.as_slice()),
            (&format!("{long}.cls"), b"7"),
        ],
    );

    let records = open(&file, RecordSchema::default());
    let read = all(&records);

    assert_eq!(read.len(), 3);
    assert_eq!((bytes(&read[0]), text(&read[0], 1)), (vec![first.clone()], "one".to_owned()));
    assert_eq!(bytes(&read[1]), [third, second]);
    assert_eq!((bytes(&read[2]), text(&read[2], 1)), (vec![first], "a caption".to_owned()));
    assert_eq!(read[2].unknown_keys, ["cls"]);
    assert_eq!(records.location(1).to_string(), format!("{}: record \"0002\"", file.display()));
    assert_eq!(records.read(1).unwrap(), read[1]);
}

#[test]
fn a_record_of_a_shard_that_cannot_be_used_is_named() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("x.tar");
    for (members, expected) in [
        (vec![("a.json", &b"{"[..])], "record \"a\": not valid json, column 1: EOF"),
        (vec![("a.json", b"[]")], "member \"a.json\" is json but no object"),
        (vec![("a.json", b"{}"), ("a.b.json", b"{}")], "member \"a.json\" comes twice in its record"),
        (vec![("a.txt", b"\xff"), ("a.png", b"x")], "member \"a.txt\" is not UTF-8"),
        (vec![("a.txt", b"x")], "record \"a\": has no \"messages\"; its keys are caption"),
        (vec![(".hidden", b"x")], "holds no records"),
        (vec![], "holds no records"),
    ] {
        archive(&file, &members);
        let error = refused(&file);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_folder_of_images_is_read_from_its_metadata() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("0001.png"), digit(1)).unwrap();
    let lines = [
        json!({"file_name": "0001.png", "text": "a one"}),
        json!({"file_name": "0001.png", "question": "What?", "answer": "one", "prompt": "<image>What?", "completion": "one"}),
        json!({"file_names": ["0001.png", "0001.png"], "caption": "twice"}),
    ];
    let lines = lines.map(|line| line.to_string()).join("\n");
    fs::write(dir.path().join("metadata.jsonl"), lines).unwrap();

    let registry = DatasetRegistry::load(dir.path()).unwrap();
    let read = registry.find(dir.path().to_str().unwrap()).unwrap().read(None).unwrap();

    let image = || ImageSource::Path(dir.path().join("0001.png"));
    assert_eq!(read[0].images().cloned().collect::<Vec<_>>(), [image()]);
    assert_eq!((text(&read[0], 0), text(&read[0], 1)), (String::new(), "a one".to_owned()));
    assert_eq!((text(&read[1], 0), read[1].images().count()), ("What?".to_owned(), 1));
    assert_eq!(read[2].images().cloned().collect::<Vec<_>>(), [image(), image()]);
}

/// A line of JSONL with an answer.
fn line(answer: &str) -> String {
    asked("q", answer).to_string() + "\n"
}

#[test]
fn a_file_that_changes_or_vanishes_while_it_is_in_use_is_named() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("a.jsonl");
    fs::write(&file, line("a") + &line("b")).unwrap();
    let jsonl = open(&file, RecordSchema::default());
    let shard = dir.path().join("a.tar");
    let json = line("a");
    archive(&shard, &[("1.json", json.as_bytes())]);
    let tar = open(&shard, RecordSchema::default());
    assert_eq!(all(&jsonl).len() + all(&tar).len(), 3);

    fs::write(&file, line("a") + &line("b") + &line("c")).unwrap();
    fs::remove_file(&shard).unwrap();

    let changed = jsonl.read(0).unwrap_err().to_string();
    assert!(
        changed.starts_with(&format!("{}: has changed while it was in use", file.display())),
        "{changed}"
    );
    let missing = tar.read(0).unwrap_err().to_string();
    assert!(missing.starts_with(&format!("{}: cannot read", shard.display())), "{missing}");
    fs::write(&file, line("a")).unwrap();
    assert!(jsonl.read(1).unwrap_err().to_string().contains("has changed"));
    // The same length at another time.
    let file = dir.path().join("b.jsonl");
    fs::write(&file, line("a")).unwrap();
    let records = open(&file, RecordSchema::default());
    fs::write(&file, line("b")).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    assert!(records.read(0).unwrap_err().to_string().contains("has changed"));
}

#[test]
fn records_of_a_file_that_vanishes_are_left_out_by_policy() {
    let dir = tempdir().unwrap();
    let [one, two] = ["1.jsonl", "2.jsonl"].map(|name| dir.path().join(name));
    fs::write(&one, line("a")).unwrap();
    fs::write(&two, line("b")).unwrap();
    let processor = Arc::new(Processor::load(&root().join("configs/models/digits")).unwrap());
    let dataset = |on_bad| {
        let files = vec![one.clone(), two.clone()];
        let source = DatasetSource { name: "both".to_owned(), files, ..DatasetSource::of_file(&one) };
        let options = DatasetOptions { on_bad, cache_bytes: 0, ..DatasetOptions::default() };
        Dataset::open(&source, None, processor.clone(), options).unwrap()
    };
    let [stop, skip] = [BadRecordPolicy::Stop, BadRecordPolicy::Skip].map(dataset);

    fs::remove_file(&two).unwrap();

    let error = stop.batch(&[0, 1]).unwrap_err().to_string();
    assert!(error.starts_with(&two.display().to_string()), "{error}");
    let batch = skip.batch(&[0, 1]).unwrap();
    assert_eq!((batch.indices, batch.skipped, skip.num_skipped()), (vec![0], vec![1], 1));
}

#[cfg(feature = "parquet")]
mod parquet_files {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    #[test]
    fn images_of_the_datasets_library_are_read_with_their_bytes() {
        let file = fixture("hub.parquet");
        let records = open(&file, RecordSchema::default());

        let read = all(&records);

        assert_eq!(read.len(), 6);
        for (number, record) in read.iter().enumerate() {
            let images: Vec<_> = (number..=number + number % 2).map(digit).collect();
            assert_eq!(bytes(record), images);
            assert_eq!(text(record, 0), format!("What is it, {number}?"));
            assert_eq!(text(record, 1), format!("answer {number}"));
            assert_eq!(record.unknown_keys, [""; 0]);
        }
        assert_eq!(records.location(5).to_string(), format!("{}: row 5", file.display()));
        for index in [5, 0, 3, 3, 1] {
            assert_eq!(records.read(index).unwrap(), read[index]);
        }
    }

    #[test]
    fn a_table_of_questions_is_read_by_its_columns() {
        let mut schema = RecordSchema::default();
        schema.columns.prompt = Some("question".to_owned());
        schema.columns.response = Some("answer".to_owned());

        let read = all(&open(&fixture("tables.parquet"), schema));

        assert_eq!((bytes(&read[0]), bytes(&read[2])), (vec![digit(0)], vec![digit(2)]));
        let missing = ImageSource::Path(fixture("missing.png"));
        assert_eq!(read[1].images().collect::<Vec<_>>(), [&missing]);
        assert_eq!((text(&read[2], 0), text(&read[2], 1)), ("And this?".to_owned(), "two".to_owned()));
        assert!(matches!(read[0].messages[0].content.parts()[0], glm4v_processor::ContentPart::Image(_)));
        assert_eq!(read[0].unknown_keys, [""; 0]);
    }

    #[test]
    fn a_parquet_file_that_cannot_be_used_says_why() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("x.parquet");
        let whole = fs::read(fixture("tables.parquet")).unwrap();
        let write = |bytes: &[u8]| fs::write(&file, bytes).unwrap();

        write(&whole);
        // The image is taken before the conversation is looked for.
        let error = refused(&file);
        assert!(error.starts_with("row 0: has no \"messages\"; its keys are question, answer"), "{error}");
        for cut in [0, 4, 7, 12, whole.len() / 2, whole.len() - 1] {
            write(&whole[..cut]);
            assert!(refused(&file).starts_with("is no parquet file or was cut short"), "{cut}");
        }
        let mut damaged = whole.clone();
        let footer = whole.len() - 400;
        damaged[footer..footer + 200].fill(0xff);
        write(&damaged);
        assert!(refused(&file).starts_with("is damaged: "));
        let gzip = refused(&fixture("gzip.parquet"));
        assert!(
            gzip.starts_with("column \"image.bytes\" is compressed with gzip, needed snappy, zstd"),
            "{gzip}"
        );
    }
}
