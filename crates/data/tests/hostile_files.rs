//! Archives and tables that were made to harm are refused, within bounded memory.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::fs;
use std::path::Path;

use glm4v_data::{DatasetSource, ReadError, Records};
use peak_alloc::PeakAlloc;
use tar::{EntryType, Header};
use tempfile::tempdir;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Allocations of a refusal, whatever the file claims.
const BOUND: usize = 16 << 20;

/// Opens a file and reads its records; the error, and the peak of bytes that this took.
fn read(file: &Path) -> (Result<usize, String>, usize) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let all = || -> Result<usize, ReadError> {
        let records = Records::open(&DatasetSource::of_file(file), None)?;
        (0..records.len()).try_for_each(|index| records.read(index).map(|_| ()))?;
        Ok(records.len())
    };
    let outcome = all().map_err(|error| error.to_string());
    (outcome, ALLOCATOR.peak_usage().saturating_sub(before))
}

/// A member whose header claims `size` bytes, followed by `bytes`.
fn member(kind: EntryType, name: &[u8], size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut member = [header.as_bytes(), bytes].concat();
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

// A single test: allocations of others running at the same time would count.
#[test]
fn hostile_files_are_refused_within_bounded_memory() {
    let dir = tempdir().unwrap();
    hostile_archives(&dir.path().join("x.tar"));
    endless_records(dir.path());
    #[cfg(feature = "parquet")]
    tables::hostile_tables(&dir.path().join("x.parquet"));
}

fn hostile_archives(file: &Path) {
    let file_member = |name: &str| member(EntryType::Regular, name.as_bytes(), 1, b"x");
    let mut damaged = file_member("a.json");
    damaged[0] ^= 1;
    let pax_size = b"20 size=10737418240\n";
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (file_member("../a.json"), "member \"../a.json\" has a name that is absolute, empty or leads out"),
        (file_member("/etc/a.json"), "member \"/etc/a.json\" has a name that is absolute"),
        (file_member("a/../../b.json"), "has a name that is absolute, empty or leads out"),
        (member(EntryType::Symlink, b"a.png", 0, b""), "member \"a.png\" is a link, needed files"),
        (member(EntryType::Link, b"a.png", 0, b""), "member \"a.png\" is a link, needed files"),
        (member(EntryType::Char, b"a.png", 0, b""), "is neither a regular file nor a directory"),
        (member(EntryType::GNUSparse, b"a.png", 0, b""), "is neither a regular file nor a directory"),
        (
            member(EntryType::Regular, b"a.json", 10 << 30, b"{}"),
            "has 10737418240 bytes, and the archive ends after 512",
        ),
        (member(EntryType::GNULongName, b"l", 10 << 30, b"x"), "has 10737418240 bytes, and the archive ends"),
        (
            member(EntryType::GNULongName, b"l", 1 << 20, &vec![b'a'; 1 << 20]),
            "is preceded by 1048576 bytes of attributes",
        ),
        (
            member(EntryType::XHeader, b"p", 1 << 20, &vec![b'a'; 1 << 20]),
            "is preceded by 1048576 bytes of attributes",
        ),
        (
            [member(EntryType::XHeader, b"p", pax_size.len() as u64, pax_size), file_member("a.json")]
                .concat(),
            "has 10737418240 bytes, and the archive ends after 512",
        ),
        (member(EntryType::Regular, b"a.json", u64::MAX >> 1, b"{}"), "and the archive ends after 512"),
        (damaged, "member \"at byte 0\" has a damaged header"),
        ([file_member("a.json"), vec![1; 100]].concat(), "member \"at byte 1024\" has a damaged header"),
        (member(EntryType::Regular, b"\x1b[2J.json", 1, b"x"), "not valid json"),
        (vec![0; 10_240], "holds no records"),
    ];
    for (bytes, expected) in cases {
        fs::write(file, &bytes).unwrap();
        let (outcome, peak) = read(file);
        let error = outcome.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(peak < BOUND, "{expected}: {peak} bytes");
    }
}

/// A sparse file of one record without end, and of blank lines.
fn endless_records(dir: &Path) {
    let file = dir.join("endless.jsonl");
    fs::write(&file, "{\"messages\": \"").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(200 << 20).unwrap();

    let (outcome, peak) = read(&file);

    assert!(outcome.unwrap_err().contains("line 1: longer than 67108864 bytes"));
    assert!(peak < BOUND, "{peak} bytes");
}

#[cfg(feature = "parquet")]
mod tables {
    use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};

    use super::*;

    /// A file with the data of another and a footer of its own.
    fn with_footer(data: &[u8], metadata: &ParquetMetaData) -> Vec<u8> {
        let mut bytes = data.to_vec();
        ParquetMetaDataWriter::new(&mut bytes, metadata).finish().unwrap();
        bytes
    }

    pub(super) fn hostile_tables(file: &Path) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hub.parquet");
        let good = fs::read(&fixture).unwrap();
        let source = fs::File::open(&fixture).unwrap();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&source).unwrap();
        let data = &good[..good.len() - 8 - 4];
        let claiming = |rows: i64| {
            let group = metadata.row_group(0).clone().into_builder().set_num_rows(rows).build().unwrap();
            with_footer(data, &metadata.clone().into_builder().set_row_groups(vec![group]).build())
        };
        let beyond = {
            let group = metadata.row_group(0).clone();
            let column =
                group.column(1).clone().into_builder().set_total_compressed_size(1 << 60).build().unwrap();
            let columns = group.columns().iter().enumerate();
            let columns =
                columns.map(|(at, old)| if at == 1 { column.clone() } else { old.clone() }).collect();
            let group = group.into_builder().set_column_metadata(columns).build().unwrap();
            with_footer(data, &metadata.clone().into_builder().set_row_groups(vec![group]).build())
        };
        for (bytes, expected) in [
            (claiming(1 << 60), "row group 0 claims 1152921504606846976 rows, which a file of"),
            (claiming(-1), "row group 0 claims -1 rows"),
            (claiming(1000), "is damaged: "),
            (beyond, "row group 0, column \"images.list.element.bytes\": lies beyond the end of the file"),
        ] {
            fs::write(file, bytes).unwrap();
            let (outcome, peak) = read(file);
            let error = outcome.unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
            assert!(peak < BOUND, "{expected}: {peak} bytes");
        }
        // Damage anywhere is an error or another record, never a panic that ends the program.
        for at in (0..good.len()).step_by(13) {
            let mut damaged = good.clone();
            damaged[at] ^= 0x55;
            fs::write(file, damaged).unwrap();
            let (_, peak) = read(file);
            assert!(peak < 4 * BOUND, "byte {at}: {peak} bytes");
        }
    }
}
