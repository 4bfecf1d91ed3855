//! Requests to etcd that outlast its troubles.

use crate::store::StateError;
use etcd_client::{Error, GetOptions, GetResponse, KvClient, Txn, TxnResponse};
use futures::future::BoxFuture;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// Longest wait for an answer. Longer than etcd needs to elect a new leader, mostly.
const ANSWER_MS: u64 = 3000;
const CONNECT_MS: u64 = 2000;
/// Wait before the second try; doubles up to [`BACKOFF_MS_MAX`].
const BACKOFF_MS: u64 = 50;
const BACKOFF_MS_MAX: u64 = 1000;
/// Trouble that goes on is logged again after so long.
const REMINDER: Duration = Duration::from_secs(10);
/// etcd drops clients that probe more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A page of records, see [`super::PAGE_KEYS`].
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// An answer on its way.
type Asked<T> = BoxFuture<'static, Result<T, Error>>;

/// A client of one etcd cluster.
pub struct Client {
    endpoints: Vec<Endpoint>,
    /// Whom we talk to, and the connection once there was one.
    current: Mutex<(usize, Option<KvClient>)>,
    /// The cluster, for people.
    place: String,
    trouble: Mutex<Option<Trouble>>,
}

/// etcd does not do what it should.
#[derive(Clone, Debug)]
struct Trouble {
    since: Instant,
    reason: String,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind these locks is replaced as a whole, so a panic leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that is made when it is first used. One member each: which of them answers, and for how
/// long to wait for it, is decided here and not by a balancer.
async fn dial(endpoint: &Endpoint) -> Result<KvClient, Error> {
    let channel = etcd_client::Channel::Tonic(endpoint.connect_lazy());
    let client = etcd_client::Client::from_channel(channel, None).await?;
    Ok(client
        .kv_client()
        .max_decoding_message_size(ANSWER_BYTES_MAX))
}

impl Client {
    /// A client of the cluster whose members are at `hosts`, `HOST:PORT` each. `place` is how people
    /// call it. Connects only when asked for something.
    pub fn new(hosts: &[&str], place: &str) -> Option<Self> {
        let endpoint = |host: &&str| {
            let endpoint = Endpoint::from_shared(format!("http://{host}")).ok()?;
            endpoint.uri().port()?;
            let endpoint = endpoint
                .connect_timeout(Duration::from_millis(CONNECT_MS))
                .http2_keep_alive_interval(KEEP_ALIVE)
                .tcp_nodelay(true);
            Some(endpoint)
        };
        let endpoints: Vec<Endpoint> = hosts.iter().map(endpoint).collect::<Option<_>>()?;
        endpoints.first()?;
        Some(Self {
            endpoints,
            current: Mutex::new((0, None)),
            place: place.to_owned(),
            trouble: Mutex::new(None),
        })
    }

    /// What is wrong right now, if anything.
    pub fn trouble(&self) -> Option<String> {
        let trouble = lock(&self.trouble).clone()?;
        Some(format!(
            "state store unreachable for {} s: {}: {}",
            trouble.since.elapsed().as_secs(),
            self.place,
            trouble.reason
        ))
    }

    /// Reads `key`, or keys from it on as `options` say.
    pub async fn get(
        &self,
        key: Vec<u8>,
        options: Option<GetOptions>,
        patience: Option<Duration>,
    ) -> Result<GetResponse, StateError> {
        let ask = |mut client: KvClient| -> Asked<GetResponse> {
            let (key, options) = (key.clone(), options.clone());
            Box::pin(async move { client.get(key, options).await })
        };
        self.insist("read", patience, ask).await
    }

    /// Makes a transaction. It may be made more than once, and an earlier try as late as it likes:
    /// its comparisons have to see to that.
    pub async fn transact(
        &self,
        transaction: Txn,
        patience: Option<Duration>,
    ) -> Result<TxnResponse, StateError> {
        let ask = |mut client: KvClient| -> Asked<TxnResponse> {
            let transaction = transaction.clone();
            Box::pin(async move { client.txn(transaction).await })
        };
        self.insist("write", patience, ask).await
    }

