//! What `render --json` prints and `OUT.mp4.json` holds: how the film came about.

use super::preview::PreviewReport;
use crate::estimate::Estimate;
use crate::job_args::Wanted;
use crate::progress::duration;
use anyhow::Result;
use longtake_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The report of a render.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The job that made it.
    pub job: String,
    /// The film, as the user named it.
    pub output: PathBuf,
    /// What it shows: the prompt as it was rendered, rewritten or not.
    pub prompt: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Frames a second.
    pub fps: f64,
    /// Frames of the film.
    pub frames: u32,
    /// What rendered it: only equal engines make equal films.
    pub engine: String,
    /// Instruction-set level that it was rendered on.
    pub isa: String,
    /// The shots after the first, with their prompts as they were rendered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shots: Vec<ShotReport>,
    /// What was said before it began, and what its workers had to say: what TeaCache left out, say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// Its windows.
    pub segments: Vec<SegmentReport>,
    /// The joins between them.
    pub seams: Vec<SeamReport>,
    /// The first of two passes, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<PreviewReport>,
    /// What was expected before it began, if anything could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<EstimateReport>,
    /// Wall time of this command.
    pub seconds_total: f64,
    /// Sum over processes of each one's peak, in bytes.
    pub peak_rss_bytes: u64,
}

/// What was expected of a render, against what came.
#[derive(Clone, Debug, Serialize)]
pub struct EstimateReport {
    low_s: f64,
    high_s: f64,
    /// Time that it took over the middle of the two.
    off: f64,
    basis: String,
}

/// A shot after the first.
#[derive(Clone, Debug, Serialize)]
pub struct ShotReport {
    first_frame: u32,
    prompt: String,
}

/// One window.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentReport {
    index: u32,
    first_frame: u32,
    frames: u32,
    seed: u64,
    worker: String,
    attempts: u32,
    reused: bool,
    seconds: BTreeMap<String, f64>,
}

/// One join.
#[derive(Clone, Debug, Serialize)]
pub struct SeamReport {
    frame: u32,
    method: String,
    seam_ratio: f64,
    warp_ratio: f64,
    sharpness: f64,
}

/// Phases that every window reports, in seconds; those that did not happen took none.
const PHASES: [&str; 7] = [
    "text", "pass1", "upsample", "pass2", "decode", "encode", "total",
];

impl Report {
    /// The report of a job that is done.
    pub fn new(
        job: &v1::Job,
        output: &Path,
        wanted: &Wanted,
        took: Duration,
        preview: Option<PreviewReport>,
    ) -> Self {
        let spec = &wanted.spec;
        Self {
            job: job.job.clone(),
            output: output.to_owned(),
            prompt: spec.prompt.clone(),
            width: spec.width,
            height: spec.height,
            fps: spec.fps,
            frames: spec.frames,
            engine: job.engine.clone(),
            isa: job.isa.clone().unwrap_or_default(),
            shots: (spec.shots.iter())
                .map(|shot| ShotReport {
                    first_frame: shot.first_frame,
                    prompt: shot.prompt.clone(),
                })
                .collect(),
            notices: (wanted.notices.iter().chain(&job.notices).cloned()).collect(),
            segments: job.segments.iter().map(SegmentReport::new).collect(),
            seams: job.seams.iter().map(SeamReport::new).collect(),
            preview,
            estimate: None,
            seconds_total: took.as_secs_f64(),
            peak_rss_bytes: job.workers_peak_rss_bytes + longtake_agent::host::peak_rss_bytes(),
        }
    }
}

impl Report {
    /// Writes the report to `path`; the JSON that it has.
    pub fn write(&self, path: &Path) -> Result<String> {
        let text = serde_json::to_string(self)?;
        crate::output::write_whole(path, format!("{text}\n").as_bytes())?;
        Ok(text)
    }

    /// Says how far an estimate was off; not where some of the work was there already.
    pub fn compare(&mut self, estimate: Option<&Estimate>) {
        let fresh = self.segments.iter().all(|segment| !segment.reused);
        self.estimate = estimate.filter(|_| fresh).map(|estimate| EstimateReport {
            low_s: estimate.eta_s.low,
            high_s: estimate.eta_s.high,
            off: estimate.off(self.seconds_total),
            basis: estimate.basis.clone(),
        });
    }

    /// The same for people: `, expected 8 s to 16 s`, or nothing.
    pub fn estimate_text(&self) -> String {
        self.estimate.as_ref().map_or_else(String::new, |estimate| {
            let (low, high) = (duration(estimate.low_s), duration(estimate.high_s));
            format!(", expected {low} to {high}")
        })
    }
}

impl SegmentReport {
    fn new(segment: &v1::Segment) -> Self {
        let mut seconds: BTreeMap<String, f64> = PHASES
            .iter()
            .map(|phase| ((*phase).to_owned(), 0.0))
            .collect();
        seconds.extend(segment.seconds.iter().map(|(phase, s)| (phase.clone(), *s)));
        Self {
            index: segment.index,
            first_frame: segment.first_frame,
            frames: segment.frames,
            seed: segment.seed,
            worker: segment.worker.clone(),
            attempts: segment.attempts,
            reused: segment.reused,
            seconds,
        }
    }
}

impl SeamReport {
    fn new(seam: &v1::Seam) -> Self {
        Self {
            frame: seam.frame,
            method: seam.method.clone(),
            seam_ratio: seam.seam_ratio,
            warp_ratio: seam.warp_ratio,
            sharpness: seam.sharpness,
        }
    }
}
