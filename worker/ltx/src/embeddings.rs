//! Sinusoids: timestep embedding and rotary positions, in f32 where diffusers takes f32.
//!
//! Angles reach tens of thousands of radians, so the order of the f32 operations is part of the
//! definition; functions are taken in f64 of the f32 angle and rounded.

use crate::config::PipelineClass;
use crate::error::{InPart, Result};
use crate::weights::Weights;
use longtake_tensor::{Activation, Backend, Loader, Rope, RopeAxes, Shape};
use std::f32::consts::PI;

/// Channels of the sinusoid that the timestep MLPs read.
const SINUSOID: usize = 256;

/// `PixArtAlphaCombinedTimestepSizeEmbeddings` without sizes: sinusoid, linear, SiLU, linear.
pub(crate) struct TimestepEmbedder<B: Loader> {
    linear_1: B::Matrix,
    linear_2: B::Matrix,
}

impl<B: Loader> TimestepEmbedder<B> {
    /// Loads the embedder `name` that gives `dim` channels.
    pub fn load(b: &B, weights: &Weights, name: &str, dim: usize) -> Result<Self> {
        let layer = |i: usize| format!("{name}.timestep_embedder.linear_{i}");
        Ok(Self {
            linear_1: weights.matrix(b, &layer(1), dim, SINUSOID, true)?,
            linear_2: weights.matrix(b, &layer(2), dim, dim, true)?,
        })
    }
}

impl<B: Backend> TimestepEmbedder<B> {
    /// `[T, dim]` for timesteps of 0..1000.
    pub fn forward(&self, b: &B, timesteps: &[f32]) -> longtake_tensor::Result<B::Tensor> {
        let shape = Shape::from([timesteps.len(), SINUSOID]);
        self.embed(b, &b.upload(shape, &sinusoid(timesteps))?)
    }

    /// `[T, dim]` for the sinusoids `[T, 256]` of timesteps.
    pub fn embed(&self, b: &B, sinusoid: &B::Tensor) -> longtake_tensor::Result<B::Tensor> {
        let x = b.linear(sinusoid, &self.linear_1, Activation::Silu)?;
        b.linear(&x, &self.linear_2, Activation::None)
    }
}

/// Sinusoids of timesteps on the backend, `[T, 256]`.
pub fn timestep_sinusoid<B: Loader>(b: &B, timesteps: &[f32]) -> Result<B::Tensor> {
    let shape = Shape::from([timesteps.len(), SINUSOID]);
    b.upload(shape, &sinusoid(timesteps))
        .in_part(|| "timesteps".into())
}

/// `[T, 256]`: cosines, then sines, of `t exp(-ln(10000) i / 128)`.
fn sinusoid(timesteps: &[f32]) -> Vec<f32> {
    let half = SINUSOID / 2;
    let log_period = -(libm::log(10000.0) as f32);
    let frequency: Vec<f32> = (0..half)
        .map(|i| libm::exp(f64::from(log_period * i as f32 / half as f32)) as f32)
        .collect();
    let angles = |t: f32| frequency.iter().map(move |f| f64::from(t * f));
    timesteps
        .iter()
        .flat_map(|&t| angles(t).map(libm::cos).chain(angles(t).map(libm::sin)))
        .map(|v| v as f32)
        .collect()
}

/// A latent frame in front of the window's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// Frame of the video that it shows.
    pub frame: usize,
    /// Cells of the window to each of its own, down and across.
    pub stride: usize,
}

/// Where the cells of a window are.
#[derive(Clone, Debug, PartialEq)]
pub struct Positions {
    /// Latents in front of the window's own.
    pub in_front: Vec<Front>,
    /// Latent frames.
    pub frames: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
    /// Frames a second.
    pub fps: f64,
    /// Which convention for the time of a latent frame.
    pub class: PipelineClass,
    /// Whether latent 0 stands for one frame (`causal_temporal_positioning`); where `class` leaves
    /// that to the checkpoint.
    pub causal: bool,
    /// Frames to a latent frame.
    pub time_ratio: usize,
    /// Pixels to a latent cell.
    pub space_ratio: usize,
}

impl Positions {
    /// Time of latent frame `f` as a share of 20 seconds.
    fn time(&self, f: usize) -> f32 {
        match self.class {
            PipelineClass::Plain => f as f32 * (self.time_ratio as f64 / self.fps) as f32 / 20.0,
            _ if self.causal => {
                self.frame_time((self.time_ratio * f + 1).saturating_sub(self.time_ratio))
            }
            _ => self.frame_time(self.time_ratio * f),
        }
    }

    /// Time of a frame of the video as a share of 20 seconds.
    fn frame_time(&self, frame: usize) -> f32 {
        frame as f32 * (1.0 / self.fps) as f32 / 20.0
    }

    /// Place of row or column `i` as a share of 2048 pixels.
    fn place(&self, i: usize) -> f32 {
        i as f32 * self.space_ratio as f32 / 2048.0
    }
}

/// Frequencies by axis: `10000^linspace(0, 1, n) pi / 2`.
fn rope_frequencies(n: usize) -> Vec<f32> {
    let step = if n > 1 { 1.0 / (n - 1) as f32 } else { 0.0 };
    (0..n)
        .map(|i| {
            // torch's linspace counts from the nearer end, with one rounding from the far one.
            let from_end = || (1.0 - f64::from(step) * (n - 1 - i) as f64) as f32;
            let exponent = if i < n / 2 || n == 1 {
                step * i as f32
            } else {
                from_end()
            };
            libm::pow(10000.0, f64::from(exponent)) as f32 * PI / 2.0
        })
        .collect()
}

/// Rotations for tokens of `dim` channels: pairs of identity in front, then frequency by
/// frequency the three axes.
pub fn rope<B: Backend>(b: &B, at: &Positions, dim: usize) -> Result<Rope<B>> {
    let frequencies = rope_frequencies(dim / 6);
    // cos and sin of every coordinate that occurs: a row of frequencies for each.
    let table = |coordinates: Vec<f32>| -> Vec<f32> {
        let row = |x: f32| {
            let angles = frequencies
                .iter()
                .map(move |f| f64::from(f * (x * 2.0 - 1.0)));
            angles.flat_map(|a| [libm::cos(a) as f32, libm::sin(a) as f32])
        };
        coordinates.into_iter().flat_map(row).collect()
    };
    let in_front = at.in_front.iter().map(|front| at.frame_time(front.frame));
    let strides = at.in_front.iter().map(|front| front.stride);
    let axes = RopeAxes {
        identity: dim % 6 / 2,
        frequencies: frequencies.len(),
        tables: [
            table(in_front.chain((0..at.frames).map(|f| at.time(f))).collect()),
            table((0..at.height).map(|y| at.place(y)).collect()),
            table((0..at.width).map(|x| at.place(x)).collect()),
        ],
        strides: strides.chain(std::iter::repeat_n(1, at.frames)).collect(),
    };
    b.rope(&axes).in_part(|| "rotary positions".into())
}
