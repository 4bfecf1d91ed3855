//! Reads what lies in `deploy/`.

use serde::Deserialize;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of this repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// The folder `deploy/`, or something in it.
pub fn deploy(path: impl AsRef<Path>) -> PathBuf {
    repository().join("deploy").join(path)
}

pub fn text(path: impl AsRef<Path>) -> String {
    let path = deploy(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file, with what `<<` merges into them.
pub fn yaml(path: &str) -> Vec<Value> {
    let read = |document| -> Result<Value, serde_yaml_ng::Error> {
        let mut document = serde_yaml_ng::Value::deserialize(document)?;
        document.apply_merge()?;
        serde_yaml_ng::from_value(document)
    };
    serde_yaml_ng::Deserializer::from_str(&text(path))
        .map(|document| read(document).unwrap_or_else(|error| panic!("{path}: {error}")))
        .collect()
}

/// A list of words, empty where there is none.
#[track_caller]
pub fn strings(value: &Value) -> Vec<String> {
    let text = |word: &Value| word.as_str().expect("text").to_owned();
    match value {
        Value::Null => Vec::new(),
        value => value.as_array().expect("a list").iter().map(text).collect(),
    }
}
