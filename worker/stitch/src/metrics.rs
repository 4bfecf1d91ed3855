//! PSNR and SSIM between two films, fed frame by frame. Formulas: `docs/quality.md`.

use crate::StitchError;
use crate::plane::{Plane, luma};
use longtake_common::Frame;
use serde::{Deserialize, Serialize};

/// How close two films, or two frames, are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Frames compared.
    pub frames: u64,
    /// PSNR of luma in dB, from the mean squared error over all frames; infinite when equal.
    pub psnr_y: f64,
    /// PSNR over R, G and B in dB; infinite when equal.
    pub psnr_rgb: f64,
    /// Mean SSIM of luma, at most 1.
    pub ssim: f64,
    /// The lowest SSIM of a frame.
    pub worst_ssim: f64,
}

/// Compares two films that are fed to it frame by frame; holds no frames.
#[derive(Clone, Debug)]
pub struct Comparison {
    frames: u64,
    samples: u64,
    squares_y: f64,
    squares_rgb: f64,
    ssim: f64,
    worst_ssim: f64,
    size: Option<(u32, u32)>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self::new()
    }
}

impl Comparison {
    /// An empty comparison.
    pub fn new() -> Self {
        Self {
            frames: 0,
            samples: 0,
            squares_y: 0.0,
            squares_rgb: 0.0,
            ssim: 0.0,
            worst_ssim: 1.0,
            size: None,
        }
    }

    /// Adds one pair of frames and says how close these two are.
    pub fn push(&mut self, a: &Frame, b: &Frame) -> Result<Quality, StitchError> {
        let (width, height) = *self.size.get_or_insert((a.width(), a.height()));
        for frame in [a, b] {
            if (frame.width(), frame.height()) != (width, height) {
                let (found_width, found_height) = (frame.width(), frame.height());
                let index = self.frames as usize;
                return Err(StitchError::Size {
                    index,
                    found_width,
                    found_height,
                    width,
                    height,
                });
            }
        }
        let mut one = Self::new();
        one.add(a, b);
        self.frames += 1;
        self.samples += one.samples;
        self.squares_y += one.squares_y;
        self.squares_rgb += one.squares_rgb;
        self.ssim += one.ssim;
        self.worst_ssim = self.worst_ssim.min(one.worst_ssim);
        Ok(one.finish())
    }

    fn add(&mut self, a: &Frame, b: &Frame) {
        let (luma_a, luma_b) = (luma(a), luma(b));
        let square = |d: f64| d * d;
        let ssim = ssim(&luma_a, &luma_b);
        self.frames = 1;
        self.samples = luma_a.data.len() as u64;
        self.squares_y = luma_a
            .data
            .iter()
            .zip(&luma_b.data)
            .map(|(a, b)| square(f64::from(a - b)))
            .sum();
        self.squares_rgb = a
            .data()
            .iter()
            .zip(b.data())
            .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
            .sum();
        self.ssim = ssim;
        self.worst_ssim = ssim;
    }

    /// The result over all frames pushed so far; of no frames, that they are equal.
    pub fn finish(&self) -> Quality {
        let samples = self.samples.max(1) as f64;
        Quality {
            frames: self.frames,
            psnr_y: psnr(self.squares_y / samples),
            psnr_rgb: psnr(self.squares_rgb / (3.0 * samples)),
            ssim: if self.frames == 0 {
                1.0
            } else {
                self.ssim / self.frames as f64
            },
            worst_ssim: self.worst_ssim,
        }
    }
}

fn psnr(mean_square: f64) -> f64 {
    if mean_square > 0.0 {
        10.0 * (255.0 * 255.0 / mean_square).log10()
    } else {
        f64::INFINITY
    }
}

/// Half of the Gaussian of 11 taps, sigma 1.5, from its centre outwards; sums to 1 over all taps.
const GAUSSIAN: [f32; 6] = [
    0.266_011_7,
    0.213_005_53,
    0.109_360_69,
    0.036_000_77,
    0.007_598_758,
    0.001_028_380_1,
];

/// SSIM of Wang et al. 2004: Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255;
/// the mean over all windows that lie inside. Pictures smaller than a window are one window.
fn ssim(a: &Plane, b: &Plane) -> f64 {
    const REACH: usize = GAUSSIAN.len() - 1;
    if a.data.is_empty() {
        return 1.0;
    }
    let product = |p: &Plane, q: &Plane| p.zip(q, |p, q| p * q);
    let moments = [
        a.clone(),
        b.clone(),
        product(a, a),
        product(b, b),
        product(a, b),
    ];
    if a.width <= 2 * REACH || a.height <= 2 * REACH {
        let mean =
            |p: &Plane| p.data.iter().map(|&v| f64::from(v)).sum::<f64>() / p.data.len() as f64;
        return ssim_of(moments.each_ref().map(mean));
    }
    let [ma, mb, aa, bb, ab] = moments.map(|p| gaussian_inside(&p));
    let rows: Vec<f64> = (0..ma.height)
        .map(|y| {
            let rows = [&ma, &mb, &aa, &bb, &ab].map(|p| p.row(y));
            (0..ma.width)
                .map(|x| ssim_of(rows.map(|r| f64::from(r[x]))))
                .sum()
        })
        .collect();
    rows.iter().sum::<f64>() / ma.data.len() as f64
}

fn ssim_of([ma, mb, aa, bb, ab]: [f64; 5]) -> f64 {
    const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
    const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);
    let (va, vb, cov) = (aa - ma * ma, bb - mb * mb, ab - ma * mb);
    (2.0 * ma * mb + C1) * (2.0 * cov + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
}

/// Gaussian filter, only where the window lies inside.
fn gaussian_inside(p: &Plane) -> Plane {
    const REACH: usize = GAUSSIAN.len() - 1;
    let (w, h) = (p.width - 2 * REACH, p.height - 2 * REACH);
    let across = Plane::from_rows(w, p.height, |y, out| {
        let row = p.row(y);
        for (x, out) in out.iter_mut().enumerate() {
            let c = x + REACH;
            *out = GAUSSIAN[0] * row[c];
            for (k, g) in GAUSSIAN.iter().enumerate().skip(1) {
                *out += g * (row[c - k] + row[c + k]);
            }
        }
    });
    Plane::from_rows(w, h, |y, out| {
        let c = y + REACH;
        out.iter_mut()
            .zip(across.row(c))
            .for_each(|(o, v)| *o = GAUSSIAN[0] * v);
        for (k, g) in GAUSSIAN.iter().enumerate().skip(1) {
            let pairs = across.row(c - k).iter().zip(across.row(c + k));
            out.iter_mut()
                .zip(pairs)
                .for_each(|(o, (a, b))| *o += g * (a + b));
        }
    })
}
