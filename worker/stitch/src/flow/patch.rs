//! Inverse search: each patch of `a` finds its place in `b`, then the patches vote per pixel.

use super::{FlowField, FlowParams};
use crate::plane::{Plane, rows_per_task};
use rayon::prelude::*;

/// Side of a patch in pixels.
pub(super) const SIZE: usize = 8;
const AREA: f32 = (SIZE * SIZE) as f32;
/// Pixels that the border is repeated outwards.
const BORDER: usize = 2 * SIZE;
/// Added to the diagonal of a patch's Hessian (squared grey levels a pixel, summed over a patch):
/// keeps patches without contrast where they start.
const STIFFNESS: f32 = 32.0;
/// A search that moves by less than this (pixels) has arrived.
const ARRIVED: f32 = 0.02;

type Samples = [[f32; SIZE]; SIZE];

/// A picture with its border repeated, so that patches may hang over the edge.
struct Padded {
    stride: usize,
    data: Vec<f32>,
    width: usize,
    height: usize,
}

impl Padded {
    fn new(p: &Plane) -> Self {
        let stride = p.width + 2 * BORDER;
        let mut data = vec![0.0; stride * (p.height + 2 * BORDER)];
        for (y, row) in data.chunks_exact_mut(stride).enumerate() {
            let from = p.row_clamped(y as isize - BORDER as isize);
            row[..BORDER].fill(from[0]);
            row[BORDER..BORDER + p.width].copy_from_slice(from);
            row[BORDER + p.width..].fill(from[p.width - 1]);
        }
        Self {
            stride,
            data,
            width: p.width,
            height: p.height,
        }
    }

    /// `len` samples of row `y` from column `x` on, both counted in the picture.
    fn run(&self, x: isize, y: isize, len: usize) -> &[f32] {
        let at = (y + BORDER as isize) as usize * self.stride + (x + BORDER as isize) as usize;
        &self.data[at..at + len]
    }

    /// Bilinear samples of the patch whose corner is at (`x`, `y`), kept within reach of the border.
    fn patch(&self, x: f32, y: f32) -> Samples {
        let reach = SIZE as f32;
        let x = x.clamp(-reach, self.width as f32);
        let y = y.clamp(-reach, self.height as f32);
        let (x0, y0) = (
            (x + reach) as isize - SIZE as isize,
            (y + reach) as isize - SIZE as isize,
        );
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        let (w00, w01) = ((1.0 - fx) * (1.0 - fy), fx * (1.0 - fy));
        let (w10, w11) = ((1.0 - fx) * fy, fx * fy);
        let mut out = [[0.0; SIZE]; SIZE];
        for (j, out) in out.iter_mut().enumerate() {
            let top = self.run(x0, y0 + j as isize, SIZE + 1);
            let bottom = self.run(x0, y0 + j as isize + 1, SIZE + 1);
            for i in 0..SIZE {
                out[i] = w00 * top[i] + w01 * top[i + 1] + w10 * bottom[i] + w11 * bottom[i + 1];
            }
        }
        out
    }
}

/// A patch of `a`, prepared for inverse search.
struct Template {
    values: Samples,
    dx: Samples,
    dy: Samples,
    /// Inverse of the Hessian: xx, xy, yy.
    inverse: [f32; 3],
}

impl Template {
    fn new(a: &Padded, x: usize, y: usize) -> Self {
        let mut t = Self {
            values: [[0.0; SIZE]; SIZE],
            dx: [[0.0; SIZE]; SIZE],
            dy: [[0.0; SIZE]; SIZE],
            inverse: [0.0; 3],
        };
        let x = x as isize;
        for j in 0..SIZE {
            let y = (y + j) as isize;
            let (up, mid, down) = (
                a.run(x, y - 1, SIZE),
                a.run(x - 1, y, SIZE + 2),
                a.run(x, y + 1, SIZE),
            );
            for i in 0..SIZE {
                t.values[j][i] = mid[i + 1];
                t.dx[j][i] = 0.5 * (mid[i + 2] - mid[i]);
                t.dy[j][i] = 0.5 * (down[i] - up[i]);
            }
        }
        let (sx, sy) = (total(&t.dx), total(&t.dy));
        // Residuals have their mean removed, so the gradients' mean does not count either.
        let xx = dot(&t.dx, &t.dx) - sx * sx / AREA + STIFFNESS;
        let yy = dot(&t.dy, &t.dy) - sy * sy / AREA + STIFFNESS;
        let xy = dot(&t.dx, &t.dy) - sx * sy / AREA;
        let det = xx * yy - xy * xy;
        t.inverse = [yy / det, -xy / det, xx / det];
        t
    }

    /// Difference to `b` at an offset, without its mean, and the sum of its squares.
    fn residual(&self, b: &Padded, x: f32, y: f32) -> (Samples, f32) {
        let mut r = b.patch(x, y);
        for (r, t) in r.iter_mut().zip(&self.values) {
            for i in 0..SIZE {
                r[i] -= t[i];
            }
        }
        let mean = total(&r) / AREA;
        for r in &mut r {
            for r in r.iter_mut() {
                *r -= mean;
            }
        }
        let squares = dot(&r, &r);
        (r, squares)
    }
}

