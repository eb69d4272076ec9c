//! Products and attention in f64 on the host, and their rounding.

use glm4v_model::Precision;
use half::{bf16, f16};

/// The nearest number of a type.
pub(crate) fn round(value: f64, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => value,
        Precision::Bf16 => bf16::from_f64(value).to_f64(),
        Precision::F16 => f16::from_f64(value).to_f64(),
    }
}

/// The sum of the products of two rows.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Sizes of one call of attention, and which keys are seen.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_dim: usize,
    pub(crate) causal: bool,
    /// 0 for padding, else the sample that a key belongs to, `[B, Sk]`.
    pub(crate) segments: Vec<u32>,
}

impl Attention {
    /// Whether a query is a token.
    fn is_token(&self, row: usize, query: usize) -> bool {
        self.segments[row * self.keys + self.keys - self.queries + query] != 0
    }

    fn attends(&self, row: usize, query: usize, key: usize) -> bool {
        let place = self.keys - self.queries + query;
        let segments = &self.segments[row * self.keys..][..self.keys];
        segments[key] == segments[place] && (!self.causal || key <= place)
    }

    /// The output for some queries of every head, and where it is in `[B, H, S, Dh]`: f64 sums, rounded at scores, weights and output as
    /// eager attention in transformers rounds.
    pub(crate) fn output(
        &self,
        inputs: [&[f32]; 3],
        every: usize,
        precision: Precision,
    ) -> Vec<(usize, f64)> {
        let mut out = Vec::new();
        for row in 0..self.rows {
            for head in 0..self.heads {
                for query in (0..self.queries).step_by(every).filter(|query| self.is_token(row, *query)) {
                    let first = ((row * self.heads + head) * self.queries + query) * self.head_dim;
                    let sums = self.of_query(inputs, [row, head, query], precision);
                    out.extend(sums.into_iter().enumerate().map(|(at, sum)| (first + at, sum)));
                }
            }
        }
        out
    }

    /// The output of one query of one head, `[Dh]`.
    fn of_query(
        &self,
        [q, k, v]: [&[f32]; 3],
        [row, head, query]: [usize; 3],
        precision: Precision,
    ) -> Vec<f64> {
        let dim = self.head_dim;
        let vector = |at: usize| at * dim..(at + 1) * dim;
        let q = &q[vector((row * self.heads + head) * self.queries + query)];
        let key_head = row * self.key_heads + head * self.key_heads / self.heads;
        let place = |key: usize| vector(key_head * self.keys + key);
        let seen = (0..self.keys).filter(|key| self.attends(row, query, *key));
        let scale = (dim as f64).powf(-0.5);
        let scores: Vec<(usize, f64)> =
            seen.map(|key| (key, round(dot(q, &k[place(key)]) * scale, precision))).collect();
        let most = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|(_, score)| (score - most).exp()).sum();
        let mut output = vec![0.0; dim];
        for (key, score) in scores {
            let weight = round((score - most).exp() / sum, precision);
            for (output, value) in output.iter_mut().zip(&v[place(key)]) {
                *output += weight * f64::from(*value);
            }
        }
        output.into_iter().map(|value| round(value, precision)).collect()
    }
}
