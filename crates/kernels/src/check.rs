//! What the tests of operations compare: values, gradients, threads.

use burn::tensor::{Device, Shape, Tensor, TensorData, Tolerance};

/// The inputs of an operation under test, flat, with their shapes.
pub(crate) struct Inputs {
    flat: Vec<Tensor<1>>,
    shapes: Vec<Vec<usize>>,
}

impl Inputs {
    /// Input `index`, which has as many dimensions as its shape.
    pub(crate) fn get<const D: usize>(&self, index: usize) -> Tensor<D> {
        self.flat[index].clone().reshape(Shape::from(self.shapes[index].clone()))
    }

    fn new(values: &[Vec<f32>], shapes: &[&[usize]]) -> Self {
        let device = Device::flex().autodiff();
        let leaf = |values: &Vec<f32>| {
            let size = values.len();
            Tensor::<1>::from_data(TensorData::new(values.clone(), [size]), &device).require_grad()
        };
        Self {
            flat: values.iter().map(leaf).collect(),
            shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        }
    }
}

/// Values between -2 and 2 that repeat at no distance of interest.
fn pattern(size: usize, seed: usize) -> Vec<f32> {
    (0..size).map(|at| 2.0 * (((at + 1) * (2 * seed + 3)) as f32 * 0.739_1).sin()).collect()
}

fn patterns(shapes: &[&[usize]]) -> Vec<Vec<f32>> {
    shapes.iter().enumerate().map(|(seed, shape)| pattern(shape.iter().product(), seed)).collect()
}

/// Output and gradients of all inputs, of a weighted sum of the output.
fn run<const D: usize>(inputs: &Inputs, operation: &impl Fn(&Inputs) -> Tensor<D>) -> Vec<Vec<f32>> {
    let output = operation(inputs);
    let size = output.shape().num_elements();
    let weights = TensorData::new(pattern(size, 7), output.shape());
    let loss = (output.clone() * Tensor::from_data(weights, &output.device())).sum();
    let gradients = loss.backward();
    let to_vec = |data: TensorData| data.try_to_vec::<f32>().unwrap();
    let grads = inputs.flat.iter().map(|leaf| match leaf.grad(&gradients) {
        Some(grad) => to_vec(grad.into_data()),
        None => Vec::new(),
    });
    std::iter::once(to_vec(output.clone().into_data())).chain(grads).collect()
}

/// Compares an operation and its gradients with the plain version.
#[track_caller]
pub(crate) fn equals_plain<const D: usize>(
    shapes: &[&[usize]],
    operation: impl Fn(&Inputs) -> Tensor<D>,
    plain: impl Fn(&Inputs) -> Tensor<D>,
) {
    let values = patterns(shapes);
    let results = run(&Inputs::new(&values, shapes), &operation);
    let expected = run(&Inputs::new(&values, shapes), &plain);
    for (index, (result, expected)) in results.iter().zip(&expected).enumerate() {
        assert_eq!(result.len(), expected.len(), "output or gradient {index} of {shapes:?}");
        let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
        let data = |values: &[f32]| TensorData::new(values.to_vec(), [values.len()]);
        // Relative to the largest: a sum of many terms is as accurate as they are.
        data(result)
            .assert_approx_eq::<f32>(&data(expected), Tolerance::rel_abs(1e-5, 3e-5 * f64::from(largest)));
    }
}

/// Compares gradients with the slope between two points close to each other, in a direction that moves every value.
#[track_caller]
pub(crate) fn equals_finite_differences<const D: usize>(
    shapes: &[&[usize]],
    operation: impl Fn(&Inputs) -> Tensor<D>,
) {
    const STEP: f32 = 5e-3;
    let values = patterns(shapes);
    let results = run(&Inputs::new(&values, shapes), &operation);
    for input in 0..shapes.len() {
        let direction = pattern(values[input].len(), 11 + input);
        let loss = |step: f32| {
            let mut moved = values.clone();
            moved[input].iter_mut().zip(&direction).for_each(|(value, direction)| *value += step * direction);
            let output = &run(&Inputs::new(&moved, shapes), &operation)[0];
            let weights = pattern(output.len(), 7);
            output.iter().zip(weights).map(|(value, weight)| f64::from(value * weight)).sum::<f64>()
        };
        let slope = (loss(STEP) - loss(-STEP)) / f64::from(2.0 * STEP);
        let gradient = &results[1 + input];
        let along: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        let size: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from((g * d).abs())).sum();
        assert!(
            (slope - along).abs() < 2e-3 * size.max(0.1),
            "input {input}: slope {slope}, gradient {along}"
        );
    }
}

/// Runs an operation and its gradients in one thread and in three, which must not change a bit.
#[track_caller]
pub(crate) fn has_same_bits_on_any_threads<const D: usize>(
    shapes: &[&[usize]],
    operation: impl Fn(&Inputs) -> Tensor<D> + Sync,
) {
    let values = patterns(shapes);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&Inputs::new(&values, shapes), &operation))
    };
    assert_eq!(on(1), on(3));
}
