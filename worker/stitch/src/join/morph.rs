//! The join along optical flow.
//!
//! At every moment of the overlap both windows show the same scene in slightly different places,
//! colours and textures. Four things move from left to right at their own pace:
//! *exposure* and *place* slowly, over the overlap and the frames after it, so that neither light
//! nor motion steps; *texture* over the overlap, pixel on matching pixel; what has no match
//! in the middle of the overlap, quickly, because a long average of different things is a ghost.

use super::detail;
use super::exposure::{AlignedPoints, Exposure};
use super::picture::Picture;
use super::share;
use super::steady::Steady;
use super::times::{JoinPart, JoinTimes};
use crate::flow::{
    Bidirectional, FlowField, FlowParams, Pyramid, both_ways, contrast_axis, flow_between,
};
use crate::plane::{Plane, project, rows_per_task};
use longtake_common::{Frame, Sample};
use rayon::prelude::*;

/// Frames that a change of something without a match takes.
const QUICK_FRAMES: f32 = 4.0;
/// Displacement that fades by so many pixels a frame is not seen, in a picture of [`SIDE`] pixels
/// and, in proportion, in larger ones. A slow object moves by less than two pixels a frame, and a
/// fiftieth of a pixel more is the unevenness that its motion has anyway.
const DRIFT_PER_FRAME: f32 = 0.02;
/// See [`DRIFT_PER_FRAME`].
const SIDE: f32 = 256.0;
/// Pixels of a picture above which frames are worked on one after another, to save memory.
const LARGE: usize = 1 << 21;

pub(super) fn join<S: Sample>(
    lead: &[Frame<S>],
    left: &[Frame<S>],
    right: &[Frame<S>],
    times: &JoinTimes,
) -> Vec<Frame<S>> {
    let plan = Plan::new(left, right, times);
    let mut out = Vec::with_capacity(lead.len() + right.len());
    let mut place = None;
    let mut steady = Steady::new(lead.len(), left.len(), right.len() - left.len());
    let as_it_is = |frame: &Frame<S>| Picture::new(frame, &Exposure::NONE);
    for frame in lead {
        out.extend(times.time(JoinPart::Steady, || steady.push(as_it_is(frame))));
    }
    for batch in batches(0..left.len(), &right[0]) {
        let done: Vec<_> = batch
            .into_par_iter()
            .map(|k| {
                let (left, right) = (&left[k], &right[k]);
                let match_ = times.time(JoinPart::Flow, || Match::new(left, right, &plan.exposure));
                let picture = times.time(JoinPart::Blend, || {
                    plan.overlap_picture(k, left, right, &match_)
                });
                (picture, match_.to_left)
            })
            .collect();
        for (picture, to_left) in done {
            out.extend(times.time(JoinPart::Steady, || steady.push(picture)));
            place = Some(to_left);
        }
    }
    let mut tracked = Tracked::new(place.expect("an overlap of at least one frame"));
    for batch in batches(left.len()..right.len(), &right[0]) {
        let flows: Vec<_> = batch
            .clone()
            .into_par_iter()
            .map(|k| {
                let follow = || back(&right[k], &right[k - 1]);
                plan.displaced(k)
                    .then(|| times.time(JoinPart::Flow, follow))
            })
            .collect();
        let fields: Vec<_> = flows
            .iter()
            .map(|f| times.time(JoinPart::Flow, || f.as_ref().map(|f| tracked.step(f))))
            .collect();
        let frames: Vec<_> = batch
            .into_par_iter()
            .zip(&fields)
            .map(|(k, field)| {
                let relax = || plan.relaxed_frame(k, &right[k], field.as_ref());
                times.time(JoinPart::Blend, relax)
            })
            .collect();
        for frame in &frames {
            out.extend(times.time(JoinPart::Steady, || steady.push(as_it_is(frame))));
        }
    }
    out.extend(times.time(JoinPart::Steady, || steady.finish()));
    out
}

/// Frames that are worked on together: as many as there are threads, or one of large pictures.
/// Results do not depend on it.
fn batches<S: Sample>(range: std::ops::Range<usize>, frame: &Frame<S>) -> Vec<Vec<usize>> {
    let pixels = frame.width() as usize * frame.height() as usize;
    let size = if pixels > LARGE {
        1
    } else {
        2 * rayon::current_num_threads()
    };
    range
        .collect::<Vec<_>>()
        .chunks(size)
        .map(<[usize]>::to_vec)
        .collect()
}

