//! Directories of files with records, as Hugging Face lays them out.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::reader::IMAGE_FOLDER_FILE;

/// Names of splits with which files and directories begin.
const SPLITS: [&str; 8] = ["train", "training", "validation", "valid", "val", "dev", "eval", "test"];

/// The files of each split of a directory, in the order of their names. No split without files of records.
///
/// `metadata.jsonl` stands for the images beside it. Otherwise files are looked for in the directory, then in `data` in it, then in
/// directories that have the name of a split. Files whose names all begin with that of a split are divided by it; else all are `train`.
pub(super) fn splits(dir: &Path) -> io::Result<Vec<(String, Vec<PathBuf>)>> {
    for place in [dir.to_owned(), dir.join("data")] {
        let files = if place.is_dir() { record_files(&place)? } else { Vec::new() };
        if !files.is_empty() {
            return Ok(by_split(files));
        }
    }
    let mut found = Vec::new();
    for name in SPLITS {
        let place = dir.join(name);
        let files = if place.is_dir() { record_files(&place)? } else { Vec::new() };
        if !files.is_empty() {
            found.push((name.to_owned(), files));
        }
    }
    Ok(found)
}

fn by_split(files: Vec<PathBuf>) -> Vec<(String, Vec<PathBuf>)> {
    if !files.iter().all(|file| split_of(file).is_some()) {
        return vec![("train".to_owned(), files)];
    }
    let of = |split: &str| files.iter().filter(|file| split_of(file) == Some(split)).cloned().collect();
    let splits = SPLITS.map(|split| (split.to_owned(), of(split)));
    splits.into_iter().filter(|(_, files): &(String, Vec<PathBuf>)| !files.is_empty()).collect()
}

/// The split that a file's name begins with: `train-00000-of-00002.parquet`.
fn split_of(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_str()?;
    let begins =
        |split: &&&str| name.strip_prefix(**split).is_some_and(|rest| rest.starts_with(['-', '_', '.']));
    SPLITS.iter().find(begins).copied()
}

fn record_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let images = dir.join(IMAGE_FOLDER_FILE);
    if images.is_file() {
        return Ok(vec![images]);
    }
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = paths.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| is_record_file(file));
    files.sort();
    Ok(files)
}

fn is_record_file(file: &Path) -> bool {
    let extension = file.extension().unwrap_or(OsStr::new(""));
    // Beside the records these describe them.
    let describes = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
    let is_known = ["json", "jsonl", "parquet", "tar"].iter().any(|known| extension == *known);
    is_known && !describes.iter().any(|name| file.file_name() == Some(OsStr::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[&str]) -> Vec<(String, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let name = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        let splits = splits(dir.path()).unwrap().into_iter();
        splits.map(|(split, files)| (split, files.iter().map(name).collect())).collect()
    }

    fn split(name: &str, files: &[&str]) -> (String, Vec<String>) {
        (name.to_owned(), files.iter().map(|file| (*file).to_owned()).collect())
    }

    #[test]
    fn files_are_divided_by_the_split_that_their_names_begin_with() {
        let shards =
            ["test-0.tar", "train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "README.md"];
        let train = split("train", &["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]);
        assert_eq!(found(&shards), [train, split("test", &["test-0.tar"])]);
        let hub = ["data/train.jsonl", "README.md", "dataset_infos.json"];
        assert_eq!(found(&hub), [split("train", &["data/train.jsonl"])]);
        let mixed = ["b.jsonl", "train.jsonl", "testimony.json"];
        assert_eq!(found(&mixed), [split("train", &["b.jsonl", "testimony.json", "train.jsonl"])]);
    }

    #[test]
    fn a_folder_of_images_is_its_metadata() {
        assert_eq!(found(&["a.png", "metadata.jsonl", "x.json"]), [split("train", &["metadata.jsonl"])]);
        let splits = ["train/metadata.jsonl", "train/a.png", "val/metadata.jsonl"];
        let train = split("train", &["train/metadata.jsonl"]);
        assert_eq!(found(&splits), [train, split("val", &["val/metadata.jsonl"])]);
        assert_eq!(found(&["a.png"]), []);
    }
}
