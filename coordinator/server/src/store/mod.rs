//! Where the coordinator's records are kept.

mod embedded;

pub use embedded::RedbStore;

use async_trait::async_trait;
use longtake_common::artifact::file_path;
use longtake_common::ids::Epoch;
use longtake_core::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Why records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The URL's scheme is not one that this build speaks.
    #[error("cannot keep state in '{0}': give a folder as file:PATH")]
    Scheme(String),
    /// The folder cannot be made.
    #[error("cannot make the state folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "the state in {path} is in use by another coordinator: stop that one, or give another --state"
    )]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// Another coordinator took over.
    #[error(
        "another coordinator has taken over the state {place} (term {found}, this one was {own}): this one has to stop"
    )]
    Superseded {
        /// The database.
        place: String,
        /// Term that is stored.
        found: Epoch,
        /// Term of this coordinator.
        own: Epoch,
    },
    /// The database failed.
    #[error("cannot {action} the state {place}: {source}")]
    Database {
        /// `open`, `read` or `write`.
        action: &'static str,
        /// The database.
        place: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a coordinator starts from.
#[derive(Debug)]
pub struct Claim {
    /// Its term, greater than all before.
    pub epoch: Epoch,
    /// All records.
    pub records: Vec<(String, Vec<u8>)>,
}

/// Records under text keys, written by one coordinator at a time.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// Begins a new term and reads everything, in one step. Earlier terms cannot write any more.
    async fn claim(&self) -> Result<Claim, StateError>;

    /// Writes all of `writes` durably or none, and none when `epoch` is not the latest term.
    async fn commit(&self, epoch: Epoch, writes: Vec<Write>) -> Result<(), StateError>;
}

/// Opens the store at `url`: `file:FOLDER`.
pub async fn open(url: &str) -> Result<Arc<dyn StateStore>, StateError> {
    let folder = file_path(url).ok_or_else(|| StateError::Scheme(url.to_owned()))?;
    Ok(Arc::new(RedbStore::open(&folder).await?))
}
