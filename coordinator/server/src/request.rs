//! What the actor is asked, and the answers that wait for its next commit.

use crate::logs::{JobLogs, LiveLog};
use longtake_common::ids::{Epoch, FencingToken, Hash, JobId, WorkerId};
use longtake_common::spec::JobSpec;
use longtake_core::{
    Census, Event, Explanation, JobView, ModelView, Running, WorkerInfo, WorkerView,
};
use longtake_proto::v1;
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot, watch};

/// Answer to a submission: the job and whether it is continued; or what is wrong with it.
pub type Submitted = Result<(JobId, bool), String>;

/// Answer to a command: the job as it is then, if there is one; or why the command is not followed.
pub type Commanded = Result<Option<JobView>, String>;

/// What the services ask of the actor.
pub enum Request {
    /// Queue a job.
    Submit {
        spec: Box<JobSpec>,
        isa: Option<String>,
        /// The trace that asks for it.
        trace: Option<String>,
        reply: oneshot::Sender<Submitted>,
    },
    /// Count everything.
    Census { reply: oneshot::Sender<Census> },
    /// Do something with a job. Answers with the job, if there is one.
    Command {
        job: JobId,
        event: Event,
        reply: oneshot::Sender<Commanded>,
    },
    /// Drain a worker or let it work again. Answers with what is connected under its name.
    Worker {
        name: String,
        event: Event,
        reply: oneshot::Sender<Result<Vec<WorkerView>, String>>,
    },
    /// Name a model or take its name away.
    Model {
        event: Event,
        /// Only say whether it would be done.
        is_trial: bool,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Show all models.
    Models {
        reply: oneshot::Sender<Vec<ModelView>>,
    },
    /// Show all workers.
    Workers {
        reply: oneshot::Sender<Vec<WorkerView>>,
    },
    /// Say why a job is where it is.
    Explain {
        job: JobId,
        reply: oneshot::Sender<Option<(JobView, Explanation)>>,
    },
    /// Show a job.
    View {
        job: JobId,
        reply: oneshot::Sender<Option<JobView>>,
    },
    /// Show all jobs, oldest first.
    List {
        reply: oneshot::Sender<Vec<JobView>>,
    },
    /// Follow a job.
    Watch {
        job: JobId,
        reply: oneshot::Sender<Option<watch::Receiver<JobView>>>,
    },
    /// Show what a job's tasks have said, to one who has seen so many lines of each try.
    Logs {
        job: JobId,
        seen: BTreeMap<FencingToken, usize>,
        reply: oneshot::Sender<Option<JobLogs>>,
    },
    /// A task in hand has said something.
    Said(LiveLog),
    /// A worker connected.
    Attach {
        info: WorkerInfo,
        running: Vec<Running>,
        reply: oneshot::Sender<Result<Connection, String>>,
    },
    /// The artifact store has lost something that a user wants to fetch of a job. Answers whether it
    /// is being made again.
    Lost {
        artifact: Hash,
        job: JobId,
        reply: oneshot::Sender<bool>,
    },
    /// A worker reports or is gone.
    Event(Event),
}

/// The worker's end of its connection.
pub struct Connection {
    /// Its id.
    pub worker: WorkerId,
    /// Term of the coordinator.
    pub epoch: Epoch,
    /// What is sent to it; ends when the coordinator is through with it.
    pub outbox: mpsc::Receiver<v1::CoordinatorMessage>,
    /// Closes together with `outbox`.
    pub open: watch::Receiver<()>,
}

/// A client's request and where its answer goes, held back until the commit.
pub enum Answer {
    Submit {
        proposed: JobId,
        trace: Option<String>,
        reply: oneshot::Sender<Submitted>,
    },
    Census {
        reply: oneshot::Sender<Census>,
    },
    View {
        job: JobId,
        reply: oneshot::Sender<Option<JobView>>,
    },
    Command {
        job: JobId,
        reply: oneshot::Sender<Commanded>,
    },
    Worker {
        name: String,
        reply: oneshot::Sender<Result<Vec<WorkerView>, String>>,
    },
    Model {
        reply: oneshot::Sender<Result<(), String>>,
    },
    List {
        reply: oneshot::Sender<Vec<JobView>>,
    },
    Watch {
        job: JobId,
        reply: oneshot::Sender<Option<watch::Receiver<JobView>>>,
    },
    Lost {
        is_made: bool,
        reply: oneshot::Sender<bool>,
    },
}
