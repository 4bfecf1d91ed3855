//! Film files: a film of several shots, in YAML. `docs/jobs.md` shows one.
//!
//! Whatever is wrong is said with the number of the shot and the line in the file. The YAML reader
//! knows places only where reading fails, so [`line`] reads the text again to fail at the place
//! that is looked for.

mod keyframes;
mod place;

pub use keyframes::{Keyframe, KeyframeProblem};

use crate::keys::nearest;
use crate::request::{FPS_MAX, FRAMES_MAX, Length, SpecError};
use crate::spec::{Continuity, Shot, Transition};
use place::{Step, line};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A film file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilmError {
    /// The file cannot be read.
    #[error("cannot read the film file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML, or a value of the wrong type.
    #[error("cannot use the film file {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why and where.
        source: serde_yaml_ng::Error,
    },
    /// Not a mapping with shots in it.
    #[error("cannot use the film file {path}: it needs a list 'shots:' with at least one shot")]
    NoShots {
        /// The file.
        path: PathBuf,
    },
    /// A key that nobody reads.
    #[error("{path}, line {line}: the key '{key}' is unknown{}: did you mean '{nearest}'?", in_shot(.shot))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// In which shot, from 1.
        shot: Option<usize>,
        /// As written.
        key: String,
        /// The known key most like it.
        nearest: &'static str,
    },
    /// Something about a shot.
    #[error("{path}, line {line}: shot {shot} {problem}")]
    Shot {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Which, from 1.
        shot: usize,
        /// What is wrong.
        problem: Problem,
    },
}

fn in_shot(shot: &Option<usize>) -> String {
    shot.map_or_else(String::new, |shot| format!(" in shot {shot}"))
}

/// What can be wrong with a shot of a film file.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// Neither or both of the keys that say how long it is.
    #[error("has to say how long it is with either 'duration' (in seconds) or 'frames'")]
    Length,
    /// A length that is none.
    #[error("is empty or of no possible length: {0}")]
    BadLength(SpecError),
    /// A time that is none.
    #[error("has the start {0}: use seconds from 0 on")]
    BadStart(f64),
    /// It begins before the one before it.
    #[error("starts at {start} s, before shot {} starts at {before} s: put the shots in order", .shot - 1)]
    Order {
        /// Which, from 1.
        shot: usize,
        /// As written.
        start: f64,
        /// Where the one before starts, in seconds.
        before: f64,
    },
    /// It begins before the one before it ends.
    #[error("starts at {start} s, but shot {} lasts until {end:.3} s, so they overlap: shorten that one, or leave out 'start'", .shot - 1)]
    Overlap {
        /// Which, from 1.
        shot: usize,
        /// As written.
        start: f64,
        /// Where the one before ends, in seconds.
        end: f64,
    },
    /// Nothing is shown before it.
    #[error(
        "starts at {start} s, but what comes before it ends at {end:.3} s: lengthen that, or leave out 'start'"
    )]
    Gap {
        /// As written.
        start: f64,
        /// Where what comes before ends, in seconds.
        end: f64,
    },
    /// The first shot cannot go on from anything.
    #[error("is the first, so it has no transition: leave it out")]
    FirstTransition,
    /// Something about a picture that it is held to.
    #[error("has a keyframe {keyframe} that {problem}")]
    Keyframe {
        /// Which, from 1.
        keyframe: usize,
        /// What is wrong.
        problem: KeyframeProblem,
    },
    /// A rule for jobs.
    #[error("{0}")]
    Rule(crate::shots::ShotProblem),
}

/// A film file, as written. What is not there is left to flags and defaults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    shots: Vec<ShotContent>,
    #[serde(default)]
    size: Option<String>,
    #[serde(default)]
    fps: Option<f64>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    negative: Option<String>,
    #[serde(default)]
    config: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    continuity: Option<Continuity>,
    #[serde(default)]
    segment_frames: Option<i64>,
    #[serde(default)]
    overlap_frames: Option<i64>,
}

/// Keys of [`Content`], for suggestions.
const KEYS: [&str; 10] = [
    "shots",
    "size",
    "fps",
    "seed",
    "negative",
    "config",
    "model",
    "continuity",
    "segment_frames",
    "overlap_frames",
];

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShotContent {
    prompt: String,
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    frames: Option<i64>,
    #[serde(default)]
    start: Option<f64>,
    #[serde(default)]
    transition: Option<Transition>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    negative: Option<String>,
    #[serde(default)]
    keyframes: Vec<keyframes::Content>,
}

