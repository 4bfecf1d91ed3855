//! Models that were fetched, in a folder that processes of this machine share.
//!
//! | name        | what it is                                                                 |
//! |-------------|----------------------------------------------------------------------------|
//! | `HASH`      | the files of a model, complete and compared with their hashes                |
//! | `HASH.part` | those of one that is being fetched, or was when its process ended            |
//! | `HASH.json` | its list of files; from when room was made for it                            |
//! | `HASH.lock` | held shared by whoever uses the model, alone by whoever fetches or removes it; its time is that of the last use |
//! | `lock`      | held while room is made                                                      |
//!
//! Locks are the system's: they are given up when a process dies, however it does. Nothing else in
//! the folder is ever touched.

use longtake_common::Hash;
use longtake_common::model::{Hashes, Manifest, ModelError};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Size unless the user says otherwise: seven models of the largest kind there is.
pub const CACHE_BYTES_DEFAULT: u64 = 200 << 30;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Reading or writing failed.
    #[error("cannot {action} {path}: {source}; choose another folder with --model-cache")]
    Io {
        /// `make`, `lock`, `read`, `write` or `remove`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The model alone is too large.
    #[error(
        "the model has {need_bytes} bytes, more than the {max_bytes} that the cache {folder} may hold: raise --model-cache-max"
    )]
    TooLarge {
        /// The cache.
        folder: PathBuf,
        /// Of the model.
        need_bytes: u64,
        /// Of the cache.
        max_bytes: u64,
    },
    /// What is there is in use.
    #[error(
        "there is no room for a model of {need_bytes} bytes in the cache {folder}: {used_bytes} of {max_bytes} bytes hold models that are in use; raise --model-cache-max"
    )]
    Full {
        /// The cache.
        folder: PathBuf,
        /// Of the model.
        need_bytes: u64,
        /// That cannot be removed.
        used_bytes: u64,
        /// Of the cache.
        max_bytes: u64,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::Io {
        action,
        path,
        source,
    }
}

/// Keeps a model from being removed, or everybody else from touching it, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    _lock: File,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    max_bytes: u64,
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// With others.
    Shared,
    /// Alone.
    Alone,
}

