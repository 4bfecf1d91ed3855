//! The files of a model: a Diffusers folder, or an official checkpoint in one file or several, with
//! its text encoder beside it or wherever the user has it.

use crate::config::{ModelConfig, OfficialConfig, T5Config, t5_from_shapes};
use crate::error::{Error, Result};
use crate::hash::{DIFFUSION_STEM, TEXT_STEM};
use crate::lora::{LoraFile, Loras};
use crate::names::Part;
use crate::weights::{Scrutiny, WeightFile, Weights, counted_set, shards, weight_files};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ending of the list of a checkpoint's files.
const INDEX_ENDING: &str = ".safetensors.index.json";
/// The tokenizer's file.
const TOKENIZER: &str = "spiece.model";

/// What a model is loaded from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFiles {
    /// A Diffusers folder; an official checkpoint, its index, or the folder that it is alone in.
    pub model: PathBuf,
    /// The text encoder: a file, or a folder in any layout that `longtake` knows; `None`: the
    /// folder's own, or what lies beside the checkpoint.
    pub text_encoder: Option<PathBuf>,
    /// Keeps the large matrices in 8 bits, whatever the files have.
    pub quantises: bool,
    /// Additions to the transformer.
    pub loras: Vec<LoraFile>,
    /// Changes copies of the matrices that they touch, rather than computing beside them.
    pub fuses_loras: bool,
}

impl From<&PathBuf> for ModelFiles {
    fn from(model: &PathBuf) -> Self {
        Self::from(model.as_path())
    }
}

impl From<&Self> for ModelFiles {
    fn from(files: &Self) -> Self {
        files.clone()
    }
}

impl From<&Path> for ModelFiles {
    fn from(model: &Path) -> Self {
        Self {
            model: model.to_owned(),
            text_encoder: None,
            quantises: false,
            loras: Vec::new(),
            fuses_loras: false,
        }
    }
}

/// A model whose files are open.
pub(crate) struct Opened {
    pub config: ModelConfig,
    pub tokenizer: PathBuf,
    pub text_encoder: Weights,
    pub transformer: Weights,
    pub vae: Weights,
}

/// A text encoder whose files are open.
pub(crate) struct OpenedText {
    pub config: T5Config,
    pub weights: Weights,
    tokenizer: PathBuf,
}

/// The weights of a text encoder whose files are open.
pub(crate) struct TextWeights {
    pub config: T5Config,
    pub weights: Weights,
    /// The folder at or below which the tokenizer is.
    root: PathBuf,
    /// What errors name.
    place: PathBuf,
}

impl ModelFiles {
    /// Opens the files; with [`Scrutiny::Values`] looks at every value.
    pub(crate) fn open(&self, scrutiny: Scrutiny) -> Result<Opened> {
        let opened = match checkpoint_files(&self.model)? {
            None => self.open_folder()?,
            Some(files) => self.open_official(&files)?,
        };
        if scrutiny == Scrutiny::Values {
            for weights in [&opened.text_encoder, &opened.transformer, &opened.vae] {
                weights.check_values()?;
            }
        }
        Ok(opened)
    }

    fn with_additions(&self, weights: Weights, config: &ModelConfig) -> Result<Weights> {
        let loras = Loras::open(&self.loras, &config.transformer, self.fuses_loras)?;
        Ok(weights.with_loras(loras).quantised(self.quantises))
    }

    fn open_folder(&self) -> Result<Opened> {
        let dir = &self.model;
        let mut config = ModelConfig::read(dir, self.text_encoder.is_none())?;
        let text = match &self.text_encoder {
            Some(path) => open_text(path)?,
            None => OpenedText {
                config: config.text_encoder.clone(),
                weights: Weights::open(
                    &dir.join("text_encoder"),
                    TEXT_STEM,
                    Part::TextEncoder,
                    Scrutiny::Headers,
                )?,
                tokenizer: dir.join("tokenizer").join(TOKENIZER),
            },
        };
        config.text_encoder = text.config;
        config.check(&dir.join("transformer/config.json"))?;
        let open = |name: &str, part| {
            Weights::open(&dir.join(name), DIFFUSION_STEM, part, Scrutiny::Headers)
        };
        Ok(Opened {
            transformer: self.with_additions(open("transformer", Part::Transformer)?, &config)?,
            vae: open("vae", Part::Vae)?,
            tokenizer: text.tokenizer,
            text_encoder: text.weights,
            config,
        })
    }

