//! Finds how many frames the end of one clip shares with the start of the next.
//!
//! Each frame is reduced to a [`Sketch`]. For every possible overlap the sketches that would lie on
//! each other are compared after the best gain and offset for each channel, so that neither
//! exposure nor colour balance matters. The overlap whose frames differ least is then verified
//! densely: optical flow between its pictures must be short and must explain nearly all of them.

use crate::flow::{FlowParams, Pyramid, both_ways};
use crate::plane::{LUMA, Plane, project};
use longtake_common::{Frame, Sample};
use rayon::prelude::*;

/// Least overlap that is believed: fewer frames may look alike by chance.
pub const LEAST_FRAMES: usize = 3;
/// Largest overlap that is looked for, and so the most sketches worth keeping of each side.
pub const MOST_FRAMES: usize = 96;

/// Pictures are halved until they have at most so many pixels.
const SKETCH_PIXELS: usize = 1 << 15;
/// Difference (grey levels, squared, summed over channels) that storage in 8 bits leaves.
const FLOOR: f64 = 0.05;
/// Share by which the difference must grow towards every other overlap for an even chance.
const DISTINCT: f64 = 0.01;
/// Least confidence with which an overlap is called found.
const BELIEVED: f64 = 0.5;
/// Share of the pictures' variation that two views of one scene have in common, at least.
const COMMON: f64 = 0.3;
/// Share of the picture that flow must explain.
const EXPLAINED: f64 = 0.6;
/// Longest flow, as a part of the picture's smaller side, between views of one moment.
const REACH: f32 = 0.08;
/// Difference (grey levels) beyond noise up to which flow explains a pixel.
const ALIKE: f32 = 8.0;

/// A small picture of a frame, in three channels, around mid-grey.
#[derive(Clone, Debug)]
pub struct Sketch {
    channels: [Plane; 3],
    /// Sum and sum of squares of each channel.
    sums: [[f64; 2]; 3],
}

impl Sketch {
    /// Reduces a frame.
    pub fn new<S: Sample>(frame: &Frame<S>) -> Self {
        let channels: [Plane; 3] = std::array::from_fn(|c| {
            let mut weights = [0.0; 3];
            weights[c] = 1.0;
            let mut plane = project(frame, weights);
            while plane.data.len() > SKETCH_PIXELS {
                plane = plane.halved();
            }
            plane.data.iter_mut().for_each(|v| *v -= 128.0);
            plane
        });
        let sums = channels.each_ref().map(|p| {
            let sum = p.data.iter().map(|&v| f64::from(v)).sum();
            [sum, dot(&p.data, &p.data)]
        });
        Self { channels, sums }
    }

    fn size(&self) -> (usize, usize) {
        (self.channels[0].width, self.channels[0].height)
    }

    fn luma(&self) -> Plane {
        let [r, g, b] = &self.channels;
        let rg = r.zip(g, |r, g| LUMA[0] * r + LUMA[1] * g);
        rg.zip(b, |rg, b| rg + LUMA[2] * b)
    }
}

/// An overlap that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FoundOverlap {
    /// Frames that both clips show.
    pub frames: usize,
    /// 0 to 1: how much worse every other overlap fits; 0.5 where the next best differs by one
    /// per cent more than this one.
    pub confidence: f64,
}

/// Why none was found.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum NoMatch {
    /// Too few frames to compare.
    #[error("the clips are too short to compare: each needs at least {LEAST_FRAMES} frames")]
    TooShort,
    /// Nothing fits.
    #[error("the end of the first and the start of the second do not show the same moments")]
    Different,
    /// Several fit.
    #[error(
        "overlaps of {0} and {1} frames fit almost equally well (the picture hardly changes there)"
    )]
    Ambiguous(usize, usize),
}

/// Finds the overlap between a clip that ends with `left` and one that starts with `right` (up to
/// [`MOST_FRAMES`] of each are used).
pub fn find_overlap(left: &[Sketch], right: &[Sketch]) -> Result<FoundOverlap, NoMatch> {
    let left = &left[left.len().saturating_sub(MOST_FRAMES)..];
    let right = &right[..right.len().min(MOST_FRAMES)];
    let most = left.len().min(right.len());
    if most < LEAST_FRAMES {
        return Err(NoMatch::TooShort);
    }
    if left
        .iter()
        .chain(right)
        .any(|s| s.size() != left[0].size() || s.size().0 * s.size().1 == 0)
    {
        return Err(NoMatch::Different);
    }
    let fits = fits(left, right, most);
    let (best, second) = ranked(&fits);
    if best < LEAST_FRAMES || fits[best - 1].common < COMMON {
        return Err(NoMatch::Different);
    }
    let confidence = confidence(&fits, best, second);
    if !verified(left, right, best, fits[best - 1].difference) {
        return Err(NoMatch::Different);
    }
    if confidence < BELIEVED {
        return Err(NoMatch::Ambiguous(best, second));
    }
    Ok(FoundOverlap {
        frames: best,
        confidence,
    })
}

/// How well an overlap fits.
#[derive(Clone, Copy, Debug)]
struct Fit {
    /// Mean squared difference after gain and offset, summed over channels.
    difference: f64,
    /// Share of the variation that the two sides have in common.
    common: f64,
}

