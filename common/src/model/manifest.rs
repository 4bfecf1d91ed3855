//! What a model consists of, file by file. The hash of this list is the model's name.

use super::ModelError;
use super::hashes::Hashes;
use crate::ids::Hash;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Bytes of a chunk: what is stored, sent and fetched at a time. The last one of a file is shorter.
pub const CHUNK_BYTES: u64 = 8 << 20;
/// Largest list that is read, in bytes: a model of 300 GB has one of 2.5 MB.
pub const MANIFEST_BYTES_MAX: usize = 3 << 20;
/// Form of the list. Another form gives all models other names.
const VERSION: u32 = 1;
/// Files of one model.
const FILES_MAX: usize = 4096;
/// Longest path of a file, in bytes.
const PATH_BYTES_MAX: usize = 512;
/// Longest part of a path, in bytes: what file systems take, with room for an ending of ours.
const PART_BYTES_MAX: usize = 200;

/// Endings of the files that make up a model; READMEs and training scripts do not.
const ENDINGS: [&str; 3] = ["safetensors", "json", "model"];
const WEIGHTS: &str = "safetensors";
/// Folder beside the weights that tells how they were made.
const TRAINING_FOLDER: &str = "train";
/// The file that makes a folder one of Diffusers.
const DIFFUSERS_INDEX: &str = "model_index.json";
/// What a model of one file is called in its list, whatever its owner calls it.
const SINGLE_FILE: &str = "model.safetensors";
/// What the list of the files of a model in several is called, whatever its owner calls it.
const SHARD_INDEX: &str = "model.safetensors.index.json";
/// The file of a set that says how it is sampled.
pub const PIPELINE_FILE: &str = "pipeline.yaml";
/// Models that a set consists of, at most.
const PARTS_MAX: usize = 16;

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where it is below the model's folder, with `/` between the parts.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of the whole file.
    pub hash: Hash,
    /// BLAKE3 of each [`CHUNK_BYTES`] of it.
    pub chunks: Vec<Hash>,
}

/// A model that a set consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it is there for.
    pub role: Role,
    /// Name of its file or folder, by which a pipeline file names it.
    pub name: String,
    /// Its own list's hash.
    pub hash: Hash,
}

/// What a part of a set is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The model itself, transformer and VAE.
    Checkpoint,
    /// The model of one pass, where that is another one.
    PassCheckpoint,
    /// T5 and its tokenizer.
    TextEncoder,
    /// The latent upscaler between two passes.
    Upscaler,
}

impl Role {
    /// As people read it.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::PassCheckpoint => "checkpoint of a pass",
            Self::TextEncoder => "text encoder",
            Self::Upscaler => "upscaler",
        }
    }
}

/// The files of a model, by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// The file that is opened to load the model; the folder itself when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    files: Vec<FileEntry>,
    /// What a set consists of: models with lists of their own. Its files are [`PIPELINE_FILE`] or
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
}

/// A list of files that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not a list.
    #[error("the list of the model's files cannot be read: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Not an index of weights.
    #[error("the index of its files cannot be read: {0}")]
    Index(serde_json::Error),
    /// Against the rules.
    #[error("the list of the model's files cannot be used: {0}")]
    Rule(String),
}

impl Manifest {
    /// Lists the model at `path`, a Diffusers folder, a file of weights, or the index of several, and
    /// hashes what `hashes` does not know yet.
    ///
    /// # Errors
    /// When there is no model, or a file cannot be read.
    pub fn of(path: &Path, hashes: &Hashes) -> Result<Self, ModelError> {
        let (files, entry) = if path.is_dir() {
            let mut files = Vec::new();
            collect(path, "", &mut files)?;
            (files, None)
        } else if is_shard_index(path) {
            (shards(path)?, Some(SHARD_INDEX.to_owned()))
        } else {
            let single = SINGLE_FILE.to_owned();
            (vec![(single.clone(), path.to_owned())], Some(single))
        };
        let is_weights =
            path.extension().is_some_and(|ending| ending == WEIGHTS) || is_shard_index(path);
        let has_weights = |(name, _): &(String, PathBuf)| has_ending(Path::new(name), &[WEIGHTS]);
        if (path.is_file() && !is_weights) || !files.iter().any(has_weights) {
            return Err(ModelError::Empty(path.to_owned()));
        }
        Self::listing(path, files, entry, hashes)
    }