/// Motion from `now` to the frame before it.
fn back<S: Sample>(now: &Frame<S>, before: &Frame<S>) -> FlowField {
    let axis = contrast_axis(&[now, before]);
    let pyramid = |f: &Frame<S>| Pyramid::new(project(f, axis));
    flow_between(&pyramid(now), &pyramid(before), &FlowParams::FAST)
}

/// From 0 at 0 to 1 at 1, a little slower at both ends; never steeper than 1.25.
fn ramp(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    0.5 * t + 0.5 * t * t * (3.0 - 2.0 * t)
}

/// What is decided once for the whole seam.
struct Plan {
    overlap: usize,
    total: usize,
    exposure: Exposure,
    /// Frames after which the right window's own geometry is reached.
    place_frames: usize,
}

impl Plan {
    fn new<S: Sample>(left: &[Frame<S>], right: &[Frame<S>], times: &JoinTimes) -> Self {
        let (overlap, total) = (left.len(), right.len());
        let guess = times.time(JoinPart::Exposure, || {
            Exposure::from_histograms(left, &right[..overlap])
        });
        let mut probes = vec![0, overlap / 2, overlap - 1];
        probes.dedup();
        let matches: Vec<Match> = probes
            .par_iter()
            .map(|&k| times.time(JoinPart::Flow, || Match::new(&left[k], &right[k], &guess)))
            .collect();
        let exposure = times.time(JoinPart::Exposure, || {
            let mut points = AlignedPoints::default();
            for (&k, m) in probes.iter().zip(&matches) {
                points.add(&left[k], &right[k], &m.to_right, &m.left_certain);
            }
            points.exposure(&guess).unwrap_or(Exposure::NONE)
        });
        let displacement = matches
            .iter()
            .map(|m| m.typical_displacement())
            .fold(0.0, f32::max);
        let side = left[0].width().min(left[0].height()) as f32;
        let rate = DRIFT_PER_FRAME * (side / SIDE).max(1.0);
        let wanted = (displacement / rate).ceil() as usize;
        let place_frames = wanted.clamp(overlap, total.max(overlap + 1) - 1).max(1);
        Self {
            overlap,
            total,
            exposure,
            place_frames,
        }
    }

    /// Share of the right window's geometry in frame `k`.
    fn place(&self, k: usize) -> f32 {
        let steps = if self.total == self.overlap {
            self.total
        } else {
            self.place_frames + 1
        };
        ramp((k + 1) as f32 / steps as f32)
    }

    /// Whether frame `k`, after the overlap, is still displaced.
    fn displaced(&self, k: usize) -> bool {
        self.place(k) < 1.0
    }

    /// Share of the left window's exposure in frame `k`.
    fn left_exposure(&self, k: usize) -> f32 {
        1.0 - ramp((k + 1) as f32 / self.total as f32)
    }

    /// The right window's frame `k` in the exposure that the film has there.
    fn right_picture<S: Sample>(&self, k: usize, right: &Frame<S>) -> Picture {
        Picture::new(right, &self.exposure.scaled(self.left_exposure(k)))
    }

    fn overlap_picture<S: Sample>(
        &self,
        k: usize,
        left: &Frame<S>,
        right: &Frame<S>,
        m: &Match,
    ) -> Picture {
        let strength = self.left_exposure(k);
        let left = Picture::new(left, &self.exposure.inverse().scaled(1.0 - strength));
        let right = self.right_picture(k, right);
        let place = self.place(k);
        let from_left = Origins::new(&m.to_right, place);
        let from_right = Origins::new(&m.to_left, 1.0 - place);
        let slow = share(k, self.overlap, self.total - self.overlap);
        let quick = quick_share(slow, self.overlap);
        let certain = from_left.plane(&m.left_certain);
        let mut certain = certain
            .zip(&from_right.plane(&m.right_certain), f32::min)
            .box_mean(2);
        certain
            .data
            .iter_mut()
            .for_each(|c| *c = quick + c.clamp(0.0, 1.0) * (slow - quick));
        let share = certain;
        let mixed = detail::mix(
            &from_left.picture(&left),
            &from_right.picture(&right),
            &share,
        );
        let mut wanted = from_left.plane(&detail::energy(&left));
        let other = from_right.plane(&detail::energy(&right));
        for ((l, r), s) in wanted.data.iter_mut().zip(&other.data).zip(&share.data) {
            *l += s * (r - *l);
        }
        detail::restored(&mixed, &wanted)
    }

