//! The coordinator as a service: gRPC in front of [`longtake_core`], a database behind it.
//!
//! One actor owns the core. It takes what has arrived, lets the core handle it, stores the records
//! in one commit, and only then answers, assigns and acknowledges: nothing that anyone was told can
//! be lost. Decides nothing by itself; that is the core's part.

mod actor;
pub mod convert;
mod error;
mod jobs;
pub mod store;
mod workers;

pub use error::StartError;

use actor::Actor;
use longtake_common::artifact::ArtifactStore;
use longtake_core::{Core, Effects, Limits};
use longtake_proto::v1::jobs_server::JobsServer;
use longtake_proto::v1::workers_server::WorkersServer;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// How often a worker says that it lives.
pub const HEARTBEAT_MS: u64 = 500;
/// A worker that was silent for so long is lost.
pub const LEASE_MS: u64 = 3000;
/// How often the core is told the time.
const TICK_MS: u64 = 250;
const _: () = assert!(LEASE_MS > 2 * HEARTBEAT_MS); // one heartbeat may get lost
const _: () = assert!(LEASE_MS > 4 * TICK_MS); // a late tick is not taken for a standstill

/// Largest request or report that is read. Two prompts of the longest kind fit in.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How long connections get to end by themselves when the coordinator stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where a coordinator listens and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// URL of the state store: `file:FOLDER`, which gets a `longtake.redb`.
    pub state: String,
    /// URL of the artifact store: `file:FOLDER`.
    pub artifacts: String,
    /// Listen on other addresses than loopback, without encryption.
    pub insecure: bool,
    /// After a start, how long work that was given out before is kept for workers that come back
    /// with it, [`LEASE_MS`] as a rule. 0 where the workers die with the coordinator, as embedded
    /// ones do.
    pub adopt_ms: u64,
}

/// The coordinator.
pub struct Coordinator;

impl Coordinator {
    /// Opens the stores, continues what they hold, and serves.
    pub async fn start(config: Config) -> Result<Handle, StartError> {
        let listen = config.listen;
        if !listen.ip().is_loopback() && !config.insecure {
            return Err(StartError::Exposed { listen });
        }
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::AddrInUse => StartError::Address { listen },
                _ => StartError::Listen { listen, source },
            })?;
        let addr = listener
            .local_addr()
            .map_err(|source| StartError::Listen { listen, source })?;
        let artifacts = ArtifactStore::open(&config.artifacts)?;
        let store = store::open(&config.state).await?;
        let claim = store.claim().await?;
        let (started, mut fx) = (Instant::now(), Effects::new());
        let limits = Limits {
            lease_ms: LEASE_MS,
            adopt_ms: config.adopt_ms,
            ..Limits::default()
        };
        let core = Core::restore(0, claim.epoch, limits, claim.records, &mut fx)?;
        tracing::info!(%addr, epoch = %claim.epoch, jobs = core.jobs().count(), "coordinator started");
        let (actor, requests) = Actor::new(core, store, artifacts.url().to_owned(), started, fx);
        let jobs = jobs::JobsService::new(requests.clone(), artifacts.clone());
        let workers = workers::WorkersService::new(requests);
        let router = Server::builder()
            .add_service(JobsServer::new(jobs).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(WorkersServer::new(workers).max_decoding_message_size(MESSAGE_BYTES_MAX));
        let (stop, stopped) = oneshot::channel();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let running = tokio::spawn(run(actor, router, incoming, stopped));
        Ok(Handle {
            addr,
            artifacts,
            stop: Some(stop),
            running: Some(running),
        })
    }
}

/// Serves until told to stop, or until the actor or the server cannot go on.
async fn run(
    actor: Actor,
    router: tonic::transport::server::Router,
    incoming: TcpIncoming,
    stop: oneshot::Receiver<()>,
) -> Result<(), StartError> {
    let (close, closed) = oneshot::channel::<()>();
    let closing = async move {
        // Dropped or sent: either way it is time.
        let _ = closed.await;
    };
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, closing));
    let mut actor = tokio::spawn(actor.run(stop));
    tokio::select! {
        ended = &mut actor => {
            // The actor took all connections' ends with it, so they close by themselves.
            drop(close);
            if tokio::time::timeout(GOODBYE, &mut server).await.is_err() {
                server.abort();
            }
            Ok(ended.map_err(|error| StartError::Panic(error.to_string()))??)
        }
        ended = &mut server => {
            actor.abort();
            Ok(ended.map_err(|error| StartError::Panic(error.to_string()))??)
        }
    }
}

/// A running coordinator. Dropping it stops it, which loses nothing.
pub struct Handle {
    addr: SocketAddr,
    artifacts: ArtifactStore,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), StartError>>>,
}

impl Handle {
    /// Where it listens; with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://ADDRESS`, for clients and workers.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The artifacts, for whoever runs in the same process.
    pub fn artifacts(&self) -> &ArtifactStore {
        &self.artifacts
    }

    /// Stops serving and closes the stores. What was told to anyone is stored already, so an error
    /// on the way out is only logged.
    pub async fn shutdown(mut self) {
        self.stop = None;
        if let Err(error) = self.wait().await {
            tracing::warn!(%error, "the coordinator did not end well");
        }
    }

    /// Returns when the coordinator has stopped, with the reason when nobody asked for it. May be
    /// dropped and called again.
    pub async fn wait(&mut self) -> Result<(), StartError> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let ended = running.await;
        self.running = None;
        ended.unwrap_or_else(|error| Err(StartError::Panic(error.to_string())))
    }
}
