//! What users are shown of a job.

use crate::dag::{self, TaskKind};
use crate::plan::{Shares, Source};
use crate::state::{Core, Job, Task};
use longtake_common::ids::{Hash, JobId};
use longtake_common::spec::JobSpec;
use longtake_common::task::{SeamScore, Window};
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
    /// A user has it wait.
    Paused,
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
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An encoded stretch of the film that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChunkView {
    /// First frame in the film.
    pub first_frame: u32,
    /// Length.
    pub frames: u32,
    /// The artifact.
    pub chunk: Hash,
}

/// What is stored of a decoded window, and how its frames are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PartsView {
    /// Frames of each part.
    pub shares: Shares,
    /// Lossless frames shared with the window before, and those over which the seam fades out.
    pub head: Option<Hash>,
    /// Encoded frames.
    pub interior: Option<Hash>,
    /// Lossless lead and frames shared with the window after.
    pub tail: Option<Hash>,
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
    /// Name of the worker that does or did its last pass; empty before.
    pub worker: String,
    /// How often one of its passes or its decoding was given out, whichever is most.
    pub attempts: u32,
    /// It was there before the job was submitted (last).
    pub reused: bool,
    /// Phase to seconds, with `total`; the seam before the window counts to it.
    pub seconds: BTreeMap<String, f64>,
    /// Its latents, once the last pass is done.
    pub latents: Option<Hash>,
    /// The first of two passes, encoded, without what the next window shows as well.
    pub preview: Option<Hash>,
    /// How often it was rendered anew after the film was there.
    pub take: u32,
    /// What it shows, when that is not the job's prompt.
    pub prompt: Option<String>,
    /// What is stored of the stretch that it shows: the seam before it, its interior, the seam after
    /// it, without gaps. There is more of it the further its neighbours are.
    pub chunks: Vec<ChunkView>,
    /// What it was taken apart into, once decoded.
    pub parts: Option<PartsView>,
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
    /// Seconds that putting it together took, once done.
    pub mux_seconds: Option<f64>,
    /// The film's encoded chunks in order, once done.
    pub chunks: Vec<Hash>,
    /// Notes for the user, each once.
    pub notices: Vec<String>,
    /// Sum over the job's workers of each one's peak memory.
    pub workers_peak_rss_bytes: u64,
    /// Instruction-set level of the workers that render it, once that is settled.
    pub isa: Option<String>,
    /// What renders it.
    pub engine: String,
}

impl Core {
    /// What users are shown of a job at a time, if there is such a job.
    pub fn view(&self, now_ms: u64, id: &JobId) -> Option<JobView> {
        let job = self.jobs.get(id)?;
        let state = job.state();
        let mux = self.output(&job.tasks[&TaskKind::Mux]);
        let mux = mux.filter(|_| state == JobState::Done);
        let chunks = self.stored_chunks(job);
        let segment = |window: &Window| SegmentView {
            chunks: chunks[window.index as usize].clone(),
            ..self.segment(job, window)
        };
        Some(JobView {
            job: id.clone(),
            spec: job.record.spec.clone(),
            state,
            error: job.record.error.clone(),
            segments: job.plan.windows.iter().map(segment).collect(),
            seams: mux.map(|output| output.seams.clone()).unwrap_or_default(),
            eta_s: (state != JobState::Paused)
                .then(|| self.eta_s(now_ms, job))
                .flatten(),
            progress: self.progress(job),
            video: mux.and_then(|output| output.artifacts.get("video").copied()),
            mux_seconds: mux.and_then(|output| output.seconds.get("total").copied()),
            chunks: mux.and_then(|_| self.chunks(job)).unwrap_or_default(),
            notices: self.notices(job),
            workers_peak_rss_bytes: self.workers_peak_rss_bytes(id, job),
            isa: job.record.isa.clone(),
            engine: job.record.engine.clone(),
        })
    }

    fn segment(&self, job: &Job, window: &Window) -> SegmentView {
        let index = window.index;
        let task = |kind| job.tasks.get(&kind);
        let last_pass = task(dag::last_pass(&job.plan, index));
        let decode = task(TaskKind::Decode(index));
        let own = [task(TaskKind::Denoise(index)), last_pass, decode];
        let reused = |task: Option<&Task>| {
            task.and_then(|task| task.record.finish.as_ref())
                .is_some_and(|finish| finish.reused)
        };
        let attempts = |task: Option<&Task>| task.map_or(0, |task| task.record.attempts);
        let artifact = |task: Option<&Task>, name| {
            let output = task.and_then(|task| self.output(task))?;
            output.artifacts.get(name).copied()
        };
        SegmentView {
            index,
            first_frame: window.first_frame,
            frames: window.visible_frames,
            seed: window.seed,
            done: decode.is_some_and(|task| self.output(task).is_some()),
            worker: last_pass.map(|task| self.made_by(task)).unwrap_or_default(),
            attempts: own.into_iter().map(attempts).max().unwrap_or(0),
            reused: own.into_iter().all(reused),
            seconds: self.seconds(job, index),
            latents: artifact(last_pass, "latents"),
            preview: artifact(task(TaskKind::Preview(index)), "interior"),
            take: job.record.takes.get(&index).map_or(0, |take| take.number),
            prompt: Some(job.plan.prompt(&job.record.spec, index))
                .filter(|prompt| *prompt != job.record.spec.prompt)
                .map(str::to_owned),
            chunks: Vec::new(),
            parts: (decode.and_then(|task| self.output(task))).map(|output| {
                let artifact = |name| output.artifacts.get(name).copied();
                PartsView {
                    shares: job.plan.shares(index),
                    head: artifact("head"),
                    interior: artifact("interior"),
                    tail: artifact("tail"),
                }
            }),
        }
    }

