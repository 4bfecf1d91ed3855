//! What users are shown of a job.

use longtake_common::ids::{Hash, JobId};
use longtake_common::spec::JobSpec;
use longtake_common::task::SeamScore;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Nothing of it was started.
    Queued,
    /// Some of it was started or is done.
    Running,
    /// The film is stored.
    Done,
    /// A task cannot be done; see the error.
    Failed,
    /// A user stopped it.
    Cancelled,
}

impl JobState {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// As in the JSON of `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A window of a job, as users see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentView {
    /// Place in the film, from 0.
    pub index: u32,
    /// First frame.
    pub first_frame: u32,
    /// Frames of it that the film shows.
    pub frames: u32,
    /// Seed of its noise.
    pub seed: u64,
    /// Decoded and stored.
    pub done: bool,
    /// Name of the worker that denoised it last; empty before.
    pub worker: String,
    /// How often its denoising or its decoding was given out, whichever is more.
    pub attempts: u32,
    /// It was there before the job was submitted (last).
    pub reused: bool,
    /// Phase to seconds, with `total`; the seam before the window counts to it.
    pub seconds: BTreeMap<String, f64>,
    /// Its latents, once denoised.
    pub latents: Option<Hash>,
}

/// A job, as users see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// How far it is.
    pub state: JobState,
    /// Why it failed; empty otherwise.
    pub error: String,
    /// Windows in film order.
    pub segments: Vec<SegmentView>,
    /// Scores of the seams, once the film is there.
    pub seams: Vec<SeamScore>,
    /// Seconds that it will still take; `None` before anything was measured.
    pub eta_s: Option<f64>,
    /// Share of the job's work that is done, 0..1.
    pub progress: f64,
    /// The film, once done.
    pub video: Option<Hash>,
    /// The film's encoded chunks in order, once done.
    pub chunks: Vec<Hash>,
    /// Notes for the user, each once.
    pub notices: Vec<String>,
    /// Sum over the job's workers of each one's peak memory.
    pub workers_peak_rss_bytes: u64,
}
