//! The flags that say what film is wanted, shared by `render`, `submit` and `plan`, and the way
//! from them to a [`JobSpec`].

mod stored;

pub use stored::Stored;

use crate::conditioning::{HeldArgs, Uploads};
use crate::enhance::EnhanceArgs;
use crate::model_args::{self, ModelArgs, location};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use longtake_common::film::{Film, Keyframe};
use longtake_common::model::{find_config, find_model, hash_model};
use longtake_common::pipeline::{Enhancement, Pipeline, Precision};
use longtake_common::request::{
    Length, OVERLAP_FRAMES_DEFAULT, SEGMENT_FRAMES_DEFAULT, SpecError, SpecRequest, check_fps,
    parse_size,
};
use longtake_common::spec::{Codec, Continuity, JobSpec, ModelRef, Sampling, Schedule};
use longtake_common::{Hash, media};
use std::path::PathBuf;

/// Pipeline file when neither --config nor --model is given.
const CONFIG_DEFAULT: &str = "ltxv-tiny";
/// Length of a film when none is given, in seconds.
const SECONDS_DEFAULT: f64 = 5.0;
/// Frames a second for a model other than ltxv-tiny, unless a pipeline file says otherwise.
const FPS_DEFAULT: f64 = 30.0;

// What diffusers' LTX pipelines use when the caller names nothing; a Diffusers folder does not
// store these.
const DIFFUSERS_STEPS: u32 = 50;
const DIFFUSERS_GUIDANCE_SCALE: f32 = 3.0;
const DIFFUSERS_WIDTH: u32 = 704;
const DIFFUSERS_HEIGHT: u32 = 512;
const DIFFUSERS_TEXT_TOKENS: u32 = 128;
/// The condition pipeline of diffusers pads prompts further than the others.
const DIFFUSERS_CONDITION_TEXT_TOKENS: u32 = 256;

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

/// How the model is to be used: from a pipeline file, or a Diffusers folder's defaults.
struct Recipe {
    sampling: Sampling,
    width: u32,
    height: u32,
    fps: f64,
    /// Length when the user names none.
    length: Length,
    seed: u64,
    negative: String,
    /// Name or path of the model.
    model: String,
    /// Name or path of its text encoder.
    text_encoder: Option<String>,
    /// Whether large matrices are kept in 8 bits.
    eight_bit: bool,
    /// What the pipeline file says about rewriting prompts.
    enhancement: Enhancement,
    /// Sentences for the user.
    notices: Vec<String>,
}

impl JobArgs {
    /// The job that these flags describe, checked.
    pub fn wanted(&self, codec: Codec, weights: Weights<'_>) -> Result<Wanted> {
        let film = self.film.as_deref().map(Film::read).transpose()?;
        let film = film.as_ref();
        let mut recipe = match weights {
            Weights::Stored(stored) => self.stored_recipe(film, &stored)?,
            _ => self.recipe(film, weights)?,
        };
        let mut notices = std::mem::take(&mut recipe.notices);
        let model = match weights {
            Weights::Required => {
                let text_encoder = recipe.text_encoder.as_deref();
                let parts = &self.parts;
                let model = parts.outline(&recipe.model, text_encoder, recipe.eight_bit)?;
                // Headers first: they take no time, and all the bytes of a large model do.
                longtake_agent::check_model(&model)?;
                model_args::hashed(model)?
            }
            Weights::Stored(stored) => self.stored_model(&recipe, &stored)?,
            Weights::Ignored => ModelRef::new(recipe.model.clone(), Hash::of(b"")),
        };
        let enhancement = std::mem::take(&mut recipe.enhancement);
        let (mut request, keyframes) = self.request(film, recipe, model, codec)?;
        let frames = request.length.frames(request.fps)?;
        let (conditioning, uploads) = self.held.read(frames, &keyframes)?;
        request.conditioning = conditioning;
        let spec = request.validate();
        let mut spec =
            spec.map_err(|error| match film.map(|film| film.explain(error.clone())) {
                Some(Ok(explained)) => anyhow!(explained),
                _ => anyhow!(error),
            })?;
        media::check_size(codec, spec.width, spec.height)?;
        notices.extend(rounding_notice(&spec));
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
        let (shots, keyframes) = timeline.map_or_else(Default::default, |timeline| {
            (timeline.shots, timeline.keyframes)
        });
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
        };
        Ok((request, keyframes))
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

