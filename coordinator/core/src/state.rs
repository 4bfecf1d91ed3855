//! What the coordinator knows: jobs with their tasks, workers, results by content.

use crate::dag::{self, TaskKind};
use crate::gang::Gang;
use crate::logs::FailedTry;
use crate::memory::least_bytes;
use crate::models::{Fault, StoredModel};
use crate::plan::{Plan, Take, plan};
use crate::view::JobState;
use crate::workers::Worker;
use longtake_common::ids::{Epoch, FencingToken, Hash, JobId, TaskId, WorkerId};
use longtake_common::spec::JobSpec;
use longtake_common::task::{Lane, TaskOutput};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// When to give up on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A worker that was silent for so long is lost.
    pub lease_ms: u64,
    /// After a restart, how long work that was given out is kept for its worker to come back.
    pub adopt_ms: u64,
    /// Failed tries of a task after which its job fails.
    pub failures_max: u32,
    /// Worker processes that may be lost with a task in hand without failing its job. That a worker
    /// dies is not the task's fault as a rule; but a task may be what kills them.
    pub losses_max: u32,
    /// How long a worker gets nothing after a failure that was its place's fault.
    pub rest_ms: u64,
    /// How often the artifact store may lose what a task has made without failing its job: a store
    /// that loses it again and again keeps nothing.
    pub remakes_max: u32,
    /// How long a gang's ranks may take to load what they need, fetching a model included.
    pub seat_ms: u64,
    /// How long they may take to join each other then.
    pub join_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease_ms: 3000,
            adopt_ms: 3000,
            failures_max: 3,
            losses_max: 16,
            rest_ms: 5000,
            remakes_max: 5,
            seat_ms: 1_800_000,
            join_ms: 20_000,
        }
    }
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finish {
    /// Name of the result among the [`Core::memo`](crate::Core)'s.
    pub key: Hash,
    /// The result was there before the job was submitted (last).
    pub reused: bool,
    /// From giving it out to having it back; unknown when a restart lay between.
    pub elapsed_ms: Option<u64>,
}

/// What was stored of work that is not done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Halfway {
    /// Name of the result that it leads to.
    pub of: Hash,
    /// Where to go on.
    pub artifact: Hash,
}

/// The part of a task that outlives the coordinator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskRecord {
    /// How often it was given out.
    pub attempts: u32,
    /// How often it came back as failed.
    pub failures: u32,
    /// The worker processes that were lost with it in hand, and have not come back; the gangs that
    /// lost a rank.
    #[serde(default)]
    pub lost_with: BTreeSet<String>,
    /// Of the latest time that it was given out: only this one is taken back.
    pub token: Option<FencingToken>,
    /// Name of the result of what was given out then. Inputs that are made again may differ, and
    /// what was made of the old ones is no result of the new.
    #[serde(default)]
    pub given: Option<Hash>,
    /// Name of the worker that had it last.
    pub worker: String,
    /// Names of the workers that it failed on.
    pub failed_on: BTreeSet<String>,
    /// What the last of them said.
    #[serde(default)]
    pub last_error: String,
    /// How often the artifact store lost what it had made.
    #[serde(default)]
    pub remakes: u32,
    /// What was said in the latest tries that failed.
    #[serde(default)]
    pub failed_tries: Vec<FailedTry>,
    /// Where a worker left it that had to go in the middle of it.
    #[serde(default)]
    pub halfway: Option<Halfway>,
    /// It is in a worker's hands, as far as is known.
    pub in_flight: bool,
    /// Set once it is done.
    pub finish: Option<Finish>,
}

/// Stands before the token of a gang that lost a rank, among the workers that were lost.
const GANG: &str = "gang ";

impl TaskRecord {
    /// Notes that its gang under `token` has ended, and how.
    pub fn lose_gang(&mut self, token: FencingToken, story: String) {
        self.lost_with.insert(format!("{GANG}{token}"));
        self.last_error = story;
    }

    /// Whether it has lost gangs.
    pub fn has_lost_gang(&self) -> bool {
        self.lost_with.iter().any(|lost| lost.starts_with(GANG))
    }
}

