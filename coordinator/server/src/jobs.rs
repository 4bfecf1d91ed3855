//! What users ask: the `Jobs` service.

use crate::convert::{outline_to_proto, spec_from_proto, view_to_proto, worker_to_proto};
use crate::logs::Reader;
use crate::request::{Mailbox, Request, STORE_PATIENCE};
use crate::upload::received;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use longtake_common::artifact::{ArtifactError, ArtifactStore, Condition};
use longtake_common::ids::{Hash, JobId};
use longtake_common::spec::JobSpec;
use longtake_common::telemetry;
use longtake_core::{Event, JobView, WorkerView};
use longtake_proto::v1;
use longtake_proto::v1::jobs_server::Jobs;
use std::pin::Pin;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use tracing::Instrument;

/// Bytes of an artifact in one message.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// The service.
pub struct JobsService {
    actor: Mailbox,
    artifacts: ArtifactStore,
}

pub(crate) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn no_such_job(job: &str) -> Status {
    Status::not_found(format!(
        "there is no job '{job}' here: 'longtake list' shows those there are"
    ))
}

impl JobsService {
    /// Jobs of the actor's core, artifacts of the store.
    pub fn new(actor: Mailbox, artifacts: ArtifactStore) -> Self {
        Self { actor, artifacts }
    }

    /// Has the actor do something with a job.
    async fn command(
        &self,
        job: String,
        event: impl FnOnce(JobId) -> Event,
    ) -> Result<Response<v1::Job>, Status> {
        let id = JobId(job.clone());
        let event = event(id.clone());
        let done = self.actor.ask(|reply| Request::Command {
            job: id,
            event,
            reply,
        });
        let view = done.await?.map_err(Status::failed_precondition)?;
        view.map(|view| Response::new(view_to_proto(&view)))
            .ok_or_else(|| no_such_job(&job))
    }

