//! FP8 weights with their scales.
//!
//! The value of an FP8 weight `X` is `X[i] · S`. The scale `S` is stored as `X_scale_inv` (block-wise FP8 of transformers, from
//! DeepSeek) or `X_scale` (compressed-tensors): one for the tensor, one for each row, or one for each block of rows and
//! columns, with the block size in the config's `quantization_config`. Scales of stacked experts have one more dimension.
//! Activation scales (`input_scale`) are ignored: they matter only to FP8 matrix multiplication.

use std::path::Path;

use burn::tensor::DType;
use glm4v_files::{LONGEST_CONFIG, read_text};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use crate::error::WeightsError;
use crate::tensor_file::TensorFile;

/// Elements that one thread dequantizes at once.
const CHUNK: usize = 1 << 18;

/// Whether a stored type is an FP8 type.
pub(crate) fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Possible names of a weight's scales.
pub(crate) fn scale_names(weight: &str) -> [String; 2] {
    [format!("{weight}_scale_inv"), format!("{weight}_scale")]
}

/// Name of the scale of a layer's activations, by the name of its weight.
pub(crate) fn input_scale_name(weight: &str) -> String {
    format!("{}input_scale", weight.strip_suffix("weight").unwrap_or(weight))
}

/// Rows and columns of a block by the `quantization_config` of a model directory; `None` if it has no block size.
pub(crate) fn block_size(dir: &Path) -> Option<[usize; 2]> {
    let json: Value =
        serde_json::from_str(&read_text(&dir.join("config.json"), LONGEST_CONFIG).ok()?).ok()?;
    let pointers = ["/quantization_config", "/text_config/quantization_config"];
    let section = pointers.iter().find_map(|pointer| json.pointer(pointer))?;
    let groups = section["config_groups"].as_object();
    let groups = groups
        .into_iter()
        .flat_map(|groups| groups.values())
        .map(|group| &group["weights"]["block_structure"]);
    let block = groups.chain([&section["weight_block_size"]]).find_map(|sizes| {
        let sizes = sizes.as_array()?.iter().map(|size| usize::try_from(size.as_u64()?).ok());
        sizes.collect::<Option<Vec<_>>>()
    });
    block?.try_into().ok().filter(|block: &[usize; 2]| block.iter().all(|size| *size > 0))
}

/// The scales of one FP8 weight, which is a matrix or a stack of matrices.
#[derive(Debug)]
pub(crate) struct Fp8Scales {
    /// Row-major, matrix after matrix.
    values: Vec<f32>,
    /// Rows and columns of a matrix.
    matrix: [usize; 2],
    /// Rows and columns of a block.
    block: [usize; 2],
    /// Rows and columns of blocks in a matrix; `None` if one scale serves all matrices.
    grid: Option<[usize; 2]>,
}

impl Fp8Scales {
    /// Reads the scales `name` of a weight of `shape`.
    pub(crate) fn read(
        file: &TensorFile,
        name: &str,
        shape: &[usize],
        block: Option<[usize; 2]>,
    ) -> Result<Self, WeightsError> {
        let found = &file.info(name)?.shape;
        let matrix = match *shape {
            [] => [1, 1],
            [columns] => [1, columns],
            [.., rows, columns] => [rows, columns],
        };
        let per_tensor = found.iter().product::<usize>() == 1;
        let grid_and_block = || {
            let grid = scale_grid(found, shape)?;
            Some((Some(grid), [block_side(grid, matrix, block, 0)?, block_side(grid, matrix, block, 1)?]))
        };
        let fitting = if per_tensor { Some((None, matrix)) } else { grid_and_block() };
        let Some((grid, block)) = fitting else {
            return Err(WeightsError::ScaleShape {
                path: file.path().to_owned(),
                name: name.to_owned(),
                found: found.clone(),
                shape: shape.to_vec(),
            });
        };
        let data = file.float(name, DType::F32)?;
        let values = data.try_to_vec().expect("it was read as f32");
        Ok(Self { values, matrix, block, grid })
    }

    /// The scale of an element, and how many elements from it to the end of its row share the scale.
    fn at(&self, index: usize) -> (f32, usize) {
        let [rows, columns] = self.matrix;
        let (row, column) = (index / columns, index % columns);
        let run = (self.block[1] - column % self.block[1]).min(columns - column);
        let Some([grid_rows, grid_columns]) = self.grid else { return (self.values[0], run) };
        let (matrix, row) = (row / rows, row % rows);
        let scale = (matrix * grid_rows + row / self.block[0]) * grid_columns + column / self.block[1];
        (self.values[scale], run)
    }

