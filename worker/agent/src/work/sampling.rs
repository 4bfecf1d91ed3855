//! A job's sampling in the words of the model.

use longtake_common::sampling::{self, Reference, Sampling, Schedule};
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{Guidance, GuidanceStep, Pass, Sampler, Steps, StgMode};

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
