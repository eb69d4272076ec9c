//! Keys and values of the tokens seen so far.
//!
//! Dimensions: `B` rows, `Hk` key heads, `S` new positions, `T` positions so far, `Dh` width of a head.

use burn::prelude::*;
use burn::tensor::DType;

use crate::config::TextConfig;

/// What a decoder remembers between two calls.
#[derive(Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    /// False where a position is padding, one vector a row.
    real: Vec<Vec<bool>>,
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// `[B, Hk, capacity, Dh]`
    keys: Tensor<4>,
    /// `[B, Hk, capacity, Dh]`
    values: Tensor<4>,
    length: usize,
}

impl Cache {
    /// Makes room for `capacity` positions of `rows` sequences.
    pub fn new(config: &TextConfig, rows: usize, capacity: usize, device: &Device, dtype: DType) -> Self {
        let shape = [rows, config.num_key_value_heads, capacity, config.head_dim];
        let layer = || LayerCache {
            keys: Tensor::zeros(shape, (device, dtype)),
            values: Tensor::zeros(shape, (device, dtype)),
            length: 0,
        };
        Self {
            layers: (0..config.num_hidden_layers).map(|_| layer()).collect(),
            real: vec![Vec::with_capacity(capacity); rows],
        }
    }

    /// Positions that are filled, padding included.
    pub fn len(&self) -> usize {
        self.real.first().map_or(0, Vec::len)
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions that there is room for.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.keys.dims()[2])
    }

    /// Real tokens seen in each row.
    pub fn tokens(&self) -> Vec<usize> {
        self.real.iter().map(|row| row.iter().filter(|real| **real).count()).collect()
    }

    /// Notes which of the next positions are real, `[B, S]` row-major, and returns that for all positions so far.
    pub(crate) fn extend(&mut self, real: &[bool]) -> Vec<bool> {
        let width = real.len().checked_div(self.real.len()).unwrap_or(0); // no rows have no positions
        for (row, new) in self.real.iter_mut().zip(real.chunks(width.max(1))) {
            row.extend_from_slice(new);
        }
        self.real.concat()
    }
}

impl LayerCache {
    /// Appends the keys and values of new positions and returns all so far.
    ///
    /// # Shapes
    ///
    /// - keys, values: `[B, Hk, S, Dh]`
    /// - output: `[B, Hk, T, Dh]` each
    pub(crate) fn append(&mut self, keys: Tensor<4>, values: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [rows, heads, new, width] = keys.dims();
        let place = [0..rows, 0..heads, self.length..self.length + new, 0..width];
        // In place: the cache holds the only handle of its tensors between two calls.
        self.keys.inplace(|all| all.slice_assign(place.clone(), keys));
        self.values.inplace(|all| all.slice_assign(place, values));
        self.length += new;
        (self.keys.clone().narrow(2, 0, self.length), self.values.clone().narrow(2, 0, self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Glm4vConfig;

    #[test]
    fn a_cache_of_no_rows_takes_no_positions() {
        let config = Glm4vConfig::tiny();
        let mut cache = Cache::new(&config.text, 0, 4, &Device::flex(), DType::F32);

        assert_eq!(cache.extend(&[]), Vec::<bool>::new());
        assert_eq!((cache.len(), cache.tokens()), (0, vec![]));
    }
}