/// Keys of [`ShotContent`], for suggestions.
const SHOT_KEYS: [&str; 8] = [
    "prompt",
    "duration",
    "frames",
    "start",
    "transition",
    "seed",
    "negative",
    "keyframes",
];

/// A film file that was read.
#[derive(Clone, Debug)]
pub struct Film {
    path: PathBuf,
    text: String,
    content: Content,
}

/// Where a film's shots lie, once the frame rate is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Frames of the film.
    pub frames: u32,
    /// The shots after the first.
    pub shots: Vec<Shot>,
    /// What the shots are held to.
    pub keyframes: Vec<Keyframe>,
}

impl Film {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, FilmError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| FilmError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(text, path)
    }

    /// Reads the text of a file; `path` is for messages.
    pub fn parse(text: String, path: &Path) -> Result<Self, FilmError> {
        let path = path.to_owned();
        let failed = |source| FilmError::Parse {
            path: path.clone(),
            source,
        };
        let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).map_err(failed)?;
        check_keys(&value, &text, &path)?;
        let shots = value.get("shots").and_then(|shots| shots.as_sequence());
        if shots.is_none_or(Vec::is_empty) {
            return Err(FilmError::NoShots { path });
        }
        // From the text again, so that errors name a line.
        let content = serde_yaml_ng::from_str(&text).map_err(failed)?;
        Ok(Self {
            path,
            text,
            content,
        })
    }

    /// What the first shot shows.
    pub fn prompt(&self) -> &str {
        &self.content.shots[0].prompt
    }

    /// What the first shot steers away from, and all that do not say.
    pub fn negative(&self) -> Option<&str> {
        let first = self.content.shots[0].negative.as_deref();
        first.or(self.content.negative.as_deref())
    }

    /// Seed of the first window.
    pub fn seed(&self) -> Option<u64> {
        self.content.shots[0].seed.or(self.content.seed)
    }

    /// `WIDTHxHEIGHT`.
    pub fn size(&self) -> Option<&str> {
        self.content.size.as_deref()
    }

    /// Frames a second.
    pub fn fps(&self) -> Option<f64> {
        self.content.fps
    }

    /// Name or path of a pipeline file.
    pub fn config(&self) -> Option<&str> {
        self.content.config.as_deref()
    }

    /// Name or path of a model.
    pub fn model(&self) -> Option<&str> {
        self.content.model.as_deref()
    }

    /// How windows of one shot continue each other.
    pub fn continuity(&self) -> Option<Continuity> {
        self.content.continuity
    }

    /// Frames of a window.
    pub fn segment_frames(&self) -> Option<i64> {
        self.content.segment_frames
    }

    /// Frames that neighbouring windows share.
    pub fn overlap_frames(&self) -> Option<i64> {
        self.content.overlap_frames
    }

    /// Puts the shots one after another at `fps` frames a second, which is possible.
    pub fn timeline(&self, fps: f64) -> Result<Timeline, FilmError> {
        debug_assert!(fps > 0.0 && fps <= FPS_MAX);
        let shots = &self.content.shots;
        let (mut end, mut before) = (0_u32, 0.0);
        let (mut later, mut keyframes) = (Vec::new(), Vec::new());
        for (index, shot) in shots.iter().enumerate() {
            if index == 0 && shot.transition.is_some() {
                return Err(self.problem(index, Some("transition"), Problem::FirstTransition));
            }
            if let Some(start) = shot.start {
                check_start(index, start, before, end, fps)
                    .map_err(|problem| self.problem(index, Some("start"), problem))?;
            }
            before = f64::from(end) / fps;
            let (key, length) = match (shot.duration, shot.frames) {
                (Some(seconds), None) => ("duration", Length::Seconds(seconds)),
                (None, Some(frames)) => ("frames", Length::Frames(frames)),
                _ => return Err(self.problem(index, None, Problem::Length)),
            };
            let bad = |error| self.problem(index, Some(key), Problem::BadLength(error));
            let frames = length.frames(fps).map_err(bad)?;
            let first_frame = end;
            end += frames;
            if end > FRAMES_MAX {
                return Err(bad(SpecError::Frames(end.into())));
            }
            keyframes.extend(self.keyframes(index, shot, fps, (first_frame, frames))?);
            if index > 0 {
                later.push(self.shot(shot, first_frame));
            }
        }
        Ok(Timeline {
            frames: end,
            shots: later,
            keyframes,
        })
    }

    fn shot(&self, shot: &ShotContent, first_frame: u32) -> Shot {
        // What the first shot alone steers away from is not for those after it.
        let negative = shot
            .negative
            .as_deref()
            .or(self.content.negative.as_deref());
        let negative = negative.unwrap_or_default();
        Shot {
            first_frame,
            transition: shot.transition.unwrap_or_default(),
            prompt: shot.prompt.clone(),
            negative: (self.negative().unwrap_or_default() != negative)
                .then(|| negative.to_owned()),
            seed: shot.seed,
        }
    }

    /// An error of the job's own rules, with the line of the shot that it is about.
    pub fn explain(&self, error: SpecError) -> Result<FilmError, SpecError> {
        match error {
            SpecError::Shot { shot, problem } => {
                Ok(self.problem(shot - 1, None, Problem::Rule(problem)))
            }
            other => Err(other),
        }
    }

    fn problem(&self, index: usize, key: Option<&'static str>, problem: Problem) -> FilmError {
        let steps = [Step::Key("shots"), Step::Index(index)];
        let steps = steps.into_iter().chain(key.map(Step::Key));
        FilmError::Shot {
            path: self.path.clone(),
            line: line(&self.text, &steps.collect::<Vec<_>>()),
            shot: index + 1,
            problem,
        }
    }
}

