//! Keyframes of a film file: images and clips that its shots are held to.

use super::{Film, FilmError, Problem, ShotContent, Step, place::line};
use crate::conditioning::Place;
use crate::spec::FRAMES_PER_LATENT;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use std::fmt;
use std::path::PathBuf;

/// Keys of a keyframe, for suggestions.
pub(super) const KEYS: [&str; 5] = ["image", "video", "frame", "at", "strength"];

/// A keyframe, as written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    #[serde(default)]
    image: Option<PathBuf>,
    #[serde(default)]
    video: Option<PathBuf>,
    #[serde(default, deserialize_with = "frame")]
    frame: Option<Place>,
    #[serde(default)]
    at: Option<f64>,
    #[serde(default)]
    strength: Option<f32>,
}

/// A picture or clip that a shot is held to.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyframe {
    /// The file; one that the film file names relatively lies beside it.
    pub path: PathBuf,
    /// Whether it is one picture, not a clip.
    pub is_image: bool,
    /// Where in its shot.
    pub place: Place,
    /// 1 holds the shot to it, 0 hardly hints at it.
    pub strength: f32,
    /// Frame of the film that its shot begins at.
    pub shot_start: u32,
    /// Frames of its shot.
    pub shot_frames: u32,
}

/// What can be wrong with a keyframe.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum KeyframeProblem {
    /// Neither or both of the keys that say what it is.
    #[error("has to name either an 'image' or a 'video'")]
    Kind,
    /// Two places.
    #[error("has both 'frame' and 'at' (in seconds), which say the same: leave one out")]
    TwoPlaces,
    /// A time that is none.
    #[error("is at {0} s: use seconds from the beginning of the shot, from 0 on")]
    Time(f64),
    /// After the end of its shot.
    #[error("is for frame {frame} of a shot of {frames} frames: use frame 0 to {}", .frames - 1)]
    Beyond {
        /// Frame of the shot.
        frame: u32,
        /// Frames of the shot.
        frames: u32,
    },
    /// A clip between two latents.
    #[error(
        "is a clip for frame {frame} of the shot: clips begin at a multiple of {FRAMES_PER_LATENT}, like {}",
        .frame / FRAMES_PER_LATENT * FRAMES_PER_LATENT
    )]
    ClipStart {
        /// Frame of the shot.
        frame: u32,
    },
    /// A strength that is none.
    #[error("has the strength {0}: use 0 to 1")]
    Strength(f32),
}

/// Reads `frame: N` or `frame: end`.
fn frame<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    deserializer.deserialize_any(FrameVisitor).map(Some)
}

struct FrameVisitor;

impl Visitor<'_> for FrameVisitor {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame of the shot, from 0, or 'end'")
    }

    fn visit_u64<E: Error>(self, frame: u64) -> Result<Place, E> {
        // What is beyond the shot is said with its length.
        Ok(Place::Frame(u32::try_from(frame).unwrap_or(u32::MAX)))
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Place, E> {
        match word {
            "end" => Ok(Place::End),
            other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
        }
    }
}

impl Film {
    /// What the shot is held to that begins at frame `shot_start` and has `shot_frames`.
    pub(super) fn keyframes(
        &self,
        shot: usize,
        content: &ShotContent,
        fps: f64,
        (shot_start, shot_frames): (u32, u32),
    ) -> Result<Vec<Keyframe>, FilmError> {
        let read = |(index, keyframe): (usize, &Content)| {
            let read = self.keyframe(keyframe, fps, (shot_start, shot_frames));
            read.map_err(|problem| FilmError::Shot {
                path: self.path.clone(),
                line: line(&self.text, &steps(shot, index)),
                shot: shot + 1,
                problem: Problem::Keyframe {
                    keyframe: index + 1,
                    problem,
                },
            })
        };
        content.keyframes.iter().enumerate().map(read).collect()
    }

    fn keyframe(
        &self,
        content: &Content,
        fps: f64,
        (shot_start, shot_frames): (u32, u32),
    ) -> Result<Keyframe, KeyframeProblem> {
        let (path, is_image) = match (&content.image, &content.video) {
            (Some(path), None) => (path, true),
            (None, Some(path)) => (path, false),
            _ => return Err(KeyframeProblem::Kind),
        };
        let place = match (content.frame, content.at) {
            (Some(_), Some(_)) => return Err(KeyframeProblem::TwoPlaces),
            (_, Some(at)) if !(at >= 0.0 && at.is_finite()) => {
                return Err(KeyframeProblem::Time(at));
            }
            (_, Some(at)) => {
                // A clip begins with a latent: with the nearest one.
                let unit = if is_image { 1 } else { FRAMES_PER_LATENT };
                // `as` saturates.
                let units = (at * fps / f64::from(unit)).round() as u32;
                Place::Frame(units.saturating_mul(unit))
            }
            (Some(Place::Frame(frame)), None)
                if !is_image && !frame.is_multiple_of(FRAMES_PER_LATENT) =>
            {
                return Err(KeyframeProblem::ClipStart { frame });
            }
            (place, None) => place.unwrap_or(Place::Frame(0)),
        };
        if let Place::Frame(frame) = place
            && frame >= shot_frames
        {
            let frames = shot_frames;
            return Err(KeyframeProblem::Beyond { frame, frames });
        }
        let strength = content.strength.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&strength) {
            return Err(KeyframeProblem::Strength(strength));
        }
        let folder = self.path.parent();
        Ok(Keyframe {
            path: folder.map_or_else(|| path.clone(), |folder| folder.join(path)),
            is_image,
            place,
            strength,
            shot_start,
            shot_frames,
        })
    }
}

/// The way to a keyframe in the file.
pub(super) fn steps(shot: usize, keyframe: usize) -> [Step<'static>; 4] {
    [
        Step::Key("shots"),
        Step::Index(shot),
        Step::Key("keyframes"),
        Step::Index(keyframe),
    ]
}
