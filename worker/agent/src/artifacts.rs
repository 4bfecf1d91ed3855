//! The artifact store from a lane's thread, which has no async of its own.

use crate::error::TaskError;
use longtake_common::Hash;
use longtake_common::artifact::{ArtifactError, ArtifactStore};
use std::path::Path;
use tokio::runtime::Handle;

/// Blocking access to the store that the coordinator named.
pub struct Artifacts {
    store: ArtifactStore,
    runtime: Handle,
}

impl Artifacts {
    /// Opens the store at `url`.
    pub fn open(url: &str, runtime: Handle) -> Result<Self, TaskError> {
        let store = ArtifactStore::open(url).map_err(TaskError::retryable)?;
        Ok(Self { store, runtime })
    }

    /// The bytes of an artifact.
    #[tracing::instrument(skip_all, fields(%hash))]
    pub fn get(&self, hash: Hash) -> Result<Vec<u8>, TaskError> {
        let bytes = self.runtime.block_on(self.store.get(hash));
        bytes.map(Vec::from).map_err(|error| match error {
            ArtifactError::Missing { .. } | ArtifactError::Mismatch { .. } => TaskError::Inputs {
                lost: vec![hash],
                story: error.to_string(),
            },
            error => TaskError::retryable(error),
        })
    }

    /// Those of `hashes` that are not in the store. One of which nothing can be told counts as there.
    pub fn missing(&self, hashes: &[Hash]) -> Vec<Hash> {
        let is_missing =
            |hash: &Hash| matches!(self.runtime.block_on(self.store.exists(*hash)), Ok(false));
        hashes.iter().copied().filter(is_missing).collect()
    }

    /// Stores `bytes`.
    #[tracing::instrument(skip_all, fields(bytes = bytes.len()))]
    pub fn put(&self, bytes: Vec<u8>) -> Result<Hash, TaskError> {
        self.runtime
            .block_on(self.store.put(bytes))
            .map_err(TaskError::retryable)
    }

    /// Stores a file, without holding it in memory.
    #[tracing::instrument(skip_all)]
    pub fn put_file(&self, path: &Path) -> Result<Hash, TaskError> {
        self.runtime
            .block_on(self.store.put_file(path))
            .map_err(TaskError::retryable)
    }
}
