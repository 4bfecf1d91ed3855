//! The artifact store from a lane's thread, which has no async of its own.

use crate::control::Control;
use crate::error::TaskError;
use bytes::Bytes;
use futures::StreamExt;
use longtake_common::Hash;
use longtake_common::artifact::{ArtifactError, ArtifactStore};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Chunks of a model that are on their way at a time.
const CHUNKS_AT_ONCE: usize = 4;
/// How long a store that breaks off is asked for a chunk again.
const CHUNK_PATIENCE: Duration = Duration::from_secs(60);
/// Wait before it is.
const CHUNK_PAUSE: Duration = Duration::from_millis(300);
/// How often a fetch looks whether it is still wanted.
const CANCEL_CHECK: Duration = Duration::from_millis(200);

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
        if let Ok(bytes) = &bytes {
            tracing::debug!(%hash, bytes = bytes.len(), "read");
        }
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

    /// The list of files of a stored model.
    pub fn model_list(&self, hash: Hash) -> Result<Bytes, ArtifactError> {
        let models = self.store.models();
        self.runtime.block_on(patiently(&models, hash))
    }

    /// Passes chunks of a stored model to `each`, in order, several of them on their way at a time.
    /// Ends with what `each` fails with, or when the task is cancelled.
    pub fn chunks<E: From<TaskError>>(
        &self,
        chunks: &[Hash],
        control: &Control,
        mut each: impl FnMut(Result<Bytes, ArtifactError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let models = self.store.models();
        let ask = |hash: &Hash| patiently(&models, *hash);
        let mut coming = futures::stream::iter(chunks)
            .map(ask)
            .buffered(CHUNKS_AT_ONCE);
        self.runtime.block_on(async {
            loop {
                if control.is_leaving() {
                    return Err(TaskError::Left(None).into());
                }
                if control.is_cancelled() {
                    return Err(TaskError::Cancelled.into());
                }
                match tokio::time::timeout(CANCEL_CHECK, coming.next()).await {
                    Ok(Some(chunk)) => each(chunk)?,
                    Ok(None) => return Ok(()),
                    Err(_) => {} // not there yet
                }
            }
        })
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

/// A chunk. What breaks off on the way is asked for again for a while, and so is, once, what comes
/// with other bytes: the way may have changed them.
async fn patiently(models: &ArtifactStore, hash: Hash) -> Result<Bytes, ArtifactError> {
    let started = Instant::now();
    let mut mismatches = 0;
    loop {
        let error = match models.get(hash).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        match error {
            ArtifactError::Mismatch { .. } if mismatches == 0 => mismatches += 1,
            ArtifactError::Access { .. } if started.elapsed() < CHUNK_PATIENCE => {
                tracing::warn!(%error, "asking the store again");
                tokio::time::sleep(CHUNK_PAUSE).await;
            }
            error => return Err(error),
        }
    }
}
