//! Where the shape goes: lines through positions on the torus, and whether seams break them.

use super::Sighting;

/// Frames before a seam to which a straight motion is fitted.
const FITTED_FRAMES: usize = 24;
/// Fewest of them that are enough.
const FEWEST_FITTED: usize = 8;
/// Between 40 and 90 pixels a second.
const QUICK_FROM: f64 = 62.0;

/// Most pixels that a position may differ from the motion before a seam.
pub const MOST_DEVIATION_PX: f64 = 3.0;

/// Sightings of a film, frame by frame.
#[derive(Clone, Debug)]
pub struct Track {
    width: f64,
    height: f64,
    fps: f64,
    sightings: Vec<Option<Sighting>>,
}

impl Track {
    /// An empty track of a film with pictures of this size.
    pub fn new(width: u32, height: u32, fps: f64) -> Self {
        Self {
            width: f64::from(width),
            height: f64::from(height),
            fps,
            sightings: Vec::new(),
        }
    }

    /// Adds what the next frame shows.
    pub fn push(&mut self, sighting: Option<Sighting>) {
        self.sightings.push(sighting);
    }

    /// What each frame shows.
    pub fn sightings(&self) -> &[Option<Sighting>] {
        &self.sightings
    }

    /// The value most frames agree on, and the frames that show another one or nothing.
    pub fn majority(&self, of: fn(&Sighting) -> &'static str) -> (&'static str, Vec<u32>) {
        let seen: Vec<_> = self.sightings.iter().map(|s| s.as_ref().map(of)).collect();
        let mut names: Vec<&'static str> = seen.iter().flatten().copied().collect();
        names.sort_unstable();
        names.dedup();
        let count = |name: &&'static str| seen.iter().filter(|s| **s == Some(*name)).count();
        let Some(winner) = names.into_iter().max_by_key(count) else {
            return ("nothing", (0..seen.len() as u32).collect());
        };
        let others = (0..seen.len())
            .filter(|&i| seen[i] != Some(winner))
            .map(|i| i as u32);
        (winner, others.collect())
    }

    /// Straight motion fitted to the frames from `first` to before `end`; `None` when the shape is
    /// seen in fewer than eight of them.
    fn line(&self, first: usize, end: usize) -> Option<Line> {
        let end = end.min(self.sightings.len());
        let seen: Vec<(f64, Sighting)> = (first.min(end)..end)
            .filter_map(|i| self.sightings[i].map(|s| (i as f64, s)))
            .collect();
        if seen.len() < FEWEST_FITTED {
            return None;
        }
        let across: Vec<_> = seen.iter().map(|(t, s)| (*t, s.x)).collect();
        let down: Vec<_> = seen.iter().map(|(t, s)| (*t, s.y)).collect();
        Some(Line {
            x: fit(&across, self.width),
            y: fit(&down, self.height),
        })
    }

    /// Velocity (right, down) in pixels a second over the whole film.
    pub fn velocity(&self) -> Option<(f64, f64)> {
        let line = self.line(0, self.sightings.len())?;
        Some((line.x.1 * self.fps, line.y.1 * self.fps))
    }

    /// `left`, `right`, `up` or `down`.
    pub fn direction(&self) -> Option<&'static str> {
        let (vx, vy) = self.velocity()?;
        Some(match (vx.abs() >= vy.abs(), vx > 0.0, vy > 0.0) {
            (true, true, _) => "right",
            (true, false, _) => "left",
            (false, _, true) => "down",
            (false, _, false) => "up",
        })
    }

    /// `slowly` or `quickly`.
    pub fn speed(&self) -> Option<&'static str> {
        let (vx, vy) = self.velocity()?;
        Some(if vx.hypot(vy) < QUICK_FROM {
            "slowly"
        } else {
            "quickly"
        })
    }

    /// Distance on the torus between where the shape is at `frame` and where `line` leads.
    fn deviation(&self, line: &Line, frame: usize) -> f64 {
        let Some(Some(s)) = self.sightings.get(frame) else {
            return f64::INFINITY;
        };
        let t = frame as f64;
        let dx = wrapped(s.x - line.x.0 - line.x.1 * t, self.width);
        let dy = wrapped(s.y - line.y.0 - line.y.1 * t, self.height);
        dx.hypot(dy)
    }
}

