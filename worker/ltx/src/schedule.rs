//! Noise levels of a denoising pass, as `FlowMatchEulerDiscreteScheduler` and the two pipelines
//! of diffusers set them.

use crate::config::{PipelineClass, SchedulerConfig};
use crate::error::{Error, Result};
use crate::types::Steps;

/// The levels that a pass visits.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// What the transformer is told at each step, 0..1000.
    pub timesteps: Vec<f32>,
    /// Noise level at each step, and the terminal 0.
    pub sigmas: Vec<f32>,
    class: PipelineClass,
}

impl Schedule {
    /// Schedule for a window of `token_count` tokens.
    pub fn new(
        config: &SchedulerConfig,
        class: PipelineClass,
        steps: &Steps,
        token_count: usize,
    ) -> Result<Self> {
        match (steps, class) {
            (Steps::Timesteps(levels), _) => Self::explicit(config, class, levels),
            (&Steps::Count(0), _) => Err(request("at least one step is needed".into())),
            (&Steps::Count(count), PipelineClass::Condition) => {
                let timesteps: Vec<f32> = linear_quadratic(count)
                    .iter()
                    .map(|&level| level as f32 * 1000.0)
                    .collect();
                Ok(Self::from_timesteps(config, class, timesteps))
            }
            (&Steps::Count(count), PipelineClass::Plain) => {
                Ok(Self::flow_match(config, class, count, token_count))
            }
        }
    }

    fn explicit(config: &SchedulerConfig, class: PipelineClass, levels: &[f32]) -> Result<Self> {
        let falling = levels.windows(2).all(|pair| pair[0] > pair[1]);
        let inside = levels.iter().all(|&t| t > 0.0 && t <= 1.0);
        if levels.is_empty() || !falling || !inside {
            let message =
                format!("falling values above 0 and up to 1 are needed, found {levels:?}");
            return Err(request(message));
        }
        Ok(Self::from_timesteps(
            config,
            class,
            levels.iter().map(|&t| thousandfold(t)).collect(),
        ))
    }

    /// Timesteps are kept as given; the levels derived from them go through the configured shift,
    /// as in diffusers. A dynamic shift needs a length that diffusers has not at this point (it
    /// refuses), so the levels stay as they are then.
    fn from_timesteps(config: &SchedulerConfig, class: PipelineClass, timesteps: Vec<f32>) -> Self {
        let levels = timesteps.iter().map(|&t| t / 1000.0);
        let sigmas = if config.use_dynamic_shifting {
            levels.collect()
        } else {
            let shift = config.shift as f32;
            let shifted = levels
                .map(|s| shift * s / (1.0 + (shift - 1.0) * s))
                .collect();
            stretch(config, shifted)
        };
        Self {
            timesteps,
            sigmas: terminated(sigmas),
            class,
        }
    }

