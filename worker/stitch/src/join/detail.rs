//! A dissolve that stays sharp: averaging two textures that differ loses contrast, which is put back.

use super::picture::Picture;
use crate::plane::Plane;

/// Half side, in pixels, of the square whose mean separates detail from the rest.
const DETAIL: usize = 2;
/// Half side of the square over which detail is measured.
const MEASURE: usize = 5;
/// Detail (grey levels, squared) that counts as noise and is not raised.
const NOISE: f32 = 2.0;
/// Most that detail is raised.
const MOST: f32 = 1.6;

/// `(1 - share) left + share right`, with detail raised to the energy that it has on the two sides:
/// locally by sqrt(wanted / found), wanted = (1 - share) var(left) + share var(right).
pub(super) fn blend(left: &Picture, right: &Picture, share: &Plane) -> Picture {
    let (w, h) = (left.width, left.height);
    let mixed = Picture::from_rows(w, h, |y, out| {
        let (l, r, s) = (left.row(y), right.row(y), share.row(y));
        for x in 0..w {
            for c in 0..3 {
                out[x][c] = l[x][c] + s[x] * (r[x][c] - l[x][c]);
            }
        }
    });
    let (dl, dr, dm) = (energy(left), energy(right), energy(&mixed));
    let gain = Plane::from_rows(w, h, |y, out| {
        let (l, r, m, s) = (dl.row(y), dr.row(y), dm.row(y), share.row(y));
        for x in 0..w {
            let wanted = l[x] + s[x] * (r[x] - l[x]);
            let ratio = ((wanted + NOISE) / (m[x] + NOISE)).sqrt();
            out[x] = ratio.clamp(1.0, MOST) - 1.0;
        }
    });
    let means: [Plane; 3] = std::array::from_fn(|c| channel(&mixed, c).box_mean(DETAIL));
    Picture::from_rows(w, h, |y, out| {
        let (m, g) = (mixed.row(y), gain.row(y));
        let means = means.each_ref().map(|p| p.row(y));
        for x in 0..w {
            for c in 0..3 {
                out[x][c] = m[x][c] + g[x] * (m[x][c] - means[c][x]);
            }
        }
    })
}

fn channel(picture: &Picture, c: usize) -> Plane {
    Plane::from_rows(picture.width, picture.height, |y, out| {
        out.iter_mut()
            .zip(picture.row(y))
            .for_each(|(o, p)| *o = p[c]);
    })
}

/// Local mean of the squared detail of luma.
fn energy(picture: &Picture) -> Plane {
    let luma = picture.luma();
    let mean = luma.box_mean(DETAIL);
    let squares = Plane::from_rows(luma.width, luma.height, |y, out| {
        for ((o, a), b) in out.iter_mut().zip(luma.row(y)).zip(mean.row(y)) {
            *o = (a - b) * (a - b);
        }
    });
    let mut energy = squares.box_mean(MEASURE);
    // Running sums may end a little below nothing.
    energy.data.iter_mut().for_each(|v| *v = v.max(0.0));
    energy
}
