//! Exposure and colour: one gain and offset for each channel that turn the right window's frames
//! into the left one's.

use crate::flow::FlowField;
use crate::plane::Plane;
use longtake_common::{Frame, Sample};

/// Spread (grey levels, squared) below which a channel's contrast says nothing about its gain.
const GAIN_PRIOR: f64 = 16.0;
/// Points along each side of a frame at which the aligned windows are compared.
const GRID: usize = 96;
/// Share of points that must be aligned before they are believed over the histograms.
const ENOUGH: f64 = 0.3;

/// `gain * value + offset` for R, G, B, on values of 0..255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exposure {
    pub(super) gain: [f32; 3],
    pub(super) offset: [f32; 3],
}

impl Exposure {
    pub(super) const NONE: Self = Self {
        gain: [1.0; 3],
        offset: [0.0; 3],
    };

    /// Between none (0) and this (1).
    pub(super) fn scaled(&self, strength: f32) -> Self {
        Self {
            gain: self.gain.map(|g| 1.0 + strength * (g - 1.0)),
            offset: self.offset.map(|o| strength * o),
        }
    }

    /// What undoes this.
    pub(super) fn inverse(&self) -> Self {
        Self {
            gain: self.gain.map(|g| 1.0 / g),
            offset: std::array::from_fn(|c| -self.offset[c] / self.gain[c]),
        }
    }

    /// A first guess from the histograms of both windows, which motion hardly changes.
    pub(super) fn from_histograms<S: Sample>(left: &[Frame<S>], right: &[Frame<S>]) -> Self {
        let (left, right) = (histograms(left), histograms(right));
        let mut out = Self::NONE;
        for c in 0..3 {
            let pairs: Vec<[f64; 3]> = (1..40)
                .map(|i| f64::from(i) / 40.0)
                .map(|q| [quantile(&right[c], q), quantile(&left[c], q), 1.0])
                .collect();
            out.set(c, fit(&pairs));
        }
        out
    }

    fn set(&mut self, channel: usize, (gain, offset): (f64, f64)) {
        self.gain[channel] = gain.clamp(0.5, 2.0) as f32;
        self.offset[channel] = offset.clamp(-96.0, 96.0) as f32;
    }
}

fn histograms<S: Sample>(frames: &[Frame<S>]) -> [[u64; 256]; 3] {
    let mut out = [[0; 256]; 3];
    for frame in frames {
        for p in frame.data().chunks_exact(3) {
            for c in 0..3 {
                out[c][usize::from(p[c].to_u8())] += 1;
            }
        }
    }
    out
}

/// Value below which a share `q` of the samples lies; each level fills the unit around it evenly.
fn quantile(histogram: &[u64; 256], q: f64) -> f64 {
    let wanted = q * histogram.iter().sum::<u64>() as f64;
    let mut below = 0.0;
    for (level, &count) in histogram.iter().enumerate() {
        let count = count as f64;
        if below + count >= wanted && count > 0.0 {
            return level as f64 - 0.5 + (wanted - below) / count;
        }
        below += count;
    }
    255.0
}

/// Weighted least squares `left = gain * right + offset` over [right, left, weight], with the gain
/// drawn to 1 where contrast is too low to tell.
fn fit(pairs: &[[f64; 3]]) -> (f64, f64) {
    let mut sums = [0.0; 3];
    for [r, l, w] in pairs {
        sums[0] += w;
        sums[1] += w * r;
        sums[2] += w * l;
    }
    if sums[0] <= 0.0 {
        return (1.0, 0.0);
    }
    let (mr, ml) = (sums[1] / sums[0], sums[2] / sums[0]);
    let (mut cov, mut var) = (0.0, 0.0);
    for [r, l, w] in pairs {
        cov += w * (r - mr) * (l - ml);
        var += w * (r - mr) * (r - mr);
    }
    let gain = (cov / sums[0] + GAIN_PRIOR) / (var / sums[0] + GAIN_PRIOR);
    (gain, ml - gain * mr)
}

/// Aligned points: [right, left, weight] for each channel, collected over some frames.
#[derive(Default)]
pub(super) struct AlignedPoints {
    pairs: [Vec<[f64; 3]>; 3],
    seen: f64,
}

impl AlignedPoints {
    /// Adds points of `left` and where `flow` leads in `right`, weighted by `trust`.
    pub(super) fn add<S: Sample>(
        &mut self,
        left: &Frame<S>,
        right: &Frame<S>,
        flow: &FlowField,
        trust: &Plane,
    ) {
        let (w, h) = (left.width() as usize, left.height() as usize);
        for y in (0..h).step_by(h.div_ceil(GRID)) {
            for x in (0..w).step_by(w.div_ceil(GRID)) {
                self.seen += 1.0;
                let weight = f64::from(trust.at(x, y));
                let to_x = (x as f32 + flow.u.at(x, y) + 0.5).floor();
                let to_y = (y as f32 + flow.v.at(x, y) + 0.5).floor();
                let inside = to_x >= 0.0 && to_y >= 0.0 && to_x < w as f32 && to_y < h as f32;
                if weight <= 0.0 || !inside {
                    continue;
                }
                let l = left.pixel(x as u32, y as u32);
                let r = right.pixel(to_x as u32, to_y as u32);
                for c in 0..3 {
                    let [r, l] = [r[c], l[c]].map(|sample| f64::from(sample.level()));
                    self.pairs[c].push([r, l, weight]);
                }
            }
        }
    }

    /// The robust fit (Tukey's biweight, five rounds), or `None` when too few points are aligned.
    pub(super) fn exposure(mut self, start: &Exposure) -> Option<Exposure> {
        let aligned: f64 = self.pairs[0].iter().map(|p| p[2]).sum();
        if aligned < ENOUGH * self.seen {
            return None;
        }
        let mut out = *start;
        for c in 0..3 {
            let pairs = &mut self.pairs[c];
            let trust: Vec<f64> = pairs.iter().map(|p| p[2]).collect();
            let mut now = (f64::from(start.gain[c]), f64::from(start.offset[c]));
            for _ in 0..5 {
                let residual = |p: &[f64; 3]| (p[1] - now.0 * p[0] - now.1).abs();
                let mut sizes: Vec<f64> = pairs.iter().map(residual).collect();
                let middle = sizes.len() / 2;
                let median = *sizes.select_nth_unstable_by(middle, f64::total_cmp).1;
                let reach = 4.685 * (1.4826 * median).max(1.0);
                let weights: Vec<f64> = pairs
                    .iter()
                    .map(|p| 1.0 - (residual(p) / reach).min(1.0).powi(2))
                    .map(|t| t * t)
                    .collect();
                for ((p, w), t) in pairs.iter_mut().zip(weights).zip(&trust) {
                    p[2] = w * t;
                }
                now = fit(pairs);
            }
            out.set(c, now);
        }
        Some(out)
    }
}
