//! Scores the seams of a finished film. Formulas: `docs/quality.md`.

use crate::flow::{FlowParams, Pyramid, both_ways};
use crate::plane::{Plane, luma, project};
use crate::{Method, StitchError};
use longtake_common::Frame;
use longtake_common::task::SeamScore;

/// Mean |dY| (of 255) below which a film counts as standing still.
const FLOOR_STEP: f64 = 0.25;
/// Warping error (of 255) that 8-bit storage and coding leave in any film.
const FLOOR_WARP: f64 = 0.5;
/// Added to both energies of the sharpness, so that flat pictures compare as equal.
const FLOOR_ENERGY: f64 = 1.0;
/// Halvings after which only contrast is left of a picture, no detail.
const COARSE_HALVINGS: usize = 3;
/// Smallest side in pixels that halving may lead to.
const COARSE_SMALLEST: usize = 8;
/// Every so many transitions outside the overlaps are warped. Odd, so that all phases of a
/// model's latent frames (8 pictures each) are met.
const WARP_STRIDE: u32 = 5;
/// Differences above this count as this in the warping error: what no flow can know.
const WARP_CAP: f32 = 32.0;
/// Pictures are halved until they have at most so many pixels before flow is measured.
const WARP_PIXELS: usize = 1 << 18;
/// Overlap frames over which sharpness is averaged before the lowest is taken.
const SHARPNESS_WINDOW: usize = 5;

/// Scores the seams of a film that is fed to it frame by frame; holds one frame and a few numbers
/// for each transition.
pub struct SeamScorer {
    method: Method,
    surround: u32,
    seams: Vec<(u32, u32)>,
    /// First frames after hard cuts, in order.
    cuts: Vec<u32>,
    frames: u32,
    size: Option<(u32, u32)>,
    last: Option<Last>,
    steps: Vec<f64>,
    warps: Vec<Option<f64>>,
    sharpness: Vec<f64>,
}

/// A frame, kept until the next one has been compared with it.
struct Last {
    luma: Plane,
    small: Option<Pyramid>,
}

impl Last {
    /// The picture in which flow is measured, made when it is first needed.
    fn small(&mut self) -> &Pyramid {
        self.small.get_or_insert_with(|| {
            let mut plane = self.luma.clone();
            while plane.data.len() > WARP_PIXELS {
                plane = plane.halved();
            }
            Pyramid::new(plane)
        })
    }
}

impl SeamScorer {
    /// A scorer for a film of `fps` frames a second with these seams: (first frame of the overlap,
    /// frames of the overlap), in order. `method` is only passed on into the scores.
    pub fn new(fps: f64, seams: &[(u32, u32)], method: Method) -> Result<Self, StitchError> {
        let mut end = 0;
        for (index, &(frame, overlap)) in seams.iter().enumerate() {
            if overlap == 0 {
                return Err(StitchError::NoOverlap);
            }
            if frame < end {
                return Err(StitchError::SeamOrder { index, frame });
            }
            end = frame.saturating_add(overlap);
        }
        // Not a number becomes 1, too.
        let surround = fps.round().clamp(1.0, 1000.0) as u32;
        Ok(Self {
            method,
            surround: surround.max(1),
            seams: seams.to_vec(),
            cuts: Vec::new(),
            frames: 0,
            size: None,
            last: None,
            steps: Vec::new(),
            warps: Vec::new(),
            sharpness: Vec::new(),
        })
    }

    /// Tells of frames (in order) that begin after a cut that everybody is meant to see: a seam is
    /// not compared with those, nor with what lies beyond them.
    pub fn with_cuts(mut self, cuts: &[u32]) -> Self {
        self.cuts = cuts.to_vec();
        self
    }

