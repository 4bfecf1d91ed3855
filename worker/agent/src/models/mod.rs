//! The models of this worker: those it was started with, those in its cache, and fetching those
//! that are stored.

mod cache;
mod fetch;
mod loaded;

pub use cache::CACHE_BYTES_DEFAULT;
pub use loaded::{ModelCache, files_of};

use crate::artifacts::Artifacts;
use crate::control::Control;
use crate::error::{AgentError, TaskError, story};
use cache::{Cache, Hold, Lease};
use fetch::{FetchError, Tally};
use longtake_common::Hash;
use longtake_common::model::{
    Hashes, Manifest, cache_folder, find_model, hash_model, hashes_of, shipped_models,
};
use longtake_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a model that another process fetches is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Which models a worker has, and where it keeps those that it fetches.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// Models on this machine, besides those under `configs/models`: names or paths.
    pub local: Vec<String>,
    /// Folder for fetched models; `models` in the user's cache folder when there is none.
    pub cache: Option<PathBuf>,
    /// Bytes that it may hold.
    pub cache_max_bytes: u64,
    /// Look for a model under the path that a job names, too: only for whoever started this worker.
    pub takes_paths: bool,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            local: Vec::new(),
            cache: None,
            cache_max_bytes: CACHE_BYTES_DEFAULT,
            takes_paths: false,
        }
    }
}

/// A model on this machine. It stays as long as this is held.
#[derive(Debug)]
pub struct Found {
    /// What is opened to load it.
    pub path: PathBuf,
    _lease: Option<Lease>,
}

/// A part of a model: what a job calls it, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A name or a path.
    pub location: &'a str,
    /// The hash of its files.
    pub hash: Hash,
}

/// Something to tell the coordinator.
#[derive(Default)]
struct News {
    /// Raised whenever the rest changes.
    version: u64,
    cached: BTreeSet<Hash>,
    fetching: Option<v1::Fetching>,
    /// What is wrong with models, and as of which version that is known.
    faults: BTreeMap<Hash, (u64, v1::ModelFault)>,
}

/// What this worker has. Shared by the lane, which asks for models, and the connection, which tells
/// the coordinator.
pub struct Shelf {
    local: Mutex<BTreeMap<Hash, PathBuf>>,
    cache: Option<Cache>,
    takes_paths: bool,
    news: Mutex<News>,
}

