//! Hashes of large files, computed once and remembered as long as the file stays as it is.

use super::ModelError;
use super::manifest::CHUNK_BYTES;
use crate::ids::Hash;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Environment variable: the folder for what can be had again, instead of the user's cache folder.
pub const CACHE_VARIABLE: &str = "LONGTAKE_CACHE";
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Shorter files are hashed faster than anything is looked up for them.
const WORTHWHILE_BYTES: u64 = 32 << 20;
/// A file that was written so shortly before it was read may be written again without its times
/// telling: some file systems count time in steps of two seconds.
const SETTLED: Duration = Duration::from_secs(4);

/// What a file consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHashes {
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of all of it.
    pub hash: Hash,
    /// BLAKE3 of each [`CHUNK_BYTES`].
    pub chunks: Vec<Hash>,
}

/// What is remembered: hashes and how the file was when they were computed.
#[derive(Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    stamp: Stamp,
    hashes: FileHashes,
}

/// How a file looks from outside. Its time of change cannot be set back by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
    inode: u64,
}

/// Remembered hashes.
#[derive(Clone, Debug)]
pub struct Hashes {
    folder: Option<PathBuf>,
    worthwhile_bytes: u64,
    settled: Duration,
}

impl Hashes {
    /// Remembered in the user's cache folder, or not at all for a user without one.
    pub fn usual() -> Self {
        Self {
            folder: cache_folder().map(|folder| folder.join("hashes")),
            worthwhile_bytes: WORTHWHILE_BYTES,
            settled: SETTLED,
        }
    }

    /// Nothing is remembered: every byte is read.
    pub fn forgetful() -> Self {
        Self {
            folder: None,
            ..Self::usual()
        }
    }

    /// The hashes of the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is written to meanwhile.
    pub fn of_file(&self, path: &Path) -> Result<FileHashes, ModelError> {
        let failed = |source| ModelError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let before = stamp(&metadata);
        let place = self.place(path, before.bytes);
        if let Some(known) = place.as_deref().and_then(recall)
            && known.path == path
            && known.stamp == before
        {
            return Ok(known.hashes);
        }
        let hashes = hash(&file).map_err(failed)?;
        let after = stamp(&file.metadata().map_err(failed)?);
        if after != before || hashes.bytes != before.bytes {
            return Err(ModelError::Changing(path.to_owned()));
        }
        if let Some(place) = place
            && is_settled(&metadata, self.settled)
        {
            remember(&place, path, before, &hashes);
        }
        Ok(hashes)
    }

    /// Whether files with this hash were found to have no bad value, see [`Self::note_sound`].
    pub fn are_sound(&self, files: Hash) -> bool {
        self.sound_place(files).is_some_and(|place| place.exists())
    }

    /// Remembers that files with this hash have no bad value. A folder that cannot be written to is no
    /// error: they are looked at again.
    pub fn note_sound(&self, files: Hash) {
        if let Some(place) = self.sound_place(files) {
            let made = place.parent().map_or(Ok(()), std::fs::create_dir_all);
            let _ = made.and_then(|()| std::fs::write(&place, []));
        }
    }

    fn sound_place(&self, files: Hash) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{files}.sound")))
    }

    /// Where the hashes of `path` are remembered.
    fn place(&self, path: &Path, bytes: u64) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        let worthwhile = bytes >= self.worthwhile_bytes && path.is_absolute();
        let name = Hash::of(path.as_os_str().as_encoded_bytes());
        worthwhile.then(|| folder.join(format!("{name}.json")))
    }
}

/// The folder for what can be had again: `$LONGTAKE_CACHE`, or `longtake` in the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let usual = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    set(CACHE_VARIABLE)
        .or_else(|| Some(usual()?.join("longtake")))
        .filter(|folder| folder.is_absolute())
}

