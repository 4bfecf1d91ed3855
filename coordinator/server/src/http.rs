//! `/metrics`, `/healthz` and `/readyz`, for Prometheus and whoever keeps the process alive.

use crate::auth::Tokens;
use crate::error::StartError;
use crate::metrics::{self, Counters, Stored};
use crate::request::{Mailbox, Request};
use crate::store::StateStore;
use crate::tls::HANDSHAKE_TIMEOUT;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use longtake_core::Census;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// An actor that does not answer in this time is not ready.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// Connections whose handshake is over and that wait to be served.
const HANDSHAKES_WAITING: usize = 16;

/// What the pages are made from.
#[derive(Clone)]
pub struct Sources {
    /// The actor.
    pub actor: Mailbox,
    /// What happened so far.
    pub counters: Arc<Counters>,
    /// Where the state is kept.
    pub store: Arc<dyn StateStore>,
    /// What the artifact store holds, as far as is known.
    pub stored: watch::Receiver<Stored>,
    /// Who may see `/metrics`; everybody when there are none.
    pub tokens: Option<Arc<Tokens>>,
}

/// A running HTTP server. Ends when dropped.
pub struct HttpServer {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl HttpServer {
    /// Listens, with TLS when there is a configuration for it.
    pub async fn start(
        listen: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        sources: Sources,
    ) -> Result<Self, StartError> {
        let listener = crate::listen(listen).await?;
        let addr = listener
            .local_addr()
            .map_err(|source| StartError::Listen { listen, source })?;
        let router = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(sources);
        let mut tasks = JoinSet::new();
        match tls {
            None => tasks.spawn(async move {
                ended(axum::serve(listener, router).await);
            }),
            Some(config) => {
                let listener = TlsListener::start(listener, addr, config, &mut tasks);
                tasks.spawn(async move {
                    ended(axum::serve(listener, router).await);
                })
            }
        };
        Ok(Self {
            addr,
            _tasks: tasks,
        })
    }

    /// Where it listens; with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

fn ended(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "the HTTP endpoint ended");
    }
}

async fn census(sources: &Sources) -> Result<Census, String> {
    if let Some(trouble) = sources.store.trouble() {
        return Err(format!("{trouble}\n"));
    }
    let answer = sources.actor.ask(|reply| Request::Census { reply });
    match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(census)) => Ok(census),
        Ok(Err(_)) => Err("the coordinator is stopping\n".to_owned()),
        Err(_) => Err("the coordinator is busy, or its state store does not answer\n".to_owned()),
    }
}

/// Ready means that the actor answers: it does so only between commits, so the store answers too.
async fn ready(State(sources): State<Sources>) -> Response {
    match census(&sources).await {
        Ok(_) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

async fn metrics(State(sources): State<Sources>, headers: HeaderMap) -> Response {
    if let Some(tokens) = &sources.tokens
        && let Err(status) = tokens.check("/metrics", &headers)
    {
        let code = match status.code() {
            tonic::Code::PermissionDenied => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        return (code, format!("{}\n", status.message())).into_response();
    }
    match census(&sources).await {
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
        Ok(census) => {
            let stored = *sources.stored.borrow();
            let page = metrics::page(&census, &sources.counters, stored);
            ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response()
        }
    }
}

/// Connections whose handshake is over. Each shakes hands in a task of its own, so that a silent
/// one keeps nobody waiting.
struct TlsListener {
    addr: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    fn start(
        mut listener: TcpListener,
        addr: SocketAddr,
        config: Arc<rustls::ServerConfig>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (sender, ready) = mpsc::channel(HANDSHAKES_WAITING);
        let acceptor = TlsAcceptor::from(config);
        tasks.spawn(async move {
            loop {
                let (stream, peer) = Listener::accept(&mut listener).await;
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    let handshake = acceptor.accept(stream);
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                        // Fails only when the server has ended.
                        Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
                    }
                });
            }
        });
        Self { addr, ready }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task lives as long as this server; should it end, nobody comes.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.addr)
    }
}
