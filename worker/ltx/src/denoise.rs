//! A window on its way from noise to latents.

use crate::conditioning::{self, Encoded, Held, Tokens};
use crate::config::{ModelConfig, PipelineClass};
use crate::embeddings::{Positions, rope, timestep_sinusoid};
use crate::error::{Error, InPart, Result};
use crate::guidance::{self, Branch, Predictions};
use crate::halfway::{Halfway, Stop};
use crate::mixing::Mixing;
use crate::noise::Noise;
use crate::rules;
use crate::sampling::{GuidanceStep, Pass};
use crate::schedule::{Schedule, TokenStep};
use crate::shard::{Shard, Team};
use crate::tea_cache::TeaCache;
use crate::transformer::{Around, Perturbation, TextContext, Transformer};
use crate::types::{DenoiseRequest, Denoised, Latents, Prompt};
use longtake_tensor::{Backend, Recording, Rope, Shape};
use std::ops::ControlFlow;

/// Predicts the velocity of one branch of guidance.
type Predict<'s, T> = Box<dyn FnMut(Branch) -> Result<T> + 's>;

fn refuse<T>(what: &'static str, message: String) -> Result<T> {
    Err(Error::Request { what, message })
}

/// What all steps of a window share.
pub(crate) struct Denoising<'a, B: Backend> {
    b: &'a B,
    transformer: &'a Transformer<B>,
    request: &'a DenoiseRequest<'a>,
    schedule: Schedule,
    // Dropped before what they read.
    recordings: Vec<Recorded>,
    rope: Rope<B>,
    text: TextContext<B>,
    negative: Option<TextContext<B>>,
    noise: Noise,
    tokens: Tokens,
    index: B::Index,
    mixing: Option<Mixing<B>>,
    channels: usize,
    /// This rank's share of the tokens, where a gang shares them.
    shard: Option<Shard<'a, B>>,
    /// `index` of them.
    own_index: Option<B::Index>,
}

impl<'a, B: Backend> Denoising<'a, B> {
    /// Checks the request and prepares what all steps share.
    pub fn new(
        b: &'a B,
        transformer: &'a Transformer<B>,
        config: &ModelConfig,
        request: &'a DenoiseRequest<'a>,
        team: Option<&'a Team<B>>,
    ) -> Result<Self> {
        let (r, channels) = (request, config.transformer.in_channels);
        let schedule = check(config, transformer.block_count(), r)?;
        check_prompt(config, r.prompt)?;
        let negative = negative(config, r, &schedule)?;
        let mut noise = Noise::new(r.seed, r.class == PipelineClass::Official, r.drawn);
        let early = sampled_early(r, &mut noise);
        let latents = initial(r, channels, &schedule, &mut noise);
        let [time_ratio, space_ratio] = config.vae.ratios();
        let held: Vec<Held<'_>> = (r.held.iter().enumerate())
            .map(|(i, item)| Held {
                encoded: early.get(i).unwrap_or(item.encoded),
                ..item.clone()
            })
            .collect();
        let tokens = Tokens::new(latents, &held, r.class, time_ratio, &mut noise);
        let positions = Positions {
            in_front: tokens.in_front.clone(),
            frames: r.latent_frames,
            height: r.latent_height,
            width: r.latent_width,
            fps: r.fps,
            class: r.class,
            causal: config.transformer.causal_temporal_positioning,
            time_ratio,
            space_ratio,
        };
        let dim = config.transformer.inner_dim();
        let shard = team.map(|team| Shard::new(b, team, tokens.index.len(), dim));
        let shard = shard.transpose().in_part(share)?;
        let rope = rope(b, &positions, dim)?;
        let own_index = shard
            .as_ref()
            .map(|s| b.upload_index(&s.own_index(&tokens.index)));
        Ok(Self {
            b,
            transformer,
            request,
            schedule,
            recordings: recordings(r.pass),
            rope: match &shard {
                None => rope,
                Some(shard) => shard.own_rope(b, &rope).in_part(share)?,
            },
            own_index: own_index.transpose().in_part(share)?,
            shard,
            text: transformer.text_context(b, r.prompt)?,
            negative: negative
                .map(|p| transformer.text_context(b, p))
                .transpose()?,
            noise,
            index: b
                .upload_index(&tokens.index)
                .in_part(|| "token timesteps".into())?,
            mixing: mixing(b, &tokens, channels)?,
            tokens,
            channels,
        })
    }

