//! Pictures of the moving-shapes world, drawn as `configs/models/ltxv-tiny/train/world.py` draws them.

use super::{BACKGROUNDS, COLOURS, Track, gradient, ideal_coverage, look};
use longtake_common::Frame;

/// One shape on its way over a background.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Pixels across and down.
    pub size: (u32, u32),
    /// Name of the shape.
    pub shape: &'static str,
    /// Number of the shape's colour in [`COLOURS`].
    pub colour: usize,
    /// Number of the background's colour in [`BACKGROUNDS`].
    pub background: usize,
    /// "Radius" as the world counts it, in pixels.
    pub radius: f64,
    /// Centre across at frame 0.
    pub x: f64,
    /// Centre down at frame 0.
    pub y: f64,
    /// Right and down, in pixels a frame.
    pub velocity: (f64, f64),
    /// Grey levels of noise.
    pub noise: f64,
}

/// Sum of four uniform draws: close enough to a Gaussian of deviation 1.
fn noise(state: &mut u64) -> f64 {
    (0..4)
        .map(|_| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (*state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
        })
        .sum::<f64>()
        * 3f64.sqrt()
}

impl Scene {
    /// The shape's centre at `frame`: pixels from the left and from the top.
    pub fn centre(&self, frame: u32) -> (f64, f64) {
        let t = f64::from(frame);
        (
            (self.x + self.velocity.0 * t).rem_euclid(f64::from(self.size.0)),
            (self.y + self.velocity.1 * t).rem_euclid(f64::from(self.size.1)),
        )
    }

    /// The picture at `frame`.
    pub fn draw(&self, frame: u32) -> Frame {
        let (cx, cy) = self.centre(frame);
        let mut state = u64::from(frame) + 1;
        let (width, height) = self.size;
        let mut out = Frame::black(width, height);
        let (w, h) = (f64::from(width), f64::from(height));
        for (i, pixel) in out.data_mut().chunks_exact_mut(3).enumerate() {
            let (x, y) = (
                (i % width as usize) as f64 + 0.5,
                (i / width as usize) as f64 + 0.5,
            );
            let dx = (x - cx + w / 2.0).rem_euclid(w) - w / 2.0;
            let dy = (y - cy + h / 2.0).rem_euclid(h) - h / 2.0;
            let m = ideal_coverage(self.shape, self.radius, dx, dy);
            for c in 0..3 {
                let ground = BACKGROUNDS[self.background].1[c] * gradient(y / h);
                let value = ground + m * (COLOURS[self.colour].1[c] - ground);
                pixel[c] = (255.0 * value + self.noise * noise(&mut state))
                    .round()
                    .clamp(0.0, 255.0) as u8;
            }
        }
        out
    }

    /// What is seen in the first `frames` pictures.
    pub fn track(&self, frames: u32) -> Track {
        let mut track = Track::new(self.size.0, self.size.1, 24.0);
        (0..frames).for_each(|f| track.push(look(&self.draw(f))));
        track
    }
}