    /// Adds the next frame.
    pub fn push(&mut self, frame: &Frame) -> Result<(), StitchError> {
        let (width, height) = *self.size.get_or_insert((frame.width(), frame.height()));
        if (frame.width(), frame.height()) != (width, height) {
            let (found_width, found_height) = (frame.width(), frame.height());
            let index = self.frames as usize;
            return Err(StitchError::Size {
                index,
                found_width,
                found_height,
                width,
                height,
            });
        }
        let mut now = Last {
            luma: luma(frame),
            small: None,
        };
        if !self.seams.is_empty() {
            self.sharpness.push(sharpness(frame));
            if let Some(mut last) = self.last.take() {
                let transition = self.frames - 1;
                self.steps.push(mean_step(&last.luma, &now.luma));
                let touches = self.touches(transition).is_some();
                let warped = touches || transition.is_multiple_of(WARP_STRIDE);
                self.warps
                    .push(warped.then(|| warp_error(&mut last, &mut now)));
            }
            self.last = Some(now);
        }
        self.frames += 1;
        Ok(())
    }

    /// The seam whose overlap frame `transition` or the one after it belongs to.
    fn touches(&self, transition: u32) -> Option<usize> {
        let at = self
            .seams
            .partition_point(|&(first, _)| first <= transition + 1);
        let (first, overlap) = *self.seams.get(at.checked_sub(1)?)?;
        (transition < first.saturating_add(overlap)).then_some(at - 1)
    }

    /// The scores, one for each seam.
    pub fn finish(self) -> Result<Vec<SeamScore>, StitchError> {
        for &(frame, overlap) in &self.seams {
            if frame.saturating_add(overlap) > self.frames {
                return Err(StitchError::SeamBeyondEnd {
                    frame,
                    frames: self.frames,
                });
            }
        }
        let outside: Vec<u32> = (0..self.steps.len() as u32)
            .filter(|&t| self.touches(t).is_none() && self.cuts.binary_search(&(t + 1)).is_err())
            .collect();
        let of = |values: &mut dyn Iterator<Item = f64>| percentile_95(values.collect());
        let step = of(&mut outside.iter().map(|&t| self.steps[t as usize])).max(FLOOR_STEP);
        let warp = of(&mut outside.iter().filter_map(|&t| self.warps[t as usize])).max(FLOOR_WARP);
        Ok((0..self.seams.len())
            .map(|seam| self.score(seam, step, warp))
            .collect())
    }

    fn score(&self, seam: usize, step: f64, warp: f64) -> SeamScore {
        let (first, overlap) = self.seams[seam];
        let from = first.saturating_sub(1) as usize;
        let to = ((first + overlap) as usize).min(self.steps.len());
        let peak = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        SeamScore {
            frame: first,
            method: self.method.name().to_owned(),
            seam_ratio: peak(&mut self.steps[from.min(to)..to].iter().copied()) / step,
            warp_ratio: peak(&mut self.warps[from.min(to)..to].iter().flatten().copied()) / warp,
            sharpness: self.relative_sharpness(first, overlap),
        }
    }

