//! What users ask about models: the `Models` service. Their chunks lie in the artifact store; what
//! they are called and what is wrong with them, the core knows.

use crate::jobs::{PIECE_BYTES, Streamed, refusal};
use crate::request::{Mailbox, Request};
use crate::upload::{parse_hash, received};
use futures::{StreamExt, TryStreamExt, stream};
use longtake_common::artifact::{ArtifactError, ArtifactStore};
use longtake_common::ids::Hash;
use longtake_common::model::{CHUNK_BYTES, FileEntry, Manifest};
use longtake_core::{Event, Fault, ModelView, StoredModel, StoredPart};
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
    actor: Mailbox,
    store: ArtifactStore,
    /// Held while a name and the chunks behind it are brought into step: a chunk that is found is
    /// not removed before its model is named.
    changing: Arc<Mutex<()>>,
}

impl ModelsService {
    /// Names of the actor's core, chunks in `store`.
    pub fn new(actor: Mailbox, store: ArtifactStore) -> Self {
        Self {
            actor,
            store,
            changing: Arc::default(),
        }
    }

    async fn views(&self) -> Result<Vec<ModelView>, Status> {
        self.actor.ask(|reply| Request::Models { reply }).await
    }

    async fn command(&self, event: Event, is_trial: bool) -> Result<(), Status> {
        let done = self.actor.ask(|reply| Request::Model {
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

    /// What a model is stored with, as the store has it: a set knows the models that it consists of.
    async fn described(&self, manifest: &Manifest) -> Result<StoredModel, Status> {
        let mut parts = Vec::new();
        for part in manifest.parts() {
            let stored = self.stored_manifest(part.hash).await?;
            let missing = self.missing(&stored, false).await?;
            if !stored.parts().is_empty() || !missing.is_empty() {
                return Err(Status::failed_precondition(format!(
                    "the {} {} is not stored (any more): run 'longtake models add' again",
                    part.role.shown(),
                    part.name
                )));
            }
            parts.push(StoredPart {
                role: part.role,
                name: part.name.clone(),
                hash: part.hash,
                bytes: stored.bytes(),
            });
        }
        let own = described(manifest);
        Ok(StoredModel {
            bytes: own.bytes + parts.iter().map(|part| part.bytes).sum::<u64>(),
            parts,
            ..own
        })
    }

    /// Removes what belongs to `removed` and to no model that still has a name. Returns the bytes.
    async fn sweep(&self, removed: &StoredModel) -> Result<u64, Status> {
        let others = self.views().await?;
        let others = others.iter().flat_map(|view| view.model.hashes());
        let others: BTreeSet<Hash> = others.collect();
        let gone: BTreeSet<Hash> = removed.hashes().collect();
        let gone: Vec<_> = gone.difference(&others).copied().collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let mut kept = BTreeSet::new();
        for hash in others {
            kept.insert(hash);
            kept.extend(self.stored_manifest(hash).await?.chunks());
        }
        let mut bytes = 0;
        // The set itself goes last: as long as it is there, its parts can be found.
        for hash in gone.into_iter().rev() {
            bytes += self.sweep_one(hash, &mut kept).await?;
        }
        Ok(bytes)
    }

    /// Removes one list and its chunks, but for those in `kept`, to which it adds what it removes.
    async fn sweep_one(&self, removed: Hash, kept: &mut BTreeSet<Hash>) -> Result<u64, Status> {
        let manifest = self.stored_manifest(removed).await?;
        let mut chunks: Vec<_> = manifest.chunks().difference(kept).copied().collect();
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
        let bytes = bytes_of(&manifest, &chunks);
        kept.extend(chunks);
        Ok(bytes)
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
        parts: view.model.parts.into_iter().map(part_to_proto).collect(),
    }
}

fn part_to_proto(part: StoredPart) -> v1::ModelPart {
    let role = serde_json::to_value(part.role).ok();
    let role = role.as_ref().and_then(|role| role.as_str());
    v1::ModelPart {
        role: role.unwrap_or_default().to_owned(),
        name: part.name,
        hash: part.hash.to_string(),
        bytes: part.bytes,
    }
}

fn parse(json: &[u8]) -> Result<Manifest, Status> {
    Manifest::parse(json).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A model as its own list describes it, without what a set's parts are.
fn described(manifest: &Manifest) -> StoredModel {
    StoredModel {
        hash: manifest.hash(),
        bytes: manifest.bytes(),
        files: manifest.files().len() as u32,
        parts: Vec::new(),
    }
}

fn named(name: &str, model: StoredModel) -> Event {
    Event::AddModel {
        name: name.to_owned(),
        model,
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
        if !request.name.is_empty() {
            let event = named(&request.name, described(&manifest));
            self.command(event, true).await?;
        }
        let hash = manifest.hash();
        let views = self.views().await?;
        // What is known to be damaged is not trusted to be there.
        let is_damaged = |view: &ModelView| {
            let is_meant = view.model.hashes().any(|stored| stored == hash);
            is_meant && view.fault.as_ref().is_some_and(|fault| fault.damaged)
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
        self.command(named(&request.name, described(&manifest)), true)
            .await?;
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
        let event = named(&request.name, self.described(&manifest).await?);
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
            let mut reading = Reading {
                store,
                replies,
                total_bytes: view.model.bytes,
                done_bytes: 0,
                finding_count: 0,
            };
            let parts = view.model.parts.iter();
            let parts = parts.map(|part| (part.hash, format!("{}: ", part.name)));
            for (hash, label) in std::iter::once((view.model.hash, String::new())).chain(parts) {
                match reading.verify(hash, &label).await {
                    Ok(first) => {
                        let fault = first.map(|reason| Fault {
                            reason,
                            damaged: true,
                        });
                        let event = Event::ModelFault { hash, fault };
                        // Fails only when the coordinator is stopping.
                        let _ = actor.send(Request::Event(event)).await;
                    }
                    Err(status) => {
                        // Without one, nobody listens any more.
                        if let Some(status) = status {
                            drop(reading.replies.send(Err(status)).await);
                        }
                        return;
                    }
                }
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
        let bytes = self.sweep(&view.model).await.map_err(|status| {
            Status::internal(format!(
                "the name is gone, but not all of its bytes ({}): add and remove the model again when the store is back",
                status.message()
            ))
        })?;
        Ok(Response::new(v1::RemoveModelReply { bytes }))
    }
}

type Replies = mpsc::Sender<Result<v1::VerifyReply, Status>>;

/// A model, or the models of a set, being read from end to end.
struct Reading {
    store: ArtifactStore,
    replies: Replies,
    total_bytes: u64,
    done_bytes: u64,
    finding_count: usize,
}

impl Reading {
    /// `Err(None)` when nobody listens any more.
    async fn tell(&self, damage: String) -> Result<(), Option<Status>> {
        let reply = v1::VerifyReply {
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
            damage,
        };
        self.replies.send(Ok(reply)).await.map_err(|_| None)
    }

    /// Reads every chunk of a model and tells what is wrong, with `label` in front. Returns the first
    /// finding.
    async fn verify(&mut self, hash: Hash, label: &str) -> Result<Option<String>, Option<Status>> {
        let manifest = match self.store.get(hash).await {
            Ok(json) => Manifest::parse(&json).map_err(|error| error.to_string()),
            Err(error) => Err(damage(error).map_err(Some)?),
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(finding) => {
                let finding = format!("its list of files: {finding}");
                self.tell(format!("{label}{finding}")).await?;
                return Ok(Some(finding));
            }
        };
        let all = manifest.files().iter().flat_map(|file| {
            let numbered = (1..).zip(file.chunks.iter().zip(chunk_lengths(file)));
            numbered.map(move |(number, (chunk, bytes))| (file, number, *chunk, bytes))
        });
        let store = self.store.clone();
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
        let mut first = None;
        while let Some(next) = findings.next().await {
            let (bytes, finding) = next.map_err(Some)?;
            self.done_bytes += bytes;
            if let Some(finding) = &finding {
                self.finding_count += 1;
                first.get_or_insert_with(|| finding.clone());
                if self.finding_count > FINDINGS_MAX {
                    continue;
                }
            }
            let told = finding.map(|finding| format!("{label}{finding}"));
            self.tell(told.unwrap_or_default()).await?;
        }
        Ok(first)
    }
}

/// What an error says about stored bytes; a store that does not answer says nothing about them.
fn damage(error: ArtifactError) -> Result<String, Status> {
    match error {
        ArtifactError::Missing { .. } => Ok("it is not in the store".to_owned()),
        ArtifactError::Mismatch { .. } => Ok("its bytes were changed in the store".to_owned()),
        other => Err(refusal(&other)),
    }
}
