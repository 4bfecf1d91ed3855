//! What users ask about models: the `Models` service. Their chunks lie in the artifact store; what
//! they are called and what is wrong with them, the core knows.

use crate::jobs::{PIECE_BYTES, Streamed, ask, refusal};
use crate::request::Request;
use crate::upload::{parse_hash, received};
use futures::{StreamExt, TryStreamExt, stream};
use longtake_common::artifact::{ArtifactError, ArtifactStore};
use longtake_common::ids::Hash;
use longtake_common::model::{CHUNK_BYTES, FileEntry, Manifest};
use longtake_core::{Event, Fault, ModelView, StoredModel};
use longtake_proto::v1;
use longtake_proto::v1::models_server::Models;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Ask, Response, Status, Streaming};

/// Chunks that are looked up, read or removed at a time.
const AT_ONCE: usize = 8;
/// Findings of a verification that are sent; one is enough to refuse a model.
const FINDINGS_MAX: usize = 100;

/// The service.
pub struct ModelsService {
    actor: mpsc::Sender<Request>,
    store: ArtifactStore,
    /// Held while a name and the chunks behind it are brought into step: a chunk that is found is
    /// not removed before its model is named.
    changing: Arc<Mutex<()>>,
}

impl ModelsService {
    /// Names of the actor's core, chunks in `store`.
    pub fn new(actor: mpsc::Sender<Request>, store: ArtifactStore) -> Self {
        Self {
            actor,
            store,
            changing: Arc::default(),
        }
    }

    async fn views(&self) -> Result<Vec<ModelView>, Status> {
        ask(&self.actor, |reply| Request::Models { reply }).await
    }

    async fn command(&self, event: Event, is_trial: bool) -> Result<(), Status> {
        let done = ask(&self.actor, |reply| Request::Model {
            event,
            is_trial,
            reply,
        });
        done.await?.map_err(Status::failed_precondition)
    }

    /// What a name or a hash stands for.
    async fn find(&self, text: &str) -> Result<ModelView, Status> {
        let views = self.views().await?;
        let hash = text.parse::<Hash>().ok();
        let is_meant = |view: &&ModelView| view.name == text || Some(view.model.hash) == hash;
        let found = views.iter().find(is_meant).cloned();
        found.ok_or_else(|| {
            Status::not_found(format!(
                "there is no model '{}' here: 'longtake models list' shows those there are",
                text.escape_debug()
            ))
        })
    }

    async fn stored_manifest(&self, hash: Hash) -> Result<Manifest, Status> {
        let json = self
            .store
            .get(hash)
            .await
            .map_err(|error| refusal(&error))?;
        Manifest::parse(&json).map_err(|error| Status::data_loss(error.to_string()))
    }

    /// The chunks that are not there; with `deep`, also those that are damaged.
    async fn missing(&self, manifest: &Manifest, deep: bool) -> Result<Vec<Hash>, Status> {
        let look = |chunk: Hash| async move {
            let is_there = if deep {
                match self.store.get(chunk).await {
                    Ok(_) => true,
                    Err(ArtifactError::Missing { .. } | ArtifactError::Mismatch { .. }) => false,
                    Err(error) => return Err(error),
                }
            } else {
                self.store.exists(chunk).await?
            };
            Ok((!is_there).then_some(chunk))
        };
        let looked = stream::iter(manifest.chunks()).map(look).buffered(AT_ONCE);
        let missing = looked.try_filter_map(|chunk| async move { Ok(chunk) });
        missing.try_collect().await.map_err(|error| refusal(&error))
    }

    /// Removes what belongs to `removed` and to no model that still has a name. Returns the bytes.
    async fn sweep(&self, removed: Hash) -> Result<u64, Status> {
        let others = self.views().await?;
        if others.iter().any(|view| view.model.hash == removed) {
            return Ok(0);
        }
        let manifest = self.stored_manifest(removed).await?;
        let mut kept = BTreeSet::new();
        for hash in others
            .iter()
            .map(|view| view.model.hash)
            .collect::<BTreeSet<_>>()
        {
            kept.insert(hash);
            kept.extend(self.stored_manifest(hash).await?.chunks());
        }
        let mut chunks: Vec<_> = manifest.chunks().difference(&kept).copied().collect();
        // The list goes last: as long as it is there, what is left can be found.
        let list = chunks.iter().position(|chunk| *chunk == removed);
        list.map(|place| chunks.swap_remove(place));
        let gone = stream::iter(chunks.clone())
            .map(|chunk| self.store.remove(chunk))
            .buffer_unordered(AT_ONCE);
        gone.try_collect::<()>()
            .await
            .map_err(|error| refusal(&error))?;
        self.store
            .remove(removed)
            .await
            .map_err(|error| refusal(&error))?;
        let chunks: BTreeSet<_> = chunks.into_iter().collect();
        Ok(bytes_of(&manifest, &chunks))
    }
}

