//! What is wrong with a pipeline file, in one sentence each.

use crate::model::ModelError;
use std::path::PathBuf;

/// A pipeline file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The file cannot be read.
    #[error("cannot read the pipeline file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("cannot use the pipeline file {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why and where.
        source: serde_yaml_ng::Error,
    },
    /// The file is not a mapping of keys to values.
    #[error("cannot use the pipeline file {path}: it has to consist of lines 'key: value'")]
    NotKeys {
        /// The file.
        path: PathBuf,
    },
    /// A key that nobody reads.
    #[error("the pipeline file {path} has the unknown key '{key}': did you mean '{nearest}'?")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// As written, with its section.
        key: String,
        /// The known key most like it.
        nearest: &'static str,
    },
    /// A key that has to be there.
    #[error("the pipeline file {path} has no {key}: add {meaning}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key, with its section.
        key: String,
        /// What it says.
        meaning: &'static str,
    },
    /// A value of the wrong kind, or out of range.
    #[error("the pipeline file {path} has {key}: {value}, which is out of range: use {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, with its section.
        key: String,
        /// As written.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// Keys that cannot both hold.
    #[error("the pipeline file {path} contradicts itself in {section}: {message}")]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// `first_pass`, `second_pass` or `the keys of the file`.
        section: &'static str,
        /// Which keys, and the way out.
        message: String,
    },
    /// The file that this one builds on.
    #[error("the pipeline file {path} has pipeline_config: {base}, a file that cannot be used")]
    Base {
        /// The file.
        path: PathBuf,
        /// Its `pipeline_config`.
        base: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file that it names is not there.
    #[error(transparent)]
    File(#[from] ModelError),
}
