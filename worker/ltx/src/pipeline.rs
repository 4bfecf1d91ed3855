//! The steps from prompt to pictures and back, as `LTXPipeline` and `LTXConditionPipeline` of
//! diffusers take them.

use crate::config::{ModelConfig, PipelineClass};
use crate::embeddings::{Positions, rope, timestep_sinusoid};
use crate::error::{Error, InPart, Result};
use crate::guidance;
use crate::rng::TorchRng;
use crate::schedule::Schedule;
use crate::t5::T5Encoder;
use crate::tokenizer::Tokens;
use crate::transformer::{TextContext, Transformer};
use crate::types::{DecodeRequest, DenoiseRequest, Latents, Prompt, Video};
use crate::vae::{Decoder, Encoder};
use longtake_tensor::{Backend, Recording, Rope, Shape, Tensor};
use std::ops::ControlFlow;

/// Latents before a tail that are decoded with it. The decoder's whole field of view is larger
/// (21 latents), but what lies further away hardly shows.
pub const TAIL_HALO: usize = 4;

fn refuse<T>(what: &'static str, message: String) -> Result<T> {
    Err(Error::Request { what, message })
}

/// Encoder states of a prompt.
pub(crate) fn encode_tokens<B: Backend>(
    b: &B,
    encoder: &T5Encoder<B>,
    class: PipelineClass,
    tokens: &Tokens,
) -> Result<Prompt> {
    let mask: Vec<f32> = (0..tokens.ids.len())
        .map(|i| if i < tokens.used { 1.0 } else { 0.0 })
        .collect();
    let seen = match class {
        PipelineClass::Plain => None,
        PipelineClass::Condition => Some(mask.as_slice()),
    };
    Ok(Prompt {
        tokens: tokens.ids.len(),
        channels: encoder.config().d_model,
        states: encoder.forward(b, &tokens.ids, seen)?,
        mask,
        cut_from: tokens.cut_from,
    })
}

/// A window on its way from noise to latents.
pub(crate) struct Denoising<'a, B: Backend> {
    b: &'a B,
    transformer: &'a Transformer<B>,
    request: &'a DenoiseRequest<'a>,
    schedule: Schedule,
    rope: Rope<B>,
    // Dropped before what they read.
    text_recording: Recording,
    negative_recording: Recording,
    text: TextContext<B>,
    negative: Option<TextContext<B>>,
    channels: usize,
    token_count: usize,
    held_count: usize,
}

impl<'a, B: Backend> Denoising<'a, B> {
    /// Checks the request and prepares what all steps share.
    pub fn new(
        b: &'a B,
        transformer: &'a Transformer<B>,
        config: &ModelConfig,
        request: &'a DenoiseRequest<'a>,
    ) -> Result<Self> {
        let r = request;
        let cells = r.latent_height * r.latent_width;
        let token_count = r.latent_frames * cells;
        if token_count == 0 {
            let sizes = [r.latent_frames, r.latent_height, r.latent_width];
            return refuse(
                "window",
                format!("frames, rows and columns must be positive: {sizes:?}"),
            );
        }
        if !(r.fps.is_finite() && r.fps > 0.0) {
            return refuse("fps", format!("{} is not a positive number", r.fps));
        }
        let channels = config.transformer.in_channels;
        let held_count = match r.conditioning {
            None => 0,
            Some(held) => check_conditioning(r, held, channels)? * cells,
        };
        let negative = match (guidance::is_on(r.guidance_scale), r.negative) {
            (false, _) => None,
            (true, Some(negative)) => Some(check_prompt(config, negative)?),
            (true, None) => {
                return refuse(
                    "guidance",
                    "a scale above 1 needs the negative prompt".into(),
                );
            }
        };
        check_prompt(config, r.prompt)?;
        let [time_ratio, space_ratio] = config.vae.ratios();
        let positions = Positions {
            frames: r.latent_frames,
            height: r.latent_height,
            width: r.latent_width,
            fps: r.fps,
            class: config.pipeline,
            time_ratio,
            space_ratio,
        };
        Ok(Self {
            b,
            transformer,
            request,
            schedule: Schedule::new(&config.scheduler, config.pipeline, r.steps, token_count)?,
            rope: rope(b, &positions, config.transformer.inner_dim())?,
            text_recording: Recording::default(),
            negative_recording: Recording::default(),
            text: transformer.text_context(b, r.prompt)?,
            negative: negative
                .map(|p| transformer.text_context(b, p))
                .transpose()?,
            channels,
            token_count,
            held_count,
        })
    }