/// Length of these chunks, each counted once.
fn bytes_of(manifest: &Manifest, chunks: &BTreeSet<Hash>) -> u64 {
    let mut left = chunks.clone();
    let of_file = |file: &FileEntry| {
        let lengths = file.chunks.iter().zip(chunk_lengths(file));
        let counted = lengths.filter_map(|(chunk, bytes)| left.remove(chunk).then_some(bytes));
        counted.sum::<u64>()
    };
    manifest.files().iter().map(of_file).sum()
}

/// Length of each chunk of a file.
fn chunk_lengths(file: &FileEntry) -> impl Iterator<Item = u64> {
    let bytes = file.bytes;
    (0..file.chunks.len() as u64).map(move |index| (bytes - index * CHUNK_BYTES).min(CHUNK_BYTES))
}

fn to_proto(view: ModelView) -> v1::Model {
    v1::Model {
        name: view.name,
        hash: view.model.hash.to_string(),
        bytes: view.model.bytes,
        files: view.model.files,
        fault: view.fault.map(|fault| fault.reason).unwrap_or_default(),
        workers: view.workers,
    }
}

fn parse(json: &[u8]) -> Result<Manifest, Status> {
    Manifest::parse(json).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn named(name: &str, manifest: &Manifest) -> Event {
    Event::AddModel {
        name: name.to_owned(),
        model: StoredModel {
            hash: manifest.hash(),
            bytes: manifest.bytes(),
            files: manifest.files().len() as u32,
        },
    }
}

#[tonic::async_trait]
impl Models for ModelsService {
    async fn missing(
        &self,
        request: Ask<v1::MissingRequest>,
    ) -> Result<Response<v1::MissingReply>, Status> {
        let request = request.into_inner();
        let manifest = parse(&request.manifest)?;
        self.command(named(&request.name, &manifest), true).await?;
        let hash = manifest.hash();
        let views = self.views().await?;
        // What is known to be damaged is not trusted to be there.
        let is_damaged = |view: &ModelView| {
            view.model.hash == hash && view.fault.as_ref().is_some_and(|fault| fault.damaged)
        };
        let missing = self
            .missing(&manifest, views.iter().any(is_damaged))
            .await?;
        Ok(Response::new(v1::MissingReply {
            chunks: missing.iter().map(Hash::to_string).collect(),
        }))
    }

    async fn upload(
        &self,
        request: Ask<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadReply>, Status> {
        let pieces = request.into_inner();
        let bytes = received(pieces.map_ok(|piece| (piece.chunk, piece.data))).await?;
        let stored = self.store.put(bytes).await;
        stored.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::UploadReply {}))
    }

    async fn add(&self, request: Ask<v1::AddModelRequest>) -> Result<Response<v1::Model>, Status> {
        let request = request.into_inner();
        let manifest = parse(&request.manifest)?;
        let event = named(&request.name, &manifest);
        self.command(event.clone(), true).await?;
        let _changing = self.changing.lock().await;
        let missing = self.missing(&manifest, false).await?;
        if !missing.is_empty() {
            return Err(Status::failed_precondition(format!(
                "{} chunks of the model are not stored (any more): run 'longtake models add' again",
                missing.len()
            )));
        }
        let stored = self.store.put(manifest.to_json()).await;
        stored.map_err(|error| refusal(&error))?;
        self.command(event, false).await?;
        tracing::info!(name = request.name, model = %manifest.hash(), "model added");
        Ok(Response::new(to_proto(self.find(&request.name).await?)))
    }

    async fn list(
        &self,
        _request: Ask<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsReply>, Status> {
        let models = self.views().await?.into_iter().map(to_proto).collect();
        Ok(Response::new(v1::ListModelsReply { models }))
    }

    async fn manifest(
        &self,
        request: Ask<v1::ModelRequest>,
    ) -> Result<Response<v1::ManifestReply>, Status> {
        let view = self.find(&request.into_inner().model).await?;
        let manifest = self.stored_manifest(view.model.hash).await?;
        Ok(Response::new(v1::ManifestReply {
            name: view.name,
            hash: view.model.hash.to_string(),
            manifest: manifest.to_json(),
        }))
    }

    type ChunkStream = Streamed<v1::ChunkReply>;

    async fn chunk(
        &self,
        request: Ask<v1::ChunkRequest>,
    ) -> Result<Response<Self::ChunkStream>, Status> {
        let hash = parse_hash(&request.into_inner().chunk)?;
        let bytes = self
            .store
            .get(hash)
            .await
            .map_err(|error| refusal(&error))?;
        let pieces = (0..bytes.len()).step_by(PIECE_BYTES).map(move |start| {
            let end = bytes.len().min(start + PIECE_BYTES);
            Ok(v1::ChunkReply {
                data: bytes.slice(start..end).to_vec(),
            })
        });
        Ok(Response::new(Box::pin(stream::iter(pieces))))
    }

    type VerifyStream = Streamed<v1::VerifyReply>;

    async fn verify(
        &self,
        request: Ask<v1::ModelRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let view = self.find(&request.into_inner().model).await?;
        let (replies, stream) = mpsc::channel(AT_ONCE);
        let (actor, store) = (self.actor.clone(), self.store.clone());
        tokio::spawn(async move {
            let hash = view.model.hash;
            match verify(&store, hash, &replies).await {
                Ok(first) => {
                    let fault = first.map(|reason| Fault {
                        reason,
                        damaged: true,
                    });
                    let event = Event::ModelFault { hash, fault };
                    // Fails only when the coordinator is stopping.
                    let _ = actor.send(Request::Event(event)).await;
                }
                Err(Some(status)) => drop(replies.send(Err(status)).await),
                Err(None) => {} // nobody listens any more
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn remove(
        &self,
        request: Ask<v1::ModelRequest>,
    ) -> Result<Response<v1::RemoveModelReply>, Status> {
        let name = request.into_inner().model;
        let _changing = self.changing.lock().await;
        let event = Event::RemoveModel { name: name.clone() };
        // A name that is not there is refused by the core, in its words.
        self.command(event.clone(), true).await?;
        let view = self.find(&name).await?;
        self.command(event, false).await?;
        tracing::info!(name, model = %view.model.hash, "model removed");
        let bytes = self.sweep(view.model.hash).await.map_err(|status| {
            Status::internal(format!(
                "the name is gone, but not all of its bytes ({}): add and remove the model again when the store is back",
                status.message()
            ))
        })?;
        Ok(Response::new(v1::RemoveModelReply { bytes }))
    }
}

type Replies = mpsc::Sender<Result<v1::VerifyReply, Status>>;

/// Reads every chunk of a model and tells what is wrong. Returns the first finding. `Err(None)` when
/// nobody listens any more.
async fn verify(
    store: &ArtifactStore,
    hash: Hash,
    replies: &Replies,
) -> Result<Option<String>, Option<Status>> {
    let tell = |done_bytes, total_bytes, damage: String| async move {
        let reply = v1::VerifyReply {
            done_bytes,
            total_bytes,
            damage,
        };
        replies.send(Ok(reply)).await.map_err(|_| None)
    };
    let manifest = match store.get(hash).await {
        Ok(json) => Manifest::parse(&json).map_err(|error| error.to_string()),
        Err(error) => Err(damage(error).map_err(Some)?),
    };
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(finding) => {
            let finding = format!("its list of files: {finding}");
            tell(0, 0, finding.clone()).await?;
            return Ok(Some(finding));
        }
    };
    let total_bytes = manifest.bytes();
    let all = manifest.files().iter().flat_map(|file| {
        let numbered = (1..).zip(file.chunks.iter().zip(chunk_lengths(file)));
        numbered.map(move |(number, (chunk, bytes))| (file, number, *chunk, bytes))
    });
    let read = |(file, number, chunk, bytes): (&FileEntry, u32, Hash, u64)| {
        let (path, count, store) = (file.path.clone(), file.chunks.len(), store.clone());
        async move {
            let finding = match store.get(chunk).await {
                Ok(_) => None,
                Err(error) => Some(format!(
                    "chunk {number} of {count} of {path}: {}",
                    damage(error)?
                )),
            };
            Ok::<_, Status>((bytes, finding))
        }
    };
    let all: Vec<_> = all.map(read).collect();
    let mut findings = stream::iter(all).buffered(AT_ONCE);
    let (mut done_bytes, mut count, mut first) = (0, 0, None);
    while let Some(next) = findings.next().await {
        let (bytes, finding) = next.map_err(Some)?;
        done_bytes += bytes;
        if let Some(finding) = &finding {
            count += 1;
            first.get_or_insert_with(|| finding.clone());
            if count > FINDINGS_MAX {
                continue;
            }
        }
        tell(done_bytes, total_bytes, finding.unwrap_or_default()).await?;
    }
    Ok(first)
}

/// What an error says about stored bytes; a store that does not answer says nothing about them.
fn damage(error: ArtifactError) -> Result<String, Status> {
    match error {
        ArtifactError::Missing { .. } => Ok("it is not in the store".to_owned()),
        ArtifactError::Mismatch { .. } => Ok("its bytes were changed in the store".to_owned()),
        other => Err(refusal(&other)),
    }
}
