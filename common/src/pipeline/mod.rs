//! Pipeline files: how a model is meant to be sampled, in YAML, with the keys of the official
//! LTX-Video repository and a few of our own (`docs/ltx.md` lists them all).
//!
//! A key that is not known is an error: a misspelt one would otherwise change the film silently.
//! What is absent is off, except for the schedule: the official files name everything that they
//! want, and whoever writes three lines does not expect guidance to triple the time.

mod enhance;
mod error;
mod pass;
mod section;

pub use enhance::Enhancement;
pub use error::PipelineError;
pub use pass::TEACACHE_THRESHOLD_DEFAULT;

use crate::model::find_config;
use crate::sampling::{Sampler, Sampling, SecondPass, StgMode};
use crate::spec::ModelRef;
use pass::{PASS_KEYS, PassKeys};
use section::Section;
pub(crate) use section::inline;
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};
use std::path::Path;

/// Keys that stand at the top of a file only. The official ones, then extensions.
const FILE_KEYS: [&str; 22] = [
    "pipeline_type",
    "downscale_factor",
    "spatial_upscaler_model_path",
    "stg_mode",
    "text_encoder_model_name_or_path",
    "precision",
    "sampler",
    "prompt_enhancement_words_threshold",
    "prompt_enhancer_image_caption_model_name_or_path",
    "prompt_enhancer_llm_model_name_or_path",
    "first_pass",
    "second_pass",
    "pipeline_config",
    "seed",
    "negative_prompt",
    "enable_flash_attention",
    "text_tokens",
    "width",
    "height",
    "frame_rate",
    "num_frames",
    "checkpoint_path",
];

/// What the official program steers away from unless told otherwise.
pub const OFFICIAL_NEGATIVE: &str =
    "worst quality, inconsistent motion, blurry, jittery, distorted";

/// How weights are kept and computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Extension: 32-bit floats.
    Float32,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bfloat16,
    /// 8-bit floats in the linear layers of the transformer's blocks.
    #[serde(rename = "float8_e4m3fn")]
    Float8E4m3fn,
    /// 32-bit weights, 16-bit products.
    MixedPrecision,
}

/// How many passes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PipelineType {
    Base,
    MultiScale,
}

/// A pipeline file. Fields without a note are official keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// The model: a name under `configs/models` (`models/NAME` is the same), or a path.
    pub checkpoint_path: String,
    /// The latent upscaler between two passes: a name or a path.
    pub spatial_upscaler_model_path: Option<String>,
    /// The text encoder of a checkpoint that has none: a name or a path.
    pub text_encoder_model_name_or_path: Option<String>,
    /// How weights are kept; `None`: as the checkpoint stores them.
    pub precision: Option<Precision>,
    /// What the file says about rewriting prompts.
    pub enhancement: Enhancement,
    /// Extension: seed when the user names none.
    pub seed: Option<u64>,
    /// Extension: what to steer away from when the user names nothing.
    pub negative_prompt: String,
    /// Extension: width when the user names none, in pixels.
    pub width: u32,
    /// Extension: height when the user names none, in pixels.
    pub height: u32,
    /// Extension here, an argument of the official program: frames a second when the user names none.
    pub frame_rate: f64,
    /// Extension here, an argument of the official program: frames when the user names no length.
    pub num_frames: Option<u32>,
    /// Extension: length to which prompts are padded or cut, in tokens.
    pub text_tokens: Option<u32>,
    sampler: Sampler,
    stg_mode: StgMode,
    first_pass: PassKeys,
    second_pass: Option<(f64, PassKeys)>,
    notices: Vec<String>,
}

// The official program's defaults, for its own files, which do not name these.
const OFFICIAL_TEXT_TOKENS: u32 = 256;
const OFFICIAL_WIDTH: u32 = 1216;
const OFFICIAL_HEIGHT: u32 = 704;
const OFFICIAL_FRAME_RATE: f64 = 30.0;
/// Size of the first of two passes when a file does not say; that of the official files.
const DOWNSCALE_FACTOR: f64 = 0.666_666_6;
/// Files that build on each other at most: more is a circle.
const BASES_MAX: usize = 4;

