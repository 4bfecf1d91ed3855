//! Runs one pass over one window, and prepares what the next window is held to.

use super::held::Room;
use super::{Desk, held, sampling};
use crate::error::TaskError;
use longtake_common::Hash;
use longtake_common::conditioning::{HeldPictures, Role};
use longtake_common::request::smallest_latents;
use longtake_common::spec::{PIXELS_PER_LATENT, Sampling};
use longtake_common::task::{TaskOutput, Window, Work};
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{
    BlockCount, DecodeRequest, DenoiseRequest, Denoised, Drawn, Encoded, Error, Halfway, Held,
    LatentUpsampler, Latents, Model, Pictures, Prompt, Stop,
};
use longtake_tensor::Backend;
use std::ops::ControlFlow;

/// Said where a job asks for TeaCache on a distilled model.
const SPARED: &str = "use_teacache is switched off: the model was distilled for its few steps";

/// Outputs `latents` and, when a next window continues this one, `tail`; of a second pass, which
/// needs the upscaler, also `tail_first`.
pub fn run<B: Backend>(
    model: &Model<B>,
    upscaler: Option<&LatentUpsampler<B>>,
    work: &Work,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let Work::Denoise {
        window,
        fps,
        sampling,
        text,
        conditioning,
        tail_frames,
        held,
        ..
    } = work
    else {
        return Err(TaskError::Fatal("this is no window to denoise".to_owned()));
    };
    let inputs = Inputs::read(*text, *conditioning, sampling, desk)?;
    let stage = Stage::of(model, work)?;
    let mut pass = sampling::pass(sampling, stage.pass, stage.room.class);
    // Where a model says so in its metadata, which whoever gave the job may not have seen.
    let is_distilled = model.config().scheduler.allowed_inference_steps.is_some();
    let is_spared = is_distilled && pass.tea_cache.take().is_some();
    let mut start = stage.start(model, upscaler, desk)?;
    // A second pass starts from the first.
    let is_of_pass = |item: &&HeldPictures| item.role != Role::Start || stage.first.is_none();
    let items: Vec<&HeldPictures> = held.iter().filter(is_of_pass).collect();
    let pictures = held::encode(model, &items, &stage.room, desk)?;
    let (starts, pictures): (Vec<_>, Vec<_>) =
        (pictures.into_iter().zip(items)).partition(|(_, item)| item.role == Role::Start);
    start = start.or(starts.into_iter().next().map(|(z, _)| (z, Drawn::NOTHING)));
    let continued = inputs.conditioning.iter().map(|encoded| Held {
        encoded,
        frame: 0,
        strength: 1.0,
        noised: false,
        reference_stride: None,
    });
    let pictures = pictures.iter().map(|(encoded, item)| Held {
        encoded,
        frame: item.frame as usize,
        strength: item.strength,
        noised: item.role == Role::Shown,
        reference_stride: item.role.reference_factor().map(|factor| factor as usize),
    });
    let held: Vec<Held<'_>> = continued.chain(pictures).collect();
    let [rows, columns] = stage.room.size.map(|side| side / PIXELS_PER_LATENT);
    let latent = [window.latents(), rows, columns].map(|side| side as usize);
    let (class, seed) = (stage.room.class, window.seed);
    let (halfway, whole) = match left(desk, latent, model.config().transformer.in_channels) {
        Some(Left::Halfway(halfway)) => (Some(halfway), None),
        Some(Left::Whole(denoised)) => (None, Some(denoised)),
        None => (None, None),
    };
    let request = DenoiseRequest {
        halfway: halfway.as_ref(),
        negative: inputs.negative.as_ref(),
        held: &held,
        start: start.as_ref().map(|(start, _)| start),
        drawn: start.as_ref().map_or(Drawn::nothing(), |(_, drawn)| drawn),
        ..DenoiseRequest::new(class, latent, *fps, seed, &pass, &inputs.prompt)
    };
    let denoised = match whole {
        Some(denoised) => denoised,
        None => denoise(model, &request, stage.name, desk)?,
    };
    let mut output = TaskOutput::default();
    output.notices.extend(is_spared.then(|| SPARED.to_owned()));
    output
        .notices
        .extend(reuse_notice(window, &stage, denoised.blocks));
    let stored = desk.artifacts.put(denoised.to_safetensors())?;
    output.artifacts.insert("latents".to_owned(), stored);
    desk.control.keep(stored);
    if let Some(frames) = tail_frames {
        desk.check()?;
        let pictures = tail(model, &denoised, window, sampling, *frames as usize, desk)?;
        for (name, [rows, columns]) in stage.tails(sampling) {
            let sized = pictures.clone().resized(rows as usize, columns as usize);
            let encoded = desk.clock.time("encode", || model.encode(&sized));
            let latents = encoded.map_err(failure)?.mode;
            let stored = desk.artifacts.put(latents.to_safetensors("tail"))?;
            output.artifacts.insert(name.to_owned(), stored);
        }
    }
    Ok(output)
}