impl Cache {
    /// A cache in `folder`, which is made when it is needed.
    pub fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes }
    }

    /// Where a model is when it is complete.
    pub fn place(&self, hash: Hash) -> PathBuf {
        self.folder.join(hash.to_string())
    }

    /// Where it is until then.
    pub fn part(&self, hash: Hash) -> PathBuf {
        self.named(hash, "part")
    }

    fn named(&self, hash: Hash, ending: &str) -> PathBuf {
        self.folder.join(format!("{hash}.{ending}"))
    }

    /// Whether it is there as a whole.
    pub fn has(&self, hash: Hash) -> bool {
        self.place(hash).is_dir() && self.named(hash, "json").is_file()
    }

    /// The models that are there as a whole.
    pub fn complete(&self) -> BTreeSet<Hash> {
        let all = self.hashes().unwrap_or_default();
        all.into_iter().filter(|hash| self.has(*hash)).collect()
    }

    /// Everything of which there is anything but a lock.
    fn hashes(&self) -> io::Result<BTreeSet<Hash>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        let mut hashes = BTreeSet::new();
        for entry in entries {
            let name = entry?.file_name();
            let (stem, ending) = match name.to_str() {
                Some(name) => name.split_once('.').unwrap_or((name, "")),
                None => continue,
            };
            if matches!(ending, "" | "part" | "json")
                && let Ok(hash) = stem.parse()
            {
                hashes.insert(hash);
            }
        }
        Ok(hashes)
    }

    /// Takes a model's lock; `None` when it is held otherwise. Notes that it was used now.
    pub fn hold(&self, hash: Hash, hold: Hold) -> Result<Option<Lease>, CacheError> {
        let lease = self.try_hold(hash, hold)?;
        if let Some(lease) = &lease {
            // On a file system that keeps no such times, the order of removal is another.
            let _ = lease._lock.set_modified(SystemTime::now());
        }
        Ok(lease)
    }

    fn try_hold(&self, hash: Hash, hold: Hold) -> Result<Option<Lease>, CacheError> {
        let path = self.named(hash, "lock");
        let file = self.open_lock(&path)?;
        let held = match hold {
            Hold::Shared => file.try_lock_shared(),
            Hold::Alone => file.try_lock(),
        };
        match held {
            Ok(()) => Ok(Some(Lease { _lock: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    fn open_lock(&self, path: &Path) -> Result<File, CacheError> {
        fs::create_dir_all(&self.folder).map_err(failed("make", &self.folder))?;
        let opened = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path);
        opened.map_err(failed("write", path))
    }

    /// The list of files of a model, for which room was made.
    pub fn manifest(&self, hash: Hash) -> Option<Manifest> {
        let json = fs::read(self.named(hash, "json")).ok()?;
        Manifest::parse(&json)
            .ok()
            .filter(|list| list.hash() == hash)
    }

    /// Makes room for a model by removing those that were not used for longest, but none in use.
    /// The caller holds the model's lock alone. Returns the folder to fetch it into.
    pub fn make_room(&self, manifest: &Manifest) -> Result<PathBuf, CacheError> {
        let (hash, need_bytes) = (manifest.hash(), manifest.bytes());
        let (folder, max_bytes) = (self.folder.clone(), self.max_bytes);
        if need_bytes > max_bytes {
            return Err(CacheError::TooLarge {
                folder,
                need_bytes,
                max_bytes,
            });
        }
        let path = self.folder.join("lock");
        let room = self.open_lock(&path)?;
        room.lock().map_err(failed("lock", &path))?;
        let mut others = self.others(hash)?;
        let mut used_bytes: u64 = others.iter().map(|other| other.bytes).sum();
        others.sort_by_key(|other| (other.used, other.hash));
        for other in others {
            if used_bytes + need_bytes <= max_bytes {
                break;
            }
            if let Some(_lease) = self.try_hold(other.hash, Hold::Alone)? {
                self.discard(other.hash)?;
                tracing::info!(model = %other.hash, bytes = other.bytes, "removed from the cache");
                used_bytes -= other.bytes;
            }
        }
        if used_bytes + need_bytes > max_bytes {
            return Err(CacheError::Full {
                folder,
                need_bytes,
                used_bytes,
                max_bytes,
            });
        }
        let part = self.part(hash);
        make_folder(&part)?;
        // From here on others count it.
        let list = self.named(hash, "json");
        let beside = self.named(hash, "json.tmp");
        fs::write(&beside, manifest.to_json())
            .and_then(|()| fs::rename(&beside, &list))
            .map_err(failed("write", &list))?;
        Ok(part)
    }

    fn others(&self, hash: Hash) -> Result<Vec<Other>, CacheError> {
        let hashes = self.hashes().map_err(failed("read", &self.folder))?;
        let other = |hash: Hash| {
            let lock = fs::metadata(self.named(hash, "lock"));
            let used = lock.and_then(|metadata| metadata.modified());
            Other {
                hash,
                // Without a list it is not known how much there is: it goes first.
                bytes: self.manifest(hash).map_or(0, |list| list.bytes()),
                used: used.unwrap_or(SystemTime::UNIX_EPOCH),
            }
        };
        let others = hashes.into_iter().filter(|other| *other != hash);
        Ok(others.map(other).collect())
    }

    /// Removes a model. The caller holds its lock alone.
    pub fn discard(&self, hash: Hash) -> Result<(), CacheError> {
        let (place, part) = (self.place(hash), self.part(hash));
        // Not complete any more, in one step, before anything of it goes.
        if place.exists() {
            remove_folder(&part)?;
            fs::rename(&place, &part).map_err(failed("remove", &place))?;
        }
        remove_folder(&part)?;
        let list = self.named(hash, "json");
        match fs::remove_file(&list) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &list)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a fetched model one that is complete. Its files are on the disk.
    pub fn publish(&self, hash: Hash) -> Result<(), CacheError> {
        let (part, place) = (self.part(hash), self.place(hash));
        let synced = File::open(&part).and_then(|folder| folder.sync_all());
        synced
            .and_then(|()| fs::rename(&part, &place))
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .map_err(failed("write", &place))
    }

    /// Whether every file is as its list says; what was found so before and has not changed since is
    /// not read again.
    pub fn is_sound(&self, manifest: &Manifest, hashes: &Hashes) -> Result<bool, ModelError> {
        let folder = self.place(manifest.hash());
        for file in manifest.files() {
            match hashes.of_file(&folder.join(&file.path)) {
                Ok(found) if found.hash == file.hash && found.chunks == file.chunks => {}
                Ok(_) => return Ok(false),
                Err(ModelError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A model beside the one that needs room.
struct Other {
    hash: Hash,
    bytes: u64,
    used: SystemTime,
}

/// Makes a folder, or finds it; a link in its place is an error.
pub fn make_folder(path: &Path) -> Result<(), CacheError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).map_err(failed("read", path))?;
            if found.is_dir() {
                return Ok(());
            }
            let source = io::Error::other("something that is no folder is in its place");
            Err(failed("make", path)(source))
        }
        made => made.map_err(failed("make", path)),
    }
}

fn remove_folder(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn manifest(folder: &Path, name: &str, bytes: usize) -> Manifest {
        let path = folder.join(format!("{name}.safetensors"));
        fs::write(&path, name.repeat(bytes / name.len())).expect("written");
        Manifest::of(&path, &Hashes::forgetful()).expect("a model")
    }

    /// Puts a model of 100 bytes into the cache, last used so many seconds ago.
    fn put(cache: &Cache, folder: &Path, name: &str, age_s: u64) -> Hash {
        let manifest = manifest(folder, name, 100);
        let hash = manifest.hash();
        let lease = cache
            .hold(hash, Hold::Alone)
            .expect("a lock")
            .expect("free");
        let part = cache.make_room(&manifest).expect("room");
        let file = folder.join(format!("{name}.safetensors"));
        fs::copy(file, part.join("model.safetensors")).expect("copied");
        cache.publish(hash).expect("published");
        let used = SystemTime::now() - Duration::from_secs(age_s);
        lease._lock.set_modified(used).expect("a time");
        hash
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("cache"), 350);
        let a = put(&cache, folder.path(), "a", 20);
        let b = put(&cache, folder.path(), "b", 30);
        let c = put(&cache, folder.path(), "c", 10);
        assert_eq!(cache.complete(), [a, b, c].into());
        let d = put(&cache, folder.path(), "d", 0);
        assert_eq!(cache.complete(), [a, c, d].into());
        // Used again: now it is the turn of another one.
        drop(cache.hold(a, Hold::Shared).expect("a lock"));
        let e = put(&cache, folder.path(), "e", 0);
        assert_eq!(cache.complete(), [a, d, e].into());
    }

    #[test]
    fn what_is_in_use_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("cache"), 250);
        let a = put(&cache, folder.path(), "a", 20);
        let b = put(&cache, folder.path(), "b", 10);
        let used = cache.hold(a, Hold::Shared).expect("a lock");
        assert!(used.is_some());
        let c = put(&cache, folder.path(), "c", 0);
        assert_eq!(cache.complete(), [a, c].into(), "{b}");
        let _also = cache.hold(c, Hold::Shared).expect("a lock").expect("free");
        let d = manifest(folder.path(), "d", 100);
        let error = cache.make_room(&d).expect_err("full").to_string();
        assert!(
            error.contains("in use") && error.contains("--model-cache-max"),
            "{error}"
        );
        let large = manifest(folder.path(), "l", 300);
        let error = cache.make_room(&large).expect_err("too large").to_string();
        assert!(error.contains("300 bytes"), "{error}");
        assert_eq!(cache.complete(), [a, c].into());
    }

    #[test]
    fn one_fetches_while_others_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("cache"), 250);
        let hash = Hash::of(b"m");
        let alone = cache
            .hold(hash, Hold::Alone)
            .expect("a lock")
            .expect("free");
        for hold in [Hold::Alone, Hold::Shared] {
            assert!(cache.hold(hash, hold).expect("looked").is_none());
        }
        drop(alone);
        let first = cache.hold(hash, Hold::Shared).expect("a lock");
        let second = cache.hold(hash, Hold::Shared).expect("a lock");
        assert!(first.is_some() && second.is_some());
        assert!(cache.hold(hash, Hold::Alone).expect("looked").is_none());
    }

    #[test]
    fn a_changed_byte_is_noticed_and_foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("cache"), 350);
        let hash = put(&cache, folder.path(), "a", 0);
        let list = cache.manifest(hash).expect("a list");
        let sound = || cache.is_sound(&list, &Hashes::forgetful()).expect("read");
        assert!(sound());
        let file = cache.place(hash).join("model.safetensors");
        fs::write(&file, "b".repeat(100)).expect("written");
        assert!(!sound());
        fs::remove_file(&file).expect("removed");
        assert!(!sound());
        let foreign = folder.path().join("cache/notes.txt");
        fs::write(&foreign, "mine").expect("written");
        cache.discard(hash).expect("removed");
        assert!(foreign.exists() && cache.complete().is_empty());
    }
}
