//! The digits dataset and its processor, for tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm4v_processor::Processor;

use crate::dataset::Dataset;
use crate::location::RecordLocation;
use crate::options::DatasetOptions;
use crate::record::Record;
use crate::registry::DatasetRegistry;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The processor of the digits model.
pub(crate) fn processor() -> Arc<Processor> {
    Arc::new(Processor::load(&root().join("configs/models/digits")).unwrap())
}

/// The records of a registered dataset.
pub(crate) fn records(name: &str) -> Vec<Record> {
    DatasetRegistry::load(&root().join("datasets")).unwrap().find(name).unwrap().read(None).unwrap()
}

/// A record on line 7 of a file beside the demo.
pub(crate) fn record(value: serde_json::Value) -> Record {
    let dir = root().join("datasets/demo-sharegpt");
    let location = RecordLocation::line("x.jsonl".as_ref(), 7);
    Record::parse(value, location, &Default::default(), &dir, None).unwrap()
}

/// 8 digits of the test split, then 4 records with more tokens.
pub(crate) fn mixed(options: DatasetOptions) -> Arc<Dataset> {
    let mut all = records("digits:test");
    all.truncate(8);
    all.extend(records("demo-sharegpt"));
    Arc::new(Dataset::new(all, processor(), options))
}