    /// Runs all steps.
    pub fn run(
        mut self,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<Stop>,
    ) -> Result<Denoised> {
        let (b, steps) = (self.b, self.schedule.len());
        let mut cache = TeaCache::new(self.request.pass.tea_cache);
        let first = self.take_up()?;
        let (mut held, begin) = match self.request.halfway {
            None => (self.tokens.values.clone(), &self.tokens.values),
            Some(halfway) => (halfway.held.clone(), &halfway.tokens),
        };
        let mut x = self.upload(begin)?;
        for step in first..steps {
            x = self.noise_held(x, step, &mut held)?;
            let kinds = self.tokens.kinds.iter();
            let moves: Vec<TokenStep> = kinds
                .map(|kind| self.schedule.token_step(step, kind.strength))
                .collect();
            let part = || format!("step {step}");
            let mixed = self.mixing.as_ref().map(|m| m.mixed(b, &x, &self.index));
            let seen = mixed.transpose().in_part(part)?;
            let v = self.velocity(seen.as_ref().unwrap_or(&x), step, &moves, &mut cache)?;
            x = match (&self.mixing, &seen) {
                (Some(mixing), Some(seen)) => {
                    let level = self.schedule.sigmas[step];
                    let clean = mixing.clean(b, seen, &v, level, &self.index);
                    clean.and_then(|clean| self.towards(&x, &clean, step))
                }
                _ => self.advance(x, &v, &moves),
            }
            .in_part(part)?;
            let asked = progress(step + 1, steps).break_value();
            let mut stops = asked.is_some();
            if let Some(shard) = &self.shard {
                // Nobody is left waiting for ranks that have stopped.
                stops = shard.any(stops).in_part(share)?;
            }
            if stops {
                let keeps = asked == Some(Stop::Keep) && !cache.is_on();
                return Err(self.stopped(step + 1, keeps.then_some((&x, held)))?);
            }
        }
        let tokens = b.download(&x).in_part(|| "latents".into())?;
        if tokens.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite);
        }
        let r = self.request;
        let (frames, height, width) = (r.latent_frames, r.latent_height, r.latent_width);
        let own = &tokens[tokens.len() - self.channels * frames * height * width..];
        Ok(Denoised {
            latents: Latents::from_tokens(own, self.channels, frames, height, width),
            drawn: self.noise.into_drawn(),
            blocks: cache.count(),
        })
    }

    /// The step to begin with: the first, or where another run of this request was stopped.
    fn take_up(&mut self) -> Result<usize> {
        let (r, steps) = (self.request, self.schedule.len());
        let Some(halfway) = r.halfway else {
            return Ok(0);
        };
        halfway.check(self.tokens.values.len(), self.channels, steps)?;
        self.noise = Noise::new(r.seed, r.class == PipelineClass::Official, &halfway.drawn);
        Ok(halfway.step)
    }

    /// How a run ends that was stopped after `step` steps, with what is kept of it, if anything is.
    fn stopped(&self, step: usize, kept: Option<(&B::Tensor, Vec<f32>)>) -> Result<Error> {
        let steps = self.schedule.len();
        let Some((x, held)) = kept else {
            return Ok(Error::Cancelled { step, steps });
        };
        let tokens = self.b.download(x).in_part(|| "latents".into())?;
        Ok(Error::Stopped(Box::new(Halfway {
            step,
            steps,
            seconds: 0.0,
            drawn: self.noise.drawn().clone(),
            channels: self.channels,
            token_count: tokens.len() / self.channels,
            tokens,
            held,
        })))
    }

    fn upload(&self, tokens: &[f32]) -> Result<B::Tensor> {
        let shape = Shape::from([tokens.len() / self.channels, self.channels]);
        self.b.upload(shape, tokens).in_part(|| "noise".into())
    }

    /// Gives what is held at full strength noise that falls with the square of the noise level,
    /// anew at every step: without, a first frame that never changes makes the rest stand still.
    fn noise_held(&mut self, x: B::Tensor, step: usize, held: &mut [f32]) -> Result<B::Tensor> {
        let scale = self.request.pass.image_cond_noise_scale;
        if scale <= 0.0 || !self.request.held.iter().any(|item| item.noised) {
            return Ok(x);
        }
        // The references draw for all tokens, whichever are held.
        let drawn = self.noise.draw(held.len());
        let level = self.schedule.level(step);
        let share = scale * level * level;
        let kinds = &self.tokens.kinds;
        let mut change = vec![0.0; held.len()];
        for (token, &kind) in self.tokens.index.iter().enumerate() {
            if kinds[kind as usize].noised {
                for i in token * self.channels..(token + 1) * self.channels {
                    let wanted = self.tokens.values[i] + share * drawn[i];
                    change[i] = wanted - held[i];
                    held[i] = wanted;
                }
            }
        }
        let factors: Vec<f32> = kinds.iter().map(|k| f32::from(k.noised)).collect();
        let change = self.upload(&change)?;
        self.b
            .add_scaled_tokens(x, &change, &factors, &self.index)
            .in_part(|| format!("noise on what is held, step {step}"))
    }

    /// The step itself: `x - (current - next) v`, or to a clean picture and back to `next`.
    fn advance(
        &mut self,
        x: B::Tensor,
        v: &B::Tensor,
        moves: &[TokenStep],
    ) -> longtake_tensor::Result<B::Tensor> {
        let factors = |f: fn(&TokenStep) -> f32| -> Vec<f32> {
            let moving = |m: &TokenStep| if m.next == m.current { 0.0 } else { f(m) };
            moves.iter().map(moving).collect()
        };
        if !self.request.pass.stochastic {
            let deltas = factors(|m| m.next - m.current);
            return self.b.add_scaled_tokens(x, v, &deltas, &self.index);
        }
        let drawn = self.noise.draw_ambient(self.tokens.values.len());
        let shape = Shape::from([drawn.len() / self.channels, self.channels]);
        let fresh = self.b.upload(shape, &drawn)?;
        let x = self
            .b
            .add_scaled_tokens(x, v, &factors(|m| -m.current), &self.index)?;
        let clean = x.clone();
        let x = self
            .b
            .add_scaled_tokens(x, &clean, &factors(|m| -m.next), &self.index)?;
        self.b
            .add_scaled_tokens(x, &fresh, &factors(|m| m.next), &self.index)
    }

    /// From `x` to the next level, on the way to the picture `clean`.
    fn towards(
        &mut self,
        x: &B::Tensor,
        clean: &B::Tensor,
        step: usize,
    ) -> longtake_tensor::Result<B::Tensor> {
        let (current, next) = (self.schedule.sigmas[step], self.schedule.sigmas[step + 1]);
        if !self.request.pass.stochastic {
            let left = next / current;
            return self.b.weighted_sum(x, left, clean, 1.0 - left);
        }
        let drawn = self.noise.draw_ambient(self.tokens.values.len());
        let shape = Shape::from([drawn.len() / self.channels, self.channels]);
        let fresh = self.b.upload(shape, &drawn)?;
        self.b.weighted_sum(clean, 1.0 - next, &fresh, next)
    }

    fn velocity(
        &self,
        x: &B::Tensor,
        step: usize,
        moves: &[TokenStep],
        cache: &mut TeaCache<B>,
    ) -> Result<B::Tensor> {
        let guidance = &self.request.pass.guidance;
        let Some(now) = guidance.at(self.schedule.level(step)) else {
            return refuse("guidance", "at least one step of it is needed".into());
        };
        let timesteps: Vec<f32> = moves.iter().map(|m| m.timestep).collect();
        let sinusoid = timestep_sinusoid(self.b, &timesteps)?;
        let last = step + 1 == self.schedule.len();
        let mut predict: Box<dyn FnMut(Branch) -> Result<B::Tensor> + '_> = if cache.is_on() {
            self.caching(x, &sinusoid, now, last, cache)?
        } else {
            Box::new(move |branch| {
                cache.add_computed(self.transformer.block_count());
                self.predict(x, &sinusoid, branch, now)
            })
        };
        let negative = match now.uses_negative() {
            true => Some(predict(Branch::Negative)?),
            false => None,
        };
        let text = predict(Branch::Text)?;
        // Disturbing nothing predicts the same: not computed again.
        let perturbed = match now.is_perturbed() {
            true => Some(predict(Branch::Perturbed)?),
            false => None,
        };
        let predictions = Predictions {
            text,
            negative,
            perturbed,
        };
        guidance::combine(self.b, predictions, now, guidance.cfg_star_rescale)
            .in_part(|| "guidance".into())
    }

    fn around<'s>(&'s self, branch: Branch, now: &'s GuidanceStep) -> Around<'s, B> {
        let negative = self.negative.as_ref();
        Around {
            text: match branch {
                Branch::Negative => negative.unwrap_or(&self.text),
                Branch::Text | Branch::Perturbed => &self.text,
            },
            index: self.own_index.as_ref().unwrap_or(&self.index),
            rope: &self.rope,
            shard: self.shard.as_ref(),
            perturbation: match branch {
                Branch::Perturbed => Perturbation {
                    mode: self.request.pass.guidance.stg_mode,
                    blocks: &now.skip_blocks,
                },
                Branch::Negative | Branch::Text => Perturbation::NONE,
            },
        }
    }

    /// One prediction, recorded by the backend from one step to the next.
    fn predict(
        &self,
        x: &B::Tensor,
        sinusoid: &B::Tensor,
        branch: Branch,
        now: &GuidanceStep,
    ) -> Result<B::Tensor> {
        let (model, b) = (self.transformer, self.b);
        let compute = |inputs: &[B::Tensor]| {
            let around = self.around(branch, now);
            model.forward_at(b, &inputs[0], &inputs[1], &around)
        };
        let blocks: &[usize] = match branch {
            Branch::Perturbed => &now.skip_blocks,
            Branch::Negative | Branch::Text => &[],
        };
        let known = self.recordings.iter();
        let found = known
            .into_iter()
            .find(|r| r.branch == branch && r.blocks == blocks)
            .filter(|_| self.shard.as_ref().is_none_or(Shard::is_recordable));
        let x = &self.own(x)?;
        let v = match found {
            Some(recorded) => b.recorded(&recorded.recording, &[x, sinusoid], compute),
            None => compute(&[x.clone(), sinusoid.clone()]),
        };
        self.whole(v?)
    }

    /// What the blocks see of the window's tokens.
    fn own(&self, x: &B::Tensor) -> Result<B::Tensor> {
        match &self.shard {
            None => Ok(x.clone()),
            Some(shard) => shard.own(self.b, x).in_part(share),
        }
    }

    /// The window's tokens for what came of these.
    fn whole(&self, x: B::Tensor) -> Result<B::Tensor> {
        match &self.shard {
            None => Ok(x),
            Some(shard) => shard.whole(self.b, &x).in_part(share),
        }
    }

    /// Predictions that take over what the blocks added in an earlier step, where that hardly
    /// changes.
    fn caching<'s>(
        &'s self,
        x: &B::Tensor,
        sinusoid: &B::Tensor,
        now: &'s GuidanceStep,
        last: bool,
        cache: &'s mut TeaCache<B>,
    ) -> Result<Predict<'s, B::Tensor>> {
        let (model, b) = (self.transformer, self.b);
        let (h, told) = model.enter(b, &self.own(x)?, sinusoid)?;
        let index = self.own_index.as_ref().unwrap_or(&self.index);
        let input = model.first_input(b, &h, &told, index)?;
        let reuse = cache.decide(b, &input, self.shard.as_ref(), last)?;
        Ok(Box::new(move |branch| {
            let around = self.around(branch, now);
            let compute = |h: B::Tensor| model.run_blocks(b, h, &told, &around);
            let out = cache.blocks(b, branch, reuse, &h, model.block_count(), compute)?;
            self.whole(model.leave(b, &out, &told, index)?)
        }))
    }
}

