//! Reads a mapping of a pipeline file key by key, so that every error names its key.

use super::error::PipelineError;
use crate::keys::nearest;
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};
use std::path::Path;

/// A mapping of a pipeline file.
pub(super) struct Section<'a> {
    path: &'a Path,
    name: &'static str,
    keys: &'a Mapping,
}

impl<'a> Section<'a> {
    /// The mapping `keys`, all of whose keys must be in `known`. `name` is empty for the file's own.
    pub fn new(
        path: &'a Path,
        name: &'static str,
        keys: &'a Mapping,
        known: &[&'static str],
    ) -> Result<Self, PipelineError> {
        let section = Self { path, name, keys };
        for key in keys.keys() {
            let key = key.as_str().map_or_else(|| inline(key), str::to_owned);
            if !known.contains(&key.as_str()) {
                return Err(PipelineError::UnknownKey {
                    path: path.to_owned(),
                    key: section.qualified(&key),
                    nearest: nearest(&key, known),
                });
            }
        }
        Ok(section)
    }

    fn qualified(&self, key: &str) -> String {
        match self.name {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        }
    }

    /// Value of `key`; absent and null are the same.
    pub fn get<T: DeserializeOwned>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, PipelineError> {
        self.get_if(key, expected, |_| true)
    }

    /// Value of `key`, for which `holds` must hold.
    pub fn get_if<T: DeserializeOwned>(
        &self,
        key: &str,
        expected: &'static str,
        holds: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, PipelineError> {
        let value = match self.keys.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        match serde_yaml_ng::from_value::<T>(value.clone()) {
            Ok(parsed) if holds(&parsed) => Ok(Some(parsed)),
            _ => Err(PipelineError::Value {
                path: self.path.to_owned(),
                key: self.qualified(key),
                value: match value {
                    Value::String(text) => format!("'{text}'"),
                    other => inline(other),
                },
                expected,
            }),
        }
    }

    /// Value of `key`, which must be there.
    pub fn require<T: DeserializeOwned>(
        &self,
        key: &str,
        meaning: &'static str,
    ) -> Result<T, PipelineError> {
        self.get(key, meaning)?.ok_or(PipelineError::Missing {
            path: self.path.to_owned(),
            key: self.qualified(key),
            meaning,
        })
    }

    /// A count of things, from `least` on.
    pub fn count(&self, key: &str, least: u32) -> Result<Option<u32>, PipelineError> {
        let expected = match least {
            0 => "a whole number from 0",
            _ => "a whole number from 1",
        };
        self.get_if(key, expected, |&count: &u32| count >= least)
    }

    /// The mapping at `key`.
    pub fn mapping(&self, key: &str) -> Result<Option<&'a Mapping>, PipelineError> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Mapping(mapping)) => Ok(Some(mapping)),
            Some(other) => Err(PipelineError::Value {
                path: self.path.to_owned(),
                key: self.qualified(key),
                value: inline(other),
                expected: "keys and values of a pass",
            }),
        }
    }

    /// Whether `key` is written with a value.
    pub fn has(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|value| !value.is_null())
    }

    /// Keys that cannot both hold.
    pub fn contradiction(&self, message: String) -> PipelineError {
        PipelineError::Contradiction {
            path: self.path.to_owned(),
            section: match self.name {
                "" => "the keys of the file",
                name => name,
            },
            message,
        }
    }
}

/// A value on one line, as it would be written in a list.
pub(crate) fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => {
            serde_json::to_string(other).unwrap_or_else(|_| "a value of no known kind".to_owned())
        }
    }
}