fn hash(mut file: &File) -> std::io::Result<FileHashes> {
    let (mut whole, mut chunk) = (blake3::Hasher::new(), blake3::Hasher::new());
    let mut buffer = vec![0; READ_BYTES];
    let mut chunks = Vec::new();
    loop {
        // Reads never cross the end of a chunk.
        let left = (CHUNK_BYTES - chunk.count()).min(READ_BYTES as u64) as usize;
        let read = match file.read(&mut buffer[..left]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            break;
        }
        whole.update(&buffer[..read]);
        chunk.update(&buffer[..read]);
        if chunk.count() == CHUNK_BYTES {
            chunks.push(chunk.finalize().into());
            chunk.reset();
        }
    }
    if chunk.count() > 0 {
        chunks.push(chunk.finalize().into());
    }
    Ok(FileHashes {
        bytes: whole.count(),
        hash: whole.finalize().into(),
        chunks,
    })
}

fn stamp(metadata: &Metadata) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    Stamp {
        bytes: metadata.len(),
        modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

fn is_settled(metadata: &Metadata, settled: Duration) -> bool {
    let age = |then: SystemTime| SystemTime::now().duration_since(then).ok();
    let modified = metadata.modified().ok().and_then(age);
    modified.is_some_and(|age| age >= settled)
}

fn recall(place: &Path) -> Option<Entry> {
    serde_json::from_slice(&std::fs::read(place).ok()?).ok()
}

/// What cannot be remembered is computed again.
fn remember(place: &Path, path: &Path, stamp: Stamp, hashes: &FileHashes) {
    let entry = Entry {
        path: path.to_owned(),
        stamp,
        hashes: hashes.clone(),
    };
    let json = serde_json::to_vec(&entry).expect("hashes are plain data");
    let beside = place.with_extension(format!("{}.tmp", std::process::id()));
    let folder = place.parent().unwrap_or(Path::new("."));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&beside, json))
        .and_then(|()| std::fs::rename(&beside, place));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn remembering(folder: &Path, settled: Duration) -> Hashes {
        Hashes {
            folder: Some(folder.join("hashes")),
            worthwhile_bytes: 1,
            settled,
        }
    }

    #[test]
    fn a_chunk_is_hashed_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..2 * CHUNK_BYTES + 5)
            .map(|i| (i * 7 % 251) as u8)
            .collect();
        for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 5] {
            let bytes = &bytes[..length as usize];
            fs::write(&path, bytes).expect("written");
            let found = Hashes::forgetful().of_file(&path).expect("hashed");
            let chunks = bytes.chunks(CHUNK_BYTES as usize).map(Hash::of);
            assert_eq!(found.chunks, chunks.collect::<Vec<_>>(), "{length} bytes");
            assert_eq!((found.bytes, found.hash), (length, Hash::of(bytes)));
        }
    }

    #[test]
    fn a_file_is_read_once_as_long_as_it_stays_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "weights").expect("written");
        let hashes = remembering(folder.path(), Duration::ZERO);
        let first = hashes.of_file(&path).expect("hashed");
        // What is remembered is shown by changing it behind everybody's back.
        let place = hashes.place(&path, 7).expect("remembered");
        let mut entry = recall(&place).expect("an entry");
        entry.hashes.hash = Hash::of(b"as remembered");
        fs::write(&place, serde_json::to_vec(&entry).expect("JSON")).expect("written");
        let again = hashes.of_file(&path).expect("known");
        assert_eq!(again.hash, Hash::of(b"as remembered"));

        // Other bytes of the same length, with the time of the earlier ones.
        let modified = fs::metadata(&path)
            .expect("there")
            .modified()
            .expect("a time");
        fs::write(&path, "WEIGHTS").expect("written");
        let file = File::options().write(true).open(&path).expect("opened");
        file.set_modified(modified).expect("set back");
        let changed = hashes.of_file(&path).expect("hashed");
        assert_eq!(changed.hash, Hash::of(b"WEIGHTS"));
        assert_ne!(changed.hash, first.hash);
    }

    #[test]
    fn a_file_that_was_just_written_is_not_trusted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "weights").expect("written");
        let hashes = remembering(folder.path(), SETTLED);
        hashes.of_file(&path).expect("hashed");
        assert!(recall(&hashes.place(&path, 7).expect("a place")).is_none());
    }
}
