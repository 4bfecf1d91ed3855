//! Who works, who may be given something, and what users are shown of it.

use crate::dag::TaskKind;
use crate::models::Fetching;
use crate::state::{Core, Job, LANES};
use longtake_common::ids::{FencingToken, Hash, JobId, TaskId, WorkerId};
use longtake_common::task::{Lane, Share};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What a worker says of itself when it connects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// What people call it; stays the same when it connects again.
    pub name: String,
    /// Tells processes of one name apart: the same for all connections of a process.
    pub instance: String,
    /// What it renders on: `cpu`.
    pub device: String,
    /// Instruction-set level; only workers of one level make the same bytes.
    pub isa: String,
    /// Threads that it renders with.
    pub threads: u32,
    /// Memory of its machine in bytes.
    pub memory_bytes: u64,
    /// Models that it has.
    pub models: BTreeSet<Hash>,
    /// It also looks for a model under the path that the job names, because whoever gives jobs is
    /// the one who started it.
    pub takes_paths: bool,
    /// Ranks of a gang that it can be at a time.
    pub ranks: u32,
    /// Where those are reached by others; `None` when they form gangs among themselves only.
    pub gang_address: Option<IpAddr>,
    /// Tells machines apart: ranks of one machine reach each other whatever their address.
    pub machine: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub info: WorkerInfo,
    pub last_seen_ms: u64,
    /// What it does in each lane.
    pub lanes: BTreeMap<Lane, (JobId, TaskKind)>,
    /// The gang that its device lane follows.
    pub follows: Option<FencingToken>,
    pub peak_rss_bytes: u64,
    /// It was told to stop.
    pub leaving: bool,
    /// What is wrong where it is, and until when it is left alone for that.
    pub trouble: Option<(u64, String)>,
    /// The model that it is fetching.
    pub fetching: Option<Fetching>,
}

impl Worker {
    pub fn new(now_ms: u64, info: WorkerInfo) -> Self {
        Self {
            info,
            last_seen_ms: now_ms,
            lanes: BTreeMap::new(),
            follows: None,
            peak_rss_bytes: 0,
            leaving: false,
            trouble: None,
            fetching: None,
        }
    }

    /// Whether it has the model that `job` is rendered with.
    pub fn has_model(&self, job: &Job) -> bool {
        let mut hashes = job.record.spec.model_hashes();
        hashes.all(|hash| self.info.models.contains(&hash))
    }

    /// Whether work of `job` in this lane comes out on it as it has to.
    pub fn has_level(&self, lane: Lane, job: &Job) -> bool {
        let isa = job.record.isa.as_deref();
        lane == Lane::Host || isa.is_none_or(|isa| isa == self.info.isa)
    }
}

/// Whether a worker gets work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Has nothing to do.
    Idle,
    /// Works.
    Busy,
    /// Finishes what it has and gets nothing new.
    Draining,
    /// Gets nothing new and has nothing left.
    Drained,
}

impl WorkerState {
    /// As in the JSON of `workers list`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// Work in a worker's hands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerTask {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
    /// Share that is done, 0..1.
    pub progress: f64,
    /// Which ranks of it the worker is, where it is shared with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// A worker, as users see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerView {
    /// This connection of it.
    pub worker: WorkerId,
    /// What it is.
    pub info: WorkerInfo,
    /// Whether it gets work.
    pub state: WorkerState,
    /// What it does, the device's work first.
    pub tasks: Vec<WorkerTask>,
    /// Peak memory of its process so far, in bytes.
    pub peak_rss_bytes: u64,
    /// The model that it is fetching.
    pub fetching: Option<Fetching>,
}

impl Core {
    /// All workers that are connected, by id.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> {
        self.workers
            .iter()
            .map(|(id, worker)| self.worker_view(id, worker))
    }

    fn worker_view(&self, id: &WorkerId, worker: &Worker) -> WorkerView {
        let task = |(job, kind): &(JobId, TaskKind)| {
            let task = &self.jobs[job].tasks[kind];
            WorkerTask {
                job: job.clone(),
                task: kind.id(),
                progress: task.progress,
                share: self.share(task.record.token, id),
            }
        };
        let followed = worker.follows.and_then(|gang| self.gangs.get(&gang));
        let followed = followed.map(|gang| (gang.job.clone(), gang.kind));
        let held: Vec<_> = followed.iter().chain(worker.lanes.values()).collect();
        let state = match (self.accepts(id), held.is_empty()) {
            (true, true) => WorkerState::Idle,
            (true, false) => WorkerState::Busy,
            (false, false) => WorkerState::Draining,
            (false, true) => WorkerState::Drained,
        };
        WorkerView {
            worker: id.clone(),
            info: worker.info.clone(),
            state,
            tasks: held.into_iter().map(task).collect(),
            peak_rss_bytes: worker.peak_rss_bytes,
            fetching: worker.fetching,
        }
    }

    /// Why a worker cannot be taken in, as a sentence for whoever started it. Results are told apart
    /// by the names of those who made them, and a name is what people drain.
    pub fn refuse_attach(&self, info: &WorkerInfo) -> Option<String> {
        let mut others = self.workers.values().map(|worker| &worker.info);
        let is_taken =
            others.any(|other| other.name == info.name && other.instance != info.instance);
        is_taken.then(|| {
            format!(
                "another worker is connected under the name '{}': start this one with another --name",
                info.name
            )
        })
    }

    /// Connections of the same process that nobody has noticed the end of.
    pub(crate) fn earlier_connections(&self, info: &WorkerInfo) -> Vec<WorkerId> {
        let of_process = self.workers.iter().filter(|(_, worker)| {
            worker.info.name == info.name && worker.info.instance == info.instance
        });
        of_process.map(|(id, _)| id.clone()).collect()
    }

    /// Whether a worker takes new work at all.
    pub(crate) fn accepts(&self, worker: &WorkerId) -> bool {
        let state = self.workers.get(worker);
        state.is_some_and(|state| {
            let willing = !state.leaving && state.trouble.is_none();
            willing && !self.drained.contains(&state.info.name)
        })
    }

    /// Leaves a worker alone for a while: something is wrong where it is.
    pub(crate) fn rest(&mut self, worker: &WorkerId, trouble: String) {
        let until_ms = self.last_tick_ms + self.limits.rest_ms;
        if let Some(state) = self.workers.get_mut(worker) {
            state.trouble = Some((until_ms, trouble));
            self.refresh(worker);
        }
    }

    /// Has workers tried again whose rest is over.
    pub(crate) fn wake(&mut self, now_ms: u64) {
        let rested =
            |state: &Worker| matches!(state.trouble, Some((until_ms, _)) if now_ms >= until_ms);
        let workers = self.workers.iter().filter(|(_, state)| rested(state));
        for worker in workers.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            if let Some(state) = self.workers.get_mut(&worker) {
                state.trouble = None;
            }
            self.refresh(&worker);
        }
    }

    /// Enters a worker where it may be given something, and nowhere else.
    pub(crate) fn refresh(&mut self, worker: &WorkerId) {
        let accepts = self.accepts(worker);
        for lane in LANES {
            let has_work = (self.workers.get(worker)).is_some_and(|state| {
                let follows = lane == Lane::Device && state.follows.is_some();
                follows || state.lanes.contains_key(&lane)
            });
            let free = self.free.get_mut(&lane).expect("every lane has a set");
            if accepts && !has_work {
                free.insert(worker.clone());
            } else {
                free.remove(worker);
            }
        }
    }
}
