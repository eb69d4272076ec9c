//! From the text of `config.json` to checked values.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Architecture, ConfigError, Glm4vConfig, MoeConfig, RotaryPairs, TextConfig, TextRopeConfig, VisionConfig,
};

/// What transformers puts where a key is missing, by family and section; made by `tests/fixtures/oracle/config_defaults.py`.
const DEFAULTS: &str = include_str!("defaults.json");

/// Base of rotary positions where a config has none.
const ROPE_THETA: f64 = 10000.0;

/// Frequencies of time, row and column where a config does not say.
const MROPE_SECTION: [usize; 3] = [8, 12, 12];

/// Second spellings that transformers knows (`attribute_map`), by section.
const SPELLINGS: [(&str, &str, &str); 3] = [
    ("text_config", "num_local_experts", "n_routed_experts"),
    ("vision_config", "num_attention_heads", "num_heads"),
    ("vision_config", "num_hidden_layers", "depth"),
];

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    text_config: Option<RawText>,
    vision_config: Option<RawVision>,
    image_token_id: Option<u32>,
    video_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawText {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    attention_bias: Option<bool>,
    use_qk_norm: Option<bool>,
    first_k_dense_replace: Option<usize>,
    n_routed_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    n_shared_experts: Option<usize>,
    moe_intermediate_size: Option<usize>,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    norm_topk_prob: Option<bool>,
    routed_scaling_factor: Option<f64>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    initializer_range: Option<f64>,
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

#[derive(Deserialize, Default)]
struct RawRope {
    rope_type: Option<String>,
    /// The spelling of transformers 4, which may stand beside the other.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    mrope_section: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct RawVision {
    depth: Option<usize>,
    hidden_size: Option<usize>,
    num_heads: Option<usize>,
    in_channels: Option<usize>,
    image_size: Option<Side>,
    patch_size: Option<Side>,
    temporal_patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    out_hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    initializer_range: Option<f64>,
    head_dim: Option<usize>,
    rope_parameters: Option<RawRope>,
    rope_theta: Option<f64>,
}

/// The side of a square, or height and width.
#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    One(usize),
    Two([usize; 2]),
}

impl Side {
    fn of_square(self, key: &'static str) -> Result<usize, ConfigError> {
        match self {
            Self::One(side) => Ok(side),
            Self::Two([height, width]) if height == width => Ok(width),
            Self::Two(sides) => invalid(key, format!("{sides:?}"), "one number, or the same one twice"),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// A value that must be there.
fn need<T>(value: Option<T>, key: &'static str, needed: &'static str) -> Result<T, ConfigError> {
    value.ok_or(ConfigError::Missing { key, needed })
}

/// A size that must be there and between 1 and `most`.
///
/// The bound keeps products of sizes far from overflow, whatever an untrusted file says.
fn size(value: Option<usize>, key: &'static str, most: usize) -> Result<usize, ConfigError> {
    let found = need(value, key, "a positive integer")?;
    check((1..=most).contains(&found), key, found, format!("an integer from 1 to {most}"))?;
    Ok(found)
}

fn invalid<T>(key: &'static str, found: impl ToString, needed: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { key, found: found.to_string(), needed: needed.into() })
}

fn check(
    good: bool,
    key: &'static str,
    found: impl ToString,
    needed: impl Into<String>,
) -> Result<(), ConfigError> {
    if good { Ok(()) } else { invalid(key, found, needed) }
}

const KNOWN: &str =
    "\"glm4v\" (GLM-4.1V, GLM-4.6V-Flash), \"glm4v_moe\" (GLM-4.5V, GLM-4.6V) or \"glm_ocr\" (GLM-OCR)";
const MAX_WIDTH: usize = 1 << 20;
const MAX_COUNT: usize = 1 << 14;
const MAX_VOCAB: usize = 1 << 24;

impl Glm4vConfig {
    /// Reads and checks a `config.json` of either style.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the key, its value and what was needed.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut whole: Value = serde_json::from_str(json)?;
        complete(&mut whole)?;
        let raw: RawConfig = serde_path_to_error::deserialize(whole).map_err(|error| ConfigError::Type {
            key: error.path().to_string(),
            source: error.into_inner(),
        })?;
        let model_type = need(raw.model_type, "model_type", KNOWN)?;
        let architecture = match model_type.as_str() {
            // glm46v is the same network: its own processor is what differs.
            "glm4v" | "glm46v" => Architecture::Glm4v,
            "glm4v_moe" => Architecture::Glm4vMoe,
            "glm_ocr" => Architecture::GlmOcr,
            _ => return invalid("model_type", format!("\"{model_type}\""), KNOWN),
        };
        let text = need(raw.text_config, "text_config", "an object")?;
        let vision = need(raw.vision_config, "vision_config", "an object")?;
        // Either place may say so; the outer one is what transformers writes.
        let tie_word_embeddings =
            raw.tie_word_embeddings.unwrap_or(false) || text.tie_word_embeddings.unwrap_or(false);
        let config = Self {
            architecture,
            text: text.check(architecture)?,
            vision: vision.check(architecture)?,
            image_token_id: need(raw.image_token_id, "image_token_id", "a token id")?,
            video_token_id: need(raw.video_token_id, "video_token_id", "a token id")?,
            tie_word_embeddings,
        };
        check(
            config.vision.out_hidden_size == config.text.hidden_size,
            "vision_config.out_hidden_size",
            config.vision.out_hidden_size,
            format!("text_config.hidden_size, {}", config.text.hidden_size),
        )?;
        check(
            (config.image_token_id as usize) < config.text.vocab_size,
            "image_token_id",
            config.image_token_id,
            format!("less than text_config.vocab_size, {}", config.text.vocab_size),
        )?;
        Ok(config)
    }

    /// A network of a few hundred thousand parameters for tests and examples.
    pub fn tiny() -> Self {
        let raw = serde_json::json!({
            "model_type": "glm4v", "image_token_id": 44, "video_token_id": 45,
            "text_config": {
                "vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": [0], "pad_token_id": 0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1]}
            },
            "vision_config": {
                "depth": 2, "hidden_size": 32, "num_heads": 2, "in_channels": 3, "image_size": 16,
                "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 48,
                "intermediate_size": 56, "rms_norm_eps": 1e-5, "hidden_act": "silu"
            }
        });
        Self::from_json(&raw.to_string()).expect("the tiny config passes its own checks")
    }
}

