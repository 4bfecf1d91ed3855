//! What `stitch` says about what it made.

use super::check;
use super::clip::Clip;
use super::film::Film;
use super::overlaps::Overlap;
use super::target::{Stage, StitchCodec};
use crate::terminal::print;
use anyhow::{Context, Result};
use longtake_common::Sample;
use longtake_common::media::Ffmpeg;
use longtake_stitch::{ChainSeam, Method, SeamScorer};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// The JSON object of `--json` and `--report`.
#[derive(Serialize)]
pub struct Report {
    /// The film, as the user named it.
    pub output: PathBuf,
    /// The job whose segments were joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    pub codec: StitchCodec,
    /// Bits a channel with which the clips were joined.
    pub bits: u32,
    pub width: u32,
    pub height: u32,
    pub fps: f64,
    pub frames: u64,
    pub clips: Vec<ClipJson>,
    pub seams: Vec<SeamJson>,
    /// `kept` (cross-faded), `none` (no clip has any) or `lost`.
    pub sound: &'static str,
    pub notices: Vec<String>,
    pub seconds_total: f64,
}

/// One clip and its place in the film.
#[derive(Serialize)]
pub struct ClipJson {
    /// As the user named it; of a job's segments, JOB/INDEX.
    pub path: PathBuf,
    pub first_frame: u64,
    pub frames: u64,
    pub sound: bool,
}

/// One join. Scores: docs/quality.md.
#[derive(Serialize)]
pub struct SeamJson {
    /// First frame of the overlap.
    frame: u32,
    overlap_frames: u32,
    relax_frames: u32,
    /// How sure the overlap is; null where it was given.
    confidence: Option<f64>,
    method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    seam_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warp_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sharpness: Option<f64>,
}

/// The clips with their places.
pub fn clips<S: Sample>(clips: &[Clip], film: &Film<'_, S>) -> Vec<ClipJson> {
    let places = film.places();
    let json = |(clip, (first_frame, frames)): (&Clip, (u64, u64))| ClipJson {
        path: clip.path().to_owned(),
        first_frame,
        frames,
        sound: clip.has_sound(),
    };
    clips.iter().zip(places).map(json).collect()
}

/// The joins, without scores.
pub fn seams<S: Sample>(film: &Film<'_, S>, overlaps: &[Overlap], method: Method) -> Vec<SeamJson> {
    let each = film.seams().iter().zip(overlaps);
    each.map(|(seam, overlap)| SeamJson {
        confidence: overlap.confidence,
        ..SeamJson::new(seam, method)
    })
    .collect()
}

impl SeamJson {
    /// A join of a known overlap, without scores.
    pub fn new(seam: &ChainSeam, method: Method) -> Self {
        Self {
            frame: seam.frame,
            overlap_frames: seam.overlap_frames,
            relax_frames: seam.relax_frames,
            confidence: None,
            method,
            seam_ratio: None,
            warp_ratio: None,
            sharpness: None,
        }
    }
}

/// What became of the sound.
pub fn sound(clips: &[Clip], kept: bool) -> &'static str {
    match (kept, clips.iter().any(Clip::has_sound)) {
        (true, _) => "kept",
        (_, true) => "lost",
        _ => "none",
    }
}

impl Report {
    /// Scores the seams as a viewer gets them: decoded from what was written. `cuts` are first frames
    /// after cuts that are meant to be seen.
    pub fn score(
        &mut self,
        stage: &Stage<'_>,
        method: Method,
        cuts: &[u32],
        ffmpeg: Option<Ffmpeg>,
        stop: &AtomicBool,
    ) -> Result<()> {
        let places: Vec<_> = self
            .seams
            .iter()
            .map(|s| (s.frame, s.overlap_frames))
            .collect();
        let mut scorer = SeamScorer::new(self.fps, &places, method)?.with_cuts(cuts);
        let film = Clip::open(&stage.film(), ffmpeg)?;
        for frame in film.frames::<u8>()? {
            check(stop)?;
            scorer.push(&frame.context("read the stitched film back")?)?;
        }
        for (seam, score) in self.seams.iter_mut().zip(scorer.finish()?) {
            seam.seam_ratio = Some(score.seam_ratio);
            seam.warp_ratio = Some(score.warp_ratio);
            seam.sharpness = Some(score.sharpness);
        }
        Ok(())
    }

    /// Writes the report to `path` and prints it.
    pub fn deliver(&self, path: Option<&Path>, json: bool) -> Result<()> {
        let text = serde_json::to_string(self)?;
        if let Some(path) = path {
            crate::output::write_whole(path, format!("{text}\n").as_bytes())?;
        }
        if json {
            return print(text);
        }
        print(format_args!(
            "{}: {} frames of {} {}, sound {}, {:.1} s",
            self.output.display(),
            self.frames,
            self.clips.len(),
            if self.job.is_some() {
                "segments"
            } else {
                "clips"
            },
            self.sound,
            self.seconds_total
        ))
    }
}
