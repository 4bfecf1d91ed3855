//! The name of a model: a hash over what it renders from.

use crate::config::config_files;
use crate::error::{Error, Result};
use crate::weights::weight_files;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Stem of the transformer's and the VAE's weight files.
pub(crate) const DIFFUSION_STEM: &str = "diffusion_pytorch_model";
/// Stem of the text encoder's weight files.
pub(crate) const TEXT_STEM: &str = "model";

/// Where the tokenizer is.
pub(crate) fn tokenizer_file(dir: &Path) -> PathBuf {
    dir.join("tokenizer/spiece.model")
}

/// BLAKE3 over the files of model folder `dir` that determine what it renders, in a fixed order:
/// the configurations, the tokenizer, the weights. Notes and training code beside them do not count.
pub fn model_hash(dir: &Path) -> Result<blake3::Hash> {
    let mut files = config_files(dir).to_vec();
    files.push(tokenizer_file(dir));
    files.extend(weight_files(&dir.join("text_encoder"), TEXT_STEM)?);
    files.extend(weight_files(&dir.join("transformer"), DIFFUSION_STEM)?);
    files.extend(weight_files(&dir.join("vae"), DIFFUSION_STEM)?);
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let read = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let mut file = blake3::Hasher::new();
        file.update_reader(File::open(&path).map_err(read)?)
            .map_err(read)?;
        // A digest of digests: contents cannot move from one file to the next unnoticed.
        hasher.update(file.finalize().as_bytes());
    }
    Ok(hasher.finalize())
}
