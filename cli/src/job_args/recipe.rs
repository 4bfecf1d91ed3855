//! How a model is to be used when the user says nothing: as its pipeline file has it, or as diffusers
//! would with its folder.

use super::{CONFIG_DEFAULT, FPS_DEFAULT, SECONDS_DEFAULT, Weights};
use crate::model_args::{self, is_unread, unread, unread_hash};
use anyhow::{Context, Result, bail};
use longtake_common::model::{find_config, find_model};
use longtake_common::pipeline::{Enhancement, Pipeline, Precision};
use longtake_common::request::Length;
use longtake_common::spec::{ModelRef, Reference, Sampling, Schedule};
use std::path::{Path, PathBuf};

// What diffusers' LTX pipelines use when the caller names nothing; a Diffusers folder does not
// store these.
const DIFFUSERS_STEPS: u32 = 50;
const DIFFUSERS_GUIDANCE_SCALE: f32 = 3.0;
const DIFFUSERS_WIDTH: u32 = 704;
const DIFFUSERS_HEIGHT: u32 = 512;
const DIFFUSERS_TEXT_TOKENS: u32 = 128;
/// The condition pipeline of diffusers pads prompts further than the others; so does the official
/// program.
const DIFFUSERS_CONDITION_TEXT_TOKENS: u32 = 256;
const OFFICIAL_TEXT_TOKENS: u32 = 256;
/// The shortest that ComfyUI's tokenizer for LTX-Video pads to.
const COMFY_TEXT_TOKENS: u32 = 128;

/// How the model is to be used: from a pipeline file, or a Diffusers folder's defaults.
pub(super) struct Recipe {
    pub sampling: Sampling,
    pub width: u32,
    pub height: u32,
    pub fps: f64,
    /// Length when the user names none.
    pub length: Length,
    pub seed: u64,
    pub negative: String,
    /// Name or path of the model.
    pub model: String,
    /// Name or path of its text encoder.
    pub text_encoder: Option<String>,
    /// Whether large matrices are kept in 8 bits.
    pub eight_bit: bool,
    /// What the pipeline file says about rewriting prompts.
    pub enhancement: Enhancement,
    /// Sentences for the user.
    pub notices: Vec<String>,
    /// Whether the length of prompts is the pipeline file's own.
    names_text_tokens: bool,
}

impl Recipe {
    /// The recipe for what is named: a pipeline file, a model, both or neither.
    pub fn find(
        (config, model): (Option<&str>, Option<&str>),
        weights: Weights<'_>,
    ) -> Result<Self> {
        let Some(model) = model else {
            return Self::of_file(config.unwrap_or(CONFIG_DEFAULT), None, weights);
        };
        if let Some(config) = config {
            return Self::of_file(config, Some(model), weights);
        }
        // The shipped model under any of its names is sampled as it was distilled.
        if let Ok(shipped) = Self::of_file(CONFIG_DEFAULT, None, weights)
            && is_same_model(&shipped.model, model)
        {
            return Ok(shipped);
        }
        // An official checkpoint is sampled as the pipeline file of its name says.
        let endings = [".safetensors", ".safetensors.index.json"];
        match endings.iter().find_map(|e| model.strip_suffix(e)) {
            Some(path) => Self::of_checkpoint(model, path, weights),
            None => Self::of_folder(model),
        }
    }

    /// How an official checkpoint is sampled: as the pipeline file of its name says.
    fn of_checkpoint(model: &str, path: &str, weights: Weights<'_>) -> Result<Self> {
        find_model(model)?;
        let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
        if find_config(name).is_err() {
            bail!(
                "{model} is a checkpoint, but no pipeline file is called {name}: say with --config \
                 how it is sampled"
            );
        }
        Self::of_file(name, Some(model), weights)
    }

    /// How a pipeline file has `model`, else its own, rendered.
    fn of_file(name: &str, model: Option<&str>, weights: Weights<'_>) -> Result<Self> {
        let file = find_config(name)?;
        let pipeline = Pipeline::read(&file)?;
        let own = found_beside(pipeline.model(), file.parent());
        let model = model.map_or(own, str::to_owned);
        let place = find_model(&model).ok();
        let places = [place.as_deref().and_then(Path::parent), file.parent()];
        let part = |name: &str| -> Result<ModelRef> {
            if weights == Weights::Ignored {
                return Ok(ModelRef::new(name, unread_hash()));
            }
            if let Weights::Stored(stored) = weights
                && let Some(part) = stored.part(name)
            {
                return Ok(ModelRef::new(&*part.name, part.hash));
            }
            let name = places
                .iter()
                .fold(name.to_owned(), |name, place| found_beside(&name, *place));
            unread(&name)
        };
        let length = pipeline
            .num_frames
            .map(|frames| Length::Frames(frames.into()));
        Ok(Self {
            sampling: pipeline.sampling(part)?,
            width: pipeline.width,
            height: pipeline.height,
            fps: pipeline.frame_rate,
            length: length.unwrap_or(Length::Seconds(SECONDS_DEFAULT)),
            seed: pipeline.seed.unwrap_or(0),
            negative: pipeline.negative_prompt.clone(),
            model,
            text_encoder: pipeline.text_encoder_model_name_or_path.clone(),
            eight_bit: pipeline.precision == Some(Precision::Float8E4m3fn),
            enhancement: pipeline.enhancement.clone(),
            notices: pipeline.notices().to_vec(),
            names_text_tokens: pipeline.text_tokens.is_some(),
        })
    }

