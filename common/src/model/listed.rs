//! A model's list of files together with where they lie on this machine.

use super::manifest::{Manifest, collect, is_shard_index, shards};
use super::{Hashes, ModelError};
use crate::ids::Hash;
use std::path::{Path, PathBuf};

/// The folders of a text encoder that lies in a folder with other things.
const TEXT_FOLDERS: [&str; 2] = ["text_encoder", "tokenizer"];
/// The tokenizer's file.
const TOKENIZER: &str = "spiece.model";
/// Where it is listed when it does not lie where the weights do.
const TOKENIZER_PATH: &str = "tokenizer/spiece.model";
/// What the weights are called when they are one file, whatever their owner calls it.
const TEXT_FILE: &str = "model.safetensors";

/// A list of files, and each file's path on this machine.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The list.
    pub manifest: Manifest,
    /// Where the files are, in the list's order.
    pub places: Vec<PathBuf>,
}

impl Listed {
    /// The model at `path`; see [`Manifest::of`].
    pub fn of(path: &Path, hashes: &Hashes) -> Result<Self, ModelError> {
        let manifest = Manifest::of(path, hashes)?;
        let files = manifest.files().iter();
        let places = files.map(|file| manifest.place(path, &file.path)).collect();
        Ok(Self { manifest, places })
    }

    /// The text encoder at `path` and its tokenizer, which may lie beside it: a file of weights, a
    /// folder of them, the index of several, or a folder with `text_encoder` and `tokenizer` among other
    /// things.
    pub fn of_text_encoder(path: &Path, hashes: &Hashes) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        if path.join(TEXT_FOLDERS[0]).is_dir() {
            for folder in TEXT_FOLDERS.map(|name| (path.join(name), format!("{name}/"))) {
                if folder.0.is_dir() {
                    collect(&folder.0, &folder.1, &mut files)?;
                }
            }
            add_tokenizer(&mut files, &[path.join(TOKENIZER)]);
        } else if path.is_dir() {
            collect(path, "", &mut files)?;
            add_tokenizer(&mut files, &[path.join("..").join(TOKENIZER_PATH)]);
        } else {
            if is_shard_index(path) {
                files = shards(path)?;
            } else if path
                .extension()
                .is_some_and(|ending| ending == "safetensors")
            {
                files.push((TEXT_FILE.to_owned(), path.to_owned()));
            } else {
                return Err(ModelError::Empty(path.to_owned()));
            }
            let folder = path.parent().unwrap_or(Path::new(""));
            let beside = folder.join("..").join(TOKENIZER_PATH);
            add_tokenizer(
                &mut files,
                &[folder.join(TOKENIZER), folder.join(TOKENIZER_PATH), beside],
            );
        }
        files.sort();
        let places = files.iter().map(|(_, place)| place.clone()).collect();
        let manifest = Manifest::listing(path, files, None, hashes)?;
        Ok(Self { manifest, places })
    }

    /// A set of models; see [`Manifest::of_set`].
    pub fn of_set(
        parts: Vec<super::Part>,
        pipeline: Option<&Path>,
        hashes: &Hashes,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            manifest: Manifest::of_set(parts, pipeline, hashes)?,
            places: pipeline.map(Path::to_owned).into_iter().collect(),
        })
    }
}

/// Adds the tokenizer from the first of `places` that has one, unless the files have one already.
fn add_tokenizer(files: &mut Vec<(String, PathBuf)>, places: &[PathBuf]) {
    let is_there = |path: &str| path == TOKENIZER || path == TOKENIZER_PATH;
    if files.iter().any(|(path, _)| is_there(path)) {
        return;
    }
    if let Some(place) = places.iter().find(|place| place.is_file()) {
        files.push((TOKENIZER_PATH.to_owned(), place.clone()));
    }
}

/// Names the text encoder at `path` by its bytes and those of its tokenizer; see
/// [`Listed::of_text_encoder`].
pub fn hash_text_encoder(path: &Path) -> Result<Hash, ModelError> {
    Ok(Listed::of_text_encoder(path, &Hashes::usual())?
        .manifest
        .hash())
}

/// The hashes by which a job may ask for what is at `path`: as a model, and as a text encoder with
/// the tokenizer beside it.
pub fn hashes_of(path: &Path) -> Result<Vec<Hash>, ModelError> {
    let mut hashes = vec![super::hash_model(path)?];
    if let Ok(hash) = hash_text_encoder(path)
        && !hashes.contains(&hash)
    {
        hashes.push(hash);
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn hash(path: &Path) -> Hash {
        let listed = Listed::of_text_encoder(path, &Hashes::forgetful()).expect("listed");
        listed.manifest.hash()
    }

    #[test]
    fn a_text_encoder_is_listed_with_its_tokenizer() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        for part in TEXT_FOLDERS {
            fs::create_dir(root.join(part)).expect("folder");
        }
        fs::write(root.join("checkpoint.safetensors"), "not of it").expect("file");
        fs::write(root.join("text_encoder/model.safetensors"), "weights").expect("file");
        fs::write(root.join("tokenizer/spiece.model"), "pieces").expect("file");
        let among_others = Listed::of_text_encoder(root, &Hashes::forgetful()).expect("listed");
        let paths = |listed: &Listed| {
            let files = listed.manifest.files().iter();
            files.map(|file| file.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            paths(&among_others),
            ["text_encoder/model.safetensors", "tokenizer/spiece.model"]
        );
        assert!(among_others.places.iter().all(|place| place.is_file()));

        // The folder of the weights, and the file: the tokenizer is found beside.
        let of_folder = hash(&root.join("text_encoder"));
        assert_eq!(
            of_folder,
            hash(&root.join("text_encoder/model.safetensors"))
        );
        fs::write(root.join("tokenizer/spiece.model"), "other pieces").expect("file");
        assert_ne!(of_folder, hash(&root.join("text_encoder")));

        let index = root.join("text_encoder/t5.safetensors.index.json");
        fs::write(&index, r#"{"weight_map": {"a": "model.safetensors"}}"#).expect("file");
        let listed = Listed::of_text_encoder(&index, &Hashes::forgetful()).expect("listed");
        assert_eq!(
            paths(&listed),
            [
                "model.safetensors",
                "model.safetensors.index.json",
                "tokenizer/spiece.model"
            ]
        );
        fs::remove_file(index).expect("removed");

        // A folder with all of it is the same as a model and as a text encoder.
        let whole = root.join("whole");
        fs::create_dir(&whole).expect("folder");
        fs::write(whole.join("t5.safetensors"), "weights").expect("file");
        fs::write(whole.join("spiece.model"), "pieces").expect("file");
        assert_eq!(hashes_of(&whole).expect("hashed"), [hash(&whole)]);
        // A file alone is not.
        assert_eq!(
            hashes_of(&whole.join("t5.safetensors"))
                .expect("hashed")
                .len(),
            2
        );
    }
}
