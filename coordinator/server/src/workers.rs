//! What workers say: the `Workers` service.

use crate::HEARTBEAT_MS;
use crate::jobs::confirm_loss;
use crate::logs;
use crate::metrics::{Counters, count};
use crate::request::{Connection, Mailbox, Request};
use futures::{Stream, StreamExt};
use longtake_common::artifact::ArtifactStore;
use longtake_common::ids::{Epoch, FencingToken, Hash, JobId, TaskId, WorkerId};
use longtake_common::task::{ENGINE, Share, TaskOutput};
use longtake_core::{Blame, Event, Fault, Fetching, Running, WorkerInfo};
use longtake_proto::v1;
use longtake_proto::v1::worker_message::Message;
use longtake_proto::v1::workers_server::Workers;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// A connection has to say what it is within this time.
const REGISTER_MS: u64 = 20 * HEARTBEAT_MS;
/// How long the artifact store is asked for the mark that workers look for.
const LOOK: Duration = Duration::from_secs(2);
/// Most ranks of a worker: more than a machine has devices.
const RANKS_MAX: u32 = 1024;
/// Longest key of a gang; NCCL's has 128 bytes.
const KEY_BYTES_MAX: usize = 1024;
/// Longest name of a worker, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// The service.
pub struct WorkersService {
    actor: Mailbox,
    artifacts: ArtifactStore,
    probe: String,
    counters: Arc<Counters>,
}

impl WorkersService {
    /// Workers for the actor's core, which take what they work on from the store: the one that holds
    /// `probe`, which no other coordinator puts anywhere.
    pub fn new(
        actor: Mailbox,
        artifacts: ArtifactStore,
        probe: String,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            actor,
            artifacts,
            probe,
            counters,
        }
    }
}

#[tonic::async_trait]
impl Workers for WorkersService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn workplace(
        &self,
        _request: tonic::Request<v1::WorkplaceRequest>,
    ) -> Result<Response<v1::WorkplaceReply>, Status> {
        let probe = Hash::of(self.probe.as_bytes());
        // The store may have been emptied since the start. One that is away the worker will see for
        // itself.
        let looked = tokio::time::timeout(LOOK, self.artifacts.exists(probe)).await;
        if let Ok(Ok(false)) = looked
            && let Err(error) = self.artifacts.put(self.probe.clone()).await
        {
            tracing::warn!(%error, "cannot leave a mark for a worker");
        }
        Ok(Response::new(v1::WorkplaceReply {
            artifacts: self.artifacts.url().to_owned(),
            probe: probe.to_string(),
        }))
    }

    async fn attach(
        &self,
        request: tonic::Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let first =
            tokio::time::timeout(Duration::from_millis(REGISTER_MS), inbound.message()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("the worker did not register"))??;
        let Some(Message::Register(register)) = first.and_then(|message| message.message) else {
            return Err(Status::invalid_argument(
                "a worker's first message is its registration",
            ));
        };
        check(&register)?;
        let models = hashes(&register.models).map_err(Status::invalid_argument)?;
        let gang_address = gang_address(&register).map_err(Status::invalid_argument)?;
        let running = running(register.running);
        let info = WorkerInfo {
            name: register.name,
            instance: register.instance,
            device: register.device,
            isa: register.isa,
            threads: register.threads,
            memory_bytes: register.memory_bytes,
            models,
            takes_paths: register.takes_paths,
            ranks: register.ranks.clamp(1, RANKS_MAX),
            gang_address,
            machine: register.machine,
        };
        let attached = self.actor.wait_for(|reply| Request::Attach {
            info,
            running,
            reply,
        });
        let connection = attached.await?.map_err(Status::already_exists)?;
        let Connection {
            worker,
            epoch,
            outbox,
            mut open,
        } = connection;
        let (actor, artifacts) = (self.actor.clone(), self.artifacts.clone());
        let counters = self.counters.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = listen(&actor, &artifacts, &counters, &worker, epoch, inbound) => {}
                // The coordinator is through with it: nothing more is to be heard.
                _ = open.changed() => {}
            }
            // Fails only when the coordinator is stopping.
            let _ = actor.send(Request::Event(Event::Detach { worker })).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox).map(Ok))))
    }
}

