//! From the text of `config.json` to checked values.

use serde::Deserialize;

use super::{
    Architecture, ConfigError, Glm4vConfig, MoeConfig, RotaryPairs, TextConfig, TextRopeConfig, VisionConfig,
};

/// Theta of the vision tower's rotary positions: fixed in the published code, never in a checkpoint of this family.
pub(crate) const VISION_ROPE_THETA: f64 = 10000.0;

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
    #[serde(alias = "num_local_experts")]
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
    #[serde(alias = "type")]
    rope_type: Option<String>,
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
    image_size: Option<usize>,
    patch_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    out_hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    initializer_range: Option<f64>,
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
        let raw: RawConfig = serde_json::from_str(json)?;
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
            max_position_embeddings: self.max_position_embeddings.unwrap_or(65536),
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

/// Joins the two styles: what `rope_parameters` does not say is looked up beside it.
fn rope(
    raw: RawRope,
    theta: Option<f64>,
    partial: Option<f64>,
    head_dim: usize,
    architecture: Architecture,
) -> Result<TextRopeConfig, ConfigError> {
    let kind = raw.rope_type.unwrap_or_else(|| "default".into());
    check(
        matches!(kind.as_str(), "default" | "mrope"),
        "text_config.rope_parameters.rope_type",
        format!("\"{kind}\""),
        "\"default\"",
    )?;
    let rope_theta = need(
        raw.rope_theta.or(theta),
        "text_config.rope_parameters.rope_theta",
        "a number, 10000 in GLM-4.1V",
    )?;
    check(
        rope_theta.is_finite() && rope_theta > 0.0,
        "text_config.rope_parameters.rope_theta",
        rope_theta,
        "a positive number",
    )?;
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
    let section = need(
        raw.mrope_section,
        "text_config.rope_parameters.mrope_section",
        "three integers, [8, 12, 12] in GLM-4.1V",
    )?;
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
            image_size: size(self.image_size, "vision_config.image_size", MAX_WIDTH)?,
            patch_size: size(self.patch_size, "vision_config.patch_size", 1024)?,
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
    fn a_missing_key_is_named() {
        assert_eq!(
            broken(|c| {
                c.as_object_mut().unwrap().remove("image_token_id");
            }),
            "config.json: key \"image_token_id\" is missing; needed: a token id"
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