/// Which of a window's passes is run, and where.
struct Stage<'a> {
    /// What its seconds are reported as.
    name: &'static str,
    pass: &'a longtake_common::sampling::Pass,
    room: Room,
    /// Latents of the pass before.
    first: Option<Hash>,
}

impl<'a> Stage<'a> {
    fn of<B: Backend>(model: &Model<B>, work: &'a Work) -> Result<Self, TaskError> {
        let Work::Denoise {
            padded_width,
            padded_height,
            window,
            sampling,
            shown,
            first_pass,
            ..
        } = work
        else {
            return Err(TaskError::Fatal("this is no window to denoise".to_owned()));
        };
        let padded = [*padded_height, *padded_width];
        let (name, pass, size) = match (first_pass, &sampling.second_pass) {
            (None, _) => ("pass1", &sampling.first_pass, sampling.first_size(padded)),
            (Some(_), Some(second)) => ("pass2", &second.pass, sampling.last_size(padded)),
            (Some(_), None) => {
                let message = "a second pass is asked for, but the job has one".to_owned();
                return Err(TaskError::Fatal(message));
            }
        };
        let room = Room {
            frames: window.frames,
            class: sampling::class(model.config().pipeline, sampling.reference),
            shown: *shown,
            padded,
            size,
        };
        Ok(Self {
            name,
            pass,
            room,
            first: *first_pass,
        })
    }

    /// What a second pass starts from: the first one's latents at twice their sides, and what was
    /// drawn for them.
    fn start<B: Backend>(
        &self,
        model: &Model<B>,
        upscaler: Option<&LatentUpsampler<B>>,
        desk: &mut Desk<'_>,
    ) -> Result<Option<(Encoded, Drawn)>, TaskError> {
        let Some(first) = self.first else {
            return Ok(None);
        };
        let upscaler = upscaler
            .ok_or_else(|| TaskError::Retryable("the latent upscaler was not kept".to_owned()))?;
        let bytes = desk.artifacts.get(first)?;
        let (latents, drawn) = Denoised::from_safetensors(&bytes).map_err(TaskError::retryable)?;
        desk.check()?;
        let tone_map = if maps_tones_early(self.room.class) {
            self.pass.tone_map_compression_ratio
        } else {
            0.0
        };
        let upsampled = desk
            .clock
            .time("upsample", || model.upsample(upscaler, &latents, tone_map));
        let mode = upsampled.map_err(failure)?;
        Ok(Some((Encoded { mode, spread: None }, drawn)))
    }

    /// Names and sizes of what the passes of the next window are held to.
    fn tails(&self, sampling: &Sampling) -> Vec<(&'static str, [u32; 2])> {
        let last = ("tail", self.room.size);
        match self.first {
            None => vec![last],
            Some(_) => vec![last, ("tail_first", sampling.first_size(self.room.padded))],
        }
    }
}

/// Whether tones are mapped after the upscaler, as diffusers does it, rather than before decoding.
fn maps_tones_early(class: PipelineClass) -> bool {
    matches!(class, PipelineClass::Plain | PipelineClass::Condition)
}

