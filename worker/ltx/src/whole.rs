//! Files that others are to have, each checked by itself: whether it is what it says, and every value.

use crate::error::Result;
use crate::inspect::inspect;
use crate::model::{Unloaded, check_values};
use crate::names::Part;
use crate::source::{checkpoint_files, official_config, open_all, open_text_weights, wrong};
use crate::t5::T5Encoder;
use crate::transformer::Transformer;
use crate::upsampler::check_upscaler;
use crate::vae::{Decoder, Encoder};
use crate::weights::{Scrutiny, WeightFile, Weights};
use std::path::Path;
use std::sync::Arc;

/// Checks what is at `path`: a Diffusers folder as [`check_values`] does, a checkpoint without what
/// it may not have beside it (the text encoder), a latent upscaler, a text encoder or a LoRA.
///
/// # Errors
/// When a file cannot be read, is none of these, lacks a weight, or has one that is not as its
/// configuration says or holds a value that is not finite.
pub fn check_whole(path: &Path) -> Result<()> {
    let Some(paths) = checkpoint_files(path)? else {
        return check_values(path);
    };
    let files = open_all(&paths)?;
    match inspect(path)?.kind {
        "model" => check_checkpoint(path, files),
        "upscaler" => check_upscaler(path, Scrutiny::Values),
        "text encoder" => check_text_encoder(path),
        "lora" => files.iter().try_for_each(|file| check_file(file)),
        "vae" | "transformer" => Err(wrong(
            path,
            "it is one part of a model, which no job can name by itself: use a checkpoint with all \
             parts, or the Diffusers folder that it belongs to",
        )),
        _ => Err(wrong(
            path,
            "it holds no weights that longtake knows: neither of LTX-Video or its latent upscaler, \
             nor of T5, nor of a LoRA for LTX-Video",
        )),
    }
}

/// Checks the weights of the text encoder at `path`, a file or a folder, but not its tokenizer.
///
/// # Errors
/// As [`check_whole`].
pub fn check_text_encoder(path: &Path) -> Result<()> {
    let text = open_text_weights(path)?;
    text.weights.check_values()?;
    T5Encoder::load(&Unloaded, text.weights, &text.config).map(drop)
}

fn check_checkpoint(path: &Path, files: Vec<Arc<WeightFile>>) -> Result<()> {
    let (config, place) = official_config(&files, path)?;
    let part = |part| Weights::of_files(files.clone(), part, path);
    let (transformer, vae) = (part(Part::Transformer)?, part(Part::Vae)?);
    let vae_config = config.vae(&place)?;
    Transformer::load(&Unloaded, &transformer, &config.transformer(&place)?)?;
    Decoder::load(&Unloaded, &vae, &vae_config)?;
    Encoder::load(&Unloaded, &vae, &vae_config)?;
    for weights in [&transformer, &vae] {
        weights.check_all_asked()?;
        weights.check_values()?;
    }
    Ok(())
}

fn check_file(file: &WeightFile) -> Result<()> {
    let names: Vec<_> = file.names().map(Some).collect();
    file.check_values(&names)
}