    /// Lists a set: models that are stored on their own and the pipeline file, if there is one, that
    /// names them.
    pub fn of_set(
        parts: Vec<Part>,
        pipeline: Option<&Path>,
        hashes: &Hashes,
    ) -> Result<Self, ModelError> {
        let file = pipeline.map(|path| (PIPELINE_FILE.to_owned(), path.to_owned()));
        let place = pipeline.unwrap_or(Path::new(PIPELINE_FILE));
        let mut manifest = Self::hashed(file.into_iter().collect(), None, hashes)?;
        manifest.parts = parts;
        manifest.checked(place)
    }

    /// Lists and hashes `files`, by path; `place` is for messages.
    pub(super) fn listing(
        place: &Path,
        files: Vec<(String, PathBuf)>,
        entry: Option<String>,
        hashes: &Hashes,
    ) -> Result<Self, ModelError> {
        Self::hashed(files, entry, hashes)?.checked(place)
    }

    fn hashed(
        mut files: Vec<(String, PathBuf)>,
        entry: Option<String>,
        hashes: &Hashes,
    ) -> Result<Self, ModelError> {
        files.sort();
        let entries = files.into_iter().map(|(name, file)| {
            let found = hashes.of_file(&file)?;
            Ok(FileEntry {
                path: name,
                bytes: found.bytes,
                hash: found.hash,
                chunks: found.chunks,
            })
        });
        Ok(Self {
            version: VERSION,
            entry,
            files: entries.collect::<Result<_, ModelError>>()?,
            parts: Vec::new(),
        })
    }

    fn checked(self, place: &Path) -> Result<Self, ModelError> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(source) => Err(ModelError::List {
                path: place.to_owned(),
                source,
            }),
        }
    }

    /// Reads a list that somebody else made. Nothing in it can name a place outside the model's
    /// folder.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        if json.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Rule(format!(
                "it has {} bytes, more than {MANIFEST_BYTES_MAX}",
                json.len()
            )));
        }
        let manifest: Self = serde_json::from_slice(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The list as it is stored; [`Self::hash`] is over these bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a list of files is plain data")
    }

    /// The model's name.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.to_json())
    }

    /// The files, by path.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// The models that a set consists of; none of a model.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The file of that path.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Length of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Every chunk, once.
    pub fn chunks(&self) -> BTreeSet<Hash> {
        let chunks = self.files.iter().flat_map(|file| &file.chunks);
        chunks.copied().collect()
    }

    /// Where the file `path` of this list lies on the disk of whoever has the model at `root`.
    pub fn place(&self, root: &Path, path: &str) -> PathBuf {
        match &self.entry {
            Some(entry) if entry == path && !root.is_dir() => root.to_owned(),
            // Beside the index.
            Some(_) if !root.is_dir() => root.with_file_name(path),
            _ => root.join(path),
        }
    }

    /// What is opened to load the model that was fetched into `folder`.
    pub fn entry(&self, folder: &Path) -> PathBuf {
        match &self.entry {
            Some(entry) => folder.join(entry),
            None => folder.to_owned(),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let broken = |rule: String| Err(ManifestError::Rule(rule));
        if self.version != VERSION {
            return broken(format!("it has form {}, not {VERSION}", self.version));
        }
        let is_set = !self.parts.is_empty();
        if (self.files.is_empty() && !is_set) || self.files.len() > FILES_MAX {
            return broken(format!("it names {} files", self.files.len()));
        }
        self.check_parts()?;
        for pair in self.files.windows(2) {
            if pair[0].path >= pair[1].path {
                return broken(format!("'{}' is out of order", shown(&pair[1].path)));
            }
        }
        let mut total = 0u64;
        for file in &self.files {
            check_path(&file.path)?;
            let count = file.bytes.div_ceil(CHUNK_BYTES);
            if file.chunks.len() as u64 != count {
                let path = shown(&file.path);
                return broken(format!("'{path}' has {} chunks", file.chunks.len()));
            }
            total = match total.checked_add(file.bytes) {
                Some(total) => total,
                None => return broken("its files are too long".to_owned()),
            };
        }
        self.check_folders()?;
        match &self.entry {
            Some(entry) if self.file(entry).is_none() => {
                broken(format!("it does not list '{}'", shown(entry)))
            }
            _ => Ok(()),
        }
    }

    /// A set has one checkpoint, and no name in it stands for two things.
    fn check_parts(&self) -> Result<(), ManifestError> {
        let broken = |rule: String| Err(ManifestError::Rule(rule));
        if self.parts.is_empty() {
            return Ok(());
        }
        if self.parts.len() > PARTS_MAX {
            return broken(format!("it has {} parts", self.parts.len()));
        }
        if let Some(file) = self.files.iter().find(|file| file.path != PIPELINE_FILE) {
            return broken(format!("a set has no file '{}'", shown(&file.path)));
        }
        for role in [Role::Checkpoint, Role::TextEncoder] {
            let count = self.parts.iter().filter(|part| part.role == role).count();
            if count > 1 || (count == 0 && role == Role::Checkpoint) {
                return broken(format!(
                    "it has {count} parts that are its {}",
                    role.shown()
                ));
            }
        }
        for (index, part) in self.parts.iter().enumerate() {
            check_path(&part.name)?;
            let before = &self.parts[..index];
            if before
                .iter()
                .any(|other| other.name == part.name && other.hash != part.hash)
            {
                let name = shown(&part.name);
                return broken(format!("two of its parts are called '{name}': rename one"));
            }
        }
        Ok(())
    }

    /// No file is in the way of another one's folder.
    fn check_folders(&self) -> Result<(), ManifestError> {
        let files: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        let folders = |path: &'_ str| {
            let ends = path.match_indices('/').map(|(end, _)| end);
            ends.collect::<Vec<_>>()
        };
        for path in &files {
            if let Some(end) = folders(path)
                .iter()
                .find(|end| files.contains(&path[..**end]))
            {
                return Err(ManifestError::Rule(format!(
                    "'{}' is a file and a folder",
                    shown(&path[..*end])
                )));
            }
        }
        Ok(())
    }
}

