//! The coordinator as a service: gRPC in front of [`longtake_core`], a database behind it.
//!
//! One actor owns the core. It takes what has arrived, lets the core handle it, stores the records
//! in one commit, and only then answers, assigns and acknowledges: nothing that anyone was told can
//! be lost. Decides nothing by itself; that is the core's part.

mod actor;
mod auth;
pub mod convert;
mod error;
mod http;
mod jobs;
mod logs;
mod metrics;
mod models;
mod request;
pub mod store;
mod tls;
mod upload;
mod workers;

pub use auth::{Role, TokenError};
pub use error::StartError;
pub use tls::{TlsError, TlsFiles};
pub use workers::NAME_BYTES_MAX;

use actor::Actor;
use auth::{Gate, Tokens};
use http::{HttpServer, Sources};
use longtake_common::artifact::ArtifactStore;
use longtake_core::{Core, Effects, Limits};
use longtake_proto::v1::jobs_server::JobsServer;
use longtake_proto::v1::models_server::ModelsServer;
use longtake_proto::v1::workers_server::WorkersServer;
use metrics::Counters;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// How often a worker says that it lives.
pub const HEARTBEAT_MS: u64 = 500;
/// A silent worker is lost within this time of its last heartbeat.
const LOST_MS: u64 = 3000;
/// How often the core is told the time.
const TICK_MS: u64 = 250;
/// A worker that was silent for so long is lost when the core hears of it, a tick later at most; one
/// more tick is left for hearing it.
pub const LEASE_MS: u64 = LOST_MS - 2 * TICK_MS;
const _: () = assert!(LEASE_MS > 2 * HEARTBEAT_MS); // one heartbeat may get lost
const _: () = assert!(LEASE_MS > 4 * TICK_MS); // a late tick is not taken for a standstill

/// Largest request or report that is read. Two prompts of the longest kind fit in.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest sum of a request's headers; a token and a trace are a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Requests of one connection that are served at a time; more of them wait.
const STREAMS_MAX: u32 = 256;
/// How often the bytes in the artifact store are counted.
const STORED_PERIOD: Duration = Duration::from_secs(60);
/// How long connections get to end by themselves when the coordinator stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where a coordinator listens and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// URL of the state store: `file:FOLDER`, which gets a `longtake.redb`, or
    /// `etcd://HOST:PORT,...[/PREFIX]`.
    pub state: String,
    /// URL of the artifact store: `file:FOLDER`, or `s3://BUCKET[/PREFIX]`.
    pub artifacts: String,
    /// Listen on other addresses than loopback, without encryption.
    pub insecure: bool,
    /// After a start, how long work that was given out before is kept for workers that come back
    /// with it, [`LEASE_MS`] as a rule. 0 where the workers die with the coordinator, as embedded
    /// ones do.
    pub adopt_ms: u64,
    /// Who is let in, and what is shown besides.
    pub access: Access,
}

/// Who is let in, and what is shown besides. By default everybody who can connect, and nothing.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Speak TLS with these.
    pub tls: Option<TlsFiles>,
    /// File with the tokens that are accepted; without one, none is asked for.
    pub token_file: Option<PathBuf>,
    /// Address and port for `/metrics`, `/healthz` and `/readyz`.
    pub http: Option<SocketAddr>,
}

/// The coordinator.
pub struct Coordinator;