fn check(register: &v1::Register) -> Result<(), Status> {
    let name = &register.name;
    let plain = |c: char| !c.is_control() && c != '#';
    for (what, text) in [
        ("device", &register.device),
        ("instruction-set level", &register.isa),
        ("process", &register.instance),
        ("machine", &register.machine),
    ] {
        if text.len() > NAME_BYTES_MAX || !text.chars().all(plain) {
            return Err(Status::invalid_argument(format!(
                "'{}' is no name for a worker's {what}",
                text.escape_debug()
            )));
        }
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
        return Err(Status::invalid_argument(format!(
            "'{}' is no name for a worker: use 1 to {NAME_BYTES_MAX} bytes without '#' and control characters",
            name.escape_debug()
        )));
    }
    let own = ENGINE;
    if register.version != own {
        // The same job has to give the same bytes, whoever renders it.
        return Err(Status::failed_precondition(format!(
            "worker {name} is longtake {}, the coordinator {own}: install the same version on both",
            register.version
        )));
    }
    Ok(())
}

fn share(share: v1::Share) -> Share {
    let v1::Share { ranks, first, own } = share;
    Share { ranks, first, own }
}

/// Where a worker's ranks are reached, if anywhere.
fn gang_address(register: &v1::Register) -> Result<Option<IpAddr>, String> {
    let text = &register.gang_address;
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse();
    address.map(Some).map_err(|_| {
        format!(
            "'{}' is no address for a worker's ranks",
            text.escape_debug()
        )
    })
}

fn running(running: Vec<v1::Running>) -> Vec<Running> {
    let one = |running: v1::Running| Running {
        job: JobId(running.job),
        task: TaskId(running.task),
        token: FencingToken(running.token),
        progress: running.progress,
        share: running.share.map(share),
    };
    running.into_iter().map(one).collect()
}

fn hash(text: &str) -> Result<Hash, String> {
    text.parse()
        .map_err(|error| format!("it names a model so: {error}"))
}

fn hashes(texts: &[String]) -> Result<BTreeSet<Hash>, String> {
    texts.iter().map(|text| hash(text)).collect()
}

