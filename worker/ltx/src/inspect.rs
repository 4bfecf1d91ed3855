//! What a file or folder is: for people who have one and want to know what it is good for. Reads
//! headers only.

mod parts;

use crate::config::{OfficialConfig, TransformerConfig, VaeConfig, config_files};
use crate::error::{Error, Result};
use crate::hash::{DIFFUSION_STEM, TEXT_STEM, tokenizer_file};
use crate::lora::{LoraInfo, is_lora, lora_info};
use crate::model::Unloaded;
use crate::names::Part;
use crate::source::{ModelFiles, checkpoint_files, is_diffusers, official_config, open_all};
use crate::transformer::Transformer;
use crate::vae::{Decoder, Encoder};
use crate::weights::{Scrutiny, WeightFile, Weights, is_quantised, weight_files};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file or folder is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspection {
    /// `model`, `transformer`, `vae`, `lora`, `upscaler`, `text encoder` or `unknown`.
    pub kind: &'static str,
    /// `official` (one file or several) or `diffusers` (a folder); models only.
    pub layout: Option<&'static str>,
    /// Such as `LTX-Video 13B`; of a LoRA, the models that it fits.
    pub family: Option<String>,
    /// `dev` or `distilled`; `None` when nothing tells.
    pub variant: Option<&'static str>,
    /// The element type that most of the weights' bytes have.
    pub precision: Option<String>,
    /// Bytes by element type.
    pub types: BTreeMap<String, u64>,
    /// Weights of the transformer, counted.
    pub transformer_parameters: u64,
    /// The licence, where the file states one.
    pub licence: Option<String>,
    /// What a render needs beside it, or should have had in it.
    pub missing: Vec<String>,
    /// Memory that its weights take, by device.
    pub memory: Memory,
    /// What a LoRA says of itself.
    pub lora: Option<LoraInfo>,
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

/// Metadata that states a licence.
const LICENCE_KEYS: [&str; 3] = ["license", "modelspec.license", "licence"];
/// Problems listed at most; the rest is counted.
const PROBLEMS_MAX: usize = 20;

/// Says what `path` is.
///
/// # Errors
/// When a file cannot be read as weights at all; what is wrong with a model is in the result.
pub fn inspect(path: &Path) -> Result<Inspection> {
    if let Some(found) = parts::inspect_part(path)? {
        return Ok(found);
    }
    match checkpoint_files(path) {
        Ok(Some(paths)) => inspect_files(path, &open_all(&paths)?),
        Ok(None) if is_diffusers(path) => inspect_folder(path),
        Ok(None) => Err(Error::Model {
            path: path.to_owned(),
            message: "nothing of a model is in it; give a .safetensors file, or a folder that \
                      holds some"
                .to_owned(),
        }),
        Err(error @ Error::Shards { .. }) => inspect_rest(path, error),
        Err(error) => Err(error),
    }
}

/// What can be said of a checkpoint some of whose files are missing.
fn inspect_rest(path: &Path, error: Error) -> Result<Inspection> {
    let present = match &error {
        Error::Shards { present, .. } => open_all(present)?,
        _ => Vec::new(),
    };
    let mut found = Inspection::of_files(&present);
    found.kind = kind(path, &present)?;
    if let Ok((config, place)) = official_config(&present, path)
        && let Ok(transformer) = config.transformer(&place)
    {
        found.layout = Some("official");
        found.describe(&transformer, path);
    }
    found.missing.push(error.to_string());
    Ok(found)
}

/// What sort of weights `files` hold.
fn kind(path: &Path, files: &[Arc<WeightFile>]) -> Result<&'static str> {
    if files.iter().any(|file| is_lora(file.names())) {
        return Ok("lora");
    }
    let kinds = [
        (Part::Transformer, "model"),
        (Part::Vae, "vae"),
        (Part::Upsampler, "upscaler"),
        (Part::TextEncoder, "text encoder"),
    ];
    for (part, kind) in kinds {
        if !Weights::of_files(files.to_vec(), part, path)?.is_empty() {
            return Ok(kind);
        }
    }
    Ok("unknown")
}

fn inspect_files(path: &Path, files: &[Arc<WeightFile>]) -> Result<Inspection> {
    let mut found = Inspection::of_files(files);
    found.kind = kind(path, files)?;
    match found.kind {
        "lora" => {
            let info = lora_info(files[0].path())?;
            found.family = info.family();
            found.lora = Some(info);
        }
        "model" => found.official(path, files)?,
        "upscaler" => found.upscaler(files),
        "text encoder" => found.text_encoder(path)?,
        "vae" => found.lone_vae(path, files)?,
        _ => {}
    }
    Ok(found)
}