    /// Fails when pictures that the job is held to are not stored: no worker could take it.
    async fn check_pictures(&self, spec: &JobSpec) -> Result<(), Status> {
        for (index, item) in spec.conditioning.iter().enumerate() {
            for &pack in &item.packs {
                let there = self.artifacts.exists(pack).await;
                if !there.map_err(|error| refusal(&error))? {
                    let number = index + 1;
                    return Err(Status::failed_precondition(format!(
                        "image or clip {number} of the job is not stored here ({pack}): submit it with the file at hand"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Has the actor do something with a worker.
    async fn worker(
        &self,
        name: String,
        event: impl FnOnce(String) -> Event,
    ) -> Result<Response<v1::ListWorkersReply>, Status> {
        let event = event(name.clone());
        let done = self
            .actor
            .ask(|reply| Request::Worker { name, event, reply });
        let workers = done.await?.map_err(Status::failed_precondition)?;
        Ok(workers_reply(&workers))
    }
}

fn workers_reply(workers: &[WorkerView]) -> Response<v1::ListWorkersReply> {
    let workers = workers.iter().map(worker_to_proto).collect();
    Response::new(v1::ListWorkersReply { workers })
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn store(
        &self,
        request: tonic::Request<tonic::Streaming<v1::StoreRequest>>,
    ) -> Result<Response<v1::StoreReply>, Status> {
        let pieces = request.into_inner();
        let bytes = received(pieces.map_ok(|piece| (piece.artifact, piece.data))).await?;
        let stored = self.artifacts.put(bytes).await;
        stored.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::StoreReply {}))
    }

    async fn submit(
        &self,
        request: tonic::Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let span = tracing::info_span!("submit");
        let parent = request.metadata().get(telemetry::TRACE_HEADER);
        telemetry::continue_trace(&span, parent.and_then(|value| value.to_str().ok()));
        let trace = telemetry::traceparent(&span);
        let v1::SubmitRequest { spec, isa, ranks } = request.into_inner();
        if ranks == Some(0) {
            return Err(Status::invalid_argument(
                "no rank at all is to share the windows: --ranks is 1 or more",
            ));
        }
        let spec = spec.ok_or_else(|| Status::invalid_argument("the request has no job"))?;
        let spec =
            spec_from_proto(spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.check_pictures(&spec).await?;
        let spec = Box::new(spec);
        let submitted = self.actor.ask(|reply| Request::Submit {
            spec,
            isa,
            ranks,
            trace,
            reply,
        });
        let submitted = submitted.instrument(span).await?;
        let (job, continued) = submitted.map_err(Status::invalid_argument)?;
        Ok(Response::new(v1::SubmitReply {
            job: job.to_string(),
            continued,
        }))
    }

    async fn get(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let job = request.into_inner().job;
        let id = JobId(job.clone());
        let view = self
            .actor
            .ask(|reply| Request::View { job: id, reply })
            .await?;
        view.map(|view| Response::new(view_to_proto(&view)))
            .ok_or_else(|| no_such_job(&job))
    }

    async fn list(
        &self,
        _request: tonic::Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let views = self.actor.ask(|reply| Request::List { reply }).await?;
        let jobs = views.iter().map(outline_to_proto).collect();
        Ok(Response::new(v1::ListReply { jobs }))
    }

    type WatchStream = Streamed<v1::Job>;

    async fn watch(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let job = request.into_inner().job;
        let id = JobId(job.clone());
        let receiver = self
            .actor
            .ask(|reply| Request::Watch { job: id, reply })
            .await?;
        let receiver = receiver.ok_or_else(|| no_such_job(&job))?;
        Ok(Response::new(Box::pin(changes(receiver))))
    }

    async fn cancel(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        self.command(request.into_inner().job, |job| Event::Cancel { job })
            .await
    }

    async fn pause(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        self.command(request.into_inner().job, |job| Event::Pause { job })
            .await
    }

    async fn resume(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        self.command(request.into_inner().job, |job| Event::Resume { job })
            .await
    }

    async fn retry(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        self.command(request.into_inner().job, |job| Event::Retry { job })
            .await
    }

    async fn retake(
        &self,
        request: tonic::Request<v1::RetakeRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let v1::RetakeRequest {
            job,
            segment,
            seed,
            prompt,
        } = request.into_inner();
        let event = |job| Event::Retake {
            job,
            window: segment,
            seed,
            prompt,
        };
        self.command(job, event).await
    }

    async fn explain(
        &self,
        request: tonic::Request<v1::JobRequest>,
    ) -> Result<Response<v1::Explanation>, Status> {
        let job = request.into_inner().job;
        let id = JobId(job.clone());
        let found = self
            .actor
            .ask(|reply| Request::Explain { job: id, reply })
            .await?;
        let (view, explanation) = found.ok_or_else(|| no_such_job(&job))?;
        Ok(Response::new(v1::Explanation {
            job: Some(outline_to_proto(&view)),
            reasons: explanation.reasons,
        }))
    }

    async fn list_workers(
        &self,
        _request: tonic::Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersReply>, Status> {
        let workers = self.actor.ask(|reply| Request::Workers { reply }).await?;
        Ok(workers_reply(&workers))
    }

    async fn drain_worker(
        &self,
        request: tonic::Request<v1::WorkerRequest>,
    ) -> Result<Response<v1::ListWorkersReply>, Status> {
        self.worker(request.into_inner().name, |name| Event::Drain { name })
            .await
    }

    async fn resume_worker(
        &self,
        request: tonic::Request<v1::WorkerRequest>,
    ) -> Result<Response<v1::ListWorkersReply>, Status> {
        self.worker(request.into_inner().name, |name| Event::Undrain { name })
            .await
    }

    type LogsStream = Streamed<v1::LogLines>;

    async fn logs(
        &self,
        request: tonic::Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let reader = Reader::new(self.actor.clone(), self.artifacts.clone(), &request);
        let logs = reader.look().await?;
        let logs = logs.ok_or_else(|| no_such_job(&request.job))?;
        let (sender, lines) = mpsc::channel(4);
        tokio::spawn(reader.send(logs, request.follow, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(lines))))
    }

    type FetchStream = Streamed<v1::FetchReply>;

    async fn fetch(
        &self,
        request: tonic::Request<v1::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let v1::FetchRequest { artifact, job } = request.into_inner();
        // A hash is the only name that is understood, so no path can be asked for.
        let hash: Hash = artifact.parse().map_err(|error| {
            Status::invalid_argument(format!("cannot fetch the artifact: {error}"))
        })?;
        let delivery = Delivery {
            actor: self.actor.clone(),
            artifacts: self.artifacts.clone(),
            hash,
            job: JobId(job),
        };
        // A missing one is answered at once, a damaged one is only known at its end.
        match tokio::time::timeout(STORE_PATIENCE, self.artifacts.exists(hash)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(delivery.lost().await),
            Ok(Err(error)) => return Err(Status::internal(error.to_string())),
            Err(_) => {
                return Err(Status::internal(format!(
                    "the artifact store {} did not answer the coordinator within {} s: see whether it runs, then fetch again",
                    self.artifacts.url(),
                    STORE_PATIENCE.as_secs()
                )));
            }
        }
        let pieces = self.artifacts.stream(hash).then(move |piece| {
            let delivery = delivery.clone();
            async move { delivery.pieces(piece).await }
        });
        Ok(Response::new(Box::pin(pieces.flat_map(stream::iter))))
    }
}

pub(crate) fn refusal(error: &ArtifactError) -> Status {
    match error {
        ArtifactError::Missing { .. } => Status::not_found(error.to_string()),
        ArtifactError::Mismatch { .. } => Status::data_loss(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

/// An artifact on its way to a user.
#[derive(Clone)]
struct Delivery {
    actor: Mailbox,
    artifacts: ArtifactStore,
    hash: Hash,
    job: JobId,
}

impl Delivery {
    /// Pieces small enough for one message each.
    async fn pieces(
        self,
        piece: Result<bytes::Bytes, ArtifactError>,
    ) -> Vec<Result<v1::FetchReply, Status>> {
        match piece {
            Ok(bytes) => {
                let pieces = bytes.chunks(PIECE_BYTES).map(<[u8]>::to_vec);
                pieces.map(|data| Ok(v1::FetchReply { data })).collect()
            }
            Err(ArtifactError::Missing { .. } | ArtifactError::Mismatch { .. }) => {
                vec![Err(self.lost().await)]
            }
            Err(error) => vec![Err(Status::internal(error.to_string()))],
        }
    }

    /// Has the artifact made again, if it is one of the job's; what to tell the user.
    async fn lost(self) -> Status {
        let (hash, job) = (self.hash, self.job.clone());
        match confirm_loss(&self.artifacts, hash).await {
            Ok(true) => {}
            Ok(false) => {
                return Status::unavailable(format!(
                    "artifact {hash} was not there a moment ago and is now: fetch it again"
                ));
            }
            Err(error) => return Status::internal(error.to_string()),
        }
        let asked = self.actor.ask(|reply| Request::Lost {
            artifact: hash,
            job: self.job,
            reply,
        });
        match asked.await {
            Ok(true) => Status::data_loss(format!(
                "the artifact store has lost {hash}, and the farm makes it again: wait for it with 'longtake watch {job}', then fetch again"
            )),
            Ok(false) => Status::not_found(format!("there is no artifact {hash} here")),
            Err(status) => status,
        }
    }
}

/// Whether an artifact is missing or damaged, which is moved aside. Says so in the log.
pub(crate) async fn confirm_loss(
    artifacts: &ArtifactStore,
    hash: Hash,
) -> Result<bool, ArtifactError> {
    match artifacts.examine(hash).await? {
        Condition::Whole => return Ok(false),
        Condition::Missing => {
            tracing::warn!(%hash, store = artifacts.url(), "an artifact is missing");
        }
        Condition::SetAside => {
            tracing::warn!(%hash, store = artifacts.url(), "an artifact is damaged: moved to damaged/");
        }
    }
    Ok(true)
}

/// The job now and after every change, until it ends or the coordinator does.
fn changes(
    receiver: watch::Receiver<JobView>,
) -> impl Stream<Item = Result<v1::Job, Status>> + Send {
    stream::unfold(Some((receiver, true)), |state| async move {
        let (mut receiver, first) = state?;
        if !first && receiver.changed().await.is_err() {
            let stopped = "the coordinator stopped: watch the job again when it is back";
            return Some((Err(Status::unavailable(stopped)), None));
        }
        let view = receiver.borrow_and_update().clone();
        let next = (!view.state.is_final()).then_some((receiver, false));
        Some((Ok(view_to_proto(&view)), next))
    })
}