    fn relaxed_frame<S: Sample>(
        &self,
        k: usize,
        right: &Frame<S>,
        to_left: Option<&FlowField>,
    ) -> Frame<S> {
        let strength = self.left_exposure(k);
        let rest = 1.0 - self.place(k);
        if strength == 0.0 && rest == 0.0 {
            return right.clone();
        }
        let picture = self.right_picture(k, right);
        let Some(field) = to_left else {
            return picture.to_frame();
        };
        let origins = Origins::new(field, rest);
        let wanted = origins.plane(&detail::energy(&picture));
        detail::restored(&origins.picture(&picture), &wanted).to_frame()
    }
}

/// The share of the right window where nothing matches: all left or all right but for a few
/// frames in the middle.
fn quick_share(slow: f32, overlap: usize) -> f32 {
    let width = (QUICK_FRAMES / (overlap + 1) as f32).min(1.0);
    let t = ((slow - 0.5) / width + 0.5).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Where each pixel of a moved picture comes from.
struct Origins {
    x: Plane,
    y: Plane,
}

impl Origins {
    /// For a picture moved by `amount` of `field`, which starts in it.
    fn new(field: &FlowField, amount: f32) -> Self {
        let (w, h) = (field.u.width, field.u.height);
        let mut y_origin = Plane::filled(w, h, 0.0);
        let mut x_origin = Plane::filled(w, h, 0.0);
        let rows = x_origin
            .data
            .par_chunks_mut(w)
            .zip(y_origin.data.par_chunks_mut(w));
        rows.with_min_len(rows_per_task(w))
            .enumerate()
            .for_each(|(y, (xs, ys))| {
                for x in 0..w {
                    let (px, py) = (x as f32, y as f32);
                    let (mut u, mut v) = (field.u.at(x, y), field.v.at(x, y));
                    // The motion is known where it starts; find the start that ends here.
                    for _ in 0..3 {
                        (u, v) = field.sample(px - amount * u, py - amount * v);
                    }
                    xs[x] = px - amount * u;
                    ys[x] = py - amount * v;
                }
            });
        Self {
            x: x_origin,
            y: y_origin,
        }
    }

    fn picture(&self, picture: &Picture) -> Picture {
        Picture::from_rows(picture.width, picture.height, |y, out| {
            for ((out, x), y) in out.iter_mut().zip(self.x.row(y)).zip(self.y.row(y)) {
                *out = picture.sample(*x, *y);
            }
        })
    }

    fn plane(&self, plane: &Plane) -> Plane {
        self.x.zip(&self.y, |x, y| plane.sample(x, y))
    }
}

/// How one moment of the left window lies on the same moment of the right one.
struct Match {
    to_right: FlowField,
    to_left: FlowField,
    /// 1 where the left picture's pixel was found in the right one and looks the same.
    left_certain: Plane,
    right_certain: Plane,
    left_edges: Plane,
}

impl Match {
    fn new<S: Sample>(left: &Frame<S>, right: &Frame<S>, exposure: &Exposure) -> Self {
        let axis = contrast_axis(&[left, right]);
        let a = project(left, axis);
        let gains = std::array::from_fn(|c| axis[c] * exposure.gain[c]);
        let offset: f32 = (0..3).map(|c| axis[c] * exposure.offset[c]).sum();
        let mut b = project(right, gains);
        b.data.iter_mut().for_each(|v| *v += offset);
        let (a, b) = (Pyramid::new(a), Pyramid::new(b));
        let Bidirectional {
            mut forward,
            mut backward,
            forward_trust,
            backward_trust,
        } = both_ways(&a, &b, &FlowParams::ACCURATE);
        let (a, b) = (a.finest(), b.finest());
        let (left_edges, right_edges) = (edges(a), edges(b));
        let left_certain = certainty(a, b, &left_edges, &forward, &forward_trust);
        let right_certain = certainty(b, a, &right_edges, &backward, &backward_trust);
        restrain(&mut forward, &left_edges, &left_certain);
        restrain(&mut backward, &right_edges, &right_certain);
        Self {
            to_right: forward,
            to_left: backward,
            left_certain,
            right_certain,
            left_edges,
        }
    }

    /// Length that nine tenths of the trusted edge pixels' displacements do not exceed.
    fn typical_displacement(&self) -> f32 {
        let (us, vs) = (&self.to_right.u.data, &self.to_right.v.data);
        let weights = self.left_edges.data.iter().zip(&self.left_certain.data);
        let mut lengths: Vec<(f32, f32)> = us
            .iter()
            .zip(vs)
            .zip(weights)
            .map(|((u, v), (e, c))| ((u * u + v * v).sqrt(), e * c))
            .filter(|&(_, weight)| weight > 0.0)
            .collect();
        lengths.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wanted = 0.9 * lengths.iter().map(|l| f64::from(l.1)).sum::<f64>();
        let mut sum = 0.0;
        for (length, weight) in lengths {
            sum += f64::from(weight);
            if sum >= wanted {
                return length;
            }
        }
        0.0
    }
}

/// How much of an edge there is at a pixel, beyond noise; at most 20 grey levels count.
fn edge(p: &Plane, x: usize, y: usize) -> f32 {
    let (left, up) = (x.saturating_sub(1), y.saturating_sub(1));
    let (dx, dy) = (p.at(x, y) - p.at(left, y), p.at(x, y) - p.at(x, up));
    ((dx * dx + dy * dy).sqrt() - 1.0).clamp(0.0, 20.0)
}

/// [`edge`] at every pixel of a slightly blurred picture: structure that both windows should
/// show, not grain.
fn edges(picture: &Plane) -> Plane {
    let smooth = picture.box_mean(1);
    Plane::from_rows(picture.width, picture.height, |y, out| {
        for (x, out) in out.iter_mut().enumerate() {
            *out = edge(&smooth, x, y);
        }
    })
}

/// How sure it is that a pixel of `a` is where `flow` says in `b`: the colours around it agree on
/// average (grain may differ), and the flow is to be trusted or there is no structure to misplace.
fn certainty(a: &Plane, b: &Plane, edges: &Plane, flow: &FlowField, trust: &Plane) -> Plane {
    let difference = Plane::from_rows(a.width, a.height, |y, out| {
        for (x, out) in out.iter_mut().enumerate() {
            let to = b.sample(x as f32 + flow.u.at(x, y), y as f32 + flow.v.at(x, y));
            *out = a.at(x, y) - to;
        }
    });
    let difference = difference.box_mean(2);
    let alike = |d: f32| (1.0 - (d.abs() - 8.0) / 16.0).clamp(0.0, 1.0);
    let plain = edges.box_mean(2);
    let found = plain.zip(trust, |e, t| t.max(1.0 - e.clamp(0.0, 1.0)));
    difference.zip(&found, |d, found| alike(d) * found)
}

/// Takes motion out of neighbourhoods where most structure was not found: better a dissolve in
/// place than a picture bent by a guess.
fn restrain(flow: &mut FlowField, edges: &Plane, certain: &Plane) {
    let radius = (edges.width.min(edges.height) / 16).max(4);
    let weights = edges.zip(certain, |e, _| e + 0.02);
    let found = edges.zip(certain, |e, c| (e + 0.02) * c).box_mean(radius);
    let known = weights.box_mean(radius).zip(&found, |w, f| {
        ((f / w.max(1e-6) - 0.3) / 0.3).clamp(0.0, 1.0)
    });
    for field in [&mut flow.u, &mut flow.v] {
        field
            .data
            .iter_mut()
            .zip(&known.data)
            .for_each(|(v, k)| *v *= k);
    }
}

/// The right window's displacement at the end of the overlap, carried along with its motion.
struct Tracked {
    to_left: FlowField,
    /// Where each pixel of the current frame was at the end of the overlap.
    x: Option<(Plane, Plane)>,
}

impl Tracked {
    fn new(to_left: FlowField) -> Self {
        Self { to_left, x: None }
    }

    /// Goes on to the next frame, given its motion back to the one before.
    fn step(&mut self, back: &FlowField) -> FlowField {
        let (w, h) = (back.u.width, back.u.height);
        let origin = |pick: usize| {
            Plane::from_rows(w, h, |y, out| {
                for (x, out) in out.iter_mut().enumerate() {
                    let (bx, by) = (x as f32 + back.u.at(x, y), y as f32 + back.v.at(x, y));
                    *out = match &self.x {
                        Some((ox, oy)) => [ox, oy][pick].sample(bx, by),
                        None => [bx, by][pick],
                    };
                }
            })
        };
        let (ox, oy) = (origin(0), origin(1));
        let field = |p: &Plane| {
            Plane::from_rows(w, h, |y, out| {
                for (x, out) in out.iter_mut().enumerate() {
                    *out = p.sample(ox.at(x, y), oy.at(x, y));
                }
            })
        };
        let out = FlowField {
            u: field(&self.to_left.u),
            v: field(&self.to_left.v),
        };
        self.x = Some((ox, oy));
        out
    }
}
