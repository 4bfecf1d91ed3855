//! Denoises one window, and prepares what the next one is held to.

use super::{Desk, held, sampling};
use crate::error::TaskError;
use longtake_common::Hash;
use longtake_common::request::smallest_latents;
use longtake_common::spec::{PIXELS_PER_LATENT, Sampling};
use longtake_common::task::{TaskOutput, Window, Work};
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{
    BlockCount, DecodeRequest, DenoiseRequest, Denoised, Drawn, Encoded, Error, Held, Latents,
    Model, Pictures, Prompt,
};
use longtake_tensor::Backend;
use std::ops::ControlFlow;

/// Outputs `latents` and, when a next window continues this one, `tail`.
pub fn run<B: Backend>(
    model: &Model<B>,
    work: &Work,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let Work::Denoise {
        window,
        padded_width,
        padded_height,
        fps,
        sampling,
        text,
        conditioning,
        tail_frames,
        held,
        shown,
        ..
    } = work
    else {
        return Err(TaskError::Fatal("this is no window to denoise".to_owned()));
    };
    let inputs = Inputs::read(*text, *conditioning, sampling, desk)?;
    let class = model.config().pipeline;
    let pass = sampling::pass(sampling, &sampling.first_pass);
    let pictures = held::encode(model, held, *shown, [*padded_height, *padded_width], desk)?;
    let continued = inputs.conditioning.iter().map(|encoded| Held {
        encoded,
        frame: 0,
        strength: 1.0,
        noised: false,
    });
    let pictures = pictures.iter().zip(held).map(|(encoded, item)| Held {
        encoded,
        frame: item.frame as usize,
        strength: item.strength,
        noised: true,
    });
    let held: Vec<Held<'_>> = continued.chain(pictures).collect();
    let latent = [
        window.latents(),
        padded_height / PIXELS_PER_LATENT,
        padded_width / PIXELS_PER_LATENT,
    ]
    .map(|side| side as usize);
    let request = DenoiseRequest {
        negative: inputs.negative.as_ref(),
        held: &held,
        ..DenoiseRequest::new(class, latent, *fps, window.seed, &pass, &inputs.prompt)
    };
    let denoised = denoise(model, &request, desk)?;
    let mut output = TaskOutput::default();
    output.notices.extend(reuse_notice(window, denoised.blocks));
    let stored = desk.artifacts.put(denoised.to_safetensors())?;
    output.artifacts.insert("latents".to_owned(), stored);
    if let Some(frames) = tail_frames {
        desk.check()?;
        let tail = tail(model, &denoised, window, sampling, *frames as usize, desk)?;
        let stored = desk.artifacts.put(tail.to_safetensors("tail"))?;
        output.artifacts.insert("tail".to_owned(), stored);
    }
    Ok(output)
}

/// What TeaCache left out.
fn reuse_notice(window: &Window, blocks: BlockCount) -> Option<String> {
    let all = blocks.computed + blocks.reused;
    (blocks.reused > 0).then(|| {
        format!(
            "window {}: TeaCache took over {} of {all} block evaluations",
            window.index, blocks.reused
        )
    })
}

/// What other tasks left for this one.
struct Inputs {
    prompt: Prompt,
    negative: Option<Prompt>,
    /// The tail of the window before.
    conditioning: Option<Encoded>,
}

impl Inputs {
    fn read(
        text: Hash,
        conditioning: Option<Hash>,
        sampling: &Sampling,
        desk: &Desk<'_>,
    ) -> Result<Self, TaskError> {
        let text = desk.artifacts.get(text)?;
        let prompt = |name: &str| Prompt::from_safetensors(&text, name).map_err(failure);
        let conditioning = match conditioning {
            Some(hash) => {
                let bytes = desk.artifacts.get(hash)?;
                let mode = Latents::from_safetensors(&bytes, "tail").map_err(failure)?;
                Some(Encoded { mode, spread: None })
            }
            None => None,
        };
        Ok(Self {
            prompt: prompt("prompt")?,
            negative: sampling
                .uses_negative()
                .then(|| prompt("negative"))
                .transpose()?,
            conditioning,
        })
    }
}

fn denoise<B: Backend>(
    model: &Model<B>,
    request: &DenoiseRequest<'_>,
    desk: &mut Desk<'_>,
) -> Result<Denoised, TaskError> {
    let control = desk.control;
    let mut progress = |done: usize, steps: usize| {
        control.set_progress(done as f64 / steps.max(1) as f64);
        tracing::debug!("step {done} of {steps}");
        if control.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    desk.check()?;
    desk.clock
        .time("pass1", || model.denoise(request, &mut progress))
        .map_err(failure)
}

/// The window's last visible frames as the next window will see them: decoded and encoded again, because
/// the next window's first latent is a single frame while this one's latents are eight each.
fn tail<B: Backend>(
    model: &Model<B>,
    denoised: &Denoised,
    window: &Window,
    sampling: &Sampling,
    tail_frames: usize,
    desk: &mut Desk<'_>,
) -> Result<Latents, TaskError> {
    let class = model.config().pipeline;
    let request = decode_request(class, window, sampling, denoised.drawn.clone());
    // Where a shot ends inside a latent, what was rendered beyond its last frame is left out.
    let unseen = (window.frames - window.visible_frames) as usize;
    let decoded = smallest_latents((tail_frames + unseen) as u32) as usize;
    let mut pictures = desk
        .clock
        .time("decode", || {
            model.decode_tail(&denoised.latents, &request, decoded)
        })
        .map_err(failure)?;
    pictures.frames -= unseen;
    let samples = 3 * pictures.height * pictures.width;
    pictures.rgb.truncate(pictures.frames * samples);
    let pictures = pictures.last(tail_frames);
    desk.check()?;
    let encoded = desk
        .clock
        .time("encode", || model.encode(&Pictures::from(&pictures)));
    encoded.map(|encoded| encoded.mode).map_err(failure)
}

/// How the pictures of `window` are decoded, after `drawn` was drawn from its seed.
pub fn decode_request(
    class: PipelineClass,
    window: &Window,
    sampling: &Sampling,
    drawn: Drawn,
) -> DecodeRequest {
    DecodeRequest {
        class,
        seed: window.seed,
        drawn,
        timestep: sampling.decode_timestep,
        noise_scale: sampling.decode_noise_scale,
        tone_map: (sampling.passes().last()).map_or(0.0, |pass| pass.tone_map_compression_ratio),
    }
}

/// A refusal of the request is the same on every worker; anything else may not be.
pub fn failure(error: Error) -> TaskError {
    match error {
        Error::Cancelled { .. } => TaskError::Cancelled,
        Error::Request { .. } => TaskError::fatal(error),
        error => TaskError::retryable(error),
    }
}
