//! Normalisation over the last axis.

use rayon::prelude::*;

use super::isa::Isa;
use super::math::{dispatch, fma, lane, tree_sum};
use super::tile::LANES;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 14;

/// An affine step after a norm, `y * (1 + scale) + shift`, with a few distinct vectors shared by
/// many rows (one per distinct timestep).
#[derive(Clone, Copy, Debug)]
pub struct Modulate<'a> {
    /// Distinct scales, `[sets, dim]`.
    pub scale: &'a [f32],
    /// Distinct shifts, `[sets, dim]`.
    pub shift: &'a [f32],
    /// Set of each row, `[rows]`; without it every row takes set 0.
    pub set_of_row: Option<&'a [u32]>,
}

/// RMS norm of each row of `x[rows, dim]`: `x / sqrt(mean(x^2) + eps) * weight[dim]`, then
/// [`Modulate`].
pub fn rms_norm(
    isa: Isa,
    x: &[f32],
    dim: usize,
    eps: f32,
    weight: Option<&[f32]>,
    modulate: Option<Modulate<'_>>,
    y: &mut [f32],
) {
    Norm {
        dim,
        eps,
        centre: false,
        weight,
        modulate,
        silu: false,
    }
    .run(isa, x, y);
}

/// Layer norm of each row of `x[rows, dim]`: `(x - mean) / sqrt(var + eps) * weight[dim]`
/// (variance without Bessel's correction), then [`Modulate`].
pub fn layer_norm(
    isa: Isa,
    x: &[f32],
    dim: usize,
    eps: f32,
    weight: Option<&[f32]>,
    modulate: Option<Modulate<'_>>,
    y: &mut [f32],
) {
    Norm {
        dim,
        eps,
        centre: true,
        weight,
        modulate,
        silu: false,
    }
    .run(isa, x, y);
}

/// Pixel norm over the channels of `x[pixels, channels]`: `x / sqrt(mean(x^2) + eps)`, then
/// [`Modulate`], then SiLU if asked for.
pub fn pixel_norm(
    isa: Isa,
    x: &[f32],
    channels: usize,
    eps: f32,
    modulate: Option<Modulate<'_>>,
    silu: bool,
    y: &mut [f32],
) {
    Norm {
        dim: channels,
        eps,
        centre: false,
        weight: None,
        modulate,
        silu,
    }
    .run(isa, x, y);
}

/// What is done to each row.
#[derive(Clone, Copy)]
struct Norm<'a> {
    dim: usize,
    eps: f32,
    /// Subtract the mean first.
    centre: bool,
    weight: Option<&'a [f32]>,
    modulate: Option<Modulate<'a>>,
    silu: bool,
}

impl Norm<'_> {
    fn run(&self, isa: Isa, x: &[f32], y: &mut [f32]) {
        let dim = self.dim;
        assert!(
            dim > 0 && x.len().is_multiple_of(dim),
            "the input has no rows of {dim}"
        );
        assert_eq!(x.len(), y.len(), "the output is not like the input");
        assert!(
            self.weight.is_none_or(|weight| weight.len() == dim),
            "the weight is not [{dim}]"
        );
        if let Some(Modulate {
            scale,
            shift,
            set_of_row,
        }) = self.modulate
        {
            assert!(
                scale.len() >= dim && scale.len().is_multiple_of(dim),
                "scale is not [sets, {dim}]"
            );
            assert_eq!(scale.len(), shift.len(), "shift is not like scale");
            let rows = x.len() / dim;
            assert!(
                set_of_row.is_none_or(|sets| sets.len() == rows),
                "sets are not [{rows}]"
            );
        }
        let task = (TASK_ELEMENTS / dim).max(1);
        let work = |(index, (x, y)): (usize, (&[f32], &mut [f32]))| {
            let first = index * task;
            dispatch!(isa, rows(
                norm: &Norm<'_> = self,
                first: usize = first,
                x: &[f32] = x,
                y: &mut [f32] = y,
            ));
        };
        if x.len() <= 2 * TASK_ELEMENTS || rayon::current_num_threads() == 1 {
            x.chunks(task * dim)
                .zip(y.chunks_mut(task * dim))
                .enumerate()
                .for_each(work);
        } else {
            x.par_chunks(task * dim)
                .zip(y.par_chunks_mut(task * dim))
                .enumerate()
                .for_each(work);
        }
    }
}

/// Rows whose statistics are computed together, so that their roots and quotients are too.
const BATCH: usize = 32;

/// The rows of one task; `first` is the first row's number.
#[inline(always)]
fn rows<const FMA: bool>(norm: &Norm<'_>, first: usize, x: &[f32], y: &mut [f32]) {
    let dim = norm.dim;
    let batches = x.chunks(BATCH * dim).zip(y.chunks_mut(BATCH * dim));
    for (batch, (x, y)) in batches.enumerate() {
        let mut means = [0.0f32; BATCH];
        let mut factors = [1.0f32; BATCH];
        for (i, x) in x.chunks_exact(dim).enumerate() {
            if norm.centre {
                means[i] = sum(x, |v, sum| v + sum) / dim as f32;
            }
            factors[i] = sum(x, |v, sum| fma::<FMA>(v - means[i], v - means[i], sum));
        }
        for factor in &mut factors {
            *factor = 1.0 / (*factor / dim as f32 + norm.eps).sqrt();
        }
        for (i, (x, y)) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).enumerate() {
            let modulate = match norm.modulate {
                None => None,
                Some(Modulate {
                    scale,
                    shift,
                    set_of_row,
                }) => {
                    let set = match set_of_row {
                        None => 0,
                        Some(sets) => sets[first + batch * BATCH + i] as usize * dim,
                    };
                    Some((&scale[set..set + dim], &shift[set..set + dim]))
                }
            };
            write_row::<FMA>(norm.weight, means[i], factors[i], modulate, x, y);
        }
        if norm.silu {
            for y in y {
                *y = lane::silu::<FMA>(*y);
            }
        }
    }
}

/// `y = (x - mean) * factor * weight * (1 + scale) + shift`, with what is asked for. Passes over
/// a row in the first-level cache cost less than branches inside of one.
#[inline(always)]
fn write_row<const FMA: bool>(
    weight: Option<&[f32]>,
    mean: f32,
    factor: f32,
    modulate: Option<(&[f32], &[f32])>,
    x: &[f32],
    y: &mut [f32],
) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = (x - mean) * factor;
    }
    if let Some(weight) = weight {
        for (y, weight) in y.iter_mut().zip(weight) {
            *y *= weight;
        }
    }
    if let Some((scale, shift)) = modulate {
        for ((y, scale), shift) in y.iter_mut().zip(scale).zip(shift) {
            *y = fma::<FMA>(*y, 1.0 + scale, *shift);
        }
    }
}

/// Folds `add(value, sum)` over a row in [`LANES`] lanes, then over the lanes in halves: one
/// order on every level.
#[inline(always)]
fn sum(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] = add(chunk[i], lanes[i]);
        }
    }
    let (half, rest) = rest.as_chunks::<{ LANES / 2 }>();
    for chunk in half {
        for i in 0..LANES / 2 {
            lanes[i] = add(chunk[i], lanes[i]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = add(value, *lane);
    }
    tree_sum(lanes)
}

#[cfg(test)]
#[path = "norm_tests.rs"]
mod tests;
