//! Noise levels of a denoising pass, as the reference implementations set them:
//! `FlowMatchEulerDiscreteScheduler` with the two pipelines of diffusers, `RectifiedFlowScheduler`
//! with the official pipeline.

mod rectified_flow;

use crate::config::{PipelineClass, RectifiedFlowConfig, SchedulerConfig};
use crate::error::{Error, Result};
use crate::sampling::{Pass, Sampler, Steps};

/// Levels closer than this count as equal.
const LEVEL_EPS: f32 = 1e-6;

/// The levels that a pass visits.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// What the transformer is told at each step, 0..1000.
    pub timesteps: Vec<f32>,
    /// Noise level at each step, and the terminal 0.
    pub sigmas: Vec<f32>,
    class: PipelineClass,
}

/// What a step does to tokens of one strength.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TokenStep {
    /// What the transformer is told, 0..1000.
    pub timestep: f32,
    /// Noise level before.
    pub current: f32,
    /// Noise level after; `current` if the step leaves the tokens as they are.
    pub next: f32,
}

impl Schedule {
    /// Schedule of `pass` for a window of `token_count` tokens.
    pub fn new(
        config: &SchedulerConfig,
        class: PipelineClass,
        pass: &Pass,
        token_count: usize,
    ) -> Result<Self> {
        let whole = match &pass.steps {
            Steps::Timesteps(levels) => Self::explicit(config, class, levels)?,
            Steps::Count(0) => return Err(request("at least one step is needed".into())),
            &Steps::Count(count) => Self::counted(config, class, pass.sampler, count, token_count),
        };
        whole.cut(pass)
    }

    /// Without the steps that the pass leaves out.
    fn cut(mut self, pass: &Pass) -> Result<Self> {
        let (count, first, last) = (self.len(), pass.skip_initial, pass.skip_final);
        if first.saturating_add(last) >= count {
            let message = format!("{first} and {last} of {count} steps are skipped: skip fewer");
            return Err(request(message));
        }
        let loud = |&&level: &&f32| level > pass.strength;
        let kept = &self.sigmas[first..count - last];
        let loud = kept.iter().take_while(loud).count();
        if loud == kept.len() {
            let message = format!(
                "a strength of {} leaves none of the {} noise levels, of which the last is {}: give at least \
                 that, or more steps",
                pass.strength,
                kept.len(),
                kept[kept.len() - 1]
            );
            return Err(request(message));
        }
        let range = first + loud..count - last;
        self.timesteps = self.timesteps[range.clone()].to_vec();
        self.sigmas = terminated(self.sigmas[range].to_vec());
        Ok(self)
    }

    fn explicit(config: &SchedulerConfig, class: PipelineClass, levels: &[f32]) -> Result<Self> {
        let falling = levels.windows(2).all(|pair| pair[0] > pair[1]);
        let inside = levels.iter().all(|&t| t > 0.0 && t <= 1.0);
        if levels.is_empty() || !falling || !inside {
            let message =
                format!("falling values above 0 and up to 1 are needed, found {levels:?}");
            return Err(request(message));
        }
        if class.is_unit() {
            return Ok(Self::from_levels(class, levels.to_vec()));
        }
        let timesteps = levels.iter().map(|&t| thousandfold(t)).collect();
        Ok(Self::from_timesteps(config, class, timesteps))
    }

    fn counted(
        config: &SchedulerConfig,
        class: PipelineClass,
        sampler: Sampler,
        count: usize,
        token_count: usize,
    ) -> Self {
        let rectified = |c: &RectifiedFlowConfig| {
            let count = if class == PipelineClass::Official {
                count.min(1000)
            } else {
                count
            };
            Self::from_levels(class, rectified_flow::levels(c, count, token_count))
        };
        match (sampler, class) {
            (Sampler::Uniform, _) => rectified(&RectifiedFlowConfig::default()),
            (Sampler::LinearQuadratic, _) => rectified(&RectifiedFlowConfig::linear_quadratic()),
            (_, PipelineClass::Official) => rectified(&config.rectified_flow()),
            (_, PipelineClass::Comfy) => rectified(&RectifiedFlowConfig::sd3(0.1)),
            (_, PipelineClass::Condition) => {
                let level = |&level: &f64| level as f32 * 1000.0;
                let timesteps = linear_quadratic(count).iter().map(level).collect();
                Self::from_timesteps(config, class, timesteps)
            }
            (_, PipelineClass::Plain) => Self::flow_match(config, class, count, token_count),
        }
    }