/// Brings second spellings to the first, and adds what is missing as transformers does.
fn complete(config: &mut Value) -> Result<(), ConfigError> {
    let family = match config["model_type"].as_str() {
        Some("glm46v") => "glm4v".to_owned(),
        Some(family) => family.to_owned(),
        None => return Ok(()),
    };
    for (section, second, first) in SPELLINGS {
        let Some(keys) = config.get_mut(section).and_then(Value::as_object_mut) else { continue };
        let Some(value) = keys.shift_remove(second) else { continue };
        let known = keys.entry(first).or_insert_with(|| value.clone());
        if *known != value {
            let found = format!("{known}, and \"{second}\" beside it is {value}");
            return invalid(first, found, "the same value under both names");
        }
    }
    let defaults: Value = serde_json::from_str(DEFAULTS).expect("the table is json");
    let Some(defaults) = defaults.get(family).and_then(Value::as_object) else { return Ok(()) };
    for (section, values) in defaults {
        let keys = if section.is_empty() { Some(&mut *config) } else { config.get_mut(section) };
        if let (Some(keys), Some(values)) = (keys.and_then(Value::as_object_mut), values.as_object()) {
            add_missing(keys, values);
        }
    }
    Ok(())
}

fn add_missing(keys: &mut Map<String, Value>, defaults: &Map<String, Value>) {
    for (key, value) in defaults {
        keys.entry(key).or_insert_with(|| value.clone());
    }
}

