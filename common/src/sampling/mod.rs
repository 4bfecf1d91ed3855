//! How windows are sampled: the passes over a window, their noise levels and their guidance, as
//! the keys of a pipeline file say (see [`crate::pipeline`]).
//!
//! Holds values and their rules; what they do to latents is the engine's business.

mod rules;

use crate::spec::{ModelRef, PIXELS_PER_LATENT};
use serde::{Deserialize, Serialize};

/// Which noise levels a denoising pass visits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// These noise levels in 0..1, falling; the last step goes to 0.
    Timesteps(Vec<f32>),
    /// So many steps of the schedule that [`Sampling::sampler`] names.
    Steps(u32),
}

/// Where the noise levels of [`Schedule::Steps`] come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// The scheduler configuration of the checkpoint.
    #[default]
    FromCheckpoint,
    /// Evenly spaced, unshifted.
    Uniform,
    /// Half of the steps fall slowly, the others quadratically, unshifted.
    LinearQuadratic,
}

/// What spatio-temporal guidance does to self-attention in the perturbed prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StgMode {
    /// The attention's result is its values.
    #[default]
    AttentionValues,
    /// The attention's result is its input.
    AttentionSkip,
    /// Nothing in the blocks of these models.
    Residual,
    /// The block's result is its input.
    TransformerBlock,
}

/// Guidance of the steps whose noise level is at least `timestep`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuidanceStep {
    /// Lowest noise level (0..1) that this holds for.
    pub timestep: f32,
    /// Classifier-free guidance; 1 is off.
    pub guidance_scale: f32,
    /// Spatio-temporal guidance; 0 is off.
    pub stg_scale: f32,
    /// Share (0..1) in which the guided prediction takes the spread of the unguided one, counted
    /// from 1: 1 is off, as in the official implementation.
    pub rescaling_scale: f32,
    /// Blocks that are perturbed.
    pub skip_block_list: Vec<u32>,
}

impl GuidanceStep {
    /// Classifier-free guidance alone, for all noise levels.
    pub fn plain(guidance_scale: f32) -> Self {
        Self {
            timestep: 0.0,
            guidance_scale,
            stg_scale: 0.0,
            rescaling_scale: 1.0,
            skip_block_list: Vec::new(),
        }
    }
}

/// How a prediction is steered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guidance {
    /// At least one, from high noise levels to low ones.
    pub steps: Vec<GuidanceStep>,
    /// Whether the negative prediction is scaled to its share in the positive one.
    pub cfg_star_rescale: bool,
}

impl Guidance {
    /// Classifier-free guidance alone, the same for all steps.
    pub fn plain(guidance_scale: f32) -> Self {
        Self {
            steps: vec![GuidanceStep::plain(guidance_scale)],
            cfg_star_rescale: false,
        }
    }

    /// What holds at noise level `timestep` (0..1): the first of `steps` that begins at or below
    /// it, else the last. `None` only for guidance without steps, which no job has.
    pub fn at(&self, timestep: f32) -> Option<&GuidanceStep> {
        let found = self.steps.iter().find(|step| step.timestep <= timestep);
        found.or(self.steps.last())
    }

    /// Whether any step needs the negative prompt.
    pub fn uses_negative(&self) -> bool {
        self.steps.iter().any(|step| step.guidance_scale > 1.0)
    }
}

/// Reuse of what the blocks computed in the step before while their input hardly changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeaCache {
    /// Accumulated relative change of the blocks' input from which on they are computed again.
    pub threshold: f32,
}

/// The implementation whose conventions hold where there are several: the layout of the noise, the
/// times of latent frames, what T5 is told of padding, the order of tone mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// Lightricks' own code.
    Official,
    /// diffusers, as the pipeline class of the model does it.
    Diffusers,
    /// ComfyUI with Lightricks' nodes.
    Comfy,
}

/// One run from noise to latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// The model of this pass, when it is not the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelRef>,
    /// Noise levels.
    pub schedule: Schedule,
    /// Steps of the schedule that are left out at its start (high noise).
    pub skip_initial_steps: u32,
    /// Steps of the schedule that are left out at its end; the last one kept goes to 0.
    pub skip_final_steps: u32,
    /// Highest noise level visited: higher ones of the schedule are left out.
    pub strength: f32,
    /// How predictions are steered.
    pub guidance: Guidance,
    /// Whether each step adds fresh noise.
    pub stochastic_sampling: bool,
    /// How far large latents are compressed before they are decoded: 0 not at all, 1 fully.
    pub tone_map_compression_ratio: f32,
    /// Reuse of computed blocks; `None`: every block is computed in every step.
    pub teacache: Option<TeaCache>,
}

