//! Finding a model and the pipeline files on this machine, and naming a model by its bytes.
//!
//! Does not look into the files: that is the engine's business.

use crate::ids::Hash;
use std::path::{Path, PathBuf};

/// Environment variable: a folder that has `configs/` in it.
pub const HOME_VARIABLE: &str = "LONGTAKE_HOME";
/// Endings of the files that make up a model; READMEs and training scripts do not.
const ENDINGS: [&str; 3] = ["safetensors", "json", "model"];
/// Folder beside the weights that tells how they were made.
const TRAINING_FOLDER: &str = "train";

/// What can go wrong before a model's files are read for what they mean.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No such model anywhere.
    #[error(
        "no {what} '{name}': looked in {}; give its path or set {HOME_VARIABLE}",
        list(looked)
    )]
    NotFound {
        /// `model` or `pipeline configuration`.
        what: &'static str,
        /// As the user gave it.
        name: String,
        /// The places tried.
        looked: Vec<PathBuf>,
    },
    /// The folder has no file of a model.
    #[error("{0} holds no model: a .safetensors file is expected there")]
    Empty(PathBuf),
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

fn is_yaml(name: &str) -> bool {
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
    Err(ModelError::NotFound {
        what,
        name: name.to_owned(),
        looked,
    })
}

/// Names a model by its bytes: BLAKE3 over the sorted relative paths of its `.safetensors`, `.json`
/// and `.model` files, each with its length and content. A single file counts as a folder of one.
pub fn hash_model(path: &Path) -> Result<Hash, ModelError> {
    let mut files = Vec::new();
    if path.is_dir() {
        collect(path, "", &mut files)?;
    } else {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        files.push((name, path.to_owned()));
    }
    if !files.iter().any(|(name, _)| name.ends_with(".safetensors")) {
        return Err(ModelError::Empty(path.to_owned()));
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, file) in &files {
        let failed = |source| ModelError::Read {
            path: file.clone(),
            source,
        };
        let reader = std::fs::File::open(file).map_err(failed)?;
        let length_bytes = reader.metadata().map_err(failed)?.len();
        // Lengths in front keep one file's end from being taken for the next one's start.
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&length_bytes.to_le_bytes());
        hasher.update_reader(reader).map_err(failed)?;
    }
    Ok(hasher.finalize().into())
}

fn collect(
    folder: &Path,
    prefix: &str,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), ModelError> {
    let failed = |source| ModelError::Read {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        let relative = format!("{prefix}{name}");
        if path.is_dir() {
            if relative != TRAINING_FOLDER && !name.starts_with('.') {
                collect(&path, &format!("{relative}/"), files)?;
            }
        } else if ENDINGS
            .iter()
            .any(|ending| path.extension().is_some_and(|e| e == *ending))
        {
            files.push((relative, path));
        }
    }
    Ok(())
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
    fn the_hash_is_of_the_models_files_only() {
        let folder = tempfile::tempdir().expect("folder");
        model(folder.path());
        let hash = hash_model(folder.path()).expect("hash");
        fs::write(folder.path().join("README.md"), "about").expect("file");
        fs::create_dir(folder.path().join("train")).expect("folder");
        fs::write(folder.path().join("train/settings.json"), "{}").expect("file");
        assert_eq!(hash_model(folder.path()).expect("hash"), hash);
        fs::write(folder.path().join("config.json"), "{ }").expect("file");
        assert_ne!(hash_model(folder.path()).expect("hash"), hash);
    }

    #[test]
    fn moving_bytes_between_files_changes_the_hash() {
        let folder = tempfile::tempdir().expect("folder");
        let mut hashes = Vec::new();
        for (a, b) in [("xy", "z"), ("x", "yz")] {
            fs::write(folder.path().join("a.safetensors"), a).expect("file");
            fs::write(folder.path().join("b.safetensors"), b).expect("file");
            hashes.push(hash_model(folder.path()).expect("hash"));
        }
        assert_ne!(hashes[0], hashes[1]);
    }

    #[test]
    fn a_folder_without_weights_is_no_model() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("config.json"), "{}").expect("file");
        let error = hash_model(folder.path()).expect_err("empty").to_string();
        assert!(error.contains(".safetensors"), "{error}");
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