/// Passes on what a worker says, until it stops or says something that it should not.
async fn listen(
    actor: &Mailbox,
    artifacts: &ArtifactStore,
    counters: &Counters,
    worker: &WorkerId,
    epoch: Epoch,
    mut inbound: Streaming<v1::WorkerMessage>,
) {
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return tracing::info!(%worker, "worker left"),
            Err(status) => {
                count(&counters.workers_lost);
                return tracing::info!(%worker, error = status.message(), "worker's connection broke");
            }
        };
        let message = match message.message {
            Some(Message::Log(log)) => {
                if actor.send(Request::Said(logs::said(log))).await.is_err() {
                    return;
                }
                continue;
            }
            message => v1::WorkerMessage { message },
        };
        match event(worker, epoch, message) {
            Ok(event) if is_claim(&event) => {
                // Reading the artifacts may take long, and the worker has other things to say.
                let (actor, artifacts) = (actor.clone(), artifacts.clone());
                tokio::spawn(async move {
                    let event = confirm(&artifacts, event).await;
                    // Fails only when the coordinator is stopping.
                    let _ = actor.send(Request::Event(event)).await;
                });
            }
            Ok(event) => {
                if actor.send(Request::Event(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => return tracing::warn!(%worker, error, "dropping a worker"),
        }
    }
}

fn event(worker: &WorkerId, own: Epoch, message: v1::WorkerMessage) -> Result<Event, String> {
    let worker = worker.clone();
    match message.message {
        Some(Message::Heartbeat(heartbeat)) => {
            // Reports outlive a term, since their tokens do; a sign of life does not.
            if Epoch(heartbeat.epoch) != own {
                return Err(format!(
                    "it speaks to term {}, this is {own}",
                    heartbeat.epoch
                ));
            }
            let running = running(heartbeat.running);
            Ok(Event::Heartbeat {
                worker,
                running,
                peak_rss_bytes: heartbeat.peak_rss_bytes,
                leaving: heartbeat.leaving,
            })
        }
        Some(Message::Done(done)) => {
            let output: TaskOutput = serde_json::from_str(&done.output_json)
                .map_err(|error| format!("its result of {} cannot be read: {error}", done.task))?;
            Ok(Event::Done {
                worker,
                job: JobId(done.job),
                task: TaskId(done.task),
                token: FencingToken(done.token),
                output: Box::new(output),
            })
        }
        Some(Message::Failed(failed)) => Ok(Event::Failed {
            blame: blame(&failed)?,
            // An odd name is no name: the failure counts all the same.
            log: failed.log.as_deref().and_then(|log| log.parse().ok()),
            worker,
            job: JobId(failed.job),
            task: TaskId(failed.task),
            token: FencingToken(failed.token),
            error: failed.error,
        }),
        Some(Message::Seated(seated)) => {
            let seats = seated.seats.iter().map(|text| text.parse::<SocketAddr>());
            let seats = seats.collect::<Result<Vec<_>, _>>();
            let seats = seats.map_err(|error| format!("it seats a rank nowhere: {error}"))?;
            if seated.key.len() > KEY_BYTES_MAX {
                let bytes = seated.key.len();
                return Err(format!("it links a gang by a key of {bytes} bytes"));
            }
            Ok(Event::Seated {
                worker,
                gang: FencingToken(seated.gang),
                seats,
                key: seated.key,
            })
        }
        Some(Message::Joined(joined)) => Ok(Event::Joined {
            worker,
            gang: FencingToken(joined.gang),
        }),
        Some(Message::Models(held)) => {
            let fetching = held.fetching.map(|fetching| {
                Ok::<_, String>(Fetching {
                    hash: hash(&fetching.model)?,
                    done_bytes: fetching.done_bytes,
                    total_bytes: fetching.total_bytes,
                })
            });
            Ok(Event::WorkerModels {
                worker,
                models: hashes(&held.models)?,
                fetching: fetching.transpose()?,
            })
        }
        Some(Message::ModelFault(fault)) => Ok(Event::ModelFault {
            hash: hash(&fault.model)?,
            fault: Some(Fault {
                reason: fault.error,
                damaged: fault.damaged,
            }),
        }),
        Some(Message::Log(_)) => Err("it said something out of turn".to_owned()),
        Some(Message::Register(_)) => Err("it registered twice".to_owned()),
        None => Err("it sent a message that this version does not know".to_owned()),
    }
}

fn blame(failed: &v1::Failed) -> Result<Blame, String> {
    if !failed.lost_inputs.is_empty() {
        let lost = failed.lost_inputs.iter().map(|hash| hash.parse());
        let lost = lost.collect::<Result<_, _>>();
        return lost
            .map(Blame::Inputs)
            .map_err(|error| format!("it misses an artifact that cannot be: {error}"));
    }
    if failed.leaving {
        let halfway = failed.halfway.as_deref().map(str::parse).transpose();
        return halfway
            .map(Blame::Leaving)
            .map_err(|error| format!("it left an artifact that cannot be: {error}"));
    }
    Ok(if let Some(rank) = failed.unreached_rank {
        Blame::Peer(rank)
    } else if failed.lost_gang {
        Blame::Gang
    } else if failed.no_room {
        Blame::Place
    } else if failed.retryable {
        Blame::Try
    } else {
        Blame::Work
    })
}

/// Whether a worker says that the store has lost something.
fn is_claim(event: &Event) -> bool {
    let claim = |blame: &Blame| matches!(blame, Blame::Inputs(_));
    matches!(event, Event::Failed { blame, .. } if claim(blame))
}

/// What a worker does not find may be there all the same: its store may be another one. Leaves the
/// blame with the store only for what is not there for us either.
async fn confirm(artifacts: &ArtifactStore, event: Event) -> Event {
    let Event::Failed {
        blame: Blame::Inputs(claimed),
        ..
    } = &event
    else {
        return event;
    };
    let mut confirmed = Vec::new();
    for &hash in claimed {
        match confirm_loss(artifacts, hash).await {
            Ok(true) => confirmed.push(hash),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot look after an artifact"),
        }
    }
    let found = if confirmed.is_empty() {
        Blame::Try
    } else {
        Blame::Inputs(confirmed)
    };
    match event {
        Event::Failed {
            worker,
            job,
            task,
            token,
            error,
            log,
            ..
        } => Event::Failed {
            worker,
            job,
            task,
            token,
            error,
            blame: found,
            log,
        },
        other => other,
    }
}
