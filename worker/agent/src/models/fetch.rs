//! Brings a stored model into a folder, chunk by chunk, and goes on where an earlier try ended.

use super::cache::make_folder;
use crate::artifacts::Artifacts;
use crate::control::Control;
use crate::error::TaskError;
use bytes::Bytes;
use longtake_common::Hash;
use longtake_common::artifact::ArtifactError;
use longtake_common::model::{CHUNK_BYTES, FileEntry, Manifest};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Why a model is not there yet.
#[derive(Debug)]
pub enum FetchError {
    /// The store's bytes are not the model's.
    Damaged(String),
    /// Anything else.
    Task(TaskError),
}

impl From<TaskError> for FetchError {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// What a fetch has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes that an earlier try had left.
    pub kept_bytes: u64,
    /// Bytes that came from the store now.
    pub fetched_bytes: u64,
}

/// Brings what is missing of `manifest` into `folder`. `see` hears of every step.
pub fn fetch(
    manifest: &Manifest,
    folder: &Path,
    artifacts: &Artifacts,
    control: &Control,
    see: &mut dyn FnMut(Tally),
) -> Result<Tally, FetchError> {
    let mut tally = Tally::default();
    for file in manifest.files() {
        let path = place(folder, &file.path)?;
        let mut open = open(&path)?;
        let written = failed("write", &path);
        let kept = good_chunks(&mut open, file).map_err(failed("read", &path))?;
        let kept_bytes = (kept as u64 * CHUNK_BYTES).min(file.bytes);
        // What is behind the last good chunk was being written when the process ended.
        open.set_len(kept_bytes)
            .and_then(|()| open.seek(SeekFrom::Start(kept_bytes)))
            .map_err(&written)?;
        tally.kept_bytes += kept_bytes;
        see(tally);
        let mut number = kept;
        artifacts.chunks(&file.chunks[kept..], control, |chunk| {
            number += 1;
            let bytes: Bytes = chunk.map_err(|error| unreadable(&error, file, number))?;
            open.write_all(&bytes).map_err(&written)?;
            tally.fetched_bytes += bytes.len() as u64;
            see(tally);
            Ok::<_, FetchError>(())
        })?;
        open.sync_all().map_err(&written)?;
    }
    Ok(tally)
}

fn failed(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> TaskError {
    let path = path.to_owned();
    move |error| {
        TaskError::Retryable(format!(
            "cannot {action} {} ({error}): see to the disk of --model-cache; what was fetched of the model is kept",
            path.display()
        ))
    }
}

/// Where a file of a list goes: its path has been checked, and no folder on the way is a link.
fn place(folder: &Path, path: &str) -> Result<PathBuf, TaskError> {
    let mut place = folder.to_owned();
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        place.push(part);
        if parts.peek().is_some() {
            make_folder(&place).map_err(TaskError::retryable)?;
        }
    }
    if place.is_symlink() {
        let error = std::io::Error::other("a link is in its place");
        return Err(failed("write", &place)(error));
    }
    Ok(place)
}

fn open(path: &Path) -> Result<File, TaskError> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).map_err(failed("write", path))
}

/// How many chunks at the beginning of a file are those of its list.
fn good_chunks(open: &mut File, file: &FileEntry) -> std::io::Result<usize> {
    let mut buffer = Vec::new();
    let mut good = 0;
    for chunk in &file.chunks {
        buffer.clear();
        open.take(CHUNK_BYTES).read_to_end(&mut buffer)?;
        if Hash::of(&buffer) != *chunk {
            break;
        }
        good += 1;
    }
    Ok(good)
}

fn unreadable(error: &ArtifactError, file: &FileEntry, number: usize) -> FetchError {
    let part = format!("chunk {number} of {} of {}", file.chunks.len(), file.path);
    match error {
        ArtifactError::Mismatch { .. } => {
            FetchError::Damaged(format!("{part} is damaged in the artifact store"))
        }
        ArtifactError::Missing { .. } => {
            FetchError::Damaged(format!("{part} is not in the artifact store"))
        }
        other => FetchError::Task(TaskError::Retryable(format!(
            "{part} cannot be fetched, what is there of the model is kept: {other}"
        ))),
    }
}
