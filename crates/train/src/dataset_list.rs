//! The datasets of a run as its config names them.

use std::fmt;

use glm4v_data::Share;
use serde::de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One dataset or several: `"digits:train"`, or `["a", {name = "b", weight = 2.0, samples = 500}]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatasetList(pub Vec<DatasetEntry>);

/// A dataset with its share in a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "the name of a dataset, or {name = …, weight = …, samples = …}")]
pub struct DatasetEntry {
    /// `NAME`, `NAME:SPLIT`, or the path of a file or directory.
    pub name: String,
    /// How often each record comes in an epoch.
    #[serde(default = "one")]
    pub weight: f64,
    /// Number of records, drawn by the run's seed; all of them without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
}

fn one() -> f64 {
    1.0
}

impl DatasetEntry {
    /// How much of the dataset is used.
    pub fn share(&self) -> Share {
        Share { weight: self.weight, samples: self.samples }
    }

    fn is_plain(&self) -> bool {
        self.weight == 1.0 && self.samples.is_none()
    }
}

impl DatasetList {
    /// Whether no dataset is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why an entry cannot be used; none if all can.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let weight = |entry: &&DatasetEntry| !(entry.weight > 0.0 && entry.weight <= 1e6);
        match &self.0 {
            entries if entries.iter().any(|entry| entry.name.is_empty()) => {
                Some("the name of a dataset, as digits:train")
            }
            entries if entries.iter().any(|entry| weight(&entry)) => {
                Some("a weight above 0, at most a million")
            }
            entries if entries.iter().any(|entry| entry.samples == Some(0)) => Some("samples of 1 or more"),
            _ => None,
        }
    }
}

impl From<&str> for DatasetList {
    /// One dataset with all its records; none if the name is empty.
    fn from(name: &str) -> Self {
        Self((!name.is_empty()).then(|| DatasetEntry::from(name)).into_iter().collect())
    }
}

impl From<&str> for DatasetEntry {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), weight: 1.0, samples: None }
    }
}

impl fmt::Display for DatasetList {
    /// The names, with commas between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|entry| entry.name.as_str()).collect();
        f.write_str(&names.join(", "))
    }
}

impl Serialize for DatasetList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [] => serializer.serialize_str(""),
            [only] if only.is_plain() => serializer.serialize_str(&only.name),
            several => serializer.collect_seq(several),
        }
    }
}

impl<'de> Deserialize<'de> for DatasetList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor)
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = DatasetList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a dataset, or a list of names and {name = …, weight = …, samples = …}")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<DatasetList, E> {
        Ok(name.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DatasetList, A::Error> {
        Ok(DatasetList(vec![DatasetEntry::deserialize(MapAccessDeserializer::new(map))?]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<DatasetList, A::Error> {
        let mut list = Vec::new();
        while let Some(Named(entry)) = entries.next_element()? {
            list.push(entry);
        }
        Ok(DatasetList(list))
    }
}

/// An entry of a list: a name alone, or with a share.
struct Named(DatasetEntry);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamedVisitor;

        impl<'de> Visitor<'de> for NamedVisitor {
            type Value = Named;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a dataset, or {name = …, weight = …, samples = …}")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Named, E> {
                Ok(Named(name.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Named, A::Error> {
                Ok(Named(DatasetEntry::deserialize(MapAccessDeserializer::new(map))?))
            }
        }

        deserializer.deserialize_any(NamedVisitor)
    }
}
