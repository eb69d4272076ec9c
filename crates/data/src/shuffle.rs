//! Permutations that depend on a seed and an epoch alone: not on threads, platform or a library version.

use glm4v_inputs::SplitMix64;

/// The numbers `0..len` in the order of an epoch (Fisher-Yates, from the end).
pub(crate) fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    // The epoch is mixed before it meets the seed: else seed 1 epoch 0 would be seed 0 epoch 1.
    let mut random = SplitMix64::new(seed ^ SplitMix64::mix(epoch.wrapping_mul(SplitMix64::INCREMENT)));
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        let j = random.below(i as u64 + 1) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_is_the_same_everywhere_and_for_good() {
        // Computed by a second implementation, in Python.
        assert_eq!(permutation(10, 7, 0), [9, 5, 8, 6, 1, 2, 4, 7, 0, 3]);
        assert_eq!(permutation(10, 7, 1), [6, 2, 8, 7, 5, 4, 9, 0, 1, 3]);
    }

    #[test]
    fn seeds_and_epochs_give_orders_of_their_own() {
        let orders: Vec<_> =
            (0..4).flat_map(|seed| (0..4).map(move |epoch| permutation(50, seed, epoch))).collect();

        for (i, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
            assert!(orders[..i].iter().all(|other| other != order));
        }
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..6000 {
            *counts.entry(permutation(3, 1, epoch)).or_insert(0) += 1;
        }

        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
