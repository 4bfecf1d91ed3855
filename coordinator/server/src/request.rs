//! What the actor is asked, and the answers that wait for its next commit.

use crate::logs::{JobLogs, LiveLog};
use crate::store::StateStore;
use longtake_common::ids::{Epoch, FencingToken, Hash, JobId, WorkerId};
use longtake_common::spec::JobSpec;
use longtake_core::{
    Census, Event, Explanation, JobView, ModelView, Running, WorkerInfo, WorkerView,
};
use longtake_proto::v1;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

/// How long a user waits for an answer that waits for a store, before he is told so.
pub(crate) const STORE_PATIENCE: Duration = Duration::from_secs(30);

/// Answer to a submission: the job and whether it is continued; or what is wrong with it.
pub type Submitted = Result<(JobId, bool), String>;

/// Answer to a command: the job as it is then, if there is one; or why the command is not followed.
pub type Commanded = Result<Option<JobView>, String>;

/// Where the actor is asked. Clones are equal.
#[derive(Clone)]
pub struct Mailbox {
    sender: mpsc::Sender<Request>,
    /// Not to be kept open by those who ask.
    store: Weak<dyn StateStore>,
    patience: Duration,
}

impl Mailbox {
    /// Requests to an actor whose answers wait for `store`.
    pub fn new(sender: mpsc::Sender<Request>, store: &Arc<dyn StateStore>) -> Self {
        let store = Arc::downgrade(store);
        Self {
            sender,
            store,
            patience: STORE_PATIENCE,
        }
    }

    /// Asks and waits for the answer, as a user does: not longer than [`STORE_PATIENCE`] when it is
    /// the state store that is waited for.
    pub async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Status> {
        let answer = self.wait_for(request);
        tokio::pin!(answer);
        loop {
            let in_time = tokio::time::timeout(self.patience, &mut answer).await;
            let trouble = self.store.upgrade().and_then(|store| store.trouble());
            match (in_time, trouble) {
                (Ok(answer), _) => return answer,
                (Err(_), None) => {}
                (Err(_), Some(trouble)) => {
                    return Err(Status::failed_precondition(format!(
                        "the coordinator does not get an answer from where it keeps its state ({trouble}): see to that; it goes on by itself then, and may still do what it was asked"
                    )));
                }
            }
        }
    }

    /// Asks and waits for the answer, however long that takes.
    pub async fn wait_for<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Status> {
        let stopped =
            || Status::unavailable("the coordinator is stopping: try again when it is back");
        let (reply, answer) = oneshot::channel();
        self.sender
            .send(request(reply))
            .await
            .map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

impl Deref for Mailbox {
    type Target = mpsc::Sender<Request>;

    fn deref(&self) -> &Self::Target {
        &self.sender
    }
}

/// What the services ask of the actor.
pub enum Request {
    /// Queue a job.
    Submit {
        spec: Box<JobSpec>,
        isa: Option<String>,
        ranks: Option<u32>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Claim, StateError};
    use longtake_core::Write;

    /// A store that does not answer, and knows it or does not.
    struct Away {
        knows: bool,
    }

    #[async_trait::async_trait]
    impl StateStore for Away {
        async fn claim(&self) -> Result<Claim, StateError> {
            std::future::pending().await
        }

        async fn commit(&self, _: Epoch, _: Vec<Write>) -> Result<(), StateError> {
            std::future::pending().await
        }

        fn trouble(&self) -> Option<String> {
            self.knows.then(|| "etcd is on holiday".to_owned())
        }
    }

    fn list(reply: oneshot::Sender<Vec<JobView>>) -> Request {
        Request::List { reply }
    }

    #[tokio::test]
    async fn users_hear_what_they_wait_for() {
        let (sender, mut requests) = mpsc::channel(4);
        let away: Arc<dyn StateStore> = Arc::new(Away { knows: true });
        let mut mailbox = Mailbox::new(sender.clone(), &away);
        mailbox.patience = Duration::from_millis(1);
        let status = mailbox.ask(list).await.expect_err("nobody answers");
        assert!(status.message().contains("on holiday"), "{status}");
        // The request is not taken back.
        assert!(matches!(requests.try_recv(), Ok(Request::List { .. })));

        // Without trouble a slow answer is waited for.
        let fine: Arc<dyn StateStore> = Arc::new(Away { knows: false });
        let mut mailbox = Mailbox::new(sender, &fine);
        mailbox.patience = Duration::from_millis(1);
        let slow = async {
            let request = requests.recv().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let Some(Request::List { reply }) = request else {
                panic!("another request")
            };
            reply.send(Vec::new()).expect("somebody waits");
        };
        let (answer, ()) = tokio::join!(mailbox.ask(list), slow);
        assert_eq!(answer.expect("an answer").len(), 0);
    }
}
