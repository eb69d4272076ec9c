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

struct Walker<'a, T> {
    path: Vec<String>,
    inner: &'a mut T,
}

impl<T: NamedVisitor> ModuleVisitor for Walker<'_, T> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.join("."), param);
    }
}

impl<T: NamedMapper> ModuleMapper for Walker<'_, T> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map(&self.path.join("."), param)
    }
}
