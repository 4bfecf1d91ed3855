//! Dense optical flow without learned weights.
//!
//! Coarse to fine over an image pyramid: small patches are aligned by inverse compositional search
//! (Kroeger et al., "Fast optical flow using dense inverse search", 2016), their motions are merged
//! per pixel, and a variational step (Brox et al. 2004: robust brightness and gradient constancy,
//! robust smoothness) makes the field smooth where pictures are flat and sharp at moving edges.
//!
//! Both pictures are first projected on the colour axis along which their edges are strongest, so
//! that a blue ball of the same brightness as the lawn behind it still moves.

mod patch;
mod refine;

use crate::plane::{LUMA, Plane, Tap, project, rows_per_task};
use longtake_common::{Frame, Sample};
use rayon::prelude::*;

/// Motion from each pixel of one picture to where the other one shows the same thing.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowField {
    pub(crate) u: Plane,
    pub(crate) v: Plane,
}

impl FlowField {
    /// No motion anywhere.
    pub fn still(width: u32, height: u32) -> Self {
        let zero = Plane::filled(width as usize, height as usize, 0.0);
        Self {
            u: zero.clone(),
            v: zero,
        }
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.u.width as u32
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.u.height as u32
    }

    /// Motion (right, down) in pixels at (`x`, `y`). Panics outside the picture, as slices do.
    pub fn at(&self, x: u32, y: u32) -> (f32, f32) {
        (
            self.u.at(x as usize, y as usize),
            self.v.at(x as usize, y as usize),
        )
    }

    /// Motion at a point between pixels.
    #[inline]
    pub(crate) fn sample(&self, x: f32, y: f32) -> (f32, f32) {
        let tap = Tap::new(self.u.width, self.u.height, x, y);
        (tap.of(&self.u), tap.of(&self.v))
    }

    /// The field of the picture one pyramid level finer.
    fn doubled(&self, width: usize, height: usize) -> Self {
        Self {
            u: self.u.doubled(width, height, 2.0),
            v: self.v.doubled(width, height, 2.0),
        }
    }
}

/// How much work goes into a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowParams {
    /// Halvings after which patches are no longer searched: 0 is the full size.
    pub finest_search: usize,
    /// Halvings after which the field is no longer refined, at most `finest_search`.
    pub finest_refine: usize,
    /// Pixels between neighbouring patches, 1 to 8.
    pub stride: usize,
    /// Most steps of a patch's search.
    pub search_steps: usize,
    /// Linearisations of the variational step at each level.
    pub warps: usize,
    /// Updates of the robust weights for each linearisation.
    pub reweights: usize,
    /// Relaxation sweeps for each update.
    pub sweeps: usize,
}

impl FlowParams {
    /// For joining: about 0.15 px mean error for motions of 12 px.
    pub const ACCURATE: Self = Self {
        finest_search: 0,
        finest_refine: 0,
        stride: 4,
        search_steps: 12,
        warps: 1,
        reweights: 3,
        sweeps: 5,
    };

    /// For measuring and tracking: several times faster.
    pub const FAST: Self = Self {
        finest_refine: 1,
        search_steps: 8,
        reweights: 2,
        ..Self::ACCURATE
    };
}

/// Flows both ways, and how far each can be trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct Bidirectional {
    /// From the first picture to the second.
    pub forward: FlowField,
    /// From the second picture to the first.
    pub backward: FlowField,
    pub(crate) forward_trust: Plane,
    pub(crate) backward_trust: Plane,
}

impl Bidirectional {
    /// Trust in `forward` at (`x`, `y`): 1 where going there and back ends at the start, 0 where
    /// the pixel is hidden in the other picture.
    pub fn forward_trust(&self, x: u32, y: u32) -> f32 {
        self.forward_trust.at(x as usize, y as usize)
    }

    /// Trust in `backward` at (`x`, `y`).
    pub fn backward_trust(&self, x: u32, y: u32) -> f32 {
        self.backward_trust.at(x as usize, y as usize)
    }
}

/// Flow from `a` to `b`, which must be of one size: `b(x + u, y + v)` shows what `a(x, y)` does.
pub fn flow<S: Sample>(a: &Frame<S>, b: &Frame<S>, params: &FlowParams) -> FlowField {
    assert_eq!(
        (a.width(), a.height()),
        (b.width(), b.height()),
        "pictures of one size"
    );
    let axis = contrast_axis(&[a, b]);
    flow_between(
        &Pyramid::new(project(a, axis)),
        &Pyramid::new(project(b, axis)),
        params,
    )
}

/// Flows between `a` and `b` both ways.
pub fn bidirectional<S: Sample>(a: &Frame<S>, b: &Frame<S>, params: &FlowParams) -> Bidirectional {
    assert_eq!(
        (a.width(), a.height()),
        (b.width(), b.height()),
        "pictures of one size"
    );
    let axis = contrast_axis(&[a, b]);
    both_ways(
        &Pyramid::new(project(a, axis)),
        &Pyramid::new(project(b, axis)),
        params,
    )
}

pub(crate) fn both_ways(a: &Pyramid, b: &Pyramid, params: &FlowParams) -> Bidirectional {
    let (forward, backward) =
        rayon::join(|| flow_between(a, b, params), || flow_between(b, a, params));
    let forward_trust = trust(&forward, &backward);
    let backward_trust = trust(&backward, &forward);
    Bidirectional {
        forward,
        backward,
        forward_trust,
        backward_trust,
    }
}

/// A picture and its halvings, finest first.
pub(crate) struct Pyramid {
    levels: Vec<Plane>,
}

