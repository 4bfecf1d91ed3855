//! The flags that say what film is wanted, shared by `render`, `submit` and `plan`, and the way
//! from them to a [`JobSpec`].

mod parts;
mod recipe;
mod sampled;
mod stored;

pub use parts::ModelSet;
pub use stored::Stored;

use crate::conditioning::{HeldArgs, Uploads};
use crate::enhance::EnhanceArgs;
use crate::model_args::{self, ModelArgs};
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use longtake_common::film::{Film, Keyframe};
use longtake_common::media;
use longtake_common::request::{
    Length, OVERLAP_FRAMES_DEFAULT, SEGMENT_FRAMES_DEFAULT, SpecError, SpecRequest, check_fps,
    parse_size,
};
use longtake_common::spec::{
    Codec, Continuity, JobSpec, ModelRef, Reference, Sampling, Shot, Transition,
};
use recipe::Recipe;
use std::path::PathBuf;

/// Pipeline file when neither --config nor --model is given.
const CONFIG_DEFAULT: &str = "ltxv-tiny";
/// Length of a film when none is given, in seconds.
const SECONDS_DEFAULT: f64 = 5.0;
/// Frames a second for a model other than ltxv-tiny, unless a pipeline file says otherwise.
const FPS_DEFAULT: f64 = 30.0;

/// What film is wanted.
#[derive(clap::Args, Clone, Debug)]
pub struct JobArgs {
    /// What to show; may be empty
    #[arg(required_unless_present = "film")]
    prompt: Option<String>,
    /// Film file with several shots, instead of a prompt and a length; see docs/jobs.md. Flags that
    /// are given win over what the file says
    #[arg(
        short = 'f',
        long,
        value_name = "FILM.yaml",
        conflicts_with_all = ["prompt", "seconds", "frames"]
    )]
    film: Option<PathBuf>,
    /// Length in seconds [default: 5]; frames = round(seconds * fps)
    #[arg(
        long,
        value_name = "S",
        conflicts_with = "frames",
        allow_negative_numbers = true
    )]
    seconds: Option<f64>,
    /// Length in frames
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    frames: Option<i64>,
    /// Size in pixels, as 256x160 [default: the pipeline file's; 704x512 with --model]. Rendered
    /// rounded up to multiples of 32 and cropped
    #[arg(long, value_name = "WxH", value_parser = size, allow_hyphen_values = true)]
    size: Option<(i64, i64)>,
    /// Frames a second [default: 24 for ltxv-tiny, else 30]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    fps: Option<f64>,
    /// Seed of the noise; window i draws from seed + i [default: the pipeline file's, else 0]
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Pipeline file: a name under configs/ or a YAML file [default: ltxv-tiny]
    #[arg(long, value_name = "NAME|YAML")]
    config: Option<String>,
    /// Model: a name under configs/models, a Diffusers folder or a checkpoint; on a farm also the
    /// name or the hash of one that it stores. A folder is sampled with its own scheduler (50 steps
    /// at guidance scale 3 unless given otherwise), a checkpoint as the pipeline file of its name says
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// What to steer away from; counts when the guidance scale is above 1 [default: the pipeline
    /// file's; the official program's for an official checkpoint; else nothing]
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// How windows continue each other: chain holds each to the tail of the one before, none
    /// renders them independently [default: chain]
    #[arg(long, value_enum)]
    continuity: Option<ContinuityArg>,
    /// Frames of a window, 8k+1 [default: 121]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    segment_frames: Option<i64>,
    /// Frames that neighbouring windows share, 8k+1 [default: 17]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    overlap_frames: Option<i64>,
    #[command(flatten)]
    held: HeldArgs,
    /// Denoising steps. Of a pipeline file's timesteps it keeps that many, evenly spaced (a second
    /// pass keeps its own list); elsewhere the model's own schedule is counted anew [default: the
    /// pipeline file's]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<i64>,
    /// Have the film show TEXT from SECONDS on, going on from what it shows before; may be repeated
    #[arg(
        long = "prompt-at",
        num_args = 2,
        value_names = ["SECONDS", "TEXT"],
        conflicts_with = "film"
    )]
    prompts_at: Vec<String>,
    /// Whose conventions hold where implementations differ: noise, times, padding of prompts,
    /// schedule, tone mapping [default: diffusers for a Diffusers folder, else official]
    #[arg(long, value_enum)]
    reference: Option<ReferenceArg>,
    /// Classifier-free guidance; 1 is off [default: the pipeline file's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// Length to which prompts are padded or cut, in tokens [default: the pipeline file's]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    text_tokens: Option<i64>,
    #[command(flatten)]
    parts: ModelArgs,
    #[command(flatten)]
    enhance: EnhanceArgs,
}

/// Continuity on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ContinuityArg {
    /// Each window is held to the tail of the one before
    Chain,
    /// Windows know nothing of each other
    None,
}