    /// The transformer is told a thousand times the level.
    fn from_levels(class: PipelineClass, levels: Vec<f32>) -> Self {
        Self {
            timesteps: levels.iter().map(|level| level * 1000.0).collect(),
            sigmas: terminated(levels),
            class,
        }
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

    /// Fails on a level that the model was not distilled for, compared by four decimals.
    pub(crate) fn check_allowed(&self, allowed: &[f64]) -> Result<()> {
        let levels = &self.sigmas[..self.len()];
        let is_allowed = |level: f64| allowed.iter().any(|a| (a - level).abs() < 5.1e-5);
        match levels.iter().find(|&&level| !is_allowed(f64::from(level))) {
            None => Ok(()),
            Some(level) => Err(request(format!(
                "the model was not made for noise level {level:.4}: give timesteps among its \
                 allowed_inference_steps {allowed:?}"
            ))),
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

    /// What step `step` does to tokens that are held at `strength` (0..1; 0 are free): they begin
    /// at noise level 1 - strength, and wait until the schedule comes down to it; but see
    /// [`crate::mixing`].
    pub(crate) fn token_step(&self, step: usize, strength: f32) -> TokenStep {
        let own = 1.0 - strength;
        if self.class == PipelineClass::Comfy {
            // All tokens take all steps, and are mixed with what is held around them.
            let (current, next) = (self.sigmas[step], self.sigmas[step + 1]);
            return TokenStep {
                timestep: current * own * 1000.0,
                current,
                next,
            };
        }
        if self.class == PipelineClass::Plain && strength == 0.0 {
            return TokenStep {
                timestep: self.timesteps[step],
                current: self.sigmas[step],
                next: self.sigmas[step + 1],
            };
        }
        let (timestep, current, level) = if self.class.is_unit() {
            let level = self.sigmas[step];
            (level.min(own) * 1000.0, level.min(own), level)
        } else {
            let timestep = self.timesteps[step].min(own * 1000.0);
            (timestep, timestep / 1000.0, self.timesteps[step] / 1000.0)
        };
        let below = self.sigmas.iter().filter(|&&s| s < current - LEVEL_EPS);
        let next = if level - LEVEL_EPS < own {
            below.fold(0.0, |a: f32, &b| a.max(b))
        } else {
            current
        };
        TokenStep {
            timestep,
            current,
            next,
        }
    }

    /// Noise level that the reference counts step `step` at, for noise on what is held.
    pub(crate) fn level(&self, step: usize) -> f32 {
        if self.class.is_unit() {
            self.sigmas[step]
        } else {
            self.timesteps[step] / 1000.0
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

    fn schedule(class: PipelineClass, pass: &Pass) -> Result<Schedule> {
        Schedule::new(&SchedulerConfig::default(), class, pass, 640)
    }

    fn condition(steps: &Steps) -> Result<Schedule> {
        schedule(PipelineClass::Condition, &Pass::plain(steps.clone(), 1.0))
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
            let steps = (0..schedule.len()).map(|i| schedule.token_step(i, 0.0));
            let sum: f32 = steps.map(|step| step.current - step.next).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{sum}");
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

    #[test]
    fn held_tokens_wait_for_their_level() {
        let pass = Pass::plain(Steps::Timesteps(vec![1.0, 0.5, 0.25]), 1.0);
        for class in [PipelineClass::Condition, PipelineClass::Official] {
            let schedule = schedule(class, &pass).unwrap();
            let step = |i, strength| {
                let s = schedule.token_step(i, strength);
                (s.timestep, s.current, s.next)
            };
            assert_eq!(step(0, 1.0), (0.0, 0.0, 0.0));
            assert_eq!(step(0, 0.625), (375.0, 0.375, 0.375));
            assert_eq!(step(1, 0.625), (375.0, 0.375, 0.375));
            assert_eq!(step(2, 0.625), (250.0, 0.25, 0.0));
            assert_eq!(step(1, 0.25), (500.0, 0.5, 0.25));
            assert_eq!(step(0, 0.0), (1000.0, 1.0, 0.5));
        }
    }

    #[test]
    fn steps_are_left_out_at_both_ends() {
        let mut pass = Pass::plain(Steps::Count(8), 1.0);
        (pass.skip_initial, pass.skip_final) = (2, 1);
        let cut = schedule(PipelineClass::Official, &pass).unwrap();
        assert_eq!((cut.len(), cut.sigmas[5]), (5, 0.0));
        assert!((cut.sigmas[4] - 0.725).abs() < 1e-6, "{:?}", cut.sigmas);
        pass.strength = 0.975;
        let cut = schedule(PipelineClass::Official, &pass).unwrap();
        assert_eq!(cut.len(), 3, "{:?}", cut.sigmas);
        pass.strength = 0.5;
        let error = schedule(PipelineClass::Official, &pass).unwrap_err();
        assert!(error.to_string().contains("0.725"), "{error}");
        (pass.skip_initial, pass.strength) = (7, 1.0);
        assert!(schedule(PipelineClass::Official, &pass).is_err());
    }
}
