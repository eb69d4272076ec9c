//! Why an adapter cannot be used.

use serde_json::Value;

use crate::list_names;

/// What is wrong with an adapter, or why it does not fit a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// `adapter_config.json` is not the json of an adapter.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Not low-rank adaptation.
    #[error("peft_type is \"{found}\"; needed: \"LORA\"")]
    Kind {
        /// `peft_type`.
        found: String,
    },
    /// A rank that makes no adapter.
    #[error("r is {found}; needed: an integer from 1 to 65536")]
    Rank {
        /// `r`.
        found: usize,
    },
    /// A strength or a dropout that makes no adapter.
    #[error(
        "lora_alpha is {lora_alpha} and lora_dropout {lora_dropout}; needed: a finite number, and one from 0 to below 1"
    )]
    Scale {
        /// `lora_alpha`.
        lora_alpha: f64,
        /// `lora_dropout`.
        lora_dropout: f64,
    },
    /// Adapters that come with biases.
    #[error("bias is \"{found}\"; needed: \"none\", biases with adapters are not supported")]
    Bias {
        /// `bias`.
        found: String,
    },
    /// A kind of adapter that computes something else.
    #[error("{key} is {found}; needed: {needed}, plain low-rank adapters are all that is supported")]
    Formula {
        /// The key that asks for it.
        key: &'static str,
        /// Its value.
        found: Box<Value>,
        /// The value of plain adapters.
        needed: Box<Value>,
    },
    /// A module with its own rank or alpha that makes no adapter.
    #[error(
        "rank_pattern and alpha_pattern give {module} the rank {rank} and the alpha {alpha}; needed: a rank of at least 1 and a finite alpha"
    )]
    ModuleSize {
        /// The module.
        module: String,
        /// Its rank.
        rank: usize,
        /// Its alpha.
        alpha: f64,
    },
    /// An expression that cannot be read.
    #[error("{key}: \"{pattern}\" is not a regular expression: {source}")]
    Pattern {
        /// The key with the expression.
        key: String,
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        source: Box<fancy_regex::Error>,
    },
    /// A target that is not in the network.
    #[error(
        "{key}: \"{wanted}\" matches no linear layer of this model; there are: {}",
        list_names(kinds, usize::MAX)
    )]
    NoMatch {
        /// The key with the target.
        key: String,
        /// The target.
        wanted: String,
        /// Linear layers of the network, their numbers as `*`.
        kinds: Vec<String>,
    },
    /// A linear layer with an adapter that is to be kept whole too.
    #[error(
        "{module} has an adapter and belongs to modules_to_save, whose names are compared with the end of a module's; needed: one of the two"
    )]
    Both {
        /// The module.
        module: String,
    },
    /// Adapters on what is no linear layer.
    #[error(
        "has adapters on {}; needed: adapters on linear layers and experts, others (routers, the patch convolution, embeddings) are \
         not supported",
        list_names(modules, 8)
    )]
    NotLinear {
        /// The modules, their numbers as `*`.
        modules: Vec<String>,
    },
    /// Modules that PEFT takes for experts.
    #[error(
        "PEFT takes the names gate_proj, up_proj and down_proj of a glm4v_moe model for its experts and would compute something \
         else with adapters on {}; needed: target_modules without them, as [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\"], and \
         for experts target_parameters = [\"mlp.experts.gate_up_proj\", \"mlp.experts.down_proj\"]",
        list_names(modules, 8)
    )]
    TakenForExperts {
        /// The modules, their numbers as `*`.
        modules: Vec<String>,
    },
    /// Embeddings that would be trained apart from the head that is tied to them.
    #[error(
        "modules_to_save names the embeddings, to which this model's head is tied, and without \"ensure_weight_tying\": true PEFT \
         trains a copy of each; a network with two tables is not supported"
    )]
    Untied,
    /// A tied head that is not the table it is tied to.
    #[error(
        "lm_head.weight and the embeddings, which this model ties, differ in the adapter; needed: the same table twice"
    )]
    TwoTables,
    /// A module that is to be kept whole and is not in the network.
    #[error(
        "modules_to_save: \"{module}\" is no module of this model; modules are named as lm_head, embed_tokens or \
         model.visual.merger"
    )]
    NoModule {
        /// The name.
        module: String,
    },
    /// Tensors that the network has no place for.
    #[error(
        "{} tensors belong to no part of this model: {}; is it the adapter of another model?",
        names.len(), list_names(names, 8)
    )]
    NoPlace {
        /// Their names.
        names: Vec<String>,
    },
    /// One of the two factors alone.
    #[error("{missing} is missing, and {there} is there")]
    Half {
        /// The factor that is not there.
        missing: String,
        /// The one that is.
        there: String,
    },
    /// A sum of weight and adapter that its type cannot hold.
    #[error(
        "{name}: weight and adapter add up to {found:e}; needed: at most {largest:e}, the largest number of its type; are \
         lora_alpha and alpha_pattern right?"
    )]
    Overflow {
        /// Its name.
        name: String,
        /// The sum.
        found: f32,
        /// What the type can hold.
        largest: f64,
    },
    /// A tensor that is no matrix.
    #[error("{name} has shape {found:?}; needed: a matrix")]
    NotAMatrix {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of another shape than its place.
    #[error("{name} has shape {found:?}; needed: {needed:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// That of its place.
        needed: Vec<usize>,
    },
    /// Two factors that do not fit a linear layer.
    #[error("{name}: lora_A is {a:?} and lora_B {b:?}; needed: [r, {d_input}] and [{d_output}, r]")]
    Factors {
        /// The linear layer.
        name: String,
        /// Shape of the first factor.
        a: [usize; 2],
        /// Shape of the second.
        b: [usize; 2],
        /// Width that goes into the map.
        d_input: usize,
        /// Width that comes out of it.
        d_output: usize,
    },
    /// A module whose tensors have another rank than its config gives it.
    #[error("{module}: its tensors have rank {found}, but r and rank_pattern of its config give it {needed}")]
    OtherRank {
        /// The module.
        module: String,
        /// Rank of the tensors.
        found: usize,
        /// Rank by the config.
        needed: usize,
    },
    /// The two projections of an expert with strengths that one adapter cannot have.
    #[error("{name}: alpha_pattern scales gate_proj by {gate} and up_proj by {up}; needed: the same")]
    Scales {
        /// Their fused projection.
        name: String,
        /// Scale of the gate.
        gate: f64,
        /// Scale of the other.
        up: f64,
    },
    /// No tensors at all.
    #[error("holds no tensors; needed: lora_A and lora_B of every target")]
    Empty,
    /// Tensors for modules that the config does not target.
    #[error(
        "there are tensors for {count} modules that neither target_modules nor target_parameters of its config names: {};          needed: tensors and config of the same adapter",
        list_names(modules, 8)
    )]
    NotTargeted {
        /// How many.
        count: usize,
        /// The modules, their numbers as `*`.
        modules: Vec<String>,
    },
    /// Modules that the config targets, and that have no tensors.
    #[error(
        "its config targets {count} modules that there are no tensors for: {}; needed: tensors and config of the same          adapter",
        list_names(modules, 8)
    )]
    NoFactors {
        /// How many.
        count: usize,
        /// The modules, their numbers as `*`.
        modules: Vec<String>,
    },
    /// Modules that the config says are kept whole, and are not.
    #[error("modules_to_save names modules whose tensors are not there: {}", list_names(names, 8))]
    NotSaved {
        /// Tensors that are missing.
        names: Vec<String>,
    },
    /// Stacked factors that do not fit the experts of a layer.
    #[error(
        "{name}: lora_A has {rows} rows and lora_B {columns} columns; needed: the rank, {rank}, times the number of experts, \
         {experts}"
    )]
    Stack {
        /// The experts.
        name: String,
        /// Rows of the first factor.
        rows: usize,
        /// Columns of the second.
        columns: usize,
        /// The rank.
        rank: usize,
        /// Experts of a layer.
        experts: usize,
    },
}