impl From<ContinuityArg> for Continuity {
    fn from(arg: ContinuityArg) -> Self {
        match arg {
            ContinuityArg::Chain => Self::Chain,
            ContinuityArg::None => Self::None,
        }
    }
}

/// Reference on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReferenceArg {
    /// Lightricks' own code
    Official,
    /// diffusers, as the pipeline class of the model does it
    Diffusers,
    /// ComfyUI with Lightricks' nodes
    Comfy,
}

impl From<ReferenceArg> for Reference {
    fn from(arg: ReferenceArg) -> Self {
        match arg {
            ReferenceArg::Official => Self::Official,
            ReferenceArg::Diffusers => Self::Diffusers,
            ReferenceArg::Comfy => Self::Comfy,
        }
    }
}

/// Reads `--size`; the range is checked with everything else.
fn size(text: &str) -> Result<(i64, i64), String> {
    parse_size(text).map_err(|error| error.to_string())
}

/// Reads `--seed`.
fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("use a whole number from 0 to {}", u64::MAX))
}

/// Where a model's weights are, and whether they are needed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights<'a> {
    /// The job will be rendered: the model is found and hashed.
    Required,
    /// The job will be rendered with a model that its farm stores.
    Stored(Stored<'a>),
    /// Only the timeline matters.
    Ignored,
}

/// A job and what its user should know about it.
#[derive(Debug)]
pub struct Wanted {
    /// The job.
    pub spec: JobSpec,
    /// Sentences for the user.
    pub notices: Vec<String>,
    /// What has to be stored before the job is submitted.
    pub uploads: Uploads,
}

impl JobArgs {
    /// The job that these flags describe, checked.
    pub fn wanted(&self, codec: Codec, weights: Weights<'_>) -> Result<Wanted> {
        let film = self.film.as_deref().map(Film::read).transpose()?;
        let film = film.as_ref();
        let mut recipe = match weights {
            Weights::Stored(stored) => self.stored_recipe(film, &stored)?,
            _ => Recipe::find(self.sources(film), weights)?,
        };
        if let Some(reference) = self.reference {
            recipe.follow(reference.into());
        }
        let mut notices = std::mem::take(&mut recipe.notices);
        let model = match weights {
            Weights::Required => {
                let text_encoder = recipe.text_encoder.as_deref();
                let parts = &self.parts;
                let model = parts.outline(&recipe.model, text_encoder, recipe.eight_bit)?;
                // Headers first: they take no time, and all the bytes of a large model do.
                longtake_agent::check_model(&model)?;
                recipe.complete_passes(&model);
                recipe.check_passes()?;
                let model = model_args::hashed(model)?;
                model_args::check_values(&model)?;
                model
            }
            Weights::Stored(stored) => {
                let model = self.stored_model(&recipe, &stored)?;
                recipe.complete_passes(&model);
                recipe.check_passes()?;
                model
            }
            Weights::Ignored => ModelRef::new(recipe.model.clone(), model_args::unread_hash()),
        };
        notices.extend(sampled::spare_distilled(
            &mut recipe.sampling,
            &model,
            weights,
        )?);
        notices.extend(self.parts.check_reference(self.held.has_reference())?);
        let enhancement = std::mem::take(&mut recipe.enhancement);
        let (mut request, keyframes) = self.request(film, recipe, model, codec)?;
        let frames = request.length.frames(request.fps)?;
        let factor = || self.parts.reference_factor();
        let (conditioning, uploads) = self.held.read(frames, &keyframes, factor)?;
        request.conditioning = conditioning;
        let spec = request.validate();
        let mut spec =
            spec.map_err(|error| match film.map(|film| film.explain(error.clone())) {
                Some(Ok(explained)) => anyhow!(explained),
                _ => anyhow!(error),
            })?;
        media::check_size(codec, spec.width, spec.height)?;
        sampled::check(&spec, weights)?;
        notices.extend(rounding_notice(&spec));
        let negative = self.negative.as_deref().unwrap_or_default();
        if !negative.is_empty() && !spec.sampling.uses_negative() {
            notices.push(
                "the negative prompt has no effect, because no step is guided: give --guidance-scale above 1"
                    .to_owned(),
            );
        }
        // Last: nothing is asked of anybody for a job that cannot be.
        if weights != Weights::Ignored {
            let shots = spec.shots.iter_mut().map(|shot| &mut shot.prompt);
            for prompt in std::iter::once(&mut spec.prompt).chain(shots) {
                let enhanced = self.enhance.apply(prompt, &enhancement)?;
                *prompt = enhanced.prompt;
                notices.extend(enhanced.notice);
            }
            notices.dedup();
            spec.check()?;
        }
        Ok(Wanted {
            spec,
            notices,
            uploads,
        })
    }

