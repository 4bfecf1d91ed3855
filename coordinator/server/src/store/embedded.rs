//! The embedded store: one redb file.

use super::{Claim, StateError, StateStore};
use async_trait::async_trait;
use longtake_common::ids::Epoch;
use longtake_core::Write;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the file in the state folder.
pub const FILE_NAME: &str = "longtake.redb";

const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
/// One entry, [`EPOCH`].
const TERM: TableDefinition<&str, u64> = TableDefinition::new("term");
const EPOCH: &str = "epoch";

/// Records in a `longtake.redb`. The file is locked while it is open.
pub struct RedbStore {
    database: Arc<Database>,
    path: PathBuf,
}

impl RedbStore {
    /// Opens or makes the database in `folder`.
    pub async fn open(folder: &Path) -> Result<Self, StateError> {
        let (folder, path) = (folder.to_owned(), folder.join(FILE_NAME));
        let opened = tokio::task::spawn_blocking(move || open(&folder)).await;
        opened.unwrap_or_else(|panic| Err(broken(&path.display().to_string(), panic)))
    }

    /// Runs `action` on the database where blocking is allowed.
    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Database) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StateError> {
        let (database, place) = (self.database.clone(), self.path.display().to_string());
        let done = tokio::task::spawn_blocking(move || work(&database)).await;
        let done = match done {
            Ok(done) => done,
            Err(panic) => return Err(broken(&place, panic)),
        };
        done.map_err(|failure| match failure {
            Failure::Redb(error) => StateError::Database {
                action,
                place,
                source: error,
            },
            Failure::Superseded { found, own } => StateError::Superseded { place, found, own },
        })
    }
}

fn open(folder: &Path) -> Result<RedbStore, StateError> {
    std::fs::create_dir_all(folder).map_err(|source| StateError::Folder {
        path: folder.to_owned(),
        source,
    })?;
    let path = folder.join(FILE_NAME);
    match Database::create(&path) {
        Ok(database) => Ok(RedbStore {
            database: Arc::new(database),
            path,
        }),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(StateError::Locked { path }),
        Err(DatabaseError::Storage(StorageError::Corrupted(reason))) => Err(StateError::Broken {
            place: path.display().to_string(),
            reason,
        }),
        Err(DatabaseError::Storage(StorageError::Io(error)))
            if error.kind() == std::io::ErrorKind::InvalidData =>
        {
            Err(StateError::Broken {
                place: path.display().to_string(),
                reason: error.to_string(),
            })
        }
        Err(DatabaseError::UpgradeRequired(form)) => Err(StateError::Broken {
            place: path.display().to_string(),
            reason: format!("it says that it has form {form}, which no version of longtake writes"),
        }),
        Err(error) => Err(StateError::Database {
            action: "open",
            place: path.display().to_string(),
            source: Box::new(error),
        }),
    }
}

/// The database's code relies on what it has written and panics over anything else.
fn broken(place: &str, panic: tokio::task::JoinError) -> StateError {
    let reason = match panic.try_into_panic() {
        Ok(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload
                .downcast_ref::<&str>()
                .map_or_else(|| "it makes no sense".to_owned(), |text| (*text).to_owned()),
        },
        Err(stopped) => stopped.to_string(),
    };
    StateError::Broken {
        place: place.to_owned(),
        reason,
    }
}

enum Failure {
    Redb(Box<dyn std::error::Error + Send + Sync>),
    Superseded { found: Epoch, own: Epoch },
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error))
    }
}

fn claim(database: &Database) -> Result<Claim, Failure> {
    let transaction = database.begin_write()?;
    let epoch = {
        let mut term = transaction.open_table(TERM)?;
        let before = term.get(EPOCH)?.map_or(0, |value| value.value());
        term.insert(EPOCH, before + 1)?;
        transaction.open_table(RECORDS)?; // made, so that reading finds it
        Epoch(before + 1)
    };
    transaction.commit()?;
    let table = database.begin_read()?.open_table(RECORDS)?;
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        records.push((key.value().to_owned(), value.value().to_owned()));
    }
    Ok(Claim { epoch, records })
}

fn commit(database: &Database, own: Epoch, writes: &[Write]) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let term = transaction.open_table(TERM)?;
        let found = Epoch(term.get(EPOCH)?.map_or(0, |value| value.value()));
        if found != own {
            return Err(Failure::Superseded { found, own });
        }
        let mut records = transaction.open_table(RECORDS)?;
        for (key, value) in writes {
            match value {
                Some(value) => records.insert(key.as_str(), value.as_slice())?,
                None => records.remove(key.as_str())?,
            };
        }
    }
    transaction.commit()?;
    Ok(())
}

#[async_trait]
impl StateStore for RedbStore {
    async fn claim(&self) -> Result<Claim, StateError> {
        self.run("read", claim).await
    }

    async fn commit(&self, epoch: Epoch, writes: Vec<Write>) -> Result<(), StateError> {
        self.run("write", move |database| commit(database, epoch, &writes))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_opening_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let _first = RedbStore::open(folder.path()).await.expect("open");
        let error = RedbStore::open(folder.path())
            .await
            .err()
            .expect("locked")
            .to_string();
        assert!(error.contains("in use by another coordinator"), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_database_is_an_error_or_good_for_what_it_holds() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join(FILE_NAME);
        {
            let store = RedbStore::open(folder.path()).await.expect("open");
            let epoch = store.claim().await.expect("claim").epoch;
            let write = |n: u32| (format!("task/j/{n}"), Some(vec![b'x'; 200]));
            store
                .commit(epoch, (0..200).map(write).collect())
                .await
                .expect("commit");
        }
        let whole = std::fs::read(&file).expect("read");
        let mut refused = 0;
        for part in 0..24 {
            let mut bytes = whole.clone();
            let at = whole.len() * part / 24;
            let end = (at + 512).min(bytes.len());
            bytes[at..end].fill(0xa5);
            if part % 4 == 3 {
                bytes.truncate(at);
            }
            std::fs::write(&file, &bytes).expect("damage");
            let outcome = match RedbStore::open(folder.path()).await {
                Ok(store) => store.claim().await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                let text = error.to_string();
                assert!(text.contains(FILE_NAME), "{text}");
                refused += 1;
            }
        }
        assert!(refused > 0);
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(FILE_NAME), "not a database at all").expect("write");
        let error = RedbStore::open(folder.path())
            .await
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains("is damaged") && error.contains("restore it"),
            "{error}"
        );
    }
}
