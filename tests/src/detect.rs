//! A judge of the moving-shapes world that sees frames only: which shape, in which colour, over
//! which background, where, and whether it goes on the same way across a seam.
//!
//! The world is the one that `configs/models/ltxv-tiny/train/world.py` draws: one shape on a
//! vertical gradient, opposite edges joined. Positions are on that torus, in pixels.

mod motion;
mod scene;
#[cfg(test)]
mod tests;

pub use motion::{Continuity, MOST_DEVIATION_PX, SeamMotion, Track, continuity};
pub use scene::Scene;

use longtake_common::Frame;
use std::f64::consts::TAU;

/// Colours of shapes: name and R, G, B in 0..1.
pub const COLOURS: [(&str, [f64; 3]); 8] = [
    ("red", [0.9, 0.1, 0.1]),
    ("green", [0.1, 0.75, 0.2]),
    ("blue", [0.15, 0.25, 0.95]),
    ("yellow", [0.95, 0.85, 0.1]),
    ("purple", [0.6, 0.15, 0.8]),
    ("orange", [0.98, 0.5, 0.05]),
    ("white", [0.97, 0.97, 0.97]),
    ("cyan", [0.1, 0.85, 0.9]),
];

/// Colours of backgrounds, in the middle of the gradient.
pub const BACKGROUNDS: [(&str, [f64; 3]); 5] = [
    ("black", [0.05, 0.05, 0.06]),
    ("gray", [0.45, 0.45, 0.45]),
    ("brown", [0.35, 0.22, 0.12]),
    ("navy", [0.05, 0.08, 0.3]),
    ("olive", [0.35, 0.38, 0.12]),
];

/// Names of the shapes.
pub const SHAPES: [&str; 3] = ["ball", "square", "triangle"];

/// Between the radii of small (18 px) and big (30 px) shapes.
const BIG_FROM_PX: f64 = 24.0;
/// Distance of colours (0..1 a channel) below which a pixel is background for certain.
const GROUND_NOISE: f64 = 0.12;
/// Pixels that a shape's core must have.
const SMALLEST_CORE: usize = 60;
/// Farther from its centre (pixels) nothing belongs to the shape.
const REACH_PX: f64 = 48.0;

/// Brightness of the background at a height of 0 (top) to 1.
pub fn gradient(height: f64) -> f64 {
    0.75 + 0.5 * height
}

/// What one frame shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sighting {
    /// Name of the background's colour.
    pub background: &'static str,
    /// Name of the shape's colour.
    pub colour: &'static str,
    /// Name of the shape.
    pub shape: &'static str,
    /// Overlap of the shape found with the ideal one: intersection over union, 0..1.
    pub likeness: f64,
    /// "Radius" as the world counts it, in pixels.
    pub radius_px: f64,
    /// Centre of gravity across, 0..width.
    pub x: f64,
    /// Centre of gravity down, 0..height.
    pub y: f64,
}

impl Sighting {
    /// `small` or `big`.
    pub fn size(&self) -> &'static str {
        if self.radius_px < BIG_FROM_PX {
            "small"
        } else {
            "big"
        }
    }
}

/// Finds the shape in a frame; `None` when there is none.
pub fn look(frame: &Frame) -> Option<Sighting> {
    if frame.width() < 8 || frame.height() < 8 {
        return None;
    }
    let view = View::new(frame);
    let colour = view.object_colour()?;
    let coverage = view.coverage(colour);
    let (x, y) = coverage.centre()?;
    let blob = coverage.around(x, y);
    let (x, y) = blob.centre;
    let (shape, radius_px, likeness) = blob.evened().shape();
    Some(Sighting {
        background: view.background(),
        colour: nearest(&COLOURS, colour),
        shape,
        likeness,
        radius_px,
        x: x.rem_euclid(f64::from(frame.width())),
        y: y.rem_euclid(f64::from(frame.height())),
    })
}

