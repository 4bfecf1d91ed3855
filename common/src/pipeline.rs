//! Pipeline files: how a model is meant to be sampled, in YAML, with the keys of the official
//! LTX-Video repository and a few of our own (marked as extensions in `configs/ltxv-tiny.yaml`).
//!
//! A key that is not known is an error: a misspelt one would otherwise change the film silently.

use crate::spec::{Sampling, Schedule};
use serde::Deserialize;
use std::path::{Path, PathBuf};

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
    /// Not YAML, or a value of the wrong type.
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
        /// As written.
        key: String,
        /// The known key most like it.
        nearest: &'static str,
    },
    /// A number of things that cannot be.
    #[error(
        "the pipeline file {path} has {key}: {value}, which is out of range: use a whole number from 1"
    )]
    Count {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// As written.
        value: String,
    },
    /// A value that is known but not implemented.
    #[error(
        "the pipeline file {path} asks for {key}: {value}, which is not supported: use {supported}"
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// As written.
        value: String,
        /// What to write instead.
        supported: &'static str,
    },
}

/// Keys of [`Pipeline`], for suggestions. A test keeps them in step.
const KEYS: [&str; 16] = [
    "pipeline_type",
    "checkpoint_path",
    "timesteps",
    "num_inference_steps",
    "guidance_scale",
    "stg_scale",
    "rescaling_scale",
    "decode_timestep",
    "decode_noise_scale",
    "precision",
    "sampler",
    "stochastic_sampling",
    "text_tokens",
    "width",
    "height",
    "frame_rate",
];

/// Those of them that count something.
const COUNTS: [&str; 4] = ["num_inference_steps", "text_tokens", "width", "height"];

/// A pipeline file. Keys without a note are the official ones.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// `base`: one denoising pass.
    #[serde(default = "base")]
    pub pipeline_type: String,
    /// The model: a name under `configs/models` (`models/NAME` is the same), or a path.
    pub checkpoint_path: String,
    /// Noise levels, falling from 1; takes precedence over `num_inference_steps`.
    #[serde(default)]
    pub timesteps: Option<Vec<f32>>,
    /// Steps of the model's own schedule.
    #[serde(default)]
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance; 1 is off.
    #[serde(default = "one")]
    pub guidance_scale: f32,
    /// Spatio-temporal guidance; only 0 (off).
    #[serde(default)]
    pub stg_scale: f32,
    /// Rescaling of the guided prediction's spread; only 1 (off).
    #[serde(default = "one")]
    pub rescaling_scale: f32,
    /// Timestep that the VAE decoder is told.
    #[serde(default)]
    pub decode_timestep: f32,
    /// Share of noise mixed into the latents before decoding.
    #[serde(default)]
    pub decode_noise_scale: f32,
    /// Precision of the official implementation; ours follows the checkpoint's storage.
    #[serde(default)]
    pub precision: Option<String>,
    /// `from_checkpoint`: the sampler that the checkpoint names.
    #[serde(default)]
    pub sampler: Option<String>,
    /// Fresh noise at each step; only `false`.
    #[serde(default)]
    pub stochastic_sampling: bool,
    /// Extension: length to which prompts are padded or cut, in tokens.
    #[serde(default = "official_text_tokens")]
    pub text_tokens: u32,
    /// Extension: width when the user names none, in pixels.
    #[serde(default = "official_width")]
    pub width: u32,
    /// Extension: height when the user names none, in pixels.
    #[serde(default = "official_height")]
    pub height: u32,
    /// Extension here, an argument of the official program: frames a second when the user names none.
    #[serde(default = "official_frame_rate")]
    pub frame_rate: f64,
}

fn base() -> String {
    "base".to_owned()
}

fn one() -> f32 {
    1.0
}

// The official program's defaults, for its own files, which do not name these.
fn official_text_tokens() -> u32 {
    256
}

fn official_width() -> u32 {
    1216
}

fn official_height() -> u32 {
    704
}

fn official_frame_rate() -> f64 {
    30.0
}

/// Steps when a file names neither `timesteps` nor `num_inference_steps`; the official default.
const STEPS_DEFAULT: u32 = 40;

impl Pipeline {
    /// Reads a file found by [`crate::model::find_config`].
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| PipelineError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, PipelineError> {
        let failed = |source| PipelineError::Parse {
            path: path.to_owned(),
            source,
        };
        let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(failed)?;
        let keys = value.as_mapping().ok_or(PipelineError::NotKeys {
            path: path.to_owned(),
        })?;
        for key in keys.keys() {
            let key = key
                .as_str()
                .map_or_else(|| format!("{key:?}"), str::to_owned);
            if !KEYS.contains(&key.as_str()) {
                let nearest = nearest(&key);
                return Err(PipelineError::UnknownKey {
                    path: path.to_owned(),
                    key,
                    nearest,
                });
            }
        }
        check_counts(keys, path)?;
        // From the text again, so that errors name a line.
        let pipeline: Self = serde_yaml_ng::from_str(text).map_err(failed)?;
        pipeline.check_supported(path)?;
        Ok(pipeline)
    }

