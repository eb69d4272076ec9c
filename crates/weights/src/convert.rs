//! Numbers between file types and tensor types.

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The numbers of a file as f32, bf16 or f16; none if they are not floating-point numbers.
///
/// Rounds to nearest, ties to even, as torch does. Bytes of the wanted type are copied as they are.
pub(crate) fn float(view: &TensorView<'_>, to: DType) -> Option<TensorData> {
    let shape = view.shape().to_vec();
    let bytes = view.data();
    if view.dtype() == file_dtype(to) {
        return Some(TensorData::from_bytes_vec(bytes.to_vec(), shape, to));
    }
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    };
    Some(rounded(values, shape, to))
}

/// Values rounded to a type.
fn rounded(values: Vec<f32>, shape: Vec<usize>, to: DType) -> TensorData {
    match to {
        DType::BF16 => TensorData::new(values.into_iter().map(bf16::from_f32).collect(), shape),
        DType::F16 => TensorData::new(values.into_iter().map(f16::from_f32).collect(), shape),
        _ => TensorData::new(values, shape),
    }
}

/// A tensor's numbers in another type: f32, bf16 or f16.
pub fn floats(data: TensorData, to: DType) -> TensorData {
    if data.dtype() == to {
        return data;
    }
    let shape = data.shape().to_vec();
    let bytes = data.as_bytes();
    let values = match data.dtype() {
        DType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        _ => each(bytes, f32::from_le_bytes),
    };
    rounded(values, shape, to)
}

/// The whole numbers of a file; none if they are something else.
pub(crate) fn integers(view: &TensorView<'_>) -> Option<Vec<i64>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::I64 => each(bytes, i64::from_le_bytes),
        Dtype::I32 => each(bytes, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::U32 => each(bytes, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::I16 => each(bytes, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U8 | Dtype::BOOL => each(bytes, |[b]: [u8; 1]| i64::from(b)),
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

/// Reads a value from every `N` bytes; files are little-endian and promise no alignment.
fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}
