//! Walking over parameters by the names that checkpoints give them.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;

/// Looks at every parameter of a module.
pub trait NamedVisitor {
    /// Looks at the parameter `name`, as `model.language_model.norm.weight`.
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>);
}

/// Replaces every parameter of a module.
pub trait NamedMapper {
    /// Replaces the parameter `name`, as `model.language_model.norm.weight`.
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Looks at every parameter, in the order of the fields.
pub fn visit_named(module: &impl Module, visitor: &mut impl NamedVisitor) {
    module.visit(&mut Walker { path: Vec::new(), inner: visitor });
}

/// Replaces every parameter, in the order of the fields.
pub fn map_named<M: Module>(module: M, mapper: &mut impl NamedMapper) -> M {
    module.map(&mut Walker { path: Vec::new(), inner: mapper })
}

/// A parameter without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// As `model.language_model.norm.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
}

/// All parameters in the order of the fields; nothing is allocated for those that wait for their values.
pub fn param_infos(module: &impl Module) -> Vec<ParamInfo> {
    // Shapes are known before values are: nothing is allocated, even for a 100B config.
    struct Collector(Vec<ParamInfo>);
    impl NamedVisitor for Collector {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            self.0.push(ParamInfo { name: name.to_owned(), shape: param.lazy_shape().clone() });
        }
    }
    let mut collector = Collector(Vec::new());
    visit_named(module, &mut collector);
    collector.0
}

struct Walker<'a, T> {
    path: Vec<String>,
    inner: &'a mut T,
}

impl<T> Walker<'_, T> {
    /// Which of several forms a part has is no part of its name: variants of enums are passed over.
    fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.pop();
        }
    }
}

impl<T: NamedVisitor> ModuleVisitor for Walker<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.join("."), param);
    }
}

impl<T: NamedMapper> ModuleMapper for Walker<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map(&self.path.join("."), param)
    }
}