    fn check_supported(&self, path: &Path) -> Result<(), PipelineError> {
        let sampler = self.sampler.as_deref().unwrap_or("from_checkpoint");
        let checks = [
            (
                "pipeline_type",
                self.pipeline_type.clone(),
                self.pipeline_type == "base",
                "base",
            ),
            (
                "stg_scale",
                self.stg_scale.to_string(),
                self.stg_scale == 0.0,
                "0",
            ),
            (
                "rescaling_scale",
                self.rescaling_scale.to_string(),
                self.rescaling_scale == 1.0,
                "1",
            ),
            (
                "stochastic_sampling",
                "true".into(),
                !self.stochastic_sampling,
                "false",
            ),
            (
                "sampler",
                sampler.into(),
                sampler == "from_checkpoint",
                "from_checkpoint",
            ),
        ];
        for (key, value, supported_here, supported) in checks {
            if !supported_here {
                let path = path.to_owned();
                return Err(PipelineError::Unsupported {
                    path,
                    key,
                    value,
                    supported,
                });
            }
        }
        Ok(())
    }

    /// The model's name or path for [`crate::model::find_model`].
    pub fn model(&self) -> &str {
        self.checkpoint_path
            .strip_prefix("models/")
            .unwrap_or(&self.checkpoint_path)
    }

    /// How windows are sampled, before the user's own flags.
    pub fn sampling(&self) -> Sampling {
        let schedule = match (&self.timesteps, self.num_inference_steps) {
            (Some(timesteps), _) => Schedule::Timesteps(timesteps.clone()),
            (None, steps) => Schedule::Steps(steps.unwrap_or(STEPS_DEFAULT)),
        };
        Sampling {
            schedule,
            guidance_scale: self.guidance_scale,
            text_tokens: self.text_tokens,
            decode_timestep: self.decode_timestep,
            decode_noise_scale: self.decode_noise_scale,
        }
    }
}

/// Fails on numbers that no count can be; what is no number at all is left to serde.
fn check_counts(keys: &serde_yaml_ng::Mapping, path: &Path) -> Result<(), PipelineError> {
    for key in COUNTS {
        let Some(serde_yaml_ng::Value::Number(number)) = keys.get(key) else {
            continue;
        };
        let count = number
            .as_u64()
            .filter(|n| (1..=u32::MAX.into()).contains(n));
        if count.is_none() {
            return Err(PipelineError::Count {
                path: path.to_owned(),
                key,
                value: number.to_string(),
            });
        }
    }
    Ok(())
}

fn nearest(key: &str) -> &'static str {
    let known = KEYS.iter().min_by_key(|known| edit_distance(key, known));
    known.expect("there are keys")
}

/// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Pipeline, String> {
        Pipeline::parse(text, Path::new("test.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_shipped_file_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/ltxv-tiny.yaml");
        let pipeline = Pipeline::read(&path).expect("readable");
        assert_eq!(pipeline.model(), "ltxv-tiny");
        assert_eq!(
            (pipeline.width, pipeline.height, pipeline.frame_rate),
            (256, 160, 24.0)
        );
        let Schedule::Timesteps(timesteps) = pipeline.sampling().schedule else {
            panic!("timesteps are listed");
        };
        assert_eq!(timesteps.len(), 8);
    }

    #[test]
    fn every_known_key_is_a_field() {
        let path = Path::new("test.yaml");
        for key in KEYS {
            // A wrong type for all of them: what matters is that the key is not unknown.
            let text = format!("{key}: {{}}");
            match Pipeline::parse(&text, path).expect_err("wrong type") {
                PipelineError::Parse { source, .. } => {
                    assert!(!source.to_string().contains("unknown field"), "{source}");
                }
                other => panic!("{key}: {other}"),
            }
        }
    }

    #[test]
    fn bad_files_are_answered_with_the_way_out() {
        for (text, expected) in [
            (
                "checkpoint_path: m\nguidance_scales: 2",
                "unknown key 'guidance_scales': did you mean 'guidance_scale'?",
            ),
            (
                "checkpoint_path: m\ntimestep: [1]",
                "did you mean 'timesteps'?",
            ),
            (
                "checkpoint_path: m\nstg_scale: 1",
                "stg_scale: 1, which is not supported: use 0",
            ),
            ("checkpoint_path: m\npipeline_type: multi-scale", "use base"),
            ("checkpoint_path: m\nguidance_scale: high", "invalid type"),
            (
                "checkpoint_path: m\nwidth: -5",
                "width: -5, which is out of range: use a whole number from 1",
            ),
            (
                "checkpoint_path: m\nnum_inference_steps: 0",
                "num_inference_steps: 0, which is out of range",
            ),
            ("timesteps: [1.0]", "missing field `checkpoint_path`"),
            ("just text", "lines 'key: value'"),
            ("a: [", "cannot use the pipeline file test.yaml"),
            ("checkpoint_path: m\ncheckpoint_path: n", "duplicate"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(
                error.contains(expected),
                "{error:?} does not say {expected:?}"
            );
        }
    }

    #[test]
    fn steps_are_taken_when_no_timesteps_are_listed() {
        let steps = |text: &str| parse(text).expect("good").sampling().schedule;
        assert_eq!(
            steps("checkpoint_path: m\nnum_inference_steps: 7"),
            Schedule::Steps(7)
        );
        assert_eq!(steps("checkpoint_path: m"), Schedule::Steps(STEPS_DEFAULT));
    }

    #[test]
    fn distances_count_edits() {
        for (a, b, distance) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3)] {
            assert_eq!(edit_distance(a, b), distance);
        }
    }
}
