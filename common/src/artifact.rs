//! Files named by the hash of their bytes.
//!
//! Everything that passes from one task to the next lies here, so that a worker needs nothing but
//! hashes to go on where another one stopped. The scheme of the URL decides where the bytes are:
//! `file:` a folder, `s3:` a bucket. Knows nothing of jobs.

mod models;
mod repair;
mod s3;
mod usage;

pub use repair::Condition;

use crate::ids::Hash;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes read, hashed and written at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Parts of one file on their way to the store at a time.
const PARTS_IN_FLIGHT: usize = 4;
/// How long a store that does not answer is asked again before a read or a write fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same when somebody waits to be told whether the store can be used.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// What can go wrong with artifacts.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The URL's scheme is not one that this build speaks.
    #[error(
        "cannot use '{0}' for artifacts: give a folder as file:PATH, or a bucket as s3://BUCKET/PREFIX"
    )]
    Scheme(String),
    /// Not the URL of a bucket.
    #[error(
        "cannot use '{0}' for artifacts: write s3://BUCKET[/PREFIX], without empty parts, user, port or query"
    )]
    BucketUrl(String),
    /// Something is wrong with what the environment says about S3.
    #[error("cannot use {url} for artifacts: {reason}")]
    Settings {
        /// The store.
        url: String,
        /// What, and the way out.
        reason: String,
    },
    /// A first artifact could not be written and read back.
    #[error(
        "the artifact store {url} cannot be used: {source}; check the address, the bucket and the credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or the folder and its disk"
    )]
    Unusable {
        /// The store.
        url: String,
        /// Why.
        source: Box<ArtifactError>,
    },
    /// The path cannot be written as a URL.
    #[error("cannot use the folder '{0}' for artifacts: its name is not UTF-8")]
    Name(String),
    /// The folder cannot be made or read.
    #[error("cannot open the artifact folder {path}: {source}")]
    Open {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store was opened by then failed.
    #[error("cannot open the artifact store {url}: {source}")]
    Store {
        /// Where.
        url: String,
        /// Why.
        source: Box<object_store::Error>,
    },
    /// No artifact has that hash.
    #[error("artifact {hash} is not in {url}: was it removed there?")]
    Missing {
        /// Which.
        hash: Hash,
        /// Where it was looked for.
        url: String,
    },
    /// The stored bytes are not the ones that were put.
    #[error("artifact {hash} in {url} is damaged: its bytes hash to {found}")]
    Mismatch {
        /// Which.
        hash: Hash,
        /// Hash of the bytes that are there.
        found: Hash,
        /// Where.
        url: String,
    },
    /// A file was written to while it was put.
    #[error("{path} changed while it was being stored")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing a local file failed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store does not tell what it holds.
    #[error("cannot list the artifacts in {url}: {source}")]
    List {
        /// Where.
        url: String,
        /// Why.
        source: Box<object_store::Error>,
    },
    /// The store refused.
    #[error("cannot {action} artifact {hash} in {url}: {source}")]
    Access {
        /// `read` or `write`.
        action: &'static str,
        /// Which.
        hash: Hash,
        /// Where.
        url: String,
        /// Why.
        source: Box<object_store::Error>,
    },
}

/// The `file:` URL of a folder. The rest of the URL is the path as it is, nothing is escaped.
pub fn file_url(path: &Path) -> Result<String, ArtifactError> {
    let text = path
        .to_str()
        .ok_or_else(|| ArtifactError::Name(path.to_string_lossy().into_owned()))?;
    Ok(format!("file:{text}"))
}

/// The path that a `file:` URL names: `file:PATH` or `file:///PATH`.
pub fn file_path(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("file:")?;
    let rest = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return None, // a host: not this machine's file
        None => rest,
    };
    (!rest.is_empty()).then(|| PathBuf::from(rest))
}

/// A place for artifacts. Clones share it.
#[derive(Clone, Debug)]
pub struct ArtifactStore {
    store: Arc<dyn ObjectStore>,
    url: String,
    /// Files up to this size are sent whole, larger ones in parts of it.
    part_bytes: usize,
    settings: Settings,
}

