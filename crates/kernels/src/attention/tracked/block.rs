//! Attention over blocks of queries, and its gradients.
//!
//! Dimensions: `B` rows, `S` positions of queries in a row, `Sk` of keys, `H` query heads, `Hk` key heads, `Dh` head dimension.

use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::cpu::{Matrix, MatrixMut, Output, Rows, dot, exp_of, exponentials, matmul, maximum};

/// Scores that a thread holds at a time: 256 KiB stay in its cache.
const SCORES: usize = 64 * 1024;

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule<'a> {
    /// All.
    All,
    /// Those up to its own position, counted from the end of both.
    Causal,
    /// What is added to the scores, from the [`Sequence`]'s own on: `[queries, keys]`.
    Bias(&'a [f32]),
}

/// Positions that attend to each other, next to each other in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence {
    /// Index in `B`.
    pub(super) row: usize,
    /// Its first position in the row.
    pub(super) first: usize,
    /// Number of queries.
    pub(super) queries: usize,
    /// Number of keys.
    pub(super) keys: usize,
    /// Where its bias begins.
    pub(super) bias: usize,
}

/// Queries, keys and values, and what attends to what.
#[derive(Debug)]
pub(super) struct Attention<'a> {
    /// `[B, S, H, Dh]`
    q: Rows<'a, 3>,
    /// `[B, Sk, Hk, Dh]`
    k: Rows<'a, 3>,
    /// `[B, Sk, Hk, Dh]`
    v: Rows<'a, 3>,
    /// All positions, in their order.
    /// `[B, S, H]`
    queries: [usize; 3],
    /// `Hk`
    key_heads: usize,
    sequences: Vec<Sequence>,
    rule: Rule<'a>,
}

/// Largest score and reciprocal of the sum of exponentials, by position and head, `[B, S, H]`.
pub(super) type Statistics = Vec<[f32; 2]>;

/// Queries of a sequence that a thread takes at a time.
#[derive(Debug, Clone)]
struct Block {
    sequence: Sequence,
    queries: Range<usize>,
}