/// What is mixed in around every step, if anything is.
fn mixing<B: Backend>(b: &B, tokens: &Tokens, channels: usize) -> Result<Option<Mixing<B>>> {
    let strengths = || tokens.kinds.iter().map(|kind| kind.strength).collect();
    let held = tokens.held.as_ref();
    let mixing = held.map(|held| Mixing::new(b, held, channels, strengths()));
    mixing.transpose().in_part(|| "what is held".into())
}

fn share() -> String {
    "the share of a rank".to_owned()
}

/// What the backend remembers of one kind of prediction.
struct Recorded {
    branch: Branch,
    /// Blocks that are disturbed.
    blocks: Vec<usize>,
    recording: Recording,
}

/// A recording for each kind of prediction that a pass takes.
fn recordings(pass: &Pass) -> Vec<Recorded> {
    let mut kinds = vec![(Branch::Negative, Vec::new()), (Branch::Text, Vec::new())];
    for step in pass
        .guidance
        .steps
        .iter()
        .filter(|step| step.is_perturbed())
    {
        let kind = (Branch::Perturbed, step.skip_blocks.clone());
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let recorded = |(branch, blocks)| Recorded {
        branch,
        blocks,
        recording: Recording::default(),
    };
    kinds.into_iter().map(recorded).collect()
}

/// What is held, drawn from its distributions before any noise: the image pipeline that belongs to
/// diffusers' first one does it in this order, everyone else after the noise.
fn sampled_early(r: &DenoiseRequest<'_>, noise: &mut Noise) -> Vec<Encoded> {
    if r.class != PipelineClass::Plain {
        return Vec::new();
    }
    let sampled = |item: &Held<'_>| match item.reference_stride {
        Some(_) => item.encoded.clone(),
        None => Encoded {
            mode: conditioning::sampled(item.encoded, r.class, noise),
            spread: None,
        },
    };
    r.held.iter().map(sampled).collect()
}

