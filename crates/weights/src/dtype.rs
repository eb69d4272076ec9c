//! Conversion between the types of safetensors files and of Burn.

use std::convert::Infallible;

use burn::tensor::{Bytes, DType, TensorData};
use half::{bf16, f16};
use safetensors::Dtype;

/// Whether a stored type is an unscaled floating-point type.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F64)
}

/// Converts stored floating-point values to f32, bf16 or f16; false if `from` is not a floating-point type.
///
/// Rounds to nearest, ties to even, as torch does. Bytes already of the wanted type are copied.
pub(crate) fn convert(bytes: &[u8], from: Dtype, to: DType, out: &mut [u8]) -> bool {
    if from == safetensors_dtype(to) {
        out.copy_from_slice(bytes);
        return true;
    }
    match from {
        Dtype::F32 => round_to(bytes, f32::from_le_bytes, to, out),
        Dtype::BF16 => round_to(bytes, |b| bf16::from_le_bytes(b).to_f32(), to, out),
        Dtype::F16 => round_to(bytes, |b| f16::from_le_bytes(b).to_f32(), to, out),
        Dtype::F64 => round_to(bytes, |b| f64::from_le_bytes(b) as f32, to, out),
        _ => return false,
    }
    true
}

fn round_to<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32, to: DType, out: &mut [u8]) {
    match to {
        DType::BF16 => map_elements(bytes, out, |b| bf16::from_f32(read(b)).to_le_bytes()),
        DType::F16 => map_elements(bytes, out, |b| f16::from_f32(read(b)).to_le_bytes()),
        _ => map_elements(bytes, out, |b| read(b).to_le_bytes()),
    }
}

/// Maps elements of `N` bytes to elements of `M` bytes. Byte arrays, because safetensors data may be unaligned.
fn map_elements<const N: usize, const M: usize>(
    bytes: &[u8],
    out: &mut [u8],
    map: impl Fn([u8; N]) -> [u8; M],
) {
    for (from, to) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<M>().0) {
        *to = map(*from);
    }
}

/// Casts floating-point data to f32, bf16 or f16, rounding to nearest, ties to even.
pub fn cast_floats(data: TensorData, to: DType) -> TensorData {
    if data.dtype() == to {
        return data;
    }
    let from = safetensors_dtype(data.dtype());
    let Ok(converted) = tensor_from_fn(data.shape().to_vec(), to, |out| {
        convert(data.as_bytes(), from, to, out);
        Ok::<_, Infallible>(())
    });
    converted
}

/// Creates tensor data of zeros and lets `fill` write its memory.
///
/// Allocates elements rather than bytes: Burn takes over memory only if it is aligned for its elements, and would copy a
/// vector of bytes.
pub(crate) fn tensor_from_fn<E>(
    shape: Vec<usize>,
    dtype: DType,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<TensorData, E> {
    let count = shape.iter().product();
    let bytes = match dtype.size() {
        2 => filled_bytes(vec![0u16; count], fill)?,
        _ => filled_bytes(vec![0u32; count], fill)?,
    };
    Ok(TensorData::from_bytes(bytes, shape, dtype))
}

fn filled_bytes<T: bytemuck::Pod + Send + Sync, E>(
    mut values: Vec<T>,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Bytes, E> {
    fill(bytemuck::cast_slice_mut(&mut values))?;
    Ok(Bytes::from_elems(values))
}

/// Stored integers as i64; `None` if `dtype` is not an integer type.
pub(crate) fn to_integers(bytes: &[u8], dtype: Dtype) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => widen(bytes, i64::from_le_bytes),
        Dtype::I32 => widen(bytes, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::U32 => widen(bytes, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::I16 => widen(bytes, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U8 | Dtype::BOOL => widen(bytes, |[b]: [u8; 1]| i64::from(b)),
        _ => return None,
    })
}

fn widen<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}

/// The safetensors type of a Burn type.
pub(crate) fn safetensors_dtype(dtype: DType) -> Dtype {
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
            let Ok(data) = tensor_from_fn(vec![3, 5], dtype, |out| {
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
    fn other_types_are_not_converted_as_floating_point() {
        assert!(!convert(&[0; 8], Dtype::I64, DType::F32, &mut [0; 4]));
        assert!(!convert(&[0; 4], Dtype::F8_E4M3, DType::F32, &mut [0; 16]));
        assert_eq!(to_integers(&[1, 0, 0, 0, 0, 0, 0, 0x80], Dtype::I64), Some(vec![i64::MIN + 1]));
        assert_eq!(to_integers(&[0; 4], Dtype::F32), None);
    }
}
