//! Permutations that depend on a seed and an epoch alone: not on threads, platform or a library version.

/// SplitMix64 (Steele, Lea, Flood 2014): a counter with a good mixer, 64 bits of state.
///
/// Written out here because a permutation is part of what a run's seed promises, and generators of
/// libraries change between versions.
#[derive(Debug, Clone)]
struct SplitMix64(u64);

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`, each equally likely (Lemire 2019).
    fn below(&mut self, bound: u64) -> u64 {
        let reject = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= reject {
                return (product >> 64) as u64;
            }
        }
    }
}

/// The numbers `0..len` in the order of an epoch (Fisher-Yates, from the end).
pub(crate) fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    // The epoch is mixed before it meets the seed: else seed 1 epoch 0 would be seed 0 epoch 1.
    let mut random = SplitMix64(seed ^ mix(epoch.wrapping_mul(GOLDEN)));
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
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(1234567);

        let first = [random.next(), random.next(), random.next()];

        // From the reference implementation, as listed on Rosetta Code.
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

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