/// What a Diffusers folder is, and everything that is not in it.
fn inspect_folder(path: &Path) -> Result<Inspection> {
    let (mut paths, mut missing) = (Vec::new(), Vec::new());
    let stems = [
        ("transformer", DIFFUSION_STEM),
        ("vae", DIFFUSION_STEM),
        ("text_encoder", TEXT_STEM),
    ];
    for (part, stem) in stems {
        match weight_files(&path.join(part), stem) {
            Ok(found) => paths.extend(found),
            Err(error) => {
                if let Error::Shards { present, .. } = &error {
                    paths.extend(present.clone());
                }
                missing.push(error.to_string());
            }
        }
    }
    let needed = config_files(path).into_iter().chain([tokenizer_file(path)]);
    let absent = |path: &PathBuf| !path.is_file();
    let gone = needed.chain(paths.iter().cloned()).filter(absent);
    missing.extend(gone.map(|path| format!("{} is not there", path.display())));
    paths.retain(|path| path.is_file());
    let mut found = Inspection {
        kind: "model",
        layout: Some("diffusers"),
        missing,
        ..Inspection::of_files(&open_all(&paths)?)
    };
    if let Ok(config) = TransformerConfig::read(&path.join("transformer/config.json")) {
        found.describe(&config, path);
    }
    if !found.missing.is_empty() {
        return Ok(found);
    }
    match ModelFiles::from(path).open(Scrutiny::Headers) {
        Ok(opened) => {
            let config = opened.config;
            found.check(&config.transformer, opened.transformer)?;
            found.check_vae(&config.vae, opened.vae)?;
        }
        Err(error) => found.missing.push(error.to_string()),
    }
    Ok(found)
}

impl Inspection {
    /// What the headers of `files` add up to.
    fn of_files(files: &[Arc<WeightFile>]) -> Self {
        let mut found = Self::default();
        let stated = |file: &Arc<WeightFile>| {
            let stated = LICENCE_KEYS.iter().find_map(|key| file.text(key));
            stated.map(str::to_owned)
        };
        found.licence = files.iter().find_map(stated);
        for file in files {
            for name in file.names() {
                let Some((bytes, dtype, shape)) = file.stored_as(name) else {
                    continue;
                };
                let (bytes, count) = (bytes as u64, shape.iter().product::<usize>() as u64);
                *found.types.entry(format!("{dtype:?}")).or_default() += bytes;
                found.memory.cpu_mapped_bytes += bytes;
                found.memory.cuda_bytes += bytes;
                let block = name
                    .find("transformer_blocks.")
                    .map_or("", |at| &name[at..]);
                let narrow = is_quantised(block, shape.len());
                found.memory.cuda_float8_bytes += if narrow { bytes.min(count) } else { bytes };
            }
        }
        let most = found.types.iter().max_by_key(|(_, bytes)| **bytes);
        found.precision = most.map(|(dtype, _)| dtype.clone());
        found
    }

    /// An official checkpoint.
    fn official(&mut self, path: &Path, files: &[Arc<WeightFile>]) -> Result<()> {
        self.layout = Some("official");
        match official_config(files, path) {
            Err(error) => self.missing.push(error.to_string()),
            Ok((config, place)) => {
                let part = |part| Weights::of_files(files.to_vec(), part, path);
                let parts = (part(Part::Transformer)?, part(Part::Vae)?);
                self.describe_official(&config, &place, parts)?;
            }
        }
        let complete = ModelFiles::from(path).open(Scrutiny::Headers);
        if let Err(error @ Error::Model { .. }) = complete {
            self.missing.push(error.to_string());
        }
        Ok(())
    }

    fn describe_official(
        &mut self,
        config: &OfficialConfig,
        place: &Path,
        (transformer, vae): (Weights, Weights),
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
        self.check(&t, transformer)?;
        self.check_vae(&v, vae)
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

    /// Lists what a transformer's configuration asks for and the files do not have.
    fn check(&mut self, config: &TransformerConfig, weights: Weights) -> Result<()> {
        let weights = weights.collecting();
        Transformer::load(&Unloaded, &weights, config)?;
        self.list(&weights);
        Ok(())
    }

    /// The same for a VAE.
    fn check_vae(&mut self, config: &VaeConfig, weights: Weights) -> Result<()> {
        let weights = weights.collecting();
        Decoder::load(&Unloaded, &weights, config)?;
        Encoder::load(&Unloaded, &weights, config)?;
        self.list(&weights);
        Ok(())
    }

    /// Lists the problems that were collected.
    fn list(&mut self, weights: &Weights) {
        let mut problems = weights.problems();
        problems.extend(weights.check_all_asked().err());
        let count = problems.len();
        let shown = problems.iter().take(PROBLEMS_MAX).map(Error::to_string);
        self.missing.extend(shown);
        if count > PROBLEMS_MAX {
            self.missing
                .push(format!("and {} more", count - PROBLEMS_MAX));
        }
    }
}