impl Pass {
    /// The whole of `schedule` under classifier-free guidance and nothing else.
    pub fn plain(schedule: Schedule, guidance_scale: f32) -> Self {
        Self {
            model: None,
            schedule,
            skip_initial_steps: 0,
            skip_final_steps: 0,
            strength: 1.0,
            guidance: Guidance::plain(guidance_scale),
            stochastic_sampling: false,
            tone_map_compression_ratio: 0.0,
            teacache: None,
        }
    }
}

/// The second pass of a multi-scale pipeline: the first one's latents at twice their size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecondPass {
    /// Size of the first pass over the size of the film, before it is cut to whole latent cells.
    pub downscale_factor: f64,
    /// The spatial latent upscaler.
    pub upscaler: ModelRef,
    /// How it runs.
    pub pass: Pass,
}

/// How a window is sampled and decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The only pass, or the first of two.
    pub first_pass: Pass,
    /// The second pass of a multi-scale pipeline.
    pub second_pass: Option<SecondPass>,
    /// Source of the noise levels when steps are counted.
    pub sampler: Sampler,
    /// What spatio-temporal guidance perturbs.
    pub stg_mode: StgMode,
    /// Length to which prompts are padded or cut, in tokens.
    pub text_tokens: u32,
    /// Timestep that the VAE decoder is told (0..1).
    pub decode_timestep: f32,
    /// Share of noise mixed into the latents before decoding (0..1).
    pub decode_noise_scale: f32,
    /// Whose conventions hold; `None`: those of the model's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

impl Sampling {
    /// One pass under classifier-free guidance, decoded without noise.
    pub fn plain(schedule: Schedule, guidance_scale: f32, text_tokens: u32) -> Self {
        Self {
            first_pass: Pass::plain(schedule, guidance_scale),
            second_pass: None,
            sampler: Sampler::FromCheckpoint,
            stg_mode: StgMode::AttentionValues,
            text_tokens,
            decode_timestep: 0.0,
            decode_noise_scale: 0.0,
            reference: None,
        }
    }

    /// Sides in pixels that the only pass, or the first of two, renders for a film of sides
    /// `padded`, which are multiples of [`PIXELS_PER_LATENT`]: that of the official code, 0 when
    /// nothing is left.
    pub fn first_size(&self, padded: [u32; 2]) -> [u32; 2] {
        let Some(second) = &self.second_pass else {
            return padded;
        };
        padded.map(|side| {
            // Never more than `side`: the factor is at most 1.
            let scaled = (f64::from(side) * second.downscale_factor) as u32;
            scaled / PIXELS_PER_LATENT * PIXELS_PER_LATENT
        })
    }

    /// Sides in pixels that the last pass renders, which are those that are decoded.
    pub fn last_size(&self, padded: [u32; 2]) -> [u32; 2] {
        match self.second_pass {
            None => padded,
            Some(_) => self.first_size(padded).map(|side| 2 * side),
        }
    }

    /// The same without the second pass: how the first one's latents are decoded.
    pub fn first_only(&self) -> Self {
        Self {
            second_pass: None,
            ..self.clone()
        }
    }

    /// The model of the last pass, whose latents are decoded; `job` is the job's own.
    pub fn last_model<'a>(&'a self, job: &'a ModelRef) -> &'a ModelRef {
        let last = self.passes().last();
        last.and_then(|pass| pass.model.as_ref()).unwrap_or(job)
    }

    /// The files that passes need beside the job's model: models of their own and the upscaler.
    pub fn files(&self) -> impl Iterator<Item = &ModelRef> {
        let upscaler = self.second_pass.as_ref().map(|second| &second.upscaler);
        let own = self.passes().filter_map(|pass| pass.model.as_ref());
        own.chain(upscaler)
    }

    /// The passes in order.
    pub fn passes(&self) -> impl Iterator<Item = &Pass> {
        let second = self.second_pass.as_ref().map(|second| &second.pass);
        [&self.first_pass].into_iter().chain(second)
    }

    /// The passes in order, to change.
    pub fn passes_mut(&mut self) -> impl Iterator<Item = &mut Pass> {
        let second = self.second_pass.as_mut().map(|second| &mut second.pass);
        [&mut self.first_pass].into_iter().chain(second)
    }

    /// Forgets where files are: see [`ModelRef::forget_locations`].
    pub fn forget_locations(&mut self) {
        for model in self.passes_mut().filter_map(|pass| pass.model.as_mut()) {
            model.forget_locations();
        }
        if let Some(second) = &mut self.second_pass {
            second.upscaler.forget_locations();
        }
    }

    /// Whether any step needs the negative prompt.
    pub fn uses_negative(&self) -> bool {
        self.passes().any(|pass| pass.guidance.uses_negative())
    }
}

/// Why `--steps` cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepsError {
    /// More steps than the list has.
    #[error(
        "{steps} steps do not fit a model that is sampled at {listed} listed timesteps: use {}, or a pipeline file with num_inference_steps",
        counts(*.listed)
    )]
    Listed {
        /// As asked for.
        steps: u32,
        /// Timesteps in the list.
        listed: usize,
    },
}