    fn open_official(&self, paths: &[PathBuf]) -> Result<Opened> {
        let files = open_all(paths)?;
        let (official, path) = official_config(&files, &self.model)?;
        let text = match &self.text_encoder {
            Some(path) => open_text(path)?,
            None => open_text_beside(&self.model)?,
        };
        let config = ModelConfig::of_official(official, text.config, &path)?;
        let part = |part| Weights::of_files(files.clone(), part, &self.model);
        Ok(Opened {
            transformer: self.with_additions(part(Part::Transformer)?, &config)?,
            vae: part(Part::Vae)?,
            tokenizer: text.tokenizer,
            text_encoder: text.weights,
            config,
        })
    }
}

pub(crate) fn wrong(path: &Path, message: impl Into<String>) -> Error {
    Error::Model {
        path: path.to_owned(),
        message: message.into(),
    }
}

pub(crate) fn open_all(paths: &[PathBuf]) -> Result<Vec<Arc<WeightFile>>> {
    let open = |path: &PathBuf| WeightFile::open(path).map(Arc::new);
    paths.iter().map(open).collect()
}

fn has_ending(path: &Path, ending: &str) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().ends_with(ending)
}

/// The files of the official checkpoint at `path`; `None` for a Diffusers folder.
pub(crate) fn checkpoint_files(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    if !path.is_dir() {
        return match has_ending(path, INDEX_ENDING) {
            true => shards(path).map(Some),
            false => Ok(Some(vec![path.to_owned()])),
        };
    }
    if is_diffusers(path) {
        return Ok(None);
    }
    let mut found = folder_weights(path)?;
    // A text encoder may lie beside the checkpoint.
    found.retain(|file| !is_text_encoder(file));
    match found.as_slice() {
        [] => Ok(None),
        [index] if has_ending(index, INDEX_ENDING) => shards(index).map(Some),
        several => match (counted_set(several)?, several.len()) {
            (Some(set), _) => Ok(Some(set)),
            (None, 1) => Ok(Some(found)),
            (None, _) => Err(wrong(
                path,
                format!(
                    "{} checkpoints are there; name the file that is wanted",
                    several.len()
                ),
            )),
        },
    }
}

/// Fails when `path` stands for several files of which some are not there.
///
/// # Errors
/// Names them.
pub fn check_files(path: &Path) -> Result<()> {
    if path.is_dir() && !is_diffusers(path) {
        for stem in [DIFFUSION_STEM, TEXT_STEM] {
            weight_files(path, stem)?;
        }
    }
    checkpoint_files(path).map(drop)
}

/// Whether folder `path` has any part of a Diffusers folder: it is one then, so that its missing parts
/// are named.
pub(crate) fn is_diffusers(path: &Path) -> bool {
    let parts = ["model_index.json", "transformer", "vae"];
    parts.iter().any(|part| path.join(part).exists())
}

/// The checkpoints in folder `path`: indices of several files, and files that are in none.
fn folder_weights(path: &Path) -> Result<Vec<PathBuf>> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        all.push(entry.map_err(read)?.path());
    }
    all.sort();
    let (indices, files): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|path| has_ending(path, INDEX_ENDING));
    let mut listed = Vec::new();
    for index in &indices {
        listed.extend(shards(index)?);
    }
    let alone = files
        .into_iter()
        .filter(|path| has_ending(path, ".safetensors") && !listed.contains(path));
    Ok(indices.into_iter().chain(alone).collect())
}

fn is_text_encoder(path: &Path) -> bool {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    name.contains("t5")
}

/// The configuration in the metadata of one of `files`, and the file that has it.
pub(crate) fn official_config(
    files: &[Arc<WeightFile>],
    place: &Path,
) -> Result<(OfficialConfig, PathBuf)> {
    let found = files
        .iter()
        .find_map(|file| Some((file, file.text("config")?)));
    let Some((file, text)) = found else {
        let message = "it has no metadata `config`, which tells how an LTX-Video checkpoint is \
                       built; use the official file, or convert from it";
        return Err(wrong(place, message));
    };
    let config = OfficialConfig::parse(text, file.path())?;
    Ok((config, file.path().to_owned()))
}

