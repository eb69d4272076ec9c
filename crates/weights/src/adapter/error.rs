//! Errors of adapters.

use serde_json::Value;

use crate::name_list::{MAX_LISTED, list_names};

/// Why an adapter is invalid or does not fit a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// `adapter_config.json` is not JSON with the keys of an adapter.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Another method than LoRA.
    #[error("peft_type is \"{found}\"; needed: \"LORA\"")]
    PeftType {
        /// `peft_type`.
        found: String,
    },
    /// A rank out of range.
    #[error("r is {found}; needed: an integer from 1 to 65536")]
    Rank {
        /// `r`.
        found: usize,
    },
    /// An alpha or a dropout probability out of range.
    #[error(
        "lora_alpha is {lora_alpha} and lora_dropout {lora_dropout}; needed: a finite number, and one from 0 to below 1"
    )]
    AlphaOrDropout {
        /// `lora_alpha`.
        lora_alpha: f64,
        /// `lora_dropout`.
        lora_dropout: f64,
    },
    /// Trained biases.
    #[error("bias is \"{found}\"; needed: \"none\", biases with adapters are not supported")]
    Bias {
        /// `bias`.
        found: String,
    },
    /// A variant of LoRA with another formula.
    #[error("{key} is {found}; needed: {needed}, plain low-rank adapters are all that is supported")]
    UnsupportedOption {
        /// The key that selects the variant.
        key: &'static str,
        /// Value of the key.
        found: Box<Value>,
        /// The value for plain LoRA.
        needed: Box<Value>,
    },
    /// A rank or an alpha of a single module out of range.
    #[error(
        "rank_pattern and alpha_pattern give {module} the rank {rank} and the alpha {alpha}; needed: a rank of at least 1 and a finite alpha"
    )]
    ModuleRankOrAlpha {
        /// Name of the module.
        module: String,
        /// Its rank by `rank_pattern`.
        rank: usize,
        /// Its alpha by `alpha_pattern`.
        alpha: f64,
    },
    /// An invalid regular expression.
    #[error("{key}: \"{pattern}\" is not a regular expression: {source}")]
    Pattern {
        /// The key that contains it.
        key: String,
        /// The expression.
        pattern: String,
        /// The error of the regex engine.
        source: Box<fancy_regex::Error>,
    },
    /// A target that matches nothing.
    #[error(
        "{key}: \"{wanted}\" matches no linear layer of this model; there are: {}",
        list_names(kinds, usize::MAX)
    )]
    NoMatch {
        /// The key with the target.
        key: String,
        /// The target.
        wanted: String,
        /// Linear layers of the network, with indices as `*`.
        kinds: Vec<String>,
    },
    /// A target that is in `modules_to_save`, too.
    #[error(
        "{module} has an adapter and belongs to modules_to_save, whose names are compared with the end of a module's; needed: one of the two"
    )]
    AdaptedAndSaved {
        /// Name of the module.
        module: String,
    },
    /// LoRA factors on modules other than linear layers.
    #[error(
        "has adapters on {}; needed: adapters on linear layers and experts, others (routers, the patch convolution, embeddings) are \
         not supported",
        list_names(modules, MAX_LISTED)
    )]
    NotLinear {
        /// Names of the modules, with indices as `*`.
        modules: Vec<String>,
    },
    /// Targets that PEFT misreads as experts.
    #[error(
        "PEFT takes the names gate_proj, up_proj and down_proj of a glm4v_moe model for its experts and would compute something \
         else with adapters on {}; needed: target_modules without them, as [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\"], and \
         for experts target_parameters = [\"mlp.experts.gate_up_proj\", \"mlp.experts.down_proj\"]",
        list_names(modules, MAX_LISTED)
    )]
    MisreadAsExperts {
        /// Names of the modules, with indices as `*`.
        modules: Vec<String>,
    },
    /// `modules_to_save` with tied embeddings, of which PEFT would train two copies.
    #[error(
        "modules_to_save names the embeddings, to which this model's head is tied, and without \"ensure_weight_tying\": true PEFT \
         trains a copy of each; a network with two tables is not supported"
    )]
    TiedEmbeddings,
    /// An LM head that differs from the embeddings it is tied to.
    #[error(
        "lm_head.weight and the embeddings, which this model ties, differ in the adapter; needed: the same table twice"
    )]
    TiedWeightsDiffer,
    /// An entry of `modules_to_save` that matches no module.
    #[error(
        "modules_to_save: \"{module}\" is no module of this model; modules are named as lm_head, embed_tokens or \
         model.visual.merger"
    )]
    NoModule {
        /// The entry.
        module: String,
    },
    /// Tensors that belong to no part of the network.
    #[error(
        "{} tensors belong to no part of this model: {}; is it the adapter of another model?",
        names.len(), list_names(names, MAX_LISTED)
    )]
    UnexpectedTensors {
        /// Names of the tensors.
        names: Vec<String>,
    },
    /// One of the two LoRA factors without the other.
    #[error("{missing} is missing, and {there} is there")]
    MissingFactor {
        /// Name of the missing factor.
        missing: String,
        /// Name of the present factor.
        there: String,
    },
    /// A merged weight that overflows its type.
    #[error(
        "{name}: weight and adapter add up to {found:e}; needed: at most {largest:e}, the largest number of its type; are \
         lora_alpha and alpha_pattern right?"
    )]
    Overflow {
        /// Name of the weight.
        name: String,
        /// The merged value.
        found: f32,
        /// Largest number of the type.
        largest: f64,
    },
    /// A tensor with another number of dimensions than two.
    #[error("{name} has shape {found:?}; needed: a matrix")]
    NotAMatrix {
        /// Name of the tensor.
        name: String,
        /// Shape of the tensor.
        found: Vec<usize>,
    },
    /// A saved tensor of another shape than the parameter it replaces.
    #[error("{name} has shape {found:?}; needed: {needed:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape of the tensor.
        found: Vec<usize>,
        /// Shape of the parameter.
        needed: Vec<usize>,
    },
    /// LoRA factors whose shapes do not fit the linear layer.
    #[error("{name}: lora_A is {a:?} and lora_B {b:?}; needed: [r, {d_input}] and [{d_output}, r]")]
    FactorShapes {
        /// Name of the linear layer.
        name: String,
        /// Shape of `lora_A`.
        a: [usize; 2],
        /// Shape of `lora_B`.
        b: [usize; 2],
        /// Input features of the layer.
        d_input: usize,
        /// Output features of the layer.
        d_output: usize,
    },
    /// LoRA factors of another rank than the config's.
    #[error("{module}: its tensors have rank {found}, but r and rank_pattern of its config give it {needed}")]
    RankMismatch {
        /// Name of the module.
        module: String,
        /// Rank of the factors.
        found: usize,
        /// Rank by the config.
        needed: usize,
    },
    /// Gate and up projection of an expert with different scales, which their fused projection cannot have.
    #[error("{name}: alpha_pattern scales gate_proj by {gate} and up_proj by {up}; needed: the same")]
    GateUpScales {
        /// Name of the fused projection.
        name: String,
        /// Scale of the gate projection.
        gate: f64,
        /// Scale of the up projection.
        up: f64,
    },
    /// An adapter file without tensors.
    #[error("holds no tensors; needed: lora_A and lora_B of every target")]
    Empty,
    /// LoRA factors of modules that the config does not target.
    #[error(
        "there are tensors for {count} modules that neither target_modules nor target_parameters of its config names: {};          needed: tensors and config of the same adapter",
        list_names(modules, MAX_LISTED)
    )]
    NotTargeted {
        /// Number of modules.
        count: usize,
        /// Names of the modules, with indices as `*`.
        modules: Vec<String>,
    },
    /// Targets without LoRA factors.
    #[error(
        "its config targets {count} modules that there are no tensors for: {}; needed: tensors and config of the same          adapter",
        list_names(modules, MAX_LISTED)
    )]
    MissingFactors {
        /// Number of modules.
        count: usize,
        /// Names of the modules, with indices as `*`.
        modules: Vec<String>,
    },
    /// Modules of `modules_to_save` without tensors.
    #[error("modules_to_save names modules whose tensors are not there: {}", list_names(names, MAX_LISTED))]
    MissingSaved {
        /// Names of the missing tensors.
        names: Vec<String>,
    },
    /// Stacked LoRA factors whose shapes do not fit the experts of a layer.
    #[error(
        "{name}: lora_A has {rows} rows and lora_B {columns} columns; needed: the rank, {rank}, times the number of experts, \
         {experts}"
    )]
    ExpertStack {
        /// Name of the experts' module.
        name: String,
        /// Rows of `lora_A`.
        rows: usize,
        /// Columns of `lora_B`.
        columns: usize,
        /// Rank by the config.
        rank: usize,
        /// Number of experts of a layer.
        experts: usize,
    },
}
