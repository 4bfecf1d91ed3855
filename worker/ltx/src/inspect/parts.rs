//! Parts of a model on their own: a transformer, a VAE, a text encoder, an upscaler.

use super::Inspection;
use crate::config::{T5Config, TransformerConfig, VaeConfig, t5_from_shapes};
use crate::error::{Error, Result};
use crate::hash::{DIFFUSION_STEM, TEXT_STEM};
use crate::model::Unloaded;
use crate::names::Part;
use crate::source::{is_diffusers, official_config, open_all, open_text};
use crate::t5::T5Encoder;
use crate::upsampler::{UpsamplerConfig, check_upscaler};
use crate::weights::{Scrutiny, WeightFile, Weights, weight_files};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a part's `config.json` says of its class.
#[derive(Deserialize)]
struct PartConfig {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
}

impl PartConfig {
    /// The part, by diffusers' and transformers' classes.
    fn part(&self) -> Option<Part> {
        match self.class_name.as_deref() {
            Some("LTXVideoTransformer3DModel") => Some(Part::Transformer),
            Some("AutoencoderKLLTXVideo") => Some(Part::Vae),
            Some(_) => None,
            None => (self.architectures.iter())
                .any(|name| name.starts_with("T5"))
                .then_some(Part::TextEncoder),
        }
    }
}

/// The part that `config.json` in `folder` describes, if there is one.
fn part_of(folder: &Path) -> Option<Part> {
    let text = std::fs::read(folder.join("config.json")).ok()?;
    serde_json::from_slice::<PartConfig>(&text).ok()?.part()
}

/// What `path` is when it is a part's folder, or a file of one; `None` when it is anything else.
pub(super) fn inspect_part(path: &Path) -> Result<Option<Inspection>> {
    let folder = match path.is_dir() {
        true if is_diffusers(path) => return Ok(None),
        true => path,
        // A file of several goes with the others; one with its own metadata stands alone.
        false => path.parent().unwrap_or(Path::new("")),
    };
    let Some(part) = part_of(folder) else {
        return match path.is_dir() && open_text(path).is_ok() {
            true => text_folder(path).map(Some),
            false => Ok(None),
        };
    };
    let stem = if part == Part::TextEncoder {
        TEXT_STEM
    } else {
        DIFFUSION_STEM
    };
    let (paths, problem) = match weight_files(folder, stem) {
        Ok(paths) if paths.iter().all(|path| path.is_file()) => (paths, None),
        Ok(_) => return Ok(None),
        Err(Error::Shards {
            path,
            missing,
            present,
        }) => (
            present.clone(),
            Some(Error::Shards {
                path,
                missing,
                present,
            }),
        ),
        Err(error) => return Err(error),
    };
    if !path.is_dir() && !paths.iter().any(|own| own == path) {
        return Ok(None);
    }
    let files = open_all(&paths)?;
    let mut found = Inspection::of_files(&files);
    let config = folder.join("config.json");
    let weights = Weights::of_files(files, part, folder)?;
    found.kind = match part {
        Part::Transformer => "transformer",
        Part::Vae => "vae",
        _ => "text encoder",
    };
    match (part, problem) {
        (Part::Transformer, problem) => {
            let config = TransformerConfig::read(&config)?;
            found.describe(&config, folder);
            match problem {
                Some(problem) => found.missing.push(problem.to_string()),
                None => found.check(&config, weights)?,
            }
        }
        (_, Some(problem)) => found.missing.push(problem.to_string()),
        (Part::Vae, None) => {
            found.family = Some("LTX-Video's VAE".to_owned());
            found.check_vae(&VaeConfig::read(&config)?, weights)?;
        }
        (_, None) => found.text_encoder(path)?,
    }
    Ok(Some(found))
}

/// A text encoder in a folder that has no `config.json`.
fn text_folder(path: &Path) -> Result<Inspection> {
    let opened = open_text(path)?;
    let mut found = Inspection::of_files(opened.weights.files());
    found.kind = "text encoder";
    found.text_encoder(path)?;
    Ok(found)
}

impl Inspection {
    /// A T5 encoder, and what it lacks.
    pub(super) fn text_encoder(&mut self, path: &Path) -> Result<()> {
        let opened = match open_text(path) {
            Ok(opened) => opened,
            Err(error) => {
                self.family = t5_of(path).map(|config| family_of_t5(&config));
                self.missing.push(error.to_string());
                return Ok(());
            }
        };
        self.family = Some(family_of_t5(&opened.config));
        let loaded = T5Encoder::load(&Unloaded, opened.weights, &opened.config);
        self.missing
            .extend(loaded.err().map(|error| error.to_string()));
        Ok(())
    }

    /// A latent upscaler, and what it lacks.
    pub(super) fn upscaler(&mut self, files: &[Arc<WeightFile>]) {
        let config = files.iter().find_map(|file| file.text("config"));
        let config = config.and_then(|text| serde_json::from_str::<UpsamplerConfig>(text).ok());
        let over = match config {
            Some(config) if config.temporal_upsample && config.spatial_upsample => {
                "spatiotemporal "
            }
            Some(config) if config.temporal_upsample => "temporal ",
            Some(_) => "spatial ",
            None => "",
        };
        self.family = Some(format!("LTX-Video {over}latent upscaler"));
        for file in files {
            let checked = check_upscaler(file.path(), Scrutiny::Headers);
            self.missing
                .extend(checked.err().map(|error| error.to_string()));
        }
    }

    /// A VAE in a file of its own, with the metadata of a checkpoint.
    pub(super) fn lone_vae(&mut self, path: &Path, files: &[Arc<WeightFile>]) -> Result<()> {
        self.family = Some("LTX-Video's VAE".to_owned());
        let config = official_config(files, path).and_then(|(config, place)| config.vae(&place));
        match config {
            Ok(config) => {
                let weights = Weights::of_files(files.to_vec(), Part::Vae, path)?;
                self.check_vae(&config, weights)
            }
            Err(error) => {
                self.missing.push(error.to_string());
                Ok(())
            }
        }
    }
}

/// The configuration of the T5 encoder in file `path`, by its tensors.
fn t5_of(path: &Path) -> Option<T5Config> {
    let files = open_all(&[PathBuf::from(path)]).ok()?;
    let weights = Weights::of_files(files, Part::TextEncoder, path).ok()?;
    let names: Vec<String> = weights
        .tensors()
        .map(|(name, ..)| name.to_owned())
        .collect();
    let shape = |name: &str| weights.shape(name);
    t5_from_shapes(path, shape, names.iter().map(String::as_str)).ok()
}

fn family_of_t5(config: &T5Config) -> String {
    match (config.num_layers, config.d_model) {
        (24, 4096) => "T5 v1.1 XXL".to_owned(),
        (layers, width) => format!("T5 of {layers} layers, {width} wide"),
    }
}