/// (position at frame 0, pixels a frame) along both axes, unwrapped.
struct Line {
    x: (f64, f64),
    y: (f64, f64),
}

/// The representative of `d` on a circle of length `n` that is closest to 0.
fn wrapped(d: f64, n: f64) -> f64 {
    (d + n / 2.0).rem_euclid(n) - n / 2.0
}

/// Least squares line through positions on a circle of length `n`: (offset, slope).
fn fit(points: &[(f64, f64)], n: f64) -> (f64, f64) {
    let mut at = points[0].1;
    let mut last = at;
    let unwrapped: Vec<(f64, f64)> = points
        .iter()
        .map(|&(t, p)| {
            at += wrapped(p - last, n);
            last = p;
            (t, at)
        })
        .collect();
    let count = unwrapped.len() as f64;
    let mt = unwrapped.iter().map(|p| p.0).sum::<f64>() / count;
    let mp = unwrapped.iter().map(|p| p.1).sum::<f64>() / count;
    let cov: f64 = unwrapped.iter().map(|p| (p.0 - mt) * (p.1 - mp)).sum();
    let var: f64 = unwrapped.iter().map(|p| (p.0 - mt) * (p.0 - mt)).sum();
    let slope = if var > 0.0 { cov / var } else { 0.0 };
    (mp - slope * mt, slope)
}

/// How the shape gets across one seam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeamMotion {
    /// First frame of the overlap.
    pub frame: u32,
    /// Farthest, in pixels, that the shape is from the straight motion fitted over the 24 frames
    /// before the overlap, over all frames of the overlap and the one after it. Infinite when the
    /// shape is not seen there or not before.
    pub deviation_px: f64,
    /// The same with the motion fitted anew over the 24 frames before each of those frames: what
    /// one step adds.
    pub jump_px: f64,
}

/// Whether a film is one continuous motion of one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuity {
    /// Colour in most frames.
    pub colour: &'static str,
    /// Frames that show another colour, or nothing.
    pub other_colour: Vec<u32>,
    /// Shape in most frames.
    pub shape: &'static str,
    /// Frames that show another shape, or nothing.
    pub other_shape: Vec<u32>,
    /// Each seam.
    pub seams: Vec<SeamMotion>,
}

impl Continuity {
    /// Same colour and shape in every frame, and at most 3 px off at every seam.
    pub fn holds(&self) -> bool {
        self.other_colour.is_empty()
            && self.other_shape.is_empty()
            && self
                .seams
                .iter()
                .all(|s| s.deviation_px <= MOST_DEVIATION_PX)
    }
}

/// Judges a film with these seams: (first frame of the overlap, frames of the overlap).
pub fn continuity(track: &Track, seams: &[(u32, u32)]) -> Continuity {
    let (colour, other_colour) = track.majority(|s| s.colour);
    let (shape, other_shape) = track.majority(|s| s.shape);
    let seams = seams
        .iter()
        .map(|&(frame, overlap)| seam_motion(track, frame, overlap))
        .collect();
    Continuity {
        colour,
        other_colour,
        shape,
        other_shape,
        seams,
    }
}

fn seam_motion(track: &Track, first: u32, overlap: u32) -> SeamMotion {
    let begin = first as usize;
    let end = (begin + overlap as usize + 1).min(track.sightings.len());
    let before = |frame: usize| track.line(frame.saturating_sub(FITTED_FRAMES), frame);
    let line = before(begin);
    let worst = |deviation: &dyn Fn(usize) -> f64| (begin..end).map(deviation).fold(0.0, f64::max);
    let off = |line: &Option<Line>, frame: usize| {
        line.as_ref()
            .map_or(f64::INFINITY, |line| track.deviation(line, frame))
    };
    SeamMotion {
        frame: first,
        deviation_px: worst(&|frame| off(&line, frame)),
        jump_px: worst(&|frame| off(&before(frame), frame)),
    }
}
