//! One connection to the coordinator: registration, heartbeats, orders in, results out.

use crate::error::AgentError;
use longtake_proto::v1;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use v1::workers_client::WorkersClient;

/// Longest wait for a connection, and then for the coordinator's welcome.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// An idle connection is probed this often, and given up when a probe is not answered as long.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Messages on their way out; a worker has two tasks and a heartbeat, so this never fills.
const OUTBOX_LENGTH: usize = 256;

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
    /// The other side said no.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// Nothing was heard in time.
    #[error("the coordinator did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side ended the stream.
    #[error("the coordinator closed the connection")]
    Closed,
}

/// Checks a coordinator's address; makes no connection.
pub fn endpoint(url: &str) -> Result<Endpoint, AgentError> {
    let bad = |reason: &str| AgentError::Address {
        url: url.to_owned(),
        reason: reason.to_owned(),
    };
    if !url.starts_with("http://") {
        return Err(bad("it does not begin with http://"));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| bad("it is not a URL"))?;
    if endpoint.uri().port().is_none() {
        return Err(bad("it has no port"));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

impl Connection {
    /// Dials, registers and waits for the welcome.
    pub async fn open(endpoint: &Endpoint, register: v1::Register) -> Result<Self, LostConnection> {
        let handshake = async {
            let channel = endpoint.connect().await.map_err(|e| transport(&e))?;
            Self::attach(channel, register).await
        };
        match tokio::time::timeout(CONNECT_DEADLINE, handshake).await {
            Ok(result) => result,
            Err(_) => Err(LostConnection::Silent(CONNECT_DEADLINE)),
        }
    }

    async fn attach(channel: Channel, register: v1::Register) -> Result<Self, LostConnection> {
        use v1::{coordinator_message as theirs, worker_message as ours};
        let (outbox, messages) = mpsc::channel(OUTBOX_LENGTH);
        let first = v1::WorkerMessage {
            message: Some(ours::Message::Register(register)),
        };
        outbox
            .send(first)
            .await
            .map_err(|_| LostConnection::Closed)?;
        let reply = WorkersClient::new(channel)
            .attach(ReceiverStream::new(messages))
            .await;
        let mut inbox = reply.map_err(|status| refused(&status))?.into_inner();
        match inbox
            .message()
            .await
            .map_err(|status| refused(&status))?
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

fn transport(error: &tonic::transport::Error) -> LostConnection {
    LostConnection::Transport(innermost(error).to_string())
}

/// The cause at the bottom, which names what happened; the layers above only say "transport error".
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a dyn std::error::Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

fn refused(status: &tonic::Status) -> LostConnection {
    match status.code() {
        tonic::Code::Unavailable => LostConnection::Transport(status.message().to_owned()),
        _ => LostConnection::Refused(status.message().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_dialled() {
        assert!(endpoint("http://127.0.0.1:7341").is_ok());
        for bad in [
            "",
            "127.0.0.1:7341",
            "http://",
            "http://host",
            "ftp://host:1",
            "http://a b:1",
        ] {
            let error = endpoint(bad).expect_err(bad).to_string();
            assert!(error.contains("http://host:7341"), "{error}");
        }
    }
}
