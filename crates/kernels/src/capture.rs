//! Capture of a computation as one launch (CUDA graphs).

use burn::tensor::{Device, Tensor, capture};

/// What replays of a computation gave.
#[derive(Debug, Clone)]
pub struct Replayed<const D: usize> {
    /// Output of the last replay.
    pub output: Tensor<D>,
    /// Whether the device replayed a recorded graph; else the computation ran again.
    pub is_graph: bool,
}

/// Records a computation and replays it `replays` times.
///
/// The computation depends on the tensors that it holds, and on nothing that changes. It runs a few times before it is recorded.
pub fn replay<const D: usize>(
    device: &Device,
    computation: impl FnMut() -> Tensor<D>,
    replays: usize,
) -> Replayed<D> {
    let mut graph = capture(device, computation);
    for _ in 0..replays {
        #[expect(
            unsafe_code,
            reason = "the graph owns the computation and its output, and so keeps every buffer alive; buffers that others hold too are \
                      never written in place; all replays are on this thread, and reads of the output follow them"
        )]
        // SAFETY: as in the reason.
        unsafe {
            graph.replay();
        }
    }
    Replayed { output: graph.output().clone(), is_graph: graph.is_hardware() }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;

    #[test]
    fn a_replay_gives_what_the_computation_gives() {
        let device = Device::flex();
        let x = Tensor::<1>::from_data([1.0, 2.0, 3.0], &device);

        let replayed = replay(&device, || x.clone() * 2.0 + 1.0, 3);

        assert_eq!(replayed.output.into_data().try_to_vec::<f32>().unwrap(), [3.0, 5.0, 7.0]);
        assert!(!replayed.is_graph, "the CPU has no graphs");
    }
}