/// Noise, or `start` noised to the first level.
fn initial(
    r: &DenoiseRequest<'_>,
    channels: usize,
    schedule: &Schedule,
    noise: &mut Noise,
) -> Latents {
    let (frames, height, width) = (r.latent_frames, r.latent_height, r.latent_width);
    let start = r
        .start
        .map(|start| conditioning::sampled(start, r.class, noise));
    let values = noise.draw(channels * frames * height * width);
    let latents = match r.class {
        PipelineClass::Official => Latents::from_tokens(&values, channels, frames, height, width),
        _ => Latents {
            channels,
            frames,
            height,
            width,
            values,
        },
    };
    let Some(start) = start else {
        return latents;
    };
    let level = schedule.sigmas[0];
    let pairs = latents.values.iter().zip(&start.values);
    Latents {
        values: pairs.map(|(n, s)| level * n + (1.0 - level) * s).collect(),
        ..start
    }
}

/// Checks everything but the prompts; the schedule.
fn check(config: &ModelConfig, blocks: usize, r: &DenoiseRequest<'_>) -> Result<Schedule> {
    let channels = config.transformer.in_channels;
    let sizes = [r.latent_frames, r.latent_height, r.latent_width];
    let token_count: usize = sizes.iter().product();
    if token_count == 0 {
        return refuse(
            "window",
            format!("frames, rows and columns must be positive: {sizes:?}"),
        );
    }
    if !(r.fps.is_finite() && r.fps > 0.0) {
        return refuse("fps", format!("{} is not a positive number", r.fps));
    }
    let [time_ratio, _] = config.vae.ratios();
    let window = [channels, sizes[0], sizes[1], sizes[2]];
    for item in r.held {
        conditioning::check(item, window, time_ratio)?;
    }
    check_start(r, window, time_ratio)?;
    rules::schedule(&config.scheduler, blocks, r.class, r.pass, token_count)
}

