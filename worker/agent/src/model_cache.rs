//! The model that the device lane keeps loaded.

use crate::error::TaskError;
use longtake_common::Hash;
use longtake_common::model::{ModelError, find_model, hash_model};
use longtake_common::spec::ModelRef;
use longtake_ltx::{LoraFile, Model, ModelFiles};
use longtake_tensor::Backend;
use std::path::Path;

/// Loads models on demand and keeps the last one: a job's tasks come one after another.
pub struct ModelCache<B: Backend> {
    backend: B,
    loaded: Option<(ModelRef, Model<B>)>,
}

impl<B: Backend> ModelCache<B> {
    /// Nothing is loaded yet.
    pub fn new(backend: B) -> Self {
        Self {
            backend,
            loaded: None,
        }
    }

    /// The model that `wanted` names, with exactly the bytes that it names.
    pub fn get(&mut self, wanted: &ModelRef) -> Result<&Model<B>, TaskError> {
        if self.loaded.as_ref().is_none_or(|(have, _)| have != wanted) {
            // Two models side by side would double the worker's memory.
            self.loaded = None;
            self.loaded = Some((wanted.clone(), self.load(wanted)?));
        }
        match &self.loaded {
            Some((_, model)) => Ok(model),
            None => Err(TaskError::Retryable("the model was not kept".to_owned())),
        }
    }

    /// Unloads the model.
    pub fn clear(&mut self) {
        self.loaded = None;
    }

    fn load(&self, wanted: &ModelRef) -> Result<Model<B>, TaskError> {
        let files = files_of(wanted).map_err(TaskError::retryable)?;
        check_hash(&files.model, wanted.hash)?;
        if let (Some(path), Some(text_encoder)) = (&files.text_encoder, &wanted.text_encoder) {
            check_hash(path, text_encoder.hash)?;
        }
        for (file, lora) in files.loras.iter().zip(&wanted.loras) {
            check_hash(&file.path, lora.hash)?;
        }
        tracing::info!(model = %files.model.display(), "loading");
        // The bytes are the right ones, so what is wrong with them is wrong everywhere.
        Model::load(files, self.backend.clone()).map_err(|error| match error {
            longtake_ltx::Error::Read { .. } => TaskError::retryable(error),
            error => TaskError::fatal(error),
        })
    }
}

/// Where the files of `model` are on this machine.
pub(crate) fn files_of(model: &ModelRef) -> Result<ModelFiles, ModelError> {
    let text_encoder = model.text_encoder.as_ref();
    let loras = model.loras.iter().map(|lora| {
        Ok(LoraFile {
            path: find_model(&lora.location)?,
            strength: lora.strength,
        })
    });
    Ok(ModelFiles {
        model: find_model(&model.location)?,
        text_encoder: text_encoder
            .map(|text| find_model(&text.location))
            .transpose()?,
        quantises: model.eight_bit,
        loras: loras.collect::<Result<_, ModelError>>()?,
        fuses_loras: model.fuse_loras,
    })
}

/// Fails when the files at `path` are not those that the job was made for.
fn check_hash(path: &Path, wanted: Hash) -> Result<(), TaskError> {
    let hash = hash_model(path).map_err(TaskError::retryable)?;
    if hash == wanted {
        return Ok(());
    }
    Err(TaskError::Retryable(format!(
        "the model at {} has hash {}, but the job was made for {}; give this worker the same \
         files, or submit the job again",
        path.display(),
        hash.short(),
        wanted.short()
    )))
}
