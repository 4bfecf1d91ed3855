//! The farm in figures, for whoever watches or scales it.

use crate::dag::{self, TaskKind};
use crate::state::{Core, Job, Status};
use crate::view::JobState;
use longtake_common::task::Lane;
use std::collections::BTreeMap;

/// Seconds that a device takes for one pixel of one unit of work before the farm has measured
/// anything: an order of magnitude, so that an empty farm sees that it needs workers.
const SECONDS_PER_PIXEL_UNIT: f64 = 2e-6;

/// How many of everything there are now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Census {
    /// Jobs by state, with every state named.
    pub jobs: BTreeMap<&'static str, usize>,
    /// Windows of unfinished jobs: `waiting` for others, `ready` to be given out, `running`, `done`.
    pub windows: BTreeMap<&'static str, usize>,
    /// Tasks that could be given out if there were a worker, by lane.
    pub ready: BTreeMap<&'static str, usize>,
    /// Tasks in the hands of workers, by lane.
    pub running: BTreeMap<&'static str, usize>,
    /// Workers that are attached.
    pub workers: usize,
    /// Seconds that one device would take for all the model's work that is left.
    pub backlog_device_s: f64,
    /// Seconds that the stored results took, by phase. Never falls.
    pub phase_seconds: BTreeMap<String, f64>,
}

fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Device => "device",
        Lane::Host => "host",
    }
}

/// Work of a task in pixel units: what one unit weighs, times units, times pixels of a frame.
fn pixel_units(job: &Job, kind: TaskKind) -> f64 {
    let spec = &job.record.spec;
    let pixels = f64::from(spec.width) * f64::from(spec.height);
    dag::unit_weight(kind) * dag::units(&job.plan, kind) * pixels
}

/// Seconds that an amount of device work took.
#[derive(Clone, Copy, Default)]
struct Pace {
    seconds: f64,
    pixel_units: f64,
}

impl Pace {
    fn of(job: &Job) -> Self {
        let mut pace = Self::default();
        for (&kind, task) in &job.tasks {
            let elapsed_ms = task.record.finish.as_ref().and_then(|f| f.elapsed_ms);
            if let Some(elapsed_ms) = elapsed_ms.filter(|_| dag::lane(kind) == Lane::Device) {
                pace.seconds += elapsed_ms as f64 / 1000.0;
                pace.pixel_units += pixel_units(job, kind);
            }
        }
        pace
    }

    fn and(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            pixel_units: self.pixel_units + other.pixel_units,
        }
    }

    fn seconds_per_pixel_unit(self) -> Option<f64> {
        (self.pixel_units > 0.0 && self.seconds > 0.0).then(|| self.seconds / self.pixel_units)
    }
}

impl Core {
    /// Counts. Looks at every task of every job, so this is for somebody who asks now and then.
    pub fn census(&self) -> Census {
        let mut census = Census {
            workers: self.workers.len(),
            ..Census::default()
        };
        for state in [
            JobState::Queued,
            JobState::Running,
            JobState::Paused,
            JobState::Done,
            JobState::Failed,
            JobState::Cancelled,
        ] {
            census.jobs.insert(state.name(), 0);
        }
        for state in ["waiting", "ready", "running", "done"] {
            census.windows.insert(state, 0);
        }
        for (lane, queue) in &self.ready {
            census.ready.insert(lane_name(*lane), queue.len());
            census.running.insert(lane_name(*lane), 0);
        }
        for (_, lane, _, _) in self.holdings() {
            *census.running.entry(lane_name(lane)).or_default() += 1;
        }
        for job in self.jobs.values() {
            *census.jobs.entry(job.state().name()).or_default() += 1;
            if job.is_open() {
                for window in &job.plan.windows {
                    let state = window_state(job, window.index);
                    *census.windows.entry(state).or_default() += 1;
                }
            }
        }
        census.backlog_device_s = self.backlog_device_s();
        for output in self.memo.values() {
            for (phase, seconds) in &output.seconds {
                if phase != "total" && seconds.is_finite() && *seconds > 0.0 {
                    *census.phase_seconds.entry(phase.clone()).or_default() += seconds;
                }
            }
        }
        census
    }

    /// Work that is left, at the pace that its job has shown, else the farm, else a guess.
    fn backlog_device_s(&self) -> f64 {
        let farm = self
            .jobs
            .values()
            .map(Pace::of)
            .fold(Pace::default(), Pace::and);
        let farm = farm
            .seconds_per_pixel_unit()
            .unwrap_or(SECONDS_PER_PIXEL_UNIT);
        let open = self.jobs.values().filter(|job| job.is_open());
        open.map(|job| {
            let pace = Pace::of(job).seconds_per_pixel_unit().unwrap_or(farm);
            let device = job
                .tasks
                .iter()
                .filter(|(kind, _)| dag::lane(**kind) == Lane::Device);
            let left = device.map(|(&kind, task)| pixel_units(job, kind) * (1.0 - task.progress));
            left.sum::<f64>() * pace
        })
        // The sum of nothing is -0.0.
        .fold(0.0, |sum, seconds| sum + seconds)
    }
}

fn window_state(job: &Job, index: u32) -> &'static str {
    let status = |kind| job.tasks.get(&kind).map(|task| &task.status);
    let own = [
        status(TaskKind::Denoise(index)),
        status(TaskKind::Refine(index)),
        status(TaskKind::Decode(index)),
    ];
    let any = |wanted: fn(&Status) -> bool| own.iter().flatten().any(|status| wanted(status));
    if own[2] == Some(&Status::Done) {
        "done"
    } else if any(|status| matches!(status, Status::Running(_) | Status::Orphan { .. })) {
        "running"
    } else if any(|status| *status == Status::Ready) {
        "ready"
    } else {
        "waiting"
    }
}