impl Pipeline {
    /// Reads a file found by [`crate::model::find_config`].
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        Self::build(&keys_of(path, BASES_MAX)?, path)
    }

    /// Reads the text of a file; `path` is for messages and for finding the file it builds on.
    pub fn parse(text: &str, path: &Path) -> Result<Self, PipelineError> {
        Self::build(&overlaid(text, path, BASES_MAX)?, path)
    }

    /// The text of the file at `path` with everything in it that it builds on, so that it stands
    /// alone.
    pub fn flattened(path: &Path) -> Result<String, PipelineError> {
        let mut keys = keys_of(path, BASES_MAX)?;
        Self::build(&keys, path)?;
        keys.remove("pipeline_config");
        serde_yaml_ng::to_string(&keys).map_err(|source| PipelineError::Parse {
            path: path.to_owned(),
            source,
        })
    }

    fn build(keys: &Mapping, path: &Path) -> Result<Self, PipelineError> {
        let known: Vec<&'static str> = FILE_KEYS.iter().chain(&PASS_KEYS).copied().collect();
        let file = Section::new(path, "", keys, &known)?;
        let pass = |name| match file.mapping(name)? {
            None => Ok(None),
            Some(keys) => Section::new(path, name, keys, &PASS_KEYS).map(Some),
        };
        let (first, second) = (pass("first_pass")?, pass("second_pass")?);
        let top = PassKeys::read(&file)?;
        let kind: Option<PipelineType> = file.get("pipeline_type", "base or multi-scale")?;
        let is_multi_scale = match kind {
            Some(kind) => kind == PipelineType::MultiScale,
            None => first.is_some() && second.is_some(),
        };
        let factor = file.get_if(
            "downscale_factor",
            "a number above 0 and up to 1",
            |f: &f64| *f > 0.0 && *f <= 1.0,
        )?;
        let merged = |section: &Option<Section<'_>>| -> Result<PassKeys, PipelineError> {
            let section = section.as_ref().unwrap_or(&file);
            let keys = PassKeys::read(section)?.or(&top);
            keys.check(section)?;
            Ok(keys)
        };
        let (first_pass, second_pass) = match (is_multi_scale, &first, &second) {
            (true, Some(_), Some(_)) => (
                merged(&first)?,
                Some((factor.unwrap_or(DOWNSCALE_FACTOR), merged(&second)?)),
            ),
            (true, ..) => {
                let message = "pipeline_type: multi-scale needs first_pass and second_pass; add \
                               them, or use pipeline_type: base";
                return Err(file.contradiction(message.to_owned()));
            }
            (false, None, None) => (merged(&None)?, None),
            (false, ..) => {
                let message = "pipeline_type: base has one pass, whose keys stand at the top of \
                               the file; move them there, or use pipeline_type: multi-scale";
                return Err(file.contradiction(message.to_owned()));
            }
        };
        let mut pipeline = Self::with_passes(&file, first_pass, second_pass)?;
        let shadowed = [first.as_ref(), second.as_ref()];
        pipeline.notices.extend(shadowed_notices(keys, shadowed));
        Ok(pipeline)
    }

    fn with_passes(
        file: &Section<'_>,
        first_pass: PassKeys,
        second_pass: Option<(f64, PassKeys)>,
    ) -> Result<Self, PipelineError> {
        let name = "the name or path of a file";
        let checkpoint_path: String =
            file.require("checkpoint_path", "the model's name or path")?;
        let upscaler = file.get("spatial_upscaler_model_path", name)?;
        if second_pass.is_some() && upscaler.is_none() {
            let message = "two passes need a spatial_upscaler_model_path; add it".to_owned();
            return Err(file.contradiction(message));
        }
        let negative_prompt = file.get("negative_prompt", "a text")?;
        let official = is_single_file(&checkpoint_path);
        let default_negative = if official { OFFICIAL_NEGATIVE } else { "" };
        let mut notices = Vec::new();
        let fused: Option<bool> = file.get("enable_flash_attention", "true or false")?;
        if fused == Some(false) {
            notices.push(
                "enable_flash_attention: false has no effect: attention is always computed \
                 without storing its scores"
                    .to_owned(),
            );
        }
        Ok(Self {
            checkpoint_path,
            spatial_upscaler_model_path: upscaler,
            text_encoder_model_name_or_path: file.get("text_encoder_model_name_or_path", name)?,
            precision: file.get(
                "precision",
                "float8_e4m3fn, bfloat16, mixed_precision or float32",
            )?,
            enhancement: Enhancement::read(file)?,
            seed: file.get("seed", "a whole number from 0")?,
            negative_prompt: negative_prompt.unwrap_or_else(|| default_negative.to_owned()),
            width: file.count("width", 1)?.unwrap_or(OFFICIAL_WIDTH),
            height: file.count("height", 1)?.unwrap_or(OFFICIAL_HEIGHT),
            frame_rate: file
                .get_if("frame_rate", "a number above 0", |f: &f64| *f > 0.0)?
                .unwrap_or(OFFICIAL_FRAME_RATE),
            num_frames: file.count("num_frames", 1)?,
            text_tokens: file.count("text_tokens", 1)?,
            sampler: sampler(file)?,
            stg_mode: stg_mode(file)?,
            first_pass,
            second_pass,
            notices,
        })
    }

    /// The model's name or path for [`crate::model::find_model`].
    pub fn model(&self) -> &str {
        self.checkpoint_path
            .strip_prefix("models/")
            .unwrap_or(&self.checkpoint_path)
    }

    /// Sentences for the user about keys that do not do what they seem to.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// How windows are sampled, before the user's own flags. `find` names the bytes of the other
    /// files that the passes use: the upscaler, and models of their own.
    pub fn sampling<E>(
        &self,
        mut find: impl FnMut(&str) -> Result<ModelRef, E>,
    ) -> Result<Sampling, E> {
        let mut pass = |keys: &PassKeys| -> Result<_, E> {
            let own = keys.checkpoint_path.as_deref();
            let own = own.filter(|own| *own != self.checkpoint_path);
            Ok(keys.pass(own.map(&mut find).transpose()?))
        };
        let first_pass = pass(&self.first_pass)?;
        let second = match &self.second_pass {
            None => None,
            Some((factor, keys)) => Some((*factor, pass(keys)?)),
        };
        let second_pass = match (second, &self.spatial_upscaler_model_path) {
            (Some((downscale_factor, pass)), Some(upscaler)) => Some(SecondPass {
                downscale_factor,
                upscaler: find(upscaler)?,
                pass,
            }),
            _ => None,
        };
        let decoded = self
            .second_pass
            .as_ref()
            .map_or(&self.first_pass, |(_, keys)| keys);
        // Without a scale of its own, the official program takes the timestep for it.
        let decode_timestep = decoded.decode_timestep.unwrap_or(0.0);
        Ok(Sampling {
            first_pass,
            second_pass,
            sampler: self.sampler,
            stg_mode: self.stg_mode,
            text_tokens: self.text_tokens.unwrap_or(OFFICIAL_TEXT_TOKENS),
            decode_timestep,
            decode_noise_scale: decoded.decode_noise_scale.unwrap_or(decode_timestep),
            reference: None,
        })
    }
}

