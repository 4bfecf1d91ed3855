//! RGB to 4:2:0 and back, in integers: every machine rounds alike.
//!
//! Formulas: ITU-T H.273, equations for `VideoFullRangeFlag` 0 and 1 with the constants K_R and K_B
//! of the matrix. Chroma is the mean over 2x2 pixels; going back, each chroma sample serves the four
//! pixels it came from, so that decoding and encoding again does not smear it further.

use crate::Frame;

const HALF: i32 = 1 << 15;

/// How RGB was turned into luma and chroma.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Matrix {
    /// ITU-R BT.709, the only one that is written.
    #[default]
    Bt709,
    /// ITU-R BT.601, as small and old videos use it.
    Bt601,
    /// FCC 73.682.
    Fcc,
    /// SMPTE 240M.
    Smpte240,
    /// ITU-R BT.2020, non-constant luminance.
    Bt2020,
}

impl Matrix {
    /// From `matrix_coefficients` of ITU-T H.273. `None` for those that are not K_R and K_B matrices;
    /// 2 (unspecified) becomes what players assume: BT.709 from 720 lines on, BT.601 below.
    pub fn from_code(code: u16, height: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Bt709),
            2 if height >= 720 => Some(Self::Bt709),
            2 | 5 | 6 => Some(Self::Bt601),
            4 => Some(Self::Fcc),
            7 => Some(Self::Smpte240),
            9 => Some(Self::Bt2020),
            _ => None,
        }
    }

    /// (K_R, K_B).
    fn constants(self) -> (f64, f64) {
        match self {
            Self::Bt709 => (0.2126, 0.0722),
            Self::Bt601 => (0.299, 0.114),
            Self::Fcc => (0.30, 0.11),
            Self::Smpte240 => (0.212, 0.087),
            Self::Bt2020 => (0.2627, 0.0593),
        }
    }
}

/// Matrix and range of a video.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColorSpace {
    /// The matrix.
    pub matrix: Matrix,
    /// Luma 0..255 instead of 16..235.
    pub full_range: bool,
}

/// A picture as H.264 holds it: `y` `[height, width]`, `u` and `v` `[ceil(height/2), ceil(width/2)]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Yuv420 {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Luma.
    pub y: Vec<u8>,
    /// Blue difference.
    pub u: Vec<u8>,
    /// Red difference.
    pub v: Vec<u8>,
}

/// 16.16 fixed-point coefficients from RGB; those of a row for a grey value sum up exactly.
struct FromRgb {
    y: [i32; 3],
    u: [i32; 3],
    v: [i32; 3],
}

/// BT.709, limited range.
fn from_rgb_bt709() -> FromRgb {
    let (kr, kb) = Matrix::Bt709.constants();
    let fixed = |value: f64| (value * 65536.0).round() as i32;
    let (luma, chroma) = (219.0 / 255.0, 112.0 / 255.0);
    let (yr, yb) = (fixed(kr * luma), fixed(kb * luma));
    let (ur, ub) = (fixed(-kr / (1.0 - kb) * chroma), fixed(chroma));
    let (vr, vb) = (fixed(chroma), fixed(-kb / (1.0 - kr) * chroma));
    FromRgb {
        y: [yr, fixed(luma) - yr - yb, yb],
        u: [ur, -(ur + ub), ub],
        v: [vr, -(vr + vb), vb],
    }
}

fn dot(k: [i32; 3], p: [i32; 3]) -> i32 {
    k[0] * p[0] + k[1] * p[1] + k[2] * p[2]
}

impl Yuv420 {
    /// BT.709, limited range.
    pub fn from_frame(frame: &Frame) -> Self {
        let mut out = Self::default();
        out.fill_from(frame);
        out
    }

    /// As [`Yuv420::from_frame`], into memory that is there already.
    pub fn fill_from(&mut self, frame: &Frame) {
        (self.width, self.height) = (frame.width(), frame.height());
        let (w, h) = (self.width as usize, self.height as usize);
        let (cw, ch) = (w.div_ceil(2), h.div_ceil(2));
        self.y.resize(w * h, 0);
        self.u.resize(cw * ch, 0);
        self.v.resize(cw * ch, 0);
        if w == 0 || h == 0 {
            return;
        }
        let k = from_rgb_bt709();
        let luma_rows = self.y.chunks_exact_mut(w);
        for (row, rgb) in luma_rows.zip(frame.data().chunks_exact(3 * w)) {
            luma_row(k.y, rgb, row);
        }
        let chroma_rows = self.u.chunks_exact_mut(cw).zip(self.v.chunks_exact_mut(cw));
        for ((u, v), rows) in chroma_rows.zip(frame.data().chunks(6 * w)) {
            let (top, bottom) = rows.split_at(3 * w);
            // An odd last row stands for its missing neighbour too.
            let bottom = if bottom.is_empty() { top } else { bottom };
            chroma_row(&k, top, bottom, u, v);
        }
    }

