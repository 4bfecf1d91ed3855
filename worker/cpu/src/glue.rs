//! Operations that move memory and hardly compute.
//!
//! Each divides its output over the threads in runs of whole rows; every output value depends on
//! its inputs alone, so the division does not show in the result.

use rayon::prelude::*;

/// Values that one piece of parallel work writes, about.
const GRAIN: usize = 16 * 1024;

/// Calls `fill(index, row)` for every row of `out`.
pub(crate) fn for_rows(out: &mut [f32], row_len: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
    let row_len = row_len.max(1);
    let rows = (GRAIN / row_len).max(1);
    out.par_chunks_mut(rows * row_len)
        .enumerate()
        .for_each(|(chunk, out)| {
            for (i, row) in out.chunks_exact_mut(row_len).enumerate() {
                fill(chunk * rows + i, row);
            }
        });
}

/// `out[i] = f(x[i], y[i])`.
pub(crate) fn zip(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    out.par_chunks_mut(GRAIN)
        .zip(x.par_chunks(GRAIN))
        .zip(y.par_chunks(GRAIN))
        .for_each(|((out, x), y)| {
            for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                *out = f(x, y);
            }
        });
}

/// `x[i] = f(x[i], y[i])`.
pub(crate) fn update(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    x.par_chunks_mut(GRAIN)
        .zip(y.par_chunks(GRAIN))
        .for_each(|(x, y)| {
            for (x, &y) in x.iter_mut().zip(y) {
                *x = f(*x, y);
            }
        });
}

/// Rotates adjacent pairs of `x[rows, width]` by `cos`, `sin` `[rows, width / 2]`.
pub(crate) fn rotate(x: &mut [f32], width: usize, cos: &[f32], sin: &[f32]) {
    let half = width / 2;
    for_rows(x, width, |row, x| {
        let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
        for ((pair, &c), &s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * c - b * s, b * c + a * s];
        }
    });
}

/// Sizes of a VAE activation.
#[derive(Clone, Copy)]
pub(crate) struct Cells {
    pub frames: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

impl Cells {
    fn at(&self, frame: usize, row: usize, column: usize) -> usize {
        ((frame * self.height + row) * self.width + column) * self.channels
    }
}

/// Depth to space: see `Backend::depth_to_space_add`. `x` has the cells `from`; `skip` has the
/// same cells and `skip_channels` channels. The first `dropped` frames are left out.
pub(crate) fn depth_to_space(
    x: &[f32],
    from: Cells,
    skip: Option<(&[f32], usize)>,
    [st, sh, sw]: [usize; 3],
    dropped: usize,
    out: &mut [f32],
) {
    let block = st * sh * sw;
    let channels = from.channels / block;
    let width = from.width * sw;
    for_rows(out, width * channels, |line, out| {
        let frame = line / (from.height * sh) + dropped;
        let row = line % (from.height * sh);
        // Offset of (it, ih, 0) among the `block` values of an output channel.
        let sub = (frame % st * sh + row % sh) * sw;
        for column in 0..from.width {
            let cell = from.at(frame / st, row / sh, column);
            let x = &x[cell..cell + from.channels];
            let out = &mut out[column * sw * channels..][..sw * channels];
            for (iw, out) in out.chunks_exact_mut(channels).enumerate() {
                for (c, out) in out.iter_mut().enumerate() {
                    *out = x[c * block + sub + iw];
                }
            }
            if let Some((skip, skip_channels)) = skip {
                let repeated = skip_channels / block;
                let skip = &skip[cell / from.channels * skip_channels..][..skip_channels];
                for (iw, out) in out.chunks_exact_mut(channels).enumerate() {
                    for out in out.chunks_mut(repeated) {
                        for (c, out) in out.iter_mut().enumerate() {
                            *out += skip[c * block + sub + iw];
                        }
                    }
                }
            }
        }
    });
}

/// Space to depth: see `Backend::space_to_depth_add`. `x` and `skip` have the cells `from` but
/// for the channels: `from.channels` is of `x`, `skip_channels` of `skip`.
pub(crate) fn space_to_depth(
    x: &[f32],
    from: Cells,
    skip: &[f32],
    skip_channels: usize,
    [st, sh, sw]: [usize; 3],
    out: &mut [f32],
) {
    let block = st * sh * sw;
    let channels = from.channels * block;
    // Gathered skip channels that one output channel is the mean of.
    let group = skip_channels * block / channels;
    let (height, width) = (from.height / sh, from.width / sw);
    for_rows(out, channels, |cell, out| {
        let (frame, row, column) = (
            cell / (height * width) * st,
            cell / width % height * sh,
            cell % width * sw,
        );
        let source = |channel: usize, channels: usize| {
            let (c, sub) = (channel / block, channel % block);
            let (it, ih, iw) = (sub / (sh * sw), sub / sw % sh, sub % sw);
            from.at(frame + it, row + ih, column + iw) / from.channels * channels + c
        };
        for (channel, out) in out.iter_mut().enumerate() {
            let mut sum = 0.0;
            for member in channel * group..(channel + 1) * group {
                sum += skip[source(member, skip_channels)];
            }
            *out = x[source(channel, from.channels)] + sum / group as f32;
        }
    });
}

/// `[F, H, W, C]` to `[F, H/p, W/p, C p p]`, channels `(c, column, row)`.
pub(crate) fn patchify(x: &[f32], from: Cells, p: usize, out: &mut [f32]) {
    let (height, width) = (from.height / p, from.width / p);
    for_rows(out, from.channels * p * p, |cell, out| {
        let (frame, row, column) = (
            cell / (height * width),
            cell / width % height * p,
            cell % width * p,
        );
        for (i, out) in out.iter_mut().enumerate() {
            let (c, in_column, in_row) = (i / (p * p), i / p % p, i % p);
            *out = x[from.at(frame, row + in_row, column + in_column) + c];
        }
    });
}

/// `[F, H, W, C p p]`, channels `(c, column, row)`, to `[F, H p, W p, C]`.
pub(crate) fn unpatchify(x: &[f32], from: Cells, p: usize, out: &mut [f32]) {
    let channels = from.channels / (p * p);
    for_rows(out, from.width * p * channels, |line, out| {
        let (frame, row) = (line / (from.height * p), line % (from.height * p));
        for (column, out) in out.chunks_exact_mut(channels).enumerate() {
            let cell = &x[from.at(frame, row / p, column / p)..][..from.channels];
            for (c, out) in out.iter_mut().enumerate() {
                *out = cell[(c * p + column % p) * p + row % p];
            }
        }
    });
}
