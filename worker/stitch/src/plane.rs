//! One channel of a picture in f32, and the few filters that the other modules share.

use longtake_common::{Frame, Sample};
use rayon::prelude::*;

/// Rows below this many samples are not worth a thread of their own.
const SAMPLES_PER_TASK: usize = 1 << 13;

/// A picture of one channel, `[height, width]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) data: Vec<f32>,
}

impl Plane {
    pub(crate) fn filled(width: usize, height: usize, value: f32) -> Self {
        Self {
            width,
            height,
            data: vec![value; width * height],
        }
    }

    /// Computes each row by `fill(y, row)`, rows in parallel.
    pub(crate) fn from_rows(
        width: usize,
        height: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) -> Self {
        let mut plane = Self::filled(width, height, 0.0);
        if width > 0 {
            plane
                .data
                .par_chunks_mut(width)
                .with_min_len(rows_per_task(width))
                .enumerate()
                .for_each(|(y, row)| fill(y, row));
        }
        plane
    }

    pub(crate) fn row(&self, y: usize) -> &[f32] {
        &self.data[y * self.width..(y + 1) * self.width]
    }

    /// Row `y`, or the nearest one inside.
    pub(crate) fn row_clamped(&self, y: isize) -> &[f32] {
        self.row(y.clamp(0, self.height as isize - 1) as usize)
    }

    pub(crate) fn at(&self, x: usize, y: usize) -> f32 {
        self.data[y * self.width + x]
    }

    /// Bilinear sample at (`x`, `y`), with the border repeated outwards.
    pub(crate) fn sample(&self, x: f32, y: f32) -> f32 {
        Tap::new(self.width, self.height, x, y).of(self)
    }

    /// Twice the size (or one less), bilinear, times `scale`: the inverse of [`Self::halved`].
    pub(crate) fn doubled(&self, width: usize, height: usize, scale: f32) -> Self {
        let near_and_far = |at: usize, length: usize| {
            let near = (at / 2).min(length - 1);
            let far = if at.is_multiple_of(2) {
                near.saturating_sub(1)
            } else {
                (near + 1).min(length - 1)
            };
            (near, far)
        };
        Self::from_rows(width, height, |y, out| {
            let (near, far) = near_and_far(y, self.height);
            let mut mixed = vec![0.0; self.width];
            for ((m, n), f) in mixed.iter_mut().zip(self.row(near)).zip(self.row(far)) {
                *m = scale * (0.75 * n + 0.25 * f);
            }
            for (x, out) in out.iter_mut().enumerate() {
                let (near, far) = near_and_far(x, self.width);
                *out = 0.75 * mixed[near] + 0.25 * mixed[far];
            }
        })
    }

    /// Half the size (rounded up), filtered with [1 3 3 1] / 8, whose centre lies between samples,
    /// so that coarse (x + 1/2) is fine 2 (x + 1/2).
    pub(crate) fn halved(&self) -> Self {
        let (w, h) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let across = Self::from_rows(w, self.height, |y, out| {
            let row = self.row(y);
            let last = row.len() - 1;
            for (x, out) in out.iter_mut().enumerate() {
                let near = 2 * x;
                let outer = row[near.saturating_sub(1)] + row[(near + 2).min(last)];
                let inner = row[near] + row[(near + 1).min(last)];
                *out = 0.125 * outer + 0.375 * inner;
            }
        });
        Self::from_rows(w, h, |y, out| {
            let near = 2 * y as isize;
            let rows = [near - 1, near, near + 1, near + 2].map(|y| across.row_clamped(y));
            for (x, out) in out.iter_mut().enumerate() {
                *out = 0.125 * (rows[0][x] + rows[3][x]) + 0.375 * (rows[1][x] + rows[2][x]);
            }
        })
    }