    /// Asks until there is an answer, for at most `patience` when given.
    async fn insist<T>(
        &self,
        action: &'static str,
        patience: Option<Duration>,
        ask: impl Fn(KvClient) -> Asked<T>,
    ) -> Result<T, StateError> {
        let started = Instant::now();
        let (mut backoff_ms, mut reminded) = (BACKOFF_MS, started);
        loop {
            let (index, client) = self
                .current()
                .await
                .map_err(|e| self.refused(action, &status(e)))?;
            let answer = tokio::time::timeout(Duration::from_millis(ANSWER_MS), ask(client)).await;
            let status = match answer {
                Ok(Ok(reply)) => {
                    self.recovered();
                    return Ok(reply);
                }
                Ok(Err(error)) => status(error),
                Err(_) => Status::deadline_exceeded(format!("no answer within {ANSWER_MS} ms")),
            };
            if !may_pass(status.code()) {
                return Err(self.refused(action, &status));
            }
            let reason = self.note(&status);
            if patience.is_some_and(|patience| started.elapsed() >= patience) {
                return Err(StateError::Unreachable {
                    place: self.place.clone(),
                    reason,
                });
            }
            if backoff_ms == BACKOFF_MS || reminded.elapsed() >= REMINDER {
                tracing::warn!(
                    place = self.place,
                    reason,
                    "state store unreachable, trying on"
                );
                reminded = Instant::now();
            }
            self.turn(index);
            tokio::time::sleep(Duration::from_millis(backoff_ms)).await;
            backoff_ms = (2 * backoff_ms).min(BACKOFF_MS_MAX);
        }
    }

    /// Which member we talk to, and the connection to it.
    async fn current(&self) -> Result<(usize, KvClient), Error> {
        let (index, client) = lock(&self.current).clone();
        if let Some(client) = client {
            return Ok((index, client));
        }
        let client = dial(&self.endpoints[index]).await?;
        let mut current = lock(&self.current);
        if current.0 == index {
            current.1 = Some(client.clone());
        }
        Ok((index, client))
    }

    /// Talks to the next member, and over a new connection: the old one may lead nowhere.
    fn turn(&self, from: usize) {
        let mut current = lock(&self.current);
        if current.0 == from {
            *current = ((from + 1) % self.endpoints.len(), None);
        }
    }

    fn note(&self, status: &Status) -> String {
        let reason = cause(status);
        let mut trouble = lock(&self.trouble);
        let since = trouble
            .as_ref()
            .map_or_else(Instant::now, |known| known.since);
        *trouble = Some(Trouble {
            since,
            reason: reason.clone(),
        });
        reason
    }

    fn recovered(&self) {
        if let Some(trouble) = lock(&self.trouble).take() {
            let seconds = trouble.since.elapsed().as_secs_f64();
            tracing::info!(place = self.place, seconds, "state store reachable again");
        }
    }

    fn refused(&self, action: &'static str, status: &Status) -> StateError {
        StateError::Database {
            action,
            place: self.place.clone(),
            source: cause(status).into(),
        }
    }
}

/// Whether the same request may succeed later. A full database may: an operator can make room.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Internal
            | Code::Unknown
            | Code::ResourceExhausted
    )
}

/// The status that a failed request came back with.
fn status(error: Error) -> Status {
    match error {
        Error::GRpcStatus(status) => status,
        Error::TransportError(error) => Status::unavailable(error.to_string()),
        Error::IoError(error) => Status::unavailable(error.to_string()),
        other => Status::failed_precondition(other.to_string()),
    }
}

/// What happened, from the bottom of the error: the layers above only say "transport error".
fn cause(status: &Status) -> String {
    let mut bottom: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(next) = bottom.and_then(std::error::Error::source) {
        bottom = Some(next);
    }
    bottom.map_or_else(|| status.message().to_owned(), ToString::to_string)
}