    /// The chunks that are stored, for each window those that show it.
    fn stored_chunks(&self, job: &Job) -> Vec<Vec<ChunkView>> {
        let mut chunks = vec![Vec::new(); job.plan.windows.len()];
        for span in job.plan.spans() {
            let (kind, name, windows) = match span.source {
                Source::Interior(index) => (TaskKind::Decode(index), "interior", index..index + 1),
                Source::Seam(index) => (TaskKind::Seam(index), "chunk", index..index + 2),
            };
            let output = self.output(&job.tasks[&kind]);
            let Some(&chunk) = output.and_then(|output| output.artifacts.get(name)) else {
                continue;
            };
            for window in windows {
                chunks[window as usize].push(ChunkView {
                    first_frame: span.first_frame,
                    frames: span.frames,
                    chunk,
                });
            }
        }
        chunks
    }

    /// Sums the phases of a window's tasks. A shot's prompts count to its first window.
    fn seconds(&self, job: &Job, index: u32) -> BTreeMap<String, f64> {
        let shot = |index: u32| job.plan.shots[index as usize];
        let begins = index == 0 || shot(index - 1) != shot(index);
        let text = begins.then(|| match shot(index) {
            0 => TaskKind::Text,
            later => TaskKind::ShotText(later),
        });
        let seam = index.checked_sub(1).map(TaskKind::Seam);
        let own = [
            TaskKind::Denoise(index),
            TaskKind::Preview(index),
            TaskKind::Refine(index),
            TaskKind::Decode(index),
        ]
        .map(Some);
        let mut seconds = BTreeMap::new();
        let own_text = Some(TaskKind::OwnText(index));
        for kind in [text, own_text, seam].into_iter().chain(own).flatten() {
            let Some(output) = job.tasks.get(&kind).and_then(|task| self.output(task)) else {
                continue;
            };
            for (phase, value) in &output.seconds {
                if phase != "total" && value.is_finite() {
                    *seconds.entry(phase.clone()).or_insert(0.0) += value;
                }
            }
        }
        let total = seconds.values().sum();
        seconds.insert("total".to_owned(), total);
        seconds
    }

    pub(crate) fn chunks(&self, job: &Job) -> Option<Vec<Hash>> {
        let artifact = |kind: TaskKind, name: &'static str| {
            let output = self.output(&job.tasks[&kind]);
            output
                .and_then(|output| output.artifacts.get(name).copied())
                .ok_or(())
        };
        dag::chunks(&job.plan, artifact).ok()
    }

    fn notices(&self, job: &Job) -> Vec<String> {
        let mut notices = Vec::new();
        let outputs = job.tasks.values().filter_map(|task| self.output(task));
        for notice in outputs.flat_map(|output| &output.notices) {
            if !notices.contains(notice) {
                notices.push(notice.clone());
            }
        }
        if job.is_open() {
            notices.extend(self.troubles());
        }
        notices
    }

    /// Name of the worker that has a task or has done it, for another job perhaps.
    fn made_by(&self, task: &Task) -> String {
        match self.output(task) {
            Some(output) => output.worker.clone(),
            None => task.record.worker.clone(),
        }
    }

    fn workers_peak_rss_bytes(&self, id: &JobId, job: &Job) -> u64 {
        let mut peaks: BTreeMap<&str, u64> = BTreeMap::new();
        for task in job.tasks.values() {
            // What came from elsewhere says nothing about this job's workers.
            let own = task
                .record
                .finish
                .as_ref()
                .is_some_and(|finish| !finish.reused);
            if let Some(output) = self.output(task).filter(|_| own) {
                let peak = peaks.entry(&task.record.worker).or_default();
                *peak = output.peak_rss_bytes.max(*peak);
            }
        }
        for worker in self.workers.values() {
            let works_on_it = worker.lanes.values().any(|(held, _)| held == id);
            if works_on_it || peaks.contains_key(worker.info.name.as_str()) {
                let peak = peaks.entry(&worker.info.name).or_default();
                *peak = worker.peak_rss_bytes.max(*peak);
            }
        }
        peaks.values().sum()
    }
}
