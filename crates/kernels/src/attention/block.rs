//! One block of queries over all its keys, with a running softmax.
//!
//! Scores are held for a tile of keys at a time, keys down and queries across: the softmax runs down the columns, many queries in
//! one vector, and neither keys nor values are rearranged. Source of the method: Dao et al., "FlashAttention" (2022).
//!
//! Dimensions: `L` lanes of a vector, `N` vectors of queries in a block, `Dh` head dimension.

use pulp::{Simd, WithSimd, bytemuck};

use crate::cpu::{Rows, exp};

/// Keys of a tile: its scores and values stay in the first level of the cache.
const TILE: usize = 96;

/// Keys of a score product, and queries of a value product, that share a load of the other side.
const SHARED: usize = 4;

/// One query.
pub(super) struct Query<'a> {
    /// Its vector.
    pub(super) query: &'a [f32],
    /// Number of keys that it may attend to, from the first on.
    pub(super) keys: usize,
    /// Its result.
    pub(super) output: &'a mut [f32],
}

/// What queries attend to.
#[derive(Clone, Copy)]
pub(super) struct KeyValues<'a> {
    pub(super) keys: Rows<'a, 1>,
    pub(super) values: Rows<'a, 1>,
    /// True where a key is hidden.
    pub(super) padding: Option<&'a [bool]>,
}

/// Queries that attend to the same keys.
pub(super) struct Task<'a> {
    pub(super) queries: Vec<Query<'a>>,
    pub(super) over: KeyValues<'a>,
    /// Factor of the scores.
    pub(super) scale: f32,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.queries.len().div_ceil(S::F32_LANES) {
            // Without vectors, `SHARED` queries are what makes a block.
            _ if S::F32_LANES < SHARED => self.run::<S, SHARED>(simd),
            0 | 1 => self.run::<S, 1>(simd),
            3.. if S::REGISTER_COUNT >= 32 => self.run::<S, 4>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn run<S: Simd, const N: usize>(mut self, simd: S) {
        let mut block = Block::<S, N>::new(simd, self.over);
        for queries in self.queries.chunks_mut(Block::<S, N>::QUERIES) {
            block.begin(queries, self.scale);
            let keys = queries.iter().map(|query| query.keys).max().unwrap_or(0);
            for first in (0..keys).step_by(TILE) {
                block.tile(first..keys.min(first + TILE), queries);
            }
            block.finish(queries);
        }
    }
}

/// `N · L` queries at work.
struct Block<'a, S: Simd, const N: usize> {
    simd: S,
    over: KeyValues<'a>,
    /// Scaled queries as columns, `[Dh, N]` vectors.
    queries: Vec<S::f32s>,
    /// Scores, then weights, of the tile at hand, `[TILE, N]` vectors.
    scores: Vec<S::f32s>,
    /// Largest score of each query so far.
    largest: [S::f32s; N],
    /// Sum of the weights of each query so far.
    sums: [S::f32s; N],
    /// Factor of what was summed before this tile.
    decay: [S::f32s; N],
    /// Weighted sums of values, `[N · L, Dh]`.
    outputs: Vec<f32>,
}

impl<'a, S: Simd, const N: usize> Block<'a, S, N> {
    const QUERIES: usize = N * S::F32_LANES;

    #[inline(always)]
    fn new(simd: S, over: KeyValues<'a>) -> Self {
        let zero = simd.splat_f32s(0.0);
        Self {
            simd,
            over,
            queries: vec![zero; over.keys.width * N],
            scores: vec![zero; TILE * N],
            largest: [zero; N],
            sums: [zero; N],
            decay: [zero; N],
            outputs: vec![0.0; Self::QUERIES * over.values.width],
        }
    }

