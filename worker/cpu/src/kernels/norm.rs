//! Normalisation over the last axis.

use super::isa::Isa;

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
    rows(isa, x, dim, eps, false, weight, modulate, false, y);
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
    rows(isa, x, dim, eps, true, weight, modulate, false, y);
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
    rows(isa, x, channels, eps, false, None, modulate, silu, y);
}

fn rows(
    isa: Isa,
    x: &[f32],
    dim: usize,
    eps: f32,
    centre: bool,
    weight: Option<&[f32]>,
    modulate: Option<Modulate<'_>>,
    silu: bool,
    y: &mut [f32],
) {
    for (r, (x, y)) in x.chunks(dim).zip(y.chunks_mut(dim)).enumerate() {
        let mean = if centre {
            x.iter().sum::<f32>() / dim as f32
        } else {
            0.0
        };
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / dim as f32;
        let inv = 1.0 / (var + eps).sqrt();
        let set = modulate
            .and_then(|m| m.set_of_row)
            .map_or(0, |s| s[r] as usize)
            * dim;
        for c in 0..dim {
            let mut v = (x[c] - mean) * inv * weight.map_or(1.0, |w| w[c]);
            if let Some(m) = modulate {
                v = v * (1.0 + m.scale[set + c]) + m.shift[set + c];
            }
            y[c] = v;
        }
        if silu {
            super::math::silu(isa, y);
        }
    }
}
