//! How a pass is sampled: its noise levels and its guidance.

use serde::{Deserialize, Serialize};

/// Which noise levels a denoising pass visits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Steps {
    /// These, in 0..1, falling; the last step goes to 0.
    Timesteps(Vec<f32>),
    /// So many of the schedule that [`Pass::sampler`] names.
    Count(usize),
}

/// Where counted noise levels come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sampler {
    /// The model's scheduler configuration, as its reference implementation reads it.
    #[default]
    FromCheckpoint,
    /// Evenly spaced, unshifted.
    Uniform,
    /// Half of the steps fall slowly, the others quadratically, unshifted.
    LinearQuadratic,
}

/// What spatio-temporal guidance (STG) does to the listed blocks in the perturbed prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StgMode {
    /// Self-attention's result is its values.
    #[default]
    AttentionValues,
    /// Self-attention's result is its input.
    AttentionSkip,
    /// Leaves the attention's own residual out; these blocks have none, so nothing changes.
    Residual,
    /// The block's result is its input.
    TransformerBlock,
}

/// Guidance of the steps whose noise level is at least `timestep`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuidanceStep {
    /// Lowest noise level (0..1) that this holds for.
    pub timestep: f32,
    /// Classifier-free guidance; up to 1 is off.
    pub guidance_scale: f32,
    /// Spatio-temporal guidance; 0 is off.
    pub stg_scale: f32,
    /// How far the spread of a prediction under STG is set back to that of the plain one; 1 is
    /// off, as in the official code, which then does not rescale at all.
    pub rescaling_scale: f32,
    /// Blocks that are perturbed.
    pub skip_blocks: Vec<usize>,
}

impl GuidanceStep {
    /// Classifier-free guidance alone, at all noise levels.
    pub fn plain(guidance_scale: f32) -> Self {
        Self {
            timestep: 0.0,
            guidance_scale,
            stg_scale: 0.0,
            rescaling_scale: 1.0,
            skip_blocks: Vec::new(),
        }
    }

    /// Whether spatio-temporal guidance disturbs anything.
    pub fn is_perturbed(&self) -> bool {
        self.stg_scale > 0.0 && !self.skip_blocks.is_empty()
    }

    /// Whether the negative prompt is needed: diffusers and the official code ask so above 1.
    pub fn uses_negative(&self) -> bool {
        self.guidance_scale > 1.0
    }
}

/// How predictions are steered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guidance {
    /// At least one, from high noise levels to low ones.
    pub steps: Vec<GuidanceStep>,
    /// CFG*: whether the negative prediction is scaled to its share in the positive one.
    pub cfg_star_rescale: bool,
    /// What STG perturbs.
    pub stg_mode: StgMode,
}

impl Guidance {
    /// Classifier-free guidance alone, the same for all steps.
    pub fn plain(guidance_scale: f32) -> Self {
        Self {
            steps: vec![GuidanceStep::plain(guidance_scale)],
            cfg_star_rescale: false,
            stg_mode: StgMode::default(),
        }
    }

    /// What holds at noise level `level`: the first of `steps` that begins at or below it, else
    /// the last. `None` only without steps.
    pub fn at(&self, level: f32) -> Option<&GuidanceStep> {
        let found = self.steps.iter().find(|step| step.timestep <= level);
        found.or(self.steps.last())
    }
}

/// One run of the transformer from noise to latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// Noise levels.
    pub steps: Steps,
    /// Source of counted noise levels.
    pub sampler: Sampler,
    /// Steps left out at the start, where noise is high.
    pub skip_initial: usize,
    /// Steps left out at the end; the last one kept goes to 0.
    pub skip_final: usize,
    /// Highest noise level visited: higher ones of the schedule are left out.
    pub strength: f32,
    /// How predictions are steered.
    pub guidance: Guidance,
    /// Whether each step goes to a clean picture and adds fresh noise.
    pub stochastic: bool,
    /// Noise added to what is held at full strength, as a share that falls with the square of the
    /// noise level (`image_cond_noise_scale`).
    pub image_cond_noise_scale: f32,
    /// Reuse of computed blocks: accumulated relative change of their input from which on they
    /// are computed again. `None` computes every block in every step.
    pub tea_cache: Option<f32>,
}

impl Pass {
    /// The whole of `steps` under classifier-free guidance and nothing else.
    pub fn plain(steps: Steps, guidance_scale: f32) -> Self {
        Self {
            steps,
            sampler: Sampler::FromCheckpoint,
            skip_initial: 0,
            skip_final: 0,
            strength: 1.0,
            guidance: Guidance::plain(guidance_scale),
            stochastic: false,
            image_cond_noise_scale: 0.0,
            tea_cache: None,
        }
    }
}