/// Opens the text encoder at `path`: its file, the index of its files, a folder with `text_encoder`
/// and `tokenizer`, or a folder with weights and tokenizer.
pub(crate) fn open_text(path: &Path) -> Result<OpenedText> {
    let text = open_text_weights(path)?;
    // Beside the weights, in a folder of its own beside them, or in one beside theirs.
    let places = [
        text.root.join(TOKENIZER),
        text.root.join("tokenizer").join(TOKENIZER),
        text.root.join("..").join("tokenizer").join(TOKENIZER),
    ];
    let Some(tokenizer) = places.iter().find(|place| place.is_file()) else {
        let message = format!("its tokenizer is missing; put {TOKENIZER} beside it");
        return Err(wrong(&text.place, message));
    };
    Ok(OpenedText {
        config: text.config,
        weights: text.weights,
        tokenizer: tokenizer.clone(),
    })
}

/// The weights of the text encoder at `path`, which [`open_text`] takes, whether or not there is a
/// tokenizer.
pub(crate) fn open_text_weights(path: &Path) -> Result<TextWeights> {
    if path.join("text_encoder").is_dir() {
        return open_text_folder(&path.join("text_encoder"), path);
    }
    if path.is_dir() {
        return open_text_folder(path, path);
    }
    let files = match has_ending(path, INDEX_ENDING) {
        true => shards(path)?,
        false => vec![path.to_owned()],
    };
    open_text_files(&files, None, path.parent().unwrap_or(Path::new("")), path)
}

fn open_text_folder(folder: &Path, root: &Path) -> Result<TextWeights> {
    let mut files = weight_files(folder, TEXT_STEM)?;
    if !files.iter().all(|file| file.is_file()) {
        let found = folder_weights(folder)?;
        files = match found.as_slice() {
            [index] if has_ending(index, INDEX_ENDING) => shards(index)?,
            _ => found,
        };
    }
    if files.is_empty() {
        return Err(wrong(
            folder,
            "no .safetensors file of a T5 encoder is there",
        ));
    }
    let config = folder.join("config.json");
    let config = config
        .is_file()
        .then(|| T5Config::read(&config))
        .transpose()?;
    open_text_files(&files, config, root, folder)
}

fn open_text_files(
    paths: &[PathBuf],
    config: Option<T5Config>,
    root: &Path,
    place: &Path,
) -> Result<TextWeights> {
    let weights = Weights::of_files(open_all(paths)?, Part::TextEncoder, place)?;
    if weights.is_empty() {
        return Err(wrong(place, "it has no tensors of a T5 encoder"));
    }
    let config = match config {
        Some(config) => config,
        None => {
            let names: Vec<String> = weights
                .tensors()
                .map(|(name, ..)| name.to_owned())
                .collect();
            let shape = |name: &str| weights.shape(name);
            t5_from_shapes(place, shape, names.iter().map(String::as_str))?
        }
    };
    Ok(TextWeights {
        config,
        weights,
        root: root.to_owned(),
        place: place.to_owned(),
    })
}

/// Opens the text encoder that lies beside the checkpoint at `path`.
fn open_text_beside(path: &Path) -> Result<OpenedText> {
    open_text(&text_encoder_beside(path)?)
}

/// The text encoder that lies beside the checkpoint at `path`: its file, or the folder that
/// `text_encoder` and `tokenizer` are in.
///
/// # Errors
/// When there is none, or more than one.
pub fn text_encoder_beside(path: &Path) -> Result<PathBuf> {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(Path::new("")),
    };
    if folder.join("text_encoder").is_dir() {
        return Ok(folder.to_owned());
    }
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let found: Vec<PathBuf> = folder_weights(folder)?
        .into_iter()
        .filter(|file| is_text_encoder(file))
        .collect();
    match found.as_slice() {
        [file] => Ok(file.clone()),
        [] => Err(wrong(
            path,
            "the checkpoint has no text encoder, and none lies beside it; name the file or folder \
             of T5-XXL with --text-encoder",
        )),
        several => Err(wrong(
            path,
            format!(
                "{} text encoders lie beside the checkpoint; name one with --text-encoder",
                several.len()
            ),
        )),
    }
}
