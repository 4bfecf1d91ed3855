//! The coordinator as a user's commands see it.

use anyhow::{Context, Result, anyhow, bail};
use longtake_proto::v1;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use v1::jobs_client::JobsClient;

/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// An answer that is a whole job can name thousands of windows.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

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
        Client::connect(url).await
    }
}

/// A connection to a coordinator.
#[derive(Clone)]
pub struct Client {
    jobs: JobsClient<Channel>,
    url: String,
}

impl Client {
    /// Connects to the coordinator at `url`.
    pub async fn connect(url: &str) -> Result<Self> {
        let shape =
            || format!("'{url}' is not a coordinator's address; give one like http://host:7341");
        if !url.starts_with("http://") {
            bail!(shape());
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).with_context(shape)?;
        let endpoint = endpoint.connect_timeout(CONNECT_DEADLINE).tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| {
            let error = anyhow::Error::from(error);
            anyhow!(
                "no coordinator answers at {url} ({}); start one with `longtake coordinator` or \
                 check --coordinator",
                error.root_cause()
            )
        })?;
        let jobs = JobsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            jobs,
            url: url.to_owned(),
        })
    }

    /// Queues `spec`, or finds the unfinished job that equals it.
    pub async fn submit(&mut self, spec: v1::JobSpec) -> Result<v1::SubmitReply> {
        let reply = self
            .jobs
            .submit(v1::SubmitRequest { spec: Some(spec) })
            .await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| self.explain(&status))
    }

    /// A job as it is now.
    pub async fn get(&mut self, job: &str) -> Result<v1::Job> {
        let reply = self
            .jobs
            .get(v1::JobRequest {
                job: job.to_owned(),
            })
            .await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| self.explain(&status))
    }

    /// All jobs.
    pub async fn list(&mut self) -> Result<Vec<v1::Job>> {
        let reply = self.jobs.list(v1::ListRequest {}).await;
        reply
            .map(|reply| reply.into_inner().jobs)
            .map_err(|status| self.explain(&status))
    }

    /// Cancels a job.
    pub async fn cancel(&mut self, job: &str) -> Result<v1::Job> {
        let reply = self
            .jobs
            .cancel(v1::JobRequest {
                job: job.to_owned(),
            })
            .await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| self.explain(&status))
    }

    /// Follows a job until it ends, showing every state of it to `see`. A connection that breaks is
    /// made again for `patience`, because the job goes on without us.
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
                Err(status) if status.code() == Code::Unavailable => status,
                Err(status) => return Err(self.explain(&status)),
            };
            let since = *broken_since.get_or_insert_with(std::time::Instant::now);
            if since.elapsed() >= patience {
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
        let request = v1::JobRequest {
            job: job.to_owned(),
        };
        let mut stream = self.jobs.watch(request).await?.into_inner();
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

    /// Writes the bytes of an artifact to a new file.
    pub async fn fetch_to(&mut self, artifact: &str, path: &Path) -> Result<()> {
        let request = v1::FetchRequest {
            artifact: artifact.to_owned(),
        };
        let reply = self
            .jobs
            .fetch(request)
            .await
            .map_err(|status| self.explain(&status))?;
        let mut stream = reply.into_inner();
        let writing = || format!("write {}", path.display());
        let mut file = tokio::fs::File::create(path).await.with_context(writing)?;
        while let Some(part) = stream
            .message()
            .await
            .map_err(|status| self.explain(&status))?
        {
            file.write_all(&part.data).await.with_context(writing)?;
        }
        file.sync_all().await.with_context(writing)
    }

    /// A refusal in the coordinator's words; a broken connection in ours.
    fn explain(&self, status: &Status) -> anyhow::Error {
        match status.code() {
            Code::Unavailable | Code::Unknown => anyhow!(
                "the connection to the coordinator at {} broke ({}); see whether it still runs",
                self.url,
                status.message()
            ),
            _ => anyhow!("{}", status.message()),
        }
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
        v1::JobState::Done => "done",
        v1::JobState::Failed => "failed",
        v1::JobState::Cancelled => "cancelled",
    }
}

/// Windows of `job` that are decoded and stored.
pub fn segments_done(job: &v1::Job) -> usize {
    job.segments.iter().filter(|segment| segment.done).count()
}
