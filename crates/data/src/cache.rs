//! A cache of encoded samples.

use std::collections::HashMap;
use std::sync::Arc;

use glm4v_inputs::{Batch, Modality, MultimodalInputs, Patches, Sample};

/// Keeps the first samples that fit into a number of bytes.
///
/// Nothing is evicted: every epoch needs every sample once, in another order, so an evicted sample is as likely to be needed next
/// as a kept one, and a dataset of twice the size of the cache still finds half of its samples.
#[derive(Debug)]
pub(crate) struct SampleCache {
    samples: HashMap<usize, Arc<Sample>>,
    free_bytes: usize,
}

impl SampleCache {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { samples: HashMap::new(), free_bytes: bytes }
    }

    pub(crate) fn get(&self, index: usize) -> Option<Arc<Sample>> {
        self.samples.get(&index).cloned()
    }

    pub(crate) fn insert_if_it_fits(&mut self, index: usize, sample: &Arc<Sample>) {
        let size = sample_bytes(sample);
        if size <= self.free_bytes && !self.samples.contains_key(&index) {
            self.free_bytes -= size;
            self.samples.insert(index, sample.clone());
        }
    }
}

/// Memory of a sample, without the overhead of allocator and table.
fn sample_bytes(sample: &Sample) -> usize {
    let token = size_of::<u32>() + size_of::<Option<Modality>>() + size_of::<bool>();
    size_of::<Sample>() + sample.len() * token + media_bytes(&sample.media)
}

/// Memory of a batch, without the overhead of the allocator.
pub(crate) fn batch_bytes(batch: &Batch) -> usize {
    let token = 2 * size_of::<u32>() + size_of::<Option<Modality>>() + size_of::<bool>();
    let weights = batch.loss_weights.as_ref().map_or(0, |weights| size_of_val(weights.as_slice()));
    batch.input_ids.len() * token + weights + media_bytes(&batch.media)
}

fn media_bytes(media: &MultimodalInputs) -> usize {
    let bytes =
        |patches: &Patches| size_of_val(patches.values.as_slice()) + size_of_val(patches.grids.as_slice());
    media.iter().map(|(_, patches)| bytes(patches)).sum()
}

#[cfg(test)]
mod tests {
    use glm4v_inputs::{Grid, MultimodalInputs};

    use super::*;

    fn sample(patches: usize) -> Arc<Sample> {
        let image = Patches { values: vec![0.0; patches * 10], grids: vec![Grid::new(1, 1, patches)] };
        let media = MultimodalInputs::from_iter([(Modality::Image, image)]);
        Arc::new(Sample { media, ..Sample::from_text(vec![1]) })
    }

    #[test]
    fn a_full_cache_keeps_what_it_has_and_takes_what_still_fits() {
        let (small, large) = (sample(1), sample(100));
        let mut cache = SampleCache::new(sample_bytes(&large) + sample_bytes(&small));

        cache.insert_if_it_fits(0, &large);
        cache.insert_if_it_fits(1, &large);
        cache.insert_if_it_fits(2, &small);
        cache.insert_if_it_fits(3, &small);

        let kept = [0, 1, 2, 3].map(|index| cache.get(index).is_some());
        assert_eq!(kept, [true, false, true, false]);
    }

    #[test]
    fn the_same_sample_is_counted_once() {
        let one = sample(1);
        let mut cache = SampleCache::new(2 * sample_bytes(&one));

        cache.insert_if_it_fits(0, &one);
        cache.insert_if_it_fits(0, &one);
        cache.insert_if_it_fits(1, &one);

        assert!(cache.get(1).is_some());
    }
}
