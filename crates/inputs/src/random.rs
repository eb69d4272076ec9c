//! Random numbers that depend on a seed alone: not on threads, platform or the version of a library.
//!
//! Batch order, initial weights and sampled tokens are part of what a run's seed promises, and generators of libraries change
//! between versions. This crate holds the generator because it is the one below all three users.

/// SplitMix64 (Steele, Lea, Flood 2014): a 64-bit counter with a mixing function.
///
/// # Examples
///
/// ```
/// use glm4v_inputs::SplitMix64;
///
/// let mut random = SplitMix64::new(1234567);
/// assert_eq!(random.next_u64(), 6457827717110365317);
/// assert!((0.0..1.0).contains(&random.uniform()));
/// assert!(random.below(6) < 6);
/// ```
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// Increment of the state, 2^64 divided by the golden ratio.
    pub const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;

    /// A stream that starts at `state`. Streams of states that differ by a multiple of [`INCREMENT`](Self::INCREMENT) overlap.
    pub fn new(state: u64) -> Self {
        Self { state }
    }

    /// The mixing function, a bijection that maps nearby numbers far apart.
    pub fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next number, uniform over all of `u64`.
    pub fn next_u64(&mut self) -> u64 {
        self.skip(1);
        Self::mix(self.state)
    }

    /// Skips `count` numbers in constant time.
    pub fn skip(&mut self, count: u64) {
        self.state = self.state.wrapping_add(count.wrapping_mul(Self::INCREMENT));
    }

    /// The next number, uniform in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `bound`, each equally likely (Lemire 2019). May draw several numbers.
    ///
    /// # Panics
    ///
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let reject = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= reject {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_published_generator() {
        let mut random = SplitMix64::new(1234567);

        let first: Vec<u64> = (0..5).map(|_| random.next_u64()).collect();

        // From the reference implementation, as listed on Rosetta Code.
        let published = [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        ];
        assert_eq!(first, published);
    }

    #[test]
    fn skipped_numbers_are_those_that_would_have_been_drawn() {
        let (mut drawn, mut skipped) = (SplitMix64::new(7), SplitMix64::new(7));

        for _ in 0..5 {
            drawn.next_u64();
        }
        skipped.skip(5);

        assert_eq!(skipped.next_u64(), drawn.next_u64());
    }

    #[test]
    fn fractions_and_bounded_numbers_keep_their_values() {
        // Computed by a second implementation, in Python.
        let mut random = SplitMix64::new(7);
        assert_eq!([random.uniform(), random.uniform()], [0.3898297483912715, 0.01678829452815611]);
        let mut random = SplitMix64::new(7);
        assert_eq!([6, 6, 6, 6, 1 << 63].map(|bound| random.below(bound)), [2, 0, 5, 3, 4173039922750361837]);
    }
}