    #[inline(always)]
    fn begin(&mut self, queries: &[Query<'_>], scale: f32) {
        let columns: &mut [f32] = bytemuck::cast_slice_mut(&mut self.queries);
        for (dim, column) in columns.chunks_mut(Self::QUERIES).enumerate() {
            for (value, query) in column.iter_mut().zip(queries) {
                *value = query.query[dim] * scale;
            }
        }
        // Not -inf: the difference to it stays a number where every key is hidden.
        self.largest = [self.simd.splat_f32s(f32::MIN); N];
        self.sums = [self.simd.splat_f32s(0.0); N];
        self.outputs.fill(0.0);
    }

    /// Adds the keys of a tile.
    #[inline(always)]
    fn tile(&mut self, keys: std::ops::Range<usize>, queries: &[Query<'_>]) {
        let whole = keys.len() / SHARED * SHARED;
        for at in (0..whole).step_by(SHARED) {
            self.score::<SHARED>(keys.start, at);
        }
        for at in whole..keys.len() {
            self.score::<1>(keys.start, at);
        }
        self.hide(keys.clone(), queries);
        self.softmax(keys.len());
        for query in (0..queries.len()).step_by(SHARED) {
            self.add_values(keys.clone(), query);
        }
    }

    /// Scores of `R` keys from `first + at` on, with all queries.
    #[inline(always)]
    fn score<const R: usize>(&mut self, first: usize, at: usize) {
        let keys: [&[f32]; R] = std::array::from_fn(|r| self.over.keys.row([first + at + r]));
        let mut scores = [[self.simd.splat_f32s(0.0); N]; R];
        for (dim, queries) in self.queries.chunks_exact(N).enumerate() {
            for r in 0..R {
                let key = self.simd.splat_f32s(keys[r][dim]);
                for n in 0..N {
                    scores[r][n] = self.simd.mul_add_f32s(key, queries[n], scores[r][n]);
                }
            }
        }
        for (to, from) in self.scores[at * N..].chunks_mut(N).zip(&scores) {
            to.copy_from_slice(from);
        }
    }

    /// Takes the scores of hidden keys away.
    #[inline(always)]
    fn hide(&mut self, keys: std::ops::Range<usize>, queries: &[Query<'_>]) {
        let fewest = queries.iter().map(|query| query.keys).min().unwrap_or(0);
        let scores: &mut [f32] = bytemuck::cast_slice_mut(&mut self.scores);
        for (key, scores) in keys.zip(scores.chunks_mut(Self::QUERIES)) {
            if self.over.padding.is_some_and(|padding| padding[key]) {
                scores.fill(f32::NEG_INFINITY);
            } else if key >= fewest {
                for (score, _) in scores.iter_mut().zip(queries).filter(|(_, query)| key >= query.keys) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Turns the scores of `count` keys into weights relative to the largest so far.
    #[inline(always)]
    fn softmax(&mut self, count: usize) {
        let (simd, scores) = (self.simd, &mut self.scores[..count * N]);
        let mut largest = self.largest;
        for scores in scores.chunks_exact(N) {
            for n in 0..N {
                largest[n] = simd.max_f32s(largest[n], scores[n]);
            }
        }
        let mut sums = self.sums;
        for n in 0..N {
            self.decay[n] = exp(simd, simd.sub_f32s(self.largest[n], largest[n]));
            sums[n] = simd.mul_f32s(sums[n], self.decay[n]);
        }
        for scores in scores.chunks_exact_mut(N) {
            for n in 0..N {
                scores[n] = exp(simd, simd.sub_f32s(scores[n], largest[n]));
                sums[n] = simd.add_f32s(sums[n], scores[n]);
            }
        }
        (self.largest, self.sums) = (largest, sums);
    }

    /// Adds the weighted values of a tile to [`SHARED`] queries from `query` on.
    #[inline(always)]
    fn add_values(&mut self, keys: std::ops::Range<usize>, query: usize) {
        let (lanes, width) = (S::F32_LANES, self.over.values.width);
        let mut column = 0;
        while column + 4 * lanes <= width {
            self.add_columns::<4>(keys.clone(), query, column);
            column += 4 * lanes;
        }
        for column in (column..width).step_by(lanes) {
            self.add_columns::<1>(keys.clone(), query, column);
        }
    }

    /// As [`add_values`](Self::add_values), `C` vectors of the values from `column` on.
    #[inline(always)]
    fn add_columns<const C: usize>(&mut self, keys: std::ops::Range<usize>, query: usize, column: usize) {
        let (simd, width) = (self.simd, self.over.values.width);
        let columns = column..width.min(column + C * S::F32_LANES);
        let decay: &[f32] = bytemuck::cast_slice(&self.decay);
        let weights: &[f32] = bytemuck::cast_slice(&self.scores);
        let rows = &mut self.outputs[query * width..][..SHARED * width];
        let mut sums: [[S::f32s; C]; SHARED] = std::array::from_fn(|r| {
            let decay = simd.splat_f32s(decay[query + r]);
            load(simd, &rows[r * width..][columns.clone()]).map(|sum| simd.mul_f32s(sum, decay))
        });
        for (key, weights) in keys.zip(weights.chunks_exact(Self::QUERIES)) {
            let values: [S::f32s; C] = load(simd, &self.over.values.row([key])[columns.clone()]);
            let weights = &weights[query..query + SHARED];
            for r in 0..SHARED {
                let weight = simd.splat_f32s(weights[r]);
                for c in 0..C {
                    sums[r][c] = simd.mul_add_f32s(weight, values[c], sums[r][c]);
                }
            }
        }
        for (row, sums) in rows.chunks_mut(width).zip(sums) {
            for (part, sum) in row[columns.clone()].chunks_mut(S::F32_LANES).zip(sums) {
                simd.partial_store_f32s(part, sum);
            }
        }
    }

    #[inline(always)]
    fn finish(&self, queries: &mut [Query<'_>]) {
        let sums: &[f32] = bytemuck::cast_slice(&self.sums);
        let outputs = self.outputs.chunks(self.over.values.width);
        for ((query, output), sum) in queries.iter_mut().zip(outputs).zip(sums) {
            // Nothing to attend to: zeros, which hurt no layer that computes on.
            let factor = if *sum == 0.0 { 0.0 } else { sum.recip() };
            for (to, from) in query.output.iter_mut().zip(output) {
                *to = from * factor;
            }
        }
    }
}

/// `C` vectors, of which the last may be part of one.
#[inline(always)]
fn load<S: Simd, const C: usize>(simd: S, values: &[f32]) -> [S::f32s; C] {
    let (vectors, _) = S::as_simd_f32s(values);
    match vectors.first_chunk() {
        Some(vectors) => *vectors,
        None => std::array::from_fn(|c| simd.partial_load_f32s(&values[c * S::F32_LANES..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, Tensor};
    use burn_flex::FlexTensor;

    fn random(shape: [usize; 2]) -> FlexTensor {
        FlexTensor::from_data(Tensor::<2>::random(shape, Distribution::Default, &Device::flex()).into_data())
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        let [queries, keys, values] = [random([11, 20]), random([105, 20]), random([105, 23])];
        let [queries, keys, values] = [&queries, &keys, &values].map(|rows| Rows::<1>::of(rows).unwrap());
        let over = KeyValues { keys, values, padding: None };
        let run = |dispatch: &dyn Fn(Task<'_>)| {
            let mut outputs = vec![0.0; 11 * 23];
            let query = |(at, output)| Query { query: queries.row([at]), keys: 90 + at, output };
            let queries = outputs.chunks_mut(23).enumerate().map(query).collect();
            dispatch(Task { queries, over, scale: 0.3 });
            outputs
        };

        let scalar = run(&|task| pulp::Scalar::new().vectorize(task));

        let best = run(&|task| pulp::Arch::new().dispatch(task));
        assert!(scalar.iter().zip(&best).all(|(a, b)| (a - b).abs() < 1e-6), "{scalar:?} {best:?}");
    }
}
