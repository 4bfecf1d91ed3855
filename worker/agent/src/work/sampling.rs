//! A job's sampling in the words of the model.

use crate::error::{AgentError, story};
use longtake_common::sampling::{self, Reference, Sampling, Schedule};
use longtake_common::spec::{FRAMES_PER_LATENT, JobSpec, PIXELS_PER_LATENT};
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{Guidance, GuidanceStep, Pass, Rules, Sampler, Steps, StgMode};
use std::collections::BTreeSet;

/// Noise on what is held at full strength, as diffusers' condition pipeline and the official program
/// add it.
const IMAGE_COND_NOISE_SCALE: f32 = 0.15;

/// Whose conventions hold for a model that has its `own`.
pub fn class(own: PipelineClass, reference: Option<Reference>) -> PipelineClass {
    match (reference, own) {
        (None, own) => own,
        (Some(Reference::Official), _) => PipelineClass::Official,
        (Some(Reference::Comfy), _) => PipelineClass::Comfy,
        // Checkpoints with a pipeline of diffusers' first kind come as folders that say so.
        (Some(Reference::Diffusers), PipelineClass::Plain) => PipelineClass::Plain,
        (Some(Reference::Diffusers), _) => PipelineClass::Condition,
    }
}

/// Fails when a model of these rules cannot run pass `number` of a job over windows of so many frames,
/// before anybody has begun with it. `base` are those of the job's own model.
pub fn check(
    rules: &Rules,
    base: Option<&Rules>,
    spec: &JobSpec,
    number: usize,
    windows: impl Iterator<Item = u32>,
) -> Result<(), AgentError> {
    let sampling = &spec.sampling;
    let Some(own) = sampling.passes().nth(number) else {
        return Ok(());
    };
    let goes = base.map_or(Ok(()), |base| rules.check_goes_with(base));
    goes.map_err(|error| AgentError::Model(story(&error)))?;
    let class = class(rules.pipeline(), sampling.reference);
    let pass = pass(sampling, own, class);
    let padded = [spec.padded_height(), spec.padded_width()];
    let sides = match number {
        0 => sampling.first_size(padded),
        _ => sampling.last_size(padded),
    };
    let cells = sides.map(|side| (side / PIXELS_PER_LATENT) as usize);
    for frames in windows.collect::<BTreeSet<u32>>() {
        let latents = frames.div_ceil(FRAMES_PER_LATENT) as usize;
        rules
            .check(class, &pass, latents * cells[0] * cells[1])
            .map_err(|error| AgentError::Model(story(&error)))?;
    }
    Ok(())
}

/// How the model runs `pass`.
pub fn pass(sampling: &Sampling, pass: &sampling::Pass, class: PipelineClass) -> Pass {
    Pass {
        steps: match &pass.schedule {
            Schedule::Timesteps(timesteps) => Steps::Timesteps(timesteps.clone()),
            Schedule::Steps(count) => Steps::Count(*count as usize),
        },
        sampler: match sampling.sampler {
            sampling::Sampler::FromCheckpoint => Sampler::FromCheckpoint,
            sampling::Sampler::Uniform => Sampler::Uniform,
            sampling::Sampler::LinearQuadratic => Sampler::LinearQuadratic,
        },
        skip_initial: pass.skip_initial_steps as usize,
        skip_final: pass.skip_final_steps as usize,
        strength: pass.strength,
        guidance: Guidance {
            steps: pass.guidance.steps.iter().map(step).collect(),
            cfg_star_rescale: pass.guidance.cfg_star_rescale,
            stg_mode: match sampling.stg_mode {
                sampling::StgMode::AttentionValues => StgMode::AttentionValues,
                sampling::StgMode::AttentionSkip => StgMode::AttentionSkip,
                sampling::StgMode::Residual => StgMode::Residual,
                sampling::StgMode::TransformerBlock => StgMode::TransformerBlock,
            },
        },
        stochastic: pass.stochastic_sampling,
        image_cond_noise_scale: match class {
            PipelineClass::Plain | PipelineClass::Comfy => 0.0,
            _ => IMAGE_COND_NOISE_SCALE,
        },
        tea_cache: pass.teacache.map(|teacache| teacache.threshold),
    }
}

fn step(step: &sampling::GuidanceStep) -> GuidanceStep {
    GuidanceStep {
        timestep: step.timestep,
        guidance_scale: step.guidance_scale,
        stg_scale: step.stg_scale,
        rescaling_scale: step.rescaling_scale,
        skip_blocks: step.skip_block_list.iter().map(|&b| b as usize).collect(),
    }
}
