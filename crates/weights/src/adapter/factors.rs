//! LoRA factors on the host.

/// The factors of one linear layer, or of stacked experts, in f32.
pub(crate) struct LoraFactors {
    /// `[r, in]`
    pub(crate) a: HostMatrix,
    /// `[out, r]`
    pub(crate) b: HostMatrix,
}

/// A row-major matrix.
pub(crate) struct HostMatrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f32>,
}

impl LoraFactors {
    /// The factors of one of `experts` stacked experts.
    pub(crate) fn of_expert(&self, expert: usize, experts: usize, rank: usize) -> Self {
        let (d_input, first) = (self.a.columns, expert * rank);
        let a = self.a.values[first * d_input..(first + rank) * d_input].to_vec();
        let b = self
            .b
            .values
            .chunks(self.b.columns)
            .flat_map(|row| (0..rank).map(move |j| row[j * experts + expert]))
            .collect();
        Self {
            a: HostMatrix { rows: rank, columns: d_input, values: a },
            b: HostMatrix { rows: self.b.rows, columns: rank, values: b },
        }
    }

    /// The factors of a fused gate and up projection of shape `[d_output, d_input]`: both `a` below each other, and both `b` as
    /// the blocks of a block-diagonal matrix, gate first.
    pub(crate) fn fuse_gate_up(
        gate: Option<Self>,
        up: Option<Self>,
        [d_output, d_input]: [usize; 2],
    ) -> Self {
        let half = d_output / 2;
        let [gate_rank, up_rank] = [&gate, &up].map(|part| part.as_ref().map_or(0, |part| part.a.rows));
        let rank = gate_rank + up_rank;
        let mut a = Vec::new();
        let mut b = vec![0.0; 2 * half * rank];
        for (part, (first_row, first_column)) in [(gate, (0, 0)), (up, (half, gate_rank))] {
            let Some(part) = part else { continue };
            a.extend(part.a.values);
            for (row, values) in part.b.values.chunks(part.b.columns.max(1)).enumerate().take(half) {
                let start = (first_row + row) * rank + first_column;
                b[start..start + values.len()].copy_from_slice(values);
            }
        }
        Self {
            a: HostMatrix { rows: rank, columns: d_input, values: a },
            b: HostMatrix { rows: 2 * half, columns: rank, values: b },
        }
    }
}
