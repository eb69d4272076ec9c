//! Deviations, and rows of the table.

/// One row of the table: a quantity, and its largest deviation from the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What was compared, as "glm4v activations".
    pub quantity: String,
    /// Where the deviation is, if the quantity has several tensors: the one closest to its tolerance, or furthest beyond it.
    pub tensor: Option<String>,
    /// Its deviation; NaN if a value is not a number, infinite if a tensor is missing.
    pub deviation: f64,
    /// The largest deviation that is right.
    pub tolerance: f64,
}

impl Comparison {
    /// Whether the deviation is within the tolerance.
    pub fn ok(&self) -> bool {
        self.deviation <= self.tolerance // false for NaN
    }

    /// A quantity of one tensor.
    pub(crate) fn new(quantity: impl Into<String>, deviation: f64, tolerance: f64) -> Self {
        Self { quantity: quantity.into(), tensor: None, deviation, tolerance }
    }

    /// A quantity of several tensors, each with a tolerance of its own.
    pub(crate) fn worst(quantity: String, tensors: impl IntoIterator<Item = Deviation>) -> Self {
        let worst = tensors.into_iter().reduce(|a, b| if b.urgency() > a.urgency() { b } else { a });
        match worst {
            Some(Deviation { tensor, deviation, tolerance }) => {
                Self { quantity, tensor: Some(tensor), deviation, tolerance }
            }
            None => Self::new(quantity, f64::INFINITY, 0.0),
        }
    }
}

/// The deviation of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deviation {
    pub(crate) tensor: String,
    pub(crate) deviation: f64,
    pub(crate) tolerance: f64,
}

impl Deviation {
    fn urgency(&self) -> f64 {
        let share = self.deviation / self.tolerance;
        if share.is_nan() { f64::INFINITY } else { share }
    }
}

/// Largest absolute difference; NaN if any value is, infinite if the lengths differ.
pub(crate) fn largest_difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let differences = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).abs());
    differences.fold(0.0, |most, next| if next.is_nan() || most.is_nan() { f64::NAN } else { most.max(next) })
}

/// L2 norm of the difference, relative to that of `expected`; infinite if the lengths differ.
pub(crate) fn relative_l2<A, B>(found: &[A], expected: &[B]) -> f64
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let pairs = found.iter().zip(expected).map(|(a, b)| ((*a).into(), (*b).into()));
    let (difference, length) = pairs.fold((0.0, 0.0), |(difference, length), (a, b): (f64, f64)| {
        (difference + (a - b).powi(2), length + b.powi(2))
    });
    (difference / length.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tensor: &str, deviation: f64, tolerance: f64) -> Deviation {
        Deviation { tensor: tensor.to_owned(), deviation, tolerance }
    }

    #[test]
    fn the_tensor_closest_to_its_own_tolerance_counts() {
        let row = Comparison::worst("q".into(), [of("a", 5.0, 100.0), of("b", 0.9, 1.0), of("c", 1.0, 9.0)]);

        assert_eq!((row.tensor.as_deref(), row.ok()), (Some("b"), true));
        assert!(!Comparison::worst("q".into(), [of("a", f64::NAN, 1.0), of("b", 0.5, 1.0)]).ok());
        assert!(!Comparison::worst("q".into(), []).ok(), "nothing compared is nothing proven");
    }

    #[test]
    fn a_value_that_is_no_number_or_missing_is_never_right() {
        assert!(largest_difference(&[1.0, f32::NAN, 1.0], &[1.0, 1.0, 1.0]).is_nan());
        assert!(relative_l2(&[1.0f32, f32::NAN], &[1.0f32, 1.0]).is_nan());
        assert_eq!(largest_difference(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(relative_l2::<f32, f32>(&[], &[1.0]), f64::INFINITY);
    }
}
