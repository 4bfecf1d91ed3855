//! The variational step: the field that minimises, over all pixels,
//! `DATA psi(brightness error) + GRADIENT psi(gradient error) + SMOOTH psi(gradient of the flow)`
//! with the robust penalty `psi(s^2) = 2 sqrt(s^2 + EPS^2)` (Brox et al. 2004), the data terms
//! normalised by the local gradient as Zimmer et al. 2011 do, so that they are distances in pixels.

use super::{FlowField, FlowParams};
use crate::plane::{Plane, rows_per_task};
use rayon::prelude::*;

const DATA: f32 = 5.0;
const GRADIENT: f32 = 10.0;
const SMOOTH: f32 = 20.0;
const EPS: f32 = 0.01;
/// Gradients (grey levels a pixel) well below this are noise, not texture.
const NOISE: f32 = 1.0;
/// Over-relaxation.
const OMEGA: f32 = 1.6;

/// Refines `start` for the pictures `a` and `b`.
pub(super) fn refine(a: &Plane, b: &Plane, start: FlowField, params: &FlowParams) -> FlowField {
    let mut field = start;
    for _ in 0..params.warps {
        let derivatives = Derivatives::new(a, b, &field);
        let origin = field.clone();
        let mut halves = Checkerboard::split(&field);
        for _ in 0..params.reweights {
            let system = System::new(&derivatives, &origin, &field);
            for _ in 0..params.sweeps {
                halves.sweep(&system);
            }
            field = halves.joined();
        }
    }
    field
}

/// Derivatives of both pictures once `b` is warped on `a`.
struct Derivatives {
    x: Plane,
    y: Plane,
    t: Plane,
    xx: Plane,
    xy: Plane,
    yy: Plane,
    xt: Plane,
    yt: Plane,
}

impl Derivatives {
    fn new(a: &Plane, b: &Plane, field: &FlowField) -> Self {
        let (w, h) = (a.width, a.height);
        let warped = Plane::from_rows(w, h, |y, out| {
            let (us, vs) = (field.u.row(y), field.v.row(y));
            for x in 0..w {
                out[x] = b.sample(x as f32 + us[x], y as f32 + vs[x]);
            }
        });
        let zip = |p: &Plane, q: &Plane, f: fn(f32, f32) -> f32| {
            Plane::from_rows(w, h, |y, out| {
                for ((o, &p), &q) in out.iter_mut().zip(p.row(y)).zip(q.row(y)) {
                    *o = f(p, q);
                }
            })
        };
        let mean = zip(a, &warped, |a, b| 0.5 * (a + b));
        let t = zip(a, &warped, |a, b| b - a);
        let (x, y) = (across(&mean), down(&mean));
        let (xx, xy, yy) = (across(&x), down(&x), down(&y));
        let (xt, yt) = (across(&t), down(&t));
        Self {
            x,
            y,
            t,
            xx,
            xy,
            yy,
            xt,
            yt,
        }
    }
}

/// Central difference along x, the border repeated.
fn across(p: &Plane) -> Plane {
    Plane::from_rows(p.width, p.height, |y, out| {
        let row = p.row(y);
        let last = row.len() - 1;
        out[0] = 0.5 * (row[1.min(last)] - row[0]);
        out[last] = 0.5 * (row[last] - row[last.saturating_sub(1)]);
        for x in 1..last {
            out[x] = 0.5 * (row[x + 1] - row[x - 1]);
        }
    })
}

/// Central difference along y, the border repeated.
fn down(p: &Plane) -> Plane {
    Plane::from_rows(p.width, p.height, |y, out| {
        let (above, below) = (p.row_clamped(y as isize - 1), p.row_clamped(y as isize + 1));
        for ((o, a), b) in out.iter_mut().zip(above).zip(below) {
            *o = 0.5 * (b - a);
        }
    })
}

fn psi_slope(squares: f32) -> f32 {
    1.0 / (squares + EPS * EPS).sqrt()
}

/// Lines of coefficients for each row of one colour of the checkerboard.
const LINES: usize = 9;
const LEFT: usize = 0;
const RIGHT: usize = 1;
const UP: usize = 2;
const DOWN: usize = 3;
const MIXED: usize = 4;
const RHS_U: usize = 5;
const RHS_V: usize = 6;
const INV_U: usize = 7;
const INV_V: usize = 8;

/// The linear system for the current weights, per colour: rows of [`LINES`] lines of `half` cells.
struct System {
    colours: [Vec<f32>; 2],
}

impl System {
    fn new(d: &Derivatives, origin: &FlowField, now: &FlowField) -> Self {
        let (w, h) = (now.u.width, now.u.height);
        let half = w.div_ceil(2);
        let diffusivity = diffusivity(now);
        let mut colours = [vec![0.0; LINES * half * h], vec![0.0; LINES * half * h]];
        let [red, black] = &mut colours;
        red.par_chunks_mut(LINES * half)
            .zip(black.par_chunks_mut(LINES * half))
            .with_min_len(rows_per_task(w))
            .enumerate()
            .for_each(|(y, (red, black))| {
                let mut lines = vec![0.0; LINES * w];
                smoothness_row(&diffusivity, y, &mut lines);
                data_row(d, origin, now, y, &mut lines);
                for (line, values) in lines.chunks_exact(w).enumerate() {
                    let range = line * half..(line + 1) * half;
                    deal(values, y, &mut red[range.clone()], &mut black[range]);
                }
            });
        Self { colours }
    }
}

