//! Several records in one row, so that less of a batch is padding.
//!
//! The records of a batch are drawn first and packed afterwards, so a packed run takes the steps of an unpacked one: the same records,
//! the same labels, the same mean over them. Steps, positions to resume at and shares of ranks do not depend on lengths, which are
//! known only once the images are decoded.

/// Divides samples of these lengths into rows of at most `row_length` tokens, or of the longest sample's length if that is more; 0 is
/// the longest sample's length.
///
/// First fit, longest first: each sample goes into the first row with room. A row holds the indices of its samples; rows depend on
/// the lengths alone.
pub(crate) fn first_fit(lengths: &[usize], row_length: usize) -> Vec<Vec<usize>> {
    let capacity = lengths.iter().copied().max().unwrap_or(0).max(row_length);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Stable: samples of one length keep the order of the sampler.
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let (mut rows, mut left): (Vec<Vec<usize>>, Vec<usize>) = (Vec::new(), Vec::new());
    for index in order {
        let length = lengths[index];
        let row = left.iter().position(|left| length <= *left).unwrap_or_else(|| {
            rows.push(Vec::new());
            left.push(capacity);
            left.len() - 1
        });
        rows[row].push(index);
        left[row] -= length;
    }
    rows
}

#[cfg(test)]
mod tests {
    use glm4v_inputs::SplitMix64;

    use super::*;

    #[test]
    fn samples_go_into_the_first_row_with_room_longest_first() {
        assert_eq!(first_fit(&[3, 7, 2, 5, 3], 10), [vec![1, 0], vec![3, 4, 2]]);
        assert_eq!(first_fit(&[3, 7, 2, 5, 3], 0), [vec![1], vec![3, 2], vec![0, 4]]);
        assert_eq!(first_fit(&[3, 7, 2], 5), [vec![1], vec![0, 2]]); // no row is shorter than a sample
        assert_eq!(first_fit(&[], 5), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn every_sample_is_in_one_row_and_no_two_rows_fit_into_one() {
        let mut random = SplitMix64::new(7);
        for _ in 0..200 {
            let lengths: Vec<usize> = (0..20).map(|_| 1 + random.below(40) as usize).collect();

            let rows = first_fit(&lengths, 64);

            let mut all = rows.concat();
            all.sort();
            assert_eq!(all, (0..20).collect::<Vec<_>>());
            let mut sums: Vec<usize> =
                rows.iter().map(|row| row.iter().map(|index| lengths[*index]).sum()).collect();
            assert!(sums.iter().all(|sum| *sum <= 64), "{sums:?}");
            sums.sort();
            assert!(sums.len() < 2 || sums[0] + sums[1] > 64, "{sums:?}");
        }
    }
}
