//! One connection to the coordinator: registration, heartbeats, orders in, results out.

use crate::dial::{CONNECT_DEADLINE, Dial, DialError, Dialler, Link, has_broken};
use crate::error::{AgentError, story};
use longtake_common::artifact::{ArtifactError, ArtifactStore};
use longtake_proto::v1;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use v1::workers_client::WorkersClient;

/// An idle connection is probed this often, and given up when a probe is not answered as long.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long the other side may take to end the connection when we do.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// Messages on their way out; a worker has two tasks and a heartbeat, so this never fills.
const OUTBOX_LENGTH: usize = 256;

/// Putting the longest film together names tens of thousands of chunks and windows.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What the coordinator said when it took us in.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Our id on this connection.
    pub worker: String,
    /// The coordinator's term.
    pub epoch: u64,
    /// Where artifacts are.
    pub artifacts: String,
    /// How often we say that we live.
    pub heartbeat: Duration,
}

/// An open stream to the coordinator.
pub struct Connection {
    /// What was agreed.
    pub terms: Terms,
    outbox: mpsc::Sender<v1::WorkerMessage>,
    inbox: Streaming<v1::CoordinatorMessage>,
}

/// The connection cannot be made, or is gone.
#[derive(Debug, thiserror::Error)]
pub enum LostConnection {
    /// The socket.
    #[error("{0}")]
    Transport(String),
    /// The other side does not let us in, now or later.
    #[error("{0}")]
    Barred(DialError),
    /// The other side said no.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// The artifacts cannot be reached from here.
    #[error("{0}")]
    Artifacts(String),
    /// Another connection has our name; perhaps that of a process that has just died.
    #[error("{0}")]
    NameTaken(String),
    /// Nothing was heard in time.
    #[error("the coordinator did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side ended the stream.
    #[error("the coordinator closed the connection")]
    Closed,
}

/// Checks a coordinator's address and the files that go with it; makes no connection.
pub fn dialler(dial: &Dial) -> Result<Dialler, AgentError> {
    Ok(dial.prepare("worker")?.keep_alive(KEEP_ALIVE))
}

impl From<DialError> for LostConnection {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Unreachable { reason, .. } => Self::Transport(reason),
            other => Self::Barred(other),
        }
    }
}

/// Makes sure that what the coordinator stores can be read here, and that something can be stored,
/// before anything is taken that would have to be given back.
pub async fn check_artifacts(dialler: &Dialler) -> Result<(), LostConnection> {
    let asked = async {
        let mut workers = WorkersClient::new(dialler.connect().await?);
        let reply = workers.workplace(v1::WorkplaceRequest {}).await;
        Ok(reply.map(tonic::Response::into_inner))
    };
    let reply = match tokio::time::timeout(CONNECT_DEADLINE, asked).await {
        Ok(reply) => reply.map_err(|error: DialError| LostConnection::from(error))?,
        Err(_) => return Err(LostConnection::Silent(CONNECT_DEADLINE)),
    };
    let place = match reply {
        Ok(place) => place,
        // Another version: registering says which.
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(()),
        Err(status) => return Err(refused(dialler, &status)),
    };
    let failed = |error: ArtifactError| LostConnection::Artifacts(story(&error));
    let store = ArtifactStore::open(&place.artifacts).map_err(failed)?;
    store.check().await.map_err(failed)?;
    let Ok(probe) = place.probe.parse() else {
        return Err(LostConnection::Refused(
            "it named no artifact to look for".to_owned(),
        ));
    };
    if store.exists(probe).await.map_err(failed)? {
        return Ok(());
    }
    Err(LostConnection::Artifacts(format!(
        "{} is something else here than it is for the coordinator: mount the same folder, or keep the artifacts in a bucket",
        store.url()
    )))
}

impl Connection {
    /// Dials, registers and waits for the welcome.
    pub async fn open(dialler: &Dialler, register: v1::Register) -> Result<Self, LostConnection> {
        let handshake = async {
            let link = dialler.connect().await?;
            Self::attach(dialler, link, register).await
        };
        match tokio::time::timeout(CONNECT_DEADLINE, handshake).await {
            Ok(result) => result,
            Err(_) => Err(LostConnection::Silent(CONNECT_DEADLINE)),
        }
    }

    async fn attach(
        dialler: &Dialler,
        link: Link,
        register: v1::Register,
    ) -> Result<Self, LostConnection> {
        use v1::{coordinator_message as theirs, worker_message as ours};
        let (outbox, messages) = mpsc::channel(OUTBOX_LENGTH);
        let first = v1::WorkerMessage {
            message: Some(ours::Message::Register(register)),
        };
        outbox
            .send(first)
            .await
            .map_err(|_| LostConnection::Closed)?;
        let reply = WorkersClient::new(link)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .attach(ReceiverStream::new(messages))
            .await;
        let mut inbox = reply
            .map_err(|status| refused(dialler, &status))?
            .into_inner();
        match inbox
            .message()
            .await
            .map_err(|status| refused(dialler, &status))?
            .and_then(|m| m.message)
        {
            Some(theirs::Message::Welcome(welcome)) => Ok(Self {
                terms: terms(welcome),
                outbox,
                inbox,
            }),
            Some(_) => Err(LostConnection::Refused(
                "its first message was no welcome".into(),
            )),
            None => Err(LostConnection::Closed),
        }
    }

    /// The next message of the coordinator. Safe to abandon and call again.
    pub async fn receive(&mut self) -> Result<v1::coordinator_message::Message, LostConnection> {
        loop {
            match self.inbox.message().await {
                Ok(Some(v1::CoordinatorMessage {
                    message: Some(message),
                })) => return Ok(message),
                Ok(Some(_)) => {} // a kind of message that is newer than we are
                Ok(None) => return Err(LostConnection::Closed),
                Err(status) => return Err(LostConnection::Transport(status.message().to_owned())),
            }
        }
    }

    /// Ends the connection in order: everything that was queued arrives first.
    pub async fn close(mut self) {
        drop(self.outbox);
        let ended = async { while let Ok(Some(_)) = self.inbox.message().await {} };
        // Whoever does not answer to that is left alone.
        let _ = tokio::time::timeout(CLOSE_PATIENCE, ended).await;
    }

    /// Queues a message.
    pub async fn send(&self, message: v1::WorkerMessage) -> Result<(), LostConnection> {
        self.outbox
            .send(message)
            .await
            .map_err(|_| LostConnection::Closed)
    }
}

fn terms(welcome: v1::Welcome) -> Terms {
    Terms {
        worker: welcome.worker,
        epoch: welcome.epoch,
        artifacts: welcome.artifacts,
        // A zero would be a busy loop.
        heartbeat: Duration::from_millis(welcome.heartbeat_ms.max(20)),
    }
}

fn refused(dialler: &Dialler, status: &tonic::Status) -> LostConnection {
    if let Some(error) = dialler.explain(status) {
        return LostConnection::Barred(error);
    }
    let story = status.message().to_owned();
    match status.code() {
        tonic::Code::AlreadyExists => LostConnection::NameTaken(story),
        _ if has_broken(status) => LostConnection::Transport(story),
        _ => LostConnection::Refused(story),
    }
}
