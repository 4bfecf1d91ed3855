//! Why a model cannot be loaded or run. Every message names the thing, the cause and the way out.

use crate::halfway::Halfway;
use std::path::PathBuf;

/// Result of loading or running a model.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model cannot be read.
    #[error("cannot read {path}, which is a part of the model: put it there, or give another path")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A configuration file does not parse.
    #[error("{path} is not a valid configuration: {source}; fetch the file again")]
    ConfigSyntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A configuration asks for something that is not built.
    #[error("{path}: `{key}` is {value}, {supported}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key in it.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// Some of several files are not there.
    #[error(
        "{path} is one of {} files, of which {} not there: {}; fetch what is missing into their folder",
        missing.len() + present.len(),
        if missing.len() == 1 { "one is".to_owned() } else { format!("{} are", missing.len()) },
        missing.join(", ")
    )]
    Shards {
        /// The index, or the first file of those that are counted.
        path: PathBuf,
        /// Names of those that are not there.
        missing: Vec<String>,
        /// Those that are.
        present: Vec<PathBuf>,
    },
    /// A weight file cannot be used.
    #[error("{path}: {message}; fetch the file again")]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A weight is missing or not what the configuration asks for.
    #[error("tensor `{tensor}` in {path}: {message}")]
    Weight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        message: String,
    },
    /// Weights that are numbers, but make none.
    #[error(
        "the latents are not finite: the model's values, or a LoRA's times its strength, are too large; \
         use another file, or a smaller strength"
    )]
    NotFinite,
    /// A LoRA cannot be used.
    #[error("the LoRA {path} cannot be used: {message}")]
    Lora {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing that a model could be loaded from.
    #[error("{path}: {message}")]
    Model {
        /// File or folder.
        path: PathBuf,
        /// What is there, or missing, and the way out.
        message: String,
    },
    /// The tokenizer's file cannot be used.
    #[error(
        "{path}: {message}; the sentencepiece model `spiece.model` of a T5 encoder is expected"
    )]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A stored intermediate result cannot be used.
    #[error("artifact `{name}`: {message}")]
    Artifact {
        /// Tensor in the artifact.
        name: String,
        /// Why.
        message: String,
    },
    /// The request does not fit the model.
    #[error("{what}: {message}")]
    Request {
        /// The part of the request.
        what: &'static str,
        /// Why, and what would fit.
        message: String,
    },
    /// The caller asked to stop.
    #[error("cancelled after step {step} of {steps}")]
    Cancelled {
        /// Steps done.
        step: usize,
        /// Steps in all.
        steps: usize,
    },
    /// The caller asked to stop, and to keep what was computed.
    #[error("stopped after step {} of {}", .0.step, .0.steps)]
    Stopped(Box<Halfway>),
    /// An operation of the backend failed.
    #[error("the backend failed in {part}")]
    Backend {
        /// Part of the model, such as `transformer block 3`.
        part: String,
        /// The operation's error.
        #[source]
        source: longtake_tensor::Error,
    },
}

impl From<longtake_tensor::Error> for Error {
    fn from(source: longtake_tensor::Error) -> Self {
        Self::Backend {
            part: "a recorded computation".to_owned(),
            source,
        }
    }
}

/// Names the part of the model in which an operation failed.
pub trait InPart<T> {
    /// Adds the part's name to an operation's error.
    fn in_part(self, part: impl FnOnce() -> String) -> Result<T>;
}

impl<T> InPart<T> for longtake_tensor::Result<T> {
    fn in_part(self, part: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Backend {
            part: part(),
            source,
        })
    }
}
