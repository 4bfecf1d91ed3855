//! What is left of an artifact that somebody could not read.

use super::{ArtifactError, ArtifactStore, key};
use crate::ids::Hash;
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;

/// Where damaged artifacts are moved, under their names.
const ASIDE: &str = "damaged";

/// The state of an artifact in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its bytes are the right ones.
    Whole,
    /// It is not there.
    Missing,
    /// Its bytes were other ones; they lie under `damaged/` now.
    SetAside,
}

impl ArtifactStore {
    /// Reads an artifact to see whether it is whole. One that is not is moved aside, so that nobody
    /// takes it for the real one, and whoever wants to know what happened still has it.
    pub async fn examine(&self, hash: Hash) -> Result<Condition, ArtifactError> {
        let mut stream = std::pin::pin!(self.stream(hash));
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(_) => {}
                Err(ArtifactError::Missing { .. }) => return Ok(Condition::Missing),
                Err(ArtifactError::Mismatch { .. }) => return self.set_aside(hash).await,
                Err(error) => return Err(error),
            }
        }
        Ok(Condition::Whole)
    }

    async fn set_aside(&self, hash: Hash) -> Result<Condition, ArtifactError> {
        let aside = Key::from(format!("{ASIDE}/{hash}"));
        match self.store.rename(&key(hash), &aside).await {
            Ok(()) => Ok(Condition::SetAside),
            // Somebody else was faster.
            Err(object_store::Error::NotFound { .. }) => Ok(Condition::Missing),
            Err(source) => Err(self.access("move", hash, source)),
        }
    }
}
