//! From the text of `config.json` to checked values.

mod check;
mod experts;
mod raw;
mod rope;
mod text;
mod vision;

use super::Glm4vConfig;
use super::error::ConfigError;
use super::family::Family;
use check::{check, invalid, required};
use raw::RawConfig;
use text::text_config;
use vision::vision_config;

const KNOWN: &str =
    "\"glm4v\" (GLM-4.1V, GLM-4.6V-Flash), \"glm4v_moe\" (GLM-4.5V, GLM-4.6V) or \"glm_ocr\" (GLM-OCR)";

impl Glm4vConfig {
    /// Reads and checks a `config.json` of either style.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the key, its value and the accepted values.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let raw = RawConfig::from_json(json)?;
        let model_type = required(raw.model_type, "model_type", KNOWN)?;
        let Some(family) = Family::find(&model_type) else {
            return invalid("model_type", format!("\"{model_type}\""), KNOWN);
        };
        let text = required(raw.text_config, "text_config", "an object")?;
        let vision = required(raw.vision_config, "vision_config", "an object")?;
        let mut config = Self {
            architecture: family.architecture,
            text: text_config(text, &family.text)?,
            vision: vision_config(vision, &family.vision)?,
            image_token_id: required(raw.image_token_id, "image_token_id", "a token id")?,
            video_token_id: required(raw.video_token_id, "video_token_id", "a token id")?,
        };
        // transformers writes the outer key; some published files have only the inner one.
        config.text.tie_word_embeddings |= raw.tie_word_embeddings.unwrap_or(false);
        config.check_joints()?;
        Ok(config)
    }

    /// Values of one section that have to fit another.
    fn check_joints(&self) -> Result<(), ConfigError> {
        check(
            self.vision.out_hidden_size == self.text.hidden_size,
            "vision_config.out_hidden_size",
            self.vision.out_hidden_size,
            format!("text_config.hidden_size, {}", self.text.hidden_size),
        )?;
        check(
            (self.image_token_id as usize) < self.text.vocab_size,
            "image_token_id",
            self.image_token_id,
            format!("less than text_config.vocab_size, {}", self.text.vocab_size),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn digits() -> Value {
        let json = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/models/digits/config.json");
        serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
    }

    fn broken(edit: impl Fn(&mut Value)) -> String {
        let mut raw = digits();
        edit(&mut raw);
        Glm4vConfig::from_json(&raw.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key_and_what_was_needed() {
        assert_eq!(
            broken(|c| c["text_config"]["num_key_value_heads"] = json!(3)),
            "config.json: key \"text_config.num_key_value_heads\" is 3; needed: a divisor of \
             text_config.num_attention_heads, 4"
        );
        assert_eq!(
            broken(|c| c["text_config"]["rope_parameters"]["mrope_section"] = json!([2, 2, 3])),
            "config.json: key \"text_config.rope_parameters.mrope_section\" is [2, 2, 3]; needed: three \
             integers that add up to half the rotary dimensions, 6"
        );
        assert_eq!(
            broken(|c| c["vision_config"]["out_hidden_size"] = json!(64)),
            "config.json: key \"vision_config.out_hidden_size\" is 64; needed: text_config.hidden_size, 96"
        );
    }

    #[test]
    fn a_missing_key_has_the_value_of_the_reference() {
        let table: Value = serde_json::from_str(raw::DEFAULTS).unwrap();
        for (family, sections) in table.as_object().unwrap() {
            let mut whole = json!({"model_type": family, "text_config": {}, "vision_config": {}});
            raw::add_defaults(&mut whole, Family::find(family).unwrap());
            // The defaults alone do not fit: a family's hidden size may differ from the vision tower's output size.
            whole["vision_config"]["out_hidden_size"] = whole["text_config"]["hidden_size"].clone();
            let rotary = if family == "glm4v_moe" { 0.5 } else { 1.0 };
            let head = &whole["text_config"];
            let dims = head["hidden_size"].as_f64().unwrap() / head["num_attention_heads"].as_f64().unwrap();
            let heads = if family == "glm4v_moe" { json!(128) } else { json!(dims) };
            whole["text_config"]["head_dim"] = json!(heads.as_f64().unwrap() as usize);
            let half = (heads.as_f64().unwrap() * rotary) as usize / 2;
            whole["text_config"]["rope_parameters"] = json!({"mrope_section": [half - 4, 2, 2]});
            let read = |whole: &Value| Glm4vConfig::from_json(&whole.to_string()).unwrap();
            let expected = read(&whole);
            for (section, keys) in sections.as_object().unwrap() {
                for key in keys.as_object().unwrap().keys().filter(|key| *key != "out_hidden_size") {
                    let mut without = whole.clone();
                    let place = if section.is_empty() { &mut without } else { &mut without[section] };
                    assert!(place.as_object_mut().unwrap().shift_remove(key).is_some());
                    assert_eq!(read(&without), expected, "{family} without {section}.{key}");
                }
            }
            let text = expected.text;
            assert_eq!((text.rope.rope_theta, expected.vision.rope_theta), (10000.0, 10000.0));
            assert_eq!(text.attention_bias, family != "glm_ocr", "{family}");
        }
    }

    #[test]
    fn two_spellings_may_stand_side_by_side_where_they_agree() {
        let mut whole = digits();
        let expected = Glm4vConfig::from_json(&whole.to_string()).unwrap();
        whole["text_config"]["rope_parameters"]["rope_type"] = json!("default");
        whole["text_config"]["rope_parameters"]["type"] = json!("default");
        whole["vision_config"]["num_attention_heads"] = whole["vision_config"]["num_heads"].clone();
        let layers = whole["vision_config"].as_object_mut().unwrap().shift_remove("depth").unwrap();
        whole["vision_config"]["num_hidden_layers"] = layers;
        let side = whole["vision_config"]["image_size"].clone();
        whole["vision_config"]["image_size"] = json!([side, side]);
        assert_eq!(Glm4vConfig::from_json(&whole.to_string()).unwrap(), expected);

        let both = |c: &mut Value| {
            c["text_config"]["rope_parameters"]["rope_type"] = json!("default");
            c["text_config"]["rope_parameters"]["type"] = json!("mrope");
        };
        assert_eq!(
            broken(both),
            "config.json: key \"text_config.rope_parameters.rope_type\" is \"default\", and \"type\" beside it is \"mrope\"; \
             needed: the same kind under both names"
        );
        assert_eq!(
            broken(|c| c["vision_config"]["num_hidden_layers"] = json!(77)),
            "config.json: key \"depth\" is 2, and \"num_hidden_layers\" beside it is 77; needed: the same value under both names"
        );
        assert!(
            broken(|c| c["vision_config"]["patch_size"] = json!([7, 14]))
                .contains("[7, 14]; needed: one number")
        );
    }

    #[test]
    fn rotary_positions_of_the_vision_tower_are_read() {
        let theta = |edit: &dyn Fn(&mut Value)| {
            let mut whole = digits();
            edit(&mut whole["vision_config"]);
            Glm4vConfig::from_json(&whole.to_string()).unwrap().vision.rope_theta
        };
        assert_eq!(theta(&|_| ()), 10000.0);
        assert_eq!(
            theta(&|c| c["rope_parameters"] = json!({"rope_type": "axial", "rope_theta": 500.0})),
            500.0
        );
        let of_its_own = |c: &mut Value| {
            c.as_object_mut().unwrap().shift_remove("rope_parameters");
            c["rope_theta"] = json!(700.0);
        };
        assert_eq!(theta(&of_its_own), 700.0);
        let yarn = broken(|c| c["vision_config"]["rope_parameters"] = json!({"rope_type": "yarn"}));
        assert!(yarn.contains("vision_config.rope_parameters.rope_type\" is \"yarn\""), "{yarn}");
    }

    #[test]
    fn a_missing_key_is_named() {
        assert_eq!(
            broken(|c| {
                c.as_object_mut().unwrap().remove("text_config");
            }),
            "config.json: key \"text_config\" is missing; needed: an object"
        );
    }

    #[test]
    fn sizes_from_an_untrusted_file_cannot_overflow() {
        let error = broken(|c| c["text_config"]["vocab_size"] = json!(u64::MAX));

        assert!(error.contains("needed: an integer from 1 to"), "{error}");
        assert!(broken(|c| c["vision_config"]["depth"] = json!(0)).contains("vision_config.depth"));
        assert!(broken(|c| c["vision_config"]["num_heads"] = json!(-4)).contains("invalid value"));
    }

    #[test]
    fn an_unknown_architecture_is_refused_by_name() {
        let error = broken(|c| c["model_type"] = json!("qwen2_vl"));

        assert!(error.contains("\"qwen2_vl\""), "{error}");
    }

    #[test]
    fn tied_embeddings_are_honoured_in_both_places() {
        for place in ["", "text_config"] {
            let mut whole = digits();
            let target = if place.is_empty() { &mut whole } else { &mut whole[place] };
            target["tie_word_embeddings"] = json!(true);

            assert!(Glm4vConfig::from_json(&whole.to_string()).unwrap().text.tie_word_embeddings);
        }
    }

    #[test]
    fn a_type_error_names_no_struct_of_ours() {
        let error = Glm4vConfig::from_json(r#"{"model_type": "glm4v", "text_config": "x"}"#).unwrap_err();

        let text = error.to_string();
        assert!(text.contains("text_config") && text.contains("expected an object"), "{text}");
    }
}