/// Sums in eight lanes first: one order everywhere.
fn total(a: &Samples) -> f32 {
    let mut lanes = [0.0f32; SIZE];
    for a in a {
        for i in 0..SIZE {
            lanes[i] += a[i];
        }
    }
    lanes.iter().sum()
}

fn dot(a: &Samples, b: &Samples) -> f32 {
    let mut lanes = [0.0f32; SIZE];
    for (a, b) in a.iter().zip(b) {
        for i in 0..SIZE {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum()
}

/// Where a patch went, and how much each of its pixels believes it.
struct Found {
    u: f32,
    v: f32,
    weight: Samples,
}

/// Refines `start` by searching for every patch of `a` in `b`.
pub(super) fn search(a: &Plane, b: &Plane, start: FlowField, params: &FlowParams) -> FlowField {
    let (w, h) = (a.width, a.height);
    if w < SIZE || h < SIZE {
        return start;
    }
    let stride = params.stride.clamp(1, SIZE);
    let corners = |length: usize| -> Vec<usize> {
        let last = length - SIZE;
        (0..last).step_by(stride).chain([last]).collect()
    };
    let (xs, ys) = (corners(w), corners(h));
    let (pa, pb) = (Padded::new(a), Padded::new(b));
    let patches: Vec<Found> = ys
        .par_iter()
        .with_min_len(rows_per_task(w * SIZE).div_ceil(2))
        .flat_map_iter(|&y| {
            let (pa, pb, start) = (&pa, &pb, &start);
            xs.iter().map(move |&x| find(pa, pb, x, y, start, params))
        })
        .collect();
    merge(&xs, &ys, &patches, w, h)
}

fn find(
    a: &Padded,
    b: &Padded,
    x: usize,
    y: usize,
    start: &FlowField,
    params: &FlowParams,
) -> Found {
    let t = Template::new(a, x, y);
    let (px, py) = (x as f32, y as f32);
    let centre = (px + 3.5, py + 3.5);
    let (mut u, mut v) = start.sample(centre.0, centre.1);
    let (mut r, mut cost) = t.residual(b, px + u, py + v);
    // The neighbourhood may know better, across a moving edge above all.
    let reach = SIZE as f32;
    for (dx, dy) in [(-reach, 0.0), (reach, 0.0), (0.0, -reach), (0.0, reach)] {
        let (nu, nv) = start.sample(centre.0 + dx, centre.1 + dy);
        if (nu - u).abs() + (nv - v).abs() < 0.5 {
            continue;
        }
        let (nr, ncost) = t.residual(b, px + nu, py + nv);
        if ncost < 0.9 * cost {
            (u, v, r, cost) = (nu, nv, nr, ncost);
        }
    }
    let (u0, v0) = (u, v);
    for _ in 0..params.search_steps {
        let (gx, gy) = (dot(&t.dx, &r), dot(&t.dy, &r));
        let step_u = t.inverse[0] * gx + t.inverse[1] * gy;
        let step_v = t.inverse[1] * gx + t.inverse[2] * gy;
        let (nu, nv) = (u - step_u, v - step_v);
        if (nu - u0).abs().max((nv - v0).abs()) > reach {
            break;
        }
        let (nr, ncost) = t.residual(b, px + nu, py + nv);
        if ncost >= cost {
            break;
        }
        (u, v, r, cost) = (nu, nv, nr, ncost);
        if step_u.abs() + step_v.abs() < ARRIVED {
            break;
        }
    }
    let weight = r.map(|row| row.map(|r| 1.0 / r.abs().max(1.0)));
    Found { u, v, weight }
}

/// Each pixel's motion is the mean over the patches that cover it, weighted by how well they fit.
fn merge(xs: &[usize], ys: &[usize], patches: &[Found], w: usize, h: usize) -> FlowField {
    let mut field = FlowField::still(w as u32, h as u32);
    let rows = field
        .u
        .data
        .par_chunks_mut(w)
        .zip(field.v.data.par_chunks_mut(w));
    rows.with_min_len(rows_per_task(w))
        .enumerate()
        .for_each(|(y, (us, vs))| {
            let mut sums = vec![0.0f32; w];
            let covering = ys
                .iter()
                .enumerate()
                .filter(|&(_, &top)| top <= y && y < top + SIZE);
            for (j, &top) in covering {
                for (found, &x) in patches[j * xs.len()..].iter().zip(xs) {
                    let weight = &found.weight[y - top];
                    for i in 0..SIZE {
                        us[x + i] += weight[i] * found.u;
                        vs[x + i] += weight[i] * found.v;
                        sums[x + i] += weight[i];
                    }
                }
            }
            for ((u, v), sum) in us.iter_mut().zip(vs).zip(&sums) {
                *u /= sum;
                *v /= sum;
            }
        });
    field
}
