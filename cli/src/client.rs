//! The coordinator as a user's commands see it.

mod models;

use crate::access_args::AccessArgs;
use crate::download::Download;
use anyhow::{Result, anyhow, bail};
use longtake_agent::{Dial, DialError, Dialler, Link};
use longtake_common::Hash;
use longtake_proto::v1;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::{Code, Status};
use v1::jobs_client::JobsClient;
use v1::models_client::ModelsClient;

/// An answer that is a whole job can name thousands of windows.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes of one message of an upload.
const PIECE_BYTES: usize = 1 << 20;
/// Longest wait for a connection, with its handshakes.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Whoever listens is probed this often and given up when a probe is not answered as long: a port
/// of something else, or a process that was stopped, would never answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Longest wait for a coordinator that lives but is busy, with a slow state store for instance.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Which farm a command talks to.
#[derive(clap::Args, Clone, Debug)]
pub struct FarmArgs {
    /// Address of the coordinator, like http://host:7341
    #[arg(
        long,
        value_name = "URL",
        env = "LONGTAKE_COORDINATOR",
        hide_env_values = true
    )]
    coordinator: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
}

impl FarmArgs {
    /// The coordinator's address, if one was named; an empty variable names none.
    pub fn url(&self) -> Option<&str> {
        self.coordinator.as_deref().filter(|url| !url.is_empty())
    }

    /// Connects; fails with a way out when no coordinator was named.
    pub async fn connect(&self) -> Result<Client> {
        let url = self.url().ok_or_else(|| {
            anyhow!("no coordinator is named; give --coordinator URL or set LONGTAKE_COORDINATOR")
        })?;
        Client::connect(&self.access.dial(url)).await
    }
}

/// A connection to a coordinator.
#[derive(Clone)]
pub struct Client {
    jobs: JobsClient<Link>,
    models: ModelsClient<Link>,
    dialler: Dialler,
    /// Whether anything was answered as a coordinator does: whatever else listens at the address is
    /// not waited for.
    has_answered: Arc<AtomicBool>,
}

