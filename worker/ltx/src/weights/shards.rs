//! Weights in several files: listed by an index, or counted by their names.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const ENDING: &str = ".safetensors";

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The weight files of folder `folder`: `<stem>.safetensors`, those that
/// `<stem>.safetensors.index.json` lists, or `<stem>-00001-of-00002.safetensors` and the others of its
/// count.
pub(crate) fn weight_files(folder: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    let single = folder.join(format!("{stem}{ENDING}"));
    let index = folder.join(format!("{stem}{ENDING}.index.json"));
    if single.is_file() {
        return Ok(vec![single]);
    }
    if index.is_file() {
        return shards(&index);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut counted: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    counted.sort();
    counted.retain(|path| Counted::of(path).is_some_and(|counted| counted.stem == stem));
    Ok(counted_set(&counted)?.unwrap_or_else(|| vec![single]))
}

/// The files that index `index` lists, all in its folder, and all there.
pub(crate) fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let bytes = std::fs::read(index).map_err(|source| Error::Read {
        path: index.to_owned(),
        source,
    })?;
    let shards: ShardIndex =
        serde_json::from_slice(&bytes).map_err(|source| Error::ConfigSyntax {
            path: index.to_owned(),
            source,
        })?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    if names.is_empty() || names.iter().any(|name| name.contains(['/', '\\'])) {
        let message = "the index must list files of its own folder".to_owned();
        return Err(Error::WeightFile {
            path: index.to_owned(),
            message,
        });
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    complete(index, names.iter().map(|name| folder.join(name)).collect())
}

/// All files of the set that `files` are counted as, where they are of one; none when they are not.
///
/// # Errors
/// When some of the set are not there.
pub(crate) fn counted_set(files: &[PathBuf]) -> Result<Option<Vec<PathBuf>>> {
    let counted: Option<Vec<Counted<'_>>> = files.iter().map(|path| Counted::of(path)).collect();
    let Some((first, others)) = counted.as_deref().and_then(<[_]>::split_first) else {
        return Ok(None);
    };
    let is_other = |other: &Counted<'_>| (other.stem, other.count) != (first.stem, first.count);
    if others.iter().any(is_other) {
        return Ok(None);
    }
    let Counted { stem, count, width } = *first;
    let folder = files[0].parent().unwrap_or(Path::new(""));
    let name = |i| format!("{stem}-{i:0width$}-of-{count:0width$}{ENDING}");
    let set = (1..=count).map(|i| folder.join(name(i))).collect();
    complete(&folder.join(name(1)), set).map(Some)
}

/// What the name of a file of several says.
struct Counted<'a> {
    stem: &'a str,
    count: usize,
    /// Digits.
    width: usize,
}

impl<'a> Counted<'a> {
    fn of(path: &'a Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?;
        let (before, count) = name.rsplit_once("-of-")?;
        let (stem, number) = before.rsplit_once('-')?;
        let width = count.len();
        let (number, count): (usize, usize) = (number.parse().ok()?, count.parse().ok()?);
        // What counts thousands of files is no set of weights.
        ((1..=count).contains(&number) && count <= 9999).then_some(Self { stem, count, width })
    }
}

/// `files`, which are all there.
fn complete(path: &Path, files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let (present, missing): (Vec<PathBuf>, Vec<PathBuf>) =
        files.into_iter().partition(|file| file.is_file());
    if missing.is_empty() {
        return Ok(present);
    }
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    Err(Error::Shards {
        path: path.to_owned(),
        missing: missing.iter().map(name).collect(),
        present,
    })
}
