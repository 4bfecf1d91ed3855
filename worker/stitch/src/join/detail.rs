//! Moving a picture by parts of a pixel and averaging two textures that differ both cost detail.
//! Here it is put back.

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

/// `(1 - share) left + share right`.
pub(super) fn mix(left: &Picture, right: &Picture, share: &Plane) -> Picture {
    Picture::from_rows(left.width, left.height, |y, out| {
        let (l, r, s) = (left.row(y), right.row(y), share.row(y));
        for x in 0..s.len() {
            for c in 0..3 {
                out[x][c] = l[x][c] + s[x] * (r[x][c] - l[x][c]);
            }
        }
    })
}

/// `sum + weight (other - base)`.
pub(super) fn mix_in(sum: &Picture, base: &Picture, other: &Picture, weight: &Plane) -> Picture {
    Picture::from_rows(sum.width, sum.height, |y, out| {
        let (s, b, o, w) = (sum.row(y), base.row(y), other.row(y), weight.row(y));
        for x in 0..w.len() {
            for c in 0..3 {
                out[x][c] = s[x][c] + w[x] * (o[x][c] - b[x][c]);
            }
        }
    })
}

/// Raises the detail of `picture` locally by sqrt(wanted / found), where `wanted` is the
/// [`energy`] that it should have; never lowers it.
pub(super) fn restored(picture: &Picture, wanted: &Plane) -> Picture {
    let (w, h) = (picture.width, picture.height);
    let found = energy(picture);
    let means: [Plane; 3] = std::array::from_fn(|c| channel(picture, c).box_mean(DETAIL));
    Picture::from_rows(w, h, |y, out| {
        let (p, wanted, found) = (picture.row(y), wanted.row(y), found.row(y));
        let means = means.each_ref().map(|m| m.row(y));
        for x in 0..w {
            let ratio = ((wanted[x] + NOISE) / (found[x] + NOISE)).sqrt();
            let gain = ratio.clamp(1.0, MOST) - 1.0;
            for c in 0..3 {
                out[x][c] = p[x][c] + gain * (p[x][c] - means[c][x]);
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
pub(super) fn energy(picture: &Picture) -> Plane {
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