/// A text of others, fit to be printed.
fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    start.escape_debug().to_string()
}

/// Paths go down only: no part of one is empty, hidden, or means the folder above.
fn check_path(path: &str) -> Result<(), ManifestError> {
    let plain = |c: char| !c.is_control() && !matches!(c, '\\' | ':');
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.len() <= PART_BYTES_MAX
            && part.chars().all(plain)
    };
    if path.len() <= PATH_BYTES_MAX && path.split('/').all(good) {
        return Ok(());
    }
    Err(ManifestError::Rule(format!(
        "'{}' is no path of a file below the model's folder",
        shown(path)
    )))
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| endings.contains(&ending))
}

/// Whether `path` is the index of weights in several files, told by its name.
pub(super) fn is_shard_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && name.ends_with(".safetensors.index.json")
}

/// An index, as far as it is read here.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The index at `path` and the files that it names, which lie beside it.
pub(super) fn shards(path: &Path) -> Result<Vec<(String, PathBuf)>, ModelError> {
    let bytes = std::fs::read(path).map_err(|source| ModelError::Read {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |source| ModelError::List {
        path: path.to_owned(),
        source,
    };
    let index: ShardIndex =
        serde_json::from_slice(&bytes).map_err(|error| wrong(ManifestError::Index(error)))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let mut files = vec![(SHARD_INDEX.to_owned(), path.to_owned())];
    for name in names {
        check_path(&name).map_err(wrong)?;
        if name.contains('/') {
            let rule = format!("'{}' is not beside its index", shown(&name));
            return Err(wrong(ManifestError::Rule(rule)));
        }
        let place = path.with_file_name(&name);
        files.push((name, place));
    }
    Ok(files)
}

/// The model's files below `folder`. Links are followed: caches of models consist of them.
pub(super) fn collect(
    folder: &Path,
    prefix: &str,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), ModelError> {
    let failed = |source| ModelError::Read {
        path: folder.to_owned(),
        source,
    };
    // Weights beside the index of a Diffusers folder are other models that came along.
    let is_diffusers = prefix.is_empty() && folder.join(DIFFUSERS_INDEX).is_file();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| ModelError::Name(path.clone()))?;
        if name.starts_with('.') {
            continue;
        }
        let relative = format!("{prefix}{name}");
        if path.is_dir() {
            if relative != TRAINING_FOLDER {
                collect(&path, &format!("{relative}/"), files)?;
            }
        } else if has_ending(&path, &ENDINGS) && !(is_diffusers && has_ending(&path, &[WEIGHTS])) {
            files.push((relative, path));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