/// Whether a checkpoint is one file with everything in it, as the official ones are.
fn is_single_file(checkpoint: &str) -> bool {
    checkpoint.ends_with(".safetensors")
}

fn sampler(file: &Section<'_>) -> Result<Sampler, PipelineError> {
    let expected = "from_checkpoint, uniform or linear-quadratic";
    let of = |name: &str| match name {
        "from_checkpoint" => Some(Sampler::FromCheckpoint),
        "uniform" => Some(Sampler::Uniform),
        "linear-quadratic" => Some(Sampler::LinearQuadratic),
        _ => None,
    };
    let name = file.get_if("sampler", expected, |name: &String| of(name).is_some())?;
    Ok(name.and_then(|name| of(&name)).unwrap_or_default())
}

fn stg_mode(file: &Section<'_>) -> Result<StgMode, PipelineError> {
    let expected = "attention_values, attention_skip, residual or transformer_block";
    let of = |name: &str| match name.to_lowercase().as_str() {
        "attention_values" | "stg_av" => Some(StgMode::AttentionValues),
        "attention_skip" | "stg_as" => Some(StgMode::AttentionSkip),
        "residual" | "stg_r" => Some(StgMode::Residual),
        "transformer_block" | "stg_t" => Some(StgMode::TransformerBlock),
        _ => None,
    };
    let name = file.get_if("stg_mode", expected, |name: &String| of(name).is_some())?;
    Ok(name.and_then(|name| of(&name)).unwrap_or_default())
}

