//! Where the coordinator's records are kept.

mod embedded;
mod etcd;

pub use embedded::RedbStore;
pub use etcd::EtcdStore;

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
    #[error(
        "cannot keep state in '{0}': give a folder as file:PATH, or an etcd cluster as etcd://HOST:PORT,..."
    )]
    Scheme(String),
    /// Not the URL of an etcd cluster.
    #[error(
        "cannot use '{0}' as an etcd cluster: write etcd://HOST:PORT[,HOST:PORT...][/PREFIX], the prefix of letters, digits and ._-/"
    )]
    EtcdUrl(String),
    /// The cluster does not answer.
    #[error(
        "cannot reach the state store {place}: {reason}; is it running, and is the address right?"
    )]
    Unreachable {
        /// The cluster.
        place: String,
        /// What the last try met.
        reason: String,
    },
    /// The database holds what this program does not write.
    #[error(
        "what is stored in {place} is damaged or not longtake's: restore a backup, or start with another prefix in --state"
    )]
    Damaged {
        /// The cluster.
        place: String,
    },
    /// The database's file is not as it was left.
    #[error(
        "the state {place} is damaged ({reason}): restore it from a backup, or move it away and submit the jobs again"
    )]
    Broken {
        /// The database.
        place: String,
        /// What its code stumbled over.
        reason: String,
    },
    /// Nobody knows what is stored.
    #[error(
        "the state {place} was not read since a write to it was broken off: start the coordinator again"
    )]
    Unclaimed {
        /// The cluster.
        place: String,
    },
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

    /// Writes all of `writes` durably or none, and none when `epoch` is not the latest term. Waits
    /// out a store that cannot be reached for a while, however long that is.
    async fn commit(&self, epoch: Epoch, writes: Vec<Write>) -> Result<(), StateError>;

    /// What keeps the store from answering right now, as a sentence for whoever asks how we are.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Opens the store at `url`: `file:FOLDER`, or `etcd://HOST:PORT,...[/PREFIX]`. It is there then, and
/// whoever has it can still write.
pub async fn open(url: &str) -> Result<Arc<dyn StateStore>, StateError> {
    if url.starts_with("etcd:") {
        return Ok(Arc::new(EtcdStore::open(url).await?));
    }
    let folder = file_path(url).ok_or_else(|| StateError::Scheme(url.to_owned()))?;
    Ok(Arc::new(RedbStore::open(&folder).await?))
}