/// Nothing that a panic leaves half done matters here.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    /// Looks at the models that are here, and hashes what was not hashed before.
    pub fn open(settings: ModelSettings) -> Result<Self, AgentError> {
        let mut local = BTreeMap::new();
        for path in shipped_models() {
            match hash_model(&path) {
                Ok(hash) => drop(local.insert(hash, path)),
                Err(error) => tracing::info!(%error, "not a model"),
            }
        }
        for name in &settings.local {
            let unusable = |error: &dyn std::error::Error| AgentError::Model(story(error));
            let path = find_model(name).map_err(|error| unusable(&error))?;
            for hash in hashes_of(&path).map_err(|error| unusable(&error))? {
                tracing::info!(model = %hash, path = %path.display(), "has");
                local.insert(hash, path.clone());
            }
        }
        let folder = settings
            .cache
            .or_else(|| Some(cache_folder()?.join("models")));
        let cache = folder.map(|folder| Cache::new(folder, settings.cache_max_bytes));
        let news = News {
            cached: cache.as_ref().map(Cache::complete).unwrap_or_default(),
            ..News::default()
        };
        Ok(Self {
            local: Mutex::new(local),
            cache,
            takes_paths: settings.takes_paths,
            news: Mutex::new(news),
        })
    }

    /// Whether it looks under the paths of jobs.
    pub fn takes_paths(&self) -> bool {
        self.takes_paths
    }

    /// Hashes of the models that need not be fetched.
    pub fn held(&self) -> Vec<String> {
        let cached = locked(&self.news).cached.clone();
        let local = locked(&self.local);
        let held: BTreeSet<&Hash> = local.keys().chain(&cached).collect();
        held.into_iter().map(Hash::to_string).collect()
    }

    /// What the coordinator does not know yet that knows everything up to `version`, which is
    /// brought up to date.
    pub fn news(&self, version: &mut u64) -> Vec<v1::worker_message::Message> {
        use v1::worker_message::Message;
        let (fetching, faults) = {
            let news = locked(&self.news);
            if news.version == *version {
                return Vec::new();
            }
            let fresh = news.faults.values().filter(|(since, _)| since > version);
            let faults: Vec<_> = fresh.map(|(_, fault)| fault.clone()).collect();
            *version = news.version;
            (news.fetching.clone(), faults)
        };
        let models = self.held();
        let held = Message::Models(v1::HeldModels { models, fetching });
        let faults = faults.into_iter().map(Message::ModelFault);
        faults.chain([held]).collect()
    }

    fn note(&self, change: impl FnOnce(&mut News)) {
        let mut news = locked(&self.news);
        change(&mut news);
        news.version += 1;
    }

    /// A model's bytes are not to be rendered with.
    pub fn note_fault(&self, hash: Hash, error: &str, damaged: bool) {
        let fault = v1::ModelFault {
            model: hash.to_string(),
            error: error.to_owned(),
            damaged,
        };
        self.note(|news| {
            let since = news.version + 1;
            news.faults.insert(hash, (since, fault));
        });
    }

    /// A model has come as it should be, or could be loaded.
    pub fn note_sound(&self, hash: Hash) {
        locked(&self.news).faults.remove(&hash);
    }

    /// The model that `wanted` names, with exactly the bytes that it names: from where it is on this
    /// machine, else from the store.
    pub fn find(
        &self,
        wanted: Wanted<'_>,
        artifacts: &Artifacts,
        control: &Control,
    ) -> Result<Found, TaskError> {
        if let Some(path) = self.find_local(wanted.hash) {
            let _lease = None;
            return Ok(Found { path, _lease });
        }
        let mut elsewhere = None;
        let is_cached = || {
            let cache = self.cache.as_ref();
            cache.is_some_and(|cache| cache.has(wanted.hash))
        };
        if self.takes_paths && !is_cached() {
            match find_as_told(wanted) {
                Ok(path) => return Ok(Found { path, _lease: None }),
                Err(reason) => elsewhere = Some(reason),
            }
        }
        let found = self.find_cached(wanted, artifacts, control);
        if let Some(cache) = &self.cache {
            let cached = cache.complete();
            self.note(|news| (news.cached, news.fetching) = (cached, None));
        }
        found.map_err(|error| match (error, elsewhere) {
            // Not stored: what was wrong here is all there is to say.
            (Obstacle::NotStored(_), Some(reason)) => TaskError::Retryable(reason),
            (Obstacle::NotStored(reason), None) => TaskError::Retryable(reason),
            (Obstacle::Task(error), _) => error,
        })
    }

    fn find_local(&self, hash: Hash) -> Option<PathBuf> {
        let path = locked(&self.local).get(&hash).cloned()?;
        if hashes_of(&path).is_ok_and(|found| found.contains(&hash)) {
            return Some(path);
        }
        tracing::warn!(model = %hash, path = %path.display(), "its files are others than before");
        locked(&self.local).remove(&hash);
        self.note(|_| {});
        None
    }

    fn find_cached(
        &self,
        wanted: Wanted<'_>,
        artifacts: &Artifacts,
        control: &Control,
    ) -> Result<Found, Obstacle> {
        let Some(cache) = &self.cache else {
            let reason = "there is no folder for fetched models: give --model-cache";
            return Err(Obstacle::NotStored(reason.to_owned()));
        };
        let hash = wanted.hash;
        let mut fetched = false;
        loop {
            if control.is_cancelled() {
                return Err(TaskError::Cancelled.into());
            }
            if let Some(lease) = cache
                .hold(hash, Hold::Shared)
                .map_err(TaskError::retryable)?
                && cache.has(hash)
                && let Some(manifest) = cache.manifest(hash)
            {
                let is_sound = fetched
                    || cache
                        .is_sound(&manifest, &Hashes::usual())
                        .map_err(TaskError::retryable)?;
                if is_sound {
                    let path = manifest.entry(&cache.place(hash));
                    let _lease = Some(lease);
                    return Ok(Found { path, _lease });
                }
            }
            // Whoever has it alone is fetching it.
            let alone = cache
                .hold(hash, Hold::Alone)
                .map_err(TaskError::retryable)?;
            if alone.is_none() {
                std::thread::sleep(LOOK);
                continue;
            }
            if cache.has(hash) && !self.is_damaged(cache, hash)? {
                continue; // fetched by another one since
            }
            self.fetch(cache, wanted, artifacts, control)?;
            fetched = true;
        }
    }

    /// Whether a cached model has other bytes than it should; it is removed then.
    fn is_damaged(&self, cache: &Cache, hash: Hash) -> Result<bool, TaskError> {
        if let Some(manifest) = cache.manifest(hash)
            && cache
                .is_sound(&manifest, &Hashes::usual())
                .map_err(TaskError::retryable)?
        {
            return Ok(false);
        }
        tracing::warn!(model = %hash, "damaged in the cache: fetching it again");
        cache.discard(hash).map_err(TaskError::retryable)?;
        Ok(true)
    }

    fn fetch(
        &self,
        cache: &Cache,
        wanted: Wanted<'_>,
        artifacts: &Artifacts,
        control: &Control,
    ) -> Result<(), Obstacle> {
        let hash = wanted.hash;
        let manifest = match cache.manifest(hash) {
            Some(manifest) => manifest,
            None => self.stored_manifest(wanted, artifacts)?,
        };
        let started = Instant::now();
        let part = cache.make_room(&manifest).map_err(TaskError::retryable)?;
        let total_bytes = manifest.bytes();
        tracing::info!(model = %hash, total_bytes, "fetching");
        let mut see = |tally: Tally| {
            let fetching = v1::Fetching {
                model: hash.to_string(),
                done_bytes: tally.kept_bytes + tally.fetched_bytes,
                total_bytes,
            };
            self.note(|news| news.fetching = Some(fetching));
        };
        let tally = match fetch::fetch(&manifest, &part, artifacts, control, &mut see) {
            Ok(tally) => tally,
            Err(FetchError::Task(error)) => return Err(error.into()),
            Err(FetchError::Damaged(reason)) => return Err(self.damaged(wanted, &reason).into()),
        };
        cache.publish(hash).map_err(TaskError::retryable)?;
        self.note_sound(hash);
        let Tally {
            kept_bytes,
            fetched_bytes,
        } = tally;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(model = %hash, fetched_bytes, kept_bytes, seconds, "fetched");
        Ok(())
    }

    fn stored_manifest(
        &self,
        wanted: Wanted<'_>,
        artifacts: &Artifacts,
    ) -> Result<Manifest, Obstacle> {
        use longtake_common::artifact::ArtifactError;
        let json = match artifacts.model_list(wanted.hash) {
            Ok(json) => json,
            Err(ArtifactError::Missing { .. }) => {
                return Err(Obstacle::NotStored(format!(
                    "this worker has no model '{}' ({}), and it is not stored: 'longtake models add PATH' stores it",
                    wanted.location,
                    wanted.hash.short()
                )));
            }
            Err(ArtifactError::Mismatch { .. }) => {
                let reason = "its list of files is damaged in the artifact store";
                return Err(self.damaged(wanted, reason).into());
            }
            Err(error) => return Err(TaskError::retryable(error).into()),
        };
        Manifest::parse(&json).map_err(|error| {
            let reason = error.to_string();
            self.damaged(wanted, &reason).into()
        })
    }

    fn damaged(&self, wanted: Wanted<'_>, reason: &str) -> TaskError {
        self.note_fault(wanted.hash, reason, true);
        TaskError::Retryable(format!(
            "the model '{}' cannot be fetched: {reason}; 'longtake models add' with its files mends it",
            wanted.location
        ))
    }
}

/// Why a model is not to be had.
enum Obstacle {
    /// The store does not have it.
    NotStored(String),
    /// Anything else.
    Task(TaskError),
}

impl From<TaskError> for Obstacle {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// The model under the name or path that the job has for it, if it has the right bytes.
fn find_as_told(wanted: Wanted<'_>) -> Result<PathBuf, String> {
    let path = find_model(wanted.location).map_err(|error| story(&error))?;
    let hashes = hashes_of(&path).map_err(|error| story(&error))?;
    if hashes.contains(&wanted.hash) {
        return Ok(path);
    }
    Err(format!(
        "the model at {} has hash {}, but the job was made for {}; give this worker the same files, \
         or submit the job again",
        path.display(),
        hashes[0].short(),
        wanted.hash.short()
    ))
}
