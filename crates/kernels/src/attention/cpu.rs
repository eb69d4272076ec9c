//! Attention on the CPU: heads and blocks of queries over all threads.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Bool, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::block::{KeyValues, Query, Task};
use crate::cpu::{Rows, with_rows};

/// Queries of a task, heads that share a key head counted: as many as the registers take twice over.
const TASK_QUERIES: usize = 64;

/// Products below which waking a thread takes longer than it saves.
const PARALLEL: usize = 1 << 19;

/// Attention, on backends with a kernel for it.
#[backend_extension(Flex)]
pub(super) trait BlockAttentionOps: Backend {
    /// As [`attention`](super::attention()); padding is row-major.
    fn block_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        causal: bool,
        padding: Option<Vec<bool>>,
    ) -> FloatTensor<Self>;
}

pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    causal: bool,
    padding: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    let padding = padding.map(|padding| padding.into_data().try_to_vec().expect("a bool tensor holds bools"));
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::block_attention(q, k, v, causal, padding))
}

impl BlockAttentionOps for Flex {
    fn block_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        causal: bool,
        padding: Option<Vec<bool>>,
    ) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(with_rows::<3>);
        let (&[rows, heads, queries, _], &[_, _, _, width]) =
            (q.layout().shape().as_slice(), v.layout().shape().as_slice())
        else {
            unreachable!("attention takes four dimensions")
        };
        let mut output = vec![0.0; rows * queries * heads * width];
        if !output.is_empty() {
            compute(&[q, k, v], causal, padding.as_deref(), &mut output);
        }
        // In the order in which the next layer wants it, heads innermost; seen as [B, H, S, Dh].
        let output =
            FlexTensor::from_data(TensorData::new(output, Shape::new([rows, queries, heads, width])));
        let layout = output.layout().permute(&[0, 2, 1, 3]);
        output.with_layout(layout)
    }
}

/// Fills `output`, `[B, S, H, Dh]`.
fn compute(inputs: &[FlexTensor; 3], causal: bool, padding: Option<&[bool]>, output: &mut [f32]) {
    let [_, heads, queries, head_dim]: [usize; 4] = dims(&inputs[0]);
    let [_, key_heads, keys, width]: [usize; 4] = dims(&inputs[2]);
    let views = inputs.each_ref().map(|tensor| Rows::<3>::of(tensor).expect("rows are contiguous"));
    let groups = heads / key_heads;
    let positions = (TASK_QUERIES / groups).max(1);
    let products = output.len() * keys;
    let mut tasks = Vec::new();
    for (row, output) in output.chunks_mut(queries * heads * width).enumerate() {
        let padding = padding.map(|padding| &padding[row * keys..][..keys]);
        for (block, output) in output.chunks_mut(positions * heads * width).enumerate() {
            let mut blocks: Vec<Vec<Query<'_>>> = (0..key_heads).map(|_| Vec::new()).collect();
            for (at, output) in output.chunks_mut(width).enumerate() {
                let (position, head) = (block * positions + at / heads, at % heads);
                let query = views[0].row([row, head, position]);
                let keys = if causal { keys - queries + position + 1 } else { keys };
                blocks[head / groups].push(Query { query, keys, output });
            }
            tasks.extend(blocks.into_iter().enumerate().map(|(head, queries)| {
                let [keys, values] = [views[1], views[2]].map(|view| view.matrix([row, head]));
                Task {
                    queries,
                    over: KeyValues { keys, values, padding },
                    scale: (head_dim as f32).powf(-0.5),
                }
            }));
        }
    }
    let run = |task: Task<'_>| pulp::Arch::new().dispatch(task);
    if products < PARALLEL {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(run);
    }
}

fn dims(tensor: &FlexTensor) -> [usize; 4] {
    tensor.layout().shape().dims()
}