/// What TeaCache left out.
fn reuse_notice(window: &Window, stage: &Stage<'_>, blocks: BlockCount) -> Option<String> {
    let all = blocks.computed + blocks.reused;
    (blocks.reused > 0).then(|| {
        format!(
            "window {}, {}: TeaCache took over {} of {all} block evaluations",
            window.index, stage.name, blocks.reused
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
    name: &'static str,
    desk: &mut Desk<'_>,
) -> Result<Denoised, TaskError> {
    let control = desk.control;
    let mut progress = |done: usize, steps: usize| {
        control.set_progress(done as f64 / steps.max(1) as f64);
        tracing::debug!("step {done} of {steps}");
        match (control.is_cancelled(), control.is_leaving()) {
            (true, _) => ControlFlow::Break(Stop::Drop),
            (_, true) => ControlFlow::Break(Stop::Keep),
            _ => ControlFlow::Continue(()),
        }
    };
    desk.check()?;
    let before = request.halfway.map_or(0.0, |halfway| halfway.seconds);
    desk.clock.add(name, before);
    let denoised = desk
        .clock
        .time(name, || model.denoise(request, &mut progress));
    match denoised {
        Err(Error::Stopped(mut halfway)) => {
            let (step, steps) = (halfway.step, halfway.steps);
            halfway.seconds = desk.clock.seconds(name);
            match desk.artifacts.put(halfway.to_safetensors()) {
                Ok(stored) => {
                    tracing::info!("stored after step {step} of {steps}, for another to go on");
                    Err(TaskError::Left(Some(stored)))
                }
                // That the store is away is no failure of the task.
                Err(error) => {
                    tracing::warn!("step {step} of {steps} cannot be stored: {error}");
                    Err(TaskError::Left(None))
                }
            }
        }
        // Under TeaCache nothing is kept.
        Err(Error::Cancelled { .. }) if !control.is_cancelled() => Err(TaskError::Left(None)),
        denoised => denoised.map_err(failure),
    }
}

/// What a worker left of a window that had to go.
enum Left {
    /// In the middle of its steps.
    Halfway(Halfway),
    /// After them.
    Whole(Denoised),
}

/// Where a worker had to leave this window, if one had and that can be read: doing it anew is all
/// that it costs when not.
fn left(desk: &Desk<'_>, latent: [usize; 3], channels: usize) -> Option<Left> {
    let bytes = desk.artifacts.get(desk.halfway?);
    match bytes.and_then(|bytes| read_left(&bytes, latent, channels).map_err(failure)) {
        Ok(Left::Halfway(halfway)) => {
            let (step, steps) = (halfway.step, halfway.steps);
            tracing::info!("going on after step {step} of {steps}");
            Some(Left::Halfway(halfway))
        }
        Ok(whole) => {
            tracing::info!("going on after the last step");
            Some(whole)
        }
        Err(error) => {
            tracing::warn!("begun anew, for what a worker left of it is lost: {error}");
            None
        }
    }
}

fn read_left(bytes: &[u8], latent: [usize; 3], channels: usize) -> Result<Left, Error> {
    if let Ok(halfway) = Halfway::from_safetensors(bytes) {
        return Ok(Left::Halfway(halfway));
    }
    let (latents, drawn) = Denoised::from_safetensors(bytes)?;
    let found = [
        latents.channels,
        latents.frames,
        latents.height,
        latents.width,
    ];
    let [frames, height, width] = latent;
    if found != [channels, frames, height, width] {
        return Err(Error::Artifact {
            name: "latents".to_owned(),
            message: format!("they are {found:?}, the window {latent:?}"),
        });
    }
    let blocks = BlockCount::default();
    Ok(Left::Whole(Denoised {
        latents,
        drawn,
        blocks,
    }))
}

/// The window's last visible frames, which the next window is held to: decoded, to be encoded again,
/// because its first latent is a single frame while this one's latents are eight each.
fn tail<B: Backend>(
    model: &Model<B>,
    denoised: &Denoised,
    window: &Window,
    sampling: &Sampling,
    tail_frames: usize,
    desk: &mut Desk<'_>,
) -> Result<Pictures, TaskError> {
    let request = decode_request(model, window, sampling, denoised.drawn.clone());
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
    desk.check()?;
    Ok(Pictures::from(&pictures.last(tail_frames)))
}

/// How the pictures of `window` are decoded, after `drawn` was drawn from its seed.
pub fn decode_request<B: Backend>(
    model: &Model<B>,
    window: &Window,
    sampling: &Sampling,
    drawn: Drawn,
) -> DecodeRequest {
    let class = sampling::class(model.config().pipeline, sampling.reference);
    let is_mapped = sampling.second_pass.is_some() && maps_tones_early(class);
    let last = sampling.passes().last().filter(|_| !is_mapped);
    DecodeRequest {
        class,
        seed: window.seed,
        drawn,
        timestep: sampling.decode_timestep,
        noise_scale: sampling.decode_noise_scale,
        tone_map: last.map_or(0.0, |pass| pass.tone_map_compression_ratio),
    }
}

/// A refusal of the request is the same on every worker; anything else may not be.
pub fn failure(error: Error) -> TaskError {
    match error {
        Error::Cancelled { .. } => TaskError::Cancelled,
        Error::Request { .. } | Error::NotFinite => TaskError::fatal(error),
        error => TaskError::retryable(error),
    }
}