/// Whether a shot starts where what is before it ends. Times are compared as frames: those before
/// were rounded to whole frames, each by half a frame at most.
fn check_start(index: usize, start: f64, before: f64, end: u32, fps: f64) -> Result<(), Problem> {
    if !(start >= 0.0 && start.is_finite()) {
        return Err(Problem::BadStart(start));
    }
    let (shot, end_s) = (index + 1, f64::from(end) / fps);
    let ahead = start * fps - f64::from(end);
    let slack = 0.5 * (index as f64 + 1.0);
    if index > 0 && start < before {
        Err(Problem::Order {
            shot,
            start,
            before,
        })
    } else if ahead < -slack {
        Err(Problem::Overlap {
            shot,
            start,
            end: end_s,
        })
    } else if ahead > slack {
        Err(Problem::Gap { start, end: end_s })
    } else {
        Ok(())
    }
}

fn check_keys(value: &serde_yaml_ng::Value, text: &str, path: &Path) -> Result<(), FilmError> {
    let unknown = |value: &serde_yaml_ng::Value, known: &[&'static str]| {
        let keys = value.as_mapping()?.keys();
        let named = |key: &serde_yaml_ng::Value| {
            key.as_str()
                .map_or_else(|| crate::pipeline::inline(key), str::to_owned)
        };
        keys.map(named).find(|key| !known.contains(&key.as_str()))
    };
    let fail = |key: String, way: &[Step<'_>], shot: Option<usize>, known: &[&'static str]| {
        let steps: Vec<_> = way.iter().copied().chain([Step::Key(&key)]).collect();
        let line = line(text, &steps);
        Err(FilmError::UnknownKey {
            path: path.to_owned(),
            line,
            shot: shot.map(|index| index + 1),
            nearest: nearest(&key, known),
            key,
        })
    };
    if let Some(key) = unknown(value, &KEYS) {
        return fail(key, &[], None, &KEYS);
    }
    let list = |value: &serde_yaml_ng::Value, key: &str| {
        let list = value.get(key).and_then(|list| list.as_sequence());
        list.cloned().unwrap_or_default()
    };
    for (index, shot) in list(value, "shots").iter().enumerate() {
        if let Some(key) = unknown(shot, &SHOT_KEYS) {
            let way = [Step::Key("shots"), Step::Index(index)];
            return fail(key, &way, Some(index), &SHOT_KEYS);
        }
        for (number, keyframe) in list(shot, "keyframes").iter().enumerate() {
            if let Some(key) = unknown(keyframe, &keyframes::KEYS) {
                let way = keyframes::steps(index, number);
                return fail(key, &way, Some(index), &keyframes::KEYS);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