fn check_start(r: &DenoiseRequest<'_>, window: [usize; 4], time_ratio: usize) -> Result<()> {
    let Some(start) = r.start else {
        return Ok(());
    };
    let whole = Held {
        encoded: start,
        frame: 0,
        strength: 1.0,
        noised: false,
        reference_stride: None,
    };
    conditioning::check(&whole, window, time_ratio)?;
    if start.mode.frames == r.latent_frames {
        return Ok(());
    }
    let (found, wanted) = (start.mode.frames, r.latent_frames);
    refuse(
        "video to start from",
        format!("it has {found} latent frames, the window {wanted}"),
    )
}

/// The negative prompt, if a step of the pass needs it.
fn negative<'p>(
    config: &ModelConfig,
    r: &DenoiseRequest<'p>,
    schedule: &Schedule,
) -> Result<Option<&'p Prompt>> {
    let step = |i| r.pass.guidance.at(schedule.level(i));
    let needed = (0..schedule.len()).any(|i| step(i).is_some_and(GuidanceStep::uses_negative));
    match (needed, r.negative) {
        (false, _) => Ok(None),
        (true, Some(negative)) => check_prompt(config, negative).map(Some),
        (true, None) => refuse(
            "guidance",
            "a scale above 1 needs the negative prompt".into(),
        ),
    }
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