/// Variables that say where and how to reach a bucket, as (name, value): the `AWS_*` of the usual
/// tools. Their values are not shown, there are secrets among them.
#[derive(Clone, Default)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    /// What this process's environment says.
    pub fn from_environment() -> Self {
        let pairs = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            name.starts_with("AWS_").then_some((name, value))
        });
        Self(pairs.collect())
    }

    fn find(&self, names: &[&str]) -> Option<&str> {
        let value = |name: &&str| self.0.iter().find(|(key, _)| key == name);
        let found = names.iter().find_map(value);
        found.map(|(_, value)| value.as_str())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Settings {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        Self(
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl ArtifactStore {
    /// Opens the store at `url`: `file:PATH`, a folder, which is made when it is not there; or
    /// `s3://BUCKET[/PREFIX]`, with endpoint, region and credentials from the usual `AWS_*` variables
    /// of the environment. Connects to nothing yet; see [`Self::check`].
    pub fn open(url: &str) -> Result<Self, ArtifactError> {
        Self::open_with(url, Settings::from_environment())
    }

    /// The same with other settings than the environment's.
    pub fn open_with(url: &str, settings: Settings) -> Result<Self, ArtifactError> {
        Self::open_patient(url, settings, PATIENCE)
    }

    fn open_patient(
        url: &str,
        settings: Settings,
        patience: Duration,
    ) -> Result<Self, ArtifactError> {
        if url.starts_with("s3:") {
            return Ok(Self {
                store: s3::open(url, &settings, patience)?,
                url: url.to_owned(),
                part_bytes: s3::PART_BYTES,
                settings,
            });
        }
        let path = file_path(url).ok_or_else(|| ArtifactError::Scheme(url.to_owned()))?;
        let opened = std::fs::create_dir_all(&path).and_then(|()| path.canonicalize());
        let path = opened.map_err(|source| ArtifactError::Open { path, source })?;
        let url = file_url(&path)?;
        // A result is reported only once it is stored, so stored has to mean on disk.
        let store = LocalFileSystem::new_with_prefix(&path)
            .map_err(|source| ArtifactError::Store {
                url: url.clone(),
                source: Box::new(source),
            })?
            .with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            url,
            part_bytes: CHUNK_BYTES,
            settings,
        })
    }

    /// Writes an empty artifact and reads it back, so that a wrong address, a missing bucket or
    /// missing rights are known before anything was rendered.
    pub async fn check(&self) -> Result<(), ArtifactError> {
        let hasty = Self::open_patient(&self.url, self.settings.clone(), CHECK_PATIENCE)?;
        let tried = match hasty.put(Bytes::new()).await {
            Ok(hash) => hasty.get(hash).await.map(drop),
            Err(error) => Err(error),
        };
        tried.map_err(|source| ArtifactError::Unusable {
            url: self.url.clone(),
            source: Box::new(source),
        })
    }

    /// Where the artifacts are: a folder with its absolute path, so that others on this machine can
    /// open it; a bucket without endpoint and credentials, which everybody has to know for himself.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stores `bytes`.
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<Hash, ArtifactError> {
        let bytes = bytes.into();
        let hash = Hash::of(&bytes);
        // Written even when it is there already, which mends a damaged one.
        self.store
            .put(&key(hash), PutPayload::from_bytes(bytes))
            .await
            .map_err(|source| self.access("write", hash, source))?;
        Ok(hash)
    }

    /// Stores a file without holding it in memory. Others see it whole or not at all.
    pub async fn put_file(&self, path: &Path) -> Result<Hash, ArtifactError> {
        let mut reader = open_file(path).await?;
        if let Some(bytes) = read_small(&mut reader, path, self.part_bytes).await? {
            return self.put(bytes).await;
        }
        let hash = hash_file(path).await?;
        let upload = self.store.put_multipart(&key(hash)).await;
        let upload = upload.map_err(|source| self.access("write", hash, source))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, self.part_bytes);
        match self.upload(path, hash, &mut writer).await {
            Ok(()) => {
                let finished = writer.finish().await;
                finished.map_err(|source| self.access("write", hash, source))?;
                Ok(hash)
            }
            Err(error) => {
                // The first error says more than one of cleaning up could.
                let _ = writer.abort().await;
                Err(error)
            }
        }
    }

    async fn upload(
        &self,
        path: &Path,
        hash: Hash,
        writer: &mut WriteMultipart,
    ) -> Result<(), ArtifactError> {
        let mut hasher = blake3::Hasher::new();
        let mut reader = open_file(path).await?;
        while let Some(bytes) = read_chunk(&mut reader, path).await? {
            hasher.update(&bytes);
            let room = writer.wait_for_capacity(PARTS_IN_FLIGHT).await;
            room.map_err(|source| self.access("write", hash, source))?;
            writer.put(bytes);
        }
        if Hash::from(hasher.finalize()) != hash {
            return Err(ArtifactError::Changed {
                path: path.to_owned(),
            });
        }
        Ok(())
    }

    /// The bytes of an artifact, checked against its hash.
    pub async fn get(&self, hash: Hash) -> Result<Bytes, ArtifactError> {
        let result = self.open_object(hash).await?;
        let bytes = result
            .bytes()
            .await
            .map_err(|source| self.access("read", hash, source))?;
        self.verify(hash, Hash::of(&bytes))?;
        Ok(bytes)
    }

    /// Writes an artifact to `path`, checked and at once: a file that was there is replaced only
    /// by the whole artifact. Returns its length in bytes.
    pub async fn get_to_file(&self, hash: Hash, path: &Path) -> Result<u64, ArtifactError> {
        let failed = |source| ArtifactError::File {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let partial = tempfile::Builder::new()
            .prefix(".longtake-")
            .tempfile_in(folder)
            .map_err(failed)?;
        let (file, partial) = partial.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        let mut stream = std::pin::pin!(self.stream(hash));
        let mut length_bytes = 0;
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            length_bytes += bytes.len() as u64;
            file.write_all(&bytes).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)?;
        set_usual_permissions(&file).await.map_err(failed)?;
        partial.persist(path).map_err(|error| failed(error.error))?;
        Ok(length_bytes)
    }

    /// The bytes of an artifact in pieces. A damaged one ends in an error, after its last piece.
    pub fn stream(
        &self,
        hash: Hash,
    ) -> impl Stream<Item = Result<Bytes, ArtifactError>> + Send + 'static {
        let this = self.clone();
        let opened = async move {
            let result = this.open_object(hash).await?;
            let reading = (result.into_stream(), blake3::Hasher::new(), this);
            Ok(futures::stream::try_unfold(
                Some(reading),
                move |reading| async move {
                    let Some((mut stream, mut hasher, this)) = reading else {
                        return Ok(None);
                    };
                    match stream.next().await {
                        Some(Ok(bytes)) => {
                            hasher.update(&bytes);
                            Ok(Some((bytes, Some((stream, hasher, this)))))
                        }
                        Some(Err(source)) => Err(this.access("read", hash, source)),
                        None => {
                            this.verify(hash, hasher.finalize().into())?;
                            Ok(None)
                        }
                    }
                },
            ))
        };
        futures::stream::once(opened).try_flatten()
    }

    /// Whether the artifact is there; its bytes are not looked at.
    pub async fn exists(&self, hash: Hash) -> Result<bool, ArtifactError> {
        match self.store.head(&key(hash)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.access("read", hash, source)),
        }
    }

    async fn open_object(&self, hash: Hash) -> Result<object_store::GetResult, ArtifactError> {
        self.store
            .get(&key(hash))
            .await
            .map_err(|error| match error {
                object_store::Error::NotFound { .. } => ArtifactError::Missing {
                    hash,
                    url: self.url.clone(),
                },
                source => self.access("read", hash, source),
            })
    }

    fn verify(&self, hash: Hash, found: Hash) -> Result<(), ArtifactError> {
        if hash == found {
            return Ok(());
        }
        Err(ArtifactError::Mismatch {
            hash,
            found,
            url: self.url.clone(),
        })
    }

    fn access(
        &self,
        action: &'static str,
        hash: Hash,
        source: object_store::Error,
    ) -> ArtifactError {
        ArtifactError::Access {
            action,
            hash,
            url: self.url.clone(),
            source: Box::new(source),
        }
    }
}

