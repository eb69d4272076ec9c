//! Numbers between file types and tensor types.

use std::convert::Infallible;

use burn::tensor::{Bytes, DType, TensorData};
use half::{bf16, f16};
use safetensors::Dtype;

/// Whether these are floating-point numbers of a kind that networks are stored in.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F64)
}

/// Writes numbers of one type as f32, bf16 or f16 into `out`; false if they are not floating-point numbers.
///
/// Rounds to nearest, ties to even, as torch does. Bytes of the wanted type are copied as they are.
pub(crate) fn convert(bytes: &[u8], from: Dtype, to: DType, out: &mut [u8]) -> bool {
    if from == file_dtype(to) {
        out.copy_from_slice(bytes);
        return true;
    }
    match from {
        Dtype::F32 => round(bytes, f32::from_le_bytes, to, out),
        Dtype::BF16 => round(bytes, |b| bf16::from_le_bytes(b).to_f32(), to, out),
        Dtype::F16 => round(bytes, |b| f16::from_le_bytes(b).to_f32(), to, out),
        Dtype::F64 => round(bytes, |b| f64::from_le_bytes(b) as f32, to, out),
        _ => return false,
    }
    true
}

/// Rounds to a type.
fn round<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32, to: DType, out: &mut [u8]) {
    match to {
        DType::BF16 => each(bytes, out, |b| bf16::from_f32(read(b)).to_le_bytes()),
        DType::F16 => each(bytes, out, |b| f16::from_f32(read(b)).to_le_bytes()),
        _ => each(bytes, out, |b| read(b).to_le_bytes()),
    }
}

/// Turns every `N` bytes into `M` others; files are little-endian and promise no alignment.
fn each<const N: usize, const M: usize>(bytes: &[u8], out: &mut [u8], turn: impl Fn([u8; N]) -> [u8; M]) {
    for (from, to) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<M>().0) {
        *to = turn(*from);
    }
}

/// A tensor's numbers in another type: f32, bf16 or f16.
pub fn floats(data: TensorData, to: DType) -> TensorData {
    if data.dtype() == to {
        return data;
    }
    let from = file_dtype(data.dtype());
    let Ok(converted) = tensor(data.shape().to_vec(), to, |out| {
        convert(data.as_bytes(), from, to, out);
        Ok::<_, Infallible>(())
    });
    converted
}

/// A tensor whose memory `fill` writes; it is zero until then.
///
/// The tensor takes the memory over as it is. Burn does so only where memory was asked for with the alignment of numbers:
/// from a vector of bytes it would make a copy.
pub(crate) fn tensor<E>(
    shape: Vec<usize>,
    dtype: DType,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<TensorData, E> {
    let count = shape.iter().product();
    let bytes = match dtype.size() {
        2 => filled(vec![0u16; count], fill)?,
        _ => filled(vec![0u32; count], fill)?,
    };
    Ok(TensorData::from_bytes(bytes, shape, dtype))
}

fn filled<T: bytemuck::Pod + Send + Sync, E>(
    mut values: Vec<T>,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Bytes, E> {
    fill(bytemuck::cast_slice_mut(&mut values))?;
    Ok(Bytes::from_elems(values))
}

/// Whole numbers; none if they are something else.
pub(crate) fn integers(bytes: &[u8], dtype: Dtype) -> Option<Vec<i64>> {
    fn all<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
    }
    Some(match dtype {
        Dtype::I64 => all(bytes, i64::from_le_bytes),
        Dtype::I32 => all(bytes, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::U32 => all(bytes, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::I16 => all(bytes, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U8 | Dtype::BOOL => all(bytes, |[b]: [u8; 1]| i64::from(b)),
        _ => return None,
    })
}

/// What a file calls a type.
pub(crate) fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U8 => Dtype::U8,
        _ => Dtype::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_nearest_ties_to_even() {
        let values = [1.0f32, 1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), -0.0, f32::INFINITY, 3e-41];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut out = [0; 12];

        assert!(convert(&bytes, Dtype::F32, DType::BF16, &mut out));

        let rounded: Vec<f32> =
            out.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
        assert_eq!(rounded[..5], [1.0, 1.0, 1.0 + 2f32.powi(-6), -0.0, f32::INFINITY]);
        assert!((rounded[5] - 3e-41).abs() < 1e-40, "a denormal stays one: {}", rounded[5]);
    }

    #[test]
    fn a_tensor_takes_over_the_memory_that_was_filled() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut place = 0;
            let Ok(data) = tensor(vec![3, 5], dtype, |out| {
                place = out.as_ptr() as usize;
                Ok::<_, Infallible>(())
            });

            assert_eq!(
                (data.as_bytes().as_ptr() as usize, data.as_bytes().len()),
                (place, 15 * dtype.size())
            );
        }
    }

    #[test]
    fn what_is_no_floating_point_number_is_not_read_as_one() {
        assert!(!convert(&[0; 8], Dtype::I64, DType::F32, &mut [0; 4]));
        assert!(!convert(&[0; 4], Dtype::F8_E4M3, DType::F32, &mut [0; 16]));
        assert_eq!(integers(&[1, 0, 0, 0, 0, 0, 0, 0x80], Dtype::I64), Some(vec![i64::MIN + 1]));
        assert_eq!(integers(&[0; 4], Dtype::F32), None);
    }
}
