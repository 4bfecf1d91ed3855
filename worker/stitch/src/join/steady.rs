//! Taking out of an overlap what comes and goes from frame to frame.
//!
//! Two windows flicker in ways of their own: grain, rounding, edges that a decoder draws a little
//! differently each time. A mixture of both that changes its shares all the time shows more of
//! that than either alone. Each frame becomes a weighted mean of itself and its two neighbours,
//! looked up along the motion; where a neighbour shows something else it has no weight. A frame
//! that has one neighbour only stays as it is: leaning to one side, it would step away from what
//! follows on the other.
//!
//! Calm must not begin or end with a step either: it fades in over the frames before the overlap
//! and out over the frames after it.

use super::detail;
use super::picture::Picture;
use crate::flow::{FlowField, FlowParams, Pyramid, contrast_axis, flow_between};
use crate::plane::{Plane, project};
use longtake_common::{Frame, Sample};
use rayon::prelude::*;

/// Weight of each neighbour at most. With a quarter, noise that is new in every frame changes by
/// a third of what it did from frame to frame.
const NEIGHBOUR: f32 = 0.25;
/// Grey levels of difference up to which a neighbour has its full weight, and from which none.
const SAME: (f32, f32) = (6.0, 18.0);

/// Frames after the overlap over which steadying fades out, at most.
const FADE_FRAMES: usize = 8;

/// How much of a neighbour's weight frame `k` gets, of a lead, an overlap and the frames after it:
/// 1 in the overlap, 0 in the first frame and in the last one after the overlap.
fn strength(k: usize, lead: usize, overlap: usize, relax: usize) -> f32 {
    let fade = relax.min(FADE_FRAMES);
    match k.checked_sub(lead + overlap) {
        Some(after) if after >= fade => 0.0,
        Some(after) => (fade - 1 - after) as f32 / fade as f32,
        None if k < lead => k as f32 / lead as f32,
        None => 1.0,
    }
}

/// Passes a lead, an overlap and the frames after it on, one behind, each steadied by its
/// neighbours.
pub(super) struct Steady {
    lead: usize,
    overlap: usize,
    relax: usize,
    before: Option<Picture>,
    now: Option<Picture>,
    done: usize,
}

impl Steady {
    /// For so many frames before, in and after the overlap.
    pub(super) fn new(lead: usize, overlap: usize, relax: usize) -> Self {
        Self {
            lead,
            overlap,
            relax,
            before: None,
            now: None,
            done: 0,
        }
    }

    /// The frame before `next`, finished; `None` when there is none.
    pub(super) fn push<S: Sample>(&mut self, next: Picture) -> Option<Frame<S>> {
        let now = self.now.replace(next)?;
        let strength = strength(self.done, self.lead, self.overlap, self.relax);
        let frame = match (&self.before, &self.now) {
            (Some(before), Some(after)) if strength > 0.0 => {
                steadied(&now, strength, [before, after])
            }
            _ => now.to_frame(),
        };
        self.done += 1;
        self.before = Some(now);
        Some(frame)
    }

    /// The last frame, as it is.
    pub(super) fn finish<S: Sample>(self) -> Option<Frame<S>> {
        Some(self.now?.to_frame())
    }
}

fn steadied<S: Sample>(now: &Picture, strength: f32, neighbours: [&Picture; 2]) -> Frame<S> {
    let frame: Frame<S> = now.to_frame();
    let seen: Vec<(Picture, Plane)> = neighbours
        .into_par_iter()
        .map(|other| along_motion(now, &frame, strength, other))
        .collect();
    let mut mean = now.clone();
    for (other, weight) in &seen {
        mean = detail::mix_in(&mean, now, other, weight);
    }
    detail::restored(&mean, &detail::energy(now)).to_frame()
}

/// A neighbour's picture where `now` has its pixels, and the weight of each.
fn along_motion<S: Sample>(
    now: &Picture,
    frame: &Frame<S>,
    strength: f32,
    other: &Picture,
) -> (Picture, Plane) {
    let flow = motion(frame, &other.to_frame());
    let moved = Picture::from_rows(now.width, now.height, |y, out| {
        for (x, out) in out.iter_mut().enumerate() {
            let (u, v) = (flow.u.at(x, y), flow.v.at(x, y));
            *out = other.sample(x as f32 + u, y as f32 + v);
        }
    });
    let differs = Plane::from_rows(now.width, now.height, |y, out| {
        for (out, (a, b)) in out.iter_mut().zip(now.row(y).iter().zip(moved.row(y))) {
            *out = (0..3).fold(0.0, |most: f32, c| most.max((a[c] - b[c]).abs()));
        }
    });
    let mut weight = differs.box_mean(1);
    for w in &mut weight.data {
        let same = (1.0 - (*w - SAME.0) / (SAME.1 - SAME.0)).clamp(0.0, 1.0);
        *w = NEIGHBOUR * strength * same;
    }
    (moved, weight)
}

fn motion<S: Sample>(now: &Frame<S>, other: &Frame<S>) -> FlowField {
    let axis = contrast_axis(&[now, other]);
    let pyramid = |f: &Frame<S>| Pyramid::new(project(f, axis));
    flow_between(&pyramid(now), &pyramid(other), &FlowParams::FAST)
}