    fn flow_match(
        config: &SchedulerConfig,
        class: PipelineClass,
        count: usize,
        token_count: usize,
    ) -> Self {
        let last = 1.0 / count as f64;
        let step = if count > 1 {
            (last - 1.0) / (count - 1) as f64
        } else {
            0.0
        };
        let levels = (0..count).map(|i| (1.0 + step * i as f64) as f32);
        let sigmas = if config.use_dynamic_shifting {
            let mu = dynamic_shift(config, token_count);
            let offset = match config.time_shift_type.as_str() {
                "linear" => mu,
                _ => libm::exp(mu),
            } as f32;
            levels
                .map(|s| offset / (offset + (1.0 / s - 1.0)))
                .collect()
        } else {
            let shift = config.shift as f32;
            levels
                .map(|s| shift * s / (1.0 + (shift - 1.0) * s))
                .collect()
        };
        let sigmas = stretch(config, sigmas);
        let timesteps = sigmas.iter().map(|s| s * 1000.0).collect();
        Self {
            timesteps,
            sigmas: terminated(sigmas),
            class,
        }
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Whether there are no steps; never so for a schedule that was made.
    pub fn is_empty(&self) -> bool {
        self.timesteps.is_empty()
    }

    /// What the velocity is multiplied with at step `step`: the next level less the current one.
    pub fn delta(&self, step: usize) -> f32 {
        match self.class {
            PipelineClass::Plain => self.sigmas[step + 1] - self.sigmas[step],
            // diffusers steps per token here: from the token's timestep to the highest level below.
            PipelineClass::Condition => {
                let current = self.timesteps[step] / 1000.0;
                let below = self.sigmas.iter().filter(|&&s| s < current - 1e-6);
                below.fold(0.0, |a: f32, &b| a.max(b)) - current
            }
        }
    }
}

fn request(message: String) -> Error {
    Error::Request {
        what: "steps",
        message,
    }
}

/// `1000 t` for the decimal number that `t` stands for: 0.9094 becomes the f32 next to 909.4, as
/// for a user of diffusers who writes 909.4.
fn thousandfold(t: f32) -> f32 {
    let decimal: f64 = t.to_string().parse().unwrap_or(f64::from(t));
    (decimal * 1000.0) as f32
}

fn terminated(mut sigmas: Vec<f32>) -> Vec<f32> {
    sigmas.push(0.0);
    sigmas
}

/// Shift that grows with the number of tokens: diffusers' `calculate_shift`.
fn dynamic_shift(config: &SchedulerConfig, token_count: usize) -> f64 {
    let (base, max) = (
        config.base_shift.unwrap_or(0.5),
        config.max_shift.unwrap_or(1.15),
    );
    let (short, long) = (
        config.base_image_seq_len as f64,
        config.max_image_seq_len as f64,
    );
    let slope = (max - base) / (long - short);
    token_count as f64 * slope + (base - slope * short)
}

/// Stretches the levels so that the last is `shift_terminal`.
fn stretch(config: &SchedulerConfig, sigmas: Vec<f32>) -> Vec<f32> {
    let terminal = config.shift_terminal.unwrap_or(0.0) as f32;
    let Some(&last) = sigmas.last() else {
        return sigmas;
    };
    if terminal == 0.0 || last == 1.0 {
        return sigmas;
    }
    let factor = (1.0 - last) / (1.0 - terminal);
    sigmas
        .into_iter()
        .map(|s| 1.0 - (1.0 - s) / factor)
        .collect()
}

/// LTX's schedule: half of the steps fall slowly to 1 - 0.025, the others quadratically to 0.
pub fn linear_quadratic(count: usize) -> Vec<f64> {
    const THRESHOLD: f64 = 0.025;
    if count < 2 {
        return vec![1.0];
    }
    let linear = count / 2;
    let (n, l, q) = (count as f64, linear as f64, (count - linear) as f64);
    let difference = l - THRESHOLD * n;
    let quadratic = difference / (l * q * q);
    let slope = THRESHOLD / l - 2.0 * difference / (q * q);
    let offset = quadratic * l * l;
    let level = |i: usize| {
        let i_value = i as f64;
        if i < linear {
            i_value * THRESHOLD / l
        } else {
            quadratic * i_value * i_value + slope * i_value + offset
        }
    };
    (0..count).map(|i| 1.0 - level(i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(steps: &Steps) -> Result<Schedule> {
        Schedule::new(
            &SchedulerConfig::default(),
            PipelineClass::Condition,
            steps,
            640,
        )
    }

    #[test]
    fn eight_steps_are_the_published_ones() {
        // LTX-Video's distilled timesteps, to the digits that it prints.
        let published = [1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250, 0.4219];
        for (level, published) in linear_quadratic(8).iter().zip(published) {
            assert!((level - published).abs() < 1e-4, "{level} {published}");
        }
    }

    #[test]
    fn deltas_lead_to_zero() {
        for steps in [Steps::Count(8), Steps::Timesteps(vec![1.0, 0.9, 0.4219])] {
            let schedule = condition(&steps).unwrap();
            let sum: f32 = (0..schedule.len()).map(|i| schedule.delta(i)).sum();
            assert!((sum + 1.0).abs() < 1e-6, "{sum}");
        }
    }

    #[test]
    fn timesteps_are_the_decimal_numbers_written() {
        let schedule = condition(&Steps::Timesteps(vec![1.0, 0.9094, 0.725])).unwrap();
        assert_eq!(schedule.timesteps, [1000.0, 909.4, 725.0]);
    }

    #[test]
    fn timesteps_that_do_not_fall_are_refused() {
        for levels in [
            vec![],
            vec![0.5, 0.5],
            vec![1.1],
            vec![0.5, 0.0],
            vec![f32::NAN],
        ] {
            assert!(condition(&Steps::Timesteps(levels)).is_err());
        }
        assert!(condition(&Steps::Count(0)).is_err());
    }
}