    fn recipe(&self, film: Option<&Film>, weights: Weights<'_>) -> Result<Recipe> {
        let from_file = |name: &str| file_recipe(name, weights);
        match self.sources(film) {
            (Some(config), None) => from_file(config),
            (Some(config), Some(model)) => Ok(Recipe {
                model: model.to_owned(),
                ..from_file(config)?
            }),
            (None, None) => from_file(CONFIG_DEFAULT),
            (None, Some(model)) => {
                // The shipped model under any of its names is sampled as it was distilled.
                if let Ok(shipped) = from_file(CONFIG_DEFAULT)
                    && is_same_model(&shipped.model, model)
                {
                    return Ok(shipped);
                }
                // An official checkpoint is sampled as the pipeline file of its name says.
                match model.strip_suffix(".safetensors") {
                    Some(path) => checkpoint_recipe(model, path, weights),
                    None => diffusers_recipe(model),
                }
            }
        }
    }
}

/// The files that a pipeline file names beside the model.
fn reference(name: &str, weights: Weights<'_>) -> Result<ModelRef> {
    let hash_and_place = match weights {
        Weights::Required | Weights::Stored(_) => {
            let path = find_model(name)?;
            (location(name, &path)?, hash_model(&path)?)
        }
        Weights::Ignored => (name.to_owned(), Hash::of(b"")),
    };
    let (location, hash) = hash_and_place;
    Ok(ModelRef::new(location, hash))
}

/// How an official checkpoint is sampled: as the pipeline file of its name says.
fn checkpoint_recipe(model: &str, path: &str, weights: Weights<'_>) -> Result<Recipe> {
    find_model(model)?;
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    if find_config(name).is_err() {
        bail!(
            "{model} is a checkpoint, but no pipeline file is called {name}: say with --config how \
             it is sampled"
        );
    }
    Ok(Recipe {
        model: model.to_owned(),
        ..file_recipe(name, weights)?
    })
}

/// How a pipeline file has `prompt` rendered.
fn file_recipe(name: &str, weights: Weights<'_>) -> Result<Recipe> {
    let pipeline = Pipeline::read(&find_config(name)?)?;
    if weights != Weights::Ignored {
        // Said before any other file is looked for.
        let sampling = pipeline.sampling(|name| reference(name, Weights::Ignored))?;
        if let Some(what) = sampling.unbuilt() {
            bail!("the pipeline file {name} asks for {what}, which is not supported");
        }
    }
    let notices = pipeline.notices().to_vec();
    let length = pipeline
        .num_frames
        .map(|frames| Length::Frames(frames.into()));
    Ok(Recipe {
        sampling: pipeline.sampling(|name| reference(name, weights))?,
        width: pipeline.width,
        height: pipeline.height,
        fps: pipeline.frame_rate,
        length: length.unwrap_or(Length::Seconds(SECONDS_DEFAULT)),
        seed: pipeline.seed.unwrap_or(0),
        negative: pipeline.negative_prompt.clone(),
        model: pipeline.model().to_owned(),
        text_encoder: pipeline.text_encoder_model_name_or_path.clone(),
        eight_bit: pipeline.precision == Some(Precision::Float8E4m3fn),
        enhancement: pipeline.enhancement.clone(),
        notices,
    })
}

/// How diffusers would sample the folder `model`.
fn diffusers_recipe(model: &str) -> Result<Recipe> {
    let path = find_model(model)?;
    let index = path.join("model_index.json");
    let text = std::fs::read_to_string(&index).with_context(|| {
        format!(
            "{} is no Diffusers folder: cannot read {}",
            path.display(),
            index.display()
        )
    })?;
    let index_json: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON; fetch the file again", index.display()))?;
    let class = index_json["_class_name"].as_str().unwrap_or("");
    if !class.starts_with("LTX") {
        bail!(
            "{} names the pipeline '{class}'; an LTX-Video folder is needed",
            index.display()
        );
    }
    let text_tokens = match class {
        "LTXConditionPipeline" => DIFFUSERS_CONDITION_TEXT_TOKENS,
        _ => DIFFUSERS_TEXT_TOKENS,
    };
    Ok(Recipe {
        sampling: Sampling::plain(
            Schedule::Steps(DIFFUSERS_STEPS),
            DIFFUSERS_GUIDANCE_SCALE,
            text_tokens,
        ),
        width: DIFFUSERS_WIDTH,
        height: DIFFUSERS_HEIGHT,
        fps: FPS_DEFAULT,
        length: Length::Seconds(SECONDS_DEFAULT),
        seed: 0,
        negative: String::new(),
        model: model.to_owned(),
        text_encoder: None,
        eight_bit: false,
        enhancement: Enhancement::default(),
        notices: Vec::new(),
    })
}

fn is_same_model(a: &str, b: &str) -> bool {
    matches!((find_model(a), find_model(b)), (Ok(a), Ok(b)) if a == b)
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
