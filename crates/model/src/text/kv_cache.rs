//! Keys and values of the tokens so far.
//!
//! Dimensions: `B` rows, `Hk` key heads, `S` new positions, `T` positions so far, `Dh` head dimension.

use burn::prelude::*;
use burn::tensor::DType;

use crate::config::TextConfig;

/// The key-value cache of a decoder, preallocated for a number of positions.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// 0 for padding, one vector a row.
    segment_ids: Vec<Vec<u32>>,
}

/// Keys and values of one layer.
#[derive(Debug)]
struct LayerCache {
    /// `[B, Hk, capacity, Dh]`
    keys: Tensor<4>,
    /// `[B, Hk, capacity, Dh]`
    values: Tensor<4>,
    length: usize,
}

impl KvCache {
    /// Allocates `capacity` positions of `rows` sequences.
    pub fn new(config: &TextConfig, rows: usize, capacity: usize, device: &Device, dtype: DType) -> Self {
        let shape = [rows, config.num_key_value_heads, capacity, config.head_dim];
        let layer = || LayerCache {
            keys: Tensor::zeros(shape, (device, dtype)),
            values: Tensor::zeros(shape, (device, dtype)),
            length: 0,
        };
        Self {
            layers: (0..config.num_hidden_layers).map(|_| layer()).collect(),
            segment_ids: vec![Vec::with_capacity(capacity); rows],
        }
    }

    /// Filled positions, padding included.
    pub fn len(&self) -> usize {
        self.segment_ids.first().map_or(0, Vec::len)
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Allocated positions.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.keys.dims()[2])
    }

    /// Tokens of each row, without padding.
    pub fn num_tokens(&self) -> Vec<usize> {
        let tokens = |row: &Vec<u32>| row.iter().filter(|segment| **segment != 0).count();
        self.segment_ids.iter().map(tokens).collect()
    }

    /// Appends the segments of new positions, `[B, S]` row-major, and returns those of all, `[B, T]`.
    pub(super) fn extend_segments(&mut self, segment_ids: &[u32]) -> Vec<u32> {
        let new = segment_ids.len().checked_div(self.segment_ids.len()).unwrap_or(0); // no rows have no positions
        for (row, own) in self.segment_ids.iter_mut().zip(segment_ids.chunks(new.max(1))) {
            row.extend_from_slice(own);
        }
        self.segment_ids.concat()
    }

    /// Appends the keys and values of new positions to those of a layer and returns all.
    ///
    /// # Shapes
    ///
    /// - keys, values: `[B, Hk, S, Dh]`
    /// - output: `[B, Hk, T, Dh]` each
    pub(super) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let layer = &mut self.layers[layer];
        let [rows, heads, new, head_dim] = keys.dims();
        let range = [0..rows, 0..heads, layer.length..layer.length + new, 0..head_dim];
        // In place: the cache holds the only handle of its tensors between two calls.
        layer.keys.inplace(|all| all.slice_assign(range.clone(), keys));
        layer.values.inplace(|all| all.slice_assign(range, values));
        layer.length += new;
        let so_far = |all: &Tensor<4>| all.clone().narrow(2, 0, layer.length);
        (so_far(&layer.keys), so_far(&layer.values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Glm4vConfig;

    #[test]
    fn a_cache_of_no_rows_takes_no_positions() {
        let config = Glm4vConfig::tiny();
        let mut cache = KvCache::new(&config.text, 0, 4, &Device::flex(), DType::F32);

        assert_eq!(cache.extend_segments(&[]), Vec::<u32>::new());
        assert_eq!((cache.len(), cache.num_tokens()), (0, vec![]));
    }
}