    /// `f` of the samples of both, which are of one size.
    pub(crate) fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32 + Sync + Send) -> Self {
        Self::from_rows(self.width, self.height, |y, out| {
            for ((o, &a), &b) in out.iter_mut().zip(self.row(y)).zip(other.row(y)) {
                *o = f(a, b);
            }
        })
    }

    /// Mean over the (2 radius + 1) square around each sample, smaller at the border.
    pub(crate) fn box_mean(&self, radius: usize) -> Self {
        let (w, h) = (self.width, self.height);
        let across = Self::from_rows(w, h, |y, out| window_means(self.row(y), radius, out));
        // Bands of a fixed height: each starts its running sums afresh, whoever computes it.
        const BAND: usize = 32;
        let mut plane = Self::filled(w, h, 0.0);
        plane
            .data
            .par_chunks_mut(BAND * w)
            .enumerate()
            .for_each(|(band, rows)| {
                let first = band * BAND;
                let mut sums = vec![0.0f32; w];
                let (mut from, mut to) =
                    (first.saturating_sub(radius), first.saturating_sub(radius));
                for (i, out) in rows.chunks_exact_mut(w).enumerate() {
                    let y = first + i;
                    while to < (y + radius + 1).min(h) {
                        sums.iter_mut()
                            .zip(across.row(to))
                            .for_each(|(s, v)| *s += v);
                        to += 1;
                    }
                    while from < y.saturating_sub(radius) {
                        sums.iter_mut()
                            .zip(across.row(from))
                            .for_each(|(s, v)| *s -= v);
                        from += 1;
                    }
                    let scale = 1.0 / (to - from) as f32;
                    out.iter_mut().zip(&sums).for_each(|(o, s)| *o = s * scale);
                }
            });
        plane
    }
}

/// Where a bilinear sample comes from, for use on several planes of one size.
#[derive(Clone, Copy)]
pub(crate) struct Tap {
    top: usize,
    bottom: usize,
    right: usize,
    fx: f32,
    fy: f32,
}

impl Tap {
    #[inline]
    pub(crate) fn new(width: usize, height: usize, x: f32, y: f32) -> Self {
        let x = x.max(0.0).min((width - 1) as f32);
        let y = y.max(0.0).min((height - 1) as f32);
        let (x0, y0) = (x as i32 as usize, y as i32 as usize);
        let top = y0 * width + x0;
        Self {
            top,
            bottom: if y0 + 1 < height { top + width } else { top },
            right: usize::from(x0 + 1 < width),
            fx: x - x0 as i32 as f32,
            fy: y - y0 as i32 as f32,
        }
    }

    /// The sample in `plane`.
    #[inline]
    pub(crate) fn of(&self, plane: &Plane) -> f32 {
        let d = &plane.data;
        let (a, b) = (d[self.top], d[self.top + self.right]);
        let (c, e) = (d[self.bottom], d[self.bottom + self.right]);
        let (top, bottom) = (a + self.fx * (b - a), c + self.fx * (e - c));
        top + self.fy * (bottom - top)
    }
}

fn window_means(row: &[f32], radius: usize, out: &mut [f32]) {
    let w = row.len();
    let mut sum: f32 = row[..radius.min(w)].iter().sum();
    for x in 0..w {
        if x + radius < w {
            sum += row[x + radius];
        }
        if x > radius {
            sum -= row[x - radius - 1];
        }
        let count = (x + radius + 1).min(w) - x.saturating_sub(radius);
        out[x] = sum / count as f32;
    }
}

/// Rows that one parallel task should take.
pub(crate) fn rows_per_task(width: usize) -> usize {
    SAMPLES_PER_TASK.div_ceil(width.max(1)).max(1)
}

/// Weights of R', G', B' in luma, ITU-R BT.709.
pub(crate) const LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// Weighted sum of the channels of a picture, in 0..255.
pub(crate) fn project<S: Sample>(frame: &Frame<S>, weights: [f32; 3]) -> Plane {
    let (w, h) = (frame.width() as usize, frame.height() as usize);
    Plane::from_rows(w, h, |y, out| {
        let row = &frame.data()[3 * y * w..3 * (y + 1) * w];
        for (out, p) in out.iter_mut().zip(row.chunks_exact(3)) {
            *out =
                weights[0] * p[0].level() + weights[1] * p[1].level() + weights[2] * p[2].level();
        }
    })
}

/// Luma in 0..255 (full range).
pub(crate) fn luma<S: Sample>(frame: &Frame<S>) -> Plane {
    project(frame, LUMA)
}
