//! Configuration of the official scheduler.

use super::SchedulerConfig;
use serde::{Deserialize, Serialize};

/// How levels are spaced before they are shifted (`sampler`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeSampler {
    /// Evenly.
    #[default]
    Uniform,
    /// Half of the steps fall slowly, the others quadratically.
    LinearQuadratic,
    /// Evenly, then shifted by `shift`.
    Constant,
}

/// How levels are shifted by the window's size (`shifting`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeShifting {
    /// As in Stable Diffusion 3 and Flux, between 1024 and 4096 tokens.
    #[serde(rename = "SD3")]
    Sd3,
    /// As in simple diffusion, by the ratio of token counts.
    SimpleDiffusion,
}

/// `scheduler` in the metadata of an official file: `RectifiedFlowScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the official code's")]
pub struct RectifiedFlowConfig {
    pub sampler: TimeSampler,
    pub shifting: Option<TimeShifting>,
    /// Tokens at which simple diffusion does not shift.
    #[serde(deserialize_with = "or_default")]
    pub base_resolution: usize,
    pub target_shift_terminal: Option<f64>,
    /// Shift of [`TimeSampler::Constant`].
    #[serde(deserialize_with = "or_zero")]
    pub shift: f64,
}

fn or_default<'de, D: serde::Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(RectifiedFlowConfig::default().base_resolution))
}

fn or_zero<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl Default for RectifiedFlowConfig {
    fn default() -> Self {
        Self {
            sampler: TimeSampler::Uniform,
            shifting: None,
            base_resolution: 1024,
            target_shift_terminal: None,
            shift: 0.0,
        }
    }
}

impl RectifiedFlowConfig {
    /// Linear-quadratic, unshifted: LTX-Video 0.9.5 and later.
    pub fn linear_quadratic() -> Self {
        Self {
            sampler: TimeSampler::LinearQuadratic,
            ..Self::default()
        }
    }

    /// Shifted by size and stretched to `terminal`: LTX-Video 0.9 and ComfyUI's LTXVScheduler.
    pub fn sd3(terminal: f64) -> Self {
        Self {
            shifting: Some(TimeShifting::Sd3),
            target_shift_terminal: Some(terminal),
            ..Self::default()
        }
    }
}

impl From<&SchedulerConfig> for RectifiedFlowConfig {
    /// What the official file of a Diffusers folder says: the early models shift by size, those
    /// from 0.9.5 on, whose folders do not, are linear-quadratic.
    fn from(c: &SchedulerConfig) -> Self {
        if c.use_dynamic_shifting {
            Self {
                shifting: Some(TimeShifting::Sd3),
                target_shift_terminal: c.shift_terminal,
                ..Self::default()
            }
        } else {
            Self::linear_quadratic()
        }
    }
}
