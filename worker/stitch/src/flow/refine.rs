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
        let mean = a.zip(&warped, |a, b| 0.5 * (a + b));
        let t = a.zip(&warped, |a, b| b - a);
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
                let mut lines = Lines::new(w);
                lines.smoothness(&diffusivity, y);
                lines.data(d, origin, now, y);
                let deals = red.chunks_exact_mut(half).zip(black.chunks_exact_mut(half));
                for (line, (red, black)) in lines.0.iter().zip(deals) {
                    deal(line, y, red, black);
                }
            });
        Self { colours }
    }
}

/// Deals a row's values to red (x + y even) and black.
fn deal(values: &[f32], y: usize, red: &mut [f32], black: &mut [f32]) {
    let (even, odd) = if y.is_multiple_of(2) {
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

/// One row of coefficients, before it is dealt to the colours.
struct Lines([Vec<f32>; LINES]);

impl Lines {
    fn new(width: usize) -> Self {
        Self(std::array::from_fn(|_| vec![0.0; width]))
    }

    /// Weights towards the four neighbours; 0 across the border.
    fn smoothness(&mut self, g: &Plane, y: usize) {
        let w = g.width;
        let row = g.row(y);
        for x in 0..w - 1 {
            let weight = 0.5 * (row[x] + row[x + 1]);
            self.0[RIGHT][x] = weight;
            self.0[LEFT][x + 1] = weight;
        }
        let mut towards = |line: usize, other: &[f32]| {
            for ((out, a), b) in self.0[line].iter_mut().zip(row).zip(other) {
                *out = 0.5 * (a + b);
            }
        };
        if y > 0 {
            towards(UP, g.row(y - 1));
        }
        if y + 1 < g.height {
            towards(DOWN, g.row(y + 1));
        }
    }

    /// The data terms: the unknown is the whole flow, linearised about `origin`.
    fn data(&mut self, d: &Derivatives, origin: &FlowField, now: &FlowField, y: usize) {
        let (w, h) = (now.u.width, now.u.height);
        let (ou, ov) = (&origin.u.row(y)[..w], &origin.v.row(y)[..w]);
        let (nu, nv) = (&now.u.row(y)[..w], &now.v.row(y)[..w]);
        let (ix, iy, it) = (&d.x.row(y)[..w], &d.y.row(y)[..w], &d.t.row(y)[..w]);
        let (ixx, ixy, iyy) = (&d.xx.row(y)[..w], &d.xy.row(y)[..w], &d.yy.row(y)[..w]);
        let (ixt, iyt) = (&d.xt.row(y)[..w], &d.yt.row(y)[..w]);
        let [left, right, up, down, mixed, rhs_u, rhs_v, inv_u, inv_v] = &mut self.0;
        let (left, right, up, down) = (&left[..w], &right[..w], &up[..w], &down[..w]);
        let (mixed, rhs_u, rhs_v) = (&mut mixed[..w], &mut rhs_u[..w], &mut rhs_v[..w]);
        let (inv_u, inv_v) = (&mut inv_u[..w], &mut inv_v[..w]);
        let (x_end, y_end) = ((w - 1) as f32, (h - 1) as f32);
        for x in 0..w {
            let (tx, ty) = (x as i32 as f32 + ou[x], y as f32 + ov[x]);
            let inside = (tx >= 0.0) & (ty >= 0.0) & (tx <= x_end) & (ty <= y_end);
            let seen = if inside { 1.0 } else { 0.0 };
            let (du, dv) = (nu[x] - ou[x], nv[x] - ov[x]);
            let (gx, gy, gt) = (ix[x], iy[x], it[x]);
            let (hxx, hxy, hyy, hxt, hyt) = (ixx[x], ixy[x], iyy[x], ixt[x], iyt[x]);
            let norm = 1.0 / (gx * gx + gy * gy + NOISE * NOISE);
            let norm_x = 1.0 / (hxx * hxx + hxy * hxy + NOISE * NOISE);
            let norm_y = 1.0 / (hyy * hyy + hxy * hxy + NOISE * NOISE);
            let error = gt + gx * du + gy * dv;
            let error_x = hxt + hxx * du + hxy * dv;
            let error_y = hyt + hxy * du + hyy * dv;
            let m = seen * DATA * norm * psi_slope(error * error * norm);
            let robust = psi_slope(error_x * error_x * norm_x + error_y * error_y * norm_y);
            let mx = seen * GRADIENT * robust * norm_x;
            let my = seen * GRADIENT * robust * norm_y;
            // Each term says gt + gx (U - ou) + gy (V - ov) = 0, that is gx U + gy V = rest.
            let rest = gx * ou[x] + gy * ov[x] - gt;
            let rest_x = hxx * ou[x] + hxy * ov[x] - hxt;
            let rest_y = hxy * ou[x] + hyy * ov[x] - hyt;
            let uu = m * gx * gx + mx * hxx * hxx + my * hxy * hxy;
            let vv = m * gy * gy + mx * hxy * hxy + my * hyy * hyy;
            mixed[x] = m * gx * gy + mx * hxx * hxy + my * hxy * hyy;
            rhs_u[x] = m * gx * rest + mx * hxx * rest_x + my * hxy * rest_y;
            rhs_v[x] = m * gy * rest + mx * hxy * rest_x + my * hyy * rest_y;
            // The floor is for a picture of one pixel, which has no neighbours and no gradient.
            let around = left[x] + right[x] + up[x] + down[x] + 1e-9;
            inv_u[x] = 1.0 / (uu + around);
            inv_v[x] = 1.0 / (vv + around);
        }
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
                let (even, odd) = if y.is_multiple_of(2) {
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
            let shift = 1 - usize::from((y + colour).is_multiple_of(2));
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
    // Slices of one known length each, so that the loop needs no checks and runs in vectors.
    let line = |index: usize| &system[index * n..][..n];
    let (left, right, up, down) = (line(LEFT), line(RIGHT), line(UP), line(DOWN));
    let (mixed, rhs_u, rhs_v) = (line(MIXED), line(RHS_U), line(RHS_V));
    let (inv_u, inv_v) = (line(INV_U), line(INV_V));
    let (us, vs) = (&mut us[..n], &mut vs[..n]);
    let [lu, ru, uu, du] = nu.map(|s| &s[..n]);
    let [lv, rv, uv, dv] = nv.map(|s| &s[..n]);
    for i in 0..n {
        let (a, b, c, d) = (left[i], right[i], up[i], down[i]);
        let around_u = a * lu[i] + b * ru[i] + c * uu[i] + d * du[i];
        let around_v = a * lv[i] + b * rv[i] + c * uv[i] + d * dv[i];
        let u = us[i] + OMEGA * ((rhs_u[i] + around_u - mixed[i] * vs[i]) * inv_u[i] - us[i]);
        let v = vs[i] + OMEGA * ((rhs_v[i] + around_v - mixed[i] * u) * inv_v[i] - vs[i]);
        us[i] = u;
        vs[i] = v;
    }
}
