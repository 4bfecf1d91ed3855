//! Finding a model and the pipeline files on this machine, and naming a model by its bytes.
//!
//! Does not look into the files: that is the engine's business.

mod hashes;
mod listed;
mod manifest;

pub use hashes::{CACHE_VARIABLE, FileHashes, Hashes, cache_folder};
pub use listed::{Listed, hash_text_encoder, hashes_of};
pub use manifest::{
    CHUNK_BYTES, FileEntry, MANIFEST_BYTES_MAX, Manifest, ManifestError, PIPELINE_FILE, Part, Role,
};

use crate::ids::Hash;
use crate::keys::similar;
use std::path::{Path, PathBuf};

/// Environment variable: a folder that has `configs/` in it.
pub const HOME_VARIABLE: &str = "LONGTAKE_HOME";

/// What can go wrong before a model's files are read for what they mean.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No such model anywhere.
    #[error(
        "no {what} '{name}'{}: looked in {}; give its path or set {HOME_VARIABLE}",
        similar.as_ref().map_or_else(String::new, |name| format!(" (did you mean '{name}'?)")),
        list(looked)
    )]
    NotFound {
        /// `model` or `pipeline configuration`.
        what: &'static str,
        /// As the user gave it.
        name: String,
        /// One that is there, and called much like it.
        similar: Option<String>,
        /// The places tried.
        looked: Vec<PathBuf>,
    },
    /// The folder has no file of a model.
    #[error("{0} is no model: give a .safetensors file, or a folder that holds some")]
    Empty(PathBuf),
    /// A file's name cannot be listed.
    #[error("cannot list the model's file {0}: its name is not UTF-8; rename it")]
    Name(PathBuf),
    /// A file was written to while it was read.
    #[error("{0} changed while it was being read: wait until it is complete")]
    Changing(PathBuf),
    /// The files cannot be listed.
    #[error("cannot use the model {path}: {source}")]
    List {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// The folder or file of the model `name`: a path, or `configs/models/NAME` under
/// `$LONGTAKE_HOME`, the current folder and every folder above the program. Absolute.
pub fn find_model(name: &str) -> Result<PathBuf, ModelError> {
    find(
        "model",
        name,
        |root| root.join("configs/models").join(name),
        &roots(),
    )
}

/// The models that came with the program: every folder `configs/models/NAME` that a bare name could
/// stand for. Absolute, the first of each name.
pub fn shipped_models() -> Vec<PathBuf> {
    let mut found = std::collections::BTreeMap::new();
    for root in roots() {
        let Ok(entries) = std::fs::read_dir(root.join("configs/models")) else {
            continue;
        };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            if let Ok(path) = entry.path().canonicalize() {
                found.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    found.into_values().collect()
}

/// The pipeline file `name`: a path, or `configs/NAME.yaml` under the same folders
/// as for [`find_model`]. Absolute.
pub fn find_config(name: &str) -> Result<PathBuf, ModelError> {
    let file = if is_yaml(name) {
        name.to_owned()
    } else {
        format!("{name}.yaml")
    };
    find(
        "pipeline configuration",
        name,
        |root| root.join("configs").join(&file),
        &roots(),
    )
}

/// Whether `name` is that of a pipeline file rather than a model.
pub fn is_yaml(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml")
}

fn roots() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = std::env::var_os(HOME_VARIABLE)
        .map(PathBuf::from)
        .into_iter()
        .collect();
    roots.extend(std::env::current_dir());
    if let Ok(program) = std::env::current_exe() {
        roots.extend(program.ancestors().skip(1).map(Path::to_owned));
    }
    roots
}

fn find(
    what: &'static str,
    name: &str,
    under: impl Fn(&Path) -> PathBuf,
    roots: &[PathBuf],
) -> Result<PathBuf, ModelError> {
    let mut looked = Vec::new();
    let given = Path::new(name);
    // `ltxv-tiny` in the current folder may be anything, so a bare name is a path only at last.
    let is_path = given.components().count() > 1 || given.is_absolute() || is_yaml(name);
    if is_path {
        looked.push(given.to_owned());
    }
    if !given.is_absolute() && !name.is_empty() {
        looked.extend(roots.iter().map(|root| under(root)));
    }
    if !is_path && !name.is_empty() {
        looked.push(given.to_owned());
    }
    // One folder may be home, current and the program's at once.
    let mut seen = std::collections::BTreeSet::new();
    looked.retain(|path| seen.insert(path.clone()));
    for path in &looked {
        if path.exists() {
            let absolute = path.canonicalize();
            return absolute.map_err(|source| ModelError::Read {
                path: path.clone(),
                source,
            });
        }
    }
    let beside = roots
        .iter()
        .filter_map(|root| Some(under(root).parent()?.to_owned()));
    Err(ModelError::NotFound {
        what,
        name: name.to_owned(),
        similar: similar_in(name, beside),
        looked,
    })
}

/// What is in one of `folders` and called much like `name`, where that is no path.
fn similar_in(name: &str, folders: impl Iterator<Item = PathBuf>) -> Option<String> {
    let entries = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.trim_end_matches(".yaml").to_owned())
    });
    let known: std::collections::BTreeSet<String> = names.collect();
    similar(name, known.iter().map(String::as_str)).map(str::to_owned)
}

/// Names the model at `path` by its bytes: see [`Manifest::hash`]. Files that were hashed before and
/// have not changed since are not read again.
pub fn hash_model(path: &Path) -> Result<Hash, ModelError> {
    Ok(Manifest::of(path, &Hashes::usual())?.hash())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn model(folder: &Path) {
        fs::create_dir_all(folder.join("vae")).expect("folder");
        fs::write(folder.join("vae/a.safetensors"), "weights").expect("file");
        fs::write(folder.join("config.json"), "{}").expect("file");
    }

    #[test]
    fn a_missing_model_says_where_it_was_looked_for() {
        let folder = tempfile::tempdir().expect("folder");
        let roots = [folder.path().join("one"), folder.path().join("two")];
        let under = |root: &Path| root.join("configs/models/m");
        let error = find("model", "m", under, &roots)
            .expect_err("missing")
            .to_string();
        for part in [
            "one/configs/models/m",
            "two/configs/models/m",
            HOME_VARIABLE,
        ] {
            assert!(error.contains(part), "{error}");
        }
        let twice = [roots[0].clone(), roots[0].clone()];
        let error = find("model", "m", under, &twice)
            .expect_err("missing")
            .to_string();
        assert_eq!(error.matches("one/configs/models/m").count(), 1, "{error}");
        model(&roots[1].join("configs/models/m"));
        let found = find("model", "m", under, &roots).expect("found");
        assert!(
            found.is_absolute() && found.ends_with("two/configs/models/m"),
            "{found:?}"
        );
        assert_eq!(
            find("model", found.to_str().expect("UTF-8"), under, &[]).expect("path"),
            found
        );
    }
}