/// Deals a row's values to red (x + y even) and black.
fn deal(values: &[f32], y: usize, red: &mut [f32], black: &mut [f32]) {
    let (even, odd) = if y % 2 == 0 {
        (red, black)
    } else {
        (black, red)
    };
    let pairs = values.chunks_exact(2);
    if let [last] = pairs.remainder() {
        even[values.len() / 2] = *last;
    }
    for ((pair, even), odd) in pairs.zip(even.iter_mut()).zip(odd.iter_mut()) {
        *even = pair[0];
        *odd = pair[1];
    }
}

/// Robust weight of smoothness at each pixel.
fn diffusivity(field: &FlowField) -> Plane {
    let (ux, uy) = (across(&field.u), down(&field.u));
    let (vx, vy) = (across(&field.v), down(&field.v));
    Plane::from_rows(field.u.width, field.u.height, |y, out| {
        let (ux, uy, vx, vy) = (ux.row(y), uy.row(y), vx.row(y), vy.row(y));
        for (x, out) in out.iter_mut().enumerate() {
            let squares = ux[x] * ux[x] + uy[x] * uy[x] + vx[x] * vx[x] + vy[x] * vy[x];
            *out = SMOOTH * psi_slope(squares);
        }
    })
}

/// Weights towards the four neighbours; 0 across the border.
fn smoothness_row(g: &Plane, y: usize, lines: &mut [f32]) {
    let w = g.width;
    let row = g.row(y);
    for x in 0..w - 1 {
        let weight = 0.5 * (row[x] + row[x + 1]);
        lines[RIGHT * w + x] = weight;
        lines[LEFT * w + x + 1] = weight;
    }
    if y > 0 {
        let above = g.row(y - 1);
        for x in 0..w {
            lines[UP * w + x] = 0.5 * (row[x] + above[x]);
        }
    }
    if y + 1 < g.height {
        let below = g.row(y + 1);
        for x in 0..w {
            lines[DOWN * w + x] = 0.5 * (row[x] + below[x]);
        }
    }
}

/// Adds the data terms: the unknown is the whole flow, linearised about `origin`.
fn data_row(d: &Derivatives, origin: &FlowField, now: &FlowField, y: usize, lines: &mut [f32]) {
    let (w, h) = (now.u.width, now.u.height);
    let (ou, ov) = (origin.u.row(y), origin.v.row(y));
    let (nu, nv) = (now.u.row(y), now.v.row(y));
    let (ix, iy, it) = (d.x.row(y), d.y.row(y), d.t.row(y));
    let (ixx, ixy, iyy) = (d.xx.row(y), d.xy.row(y), d.yy.row(y));
    let (ixt, iyt) = (d.xt.row(y), d.yt.row(y));
    for x in 0..w {
        let (tx, ty) = (x as f32 + ou[x], y as f32 + ov[x]);
        let inside = tx >= 0.0 && ty >= 0.0 && tx <= (w - 1) as f32 && ty <= (h - 1) as f32;
        let seen = if inside { 1.0 } else { 0.0 };
        let (du, dv) = (nu[x] - ou[x], nv[x] - ov[x]);
        let (mut uu, mut uv, mut vv, mut bu, mut bv) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let mut add = |weight: f32, gx: f32, gy: f32, gt: f32| {
            // gt + gx (U - ou) + gy (V - ov) = 0
            let rest = gx * ou[x] + gy * ov[x] - gt;
            uu += weight * gx * gx;
            uv += weight * gx * gy;
            vv += weight * gy * gy;
            bu += weight * gx * rest;
            bv += weight * gy * rest;
        };
        let norm = 1.0 / (ix[x] * ix[x] + iy[x] * iy[x] + NOISE * NOISE);
        let error = it[x] + ix[x] * du + iy[x] * dv;
        add(
            seen * DATA * norm * psi_slope(error * error * norm),
            ix[x],
            iy[x],
            it[x],
        );
        let norm_x = 1.0 / (ixx[x] * ixx[x] + ixy[x] * ixy[x] + NOISE * NOISE);
        let norm_y = 1.0 / (iyy[x] * iyy[x] + ixy[x] * ixy[x] + NOISE * NOISE);
        let error_x = ixt[x] + ixx[x] * du + ixy[x] * dv;
        let error_y = iyt[x] + ixy[x] * du + iyy[x] * dv;
        let robust =
            seen * GRADIENT * psi_slope(error_x * error_x * norm_x + error_y * error_y * norm_y);
        add(robust * norm_x, ixx[x], ixy[x], ixt[x]);
        add(robust * norm_y, ixy[x], iyy[x], iyt[x]);
        let around =
            lines[LEFT * w + x] + lines[RIGHT * w + x] + lines[UP * w + x] + lines[DOWN * w + x];
        lines[MIXED * w + x] = uv;
        lines[RHS_U * w + x] = bu;
        lines[RHS_V * w + x] = bv;
        // A picture of one pixel has no neighbours and no gradient.
        lines[INV_U * w + x] = 1.0 / (uu + around).max(1e-9);
        lines[INV_V * w + x] = 1.0 / (vv + around).max(1e-9);
    }
}