/// Sums over the frames of an overlap for one channel: left, right, their squares and products.
#[derive(Clone, Copy, Default)]
struct Moments {
    l: f64,
    r: f64,
    ll: f64,
    rr: f64,
    lr: f64,
}

/// The fit of overlaps of 1 .. `most` frames.
fn fits(left: &[Sketch], right: &[Sketch], most: usize) -> Vec<Fit> {
    let samples = left[0].channels[0].data.len();
    (1..=most)
        .into_par_iter()
        .map(|overlap| {
            let pairs = || left[left.len() - overlap..].iter().zip(right);
            let (mut difference, mut variation) = (0.0, 0.0);
            for c in 0..3 {
                let mut m = Moments::default();
                for (l, r) in pairs() {
                    m.l += l.sums[c][0];
                    m.ll += l.sums[c][1];
                    m.r += r.sums[c][0];
                    m.rr += r.sums[c][1];
                    m.lr += dot(&l.channels[c].data, &r.channels[c].data);
                }
                let n = (samples * overlap) as f64;
                let var_l = (m.ll / n - (m.l / n) * (m.l / n)).max(0.0);
                let var_r = (m.rr / n - (m.r / n) * (m.r / n)).max(0.0);
                let cov = (m.lr / n - (m.l / n) * (m.r / n)).max(0.0);
                let explained = if var_r > 0.0 { cov * cov / var_r } else { 0.0 };
                difference += (var_l - explained).max(0.0);
                variation += var_l;
            }
            Fit {
                difference: difference + FLOOR,
                common: 1.0 - difference / (variation + FLOOR),
            }
        })
        .collect()
}

/// The overlap that fits best, and the best of the others.
fn ranked(fits: &[Fit]) -> (usize, usize) {
    let mut order: Vec<usize> = (1..=fits.len()).collect();
    order.sort_by(|&a, &b| {
        fits[a - 1]
            .difference
            .total_cmp(&fits[b - 1].difference)
            .then(b.cmp(&a))
    });
    (order[0], *order.get(1).unwrap_or(&order[0]))
}

fn confidence(fits: &[Fit], best: usize, second: usize) -> f64 {
    if best == second {
        return 0.0;
    }
    let (this, other) = (fits[best - 1].difference, fits[second - 1].difference);
    let excess = 1.0 - this / other;
    excess / (excess + DISTINCT)
}

/// Whether short flow explains most of the pictures at the start, middle and end of the overlap.
fn verified(left: &[Sketch], right: &[Sketch], overlap: usize, difference: f64) -> bool {
    let noise = (difference / 3.0).sqrt() as f32;
    let mut probes = vec![0, overlap / 2, overlap - 1];
    probes.dedup();
    let first = left.len() - overlap;
    let shares: Vec<f64> = probes
        .par_iter()
        .map(|&k| {
            explained(
                &left[first + k].luma(),
                &right[k].luma(),
                ALIKE + 2.0 * noise,
            )
        })
        .collect();
    shares.iter().sum::<f64>() / shares.len() as f64 >= EXPLAINED
}

/// Share of `a` that is found in `b` not far away.
fn explained(a: &Plane, b: &Plane, alike: f32) -> f64 {
    let b = matched(a, b);
    let (pa, pb) = (Pyramid::new(a.clone()), Pyramid::new(b));
    let flows = both_ways(&pa, &pb, &FlowParams::FAST);
    let reach = REACH * a.width.min(a.height) as f32;
    let b = pb.finest();
    let mut found = 0usize;
    for y in 0..a.height {
        for x in 0..a.width {
            let (u, v) = (flows.forward.u.at(x, y), flows.forward.v.at(x, y));
            let near = u * u + v * v <= reach * reach;
            let to = b.sample(x as f32 + u, y as f32 + v);
            found += usize::from(near && (a.at(x, y) - to).abs() <= alike);
        }
    }
    found as f64 / a.data.len() as f64
}

/// `b` with the mean and spread of `a`.
fn matched(a: &Plane, b: &Plane) -> Plane {
    let moments = |p: &Plane| {
        let n = p.data.len() as f64;
        let mean = p.data.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let spread = (dot(&p.data, &p.data) / n - mean * mean).max(0.0).sqrt();
        (mean, spread)
    };
    let ((ma, sa), (mb, sb)) = (moments(a), moments(b));
    let gain = ((sa + 1.0) / (sb + 1.0)).clamp(0.5, 2.0);
    let (gain, mb, ma) = (gain as f32, mb as f32, ma as f32);
    let mut out = b.clone();
    out.data.iter_mut().for_each(|v| *v = gain * (*v - mb) + ma);
    out
}

/// Sum of products, always in the same order: sixteen lanes of f32 over short runs, then f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const RUN: usize = 1024;
    const LANES: usize = 16;
    let run = |(a, b): (&[f32], &[f32])| {
        let mut lanes = [0.0f32; LANES];
        let (mut wide_a, mut wide_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (a, b) in (&mut wide_a).zip(&mut wide_b) {
            for i in 0..LANES {
                lanes[i] += a[i] * b[i];
            }
        }
        let rest = wide_a.remainder().iter().zip(wide_b.remainder());
        let rest: f64 = rest.map(|(a, b)| f64::from(a * b)).sum();
        lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + rest
    };
    a.chunks(RUN).zip(b.chunks(RUN)).map(run).sum()
}