    /// Lowest moving mean of the sharpness in the overlap over the lower of its means over up to
    /// a second on either side, without frames of other overlaps.
    fn relative_sharpness(&self, first: u32, overlap: u32) -> f64 {
        let inside = &self.sharpness[first as usize..(first + overlap) as usize];
        let lowest = inside
            .windows(SHARPNESS_WINDOW.min(inside.len()))
            .map(mean)
            .fold(f64::INFINITY, f64::min);
        let end = first + overlap;
        // The nearest cut on either side; one may lie on the very edge of the overlap.
        let cut = self.cuts.partition_point(|&cut| cut <= first);
        let begin = cut.checked_sub(1).map_or(0, |cut| self.cuts[cut]);
        let stop = self.cuts.get(cut).copied().unwrap_or(self.frames);
        let before = first.saturating_sub(self.surround).max(begin)..first;
        let after = end..end.saturating_add(self.surround).min(stop).min(self.frames);
        let free = |frame: &u32| {
            !self
                .seams
                .iter()
                .any(|&(first, overlap)| (first..first + overlap).contains(frame))
        };
        let beside = [before, after]
            .into_iter()
            .map(|side| {
                side.filter(free)
                    .map(|f| self.sharpness[f as usize])
                    .collect::<Vec<_>>()
            })
            .filter(|side| !side.is_empty())
            .map(|side| mean(&side))
            .fold(f64::INFINITY, f64::min);
        if beside.is_finite() {
            lowest / beside
        } else {
            1.0
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// 95th percentile with linear interpolation between order statistics; 0 of nothing.
fn percentile_95(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let place = 0.95 * last as f64;
    let (below, part) = (place as usize, place.fract());
    values[below] + part * (values[(below + 1).min(last)] - values[below])
}

fn mean_step(a: &Plane, b: &Plane) -> f64 {
    let total: f64 = a
        .data
        .iter()
        .zip(&b.data)
        .map(|(a, b)| f64::from((a - b).abs()))
        .sum();
    total / a.data.len().max(1) as f64
}

/// Detail over contrast: root of the energy of the Laplacian of R, G and B over the energy of
/// their differences between pixels eight times as large. A change of contrast or of the amount of
/// edges moves both; blur and ghosts of a few pixels only the first.
fn sharpness(frame: &Frame) -> f64 {
    let (mut fine, mut coarse) = (0.0, 0.0);
    for c in 0..3 {
        let mut weights = [0.0; 3];
        weights[c] = 1.0;
        let mut plane = project(frame, weights);
        fine += laplacian_energy(&plane);
        for _ in 0..COARSE_HALVINGS {
            if plane.width.min(plane.height) < 2 * COARSE_SMALLEST {
                break;
            }
            plane = plane.halved();
        }
        coarse += step_energy(&plane);
    }
    ((fine + FLOOR_ENERGY) / (coarse + FLOOR_ENERGY)).sqrt()
}

/// Mean square of the discrete Laplacian over all inner pixels.
fn laplacian_energy(p: &Plane) -> f64 {
    if p.width < 3 || p.height < 3 {
        return 0.0;
    }
    let row_energy = |y: usize| {
        let (up, mid, down) = (p.row(y - 1), p.row(y), p.row(y + 1));
        let square = |x: usize| {
            let l = up[x] + down[x] + mid[x - 1] + mid[x + 1] - 4.0 * mid[x];
            l * l
        };
        f64::from((1..p.width - 1).map(square).sum::<f32>())
    };
    let total: f64 = (1..p.height - 1).map(row_energy).sum();
    total / ((p.width - 2) * (p.height - 2)) as f64
}

/// Mean over all pixels of the squared differences to the right and lower neighbours.
fn step_energy(p: &Plane) -> f64 {
    let square = |a: f32, b: f32| f64::from((a - b) * (a - b));
    let mut total = 0.0;
    for y in 0..p.height {
        let row = p.row(y);
        total += row.windows(2).map(|w| square(w[0], w[1])).sum::<f64>();
        if y + 1 < p.height {
            total += row
                .iter()
                .zip(p.row(y + 1))
                .map(|(&a, &b)| square(a, b))
                .sum::<f64>();
        }
    }
    total / p.data.len().max(1) as f64
}

/// Mean of min(|Y' - Y warped|, cap) over the pixels of the later frame that the earlier one shows,
/// weighted by the trust in the flow between them.
fn warp_error(last: &mut Last, now: &mut Last) -> f64 {
    let (before, after) = (last.small(), now.small());
    let flows = both_ways(before, after, &FlowParams::FAST);
    let (a, b) = (before.finest(), after.finest());
    let (mut total, mut weights) = (0.0f64, 0.0f64);
    for y in 0..b.height {
        for x in 0..b.width {
            let trust = flows.backward_trust.at(x, y);
            if trust > 0.0 {
                let (u, v) = (flows.backward.u.at(x, y), flows.backward.v.at(x, y));
                let from = a.sample(x as f32 + u, y as f32 + v);
                total += f64::from(trust * (b.at(x, y) - from).abs().min(WARP_CAP));
                weights += f64::from(trust);
            }
        }
    }
    if weights > 0.0 {
        total / weights
    } else {
        f64::from(WARP_CAP)
    }
}
