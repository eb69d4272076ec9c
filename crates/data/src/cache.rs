//! Encoded samples that stay in memory.

use std::collections::HashMap;
use std::sync::Arc;

use glm4v_model::{Grid, Patches, Sample, TokenKind};

/// Keeps the first samples that fit into a number of bytes, for good.
///
/// Nothing is thrown out for a newer sample: every epoch asks for every sample once, in another order, so
/// the one thrown out is as likely to be needed as the one kept, and a set that is twice the size of
/// the cache still finds half of its samples.
#[derive(Debug)]
pub(crate) struct Cache {
    samples: HashMap<usize, Arc<Sample>>,
    free: usize,
}

impl Cache {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { samples: HashMap::new(), free: bytes }
    }

    pub(crate) fn get(&self, index: usize) -> Option<Arc<Sample>> {
        self.samples.get(&index).cloned()
    }

    pub(crate) fn offer(&mut self, index: usize, sample: &Arc<Sample>) {
        let size = bytes(sample);
        if size <= self.free && !self.samples.contains_key(&index) {
            self.free -= size;
            self.samples.insert(index, sample.clone());
        }
    }
}

/// Memory of a sample, without what the allocator and the table add.
fn bytes(sample: &Sample) -> usize {
    let patches = |p: &Patches| size_of_val(p.values.as_slice()) + p.grids.len() * size_of::<Grid>();
    let token = size_of::<u32>() + size_of::<TokenKind>() + size_of::<bool>();
    size_of::<Sample>() + sample.input_ids.len() * token + patches(&sample.images) + patches(&sample.videos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(patches: usize) -> Arc<Sample> {
        let pixels = vec![0.0; patches * 10];
        Arc::new(Sample::from_parts(vec![1], &[0], vec![true], (pixels, &[[1, 1, patches]]), (vec![], &[])))
    }

    #[test]
    fn a_full_cache_keeps_what_it_has_and_takes_what_still_fits() {
        let (small, large) = (sample(1), sample(100));
        let mut cache = Cache::new(bytes(&large) + bytes(&small));

        cache.offer(0, &large);
        cache.offer(1, &large);
        cache.offer(2, &small);
        cache.offer(3, &small);

        let kept = [0, 1, 2, 3].map(|index| cache.get(index).is_some());
        assert_eq!(kept, [true, false, true, false]);
    }

    #[test]
    fn the_same_sample_is_counted_once() {
        let one = sample(1);
        let mut cache = Cache::new(2 * bytes(&one));

        cache.offer(0, &one);
        cache.offer(0, &one);
        cache.offer(1, &one);

        assert!(cache.get(1).is_some());
    }
}
