//! Keys of Hugging Face configs that hold one value or a list.

use serde::Deserialize;

/// One value or a list, such as `eos_token_id` of `config.json` and `generation_config.json`, or `layers_pattern` of
/// `adapter_config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// `7`
    One(T),
    /// `[7, 9]`
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values as a list.
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_list_of_one() {
        let values = |json| serde_json::from_str::<OneOrMany<u32>>(json).map(OneOrMany::into_vec);

        assert_eq!(values("7").unwrap(), [7]);
        assert_eq!(values("[7, 9]").unwrap(), [7, 9]);
        assert!(values("\"7\"").is_err());
    }
}
