//! A picture in linear memory order with four f32 lanes a pixel (R, G, B and a spare one that lets
//! a pixel be one vector), and how to look between its pixels without blurring it.

use super::exposure::Exposure;
use crate::plane::{LUMA, Plane, rows_per_task};
use longtake_common::{Frame, Sample};
use rayon::prelude::*;

pub(super) type Pixel = [f32; 4];

#[derive(Clone)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<Pixel>,
}

impl Picture {
    /// The frame with an exposure applied.
    pub(super) fn new<S: Sample>(frame: &Frame<S>, exposure: &Exposure) -> Self {
        let (gain, offset) = (exposure.gain, exposure.offset);
        Self::from_rows(frame.width() as usize, frame.height() as usize, |y, out| {
            let stride = 3 * out.len();
            let row = &frame.data()[y * stride..(y + 1) * stride];
            for (out, p) in out.iter_mut().zip(row.chunks_exact(3)) {
                for c in 0..3 {
                    out[c] = gain[c] * p[c].level() + offset[c];
                }
            }
        })
    }

    /// Computes each row by `fill(y, row)`, rows in parallel.
    pub(super) fn from_rows(
        width: usize,
        height: usize,
        fill: impl Fn(usize, &mut [Pixel]) + Sync + Send,
    ) -> Self {
        let mut data = vec![[0.0; 4]; width * height];
        data.par_chunks_mut(width)
            .with_min_len(rows_per_task(4 * width))
            .enumerate()
            .for_each(|(y, row)| fill(y, row));
        Self {
            width,
            height,
            data,
        }
    }

    pub(super) fn row(&self, y: usize) -> &[Pixel] {
        &self.data[y * self.width..(y + 1) * self.width]
    }

    pub(super) fn luma(&self) -> Plane {
        Plane::from_rows(self.width, self.height, |y, out| {
            for (o, p) in out.iter_mut().zip(self.row(y)) {
                *o = LUMA[0] * p[0] + LUMA[1] * p[1] + LUMA[2] * p[2];
            }
        })
    }

    /// Rounded to samples.
    pub(super) fn to_frame<S: Sample>(&self) -> Frame<S> {
        let mut samples = vec![S::default(); 3 * self.data.len()];
        for (to, from) in samples.chunks_exact_mut(3).zip(&self.data) {
            for c in 0..3 {
                to[c] = S::nearest(from[c]);
            }
        }
        Frame::from_samples(self.width as u32, self.height as u32, samples)
            .expect("three samples a pixel")
    }

    /// The picture at (`x`, `y`) by cubic convolution of six points (Keys 1981), exact on pixels;
    /// held within the range of the 16 nearest pixels, so that edges do not ring.
    pub(super) fn sample(&self, x: f32, y: f32) -> Pixel {
        let x = x.clamp(0.0, (self.width - 1) as f32);
        let y = y.clamp(0.0, (self.height - 1) as f32);
        let (x0, y0) = (x as usize, y as usize);
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        if fx == 0.0 && fy == 0.0 {
            return self.data[y0 * self.width + x0];
        }
        let (wx, wy) = (weights(fx), weights(fy));
        let inside = x0 >= 2 && x0 + 3 < self.width;
        let mut sum = [0.0f32; 4];
        let (mut low, mut high) = ([f32::INFINITY; 4], [f32::NEG_INFINITY; 4]);
        for j in 0..6 {
            let row = self.row((y0 + j).saturating_sub(2).min(self.height - 1));
            let mut edge = [[0.0; 4]; 6];
            let taps: &[Pixel; 6] = if inside {
                row[x0 - 2..x0 + 4].first_chunk().expect("six pixels")
            } else {
                for (i, tap) in edge.iter_mut().enumerate() {
                    *tap = row[(x0 + i).saturating_sub(2).min(self.width - 1)];
                }
                &edge
            };
            let mut across = [0.0f32; 4];
            for i in 0..6 {
                for c in 0..4 {
                    across[c] += wx[i] * taps[i][c];
                }
            }
            for c in 0..4 {
                sum[c] += wy[j] * across[c];
            }
            if (1..5).contains(&j) {
                for tap in &taps[1..5] {
                    for c in 0..4 {
                        low[c] = if tap[c] < low[c] { tap[c] } else { low[c] };
                        high[c] = if tap[c] > high[c] { tap[c] } else { high[c] };
                    }
                }
            }
        }
        for c in 0..4 {
            sum[c] = sum[c].max(low[c]).min(high[c]);
        }
        sum
    }
}

/// Weights of the points at -2 .. 3 for a place `f` (0..1) after point 0: Keys' six-point kernel.
fn weights(f: f32) -> [f32; 6] {
    let near = |s: f32| ((4.0 / 3.0) * s - 7.0 / 3.0) * s * s + 1.0;
    let middle = |s: f32| ((-7.0 / 12.0 * s + 3.0) * s - 59.0 / 12.0) * s + 2.5;
    let far = |s: f32| ((1.0 / 12.0 * s - 2.0 / 3.0) * s + 21.0 / 12.0) * s - 1.5;
    let g = 1.0 - f;
    [
        far(2.0 + f),
        middle(1.0 + f),
        near(f),
        near(g),
        middle(1.0 + g),
        far(2.0 + g),
    ]
}
