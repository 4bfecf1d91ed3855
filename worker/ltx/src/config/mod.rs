//! Configuration of a Diffusers folder. Absent keys take diffusers' defaults (0.33 and later);
//! what this crate does not compute is refused here, so that no model renders noise.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod official;
mod rectified_flow;
mod scheduler;
mod t5;
mod transformer;
mod vae;

pub use official::OfficialConfig;
pub(crate) use official::t5_from_shapes;
pub use rectified_flow::{RectifiedFlowConfig, TimeSampler, TimeShifting};
pub use scheduler::SchedulerConfig;
pub use t5::T5Config;
pub use transformer::TransformerConfig;
pub use vae::VaeConfig;
pub(crate) use vae::downsample_stride;

/// Reads and parses `path`.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::ConfigSyntax {
        path: path.to_owned(),
        source,
    })
}

/// More layers than any model has: what lies beyond is a mistake, and would take for ever to look for.
const LAYERS_MAX: usize = 1024;

/// Names the file of a refused key.
struct Checker<'a>(&'a Path);

impl Checker<'_> {
    fn only(&self, key: &str, value: &str, supported: &str) -> Result<()> {
        let rule = format!("only {supported} is supported");
        self.require(value == supported, key, value, &rule)
    }

    fn require(
        &self,
        holds: bool,
        key: &str,
        value: impl Serialize,
        supported: &str,
    ) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(Error::Unsupported {
            path: self.0.to_owned(),
            key: key.to_owned(),
            value: serde_json::to_string(&value).unwrap_or_default(),
            supported: supported.to_owned(),
        })
    }
}

/// The pipeline whose conventions hold. They differ in rope times, in the mask inside T5, in the
/// schedule, and in the order and layout of the noise; `docs/ltx.md` has all differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PipelineClass {
    /// diffusers' `LTXPipeline` and `LTXImageToVideoPipeline`: latent frame f is at 8 f frames; T5 sees padding; flow-match schedule with
    /// dynamic shift.
    Plain,
    /// diffusers' `LTXConditionPipeline`: latent frame f is at max(0, 8 f - 7) frames; padding is masked in
    /// T5; linear-quadratic schedule.
    Condition,
    /// Lightricks' own `LTXVideoPipeline`: as `Condition`, with the checkpoint's own schedule and
    /// noise drawn in the order of tokens.
    Official,
    /// ComfyUI's nodes: as `Condition`, with a schedule shifted by size, and what is held mixed in
    /// again around every step.
    Comfy,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
}

impl PipelineClass {
    /// The class of diffusers whose conventions these are.
    pub(crate) fn diffusers_name(self) -> &'static str {
        match self {
            Self::Plain => "LTXPipeline",
            _ => "LTXConditionPipeline",
        }
    }

    /// Whether noise levels are counted in 0..1 rather than 0..1000: it decides how they round.
    pub(crate) fn is_unit(self) -> bool {
        matches!(self, Self::Official | Self::Comfy)
    }

    /// Whether T5 is told which tokens are padding.
    pub(crate) fn masks_padding(self) -> bool {
        self != Self::Plain
    }

    /// Reads `model_index.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let index: ModelIndex = read_json(path)?;
        match index.class_name.as_str() {
            "LTXPipeline" | "LTXImageToVideoPipeline" => Ok(Self::Plain),
            "LTXConditionPipeline" => Ok(Self::Condition),
            other => Err(Error::Unsupported {
                path: path.to_owned(),
                key: "_class_name".into(),
                value: other.to_owned(),
                supported: "LTXPipeline, LTXImageToVideoPipeline and LTXConditionPipeline are \
                            supported"
                    .into(),
            }),
        }
    }
}

/// All configuration of a model folder.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Which pipeline's conventions hold.
    pub pipeline: PipelineClass,
    /// The transformer.
    pub transformer: TransformerConfig,
    /// The VAE.
    pub vae: VaeConfig,
    /// The text encoder.
    pub text_encoder: T5Config,
    /// The schedule.
    pub scheduler: SchedulerConfig,
    /// The configuration in the metadata of an official file, where the model comes from one.
    pub official: Option<OfficialConfig>,
}

/// The configuration files of a model folder, in the order of [`crate::model_hash`].
pub(crate) fn config_files(dir: &Path) -> [PathBuf; 5] {
    [
        dir.join("model_index.json"),
        dir.join("scheduler/scheduler_config.json"),
        dir.join("text_encoder/config.json"),
        dir.join("transformer/config.json"),
        dir.join("vae/config.json"),
    ]
}

impl ModelConfig {
    /// Reads the configuration of model folder `dir`, and that of the text encoder in it if
    /// `has_text`; else a default stands in for it.
    pub(crate) fn read(dir: &Path, has_text: bool) -> Result<Self> {
        let [index, scheduler, text_encoder, transformer, vae] = config_files(dir);
        let text_encoder = match has_text {
            true => T5Config::read(&text_encoder)?,
            false => T5Config::default(),
        };
        Ok(Self {
            pipeline: PipelineClass::read(&index)?,
            scheduler: SchedulerConfig::read(&scheduler)?,
            text_encoder,
            transformer: TransformerConfig::read(&transformer)?,
            vae: VaeConfig::read(&vae)?,
            official: None,
        })
    }

    /// The configuration of an official file at `path`.
    pub(crate) fn of_official(
        official: OfficialConfig,
        text_encoder: T5Config,
        path: &Path,
    ) -> Result<Self> {
        let mut transformer = official.transformer(path)?;
        transformer.causal_temporal_positioning = official.causal_temporal_positioning();
        let config = Self {
            pipeline: PipelineClass::Official,
            scheduler: SchedulerConfig::of_official(&official, path)?,
            text_encoder,
            transformer,
            vae: official.vae(path)?,
            official: Some(official),
        };
        config.check(path)?;
        Ok(config)
    }

    /// Fails when the parts do not go together; `path` is where the transformer's was read.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let config = self;
        let check = Checker(path);
        let (caption, text) = (
            config.transformer.caption_channels,
            config.text_encoder.d_model,
        );
        let rule = "it must equal the text encoder's d_model";
        check.require(caption == text, "caption_channels", caption, rule)?;
        let (channels, latent) = (config.transformer.in_channels, config.vae.latent_channels);
        let rule = "it must equal the VAE's latent_channels";
        check.require(channels == latent, "in_channels", channels, rule)
    }
}
