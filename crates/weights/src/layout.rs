//! The tensors of a network under their checkpoint names, without values.
//!
//! All ranges count rows: indices of the first dimension, whose elements are contiguous in files.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::module::Module;
use burn::prelude::*;
use glm4v_model::{Backend, Glm4vConfig, ParamName, param_infos};

use crate::names;

/// The tensors of a network, in its order.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    tensors: Vec<FullTensor>,
    /// Parameter to the index of its full tensor and that of its row shard.
    places: HashMap<String, (usize, usize)>,
    /// All names under which a checkpoint may store any of the tensors.
    known: HashSet<String>,
}

/// A tensor of the network with its row shards joined.
#[derive(Debug)]
pub(crate) struct FullTensor {
    /// The parameter's name without the number of a row shard.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// The parameters that hold its rows, in order; a single one unless the device limits buffers.
    pub(crate) shards: Vec<RowShard>,
}

/// A parameter that holds some rows of a full tensor.
#[derive(Debug)]
pub(crate) struct RowShard {
    pub(crate) parameter: String,
    /// Rows of the full tensor.
    pub(crate) rows: Range<usize>,
}

/// A tensor as checkpoints store it: a full tensor, or half of one for a fused projection of an expert.
#[derive(Debug, PartialEq)]
pub(crate) struct CheckpointTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Rows of the full tensor.
    pub(crate) rows: Range<usize>,
}

impl Layout {
    /// Collects the parameters of a module, which need not be initialized. LoRA factors are left out.
    pub(crate) fn from_module(module: &impl Module) -> Self {
        let mut layout = Self::default();
        for param in param_infos(module).iter().filter(|param| !names::is_lora(&param.name)) {
            layout.add(&param.name, param.shape.to_vec());
        }
        for tensor in &layout.tensors {
            layout.known.extend(names::checkpoint_tensors(&tensor.name));
            layout.known.extend(names::expert_stack(&tensor.name).map(|(stack, _)| stack));
        }
        layout
    }

    /// The layout of the network that a config describes; no parameter is allocated.
    pub(crate) fn from_config(config: &Glm4vConfig) -> Self {
        // Uninitialized parameters have only a shape, on any device.
        Self::from_module(&config.init(&Backend::Cpu.open().unwrap_or_else(|_| Device::default())))
    }

    fn add(&mut self, parameter: &str, shape: Vec<usize>) {
        let name = ParamName(parameter).shard().0;
        let rows = shape.first().copied().unwrap_or(1);
        // Row shards are consecutive fields.
        let number = match self.tensors.last_mut().filter(|last| last.name == name) {
            Some(last) => {
                let first = last.shape[0];
                last.shape[0] += rows;
                last.shards.push(RowShard { parameter: parameter.to_owned(), rows: first..first + rows });
                last.shards.len() - 1
            }
            None => {
                let shards = vec![RowShard { parameter: parameter.to_owned(), rows: 0..rows }];
                self.tensors.push(FullTensor { name: name.to_owned(), shape, shards });
                0
            }
        };
        self.places.insert(parameter.to_owned(), (self.tensors.len() - 1, number));
    }

    /// All tensors, in the order of the network.
    pub(crate) fn tensors(&self) -> &[FullTensor] {
        &self.tensors
    }

    /// The full tensor of a parameter, and the row shard that the parameter is.
    pub(crate) fn find(&self, parameter: &str) -> Option<(&FullTensor, &RowShard)> {
        let (tensor, shard) = self.places.get(parameter)?;
        let tensor = &self.tensors[*tensor];
        Some((tensor, &tensor.shards[*shard]))
    }

    /// Whether a checkpoint tensor of this canonical name is part of the network, stacked or not.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.known.contains(name)
    }
}

impl FullTensor {
    /// The unstacked checkpoint tensors that it consists of.
    pub(crate) fn checkpoint_tensors(&self) -> Vec<CheckpointTensor> {
        let names = names::checkpoint_tensors(&self.name);
        let mut shape = self.shape.clone();
        let rows = shape.first().map_or(1, |rows| rows / names.len());
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
        let tensors = names.into_iter().enumerate().map(|(number, name)| CheckpointTensor {
            name,
            shape: shape.clone(),
            rows: number * rows..(number + 1) * rows,
        });
        tensors.collect()
    }

    /// Elements in a row.
    pub(crate) fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// The overlap of two ranges, empty if there is none.
pub(crate) fn intersect(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A network with parameters of these names and shapes.
    pub(crate) fn layout(parameters: &[(&str, &[usize])]) -> Layout {
        let mut layout = Layout::default();
        for (name, shape) in parameters {
            layout.add(name, shape.to_vec());
        }
        layout
    }

    #[test]
    fn row_shards_are_joined_in_order() {
        let layout = layout(&[("a.weight.0", &[3, 4]), ("a.weight.1", &[2, 4]), ("b.weight", &[7])]);

        assert_eq!(layout.tensors().len(), 2);
        let (tensor, shard) = layout.find("a.weight.1").unwrap();
        assert_eq!((tensor.name.as_str(), tensor.shape.as_slice()), ("a.weight", &[5, 4][..]));
        assert_eq!(shard.rows, 3..5);
        assert!(layout.find("a.weight").is_none());
    }

    #[test]
    fn the_fused_projection_of_an_expert_is_two_checkpoint_tensors() {
        let layout = layout(&[("x.mlp.experts.2.gate_up_proj.weight", &[6, 4])]);

        let stored = layout.tensors()[0].checkpoint_tensors();

        let half = |name: &str, rows| CheckpointTensor { name: name.into(), shape: vec![3, 4], rows };
        assert_eq!(
            stored,
            [half("x.mlp.experts.2.gate_proj.weight", 0..3), half("x.mlp.experts.2.up_proj.weight", 3..6)]
        );
    }

    #[test]
    fn disjoint_ranges_do_not_intersect() {
        assert_eq!(intersect(&(0..5), &(3..9)), 3..5);
        assert!(intersect(&(0..2), &(3..9)).is_empty());
        assert!(intersect(&(8..9), &(3..4)).is_empty());
    }
}
