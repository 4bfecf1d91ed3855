//! How much of a job is done and how long the rest will take, from what the job itself has shown.

use crate::dag::{self, TaskKind};
use crate::state::{Core, Job, Status, Task};
use longtake_common::spec::Continuity;

/// A running task has to be this far before its own speed is believed.
const PROGRESS_MIN: f64 = 0.05;

/// Tasks of one sort take time in proportion to their frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Text,
    Denoise,
    Preview,
    Refine,
    Decode,
    Seam,
    Mux,
}

fn sort(kind: TaskKind) -> Sort {
    match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => Sort::Text,
        TaskKind::Denoise(_) => Sort::Denoise,
        TaskKind::Preview(_) => Sort::Preview,
        TaskKind::Refine(_) => Sort::Refine,
        TaskKind::Decode(_) => Sort::Decode,
        TaskKind::Seam(_) => Sort::Seam,
        TaskKind::Mux => Sort::Mux,
    }
}

fn weight(job: &Job, kind: TaskKind) -> f64 {
    dag::unit_weight(kind) * dag::units(&job.plan, kind)
}

/// Seconds that a weight of one takes, for one sort of task or for all.
#[derive(Clone, Copy, Default)]
struct Speed {
    seconds: f64,
    weight: f64,
}

impl Speed {
    fn of<'a>(
        now_ms: u64,
        job: &Job,
        tasks: impl Iterator<Item = (&'a TaskKind, &'a Task)>,
    ) -> Self {
        let mut speed = Self::default();
        for (&kind, task) in tasks {
            if let Some((seconds, share)) = measured(now_ms, task) {
                speed.seconds += seconds;
                speed.weight += share * weight(job, kind);
            }
        }
        speed
    }

    fn seconds_per_weight(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.seconds / self.weight)
    }
}

/// (seconds, share of the task that took them).
fn measured(now_ms: u64, task: &Task) -> Option<(f64, f64)> {
    if let Some(finish) = &task.record.finish {
        return finish
            .elapsed_ms
            .map(|elapsed_ms| (elapsed_ms as f64 / 1000.0, 1.0));
    }
    let running = matches!(task.status, Status::Running(_)) && task.progress >= PROGRESS_MIN;
    let then_ms = task.assigned_ms.filter(|_| running)?;
    Some((
        now_ms.saturating_sub(then_ms) as f64 / 1000.0,
        task.progress,
    ))
}

/// What is left of the chain of windows of which most is left; a cut begins another chain.
fn longest_chain<'a>(
    job: &Job,
    windows: impl Iterator<Item = (&'a TaskKind, &'a Task)>,
    left: impl Fn((&'a TaskKind, &'a Task)) -> f64,
) -> f64 {
    let (mut longest, mut chain) = (0.0_f64, 0.0);
    for (kind, task) in windows {
        if matches!(kind, TaskKind::Denoise(index) if !job.plan.continues(*index)) {
            chain = 0.0;
        }
        chain += left((kind, task));
        longest = longest.max(chain);
    }
    longest
}

impl Core {
    /// Share of the job's work that is done, 0..1.
    pub(crate) fn progress(&self, job: &Job) -> f64 {
        let (mut all, mut done) = (0.0, 0.0);
        for (&kind, task) in &job.tasks {
            let weight = weight(job, kind);
            all += weight;
            done += weight * task.progress;
        }
        if job.left == 0 { 1.0 } else { done / all }
    }

    /// Seconds until the job is done: the work that is left over the workers that are there, or the
    /// longest run of tasks that wait for each other, whichever is more. Other jobs are not counted.
    pub(crate) fn eta_s(&self, now_ms: u64, job: &Job) -> Option<f64> {
        if !job.is_open() || self.workers.is_empty() {
            return None;
        }
        let overall = Speed::of(now_ms, job, job.tasks.iter()).seconds_per_weight()?;
        let (mut work, mut serial) = (0.0, 0.0);
        for of_sort in [
            Sort::Text,
            Sort::Denoise,
            Sort::Preview,
            Sort::Refine,
            Sort::Decode,
            Sort::Seam,
            Sort::Mux,
        ] {
            let tasks = || {
                job.tasks
                    .iter()
                    .filter(move |(kind, _)| sort(**kind) == of_sort)
            };
            let speed = Speed::of(now_ms, job, tasks())
                .seconds_per_weight()
                .unwrap_or(overall);
            let left = |(kind, task): (&TaskKind, &Task)| {
                speed * weight(job, *kind) * (1.0 - task.progress)
            };
            work += tasks().map(left).sum::<f64>();
            serial += match (of_sort, job.record.spec.continuity) {
                // Each window of a chain waits for the one before; chains go on beside each other.
                (Sort::Denoise | Sort::Refine, Continuity::Chain) => {
                    longest_chain(job, tasks(), left)
                }
                (Sort::Mux, _) => tasks().map(left).sum(),
                _ => tasks().next_back().map_or(0.0, left),
            };
        }
        Some((work / self.workers.len() as f64).max(serial))
    }
}
