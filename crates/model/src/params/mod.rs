//! Parameters by the names that checkpoints give them: walking, locating, counting, initializing.

pub(crate) mod counts;
pub(crate) mod init;
pub(crate) mod linear_layers;
pub(crate) mod named;
pub(crate) mod param_name;

pub use counts::ParamCounts;
pub use init::{ParamInit, initialize, initialize_lora};
pub use named::{NamedMapper, NamedVisitor, ParamInfo, map_named, param_infos, visit_named};
pub use param_name::{ExpertParamName, ModelPart, ParamName};