impl<'a> Attention<'a> {
    /// Of tensors whose vectors are contiguous.
    pub(super) fn new(qkv: [&'a FlexTensor; 3], sequences: Vec<Sequence>, rule: Rule<'a>) -> Self {
        let [q, k, v] = qkv.map(|tensor| Rows::of(tensor).expect("callers make vectors contiguous"));
        let [queries, keys] = [qkv[0], qkv[1]].map(|tensor| tensor.layout().shape());
        let key_heads = keys[2];
        Self { q, k, v, queries: [queries[0], queries[1], queries[2]], key_heads, sequences, rule }
    }

    /// The output `[B, S, H, Dh]` and the statistics of its rows.
    pub(super) fn forward(&self) -> (Vec<f32>, Statistics) {
        let [rows, positions, heads] = self.queries;
        let mut output = vec![0.0; rows * positions * heads * self.q.width];
        let mut statistics = vec![[0.0; 2]; rows * positions * heads];
        let (mut outputs, mut rest) = (output.as_mut_slice(), statistics.as_mut_slice());
        let mut tasks = Vec::new();
        for block in self.sequences.iter().flat_map(Sequence::blocks) {
            let (output, later) = outputs.split_at_mut(block.queries.len() * heads * self.q.width);
            let (statistics, later_statistics) = rest.split_at_mut(block.queries.len() * heads);
            (outputs, rest) = (later, later_statistics);
            tasks.push((block, output, statistics));
        }
        tasks.into_par_iter().for_each(|(block, output, statistics)| {
            self.forward_block(&block, output, statistics);
        });
        (output, statistics)
    }

    /// All heads of a block, one after another.
    fn forward_block(&self, block: &Block, output: &mut [f32], statistics: &mut [[f32; 2]]) {
        let (heads, width) = (self.queries[2], self.q.width);
        let visible = self.visible_keys(block, block.queries.end - 1);
        let mut weights = vec![0.0; block.queries.len() * visible];
        for head in 0..heads {
            self.scores(block, head, &mut weights);
            pulp::Arch::new().dispatch(|| {
                for (query, row) in weights.chunks_exact_mut(visible).enumerate() {
                    let visible = self.visible_keys(block, block.queries.start + query);
                    self.add_bias(block, block.queries.start + query, row);
                    statistics[query * heads + head] = softmax(row, visible);
                }
            });
            let weights = Matrix::new(&weights, [block.queries.len(), visible], [visible, 1]);
            let output = &mut output[head * width..];
            let output = MatrixMut::new(output, [block.queries.len(), width], heads * width);
            matmul(1.0, weights, self.keys_of(&self.v, block, head, visible), output, Output::Replace);
        }
    }

    /// Gradients of one head of a sequence: `[S, Dh]` of the queries, `[Sk, Dh]` of the keys and values, all zero at first.
    ///
    /// `output_and_grad` are `[B, S, H, Dh]`.
    pub(super) fn backward_head(
        &self,
        (sequence, head): (Sequence, usize),
        output_and_grad: [Rows<'_, 3>; 2],
        statistics: &Statistics,
        [q_grad, k_grad, v_grad]: [&mut [f32]; 3],
    ) {
        let width = self.q.width;
        let scale = self.scale();
        for block in sequence.blocks() {
            let (count, first) = (block.queries.len(), sequence.first + block.queries.start);
            let visible = self.visible_keys(&block, block.queries.end - 1);
            let [mut weights, mut score_grads] = [0, 1].map(|_| vec![0.0; count * visible]);
            self.scores(&block, head, &mut weights);
            let grad = output_and_grad[1].run([sequence.row, first, head], 1, count);
            let values = self.keys_of(&self.v, &block, head, visible);
            let shape = [count, visible];
            matmul(
                1.0,
                grad,
                values.transpose(),
                MatrixMut::new(&mut score_grads, shape, visible),
                Output::Replace,
            );
            pulp::Arch::new().dispatch(|| {
                let rows = weights.chunks_exact_mut(visible).zip(score_grads.chunks_exact_mut(visible));
                for (query, (weights, score_grads)) in rows.enumerate() {
                    let position = [sequence.row, first + query, head];
                    let [output, grad] = output_and_grad.map(|vectors| vectors.row(position));
                    self.add_bias(&block, block.queries.start + query, weights);
                    let visible = self.visible_keys(&block, block.queries.start + query);
                    let statistics = statistics[self.position(position)];
                    backward_row(weights, score_grads, visible, statistics, dot(output, grad));
                }
            });
            let weights = Matrix::new(&weights, shape, [visible, 1]);
            let score_grads = Matrix::new(&score_grads, shape, [visible, 1]);
            let of_keys = |grads| MatrixMut::new(grads, [visible, width], width);
            matmul(1.0, weights.transpose(), grad, of_keys(&mut *v_grad), Output::Add);
            let queries = self.q.run([sequence.row, first, head], 1, count);
            matmul(scale, score_grads.transpose(), queries, of_keys(&mut *k_grad), Output::Add);
            let q_grad = &mut q_grad[block.queries.start * width..block.queries.end * width];
            let keys = self.keys_of(&self.k, &block, head, visible);
            matmul(scale, score_grads, keys, MatrixMut::new(q_grad, [count, width], width), Output::Replace);
        }
    }

    /// Scaled scores of a block's queries with the keys that its last one sees.
    fn scores(&self, block: &Block, head: usize, scores: &mut [f32]) {
        let (sequence, count) = (block.sequence, block.queries.len());
        let visible = scores.len() / count;
        let queries = self.q.run([sequence.row, sequence.first + block.queries.start, head], 1, count);
        let keys = self.keys_of(&self.k, block, head, visible);
        let scores = MatrixMut::new(scores, [count, visible], visible);
        matmul(self.scale(), queries, keys.transpose(), scores, Output::Replace);
    }

    /// The first keys, or values, that a head attends to.
    fn keys_of(&self, keys: &Rows<'a, 3>, block: &Block, head: usize, count: usize) -> Matrix<'a> {
        let group = self.queries[2] / self.key_heads;
        keys.run([block.sequence.row, block.sequence.first, head / group], 1, count)
    }

    fn scale(&self) -> f32 {
        (self.q.width as f32).powf(-0.5)
    }

    /// Index in [`Statistics`].
    fn position(&self, [row, position, head]: [usize; 3]) -> usize {
        (row * self.queries[1] + position) * self.queries[2] + head
    }

    /// Number of keys up to the last that a query attends to.
    #[inline(always)]
    fn visible_keys(&self, block: &Block, query: usize) -> usize {
        let Sequence { queries, keys, .. } = block.sequence;
        match self.rule {
            Rule::Causal => keys - queries + query + 1,
            Rule::All | Rule::Bias(_) => keys,
        }
    }

    #[inline(always)]
    fn add_bias(&self, block: &Block, query: usize, scores: &mut [f32]) {
        if let Rule::Bias(bias) = self.rule {
            let bias = &bias[block.sequence.bias + query * block.sequence.keys..];
            scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
    }
}

impl Sequence {
    /// Its queries in parts whose scores a thread can hold.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let sequence = *self;
        let size = (SCORES / self.keys.max(1)).clamp(16, 128);
        (0..self.queries)
            .step_by(size)
            .map(move |first| Block { sequence, queries: first..sequence.queries.min(first + size) })
    }
}

/// Turns the scores of the visible keys into weights and hides the others; returns the statistics of the row.
#[inline(always)]
fn softmax(row: &mut [f32], visible: usize) -> [f32; 2] {
    let (row, hidden) = row.split_at_mut(visible);
    hidden.fill(0.0);
    let largest = maximum(row);
    let scale = 1.0 / exponentials(row, largest);
    row.iter_mut().for_each(|value| *value *= scale);
    [largest, scale]
}

/// Turns scores into weights, and gradients of the weights into those of the scores: `w · (g - along)`, where `along` is the
/// product of the output and its gradient.
#[inline(always)]
fn backward_row(
    weights: &mut [f32],
    grads: &mut [f32],
    visible: usize,
    [largest, scale]: [f32; 2],
    along: f32,
) {
    let ((weights, hidden), (grads, hidden_grads)) =
        (weights.split_at_mut(visible), grads.split_at_mut(visible));
    hidden.fill(0.0);
    hidden_grads.fill(0.0);
    for (weight, grad) in weights.iter_mut().zip(grads) {
        *weight = exp_of(*weight - largest) * scale;
        *grad = *weight * (*grad - along);
    }
}
