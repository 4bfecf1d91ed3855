//! Sampling on the wire.

use super::ConvertError;
use super::{model_from_proto, model_to_proto};
use longtake_common::sampling::{
    Guidance, GuidanceStep, Pass, Reference, Sampler, Sampling, Schedule, SecondPass, StgMode,
    TeaCache,
};
use longtake_proto::v1;

pub(super) fn sampling_to_proto(sampling: &Sampling) -> v1::Sampling {
    let second = |second: &SecondPass| v1::SecondPass {
        downscale_factor: second.downscale_factor,
        upscaler: Some(model_to_proto(&second.upscaler)),
        pass: Some(pass_to_proto(&second.pass)),
    };
    v1::Sampling {
        first_pass: Some(pass_to_proto(&sampling.first_pass)),
        second_pass: sampling.second_pass.as_ref().map(second),
        sampler: match sampling.sampler {
            Sampler::FromCheckpoint => v1::Sampler::FromCheckpoint,
            Sampler::Uniform => v1::Sampler::Uniform,
            Sampler::LinearQuadratic => v1::Sampler::LinearQuadratic,
        }
        .into(),
        stg_mode: match sampling.stg_mode {
            StgMode::AttentionValues => v1::StgMode::AttentionValues,
            StgMode::AttentionSkip => v1::StgMode::AttentionSkip,
            StgMode::Residual => v1::StgMode::Residual,
            StgMode::TransformerBlock => v1::StgMode::TransformerBlock,
        }
        .into(),
        text_tokens: sampling.text_tokens,
        decode_timestep: sampling.decode_timestep,
        decode_noise_scale: sampling.decode_noise_scale,
        reference: match sampling.reference {
            None => v1::Reference::Unspecified,
            Some(Reference::Official) => v1::Reference::Official,
            Some(Reference::Diffusers) => v1::Reference::Diffusers,
            Some(Reference::Comfy) => v1::Reference::Comfy,
        }
        .into(),
    }
}

fn pass_to_proto(pass: &Pass) -> v1::Pass {
    let (timesteps, steps) = match &pass.schedule {
        Schedule::Timesteps(timesteps) => (timesteps.clone(), 0),
        Schedule::Steps(steps) => (Vec::new(), *steps),
    };
    let guidance = |step: &GuidanceStep| v1::GuidanceStep {
        timestep: step.timestep,
        guidance_scale: step.guidance_scale,
        stg_scale: step.stg_scale,
        rescaling_scale: step.rescaling_scale,
        skip_block_list: step.skip_block_list.clone(),
    };
    v1::Pass {
        model: pass.model.as_ref().map(model_to_proto),
        timesteps,
        steps,
        skip_initial_steps: pass.skip_initial_steps,
        skip_final_steps: pass.skip_final_steps,
        strength: pass.strength,
        guidance: pass.guidance.steps.iter().map(guidance).collect(),
        cfg_star_rescale: pass.guidance.cfg_star_rescale,
        stochastic_sampling: pass.stochastic_sampling,
        tone_map_compression_ratio: pass.tone_map_compression_ratio,
        teacache_threshold: pass.teacache.map(|teacache| teacache.threshold),
    }
}