impl RawText {
    fn check(self, architecture: Architecture) -> Result<TextConfig, ConfigError> {
        let hidden_size = size(self.hidden_size, "text_config.hidden_size", MAX_WIDTH)?;
        let heads = size(self.num_attention_heads, "text_config.num_attention_heads", MAX_COUNT)?;
        let kv_heads = size(
            self.num_key_value_heads.or(self.num_attention_heads),
            "text_config.num_key_value_heads",
            MAX_COUNT,
        )?;
        let head_dim = self.head_width(architecture, hidden_size, heads)?;
        check(
            heads.is_multiple_of(kv_heads),
            "text_config.num_key_value_heads",
            kv_heads,
            format!("a divisor of text_config.num_attention_heads, {heads}"),
        )?;
        check_activation(self.hidden_act.as_deref(), "text_config.hidden_act")?;
        let vocab_size = size(self.vocab_size, "text_config.vocab_size", MAX_VOCAB)?;
        if let Some(pad) = self.pad_token_id {
            check(
                (pad as usize) < vocab_size,
                "text_config.pad_token_id",
                pad,
                format!("less than text_config.vocab_size, {vocab_size}"),
            )?;
        }
        let rms_norm_eps = self.rms_norm_eps.unwrap_or(1e-5);
        check_epsilon(rms_norm_eps, "text_config.rms_norm_eps")?;
        let initializer_range = self.initializer_range.unwrap_or(0.02);
        check_range(initializer_range, "text_config.initializer_range")?;
        Ok(TextConfig {
            vocab_size,
            hidden_size,
            intermediate_size: size(self.intermediate_size, "text_config.intermediate_size", MAX_WIDTH)?,
            moe: if architecture == Architecture::Glm4vMoe { Some(self.experts()?) } else { None },
            num_hidden_layers: size(self.num_hidden_layers, "text_config.num_hidden_layers", MAX_COUNT)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            // Only glm4v_moe reads the key: modeling_glm4v.py and modeling_glm_ocr.py have it written in.
            attention_bias: match architecture {
                Architecture::Glm4v => true,
                Architecture::Glm4vMoe => self.attention_bias.unwrap_or(false),
                Architecture::GlmOcr => false,
            },
            sandwich_norms: architecture != Architecture::Glm4vMoe,
            max_position_embeddings: need(
                self.max_position_embeddings,
                "text_config.max_position_embeddings",
                "an integer",
            )?,
            rms_norm_eps,
            rope: rope(
                self.rope_parameters.or(self.rope_scaling).unwrap_or_default(),
                self.rope_theta,
                self.partial_rotary_factor,
                head_dim,
                architecture,
            )?,
            eos_token_id: match self.eos_token_id {
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
                None => Vec::new(),
            },
            pad_token_id: self.pad_token_id,
            initializer_range,
        })
    }
}

impl RawText {
    /// Width of a head: divided up in glm4v, told in the others.
    fn head_width(
        &self,
        architecture: Architecture,
        hidden_size: usize,
        heads: usize,
    ) -> Result<usize, ConfigError> {
        if let (Some(_), false) = (self.head_dim, architecture == Architecture::Glm4v) {
            let head_dim = size(self.head_dim, "text_config.head_dim", 1 << 14)?;
            check(head_dim.is_multiple_of(2), "text_config.head_dim", head_dim, "an even number")?;
            return Ok(head_dim);
        }
        check(
            hidden_size.is_multiple_of(heads),
            "text_config.num_attention_heads",
            heads,
            format!("a divisor of text_config.hidden_size, {hidden_size}"),
        )?;
        check(
            (hidden_size / heads).is_multiple_of(2),
            "text_config.num_attention_heads",
            heads,
            format!("a number that leaves heads of an even width of text_config.hidden_size, {hidden_size}"),
        )?;
        Ok(hidden_size / heads)
    }

    fn experts(&self) -> Result<MoeConfig, ConfigError> {
        let routed = size(self.n_routed_experts, "text_config.n_routed_experts", MAX_COUNT)?;
        let chosen = size(self.num_experts_per_tok, "text_config.num_experts_per_tok", MAX_COUNT)?;
        let groups = size(self.n_group.or(Some(1)), "text_config.n_group", MAX_COUNT)?;
        let kept = size(self.topk_group.or(Some(1)), "text_config.topk_group", MAX_COUNT)?;
        check(
            !self.use_qk_norm.unwrap_or(false),
            "text_config.use_qk_norm",
            "true",
            "false: no published checkpoint normalises queries and keys here",
        )?;
        check(
            // A group is judged by its two best experts.
            routed.is_multiple_of(groups) && routed / groups >= 2,
            "text_config.n_group",
            groups,
            format!("a divisor of text_config.n_routed_experts, {routed}, that leaves groups of two or more"),
        )?;
        check(
            kept <= groups,
            "text_config.topk_group",
            kept,
            format!("at most text_config.n_group, {groups}"),
        )?;
        check(
            chosen <= kept * (routed / groups),
            "text_config.num_experts_per_tok",
            chosen,
            format!("at most the {} experts of the groups that are kept", kept * (routed / groups)),
        )?;
        let factor = self.routed_scaling_factor.unwrap_or(1.0);
        check(factor.is_finite(), "text_config.routed_scaling_factor", factor, "a finite number")?;
        Ok(MoeConfig {
            first_k_dense_replace: self.first_k_dense_replace.unwrap_or(1),
            n_routed_experts: routed,
            num_experts_per_tok: chosen,
            n_shared_experts: size(self.n_shared_experts.or(Some(1)), "text_config.n_shared_experts", 64)?,
            moe_intermediate_size: size(
                self.moe_intermediate_size,
                "text_config.moe_intermediate_size",
                MAX_WIDTH,
            )?,
            n_group: groups,
            topk_group: kept,
            norm_topk_prob: self.norm_topk_prob.unwrap_or(true),
            routed_scaling_factor: factor,
        })
    }
}