impl Pyramid {
    /// Smallest side that is still halved, in pixels: two patches must fit into the result.
    const SMALLEST: usize = 2 * patch::SIZE;

    pub(crate) fn new(plane: Plane) -> Self {
        let mut levels = vec![plane];
        while let Some(last) = levels.last() {
            if last.width.min(last.height) / 2 < Self::SMALLEST {
                break;
            }
            let half = last.halved();
            levels.push(half);
        }
        Self { levels }
    }

    /// The picture itself.
    pub(crate) fn finest(&self) -> &Plane {
        &self.levels[0]
    }
}

pub(crate) fn flow_between(a: &Pyramid, b: &Pyramid, params: &FlowParams) -> FlowField {
    let full = &a.levels[0];
    let mut field: Option<FlowField> = None;
    if full.data.is_empty() || a.levels[0] == b.levels[0] {
        return FlowField::still(full.width as u32, full.height as u32);
    }
    let coarsest = a.levels.len() - 1;
    let finest_refine = params.finest_refine.min(coarsest);
    for level in (finest_refine..=coarsest).rev() {
        let (a, b) = (&a.levels[level], &b.levels[level]);
        let mut now = match &field {
            Some(coarse) => coarse.doubled(a.width, a.height),
            None => FlowField::still(a.width as u32, a.height as u32),
        };
        if level >= params.finest_search || level == coarsest {
            now = patch::search(a, b, now, params);
        }
        field = Some(refine::refine(a, b, now, params));
    }
    let mut field = field.expect("at least one level");
    for level in a.levels[..finest_refine].iter().rev() {
        field = field.doubled(level.width, level.height);
    }
    field
}

/// Colour axis (weights of R, G, B, absolute values summing to 1) with the strongest edges: the
/// first eigenvector of the covariance of all horizontal and vertical differences, with a little
/// luma mixed in so that grey pictures are well defined.
pub(crate) fn contrast_axis<S: Sample>(frames: &[&Frame<S>]) -> [f32; 3] {
    let mut cov = [[0.0f64; 3]; 3];
    for frame in frames {
        let rows: Vec<[[f64; 3]; 3]> = (0..frame.height().saturating_sub(1) as usize)
            .into_par_iter()
            .with_min_len(rows_per_task(3 * frame.width() as usize))
            .map(|y| row_covariance(frame, y))
            .collect();
        for row in rows {
            for (i, j) in (0..9).map(|k| (k / 3, k % 3)) {
                cov[i][j] += row[i][j];
            }
        }
    }
    let trace = cov[0][0] + cov[1][1] + cov[2][2] + 1.0;
    let prior = LUMA.map(f64::from);
    let mut axis = prior;
    for _ in 0..24 {
        let mut next = [0.0; 3];
        for i in 0..3 {
            let along: f64 = (0..3).map(|j| cov[i][j] * axis[j]).sum();
            let luma: f64 = (0..3).map(|j| prior[j] * axis[j]).sum();
            next[i] = along / trace + 0.02 * prior[i] * luma;
        }
        let norm: f64 = next.iter().map(|v| v.abs()).sum();
        if norm <= 0.0 {
            return LUMA;
        }
        axis = next.map(|v| v / norm);
    }
    axis.map(|v| v as f32)
}

fn row_covariance<S: Sample>(frame: &Frame<S>, y: usize) -> [[f64; 3]; 3] {
    let stride = 3 * frame.width() as usize;
    let row = &frame.data()[y * stride..(y + 1) * stride];
    let below = &frame.data()[(y + 1) * stride..(y + 2) * stride];
    let byte = |sample: S| i64::from(sample.to_u8());
    // Differences of bytes: sums of their products over a row fit i64 by far.
    let mut sums = [0i64; 6];
    for x in 0..(frame.width() as usize).saturating_sub(1) {
        for other in [&row[3 * x + 3..3 * x + 6], &below[3 * x..3 * x + 3]] {
            let d = [0, 1, 2].map(|c| byte(other[c]) - byte(row[3 * x + c]));
            let products = [
                d[0] * d[0],
                d[0] * d[1],
                d[0] * d[2],
                d[1] * d[1],
                d[1] * d[2],
                d[2] * d[2],
            ];
            sums.iter_mut().zip(products).for_each(|(s, p)| *s += p);
        }
    }
    let s = sums.map(|v| v as f64);
    [[s[0], s[1], s[2]], [s[1], s[3], s[4]], [s[2], s[4], s[5]]]
}

/// Trust in `there`: falls from 1 to 0 as the way there and back misses the start by more than
/// about half a pixel plus a tenth of the motion, and is 0 where the motion leaves the picture.
fn trust(there: &FlowField, back: &FlowField) -> Plane {
    let (w, h) = (there.u.width, there.u.height);
    Plane::from_rows(w, h, |y, out| {
        for (x, out) in out.iter_mut().enumerate() {
            let (u, v) = (there.u.at(x, y), there.v.at(x, y));
            let (tx, ty) = (x as f32 + u, y as f32 + v);
            let inside = tx > -1.0 && ty > -1.0 && tx < w as f32 && ty < h as f32;
            let (bu, bv) = back.sample(tx, ty);
            let miss = (u + bu) * (u + bu) + (v + bv) * (v + bv);
            let allowed = 0.25 + 0.01 * (u * u + v * v + bu * bu + bv * bv);
            *out = if inside {
                (2.0 - miss / allowed).clamp(0.0, 1.0)
            } else {
                0.0
            };
        }
    })
}