fn nearest(palette: &[(&'static str, [f64; 3])], colour: [f64; 3]) -> &'static str {
    let distance = |&&(_, c): &&(&str, [f64; 3])| distance(c, colour);
    palette
        .iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .map(|(name, _)| *name)
        .expect("a palette is not empty")
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (0..3)
        .map(|c| (a[c] - b[c]) * (a[c] - b[c]))
        .sum::<f64>()
        .sqrt()
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// A frame and the background behind it: the median of each row, which no shape is wide enough
/// to move.
struct View<'a> {
    frame: &'a Frame,
    ground: Vec<[f64; 3]>,
}

impl<'a> View<'a> {
    fn new(frame: &'a Frame) -> Self {
        let ground = (0..frame.height())
            .map(|y| {
                std::array::from_fn(|c| {
                    let channel = |x| f64::from(frame.pixel(x, y)[c]) / 255.0;
                    median(&mut (0..frame.width()).map(channel).collect::<Vec<_>>())
                })
            })
            .collect();
        Self { frame, ground }
    }

    fn pixel(&self, x: u32, y: u32) -> [f64; 3] {
        self.frame.pixel(x, y).map(|v| f64::from(v) / 255.0)
    }

    fn background(&self) -> &'static str {
        let rows = self.ground.len() as f64;
        let mut flat = [0.0; 3];
        for (y, ground) in self.ground.iter().enumerate() {
            for c in 0..3 {
                flat[c] += ground[c] / gradient((y as f64 + 0.5) / rows) / rows;
            }
        }
        nearest(&BACKGROUNDS, flat)
    }

    /// Median colour of the pixels that differ most from the background.
    fn object_colour(&self) -> Option<[f64; 3]> {
        let mut far: Vec<(f64, [f64; 3])> = Vec::new();
        for y in 0..self.frame.height() {
            for x in 0..self.frame.width() {
                let pixel = self.pixel(x, y);
                let d = distance(pixel, self.ground[y as usize]);
                if d > GROUND_NOISE {
                    far.push((d, pixel));
                }
            }
        }
        if far.len() < SMALLEST_CORE {
            return None;
        }
        let usual = median(&mut far.iter().map(|f| f.0).collect::<Vec<_>>());
        far.retain(|f| f.0 > 0.7 * usual);
        Some(std::array::from_fn(|c| {
            median(&mut far.iter().map(|f| f.1[c]).collect::<Vec<_>>())
        }))
    }

    /// How much of each pixel the shape covers: its place between background and `colour`.
    fn coverage(&self, colour: [f64; 3]) -> Coverage {
        let (width, height) = (self.frame.width() as usize, self.frame.height() as usize);
        let mut cells = Vec::with_capacity(width * height);
        for y in 0..height {
            let ground = self.ground[y];
            let axis: [f64; 3] = std::array::from_fn(|c| colour[c] - ground[c]);
            let length: f64 = axis.iter().map(|a| a * a).sum::<f64>().max(1e-6);
            for x in 0..width {
                let pixel = self.pixel(x as u32, y as u32);
                let along: f64 = (0..3).map(|c| (pixel[c] - ground[c]) * axis[c]).sum();
                let share = along / length;
                cells.push(if share < 0.2 { 0.0 } else { share.min(1.0) });
            }
        }
        Coverage {
            width,
            height,
            cells,
        }
    }
}

struct Coverage {
    width: usize,
    height: usize,
    cells: Vec<f64>,
}

impl Coverage {
    /// Circular mean of the coverage on the torus.
    fn centre(&self) -> Option<(f64, f64)> {
        let mut across = vec![0.0; self.width];
        let mut down = vec![0.0; self.height];
        for (i, &m) in self.cells.iter().enumerate() {
            across[i % self.width] += m;
            down[i / self.width] += m;
        }
        let mean = |weights: &[f64]| {
            let n = weights.len() as f64;
            let angle = |i: usize| (i as f64 + 0.5) / n * TAU;
            let sum = |f: fn(f64) -> f64| {
                weights
                    .iter()
                    .enumerate()
                    .map(|(i, w)| w * f(angle(i)))
                    .sum::<f64>()
            };
            (sum(f64::sin).atan2(sum(f64::cos)) / TAU).rem_euclid(1.0) * n
        };
        (across.iter().sum::<f64>() > 0.0).then(|| (mean(&across), mean(&down)))
    }

    /// The coverage near a point, in coordinates without edges, and its centre of gravity.
    fn around(&self, mut x: f64, mut y: f64) -> Blob {
        let (w, h) = (self.width as f64, self.height as f64);
        let offset = |d: f64, n: f64| (d + n / 2.0).rem_euclid(n) - n / 2.0;
        let mut points = Vec::new();
        for _ in 0..3 {
            points.clear();
            let (mut sum, mut sx, mut sy) = (0.0, 0.0, 0.0);
            for (i, &m) in self.cells.iter().enumerate() {
                let dx = offset((i % self.width) as f64 + 0.5 - x, w);
                let dy = offset((i / self.width) as f64 + 0.5 - y, h);
                if dx.abs() <= REACH_PX && dy.abs() <= REACH_PX {
                    points.push((dx, dy, m));
                    (sum, sx, sy) = (sum + m, sx + m * dx, sy + m * dy);
                }
            }
            if sum <= 0.0 {
                break;
            }
            x += sx / sum;
            y += sy / sum;
            points
                .iter_mut()
                .for_each(|p| (p.0, p.1) = (p.0 - sx / sum, p.1 - sy / sum));
        }
        Blob {
            centre: (x, y),
            points,
        }
    }
}

/// A shape's pixels: (right, down) of its centre of gravity, coverage.
struct Blob {
    centre: (f64, f64),
    points: Vec<(f64, f64, f64)>,
}

impl Blob {
    /// The blob stretched, by at most a quarter, to spread as far across as down, as all ideal
    /// shapes do: a model that draws a square a little too wide has still drawn a square.
    fn evened(mut self) -> Self {
        let spread = |of: fn(&(f64, f64, f64)) -> f64| {
            self.points
                .iter()
                .map(|p| p.2 * of(p) * of(p))
                .sum::<f64>()
                .max(1e-9)
        };
        let wide = (spread(|p| p.0) / spread(|p| p.1))
            .sqrt()
            .clamp(0.8, 1.25)
            .sqrt();
        self.points
            .iter_mut()
            .for_each(|p| (p.0, p.1) = (p.0 / wide, p.1 * wide));
        self
    }

    /// The ideal shape of about this area that overlaps best: (name, radius, overlap).
    fn shape(&self) -> (&'static str, f64, f64) {
        let area: f64 = self.points.iter().map(|p| p.2).sum();
        let mut best = (SHAPES[0], 0.0, -1.0);
        for shape in SHAPES {
            let fitting = (area / unit_area(shape)).sqrt();
            for radius in [0.94, 0.97, 1.0, 1.03, 1.06].map(|f| f * fitting) {
                let overlap = self.overlap(shape, radius);
                if overlap > best.2 {
                    best = (shape, radius, overlap);
                }
            }
        }
        best
    }

    fn overlap(&self, shape: &str, radius: f64) -> f64 {
        let below = gravity_below_centre(shape) * radius;
        let (mut both, mut any) = (0.0, 0.0);
        for &(dx, dy, m) in &self.points {
            let ideal = ideal_coverage(shape, radius, dx, dy + below);
            both += m.min(ideal);
            any += m.max(ideal);
        }
        both / f64::max(any, 1e-9)
    }
}

/// Area of a shape of radius 1.
fn unit_area(shape: &str) -> f64 {
    match shape {
        "ball" => std::f64::consts::PI,
        "square" => 1.8 * 1.8,
        // Height 0.8 + 0.8 / 0.62, half its base that over 1.7.
        _ => (0.8 + 0.8 / 0.62) * (0.8 + 0.8 / 0.62) / 1.7,
    }
}

/// How far a shape of radius 1 has its centre of gravity below its centre.
fn gravity_below_centre(shape: &str) -> f64 {
    if shape == "triangle" {
        0.8 - (0.8 + 0.8 / 0.62) / 3.0
    } else {
        0.0
    }
}

/// Coverage of a pixel at (`dx`, `dy`) from a shape's centre, as the world draws it.
pub fn ideal_coverage(shape: &str, radius: f64, dx: f64, dy: f64) -> f64 {
    let inside = match shape {
        "ball" => radius - dx.hypot(dy),
        "square" => 0.9 * radius - dx.abs().max(dy.abs()),
        _ => (0.8 * radius - dy).min((0.8 * radius - (1.7 * dx.abs() - dy) * 0.62) / 1.223),
    };
    inside.clamp(-0.75, 0.75) / 1.5 + 0.5
}
