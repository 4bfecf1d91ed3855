//! Normalisation over groups of channels and all cells.

use rayon::prelude::*;

use super::isa::Isa;
use super::math;
use crate::glue;

/// A group norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct GroupAffine<'a> {
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// `[channels]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: &'a [f32],
}

/// `silu(norm(x[rows, width, channels]) * weight + bias + skip)`, mean and variance (without Bessel's
/// correction) over all cells and the channels of a group. Sums are in f64: each row's, cell after
/// cell, and then over the rows, so that ranks with some rows each add up the same.
pub fn group_norm_silu(
    isa: Isa,
    x: &[f32],
    width: usize,
    channels: usize,
    norm: &GroupAffine<'_>,
    skip: Option<&[f32]>,
    y: &mut [f32],
) {
    let size = channels / norm.groups;
    // Of each channel, the factor and the offset.
    let groups = (0..norm.groups).into_par_iter();
    let affine: Vec<(f32, f32)> = groups
        .flat_map_iter(|group| {
            let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
                let row = |row: &[f32]| -> f64 {
                    let cells = row.chunks_exact(channels);
                    let values = cells.flat_map(|c| &c[group * size..][..size]);
                    values.map(|&v| f(f64::from(v))).sum()
                };
                x.chunks_exact(width * channels).map(row).sum()
            };
            let count = (x.len() / norm.groups) as f64;
            let mean = sum(&|v| v) / count;
            let squares = sum(&|v| (v - mean).powi(2));
            let deviation = (squares / count + f64::from(norm.eps)).sqrt();
            (group * size..(group + 1) * size).map(move |c| {
                let factor = f64::from(norm.weight[c]) / deviation;
                (
                    factor as f32,
                    (f64::from(norm.bias[c]) - mean * factor) as f32,
                )
            })
        })
        .collect();
    glue::for_rows(y, channels, |row, y| {
        let range = row * channels..(row + 1) * channels;
        let skip = skip.map(|skip| &skip[range.clone()]);
        let values = y.iter_mut().zip(&x[range]).zip(&affine);
        for (c, ((y, &x), &(factor, offset))) in values.enumerate() {
            *y = x * factor + offset + skip.map_or(0.0, |skip| skip[c]);
        }
        math::silu(isa, y);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_normed_over_all_cells() {
        // Two cells of four channels, two groups: {1, 3, 5, 7} has mean 4 and variance 5.
        let x = [1.0, 3.0, 0.0, 0.0, 5.0, 7.0, 0.0, 0.0];
        let (weight, bias) = ([1.0, 2.0, 1.0, 1.0], [0.0, 0.5, 0.25, -0.25]);
        let silu = |v: f32| v / (1.0 + (-v).exp());
        let d = 5f32.sqrt();
        let norm = GroupAffine {
            groups: 2,
            eps: 1e-9,
            weight: &weight,
            bias: &bias,
        };
        let mut y = [0.0; 8];
        group_norm_silu(Isa::detect(), &x, 1, 4, &norm, None, &mut y);
        let expected = [
            -3.0 / d,
            -2.0 / d + 0.5,
            0.25,
            -0.25,
            1.0 / d,
            6.0 / d + 0.5,
            0.25,
            -0.25,
        ];
        for (y, e) in y.iter().zip(expected) {
            assert!((y - silu(e)).abs() < 1e-5, "{y} {e}");
        }
        group_norm_silu(Isa::detect(), &x, 1, 4, &norm, Some(&[1.0; 8]), &mut y);
        assert!((y[0] - silu(1.0 - 3.0 / d)).abs() < 1e-5, "{}", y[0]);
    }
}
