//! What a file or folder is: for people who have one and want to know what it is good for. Reads
//! headers only.

use crate::config::{OfficialConfig, TransformerConfig, VaeConfig};
use crate::error::{Error, Result};
use crate::lora::{LoraInfo, is_lora, lora_info};
use crate::model::Unloaded;
use crate::names::Part;
use crate::source::{ModelFiles, checkpoint_files, official_config, open_all};
use crate::transformer::Transformer;
use crate::vae::{Decoder, Encoder};
use crate::weights::{Scrutiny, WeightFile, Weights, is_quantised};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a file or folder is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspection {
    /// `model`, `lora`, `upscaler`, `text encoder` or `unknown`.
    pub kind: &'static str,
    /// `official` (one file or several) or `diffusers` (a folder); models only.
    pub layout: Option<&'static str>,
    /// Such as `LTX-Video 13B`.
    pub family: Option<String>,
    /// `dev` or `distilled`; `None` when nothing tells.
    pub variant: Option<&'static str>,
    /// The element type that most of the weights' bytes have.
    pub precision: Option<String>,
    /// Bytes by element type.
    pub types: BTreeMap<String, u64>,
    /// Weights of the transformer, counted.
    pub transformer_parameters: u64,
    /// Licence, as the file states it.
    pub licence: Option<String>,
    /// What a render needs beside it, or should have had in it.
    pub missing: Vec<String>,
    /// Memory that its weights take, by device.
    pub memory: Memory,
    /// What a LoRA says of itself.
    pub lora: Option<Lora>,
}

/// Memory that weights take, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// On a GPU that keeps them as the file does.
    pub cuda_bytes: u64,
    /// On a GPU with `precision: float8_e4m3fn`.
    pub cuda_float8_bytes: u64,
    /// On the CPU: mapped from the file, shared by all workers of a machine.
    pub cpu_mapped_bytes: u64,
}

/// What a LoRA says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Lora {
    /// Layers that it changes.
    pub layers: usize,
    /// Its largest rank.
    pub rank: usize,
    /// IC-LoRA: how much smaller than the film its reference video is.
    pub reference_downscale_factor: Option<f64>,
}

impl From<LoraInfo> for Lora {
    fn from(info: LoraInfo) -> Self {
        Self {
            layers: info.layers,
            rank: info.rank,
            reference_downscale_factor: info.reference_downscale_factor,
        }
    }
}

/// Metadata that states a licence.
const LICENCE_KEYS: [&str; 3] = ["license", "modelspec.license", "licence"];
/// Problems listed at most; the rest is counted.
const PROBLEMS_MAX: usize = 20;

/// Says what `path` is.
///
/// # Errors
/// When a file cannot be read as weights at all; what is wrong with a model is in the result.
pub fn inspect(path: &Path) -> Result<Inspection> {
    match checkpoint_files(path)? {
        None => inspect_folder(path),
        Some(paths) => {
            let files = open_all(&paths)?;
            inspect_files(path, &files)
        }
    }
}

fn inspect_files(path: &Path, files: &[Arc<WeightFile>]) -> Result<Inspection> {
    let mut found = Inspection::default();
    found.count(files);
    found.licence = files
        .iter()
        .find_map(|file| LICENCE_KEYS.iter().find_map(|key| file.text(key)))
        .map(str::to_owned);
    let part = |part| Weights::of_files(files.to_vec(), part, path);
    let transformer = part(Part::Transformer)?;
    if files.iter().any(|file| is_lora(file.names())) {
        found.kind = "lora";
        found.lora = Some(lora_info(files[0].path())?.into());
    } else if !transformer.is_empty() {
        found.kind = "model";
        found.layout = Some("official");
        let vae = part(Part::Vae)?;
        match official_config(files, path) {
            Err(error) => found.missing.push(error.to_string()),
            Ok((config, place)) => found.official(&config, &place, transformer, vae)?,
        }
        let complete = ModelFiles::from(path).open(Scrutiny::Headers);
        if let Err(error @ Error::Model { .. }) = complete {
            found.missing.push(error.to_string());
        }
    } else if !part(Part::Upsampler)?.is_empty() {
        found.kind = "upscaler";
        found.family = Some("LTX-Video latent upscaler".to_owned());
        if files.iter().all(|file| file.text("config").is_none()) {
            found.missing.push("it has no metadata `config`".to_owned());
        }
    } else if !part(Part::TextEncoder)?.is_empty() {
        found.kind = "text encoder";
        found.family = Some("T5".to_owned());
    } else {
        found.kind = "unknown";
    }
    Ok(found)
}