    /// Noise with the held latents in front, `[L, C]`.
    fn initial_tokens(&self) -> Result<B::Tensor> {
        let r = self.request;
        let (frames, height, width) = (r.latent_frames, r.latent_height, r.latent_width);
        let values = TorchRng::new(r.seed).randn(self.channels * self.token_count);
        let noise = Latents {
            channels: self.channels,
            frames,
            height,
            width,
            values,
        };
        let mut tokens = noise.to_tokens();
        if let Some(held) = r.conditioning {
            tokens[..self.held_count * self.channels].copy_from_slice(&held.to_tokens());
        }
        let shape = Shape::from([self.token_count, self.channels]);
        self.b.upload(shape, &tokens).in_part(|| "noise".into())
    }

    /// Runs all steps.
    pub fn run(
        &self,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Latents> {
        let mut x = self.initial_tokens()?;
        let steps = self.schedule.len();
        // Set 0 is the current timestep; set 1, if any token is held, is timestep 0.
        let index: Vec<u32> = (0..self.token_count)
            .map(|i| u32::from(i < self.held_count))
            .collect();
        let index = self
            .b
            .upload_index(&index)
            .in_part(|| "token timesteps".into())?;
        for step in 0..steps {
            let mut distinct = vec![self.schedule.timesteps[step]];
            let mut deltas = vec![self.schedule.delta(step)];
            if self.held_count > 0 {
                distinct.push(0.0);
                deltas.push(0.0);
            }
            let v = self.velocity(&x, &timestep_sinusoid(self.b, &distinct)?, &index)?;
            x = self
                .b
                .add_scaled_tokens(x, &v, &deltas, &index)
                .in_part(|| format!("step {step}"))?;
            if progress(step + 1, steps).is_break() {
                return Err(Error::Cancelled {
                    step: step + 1,
                    steps,
                });
            }
        }
        let tokens = self.b.download(&x).in_part(|| "latents".into())?;
        let r = self.request;
        let (frames, height, width) = (r.latent_frames, r.latent_height, r.latent_width);
        Ok(Latents::from_tokens(
            &tokens,
            self.channels,
            frames,
            height,
            width,
        ))
    }

    fn velocity(&self, x: &B::Tensor, sinusoid: &B::Tensor, index: &B::Index) -> Result<B::Tensor> {
        let forward = |recording, text| {
            self.b.recorded(recording, &[x, sinusoid], |inputs| {
                let (x, sinusoid) = (&inputs[0], &inputs[1]);
                let (model, b) = (self.transformer, self.b);
                model.forward_at(b, x, sinusoid, text, index, &self.rope)
            })
        };
        let text = forward(&self.text_recording, &self.text)?;
        let Some(negative) = &self.negative else {
            return Ok(text);
        };
        let uncond = forward(&self.negative_recording, negative)?;
        let scale = self.request.guidance_scale;
        guidance::combine(self.b, &uncond, &text, scale).in_part(|| "guidance".into())
    }
}

/// Checks latents to hold; how many frames they are.
fn check_conditioning(r: &DenoiseRequest<'_>, held: &Latents, channels: usize) -> Result<usize> {
    let fits = held.is_whole()
        && held.channels == channels
        && (held.height, held.width) == (r.latent_height, r.latent_width)
        && held.frames <= r.latent_frames;
    if fits {
        return Ok(held.frames);
    }
    let found = [held.channels, held.frames, held.height, held.width];
    let window = [channels, r.latent_frames, r.latent_height, r.latent_width];
    refuse(
        "conditioning",
        format!("latents {found:?} do not fit the window {window:?}"),
    )
}

fn check_prompt<'p>(config: &ModelConfig, prompt: &'p Prompt) -> Result<&'p Prompt> {
    let channels = config.transformer.caption_channels;
    if prompt.channels != channels {
        let message = format!(
            "has {} channels, the model takes {channels}",
            prompt.channels
        );
        return refuse("encoded prompt", message);
    }
    if prompt.mask.iter().all(|&m| m == 0.0) {
        return refuse("encoded prompt", "has no token that is not padding".into());
    }
    Ok(prompt)
}