    /// The job without its pictures, and the pictures that a film file names.
    fn request(
        &self,
        film: Option<&Film>,
        recipe: Recipe,
        model: ModelRef,
        codec: Codec,
    ) -> Result<(SpecRequest, Vec<Keyframe>)> {
        let of_film = film.and_then(Film::size).map(parse_size).transpose()?;
        let (width, height) =
            (self.size.or(of_film)).unwrap_or((recipe.width.into(), recipe.height.into()));
        let fps = (self.fps.or(film.and_then(Film::fps))).unwrap_or(recipe.fps);
        let timeline = match film {
            Some(film) => {
                check_fps(fps)?;
                Some(film.timeline(fps)?)
            }
            None => None,
        };
        let length = match (&timeline, self.frames, self.seconds) {
            (Some(timeline), ..) => Length::Frames(timeline.frames.into()),
            (None, Some(frames), _) => Length::Frames(frames),
            (None, None, Some(seconds)) => Length::Seconds(seconds),
            (None, None, None) => recipe.length,
        };
        let (shots, keyframes) = match timeline {
            Some(timeline) => (timeline.shots, timeline.keyframes),
            None => {
                check_fps(fps)?;
                (self.prompts_at(fps)?, Vec::new())
            }
        };
        let negative = self.negative.as_deref().or(film.and_then(Film::negative));
        let continuity = self.continuity.map(Continuity::from);
        let segment_frames = self.segment_frames.or(film.and_then(Film::segment_frames));
        let overlap_frames = self.overlap_frames.or(film.and_then(Film::overlap_frames));
        let request = SpecRequest {
            prompt: self.first_prompt(film).to_owned(),
            negative: negative.map_or(recipe.negative, str::to_owned),
            length,
            width,
            height,
            fps,
            seed: (self.seed.or(film.and_then(Film::seed))).unwrap_or(recipe.seed),
            model,
            continuity: (continuity.or(film.and_then(Film::continuity))).unwrap_or_default(),
            segment_frames: segment_frames.unwrap_or(SEGMENT_FRAMES_DEFAULT.into()),
            overlap_frames: overlap_frames.unwrap_or(OVERLAP_FRAMES_DEFAULT.into()),
            sampling: self.sampling(recipe.sampling)?,
            codec,
            shots,
            conditioning: Vec::new(),
            previews: false,
        };
        Ok((request, keyframes))
    }

    /// The shots that `--prompt-at` begins, each going on where the one before ends.
    fn prompts_at(&self, fps: f64) -> Result<Vec<Shot>> {
        let pairs = self.prompts_at.chunks_exact(2);
        let shot = |pair: &[String]| {
            let seconds = pair[0].parse::<f64>().ok();
            let seconds = seconds.filter(|s| s.is_finite() && *s > 0.0);
            let seconds = seconds.ok_or_else(|| {
                anyhow!("'{}' of --prompt-at is no time in seconds above 0", pair[0])
            })?;
            Ok(Shot {
                // `as` saturates; what lies beyond the film is refused later.
                first_frame: (seconds * fps).round() as u32,
                transition: Transition::Continuous,
                prompt: pair[1].clone(),
                negative: None,
                seed: None,
            })
        };
        pairs.map(shot).collect()
    }

    /// The recipe's sampling with the user's own figures in it.
    fn sampling(&self, mut sampling: Sampling) -> Result<Sampling> {
        if let Some(steps) = self.steps {
            let steps = count("steps", steps)?;
            // Zero has an answer of its own, which does not depend on the schedule.
            if steps == 0 {
                return Err(SpecError::Steps(0).into());
            }
            sampling.set_steps(steps)?;
        }
        if let Some(scale) = self.guidance_scale {
            for pass in sampling.passes_mut() {
                for step in &mut pass.guidance.steps {
                    step.guidance_scale = scale;
                }
            }
        }
        if let Some(strength) = self.held.start_strength(&sampling.first_pass) {
            sampling.first_pass.strength = strength;
        }
        if let Some(tokens) = self.text_tokens {
            sampling.text_tokens = count("text tokens", tokens)?;
        }
        Ok(sampling)
    }

    /// What the film, or its first shot, shows.
    fn first_prompt<'a>(&'a self, film: Option<&'a Film>) -> &'a str {
        let given = self.prompt.as_deref();
        given.or(film.map(Film::prompt)).unwrap_or_default()
    }
}

fn count(what: &str, value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| anyhow!("{value} {what} are out of range: use at least 1"))
}

fn rounding_notice(spec: &JobSpec) -> Option<String> {
    let (padded_width, padded_height) = (spec.padded_width(), spec.padded_height());
    let fits = (padded_width, padded_height) == (spec.width, spec.height);
    (!fits).then(|| {
        format!(
            "{}x{} is not a multiple of 32: rendered at {padded_width}x{padded_height} and cropped",
            spec.width, spec.height
        )
    })
}

#[cfg(test)]
mod tests;