/// Where a task is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    /// So many of its inputs are missing.
    Waiting(usize),
    /// May be given out.
    Ready,
    /// This worker has it.
    Running(WorkerId),
    /// A worker had it before the coordinator started; until then it may come back with it.
    Orphan { until_ms: u64 },
    /// Its result is there.
    Done,
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub status: Status,
    pub record: TaskRecord,
    /// Name of the result and lane; known from when its inputs are there.
    pub work: Option<(Hash, Lane)>,
    /// Share that is done, as its worker says.
    pub progress: f64,
    /// When it was given out; unknown when a restart lay between.
    pub assigned_ms: Option<u64>,
    /// When its worker last named it.
    pub seen_ms: u64,
}

impl Task {
    /// A task that nobody has touched and that waits for `missing` others.
    pub fn new(missing: usize) -> Self {
        Self {
            status: Status::Waiting(missing),
            record: TaskRecord::default(),
            work: None,
            progress: 0.0,
            assigned_ms: None,
            seen_ms: 0,
        }
    }
}

impl Task {
    /// Whether it is still the work that was given out last.
    pub fn is_as_given(&self) -> bool {
        let key = self.work.map(|(key, _)| key);
        key.is_some() && key == self.record.given
    }

    /// Nobody has it, and it waits for `missing` others.
    pub fn set_back(&mut self, missing: usize) {
        (self.status, self.progress) = (Status::Waiting(missing), 0.0);
        self.work = None;
    }
}

/// The part of a job that outlives the coordinator, besides its tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    /// Jobs are served in this order.
    pub seq: u64,
    /// Of the planner; windows of another one may differ.
    pub plan_version: u32,
    /// What renders it: one film is of one engine.
    #[serde(default)]
    pub engine: String,
    pub spec: JobSpec,
    pub state: StoredState,
    /// Why it failed.
    pub error: String,
    /// Nothing more of it is given out until a user resumes it.
    #[serde(default)]
    pub paused: bool,
    /// Instruction-set level of the workers that may render it: its user's choice, or that of the
    /// first worker that took some of it.
    #[serde(default)]
    pub isa: Option<String>,
    /// Ranks that share each window, if its user wants a certain number.
    #[serde(default)]
    pub ranks: Option<u32>,
    /// The latest take of each window that was rendered anew.
    #[serde(default)]
    pub takes: BTreeMap<u32, Take>,
}

/// Queued and running are not told apart in storage: the tasks say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoredState {
    Open,
    Done,
    Failed,
    Cancelled,
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub record: JobRecord,
    pub plan: Plan,
    pub tasks: BTreeMap<TaskKind, Task>,
    /// Tasks that are not done.
    pub left: usize,
    /// The memory without which no worker can render it, in bytes.
    pub least_bytes: u64,
}

impl Job {
    pub fn new(record: JobRecord) -> Self {
        let mut plan = plan(&record.spec);
        for (window, take) in &record.takes {
            plan.apply(*window, take);
        }
        let task = |kind| {
            (
                kind,
                Task::new(dag::inputs(&record.spec, &plan, kind).len()),
            )
        };
        let tasks: BTreeMap<_, _> = dag::tasks(&plan).map(task).collect();
        Self {
            left: tasks.len(),
            least_bytes: least_bytes(&record.spec, &plan),
            record,
            plan,
            tasks,
        }
    }

    pub fn is_open(&self) -> bool {
        self.record.state == StoredState::Open
    }

    /// Whether what is ready may be given out.
    pub fn may_run(&self) -> bool {
        self.is_open() && !self.record.paused
    }

    /// How many of a task's inputs are not there.
    pub fn missing(&self, kind: TaskKind) -> usize {
        let inputs = dag::inputs(&self.record.spec, &self.plan, kind).into_iter();
        inputs
            .filter(|input| self.tasks[input].status != Status::Done)
            .count()
    }

    /// Counts anew what each unfinished task waits for; none of them is queued. Returns those that
    /// wait for nothing. What workers have in hand stays there.
    pub fn recount(&mut self) -> Vec<TaskKind> {
        let unfinished = |task: &Task| task.status != Status::Done;
        self.left = self.tasks.values().filter(|task| unfinished(task)).count();
        let idle = |task: &Task| {
            let held = matches!(task.status, Status::Running(_) | Status::Orphan { .. });
            unfinished(task) && !held
        };
        let idle = self.tasks.iter().filter(|(_, task)| idle(task));
        let waiting: Vec<_> = idle.map(|(&kind, _)| (kind, self.missing(kind))).collect();
        for &(kind, missing) in &waiting {
            let task = self.tasks.get_mut(&kind).expect("listed");
            task.set_back(missing);
        }
        let free = waiting.into_iter().filter(|(_, missing)| *missing == 0);
        free.map(|(kind, _)| kind).collect()
    }

