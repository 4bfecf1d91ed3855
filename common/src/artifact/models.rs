//! The part of a store that holds models: their chunks and lists of files, apart from what jobs
//! make, so that removing a model can never touch a film.

use super::{ArtifactError, ArtifactStore, key};
use crate::ids::Hash;
use object_store::ObjectStoreExt;
use object_store::prefix::PrefixStore;
use std::sync::Arc;

/// Where the models are.
const PREFIX: &str = "models";

impl ArtifactStore {
    /// The models in this store.
    pub fn models(&self) -> Self {
        Self {
            store: Arc::new(PrefixStore::new(self.store.clone(), PREFIX)),
            url: format!("{}/{PREFIX}", self.url),
            part_bytes: self.part_bytes,
            settings: self.settings.clone(),
        }
    }

    /// Removes an artifact; one that is not there is as good as removed.
    pub async fn remove(&self, hash: Hash) -> Result<(), ArtifactError> {
        match self.store.delete(&key(hash)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.access("remove", hash, source)),
        }
    }
}