impl Client {
    /// Connects to a coordinator.
    pub async fn connect(dial: &Dial) -> Result<Self> {
        let dialler = dial.prepare("user")?.keep_alive(KEEP_ALIVE);
        let link = tokio::time::timeout(CONNECT_DEADLINE, dialler.connect());
        let link = link.await.unwrap_or_else(|_| {
            Err(DialError::Unreachable {
                url: dialler.url().to_owned(),
                reason: format!("nothing came back within {} s", CONNECT_DEADLINE.as_secs()),
            })
        });
        let link = link.map_err(|error| match error {
            DialError::Unreachable { .. } => {
                anyhow!("{error}; start one with `longtake coordinator` or check --coordinator")
            }
            other => other.into(),
        })?;
        let models = ModelsClient::new(link.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let jobs = JobsClient::new(link).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            jobs,
            models,
            dialler,
            has_answered: Arc::default(),
        })
    }

    /// Queues `spec`, or finds the unfinished job that equals it. `isa` is the instruction-set level
    /// to render on and `ranks` how many share each window, if that matters.
    pub async fn submit(
        &mut self,
        spec: v1::JobSpec,
        isa: Option<String>,
        ranks: Option<u32>,
    ) -> Result<v1::SubmitReply> {
        let spec = Some(spec);
        let request = v1::SubmitRequest { spec, isa, ranks };
        self.answer(self.jobs.clone().submit(request)).await
    }

    /// Puts bytes, a chunk at most, into the artifact store, for a job to name them.
    pub async fn store(&mut self, bytes: &[u8]) -> Result<()> {
        let artifact = Hash::of(bytes).to_string();
        let pieces: Vec<_> = bytes.chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect();
        let messages = pieces.into_iter().map(move |data| v1::StoreRequest {
            artifact: artifact.clone(),
            data,
        });
        let mut jobs = self.jobs.clone();
        self.answer(jobs.store(tokio_stream::iter(messages)))
            .await?;
        Ok(())
    }

    /// A job as it is now.
    pub async fn get(&mut self, job: &str) -> Result<v1::Job> {
        self.answer(self.jobs.clone().get(named(job))).await
    }

    /// All jobs, without their segments.
    pub async fn list(&mut self) -> Result<Vec<v1::Job>> {
        let mut jobs = self.jobs.clone();
        let reply = self.answer(jobs.list(v1::ListRequest {})).await?;
        Ok(reply.jobs)
    }

    /// Cancels a job.
    pub async fn cancel(&mut self, job: &str) -> Result<v1::Job> {
        self.answer(self.jobs.clone().cancel(named(job))).await
    }

    /// Has a job wait.
    pub async fn pause(&mut self, job: &str) -> Result<v1::Job> {
        self.answer(self.jobs.clone().pause(named(job))).await
    }

    /// Has a paused job go on.
    pub async fn resume(&mut self, job: &str) -> Result<v1::Job> {
        self.answer(self.jobs.clone().resume(named(job))).await
    }

    /// Has a failed or cancelled job go on.
    pub async fn retry(&mut self, job: &str) -> Result<v1::Job> {
        self.answer(self.jobs.clone().retry(named(job))).await
    }

    /// Has one window rendered anew.
    pub async fn retake(&mut self, request: v1::RetakeRequest) -> Result<v1::Job> {
        self.answer(self.jobs.clone().retake(request)).await
    }

    /// Why a job is where it is.
    pub async fn reasons(&mut self, job: &str) -> Result<v1::Explanation> {
        self.answer(self.jobs.clone().explain(named(job))).await
    }

    /// What a job's tasks have said, line by line.
    pub async fn logs(
        &mut self,
        request: v1::LogsRequest,
        mut show: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let mut stream = self.answer(self.jobs.clone().logs(request)).await?;
        while let Some(part) = (stream.message().await).map_err(|status| self.explain(&status))? {
            part.lines.iter().try_for_each(|line| show(line))?;
        }
        Ok(())
    }

    /// The workers that are connected.
    pub async fn workers(&mut self) -> Result<Vec<v1::Worker>> {
        let mut jobs = self.jobs.clone();
        let reply = jobs.list_workers(v1::ListWorkersRequest {});
        Ok(self.answer(reply).await?.workers)
    }

    /// Gives a worker nothing new. Returns what is connected under its name.
    pub async fn drain_worker(&mut self, name: &str) -> Result<Vec<v1::Worker>> {
        let name = name.to_owned();
        let mut jobs = self.jobs.clone();
        let reply = jobs.drain_worker(v1::WorkerRequest { name });
        Ok(self.answer(reply).await?.workers)
    }

    /// Lets a drained worker work again. Returns what is connected under its name.
    pub async fn resume_worker(&mut self, name: &str) -> Result<Vec<v1::Worker>> {
        let name = name.to_owned();
        let mut jobs = self.jobs.clone();
        let reply = jobs.resume_worker(v1::WorkerRequest { name });
        Ok(self.answer(reply).await?.workers)
    }

    /// Follows a job until it ends, showing every state of it to `see`. A connection that breaks is
    /// made again for `patience`, because the job goes on without us; one that has never brought an
    /// answer is not.
    pub async fn watch(
        &mut self,
        job: &str,
        patience: Duration,
        mut see: impl FnMut(&v1::Job),
    ) -> Result<v1::Job> {
        let mut broken_since: Option<std::time::Instant> = None;
        loop {
            let lost = match self.watch_once(job, &mut see, &mut broken_since).await {
                Ok(last) => return Ok(last),
                Err(status) if longtake_agent::has_broken(&status) => status,
                Err(status) => return Err(self.explain(&status)),
            };
            let since = *broken_since.get_or_insert_with(std::time::Instant::now);
            if since.elapsed() >= patience || !self.has_answered.load(Ordering::Relaxed) {
                return Err(self.explain(&lost));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn watch_once(
        &mut self,
        job: &str,
        see: &mut impl FnMut(&v1::Job),
        broken_since: &mut Option<std::time::Instant>,
    ) -> Result<v1::Job, Status> {
        let reply = self.jobs.watch(named(job)).await;
        let mut stream = self.heard(reply)?.into_inner();
        while let Some(state) = stream.message().await? {
            *broken_since = None;
            see(&state);
            if has_ended(&state) {
                return Ok(state);
            }
        }
        Err(Status::unavailable(
            "the coordinator ended the stream before the job ended",
        ))
    }

    /// Writes the bytes of one of a job's artifacts to a new file, and makes sure that they lie
    /// there. Fails with [`LostArtifact`] when they are being made again.
    pub async fn fetch_to(&mut self, job: &str, artifact: &str, path: &Path) -> Result<()> {
        let wanted: Hash = artifact.parse()?;
        let request = wanted_of(job, artifact);
        let mut stream = self.answer(self.jobs.clone().fetch(request)).await?;
        let mut file = Download::create(path).await?;
        while let Some(part) = stream
            .message()
            .await
            .map_err(|status| self.explain(&status))?
        {
            file.push(&part.data).await?;
        }
        file.finish(wanted).await
    }

    /// What a request is answered with; one that is not answered in time has failed.
    async fn answer<T>(
        &self,
        request: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(ANSWER_DEADLINE, request).await {
            Ok(reply) => match self.heard(reply) {
                Ok(reply) => Ok(reply.into_inner()),
                Err(status) => Err(self.explain(&status)),
            },
            Err(_) => Err(anyhow!(
                "the coordinator at {} took the request but did not answer within {} s; see whether it is overloaded or stopped, or check --coordinator",
                self.dialler.url(),
                ANSWER_DEADLINE.as_secs()
            )),
        }
    }

    /// Remembers that a coordinator is there when this is its answer, or its refusal.
    fn heard<T>(&self, reply: Result<T, Status>) -> Result<T, Status> {
        let is_answer = !matches!(&reply, Err(status) if longtake_agent::has_broken(status));
        self.has_answered.fetch_or(is_answer, Ordering::Relaxed);
        reply
    }

    /// The bytes of one of a job's artifacts that fits into memory. Fails like [`Self::fetch_to`].
    pub async fn fetch_bytes(&mut self, job: &str, artifact: &str) -> Result<Vec<u8>> {
        let wanted: Hash = artifact.parse()?;
        let request = wanted_of(job, artifact);
        let mut stream = self.answer(self.jobs.clone().fetch(request)).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream
            .message()
            .await
            .map_err(|status| self.explain(&status))?
        {
            bytes.extend_from_slice(&part.data);
        }
        if Hash::of(&bytes) != wanted {
            bail!("artifact {wanted} came with other bytes than it is named for; fetch it again");
        }
        Ok(bytes)
    }

    /// A refusal in the coordinator's words; a broken connection in ours.
    fn explain(&self, status: &Status) -> anyhow::Error {
        if let Some(error) = self.dialler.explain(status) {
            return error.into();
        }
        match status.code() {
            Code::DataLoss => LostArtifact(status.message().to_owned()).into(),
            _ if !longtake_agent::has_broken(status) => anyhow!("{}", status.message()),
            _ if !self.has_answered.load(Ordering::Relaxed) => anyhow!(
                "what listens at {} does not answer as a coordinator does ({}); check --coordinator, or see whether the coordinator there is stopped",
                self.dialler.url(),
                status.message()
            ),
            _ => anyhow!(
                "the connection to the coordinator at {} broke ({}); see whether it still runs",
                self.dialler.url(),
                status.message()
            ),
        }
    }
}

/// The artifact store has lost something of a job, and the farm makes it again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LostArtifact(String);

fn wanted_of(job: &str, artifact: &str) -> v1::FetchRequest {
    v1::FetchRequest {
        artifact: artifact.to_owned(),
        job: job.to_owned(),
    }
}

fn named(job: &str) -> v1::JobRequest {
    v1::JobRequest {
        job: job.to_owned(),
    }
}

/// Whether nothing more will happen to `job`.
pub fn has_ended(job: &v1::Job) -> bool {
    use v1::JobState::{Cancelled, Done, Failed};
    matches!(job.state(), Done | Failed | Cancelled)
}

/// The state's name as the JSON has it.
pub fn state_name(state: v1::JobState) -> &'static str {
    match state {
        v1::JobState::Unspecified => "unknown",
        v1::JobState::Queued => "queued",
        v1::JobState::Running => "running",
        v1::JobState::Paused => "paused",
        v1::JobState::Done => "done",
        v1::JobState::Failed => "failed",
        v1::JobState::Cancelled => "cancelled",
    }
}