    pub fn state(&self) -> JobState {
        match self.record.state {
            StoredState::Done => JobState::Done,
            StoredState::Failed => JobState::Failed,
            StoredState::Cancelled => JobState::Cancelled,
            StoredState::Open if self.record.paused => JobState::Paused,
            StoredState::Open => {
                let started = |task: &Task| task.record.attempts > 0 || task.status == Status::Done;
                let started = self.tasks.values().any(started);
                if started {
                    JobState::Running
                } else {
                    JobState::Queued
                }
            }
        }
    }
}

/// A ready task's place in its lane's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Older jobs first.
    pub seq: u64,
    pub priority: (u32, u32),
    pub kind: TaskKind,
}

/// The coordinator's mind. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) epoch: Epoch,
    pub(crate) limits: Limits,
    pub(crate) next_token: u64,
    pub(crate) next_seq: u64,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) job_by_seq: BTreeMap<u64, JobId>,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    /// Names of the workers that get nothing new, connected or not.
    pub(crate) drained: BTreeSet<String>,
    /// Stored models by name.
    pub(crate) models: BTreeMap<String, StoredModel>,
    /// What is wrong with models that are not to be used.
    pub(crate) faults: BTreeMap<Hash, Fault>,
    /// How many of the connected workers have a model.
    pub(crate) holders: BTreeMap<Hash, usize>,
    /// Results by [`crate::result_key`].
    pub(crate) memo: BTreeMap<Hash, TaskOutput>,
    /// Ready tasks by lane.
    pub(crate) ready: BTreeMap<Lane, BTreeSet<Place>>,
    /// Workers that may be given something, by lane.
    pub(crate) free: BTreeMap<Lane, BTreeSet<WorkerId>>,
    /// Gangs of more than one worker, those that form included.
    pub(crate) gangs: BTreeMap<FencingToken, Gang>,
    /// Tasks that wait for their workers to come back.
    pub(crate) orphans: BTreeSet<(JobId, TaskKind)>,
    pub(crate) last_tick_ms: u64,
}

pub(crate) const LANES: [Lane; 2] = [Lane::Device, Lane::Host];

impl Core {
    pub(crate) fn empty(now_ms: u64, epoch: Epoch, limits: Limits) -> Self {
        Self {
            epoch,
            limits,
            next_token: 1,
            next_seq: 0,
            jobs: BTreeMap::new(),
            job_by_seq: BTreeMap::new(),
            workers: BTreeMap::new(),
            drained: BTreeSet::new(),
            models: BTreeMap::new(),
            faults: BTreeMap::new(),
            holders: BTreeMap::new(),
            memo: BTreeMap::new(),
            ready: LANES.map(|lane| (lane, BTreeSet::new())).into(),
            free: LANES.map(|lane| (lane, BTreeSet::new())).into(),
            gangs: BTreeMap::new(),
            orphans: BTreeSet::new(),
            last_tick_ms: now_ms,
        }
    }

    /// The term that this core speaks for.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether there is such a job.
    pub fn has_job(&self, job: &JobId) -> bool {
        self.jobs.contains_key(job)
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.job_by_seq.values()
    }

    /// Who has what in hand, as far as is known.
    pub fn holdings(&self) -> impl Iterator<Item = (&WorkerId, Lane, &JobId, TaskId)> {
        self.workers.iter().flat_map(|(worker, state)| {
            let lanes = state.lanes.iter();
            lanes.map(move |(lane, (job, kind))| (worker, *lane, job, kind.id()))
        })
    }

    pub(crate) fn place(&self, job: &Job, kind: TaskKind) -> Place {
        let priority = kind.priority();
        Place {
            seq: job.record.seq,
            priority,
            kind,
        }
    }

    pub(crate) fn output(&self, task: &Task) -> Option<&TaskOutput> {
        task.record
            .finish
            .as_ref()
            .and_then(|finish| self.memo.get(&finish.key))
    }
}
