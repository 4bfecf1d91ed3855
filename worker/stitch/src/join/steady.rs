//! Taking out of an overlap what comes and goes from frame to frame.
//!
//! Two windows flicker in ways of their own: grain, rounding, edges that a decoder draws a little
//! differently each time. A mixture of both that changes its shares all the time shows more of
//! that than either alone. Each frame becomes a weighted mean of itself and its two neighbours,
//! looked up along the motion; where a neighbour shows something else it has no weight. A frame
//! that has one neighbour only stays as it is: leaning to one side, it would step away from what
//! follows on the other.

use super::detail;
use super::picture::Picture;
use crate::flow::{FlowField, FlowParams, Pyramid, contrast_axis, flow_between};
use crate::plane::{Plane, project};
use longtake_common::Frame;
use rayon::prelude::*;

/// Weight of each neighbour at most. With a quarter, noise that is new in every frame changes by
/// a third of what it did from frame to frame.
const NEIGHBOUR: f32 = 0.25;
/// Grey levels of difference up to which a neighbour has its full weight, and from which none.
const SAME: (f32, f32) = (6.0, 18.0);

/// Passes frames on, one behind, each steadied by its neighbours.
pub(super) struct Steady {
    before: Option<Picture>,
    now: Option<Picture>,
}

impl Steady {
    /// Before the first frame; `before` is the one that it will follow, if known.
    pub(super) fn new(before: Option<Picture>) -> Self {
        Self { before, now: None }
    }

    /// The frame before `next`, finished; `None` when there is none.
    pub(super) fn push(&mut self, next: Picture) -> Option<Frame> {
        let now = self.now.replace(next)?;
        let done = finished(&now, self.before.as_ref(), self.now.as_ref());
        self.before = Some(now);
        Some(done)
    }

    /// The last frame; `after` is the one that will follow it, if known.
    pub(super) fn finish(self, after: Option<Picture>) -> Option<Frame> {
        let now = self.now?;
        Some(finished(&now, self.before.as_ref(), after.as_ref()))
    }
}

fn finished(now: &Picture, before: Option<&Picture>, after: Option<&Picture>) -> Frame {
    match (before, after) {
        (Some(before), Some(after)) => steadied(now, [before, after]),
        _ => now.to_frame(),
    }
}

fn steadied(now: &Picture, neighbours: [&Picture; 2]) -> Frame {
    let frame = now.to_frame();
    let seen: Vec<(Picture, Plane)> = neighbours
        .into_par_iter()
        .map(|other| along_motion(now, &frame, other))
        .collect();
    let mut mean = now.clone();
    for (other, weight) in &seen {
        mean = detail::mix_in(&mean, now, other, weight);
    }
    detail::restored(&mean, &detail::energy(now)).to_frame()
}

/// A neighbour's picture where `now` has its pixels, and the weight of each.
fn along_motion(now: &Picture, frame: &Frame, other: &Picture) -> (Picture, Plane) {
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
        *w = NEIGHBOUR * (1.0 - (*w - SAME.0) / (SAME.1 - SAME.0)).clamp(0.0, 1.0);
    }
    (moved, weight)
}

fn motion(now: &Frame, other: &Frame) -> FlowField {
    let axis = contrast_axis(&[now, other]);
    let pyramid = |f: &Frame| Pyramid::new(project(f, axis));
    flow_between(&pyramid(now), &pyramid(other), &FlowParams::FAST)
}
