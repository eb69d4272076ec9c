//! Histograms in constant memory.

/// Counts of values in buckets that double: 0, 1, 2-3, 4-7, 8-15, ….
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: Vec<usize>,
    sum: u128,
    min: Option<usize>,
    max: usize,
}

/// Values from the first to the last, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Smallest value of the bucket.
    pub first: usize,
    /// Largest value of the bucket.
    pub last: usize,
    /// Number of values.
    pub count: usize,
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: usize) {
        let bucket = (usize::BITS - value.leading_zeros()) as usize;
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.sum += value as u128;
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
        self.max = self.max.max(value);
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.buckets.iter().sum()
    }

    /// Mean of the values; 0 without any.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count().max(1) as f64
    }

    /// Smallest value; 0 without any.
    pub fn min(&self) -> usize {
        self.min.unwrap_or(0)
    }

    /// Largest value; 0 without any.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The buckets from the smallest to the largest value.
    pub fn buckets(&self) -> Vec<Bucket> {
        let Some(first) = self.buckets.iter().position(|count| *count > 0) else { return Vec::new() };
        let bucket = |(bucket, count): (usize, &usize)| match bucket {
            0 => Bucket { first: 0, last: 0, count: *count },
            bucket => {
                let first = 1usize << (bucket - 1);
                Bucket { first, last: first + (first - 1), count: *count }
            }
        };
        self.buckets.iter().enumerate().skip(first).map(bucket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_contains_it() {
        let mut histogram = Histogram::default();
        let values = [0, 1, 2, 3, 4, 1000, usize::MAX];
        values.into_iter().for_each(|value| histogram.add(value));

        let buckets = histogram.buckets();

        for bucket in &buckets {
            let inside = values.iter().filter(|value| (bucket.first..=bucket.last).contains(value)).count();
            assert_eq!(bucket.count, inside, "{bucket:?}");
        }
        assert!(buckets.windows(2).all(|pair| pair[0].last + 1 == pair[1].first));
        assert_eq!((histogram.count(), histogram.min(), histogram.max()), (7, 0, usize::MAX));
    }
}