fn inspect_folder(path: &Path) -> Result<Inspection> {
    let mut found = Inspection {
        kind: "model",
        layout: Some("diffusers"),
        ..Inspection::default()
    };
    let opened = match ModelFiles::from(path).open(Scrutiny::Headers) {
        Ok(opened) => opened,
        Err(error) => {
            found.missing.push(error.to_string());
            return Ok(found);
        }
    };
    for weights in [&opened.transformer, &opened.vae, &opened.text_encoder] {
        found.count(weights.files());
    }
    let (config, transformer, vae) = (opened.config, opened.transformer, opened.vae);
    found.describe(&config.transformer, path);
    found.check(&config.transformer, &config.vae, transformer, vae)?;
    Ok(found)
}

impl Inspection {
    /// Adds up what `files` hold.
    fn count(&mut self, files: &[Arc<WeightFile>]) {
        for file in files {
            for name in file.names() {
                let Some((bytes, dtype, shape)) = file.stored_as(name) else {
                    continue;
                };
                let (bytes, count) = (bytes as u64, shape.iter().product::<usize>() as u64);
                *self.types.entry(format!("{dtype:?}")).or_default() += bytes;
                self.memory.cpu_mapped_bytes += bytes;
                self.memory.cuda_bytes += bytes;
                let block = name
                    .find("transformer_blocks.")
                    .map_or("", |at| &name[at..]);
                let narrow = is_quantised(block, shape.len());
                self.memory.cuda_float8_bytes += if narrow { bytes.min(count) } else { bytes };
            }
        }
        let most = self.types.iter().max_by_key(|(_, bytes)| **bytes);
        self.precision = most.map(|(dtype, _)| dtype.clone());
    }

    fn official(
        &mut self,
        config: &OfficialConfig,
        place: &Path,
        transformer: Weights,
        vae: Weights,
    ) -> Result<()> {
        let (t, v) = match (config.transformer(place), config.vae(place)) {
            (Ok(t), Ok(v)) => (t, v),
            (t, v) => {
                self.missing
                    .extend(t.err().into_iter().chain(v.err()).map(|e| e.to_string()));
                return Ok(());
            }
        };
        self.describe(&t, place);
        if config.allowed_inference_steps.is_some() {
            self.variant = Some("distilled");
        }
        self.check(&t, &v, transformer, vae)
    }

    /// Family and variant, from the configuration and, where it is silent, the name.
    fn describe(&mut self, config: &TransformerConfig, path: &Path) {
        self.family = Some(match (config.num_layers, config.inner_dim()) {
            (48, 4096) => "LTX-Video 13B".to_owned(),
            (28, 2048) => "LTX-Video 2B".to_owned(),
            (layers, width) => format!("LTX-Video of {layers} layers, {width} wide"),
        });
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        self.variant = ["distilled", "dev"]
            .into_iter()
            .find(|variant| name.contains(variant));
        let layers = config.linear_layers();
        let linear = |[n, k]: &[usize; 2]| (n * k + n) as u64;
        let dim = config.inner_dim() as u64;
        // Beside the linear layers: four norms and a table of six in a block, a table of two.
        let other = config.num_layers as u64 * 10 * dim + 2 * dim;
        self.transformer_parameters = layers.values().map(linear).sum::<u64>() + other;
    }

    /// Lists what the configuration asks for and the files do not have.
    fn check(
        &mut self,
        transformer_config: &TransformerConfig,
        vae_config: &VaeConfig,
        transformer: Weights,
        vae: Weights,
    ) -> Result<()> {
        let (transformer, vae) = (transformer.collecting(), vae.collecting());
        Transformer::load(&Unloaded, &transformer, transformer_config)?;
        Decoder::load(&Unloaded, &vae, vae_config)?;
        Encoder::load(&Unloaded, &vae, vae_config)?;
        let mut problems = transformer.problems();
        problems.extend(vae.problems());
        problems.extend(transformer.check_all_asked().err());
        problems.extend(vae.check_all_asked().err());
        let count = problems.len();
        let shown = problems.iter().take(PROBLEMS_MAX).map(Error::to_string);
        self.missing.extend(shown);
        if count > PROBLEMS_MAX {
            self.missing
                .push(format!("and {} more", count - PROBLEMS_MAX));
        }
        Ok(())
    }
}