    /// How diffusers would sample the folder `model`.
    pub fn of_folder(model: &str) -> Result<Self> {
        let class = pipeline_class(&find_model(model)?)?;
        let text_tokens = match class.as_str() {
            "LTXConditionPipeline" => DIFFUSERS_CONDITION_TEXT_TOKENS,
            _ => DIFFUSERS_TEXT_TOKENS,
        };
        let (steps, guidance) = (Schedule::Steps(DIFFUSERS_STEPS), DIFFUSERS_GUIDANCE_SCALE);
        Ok(Self {
            sampling: Sampling::plain(steps, guidance, text_tokens),
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
            names_text_tokens: false,
        })
    }

    /// Has the conventions of `reference` hold, its length of prompts included where nobody names
    /// one.
    pub fn follow(&mut self, reference: Reference) {
        self.sampling.reference = Some(reference);
        if self.names_text_tokens {
            return;
        }
        let class = find_model(&self.model).map(|path| pipeline_class(&path).ok());
        self.sampling.text_tokens = match (reference, class.ok().flatten().as_deref()) {
            (Reference::Official, _) => OFFICIAL_TEXT_TOKENS,
            (Reference::Comfy, _) => COMFY_TEXT_TOKENS,
            (Reference::Diffusers, Some("LTXPipeline" | "LTXImageToVideoPipeline")) => {
                DIFFUSERS_TEXT_TOKENS
            }
            (Reference::Diffusers, _) => DIFFUSERS_CONDITION_TEXT_TOKENS,
        };
    }

    /// Gives the models that passes have of their own what the job's has beside its checkpoint.
    pub fn complete_passes(&mut self, model: &ModelRef) {
        let own = self.sampling.passes_mut();
        for own in own.filter_map(|pass| pass.model.as_mut()) {
            *own = ModelRef {
                location: own.location.clone(),
                hash: own.hash,
                ..model.clone()
            };
        }
    }

    /// Checks the headers of the files that passes have of their own, then hashes them.
    pub fn check_passes(&mut self) -> Result<()> {
        let own = self.sampling.passes();
        let own = own.filter_map(|pass| pass.model.as_ref());
        for own in own.filter(|own| is_unread(own)) {
            longtake_agent::check_model(own)?;
        }
        let second = self.sampling.second_pass.as_ref();
        if let Some(second) = second.filter(|second| is_unread(&second.upscaler)) {
            longtake_agent::check_upscaler(&second.upscaler)?;
        }
        for own in self
            .sampling
            .passes_mut()
            .filter_map(|pass| pass.model.as_mut())
        {
            let is_here = is_unread(own);
            *own = model_args::hashed(own.clone())?;
            if is_here {
                model_args::check_values(own)?;
            }
        }
        if let Some(second) = &mut self.sampling.second_pass {
            let is_here = is_unread(&second.upscaler);
            second.upscaler = model_args::hashed(second.upscaler.clone())?;
            if is_here {
                model_args::check_upscaler_values(&second.upscaler)?;
            }
        }
        Ok(())
    }
}

/// The pipeline class that the Diffusers folder at `path` names.
fn pipeline_class(path: &Path) -> Result<String> {
    let index = path.join("model_index.json");
    if path.is_file() {
        bail!(
            "{} is no model: give a checkpoint, whose name ends in .safetensors, or a Diffusers folder",
            path.display()
        );
    }
    if !index.exists() {
        bail!(
            "{} is no Diffusers folder, because it has no model_index.json: give one that has, or a \
             checkpoint (.safetensors); --config says how a folder with a checkpoint in it is sampled",
            path.display()
        );
    }
    let text = std::fs::read_to_string(&index)
        .with_context(|| format!("cannot read {}", index.display()))?;
    let index_json: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON; fetch the file again", index.display()))?;
    let class = index_json["_class_name"].as_str().unwrap_or("");
    if !class.starts_with("LTX") {
        bail!(
            "{} names the pipeline '{class}'; an LTX-Video folder is needed",
            index.display()
        );
    }
    Ok(class.to_owned())
}

/// A name that is found nowhere else, as the path that it has in `folder`.
pub(super) fn found_beside(name: &str, folder: Option<&Path>) -> String {
    let there: Option<PathBuf> = folder.map(|folder| folder.join(name));
    match there.filter(|there| find_model(name).is_err() && there.exists()) {
        None => name.to_owned(),
        Some(there) => there
            .to_str()
            .map_or_else(|| name.to_owned(), str::to_owned),
    }
}

fn is_same_model(a: &str, b: &str) -> bool {
    matches!((find_model(a), find_model(b)), (Ok(a), Ok(b)) if a == b)
}