    /// Fills `out` with the weight's dequantized values as `dtype`, from element `first` on.
    pub(crate) fn float_into(
        &self,
        file: &TensorFile,
        name: &str,
        first: usize,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let table = decode_table(file.info(name)?.dtype);
        out.par_chunks_mut(CHUNK * dtype.size()).enumerate().try_for_each(|(number, out)| {
            let first = first + number * CHUNK;
            let mut codes = vec![0; out.len() / dtype.size()];
            file.bytes_into(name, first, &mut codes)?;
            let mut done = 0;
            while done < codes.len() {
                let (scale, run) = self.at(first + done);
                let run = run.min(codes.len() - done);
                let out = &mut out[done * dtype.size()..][..run * dtype.size()];
                let values = codes[done..done + run].iter().map(|code| table[usize::from(*code)] * scale);
                write_rounded(values, dtype, out);
                done += run;
            }
            Ok(())
        })
    }
}

/// Rows and columns of the scales of one matrix; `None` if the scales do not have the leading dimensions of the weight.
fn scale_grid(scales: &[usize], weight: &[usize]) -> Option<[usize; 2]> {
    let stack = &weight[..weight.len().saturating_sub(2)];
    match *scales.strip_prefix(stack)? {
        [rows, columns] => Some([rows, columns]),
        [rows] => Some([rows, 1]),
        [] => Some([1, 1]),
        _ => None,
    }
}

/// Size of a block along `axis`: the whole axis for one scale, 1 for one scale per element, else the configured size, if the
/// number of scales agrees with that.
fn block_side(
    grid: [usize; 2],
    matrix: [usize; 2],
    configured: Option<[usize; 2]>,
    axis: usize,
) -> Option<usize> {
    match grid[axis] {
        1 => Some(matrix[axis].max(1)),
        count if count == matrix[axis] => Some(1),
        count => {
            let side = configured?[axis];
            (matrix[axis].div_ceil(side) == count).then_some(side)
        }
    }
}

fn write_rounded(values: impl Iterator<Item = f32>, dtype: DType, out: &mut [u8]) {
    match dtype {
        DType::BF16 => {
            for (value, out) in values.zip(out.as_chunks_mut::<2>().0) {
                *out = bf16::from_f32(value).to_le_bytes();
            }
        }
        DType::F16 => {
            for (value, out) in values.zip(out.as_chunks_mut::<2>().0) {
                *out = f16::from_f32(value).to_le_bytes();
            }
        }
        _ => {
            for (value, out) in values.zip(out.as_chunks_mut::<4>().0) {
                *out = value.to_le_bytes();
            }
        }
    }
}

/// The value of each FP8 code.
fn decode_table(dtype: Dtype) -> [f32; 256] {
    std::array::from_fn(|code| {
        let code = code as u8;
        match dtype {
            // The upper half of an f16.
            Dtype::F8_E5M2 => f16::from_bits(u16::from(code) << 8).to_f32(),
            _ => decode_e4m3(code),
        }
    })
}