/// What stands at the top of the file and in every pass differently has no effect at the top.
fn shadowed_notices(keys: &Mapping, passes: [Option<&Section<'_>>; 2]) -> Vec<String> {
    let [Some(first), Some(second)] = passes else {
        return Vec::new();
    };
    let schedule = ["timesteps", "num_inference_steps"];
    let covers = |section: &Section<'_>, key: &str| {
        section.has(key) || (schedule.contains(&key) && schedule.iter().any(|key| section.has(key)))
    };
    let mut notices = Vec::new();
    for key in PASS_KEYS.iter().filter(|key| **key != "checkpoint_path") {
        let Some(value) = keys.get(*key).filter(|value| !value.is_null()) else {
            continue;
        };
        let differs = |section: &Section<'_>| {
            section.get::<Value>(key, "").ok().flatten().as_ref() != Some(value)
        };
        if covers(first, key) && covers(second, key) && differs(first) && differs(second) {
            notices.push(format!(
                "{key}: {} has no effect: first_pass and second_pass have their own",
                inline(value)
            ));
        }
    }
    notices
}

/// The keys of the file at `path`, over those of the file that it builds on.
fn keys_of(path: &Path, depth: usize) -> Result<Mapping, PipelineError> {
    let text = std::fs::read_to_string(path).map_err(|source| PipelineError::Read {
        path: path.to_owned(),
        source,
    })?;
    overlaid(&text, path, depth)
}

fn overlaid(text: &str, path: &Path, depth: usize) -> Result<Mapping, PipelineError> {
    let value: Value = serde_yaml_ng::from_str(text).map_err(|source| PipelineError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let Value::Mapping(own) = value else {
        return Err(PipelineError::NotKeys {
            path: path.to_owned(),
        });
    };
    let Some(base) = own.get("pipeline_config").filter(|base| !base.is_null()) else {
        return Ok(own);
    };
    let name = inline(base);
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| PipelineError::Base {
        path: path.to_owned(),
        base: name.clone(),
        source,
    };
    if depth == 0 {
        return Err(failed("the files build on each other in a circle".into()));
    }
    // Beside this file first: files that are passed around together stay together.
    let beside = path.parent().map(|folder| folder.join(&name));
    let found = match beside.filter(|beside| beside.is_file()) {
        Some(beside) => beside,
        None => find_config(&name).map_err(|error| failed(error.into()))?,
    };
    let mut keys = keys_of(&found, depth - 1).map_err(|error| failed(error.into()))?;
    overlay(&mut keys, own);
    Ok(keys)
}

/// Writes `own` over `base`; mappings key by key.
fn overlay(base: &mut Mapping, own: Mapping) {
    for (key, value) in own {
        match (base.get_mut(&key), value) {
            (Some(Value::Mapping(base)), Value::Mapping(value)) => overlay(base, value),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
