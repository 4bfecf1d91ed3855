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

/// The documents of a YAML file.
pub fn yaml(path: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(&text(path))
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{path}: {e}")))
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
