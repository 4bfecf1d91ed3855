//! What comes in and what goes out.

use crate::models::{Fault, Fetching, StoredModel};
use crate::workers::WorkerInfo;
use longtake_common::ids::{FencingToken, Hash, JobId, TaskId, WorkerId};
use longtake_common::spec::JobSpec;
use longtake_common::task::{Assignment, Share, TaskOutput};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Work that a worker says it has in hand, finished but unacknowledged work included.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
    /// From its assignment.
    pub token: FencingToken,
    /// Share that is done, 0..1.
    pub progress: f64,
    /// From its assignment: which ranks of a gang it is.
    pub share: Option<Share>,
}

/// Whose fault a failure is, which decides about the next try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The work itself is wrong: no worker can do it.
    Work,
    /// Unknown: another try or another worker may succeed.
    Try,
    /// The artifact store's: it has lost these inputs, or they are damaged there.
    Inputs(Vec<Hash>),
    /// The place's where it was done: a disk is full there.
    Place,
    /// Nobody's: the worker was told to stop. The artifact says where another can go on.
    Leaving(Option<Hash>),
    /// A rank of its gang was lost: no fault of the task.
    Gang,
    /// The worker with this rank of its gang cannot be reached from where the task was.
    Peer(u32),
}

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A user wants a film. Answered by [`Effect::Submitted`] or [`Effect::Refused`].
    Submit {
        /// Id for it, not in use yet. Not taken when an unfinished job with an equal spec goes on.
        job: JobId,
        /// What is wanted.
        spec: Box<JobSpec>,
        /// Instruction-set level to render on; `None` takes that of the first worker.
        isa: Option<String>,
        /// Ranks that share each window; `None` leaves it to the worker that has it.
        ranks: Option<u32>,
    },
    /// A user wants no more of a job.
    Cancel {
        /// Which; a finished one stays as it is.
        job: JobId,
    },
    /// A user wants a job to wait: nothing more of it is given out, what runs is finished.
    Pause {
        /// Which.
        job: JobId,
    },
    /// A user wants a paused job to go on.
    Resume {
        /// Which.
        job: JobId,
    },
    /// A user wants a failed or cancelled job to go on from what is stored.
    Retry {
        /// Which.
        job: JobId,
    },
    /// A user wants one window of a film again. Its seams and the film follow; its neighbours stay.
    Retake {
        /// The job.
        job: JobId,
        /// Place of the window in the film.
        window: u32,
        /// Seed for it; `None` takes one that the job has not used, or, when the prompt is new,
        /// keeps the window's.
        seed: Option<u64>,
        /// Prompt for it; `None` keeps the window's.
        prompt: Option<String>,
    },
    /// An operator wants a worker to get nothing new, now and when it connects again.
    Drain {
        /// Its name.
        name: String,
    },
    /// An operator wants a drained worker to work again.
    Undrain {
        /// Its name.
        name: String,
    },
    /// A worker connected.
    Attach {
        /// Never used before, not in an earlier term either.
        worker: WorkerId,
        /// What it is.
        info: WorkerInfo,
        /// Work that it has from an earlier connection.
        running: Vec<Running>,
    },
    /// A worker's connection ended.
    Detach {
        /// Which.
        worker: WorkerId,
    },
    /// A worker lives.
    Heartbeat {
        /// Which.
        worker: WorkerId,
        /// What it does.
        running: Vec<Running>,
        /// Peak memory of its process so far, in bytes.
        peak_rss_bytes: u64,
        /// It was told to stop and takes nothing new.
        leaving: bool,
    },
    /// A worker has a result. Answered by [`Effect::Ack`] or, when it is not wanted,
    /// [`Effect::Revoke`].
    Done {
        /// Which worker.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The task in it.
        task: TaskId,
        /// From its assignment.
        token: FencingToken,
        /// The result.
        output: Box<TaskOutput>,
    },
    /// A worker could not do a task. Answered like [`Event::Done`].
    Failed {
        /// Which worker.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The task in it.
        task: TaskId,
        /// From its assignment.
        token: FencingToken,
        /// Why.
        error: String,
        /// Whose fault that is.
        blame: Blame,
        /// What was said meanwhile: an artifact.
        log: Option<Hash>,
    },
    /// A worker's ranks of a gang have loaded what they need and can be reached. Answered by
    /// [`Effect::Roster`] to all of the gang when all have said so.
    Seated {
        /// Which worker.
        worker: WorkerId,
        /// Which gang: the token of its assignment.
        gang: FencingToken,
        /// Where its ranks are reached, in their order.
        seats: Vec<SocketAddr>,
        /// What links the ranks, from the worker with rank 0; see [`Effect::Roster`].
        key: Vec<u8>,
    },
    /// A worker's ranks have joined the others. Answered by [`Effect::Go`] when all have.
    Joined {
        /// Which worker.
        worker: WorkerId,
        /// Which gang.
        gang: FencingToken,
    },
    /// The artifact store has lost some artifacts, or they are damaged there: what is made of them
    /// is made again where it is needed.
    Lost {
        /// Which; some may be nobody's.
        artifacts: Vec<Hash>,
        /// The job whose film or segment somebody wanted to fetch, if it was that: it goes on until
        /// it has them again.
        wanted_of: Option<JobId>,
    },
    /// A user has stored a model and names it.
    AddModel {
        /// The name.
        name: String,
        /// The model; all of it is in the artifact store.
        model: StoredModel,
    },
    /// A user wants a name to stand for no model any more.
    RemoveModel {
        /// The name.
        name: String,
    },
    /// Something was found out about a model's bytes.
    ModelFault {
        /// Which model.
        hash: Hash,
        /// Why it is not to be used; `None` when its bytes are those that its hash names.
        fault: Option<Fault>,
    },
    /// A worker's models are others than before.
    WorkerModels {
        /// Which worker.
        worker: WorkerId,
        /// What it has.
        models: BTreeSet<Hash>,
        /// What it is fetching.
        fetching: Option<Fetching>,
    },
    /// Time has passed. Due a few times in each lease.
    Tick,
}