impl Coordinator {
    /// Opens the stores, continues what they hold, and serves.
    pub async fn start(config: Config) -> Result<Handle, StartError> {
        for listen in [Some(config.listen), config.access.http]
            .into_iter()
            .flatten()
        {
            let open = !config.insecure && config.access.tls.is_none();
            if !listen.ip().is_loopback() && open {
                return Err(StartError::Exposed { listen });
            }
        }
        let access = &config.access;
        let tls = access.tls.as_ref().map(tls::load).transpose()?;
        let tokens = access.token_file.as_deref().map(Tokens::read).transpose()?;
        let tokens = tokens.map(Arc::new);
        let listener = listen(config.listen).await?;
        let addr = listener.local_addr().map_err(|source| StartError::Listen {
            listen: config.listen,
            source,
        })?;
        // Before anything is made for artifacts: a state that cannot be opened leaves nothing behind.
        let store = store::open(&config.state).await?;
        let artifacts = ArtifactStore::open(&config.artifacts)?;
        artifacts.check().await?;
        let probe = probe(addr);
        artifacts.put(probe.clone()).await?;
        let claim = store.claim().await?;
        let (started, mut fx) = (Instant::now(), Effects::new());
        let limits = Limits {
            lease_ms: LEASE_MS,
            adopt_ms: config.adopt_ms,
            ..Limits::default()
        };
        let core = Core::restore(0, claim.epoch, limits, claim.records, &mut fx)?;
        tracing::info!(%addr, epoch = %claim.epoch, jobs = core.jobs().count(), "coordinator started");
        let counters = Arc::new(Counters::default());
        let url = artifacts.url().to_owned();
        let (actor, requests) = Actor::new(core, store.clone(), url, started, counters.clone(), fx);
        let http = match access.http {
            None => None,
            Some(listen) => {
                let sources = Sources {
                    actor: requests.clone(),
                    counters: counters.clone(),
                    store: store.clone(),
                    stored: measure(artifacts.clone()),
                    tokens: tokens.clone(),
                };
                let config = tls.as_ref().map(|tls| tls.http.clone());
                Some(HttpServer::start(listen, config, sources).await?)
            }
        };
        let http_addr = http.as_ref().map(HttpServer::addr);
        let secure = tls.is_some();
        let mut server = Server::builder()
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .max_concurrent_streams(STREAMS_MAX);
        if let Some(tls) = tls {
            server = server.tls_config(tls.grpc)?;
        }
        let jobs = jobs::JobsService::new(requests.clone(), artifacts.clone());
        let models = models::ModelsService::new(requests.clone(), artifacts.models());
        let workers = workers::WorkersService::new(requests, artifacts.clone(), probe, counters);
        let router = server
            .layer(tower::layer::layer_fn(move |inner| {
                Gate::new(tokens.clone(), inner)
            }))
            .add_service(JobsServer::new(jobs).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(ModelsServer::new(models).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(WorkersServer::new(workers).max_decoding_message_size(MESSAGE_BYTES_MAX));
        let (stop, stopped) = oneshot::channel();
        let (close, closed) = oneshot::channel::<()>();
        let closing = async move {
            // Dropped or sent: either way it is time.
            let _ = closed.await;
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, closing));
        let running = tokio::spawn(async move {
            let ended = run(actor, server, close, stopped).await;
            drop(http);
            ended
        });
        Ok(Handle {
            addr,
            http_addr,
            secure,
            artifacts,
            stop: Some(stop),
            running: Some(running),
        })
    }
}

/// Something that no other store holds: a worker for which the same URL is another folder or bucket does
/// not find it there, and would lose what it renders.
fn probe(addr: SocketAddr) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let started_ns = now.unwrap_or_default().as_nanos();
    let process = std::process::id();
    format!("coordinator at {addr}, process {process}, started at {started_ns} ns")
}

/// Listens, or says what is in the way.
async fn listen(listen: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(listen)
        .await
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => StartError::Address { listen },
            _ => StartError::Listen { listen, source },
        })
}

/// Counts what the artifact store holds, again and again until nobody wants to know.
fn measure(artifacts: ArtifactStore) -> watch::Receiver<metrics::Stored> {
    let (sender, stored) = watch::channel(None);
    tokio::spawn(async move {
        while !sender.is_closed() {
            match artifacts.usage().await {
                Ok(usage) => drop(sender.send_replace(Some(usage))),
                Err(error) => tracing::warn!(%error, "the artifacts cannot be counted"),
            }
            tokio::select! {
                () = tokio::time::sleep(STORED_PERIOD) => {}
                () = sender.closed() => {}
            }
        }
    });
    stored
}

/// Serves until told to stop, or until the actor or the server cannot go on.
async fn run(
    actor: Actor,
    mut server: JoinHandle<Result<(), tonic::transport::Error>>,
    close: oneshot::Sender<()>,
    stop: oneshot::Receiver<()>,
) -> Result<(), StartError> {
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
    http_addr: Option<SocketAddr>,
    secure: bool,
    artifacts: ArtifactStore,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), StartError>>>,
}

impl Handle {
    /// Where it listens; with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://ADDRESS`, or `https://ADDRESS` with TLS, for clients and workers.
    pub fn url(&self) -> String {
        self.scheme(self.addr)
    }

    /// The same for `/metrics`, `/healthz` and `/readyz`, where they are served.
    pub fn http_url(&self) -> Option<String> {
        self.http_addr.map(|addr| self.scheme(addr))
    }

    fn scheme(&self, addr: SocketAddr) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{addr}")
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