    /// To RGB. Borrowing callers with strides use [`rgb_from_planes`].
    pub fn to_frame(&self, space: ColorSpace) -> Frame {
        let (w, cw) = (self.width as usize, (self.width as usize).div_ceil(2));
        let planes = Planes {
            width: self.width,
            height: self.height,
            y: (&self.y, w),
            u: (&self.u, cw),
            v: (&self.v, cw),
        };
        rgb_from_planes(&planes, space)
    }
}

fn luma_row(k: [i32; 3], rgb: &[u8], out: &mut [u8]) {
    for (y, p) in out.iter_mut().zip(rgb.chunks_exact(3)) {
        let sum = dot(k, [p[0].into(), p[1].into(), p[2].into()]);
        *y = ((sum + (16 << 16) + HALF) >> 16) as u8;
    }
}

fn chroma_row(k: &FromRgb, top: &[u8], bottom: &[u8], u: &mut [u8], v: &mut [u8]) {
    let outs = u.iter_mut().zip(v.iter_mut());
    for ((u, v), (a, b)) in outs.zip(top.chunks(6).zip(bottom.chunks(6))) {
        // In an odd width the last pixel counts twice.
        let right = if a.len() == 6 { 3 } else { 0 };
        let sum = |c: usize| {
            i32::from(a[c]) + i32::from(a[c + right]) + i32::from(b[c]) + i32::from(b[c + right])
        };
        let sums = [sum(0), sum(1), sum(2)];
        *u = ((dot(k.u, sums) + (128 << 18) + (1 << 17)) >> 18) as u8;
        *v = ((dot(k.v, sums) + (128 << 18) + (1 << 17)) >> 18) as u8;
    }
}

