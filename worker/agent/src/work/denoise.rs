//! Denoises one window, and prepares what the next one is held to.

use super::Desk;
use crate::error::TaskError;
use longtake_common::Hash;
use longtake_common::request::smallest_latents;
use longtake_common::spec::{PIXELS_PER_LATENT, Sampling, Schedule};
use longtake_common::task::{TaskOutput, Window, Work};
use longtake_ltx::{DecodeRequest, DenoiseRequest, Error, Latents, Model, Prompt, Steps};
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
        ..
    } = work
    else {
        return Err(TaskError::Fatal("this is no window to denoise".to_owned()));
    };
    let inputs = Inputs::read(*text, *conditioning, sampling, desk)?;
    let steps = steps(&sampling.first_pass.schedule);
    let request = DenoiseRequest {
        latent_frames: window.latents() as usize,
        latent_height: (padded_height / PIXELS_PER_LATENT) as usize,
        latent_width: (padded_width / PIXELS_PER_LATENT) as usize,
        fps: *fps,
        seed: window.seed,
        steps: &steps,
        guidance_scale: plain_guidance(sampling),
        prompt: &inputs.prompt,
        negative: inputs.negative.as_ref(),
        conditioning: inputs.conditioning.as_ref(),
    };
    let latents = denoise(model, &request, desk)?;
    let mut output = TaskOutput::default();
    let stored = desk.artifacts.put(latents.to_safetensors("latents"))?;
    output.artifacts.insert("latents".to_owned(), stored);
    if let Some(frames) = tail_frames {
        desk.check()?;
        let tail = tail(model, &latents, window, sampling, *frames as usize, desk)?;
        let stored = desk.artifacts.put(tail.to_safetensors("tail"))?;
        output.artifacts.insert("tail".to_owned(), stored);
    }
    Ok(output)
}

/// What other tasks left for this one.
struct Inputs {
    prompt: Prompt,
    negative: Option<Prompt>,
    conditioning: Option<Latents>,
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
            Some(hash) => Some(
                Latents::from_safetensors(&desk.artifacts.get(hash)?, "tail").map_err(failure)?,
            ),
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
) -> Result<Latents, TaskError> {
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
    latents: &Latents,
    window: &Window,
    sampling: &Sampling,
    tail_frames: usize,
    desk: &mut Desk<'_>,
) -> Result<Latents, TaskError> {
    let request = decode_request(window, sampling);
    // Where a shot ends inside a latent, what was rendered beyond its last frame is left out.
    let unseen = (window.frames - window.visible_frames) as usize;
    let decoded = smallest_latents((tail_frames + unseen) as u32) as usize;
    let mut pictures = desk
        .clock
        .time("decode", || model.decode_tail(latents, &request, decoded))
        .map_err(failure)?;
    pictures.frames -= unseen;
    let samples = 3 * pictures.height * pictures.width;
    pictures.rgb.truncate(pictures.frames * samples);
    let pictures = pictures.last(tail_frames);
    desk.check()?;
    desk.clock
        .time("encode", || model.encode(&pictures))
        .map_err(failure)
}

/// How the pictures of `window` are decoded.
pub fn decode_request(window: &Window, sampling: &Sampling) -> DecodeRequest {
    DecodeRequest {
        seed: window.seed,
        timestep: sampling.decode_timestep,
        noise_scale: sampling.decode_noise_scale,
    }
}

/// The guidance of every step: what varies from step to step is refused with the job.
fn plain_guidance(sampling: &Sampling) -> f32 {
    let step = sampling.first_pass.guidance.at(0.0);
    step.map_or(1.0, |step| step.guidance_scale)
}

fn steps(schedule: &Schedule) -> Steps {
    match schedule {
        Schedule::Timesteps(timesteps) => Steps::Timesteps(timesteps.clone()),
        Schedule::Steps(count) => Steps::Count(*count as usize),
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
