//! The models that a farm stores.

use super::Client;
use anyhow::{Result, anyhow, bail};
use longtake_common::Hash;
use longtake_common::model::{CHUNK_BYTES, FileEntry, Listed, Manifest};
use longtake_proto::v1;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// Chunks on their way at a time.
const UPLOADS: usize = 4;
/// Bytes in one message.
const PIECE_BYTES: usize = 1 << 20;
/// How long a coordinator that breaks off is offered a chunk again.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(60);
/// Wait before it is.
const UPLOAD_PAUSE: Duration = Duration::from_millis(500);

/// A chunk of a file on this machine.
#[derive(Clone)]
struct Piece {
    hash: Hash,
    path: PathBuf,
    offset: u64,
}

impl Client {
    /// Stores what is not stored yet of a model and names it. `see` hears how many of the bytes are
    /// stored. Returns the model and the bytes that were sent.
    pub async fn add_model(
        &mut self,
        name: &str,
        listed: &Listed,
        see: impl FnMut(u64),
    ) -> Result<(v1::Model, u64)> {
        let sent_bytes = self.send_missing(name, listed, see).await?;
        let request = v1::AddModelRequest {
            name: name.to_owned(),
            manifest: listed.manifest.to_json(),
        };
        let added = self.models.clone().add(request).await;
        let added = added.map_err(|status| self.explain(&status))?.into_inner();
        Ok((added, sent_bytes))
    }

    /// Refuses a name that the model cannot have, before anything of its parts is sent.
    pub async fn check_model_name(&self, name: &str, manifest: &Manifest) -> Result<()> {
        let request = v1::MissingRequest {
            manifest: manifest.to_json(),
            name: name.to_owned(),
        };
        let missing = self.models.clone().missing(request).await;
        missing.map(drop).map_err(|status| self.explain(&status))
    }

    /// Stores what is not stored yet of a part of a set. Returns the bytes that were sent.
    pub async fn add_part(&mut self, listed: &Listed, see: impl FnMut(u64)) -> Result<u64> {
        let sent_bytes = self.send_missing("", listed, see).await?;
        let json = listed.manifest.to_json();
        self.upload(Hash::of(&json), json).await?;
        Ok(sent_bytes)
    }

    /// Sends the chunks that are not stored yet. Returns their bytes.
    async fn send_missing(
        &mut self,
        name: &str,
        listed: &Listed,
        mut see: impl FnMut(u64),
    ) -> Result<u64> {
        let manifest = &listed.manifest;
        let request = v1::MissingRequest {
            manifest: manifest.to_json(),
            name: name.to_owned(),
        };
        // Looking at every chunk may take longer than other answers, so nobody counts the seconds.
        let missing = self.models.clone().missing(request).await;
        let missing = missing
            .map_err(|status| self.explain(&status))?
            .into_inner();
        let missing: Result<std::collections::BTreeSet<Hash>, _> =
            missing.chunks.iter().map(|chunk| chunk.parse()).collect();
        let pieces = pieces(listed, missing?);
        let lengths: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
        let mut stored_bytes = manifest.bytes().saturating_sub(lengths);
        see(stored_bytes);
        let (mut waiting, mut running) = (pieces.into_iter(), JoinSet::new());
        loop {
            while running.len() < UPLOADS
                && let Some((piece, bytes)) = waiting.next()
            {
                let client = self.clone();
                running.spawn(async move { client.upload_piece(&piece).await.map(|()| bytes) });
            }
            let Some(sent) = running.join_next().await else {
                break;
            };
            stored_bytes += sent??;
            see(stored_bytes);
        }
        Ok(lengths)
    }

    async fn upload_piece(&self, piece: &Piece) -> Result<()> {
        let reading = piece.clone();
        let bytes = tokio::task::spawn_blocking(move || read(&reading)).await??;
        self.upload(piece.hash, bytes).await
    }