/// Borrowed planes with their strides in bytes.
pub(super) struct Planes<'a> {
    pub width: u32,
    pub height: u32,
    pub y: (&'a [u8], usize),
    pub u: (&'a [u8], usize),
    pub v: (&'a [u8], usize),
}

impl Planes<'_> {
    /// Whether every row lies inside its plane.
    pub fn is_consistent(&self) -> bool {
        let (w, h) = (self.width as usize, self.height as usize);
        let fits = |(plane, stride): (&[u8], usize), w: usize, h: usize| {
            w > 0 && h > 0 && stride >= w && plane.len() >= stride * (h - 1) + w
        };
        let (cw, ch) = (w.div_ceil(2), h.div_ceil(2));
        fits(self.y, w, h) && fits(self.u, cw, ch) && fits(self.v, cw, ch)
    }

    /// Packed into memory of our own.
    pub fn to_yuv(&self) -> Yuv420 {
        let (w, h) = (self.width as usize, self.height as usize);
        let (cw, ch) = (w.div_ceil(2), h.div_ceil(2));
        let pack = |(plane, stride): (&[u8], usize), w: usize, h: usize| {
            plane
                .chunks(stride)
                .take(h)
                .flat_map(|row| &row[..w])
                .copied()
                .collect()
        };
        Yuv420 {
            width: self.width,
            height: self.height,
            y: pack(self.y, w, h),
            u: pack(self.u, cw, ch),
            v: pack(self.v, cw, ch),
        }
    }
}

/// To RGB. The planes must be consistent.
pub(super) fn rgb_from_planes(planes: &Planes<'_>, space: ColorSpace) -> Frame {
    let mut frame = Frame::black(planes.width, planes.height);
    let w = planes.width as usize;
    if w == 0 {
        return frame;
    }
    let k = ToRgb::new(space);
    for (row, out) in frame.data_mut().chunks_exact_mut(3 * w).enumerate() {
        let line = |(plane, stride): (&'_ [u8], usize), row: usize| row * stride..plane.len();
        let y = &planes.y.0[line(planes.y, row)][..w];
        let u = &planes.u.0[line(planes.u, row / 2)][..w.div_ceil(2)];
        let v = &planes.v.0[line(planes.v, row / 2)][..w.div_ceil(2)];
        k.row(y, u, v, out);
    }
    frame
}

struct ToRgb {
    y: i32,
    y_offset: i32,
    rv: i32,
    gu: i32,
    gv: i32,
    bu: i32,
}

impl ToRgb {
    fn new(space: ColorSpace) -> Self {
        let (kr, kb) = space.matrix.constants();
        let kg = 1.0 - kr - kb;
        let (luma, chroma) = if space.full_range {
            (1.0, 1.0)
        } else {
            (255.0 / 219.0, 255.0 / 224.0)
        };
        let fixed = |value: f64| (value * 65536.0).round() as i32;
        Self {
            y: fixed(luma),
            y_offset: if space.full_range { 0 } else { 16 },
            rv: fixed(2.0 * (1.0 - kr) * chroma),
            gu: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            gv: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            bu: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }

    fn row(&self, y: &[u8], u: &[u8], v: &[u8], out: &mut [u8]) {
        let pairs = y.chunks(2).zip(u.iter().zip(v));
        for ((luma, (&u, &v)), rgb) in pairs.zip(out.chunks_mut(6)) {
            let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
            let (r, g, b) = (self.rv * v, self.gu * u + self.gv * v, self.bu * u);
            for (&y, p) in luma.iter().zip(rgb.chunks_exact_mut(3)) {
                let y = (i32::from(y) - self.y_offset) * self.y + HALF;
                p[0] = ((y + r) >> 16).clamp(0, 255) as u8;
                p[1] = ((y + g) >> 16).clamp(0, 255) as u8;
                p[2] = ((y + b) >> 16).clamp(0, 255) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(rgb: [u8; 3], width: u32, height: u32) -> Frame {
        Frame::from_rgb8(width, height, rgb.repeat((width * height) as usize)).unwrap()
    }

    #[test]
    fn known_colours_have_their_bt709_values() {
        // Rec. ITU-R BT.709-6 colour bars, 8 bits, limited range.
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
            ([255, 255, 0], [219, 16, 138]),
        ] {
            let picture = Yuv420::from_frame(&flat(rgb, 4, 2));
            assert_eq!([picture.y[3], picture.u[1], picture.v[1]], yuv, "{rgb:?}");
        }
    }

    #[test]
    fn colours_come_back_within_a_step_and_once_converted_stay() {
        for grey in 0..=255u8 {
            // 256 greys share 220 luma values, so one step is the best there is.
            let once = Yuv420::from_frame(&flat([grey; 3], 2, 2)).to_frame(ColorSpace::default());
            assert!(
                once.data().iter().all(|value| value.abs_diff(grey) <= 1),
                "{grey}"
            );
            let twice = Yuv420::from_frame(&once).to_frame(ColorSpace::default());
            assert_eq!(once, twice);
        }
        for code in (0..1 << 24).step_by(977) {
            let rgb = [(code >> 16) as u8, (code >> 8) as u8, code as u8];
            let back = Yuv420::from_frame(&flat(rgb, 2, 2)).to_frame(ColorSpace::default());
            for (a, b) in back.data().iter().zip(rgb.iter().cycle()) {
                assert!(
                    a.abs_diff(*b) <= 3,
                    "{rgb:?} came back as {:?}",
                    back.pixel(0, 0)
                );
            }
        }
    }

    #[test]
    fn odd_sizes_replicate_their_edge() {
        let mut frame = flat([10, 20, 30], 3, 3);
        frame.data_mut()[24..].copy_from_slice(&[200, 10, 90]);
        let picture = Yuv420::from_frame(&frame);
        assert_eq!(
            (picture.y.len(), picture.u.len(), picture.v.len()),
            (9, 4, 4)
        );
        let corner = Yuv420::from_frame(&flat([200, 10, 90], 2, 2));
        assert_eq!((picture.u[3], picture.v[3]), (corner.u[0], corner.v[0]));
        assert_eq!(picture.to_frame(ColorSpace::default()).width(), 3);
    }

    #[test]
    fn other_matrices_and_full_range_decode_white_and_red() {
        for matrix in [
            Matrix::Bt709,
            Matrix::Bt601,
            Matrix::Fcc,
            Matrix::Smpte240,
            Matrix::Bt2020,
        ] {
            for full_range in [false, true] {
                let white = if full_range { 255 } else { 235 };
                let picture = Yuv420 {
                    width: 1,
                    height: 1,
                    y: vec![white],
                    u: vec![128],
                    v: vec![128],
                };
                let frame = picture.to_frame(ColorSpace { matrix, full_range });
                assert_eq!(frame.data(), [255; 3]);
            }
        }
        let red = Yuv420 {
            width: 1,
            height: 1,
            y: vec![81],
            u: vec![90],
            v: vec![240],
        };
        let frame = red.to_frame(ColorSpace {
            matrix: Matrix::Bt601,
            full_range: false,
        });
        assert!(
            frame.data()[0] >= 253 && frame.data()[1] <= 2 && frame.data()[2] <= 2,
            "{:?}",
            frame.data()
        );
    }
}
