//! A network as a checkpoint sees it: whole tensors by published names.
//!
//! Everything here is about rows: the first dimension of a tensor, the rest of which lies together in files.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::module::{Module, Param};
use burn::prelude::*;
use glm4v_model::{NamedVisitor, visit_named};

use crate::names;

/// The tensors that make up a network.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    wholes: Vec<Whole>,
    /// Where a parameter is: number of its whole, number of the piece.
    places: HashMap<String, (usize, usize)>,
    /// Names under which a checkpoint may keep any of it.
    known: HashSet<String>,
}

/// A tensor of the network, its pieces joined.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Its name, that of a parameter without the number of a piece.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Parameters that hold its rows, in order; nearly always one that holds all.
    pub(crate) pieces: Vec<Piece>,
}

/// A parameter.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Its name.
    pub(crate) parameter: String,
    /// Its rows of the whole.
    pub(crate) rows: Range<usize>,
}

/// A tensor as checkpoints have it.
#[derive(Debug, PartialEq)]
pub(crate) struct Published {
    /// Its name.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Its rows of the whole.
    pub(crate) rows: Range<usize>,
}

impl Layout {
    /// Looks at a module's shapes; it need not have values. Adapters are passed over.
    pub(crate) fn of(module: &impl Module) -> Self {
        let mut layout = Self::default();
        visit_named(module, &mut layout);
        for whole in &layout.wholes {
            layout.known.extend(names::parts(&whole.name));
            layout.known.extend(names::stack(&whole.name).map(|(stack, _)| stack));
        }
        layout
    }

    fn add(&mut self, parameter: &str, shape: Vec<usize>) {
        let name = names::whole(parameter);
        let rows = shape.first().copied().unwrap_or(1);
        // Pieces come one after another.
        let number = match self.wholes.last_mut().filter(|last| last.name == name) {
            Some(last) => {
                let first = last.shape[0];
                last.shape[0] += rows;
                last.pieces.push(Piece { parameter: parameter.to_owned(), rows: first..first + rows });
                last.pieces.len() - 1
            }
            None => {
                let pieces = vec![Piece { parameter: parameter.to_owned(), rows: 0..rows }];
                self.wholes.push(Whole { name: name.to_owned(), shape, pieces });
                0
            }
        };
        self.places.insert(parameter.to_owned(), (self.wholes.len() - 1, number));
    }

    /// All of it, in the order of the network.
    pub(crate) fn wholes(&self) -> &[Whole] {
        &self.wholes
    }

    /// What a parameter is part of, and which part.
    pub(crate) fn find(&self, parameter: &str) -> Option<(&Whole, &Piece)> {
        let (whole, piece) = self.places.get(parameter)?;
        let whole = &self.wholes[*whole];
        Some((whole, &whole.pieces[*piece]))
    }

    /// Whether a checkpoint's tensor of this published name is part of the network, in whatever form.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.known.contains(name)
    }
}

impl NamedVisitor for Layout {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if !names::is_adapter(name) {
            self.add(name, param.lazy_shape().to_vec());
        }
    }
}

impl Whole {
    /// The tensors that published checkpoints keep it in.
    pub(crate) fn published(&self) -> Vec<Published> {
        let parts = names::parts(&self.name);
        let rows = self.shape.first().map_or(1, |rows| rows / parts.len());
        let shape =
            |_| self.shape.iter().enumerate().map(|(axis, n)| if axis == 0 { rows } else { *n }).collect();
        let of = |(number, name): (usize, String)| Published {
            shape: shape(()),
            rows: number * rows..(number + 1) * rows,
            name,
        };
        parts.into_iter().enumerate().map(of).collect()
    }

    /// Values in a row.
    pub(crate) fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// What two ranges share.
pub(crate) fn shared(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A network of whatever names and shapes.
    pub(crate) fn layout(parameters: &[(&str, &[usize])]) -> Layout {
        let mut layout = Layout::default();
        for (name, shape) in parameters {
            layout.add(name, shape.to_vec());
        }
        layout
    }

    #[test]
    fn pieces_are_joined_in_order() {
        let layout = layout(&[("a.weight.0", &[3, 4]), ("a.weight.1", &[2, 4]), ("b.weight", &[7])]);

        assert_eq!(layout.wholes().len(), 2);
        let (whole, piece) = layout.find("a.weight.1").unwrap();
        assert_eq!((whole.name.as_str(), whole.shape.as_slice()), ("a.weight", &[5, 4][..]));
        assert_eq!(piece.rows, 3..5);
        assert!(layout.find("a.weight").is_none());
    }

    #[test]
    fn an_expert_s_matrix_is_published_in_halves() {
        let layout = layout(&[("x.mlp.experts.2.gate_up_proj.weight", &[6, 4])]);

        let published = layout.wholes()[0].published();

        let half = |name: &str, rows| Published { name: name.into(), shape: vec![3, 4], rows };
        assert_eq!(
            published,
            [half("x.mlp.experts.2.gate_proj.weight", 0..3), half("x.mlp.experts.2.up_proj.weight", 3..6)]
        );
    }

    #[test]
    fn ranges_that_do_not_meet_share_nothing() {
        assert_eq!(shared(&(0..5), &(3..9)), 3..5);
        assert!(shared(&(0..2), &(3..9)).is_empty());
        assert!(shared(&(8..9), &(3..4)).is_empty());
    }
}