impl RawRope {
    /// The kind of rotary positions, under either name.
    fn kind(&self, key: &'static str) -> Result<String, ConfigError> {
        if let (Some(new), Some(old)) = (&self.rope_type, &self.r#type)
            && new != old
        {
            let found = format!("\"{new}\", and \"type\" beside it is \"{old}\"");
            return invalid(key, found, "the same kind under both names");
        }
        Ok(self.rope_type.clone().or(self.r#type.clone()).unwrap_or_else(|| "default".into()))
    }
}

fn check_theta(theta: f64, key: &'static str) -> Result<(), ConfigError> {
    check(theta.is_finite() && theta > 0.0, key, theta, "a positive number")
}

/// Joins the two styles: what `rope_parameters` does not say is looked up beside it.
fn rope(
    raw: RawRope,
    theta: Option<f64>,
    partial: Option<f64>,
    head_dim: usize,
    architecture: Architecture,
) -> Result<TextRopeConfig, ConfigError> {
    let kind = raw.kind("text_config.rope_parameters.rope_type")?;
    check(
        matches!(kind.as_str(), "default" | "mrope"),
        "text_config.rope_parameters.rope_type",
        format!("\"{kind}\""),
        "\"default\"",
    )?;
    let rope_theta = raw.rope_theta.or(theta).unwrap_or(ROPE_THETA);
    check_theta(rope_theta, "text_config.rope_parameters.rope_theta")?;
    // Defaults of the reference (transformers 5); published files say 0.5, and 1.0 for glm_ocr.
    let default = if architecture == Architecture::Glm4vMoe { 0.5 } else { 1.0 };
    let partial = raw.partial_rotary_factor.or(partial).unwrap_or(default);
    let rotary_dim = (head_dim as f64 * partial) as usize;
    check(
        partial > 0.0 && partial <= 1.0 && rotary_dim >= 2 && rotary_dim.is_multiple_of(2),
        "text_config.rope_parameters.partial_rotary_factor",
        partial,
        format!("a factor that leaves an even number of the head's {head_dim} dimensions"),
    )?;
    let section = raw.mrope_section.unwrap_or(MROPE_SECTION.to_vec());
    let half = rotary_dim / 2;
    let found = format!("{section:?}");
    let mrope_section: [usize; 3] = section.try_into().unwrap_or([0; 3]);
    check(
        mrope_section.iter().try_fold(0, |sum: usize, s| sum.checked_add(*s)) == Some(half),
        "text_config.rope_parameters.mrope_section",
        found,
        format!("three integers that add up to half the rotary dimensions, {half}"),
    )?;
    let pairs = match architecture {
        Architecture::Glm4v | Architecture::GlmOcr => RotaryPairs::Neighbours,
        Architecture::Glm4vMoe => RotaryPairs::Halves,
    };
    Ok(TextRopeConfig { pairs, rope_theta, rotary_dim, mrope_section })
}

impl RawVision {
    fn check(self, architecture: Architecture) -> Result<VisionConfig, ConfigError> {
        check_activation(self.hidden_act.as_deref(), "vision_config.hidden_act")?;
        let ocr = architecture == Architecture::GlmOcr;
        let rope = self.rope_parameters.unwrap_or_default();
        let kind = rope.kind("vision_config.rope_parameters.rope_type")?;
        check(
            matches!(kind.as_str(), "default" | "axial"),
            "vision_config.rope_parameters.rope_type",
            format!("\"{kind}\""),
            "\"axial\"",
        )?;
        let rope_theta = rope.rope_theta.or(self.rope_theta).unwrap_or(ROPE_THETA);
        check_theta(rope_theta, "vision_config.rope_parameters.rope_theta")?;
        let side = |found: Option<Side>, key| found.map(|side| side.of_square(key)).transpose();
        let image_size = side(self.image_size, "vision_config.image_size")?;
        let patch_size = side(self.patch_size, "vision_config.patch_size")?;
        let bias = self.attention_bias.unwrap_or(ocr);
        let in_channels = size(self.in_channels.or(Some(3)), "vision_config.in_channels", 16)?;
        let out = size(self.out_hidden_size, "vision_config.out_hidden_size", MAX_WIDTH)?;
        let inner = size(self.intermediate_size, "vision_config.intermediate_size", MAX_WIDTH)?;
        let rms_norm_eps = self.rms_norm_eps.unwrap_or(1e-5);
        check_epsilon(rms_norm_eps, "vision_config.rms_norm_eps")?;
        let initializer_range = self.initializer_range.unwrap_or(0.02);
        check_range(initializer_range, "vision_config.initializer_range")?;
        let config = VisionConfig {
            depth: size(self.depth, "vision_config.depth", MAX_COUNT)?,
            hidden_size: size(self.hidden_size, "vision_config.hidden_size", MAX_WIDTH)?,
            num_heads: size(self.num_heads, "vision_config.num_heads", MAX_COUNT)?,
            in_channels,
            image_size: size(image_size, "vision_config.image_size", MAX_WIDTH)?,
            patch_size: size(patch_size, "vision_config.patch_size", 1024)?,
            temporal_patch_size: size(self.temporal_patch_size, "vision_config.temporal_patch_size", 64)?,
            spatial_merge_size: size(self.spatial_merge_size, "vision_config.spatial_merge_size", 64)?,
            out_hidden_size: out,
            // glm4v gives its blocks the width of the tower's output and its merger `intermediate_size`
            // (Glm4VisionMlp, Glm4vVisionPatchMerger); glm_ocr gives its blocks `intermediate_size`
            // (GlmOcrVisionPatchMerger).
            block_intermediate_size: if ocr { inner } else { out },
            merger_intermediate_size: if ocr { out * in_channels } else { inner },
            qkv_bias: bias,
            block_bias: ocr && bias,
            qk_norm: ocr,
            learned_positions: !ocr,
            rope_theta,
            rms_norm_eps,
            initializer_range,
        };
        let head_dim = config.hidden_size / config.num_heads;
        check(
            head_dim * config.num_heads == config.hidden_size && head_dim.is_multiple_of(4),
            "vision_config.num_heads",
            config.num_heads,
            format!(
                "a divisor of vision_config.hidden_size, {}, that leaves heads of a multiple of four",
                config.hidden_size
            ),
        )?;
        if let Some(found) = self.head_dim {
            let key = "vision_config.head_dim";
            check(
                found == head_dim,
                key,
                found,
                format!("hidden_size / num_heads, {head_dim}, or no such key"),
            )?;
        }
        check(
            config.position_side() >= 1,
            "vision_config.image_size",
            config.image_size,
            format!("at least vision_config.patch_size, {}", config.patch_size),
        )?;
        Ok(config)
    }
}

fn check_activation(name: Option<&str>, key: &'static str) -> Result<(), ConfigError> {
    let name = name.unwrap_or("silu");
    check(name == "silu", key, format!("\"{name}\""), "\"silu\"")
}

fn check_epsilon(value: f64, key: &'static str) -> Result<(), ConfigError> {
    check(value > 0.0 && value < 1.0, key, value, "a small positive number such as 1e-5")
}

fn check_range(value: f64, key: &'static str) -> Result<(), ConfigError> {
    check((0.0..1.0).contains(&value), key, value, "a number from 0 to 1, 0.02 in GLM-4.1V")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn broken(edit: impl Fn(&mut Value)) -> String {
        let mut raw: Value = serde_json::from_str(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../configs/models/digits/config.json"
        )))
        .unwrap();
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
        let table: Value = serde_json::from_str(DEFAULTS).unwrap();
        for (family, sections) in table.as_object().unwrap() {
            // Sizes of the classes alone: a family's text may be wider than what its vision tower puts out.
            let mut whole = json!({"model_type": family, "text_config": {}, "vision_config": {}});
            complete(&mut whole).unwrap();
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
        let mut whole: Value = serde_json::from_str(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../configs/models/digits/config.json"
        )))
        .unwrap();
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
            let mut whole: Value = serde_json::from_str(include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../configs/models/digits/config.json"
            )))
            .unwrap();
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
            let mut whole: Value = serde_json::from_str(include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../configs/models/digits/config.json"
            )))
            .unwrap();
            let target = if place.is_empty() { &mut whole } else { &mut whole[place] };
            target["tie_word_embeddings"] = json!(true);

            assert!(Glm4vConfig::from_json(&whole.to_string()).unwrap().tie_word_embeddings);
        }
    }
}
