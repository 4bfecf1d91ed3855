//! What a job will take: time, memory, disk.

use crate::pace::Basis;
use crate::progress::duration;
use longtake_common::spec::{Codec, JobSpec, PIXELS_PER_LATENT};
use longtake_core::{Forecast, Plan, forecast};
use serde::Serialize;
use std::ops::Add;

/// Channels of a latent, f32 each.
const LATENT_CELL_BYTES: f64 = 128.0 * 4.0;
/// Widest encoder states of a prompt that a token has, in bytes: T5-XXL's 4096 channels in f32.
const TOKEN_BYTES: f64 = 4096.0 * 4.0;
/// Bytes that a pixel takes without loss: flat pictures, and noise.
const LOSSLESS_BYTES: Range = Range {
    low: 0.05,
    high: 3.0,
};
/// The same in H.264 at our quantiser.
const H264_BYTES: Range = Range {
    low: 0.005,
    high: 0.5,
};

/// From the least to the most that is likely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Range {
    /// Least.
    pub low: f64,
    /// Most.
    pub high: f64,
}

impl Range {
    fn around(value: f64, spread: f64) -> Self {
        Self {
            low: value / spread,
            high: value * spread,
        }
    }

    fn times(self, factor: f64) -> Self {
        Self {
            low: self.low * factor,
            high: self.high * factor,
        }
    }
}

impl Add for Range {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            low: self.low + other.low,
            high: self.high + other.high,
        }
    }
}

/// Time and memory of a job.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Seconds from the first task to the film, when the farm does nothing else.
    pub eta_s: Range,
    /// Seconds that devices work, in all.
    pub device_s: Range,
    /// Workers that this is for.
    pub workers: usize,
    /// Peak memory of each, in bytes.
    pub worker_memory_bytes: u64,
    /// Whether it rests on what was measured.
    pub measured: bool,
    /// What it rests on.
    pub basis: String,
    /// The middle of `eta_s`.
    #[serde(skip)]
    wall_s: f64,
}

impl Estimate {
    /// Plays the job through on `workers` workers.
    pub fn new(spec: &JobSpec, plan: &Plan, basis: &Basis, workers: usize) -> Self {
        let workers = workers.max(1);
        let Forecast {
            wall_s, device_s, ..
        } = forecast(spec, plan, workers, |kind| basis.cost(spec, plan, kind));
        Self {
            eta_s: Range::around(wall_s, basis.spread),
            device_s: Range::around(device_s, basis.spread),
            workers,
            worker_memory_bytes: basis.worker_bytes(spec, plan),
            measured: basis.is_measured,
            basis: basis.source.clone(),
            wall_s,
        }
    }

    /// How many times as long as the middle of the estimate it took.
    pub fn off(&self, took_s: f64) -> f64 {
        took_s / self.wall_s.max(1e-6)
    }

    /// For people.
    pub fn text(&self) -> String {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        format!(
            "time: {} to {} on {} worker{} ({} to {} of device time)\n\
             memory: {} for each worker\n\
             rests on: {}",
            duration(self.eta_s.low),
            duration(self.eta_s.high),
            self.workers,
            plural(self.workers),
            duration(self.device_s.low),
            duration(self.device_s.high),
            size(self.worker_memory_bytes as f64),
            self.basis
        )
    }
}

/// Bytes that a job leaves in the artifact store until they are removed, the film included.
pub fn artifact_bytes(spec: &JobSpec, plan: &Plan) -> Range {
    let cells = |size: [u32; 2]| {
        let [rows, columns] = size.map(|side| f64::from(side / PIXELS_PER_LATENT));
        rows * columns
    };
    let last = cells(spec.sampling.last_size(spec.padded()));
    let first = match spec.sampling.second_pass {
        None => 0.0,
        Some(_) => cells(spec.sampling.first_size(spec.padded())),
    };
    let cells = first + last;
    let latents: f64 = plan
        .windows
        .iter()
        .map(|window| f64::from(window.latents()))
        .sum();
    let seams = plan.joined().count() as f64;
    let tails = seams * f64::from((plan.overlap_frames - 1) / 8 + 1);
    let texts = 1.0 + plan.text_shots().count() as f64;
    let exact = (latents + tails) * cells * LATENT_CELL_BYTES;
    // Smaller models have narrower states.
    let texts = Range {
        low: 0.0,
        high: texts * f64::from(spec.sampling.text_tokens) * TOKEN_BYTES,
    };
    let pixels = f64::from(spec.width) * f64::from(spec.height);
    let shared = plan.windows.iter().map(|window| {
        let shares = plan.shares(window.index);
        let packed =
            shares.head_frames + shares.relax_frames + shares.lead_frames + shares.tail_frames;
        f64::from(packed)
    });
    let packs = LOSSLESS_BYTES.times(shared.sum::<f64>() * pixels);
    let frames = f64::from(spec.frames) * pixels;
    let chunks = match spec.codec {
        // The chunks, and the film made of them.
        Codec::H264 => H264_BYTES.times(2.0 * frames),
        Codec::Png => LOSSLESS_BYTES.times(frames),
    };
    let latents = Range {
        low: exact,
        high: exact,
    };
    latents + texts + packs + chunks
}

/// Bytes for people.
pub fn size(bytes: f64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value < 10.0 && unit > 0 {
        format!("{value:.1} {}", units[unit])
    } else {
        format!("{value:.0} {}", units[unit])
    }
}