fn counts(listed: usize) -> String {
    if listed == 1 {
        return "--steps 1".to_owned();
    }
    format!("--steps 1 to {listed}")
}

impl Sampling {
    /// Makes the film take `steps` steps: see [`Pass::set_steps`]. A second pass that lists its
    /// timesteps keeps them.
    pub fn set_steps(&mut self, steps: u32) -> Result<(), StepsError> {
        self.first_pass.set_steps(steps)?;
        match &mut self.second_pass {
            Some(second) if matches!(second.pass.schedule, Schedule::Steps(_)) => {
                second.pass.set_steps(steps)
            }
            _ => Ok(()),
        }
    }
}

impl Pass {
    /// Makes the pass take `steps` steps. A list of timesteps keeps that many of its own, evenly
    /// spaced over the list: number round(i (n - 1) / (steps - 1)) for step i, so its first and
    /// its last stay (one step: the first). A counted schedule is counted anew, and what it skips
    /// is scaled with it.
    pub fn set_steps(&mut self, steps: u32) -> Result<(), StepsError> {
        match &mut self.schedule {
            Schedule::Timesteps(list) => {
                let (count, listed) = (steps as usize, list.len());
                if count == 0 || count > listed {
                    return Err(StepsError::Listed { steps, listed });
                }
                *list = (0..count).map(|i| list[spread(i, count, listed)]).collect();
            }
            Schedule::Steps(before) => {
                let scaled = |skipped: u32| {
                    let (skipped, before) = (u64::from(skipped), u64::from((*before).max(1)));
                    // Rounded to nearest; at most `steps`, because at most `before` are skipped.
                    ((2 * skipped * u64::from(steps) + before) / (2 * before)) as u32
                };
                let (first, last) = (
                    scaled(self.skip_initial_steps),
                    scaled(self.skip_final_steps),
                );
                // At least one step is left.
                self.skip_initial_steps = first.min(steps.saturating_sub(1));
                self.skip_final_steps = last.min(steps.saturating_sub(1 + self.skip_initial_steps));
                *before = steps;
            }
        }
        Ok(())
    }
}

/// Place `i` of `count` spread evenly over `0..listed`, rounded to nearest.
fn spread(i: usize, count: usize, listed: usize) -> usize {
    match count {
        1 => 0,
        _ => (2 * i * (listed - 1) + (count - 1)) / (2 * (count - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(steps: u32) -> Result<Vec<f32>, String> {
        let levels = vec![1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725];
        let mut pass = Pass::plain(Schedule::Timesteps(levels), 1.0);
        pass.set_steps(steps).map_err(|error| error.to_string())?;
        match pass.schedule {
            Schedule::Timesteps(levels) => Ok(levels),
            Schedule::Steps(_) => Err("the list is gone".into()),
        }
    }

    #[test]
    fn fewer_steps_are_spread_over_the_list() {
        assert_eq!(listed(1).expect("fits"), [1.0]);
        assert_eq!(listed(2).expect("fits"), [1.0, 0.725]);
        assert_eq!(listed(3).expect("fits"), [1.0, 0.9812, 0.725]);
        assert_eq!(listed(4).expect("fits"), [1.0, 0.9875, 0.975, 0.725]);
        assert_eq!(listed(7).expect("fits").len(), 7);
        for steps in [0, 8] {
            let error = listed(steps).expect_err("does not fit");
            assert!(error.contains("use --steps 1 to 7"), "{error}");
        }
    }

    #[test]
    fn skipped_steps_are_scaled_with_the_count() {
        let mut pass = Pass::plain(Schedule::Steps(30), 1.0);
        (pass.skip_initial_steps, pass.skip_final_steps) = (17, 3);
        for (steps, expected) in [(30, (17, 3)), (10, (6, 1)), (1, (0, 0))] {
            let mut pass = pass.clone();
            pass.set_steps(steps).expect("any count");
            assert_eq!(pass.schedule, Schedule::Steps(steps));
            let skipped = (pass.skip_initial_steps, pass.skip_final_steps);
            assert_eq!(skipped, expected, "{steps}");
        }
    }

    #[test]
    fn guidance_is_that_of_the_first_timestep_at_or_below() {
        let step = |timestep, guidance_scale| GuidanceStep {
            timestep,
            ..GuidanceStep::plain(guidance_scale)
        };
        let guidance = Guidance {
            steps: vec![step(1.0, 1.0), step(0.9933, 6.0), step(0.5, 8.0)],
            cfg_star_rescale: true,
        };
        for (timestep, scale) in [
            (1.0, 1.0),
            (0.995, 6.0),
            (0.9933, 6.0),
            (0.6, 8.0),
            (0.1, 8.0),
        ] {
            let found = guidance.at(timestep).expect("there are steps");
            assert_eq!(found.guidance_scale, scale, "{timestep}");
        }
        assert!(guidance.uses_negative());
    }
}
