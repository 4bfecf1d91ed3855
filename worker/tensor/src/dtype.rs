//! Element types of stored weights and their values in f32.

use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::storage::KeptWeight;
use half::{bf16, f16};
use std::fmt;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP OFP8 E4M3).
    F8E4M3,
    /// Signed byte; means something only with a scale.
    I8,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 | Self::I8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::I8 => "I8",
        })
    }
}

/// A weight as its file has it: backends that compute in 8 bits take it as it is, others through
/// [`WeightView::to_f32`].
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    shape: Shape,
    dtype: DType,
    bytes: &'a [u8],
    scale: Option<&'a [f32]>,
    kept: Option<&'a KeptWeight>,
}

impl<'a> WeightView<'a> {
    /// Weight of `shape` in little-endian `bytes`. `scale` holds one factor, or one for each row
    /// (index of the outermost axis): value = stored * scale\[row\].
    pub fn new(
        shape: Shape,
        dtype: DType,
        bytes: &'a [u8],
        scale: Option<&'a [f32]>,
    ) -> Result<Self> {
        if shape.count().checked_mul(dtype.bytes()) != Some(bytes.len()) {
            return Err(Error::Storage {
                count: shape.count(),
                dtype,
                found: bytes.len(),
            });
        }
        let rows = shape.dims().first().copied().unwrap_or(1);
        if let Some(scale) = scale
            && scale.len() != 1
            && scale.len() != rows
        {
            let found = Shape::from([scale.len()]);
            return Err(Error::mismatch(
                "weight scale",
                shape,
                found,
                "one factor, or one a row",
            ));
        }
        Ok(Self {
            shape,
            dtype,
            bytes,
            scale,
            kept: None,
        })
    }

    /// The view of a weight that can be kept; its parts were checked.
    pub(crate) fn of_kept(
        kept: &'a KeptWeight,
        shape: Shape,
        dtype: DType,
        bytes: &'a [u8],
        scale: Option<&'a [f32]>,
    ) -> Self {
        Self {
            shape,
            dtype,
            bytes,
            scale,
            kept: Some(kept),
        }
    }

    /// The weight for keeping, if its bytes outlive the view: clone it.
    pub fn keep(&self) -> Option<&'a KeptWeight> {
        self.kept
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How the values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The stored bytes, little-endian.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// One factor, or one for each row.
    pub fn scale(&self) -> Option<&'a [f32]> {
        self.scale
    }

    /// All values.
    pub fn to_f32(&self) -> Vec<f32> {
        let rows = self.shape.dims().first().copied().unwrap_or(1);
        let mut values = vec![0.0; self.shape.count()];
        if let Some(row_count) = self.shape.count().checked_div(rows) {
            for (row, out) in values.chunks_exact_mut(row_count.max(1)).enumerate() {
                self.row_to_f32(row, out);
            }
        }
        values
    }

    /// Values of row `row` (index of the outermost axis) into `out`. Panics when the row does not
    /// exist or `out` is not a row long.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        let width = out.len() * self.dtype.bytes();
        let bytes = &self.bytes[row * width..(row + 1) * width];
        match self.dtype {
            DType::F32 => convert(bytes, out, f32::from_le_bytes),
            DType::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F8E4M3 => convert(bytes, out, |[b]| f8e4m3_to_f32(b)),
            DType::I8 => convert(bytes, out, |[b]| f32::from(b as i8)),
        }
        if let Some(scale) = self.scale {
            let factor = scale[if scale.len() == 1 { 0 } else { row }];
            out.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = value(*bytes);
    }
}

/// The E4M3 byte nearest to `value`, ties to even; what is larger than 448 becomes 448.
pub fn f8e4m3_from_f32(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    // Below 2^-6 steps are 2^-9 wide; adding 2^23 of them rounds as the processor does, to even.
    if magnitude < 0.015_625 {
        let steps = (magnitude * 512.0 + 8_388_608.0) - 8_388_608.0;
        return sign | steps as u8;
    }
    let bits = magnitude.min(448.0).to_bits();
    // 20 of 23 bits go: half of the last kept one, less one if that bit is even.
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)).min(0x7e) as u8
}

/// Value of an E4M3 byte: bias 7, subnormals at exponent 0, NaN at S.1111.111, largest 448.
pub fn f8e4m3_to_f32(byte: u8) -> f32 {
    let sign = u32::from(byte & 0x80) << 24;
    let exponent = u32::from(byte >> 3 & 0xf);
    let mantissa = u32::from(byte & 0x7);
    let magnitude = match (exponent, mantissa) {
        (0xf, 0x7) => f32::NAN,
        // 2^-6 * mantissa / 8
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_its_standard() {
        let cases = [
            (0x00, 0.0),
            (0x01, 0.001953125),
            (0x07, 0.013671875),
            (0x08, 0.015625),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ];
        for (byte, value) in cases {
            assert_eq!(f8e4m3_to_f32(byte), value, "{byte:#04x}");
        }
        assert!(f8e4m3_to_f32(0x7f).is_nan() && f8e4m3_to_f32(0xff).is_nan());
        // Every finite magnitude is larger than the one before it.
        assert!((0u8..0x7e).all(|b| f8e4m3_to_f32(b) < f8e4m3_to_f32(b + 1)));
    }

    #[test]
    fn e4m3_is_rounded_to_the_nearest_even() {
        for byte in (0u8..=0xff).filter(|byte| byte & 0x7f != 0x7f) {
            assert_eq!(f8e4m3_from_f32(f8e4m3_to_f32(byte)), byte, "{byte:#04x}");
        }
        for byte in 0u8..0x7e {
            let (low, high) = (f8e4m3_to_f32(byte), f8e4m3_to_f32(byte + 1));
            let even = byte + (byte & 1);
            assert_eq!(f8e4m3_from_f32((low + high) / 2.0), even, "{byte:#04x}");
            assert_eq!(
                f8e4m3_from_f32(low + (high - low) * 0.4375),
                byte,
                "{byte:#04x}"
            );
        }
        assert_eq!(f8e4m3_from_f32(1e9), 0x7e);
        assert_eq!(f8e4m3_from_f32(-460.0), 0xfe);
        assert_eq!(f8e4m3_from_f32(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn rows_are_scaled_each_by_its_own_factor() {
        let bytes = [1i8, -2, 3, 127].map(|v| v as u8);
        let view = |scale| WeightView::new(Shape::from([2, 2]), DType::I8, &bytes, scale);
        assert_eq!(
            view(Some(&[2.0, 0.5])).unwrap().to_f32(),
            [2.0, -4.0, 1.5, 63.5]
        );
        assert_eq!(
            view(Some(&[2.0])).unwrap().to_f32(),
            [2.0, -4.0, 6.0, 254.0]
        );
        assert!(view(Some(&[1.0, 2.0, 3.0])).is_err());
    }

    #[test]
    fn bytes_must_fill_the_shape() {
        assert!(WeightView::new(Shape::from([3]), DType::F16, &[0; 5], None).is_err());
        let one = 0x3f80u16.to_le_bytes();
        let view = WeightView::new(Shape::from([1]), DType::BF16, &one, None).unwrap();
        assert_eq!(view.to_f32(), [1.0]);
    }
}
