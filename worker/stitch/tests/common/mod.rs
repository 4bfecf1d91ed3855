//! Pictures whose motion is known.

#![allow(dead_code, reason = "each test file uses a part")]

use longtake_common::Frame;

/// A picture from a function of (x, y) to R, G, B in 0..255.
pub fn picture(width: u32, height: u32, of: impl Fn(f64, f64) -> [f64; 3]) -> Frame {
    let mut frame = Frame::black(width, height);
    for (i, pixel) in frame.data_mut().chunks_exact_mut(3).enumerate() {
        let (x, y) = (i as u32 % width, i as u32 / width);
        let value = of(f64::from(x), f64::from(y));
        (0..3).for_each(|c| pixel[c] = (value[c] + 0.5) as u8);
    }
    frame
}

/// A texture without period in the pictures used here: waves of many directions and lengths.
pub fn texture(x: f64, y: f64) -> [f64; 3] {
    let mut value = [128.0; 3];
    for k in 0..28 {
        let k = f64::from(k);
        let (angle, length) = (k * 2.399, 5.0 * 1.14f64.powf(k));
        let phase = (x * angle.cos() + y * angle.sin()) * std::f64::consts::TAU / length + k * k;
        for (c, value) in value.iter_mut().enumerate() {
            *value += (6.0 + 0.3 * k) * (phase + 0.2 * c as f64).sin();
        }
    }
    value.map(|v| v.clamp(0.0, 255.0))
}

/// A coloured ball over a flat gradient, as the tiny model draws it.
pub struct Ball {
    pub radius: f64,
    pub x: f64,
    pub y: f64,
    pub colour: [f64; 3],
    pub ground: [f64; 3],
}

impl Ball {
    pub fn draw(&self, width: u32, height: u32) -> Frame {
        picture(width, height, |x, y| {
            let m = (self.radius - (x + 0.5 - self.x).hypot(y + 0.5 - self.y)).clamp(-0.75, 0.75)
                / 1.5
                + 0.5;
            let bright = 0.75 + 0.5 * y / f64::from(height);
            std::array::from_fn(|c| {
                let ground = self.ground[c] * bright;
                (ground + m * (self.colour[c] - ground)).clamp(0.0, 255.0)
            })
        })
    }
}

/// Runs `work` on a pool of so many threads.
pub fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool")
        .install(work)
}
