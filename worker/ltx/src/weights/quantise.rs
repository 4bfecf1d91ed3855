//! Weights to 8 bits, matrix by matrix, while they are loaded.

use longtake_tensor::{DType, KeptWeight, Result, Storage, WeightView, f8e4m3_from_f32};
use std::sync::Arc;

/// Largest value of an E4M3 float.
const E4M3_MAX: f32 = 448.0;

/// Whether `precision: float8_e4m3fn` keeps tensor `name` in 8 bits: the matrices of attention and
/// feed-forward in the blocks, as in the official 8-bit files. Norms, tables, embeddings and the
/// layers outside of the blocks stay as they are: they are few, and errors in them show.
pub(crate) fn is_quantised(name: &str, rank: usize) -> bool {
    let layer = name.strip_prefix("transformer_blocks.").unwrap_or("");
    let inner = layer.split_once('.').map_or("", |(_, inner)| inner);
    rank == 2
        && name.ends_with(".weight")
        && ["attn1.", "attn2.", "ff."]
            .iter()
            .any(|part| inner.starts_with(part))
}

/// `weight` `[N, K]` in 8 bits with a scale for each row: its largest magnitude over 448. Rows of
/// zeros have scale 1.
pub(crate) fn to_e4m3(weight: &WeightView<'_>) -> Result<KeptWeight> {
    let shape = weight.shape();
    let (rows, width) = (shape.rows(), shape.last());
    let mut bytes = Vec::with_capacity(rows * width);
    let mut scales = Vec::with_capacity(rows);
    let mut values = vec![0.0; width];
    for row in 0..rows {
        weight.row_to_f32(row, &mut values);
        let largest = values
            .iter()
            .fold(0.0f32, |largest, v| largest.max(v.abs()));
        let scale = if largest > 0.0 {
            largest / E4M3_MAX
        } else {
            1.0
        };
        bytes.extend(values.iter().map(|v| f8e4m3_from_f32(v / scale)));
        scales.push(scale);
    }
    let range = 0..bytes.len();
    let storage: Storage = Arc::new(bytes);
    KeptWeight::new(shape, DType::F8E4M3, storage, range, Some(scales.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use longtake_tensor::Shape;

    #[test]
    fn rows_keep_their_own_range() {
        let values = [448.0f32, -224.0, 1.0, 0.004, -0.001, 0.002, 0.0, 0.0, 0.0];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = WeightView::new(Shape::from([3, 3]), DType::F32, &bytes, None).expect("view");
        let kept = to_e4m3(&view).expect("quantised");
        assert_eq!(kept.view().dtype(), DType::F8E4M3);
        for (found, wanted) in kept.view().to_f32().iter().zip(values) {
            // Three bits of mantissa: half a step is a sixteenth.
            assert!(
                (found - wanted).abs() <= wanted.abs() / 16.0,
                "{found} {wanted}"
            );
        }
    }

    #[test]
    fn only_the_large_matrices_of_the_blocks_are_quantised() {
        for (name, rank, expected) in [
            ("transformer_blocks.0.attn1.to_q.weight", 2, true),
            ("transformer_blocks.47.ff.net.0.proj.weight", 2, true),
            ("transformer_blocks.0.attn1.norm_q.weight", 1, false),
            ("transformer_blocks.0.attn1.to_q.bias", 1, false),
            ("transformer_blocks.0.scale_shift_table", 2, false),
            ("proj_in.weight", 2, false),
        ] {
            assert_eq!(is_quantised(name, rank), expected, "{name}");
        }
    }
}