pub(super) fn sampling_from_proto(sampling: v1::Sampling) -> Result<Sampling, ConvertError> {
    let sampler = match sampling.sampler() {
        v1::Sampler::FromCheckpoint => Sampler::FromCheckpoint,
        v1::Sampler::Uniform => Sampler::Uniform,
        v1::Sampler::LinearQuadratic => Sampler::LinearQuadratic,
        v1::Sampler::Unspecified => return Err(ConvertError::Field("sampler")),
    };
    let stg_mode = match sampling.stg_mode() {
        v1::StgMode::AttentionValues => StgMode::AttentionValues,
        v1::StgMode::AttentionSkip => StgMode::AttentionSkip,
        v1::StgMode::Residual => StgMode::Residual,
        v1::StgMode::TransformerBlock => StgMode::TransformerBlock,
        v1::StgMode::Unspecified => return Err(ConvertError::Field("stg_mode")),
    };
    let reference = match sampling.reference() {
        v1::Reference::Unspecified => None,
        v1::Reference::Official => Some(Reference::Official),
        v1::Reference::Diffusers => Some(Reference::Diffusers),
        v1::Reference::Comfy => Some(Reference::Comfy),
    };
    let second = |second: v1::SecondPass| -> Result<SecondPass, ConvertError> {
        Ok(SecondPass {
            downscale_factor: second.downscale_factor,
            upscaler: model_from_proto(second.upscaler.ok_or(ConvertError::Field("upscaler"))?)?,
            pass: pass_from_proto(second.pass.ok_or(ConvertError::Field("pass"))?)?,
        })
    };
    let first = sampling
        .first_pass
        .ok_or(ConvertError::Field("first_pass"))?;
    Ok(Sampling {
        first_pass: pass_from_proto(first)?,
        second_pass: sampling.second_pass.map(second).transpose()?,
        sampler,
        stg_mode,
        text_tokens: sampling.text_tokens,
        decode_timestep: sampling.decode_timestep,
        decode_noise_scale: sampling.decode_noise_scale,
        reference,
    })
}

fn pass_from_proto(pass: v1::Pass) -> Result<Pass, ConvertError> {
    let schedule = if pass.timesteps.is_empty() {
        Schedule::Steps(pass.steps)
    } else {
        Schedule::Timesteps(pass.timesteps)
    };
    let step = |step: v1::GuidanceStep| GuidanceStep {
        timestep: step.timestep,
        guidance_scale: step.guidance_scale,
        stg_scale: step.stg_scale,
        rescaling_scale: step.rescaling_scale,
        skip_block_list: step.skip_block_list,
    };
    Ok(Pass {
        model: pass.model.map(model_from_proto).transpose()?,
        schedule,
        skip_initial_steps: pass.skip_initial_steps,
        skip_final_steps: pass.skip_final_steps,
        strength: pass.strength,
        guidance: Guidance {
            steps: pass.guidance.into_iter().map(step).collect(),
            cfg_star_rescale: pass.cfg_star_rescale,
        },
        stochastic_sampling: pass.stochastic_sampling,
        tone_map_compression_ratio: pass.tone_map_compression_ratio,
        teacache: pass
            .teacache_threshold
            .map(|threshold| TeaCache { threshold }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use longtake_common::Hash;
    use longtake_common::spec::ModelRef;

    #[test]
    fn sampling_survives_the_wire() {
        let model = |name: &str| ModelRef::new(name, Hash::of(name.as_bytes()));
        let plain = Sampling::plain(Schedule::Timesteps(vec![1.0, 0.5]), 3.0, 256);
        let step = |timestep, block| GuidanceStep {
            timestep,
            stg_scale: 4.0,
            rescaling_scale: 0.5,
            skip_block_list: vec![block],
            ..GuidanceStep::plain(6.0)
        };
        let pass = Pass {
            model: Some(model("distilled")),
            skip_initial_steps: 17,
            skip_final_steps: 3,
            strength: 0.85,
            guidance: Guidance {
                steps: vec![step(1.0, 11), step(0.5, 28)],
                cfg_star_rescale: true,
            },
            stochastic_sampling: true,
            tone_map_compression_ratio: 0.6,
            teacache: Some(TeaCache { threshold: 0.05 }),
            ..Pass::plain(Schedule::Steps(30), 1.0)
        };
        let full = Sampling {
            second_pass: Some(SecondPass {
                downscale_factor: 0.6666666,
                upscaler: model("upscaler"),
                pass,
            }),
            sampler: Sampler::LinearQuadratic,
            stg_mode: StgMode::TransformerBlock,
            decode_timestep: 0.05,
            decode_noise_scale: 0.025,
            reference: Some(Reference::Comfy),
            ..plain.clone()
        };
        for sampling in [plain, full] {
            let back = sampling_from_proto(sampling_to_proto(&sampling)).expect("understood");
            assert_eq!(back, sampling);
        }
    }
}
