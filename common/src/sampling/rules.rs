//! The rules that sampling keeps, wherever it came from: a pipeline file, flags, or the wire.

use super::{Guidance, Pass, Sampling, Schedule};
use crate::request::{STEPS_MAX, SpecError, TEXT_TOKENS_MAX};

/// Largest factor of any guidance.
const GUIDANCE_MAX: f32 = 100.0;

impl Sampling {
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        for pass in self.passes() {
            pass.check()?;
        }
        if let Some(second) = &self.second_pass {
            let factor = second.downscale_factor;
            range(
                "downscale_factor",
                factor,
                factor > 0.0 && factor <= 1.0,
                "more than 0, at most 1",
            )?;
        }
        if !(1..=TEXT_TOKENS_MAX).contains(&self.text_tokens) {
            return Err(SpecError::TextTokens(self.text_tokens.into()));
        }
        share("decode_timestep", self.decode_timestep)?;
        share("decode_noise_scale", self.decode_noise_scale)
    }
}

impl Pass {
    fn check(&self) -> Result<(), SpecError> {
        self.schedule.check()?;
        if let Schedule::Steps(steps) = self.schedule {
            let skipped = u64::from(self.skip_initial_steps) + u64::from(self.skip_final_steps);
            if skipped >= steps.into() {
                return Err(SpecError::Skipped { skipped, steps });
            }
        }
        let strength = f64::from(self.strength);
        range(
            "strength",
            strength,
            strength > 0.0 && strength <= 1.0,
            "more than 0, at most 1",
        )?;
        share(
            "tone_map_compression_ratio",
            self.tone_map_compression_ratio,
        )?;
        if let Some(teacache) = &self.teacache {
            let threshold = f64::from(teacache.threshold);
            let holds = threshold.is_finite() && threshold > 0.0;
            range("teacache_threshold", threshold, holds, "a number above 0")?;
        }
        self.guidance.check()
    }
}

impl Guidance {
    fn check(&self) -> Result<(), SpecError> {
        if self.steps.is_empty() {
            return Err(SpecError::NoGuidance);
        }
        for step in &self.steps {
            share("guidance_timestep", step.timestep)?;
            if !(1.0..=GUIDANCE_MAX).contains(&step.guidance_scale) {
                return Err(SpecError::Guidance(step.guidance_scale));
            }
            let holds = (0.0..=GUIDANCE_MAX).contains(&step.stg_scale);
            range("stg_scale", step.stg_scale.into(), holds, "0 (off) to 100")?;
            share("rescaling_scale", step.rescaling_scale)?;
        }
        Ok(())
    }
}

impl Schedule {
    fn check(&self) -> Result<(), SpecError> {
        let timesteps = match self {
            Self::Steps(steps) if (1..=STEPS_MAX).contains(steps) => return Ok(()),
            Self::Steps(steps) => return Err(SpecError::Steps((*steps).into())),
            Self::Timesteps(timesteps) => timesteps,
        };
        if timesteps.is_empty() {
            return Err(SpecError::NoTimesteps);
        }
        if timesteps.len() > STEPS_MAX as usize {
            return Err(SpecError::Steps(timesteps.len() as i64));
        }
        let mut before = f32::INFINITY;
        for &timestep in timesteps {
            if !(timestep > 0.0 && timestep <= 1.0 && timestep < before) {
                return Err(SpecError::Timesteps(timestep));
            }
            before = timestep;
        }
        Ok(())
    }
}

fn share(what: &'static str, value: f32) -> Result<(), SpecError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(SpecError::Share { what, value })
    }
}

fn range(
    what: &'static str,
    value: f64,
    holds: bool,
    range: &'static str,
) -> Result<(), SpecError> {
    if holds {
        Ok(())
    } else {
        Err(SpecError::Range { what, value, range })
    }
}