/// One colour of the field: rows of `half` cells with an empty cell at both ends.
struct Half {
    u: Vec<f32>,
    v: Vec<f32>,
}

/// The field dealt to two colours, so that all cells of one can be updated at once.
struct Checkerboard {
    width: usize,
    height: usize,
    colours: [Half; 2],
}

impl Checkerboard {
    fn stride(&self) -> usize {
        self.width.div_ceil(2) + 2
    }

    fn split(field: &FlowField) -> Self {
        let (width, height) = (field.u.width, field.u.height);
        let stride = width.div_ceil(2) + 2;
        let empty = || Half {
            u: vec![0.0; stride * height],
            v: vec![0.0; stride * height],
        };
        let mut board = Self {
            width,
            height,
            colours: [empty(), empty()],
        };
        let [red, black] = &mut board.colours;
        for y in 0..height {
            let cells = y * stride + 1..(y + 1) * stride - 1;
            deal(
                field.u.row(y),
                y,
                &mut red.u[cells.clone()],
                &mut black.u[cells.clone()],
            );
            deal(
                field.v.row(y),
                y,
                &mut red.v[cells.clone()],
                &mut black.v[cells],
            );
        }
        board
    }

    fn joined(&self) -> FlowField {
        let collect = |pick: fn(&Half) -> &Vec<f32>| {
            let stride = self.stride();
            Plane::from_rows(self.width, self.height, |y, out| {
                let [red, black] = self.colours.each_ref().map(|c| &pick(c)[y * stride + 1..]);
                let (even, odd) = if y % 2 == 0 {
                    (red, black)
                } else {
                    (black, red)
                };
                for (x, out) in out.iter_mut().enumerate() {
                    *out = if x % 2 == 0 { even[x / 2] } else { odd[x / 2] };
                }
            })
        };
        FlowField {
            u: collect(|c| &c.u),
            v: collect(|c| &c.v),
        }
    }

    /// One sweep of successive over-relaxation: red from black, then black from red.
    fn sweep(&mut self, system: &System) {
        let stride = self.stride();
        let [red, black] = &mut self.colours;
        relax(red, black, &system.colours[0], 0, stride);
        relax(black, red, &system.colours[1], 1, stride);
    }
}

/// Updates one colour from the other. `colour` is 0 for red.
fn relax(update: &mut Half, other: &Half, system: &[f32], colour: usize, stride: usize) {
    let height = update.u.len() / stride;
    let half = stride - 2;
    update
        .u
        .par_chunks_mut(stride)
        .zip(update.v.par_chunks_mut(stride))
        .with_min_len(rows_per_task(half * LINES / 2))
        .enumerate()
        .for_each(|(y, (us, vs))| {
            // The cell to the left of cell i is cell i - 1 or i of the other colour's row.
            let shift = 1 - usize::from((y + colour) % 2 == 0);
            let run = |y: usize, from: usize| y * stride + from..y * stride + from + half;
            let (above, below) = (y.saturating_sub(1), (y + 1).min(height - 1));
            let at = [
                run(y, shift),
                run(y, shift + 1),
                run(above, 1),
                run(below, 1),
            ];
            relax_row(
                &mut us[1..1 + half],
                &mut vs[1..1 + half],
                at.clone().map(|r| &other.u[r]),
                at.map(|r| &other.v[r]),
                &system[y * LINES * half..(y + 1) * LINES * half],
            );
        });
}

fn relax_row(us: &mut [f32], vs: &mut [f32], nu: [&[f32]; 4], nv: [&[f32]; 4], system: &[f32]) {
    let n = us.len();
    let line = |index: usize| &system[index * n..(index + 1) * n];
    let (left, right, up, down) = (line(LEFT), line(RIGHT), line(UP), line(DOWN));
    let (mixed, rhs_u, rhs_v) = (line(MIXED), line(RHS_U), line(RHS_V));
    let (inv_u, inv_v) = (line(INV_U), line(INV_V));
    let (us, vs) = (&mut us[..n], &mut vs[..n]);
    let (nu, nv) = (nu.map(|s| &s[..n]), nv.map(|s| &s[..n]));
    for i in 0..n {
        let (u, v) = (us[i], vs[i]);
        let around = |n: &[&[f32]; 4]| {
            left[i] * n[0][i] + right[i] * n[1][i] + up[i] * n[2][i] + down[i] * n[3][i]
        };
        let u = u + OMEGA * ((rhs_u[i] + around(&nu) - mixed[i] * v) * inv_u[i] - u);
        let v = v + OMEGA * ((rhs_v[i] + around(&nv) - mixed[i] * u) * inv_v[i] - v);
        us[i] = u;
        vs[i] = v;
    }
}
