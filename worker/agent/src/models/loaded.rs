//! The model that the device lane keeps loaded.

use super::{Found, Shelf, Wanted};
use crate::error::{TaskError, story};
use crate::work::Desk;
use longtake_common::Hash;
use longtake_common::model::{ModelError, find_model};
use longtake_common::spec::{ModelRef, Sampling};
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{Error, LatentUpsampler, LoraFile, Model, ModelFiles};
use longtake_tensor::Backend;
use std::sync::Arc;

/// Loads models on demand and keeps the last one: a job's tasks come one after another.
pub struct ModelCache<B: Backend> {
    backend: B,
    shelf: Arc<Shelf>,
    /// Dropped in this order: nothing of the model is in use when it may be removed.
    loaded: Option<(ModelRef, Model<B>, Vec<Found>)>,
    upscaler: Option<(Hash, LatentUpsampler<B>, Found)>,
}

impl<B: Backend> ModelCache<B> {
    /// Nothing is loaded yet.
    pub fn new(backend: B, shelf: Arc<Shelf>) -> Self {
        Self {
            backend,
            shelf,
            loaded: None,
            upscaler: None,
        }
    }

    /// The model that `wanted` names, with exactly the bytes that it names.
    pub fn get(&mut self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<&Model<B>, TaskError> {
        self.keep(wanted, desk)?;
        match &self.loaded {
            Some((_, model, _)) => Ok(model),
            None => Err(TaskError::Retryable("the model was not kept".to_owned())),
        }
    }

    /// The same with the latent upscaler of `sampling`.
    pub fn refining(
        &mut self,
        wanted: &ModelRef,
        sampling: &Sampling,
        desk: &Desk<'_>,
    ) -> Result<(&Model<B>, Option<&LatentUpsampler<B>>), TaskError> {
        if let Some(second) = &sampling.second_pass {
            self.keep_upscaler(&second.upscaler, desk)?;
        }
        self.keep(wanted, desk)?;
        let upscaler = self.upscaler.as_ref().map(|(_, upscaler, _)| upscaler);
        match &self.loaded {
            Some((_, model, _)) => Ok((model, upscaler)),
            None => Err(TaskError::Retryable("the model was not kept".to_owned())),
        }
    }

    fn keep(&mut self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<(), TaskError> {
        if self.loaded.as_ref().is_none_or(|(have, ..)| have != wanted) {
            // Two models side by side would double the worker's memory.
            self.loaded = None;
            self.loaded = Some(self.load(wanted, desk)?);
        }
        Ok(())
    }

    fn keep_upscaler(&mut self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<(), TaskError> {
        let kept = self.upscaler.as_ref();
        if kept.is_some_and(|(have, ..)| *have == wanted.hash) {
            return Ok(());
        }
        self.upscaler = None;
        let part = Wanted {
            location: &wanted.location,
            hash: wanted.hash,
        };
        let found = self.shelf.find(part, desk.artifacts, desk.control)?;
        tracing::info!(upscaler = %found.path.display(), "loading");
        let loaded = LatentUpsampler::load(&found.path, &self.backend, Scrutiny::Values);
        let upscaler = loaded.map_err(|error| match error {
            Error::Read { .. } => TaskError::retryable(error),
            error => TaskError::fatal(error),
        })?;
        self.upscaler = Some((wanted.hash, upscaler, found));
        Ok(())
    }

    /// Unloads the model and the upscaler.
    pub fn clear(&mut self) {
        (self.loaded, self.upscaler) = (None, None);
    }

    fn load(
        &self,
        wanted: &ModelRef,
        desk: &Desk<'_>,
    ) -> Result<(ModelRef, Model<B>, Vec<Found>), TaskError> {
        let find = |location: &str, hash| {
            let part = Wanted { location, hash };
            self.shelf.find(part, desk.artifacts, desk.control)
        };
        let mut found = vec![find(&wanted.location, wanted.hash)?];
        let mut files = ModelFiles {
            model: found[0].path.clone(),
            text_encoder: None,
            quantises: wanted.eight_bit,
            loras: Vec::new(),
            fuses_loras: wanted.fuse_loras,
        };
        if let Some(text) = &wanted.text_encoder {
            let text = find(&text.location, text.hash)?;
            files.text_encoder = Some(text.path.clone());
            found.push(text);
        }
        for lora in &wanted.loras {
            let file = find(&lora.location, lora.hash)?;
            files.loras.push(LoraFile {
                path: file.path.clone(),
                strength: lora.strength,
            });
            found.push(file);
        }
        tracing::info!(model = %files.model.display(), "loading");
        match Model::load(files, self.backend.clone()) {
            Ok(model) => {
                self.shelf.note_sound(wanted.hash);
                Ok((wanted.clone(), model, found))
            }
            Err(error) => {
                // With an addition it is not known whose fault it is.
                let is_alone = wanted.text_encoder.is_none() && wanted.loras.is_empty();
                if is_alone && is_files(&error) {
                    self.shelf.note_fault(wanted.hash, &story(&error), false);
                }
                // The bytes are the right ones, so what is wrong with them is wrong everywhere.
                Err(match error {
                    Error::Read { .. } => TaskError::retryable(error),
                    error => TaskError::fatal(error),
                })
            }
        }
    }
}

/// Whether an error is about what a model's files hold.
fn is_files(error: &Error) -> bool {
    matches!(
        error,
        Error::ConfigSyntax { .. }
            | Error::Unsupported { .. }
            | Error::WeightFile { .. }
            | Error::Weight { .. }
            | Error::Tokenizer { .. }
    )
}

/// Where the files of `model` are on this machine.
pub fn files_of(model: &ModelRef) -> Result<ModelFiles, ModelError> {
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
