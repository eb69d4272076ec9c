//! The reference of an adapter to its base model.

use serde_json::Value;

use super::config::AdapterConfig;
use crate::folder::ModelFolder;

impl AdapterConfig {
    /// Sets `base_model_name_or_path` and `revision`: the repository id and commit of a cached repository, else the path.
    pub fn with_base_model(mut self, base: &ModelFolder) -> Self {
        let repository = base.repository();
        let name = repository.map_or_else(|| base.path().to_string_lossy(), |found| found.name().into());
        self.base_model_name_or_path = Some(name.into_owned());
        let commit = repository.and_then(|found| found.commit()).map_or(Value::Null, Value::from);
        self.rest.insert("revision".to_owned(), commit);
        self
    }
}