/// Four bits of exponent, three of mantissa, no infinity (OCP, "8-bit Floating Point Specification", 2023).
fn decode_e4m3(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xF), f32::from(code & 7));
    match (exponent, code & 7) {
        (0xF, 7) => f32::NAN,
        (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn codes_mean_what_the_specification_says() {
        let four = decode_table(Dtype::F8_E4M3);
        let five = decode_table(Dtype::F8_E5M2);
        assert_eq!(
            [four[0x00], four[0x38], four[0x7E], four[0x01], four[0xC0]],
            [0.0, 1.0, 448.0, 2f32.powi(-9), -2.0]
        );
        assert_eq!([five[0x3C], five[0x7B], five[0x01], five[0xC0]], [1.0, 57344.0, 2f32.powi(-16), -2.0]);
        assert!(four[0x7F].is_nan() && four[0xFF].is_nan() && five[0x7C].is_infinite());
    }

    /// A directory with one FP8 weight, its scales and its config.
    fn folder(shape: &[usize], name: &str, of_scales: &[usize], config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let count: usize = shape.iter().product();
        let codes: Vec<u8> = (0..count).map(|code| (code * 7 % 120) as u8).collect();
        let scales: Vec<u8> =
            (0..of_scales.iter().product::<usize>()).flat_map(|i| (0.5 + i as f32).to_le_bytes()).collect();
        let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let tensors = [
            ("x.weight".to_owned(), view(Dtype::F8_E4M3, shape, &codes)),
            (name.to_owned(), view(Dtype::F32, of_scales, &scales)),
            ("x.input_scale".to_owned(), view(Dtype::F32, &[1], &[0; 4])),
        ];
        safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    const BLOCKS: &str = r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}"#;
    const GROUPS: &str = r#"{"quantization_config": {"config_groups": {"group_0": {"weights": {"block_structure": [2, 3]}}}}}"#;

    #[test]
    fn weights_are_read_with_one_scale_with_one_a_row_and_in_blocks() {
        type ResolvedDir = fn(usize, usize, usize) -> usize;
        type Case<'a> = (&'a [usize], &'a str, &'a [usize], &'a str, ResolvedDir);
        let cases: [Case<'_>; 8] = [
            (&[4, 5], "x.weight_scale", &[], "{}", |_, _, _| 0),
            (&[4, 5], "x.weight_scale", &[1], "{}", |_, _, _| 0),
            (&[4, 5], "x.weight_scale", &[4, 1], "{}", |_, row, _| row),
            (&[4, 5], "x.weight_scale", &[4], "{}", |_, row, _| row),
            (&[4, 5], "x.weight_scale_inv", &[2, 2], BLOCKS, |_, row, column| row / 2 * 2 + column / 3),
            (&[4, 5], "x.weight_scale", &[2, 2], GROUPS, |_, row, column| row / 2 * 2 + column / 3),
            (&[2, 4, 5], "x.weight_scale_inv", &[2, 2, 2], BLOCKS, |m, row, column| {
                m * 4 + row / 2 * 2 + column / 3
            }),
            (&[2, 4, 5], "x.weight_scale", &[2, 1, 1], "{}", |m, _, _| m),
        ];
        for (shape, name, of_scales, config, place) in cases {
            let folder = folder(shape, name, of_scales, config);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.names(), ["x.weight"], "{name} {of_scales:?}");
            let count: usize = shape.iter().product();
            let mut bytes = vec![0; (count - 2) * 4];

            checkpoint.float_into("x.weight", 2, DType::F32, &mut bytes).unwrap();

            let found: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let expected = (2..count).map(|i| {
                let scale = 0.5 + place(i / 20, i / 5 % 4, i % 5) as f32;
                decode_e4m3((i * 7 % 120) as u8) * scale
            });
            assert_eq!(found, expected.collect::<Vec<_>>(), "{name} {of_scales:?}");
        }
    }

    #[test]
    fn scales_that_do_not_fit_are_named() {
        for (of_scales, config) in
            [(&[2, 2][..], "{}"), (&[3, 2], BLOCKS), (&[2, 2, 2], BLOCKS), (&[7], BLOCKS)]
        {
            let folder = folder(&[4, 5], "x.weight_scale_inv", of_scales, config);

            let error = Checkpoint::open(folder.path()).unwrap_err().to_string();

            let words = format!(
                "x.weight_scale_inv has shape {of_scales:?} for a weight of [4, 5]; needed: one scale"
            );
            assert!(error.contains(&words), "{error}");
        }
    }

    #[test]
    fn a_value_has_the_scale_of_its_block() {
        let scales = |values: Vec<f32>, block, grid| Fp8Scales { values, matrix: [3, 5], block, grid };
        let one = scales(vec![9.0], [3, 5], None);
        assert_eq!([one.at(0), one.at(13), one.at(40)], [(9.0, 5), (9.0, 2), (9.0, 5)]);
        let rows = scales(vec![1.0, 2.0, 3.0], [1, 5], Some([3, 1]));
        assert_eq!([rows.at(4), rows.at(5), rows.at(12)], [(1.0, 1), (2.0, 5), (3.0, 3)]);
        // Two matrices of two by three blocks; the last of a row and of a column are cut.
        let blocks = scales((0..12).map(|x| x as f32).collect(), [2, 2], Some([2, 3]));
        assert_eq!([blocks.at(0), blocks.at(4), blocks.at(11)], [(0.0, 2), (2.0, 1), (3.0, 1)]);
        assert_eq!(blocks.at(15 + 12), (10.0, 2));
    }
}
