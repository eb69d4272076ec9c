//! Every dataset of the repository loads, and the digits are the ones that the comparison with PyTorch used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm4v_data::{Dataset, DatasetOptions, DatasetRegistry};
use glm4v_processor::{ImageSource, Processor};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Number of the scan that a record of the digits shows.
fn scan(record: &glm4v_data::Record) -> usize {
    let Some(ImageSource::Path(path)) = record.images().next() else { panic!("a digit has an image") };
    path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok()).expect("a number")
}

#[test]
fn every_registered_dataset_becomes_samples() {
    let processor = Arc::new(Processor::load(&root().join("configs/models/digits")).unwrap());
    let registry = DatasetRegistry::load(&root().join("datasets")).unwrap();
    let mut seen = 0;
    for name in registry.names() {
        for split in registry.splits(name).unwrap() {
            let records = registry.find(&format!("{name}:{split}")).unwrap().read(None).unwrap();
            let dataset = Dataset::new(records, processor.clone(), DatasetOptions::default());
            for index in 0..dataset.len() {
                let sample = dataset.sample(index).unwrap();
                assert!(sample.loss_mask.contains(&true) && !sample.loss_mask[0]);
                seen += 1;
            }
        }
    }
    assert!(seen >= 1437 + 360 + 4, "{seen}");
}

#[test]
fn every_directory_of_datasets_is_registered() {
    let registry = DatasetRegistry::load(&root().join("datasets")).unwrap();
    let names: Vec<&str> = registry.names().collect();
    let mut directories = 0;
    for entry in std::fs::read_dir(root().join("datasets")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            directories += 1;
            assert!(names.contains(&entry.file_name().to_str().unwrap()), "{:?}", entry.file_name());
        }
    }
    assert!(directories >= 2);
}

#[test]
fn the_digits_are_split_as_the_comparison_with_pytorch_split_them() {
    let registry = DatasetRegistry::load(&root().join("datasets")).unwrap();
    let scans = |name: &str| -> Vec<usize> {
        registry.find(name).unwrap().read(None).unwrap().iter().map(scan).collect()
    };
    let (train, test) = (scans("digits:train"), scans("digits:test"));

    // numpy.random.RandomState(0).permutation(1797): the first 360 are held out.
    assert_eq!(train[..5], [1109, 940, 192, 260, 1148]);
    assert_eq!(test[..5], [1081, 1707, 927, 713, 262]);
    let mut all = [train, test].concat();
    all.sort();
    assert_eq!(all, (0..1797).collect::<Vec<_>>());
}
