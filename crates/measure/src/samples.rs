//! Measured values and their spread.

/// The values of all rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    in_order: Vec<f64>,
    sorted: Vec<f64>,
}

impl Samples {
    /// Samples in the order in which they were measured.
    ///
    /// # Panics
    ///
    /// Without a value.
    pub fn new(in_order: Vec<f64>) -> Self {
        assert!(!in_order.is_empty(), "there is a round at least");
        let mut sorted = in_order.clone();
        sorted.sort_by(f64::total_cmp);
        Self { in_order, sorted }
    }

    /// All values, in the order in which they were measured.
    pub fn all(&self) -> &[f64] {
        &self.in_order
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The range of the middle half.
    pub fn interquartile_range(&self) -> f64 {
        self.quantile(0.75) - self.quantile(0.25)
    }

    /// Linear between neighbors, as NumPy's default.
    fn quantile(&self, share: f64) -> f64 {
        let place = share * (self.sorted.len() - 1) as f64;
        let (below, above) = (self.sorted[place.floor() as usize], self.sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 10.0]);

        assert_eq!((samples.min(), samples.median(), samples.max()), (1.0, 3.5, 10.0));
        assert_eq!(samples.interquartile_range(), 5.5 - 2.5);
        assert_eq!(samples.all(), [4.0, 1.0, 3.0, 10.0]);
    }

    #[test]
    fn one_value_has_no_spread() {
        let samples = Samples::new(vec![2.0]);

        assert_eq!((samples.median(), samples.interquartile_range()), (2.0, 0.0));
    }
}