/// `ab/cd/abcd...`: two levels, so that no folder grows large.
fn key(hash: Hash) -> Key {
    let name = hash.to_string();
    let mut text = String::with_capacity(name.len() + 6);
    write!(text, "{}/{}/{name}", &name[..2], &name[2..4]).expect("writing to a string");
    Key::from(text)
}

async fn hash_file(path: &Path) -> Result<Hash, ArtifactError> {
    let mut hasher = blake3::Hasher::new();
    let mut reader = open_file(path).await?;
    while let Some(bytes) = read_chunk(&mut reader, path).await? {
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().into())
}

async fn open_file(path: &Path) -> Result<tokio::fs::File, ArtifactError> {
    let opened = tokio::fs::File::open(path).await;
    opened.map_err(|source| ArtifactError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// A whole file, `None` when it has more than `bytes_max`.
async fn read_small(
    reader: &mut tokio::fs::File,
    path: &Path,
    bytes_max: usize,
) -> Result<Option<Bytes>, ArtifactError> {
    let mut all = bytes::BytesMut::new();
    while let Some(bytes) = read_chunk(reader, path).await? {
        if all.len() + bytes.len() > bytes_max {
            return Ok(None);
        }
        all.extend_from_slice(&bytes);
    }
    Ok(Some(all.freeze()))
}

/// The next bytes of a file, `None` at its end.
async fn read_chunk(
    reader: &mut tokio::fs::File,
    path: &Path,
) -> Result<Option<Bytes>, ArtifactError> {
    let mut buffer = bytes::BytesMut::with_capacity(CHUNK_BYTES);
    while buffer.len() < CHUNK_BYTES {
        let read = reader.read_buf(&mut buffer).await;
        let read = read.map_err(|source| ArtifactError::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        if read == 0 {
            break;
        }
    }
    Ok((!buffer.is_empty()).then(|| buffer.freeze()))
}

/// A temporary file is private; what a user asked for should be as readable as any other file.
#[cfg(unix)]
async fn set_usual_permissions(file: &tokio::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
        .await
}

#[cfg(not(unix))]
async fn set_usual_permissions(_file: &tokio::fs::File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
