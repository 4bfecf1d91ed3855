//! The model that the device lane keeps loaded.

use crate::error::TaskError;
use longtake_common::model::{find_model, hash_model};
use longtake_common::spec::ModelRef;
use longtake_ltx::Model;
use longtake_tensor::Backend;

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
        let path = find_model(&wanted.location).map_err(TaskError::retryable)?;
        let hash = hash_model(&path).map_err(TaskError::retryable)?;
        if hash != wanted.hash {
            return Err(TaskError::Retryable(format!(
                "the model at {} has hash {}, but the job was made for {}; give this worker the \
                 same files, or submit the job again",
                path.display(),
                hash.short(),
                wanted.hash.short()
            )));
        }
        tracing::info!(model = %path.display(), "loading");
        // The bytes are the right ones, so what is wrong with them is wrong everywhere.
        Model::load(&path, self.backend.clone()).map_err(|error| match error {
            longtake_ltx::Error::Read { .. } => TaskError::retryable(error),
            error => TaskError::fatal(error),
        })
    }
}