/// First latent to decode for the last `tail_frames` pictures.
pub(crate) fn tail_start(
    config: &ModelConfig,
    latents: &Latents,
    tail_frames: usize,
) -> Result<usize> {
    let [time, _] = config.vae.ratios();
    let whole = latents.frames.saturating_sub(1) * time + 1;
    if tail_frames == 0 || tail_frames % time != 1 % time || tail_frames > whole {
        let message = format!("{tail_frames} frames are not {time}k+1 of the window's {whole}");
        return refuse("tail", message);
    }
    let tail = (tail_frames - 1) / time + 1;
    Ok(latents.frames.saturating_sub(tail + TAIL_HALO))
}

/// Decodes latents from frame `first` on.
pub(crate) fn decode<B: Backend>(
    b: &B,
    decoder: &Decoder<B>,
    config: &ModelConfig,
    latents: &Latents,
    request: &DecodeRequest,
    first: usize,
) -> Result<Video> {
    if latents.channels != config.vae.latent_channels || !latents.is_whole() {
        let found = [
            latents.channels,
            latents.frames,
            latents.height,
            latents.width,
        ];
        let channels = config.vae.latent_channels;
        return refuse(
            "latents",
            format!("{found:?} were given, {channels} channels are needed"),
        );
    }
    let part = || "latents".to_owned();
    let visible = latents.slice(first, latents.frames);
    let upload = |latents: &Latents| {
        let shape = [
            latents.frames,
            latents.height,
            latents.width,
            latents.channels,
        ];
        b.upload(Shape::from(shape), &latents.to_tokens())
    };
    let mut z = decoder.denormalise(b, &upload(&visible).in_part(part)?)?;
    if decoder.is_timestep_conditioned() && request.noise_scale != 0.0 {
        let noise = upload(&decode_noise(latents, request.seed).slice(first, latents.frames));
        let (noise, s) = (noise.in_part(part)?, request.noise_scale);
        z = b.weighted_sum(&z, 1.0 - s, &noise, s).in_part(part)?;
    }
    let pictures = decoder.forward(b, &z, request.timestep)?;
    let &[frames, height, width, _] = pictures.shape().dims() else {
        return refuse("latents", format!("decoded to {}", pictures.shape()));
    };
    let rgb = b.download_rgb8(&pictures).in_part(|| "pictures".into())?;
    Ok(Video {
        frames,
        height,
        width,
        rgb,
    })
}

/// The decoder's noise: diffusers draws it from the window's generator after the initial noise.
fn decode_noise(latents: &Latents, seed: u64) -> Latents {
    let mut rng = TorchRng::new(seed);
    rng.skip_randn(latents.values.len());
    Latents {
        values: rng.randn(latents.values.len()),
        ..*latents
    }
}

/// Encodes pictures to normalised latents.
pub(crate) fn encode<B: Backend>(
    b: &B,
    encoder: &Encoder<B>,
    config: &ModelConfig,
    video: &Video,
) -> Result<Latents> {
    let [time, space] = config.vae.ratios();
    let fits = video.frames > 0
        && (video.frames - 1).is_multiple_of(time)
        && video.height > 0
        && video.height.is_multiple_of(space)
        && video.width > 0
        && video.width.is_multiple_of(space);
    if !fits {
        let found = [video.frames, video.height, video.width];
        let message = format!(
            "{found:?} pictures, rows and columns; {time}k+1 and multiples of {space} are needed"
        );
        return refuse("pictures", message);
    }
    let pictures = b.upload_rgb8(video.frames, video.height, video.width, &video.rgb);
    let x = encoder.forward(b, &pictures.in_part(|| "pictures".into())?)?;
    let &[frames, height, width, channels] = x.shape().dims() else {
        return refuse("pictures", format!("encoded to {}", x.shape()));
    };
    let tokens = b.download(&x).in_part(|| "latents".into())?;
    Ok(Latents::from_tokens(
        &tokens, channels, frames, height, width,
    ))
}