/// Something to do, once everything in [`Effects::take_writes`] is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The job is queued.
    Submitted {
        /// The id that was proposed.
        proposed: JobId,
        /// The job's id.
        job: JobId,
        /// It is an unfinished job with an equal spec.
        continued: bool,
    },
    /// The job breaks a rule.
    Refused {
        /// The id that was proposed.
        proposed: JobId,
        /// Which, as a sentence for the user.
        error: String,
    },
    /// Give work to a worker.
    Assign {
        /// To whom.
        worker: WorkerId,
        /// What.
        assignment: Box<Assignment>,
    },
    /// Tell a worker where all ranks of its gang are, so that its own join them.
    Roster {
        /// Whom.
        worker: WorkerId,
        /// Which gang.
        gang: FencingToken,
        /// By rank.
        seats: Vec<SocketAddr>,
        /// What links the ranks, as rank 0 made it: the secret that they know each other by on
        /// sockets, the unique id of a communicator on NCCL.
        key: Vec<u8>,
    },
    /// Tell the worker with rank 0 that all ranks have joined.
    Go {
        /// Whom.
        worker: WorkerId,
        /// Which gang.
        gang: FencingToken,
    },
    /// Tell a worker to stop and forget some work.
    Revoke {
        /// Whom.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The task in it.
        task: TaskId,
        /// As the worker knows it.
        token: FencingToken,
    },
    /// Tell a worker that its report is stored.
    Ack {
        /// Whom.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The task in it.
        task: TaskId,
        /// As the worker knows it.
        token: FencingToken,
    },
    /// Close a worker's connection: it counts as lost and has to attach again.
    Disconnect {
        /// Whose.
        worker: WorkerId,
    },
    /// [`Core::view`](crate::Core::view) of a job gives something else than before.
    JobChanged {
        /// Which.
        job: JobId,
    },
}

/// A record to store, or to remove when it has no value.
pub type Write = (String, Option<Vec<u8>>);

/// What events lead to: records to store, and what to do after they are stored.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    writes: BTreeMap<String, Option<Vec<u8>>>,
    effects: Vec<Effect>,
}

impl Effects {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The records to store in one step before any effect is run. Leaves none.
    pub fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes).into_iter().collect()
    }

    /// The effects in order. Leaves none.
    pub fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn changed(&mut self, job: &JobId) {
        let changed = Effect::JobChanged { job: job.clone() };
        // One event may touch a job many times.
        if self.effects.last() != Some(&changed) {
            self.effects.push(changed);
        }
    }

    pub(crate) fn write(&mut self, key: String, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }

    pub(crate) fn remove(&mut self, key: String) {
        self.writes.insert(key, None);
    }
}