    async fn upload(&self, hash: Hash, bytes: Vec<u8>) -> Result<()> {
        let started = Instant::now();
        loop {
            let first = std::iter::once(v1::UploadRequest {
                chunk: hash.to_string(),
                data: Vec::new(),
            });
            let rest = bytes.chunks(PIECE_BYTES).map(|data| v1::UploadRequest {
                chunk: String::new(),
                data: data.to_vec(),
            });
            let messages: Vec<_> = first.chain(rest).collect();
            let sent = self
                .models
                .clone()
                .upload(tokio_stream::iter(messages))
                .await;
            match sent {
                Ok(_) => return Ok(()),
                Err(status) if is_passing(&status) && started.elapsed() < UPLOAD_PATIENCE => {
                    tokio::time::sleep(UPLOAD_PAUSE).await;
                }
                Err(status) => {
                    return Err(self.explain(&status).context(
                        "the model is not stored yet; the same command goes on where it stopped",
                    ));
                }
            }
        }
    }

    /// The models that are stored.
    pub async fn models(&self) -> Result<Vec<v1::Model>> {
        let mut models = self.models.clone();
        let reply = self.answer(models.list(v1::ListModelsRequest {}));
        Ok(reply.await?.models)
    }

    /// The stored model of that name or hash with its list of files, if there is one.
    pub async fn stored_model(&self, name: &str) -> Result<Option<(Hash, Manifest)>> {
        let model = name.to_owned();
        let found = self
            .models
            .clone()
            .manifest(v1::ModelRequest { model })
            .await;
        let reply = match found {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.explain(&status)),
        };
        let manifest = Manifest::parse(&reply.manifest)?;
        Ok(Some((reply.hash.parse()?, manifest)))
    }

    /// A small file of a stored model.
    pub async fn model_file(&self, file: &FileEntry) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for chunk in &file.chunks {
            let request = v1::ChunkRequest {
                chunk: chunk.to_string(),
            };
            let mut stream = self.answer(self.models.clone().chunk(request)).await?;
            while let Some(part) = stream
                .message()
                .await
                .map_err(|status| self.explain(&status))?
            {
                bytes.extend_from_slice(&part.data);
            }
        }
        if Hash::of(&bytes) != file.hash {
            bail!(
                "{} came with other bytes than it is listed with; try again",
                file.path
            );
        }
        Ok(bytes)
    }

    /// Has the farm read all of a model. `see` hears how far it is, and what is wrong.
    pub async fn verify_model(
        &self,
        name: &str,
        mut see: impl FnMut(&v1::VerifyReply),
    ) -> Result<()> {
        let model = name.to_owned();
        let mut stream = self
            .answer(self.models.clone().verify(v1::ModelRequest { model }))
            .await?;
        while let Some(reply) = stream
            .message()
            .await
            .map_err(|status| self.explain(&status))?
        {
            see(&reply);
        }
        Ok(())
    }

    /// Takes a model's name away. Returns the bytes that went with it.
    pub async fn remove_model(&self, name: &str) -> Result<u64> {
        let model = name.to_owned();
        let removed = self.models.clone().remove(v1::ModelRequest { model }).await;
        let removed = removed.map_err(|status| self.explain(&status))?;
        Ok(removed.into_inner().bytes)
    }
}

/// Whether trying again may help: the connection broke, or the store did not answer for a while.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    )
}

/// Where the missing chunks are on this machine, each once, with their lengths.
fn pieces(listed: &Listed, mut missing: std::collections::BTreeSet<Hash>) -> Vec<(Piece, u64)> {
    let mut pieces = Vec::new();
    for (file, path) in listed.manifest.files().iter().zip(&listed.places) {
        for (index, chunk) in (0u64..).zip(&file.chunks) {
            if !missing.remove(chunk) {
                continue;
            }
            let offset = index * CHUNK_BYTES;
            let piece = Piece {
                hash: *chunk,
                path: path.clone(),
                offset,
            };
            pieces.push((piece, (file.bytes - offset).min(CHUNK_BYTES)));
        }
    }
    pieces
}

fn read(piece: &Piece) -> Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&piece.path)?;
        file.seek(SeekFrom::Start(piece.offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let path = piece.path.display();
    let bytes = read().map_err(|error| anyhow!("cannot read {path}: {error}"))?;
    if Hash::of(&bytes) != piece.hash {
        bail!("{path} changed while it was being stored; run the command again");
    }
    Ok(bytes)
}
