//! The life of a worker: connect, work, reconnect, leave.

use crate::connection::{self, Connection, LostConnection};
use crate::control::{GangOrder, GangWord, GangWords};
use crate::dial::{Dial, Dialler};
use crate::drain::{Drain, Stage};
use crate::error::{AgentError, TaskError};
use crate::host;
use crate::lane::{Executor, Lane};
use crate::ledger::{Key, Ledger, Outcome};
use crate::models::Shelf;
use longtake_common::FencingToken;
use longtake_common::task;
use longtake_proto::v1;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use v1::coordinator_message::Message;

/// The first wait before dialling again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// The longest wait before dialling again. A coordinator that comes back is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Who we say we are.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name for people.
    pub name: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Instruction-set level in use, or the GPU's.
    pub isa: String,
    /// Threads of the device lane.
    pub threads: u32,
    /// Tells processes of one name apart.
    pub instance: String,
    /// Ranks of a gang that we can be.
    pub ranks: u32,
    /// Where other workers' ranks reach them.
    pub gang_address: Option<IpAddr>,
    /// Tells machines apart.
    pub machine: String,
}

/// What a task needs from the connection it came by.
#[derive(Clone, Debug)]
pub struct OrderContext {
    /// URL of the artifact store.
    pub artifacts: String,
    /// The trace that the task belongs to.
    pub traceparent: String,
    /// Our name, for the log.
    pub worker: String,
}

/// The threads that work.
pub struct Lanes {
    /// The one with the model.
    device: Lane<OrderContext>,
    /// The one for pictures and files.
    host: Lane<OrderContext>,
    /// What they finish.
    finished: UnboundedReceiver<(Key, Outcome)>,
    /// What they have to say to the coordinator meanwhile.
    words: UnboundedReceiver<(FencingToken, GangWord)>,
    speaker: GangWords,
}

impl Lanes {
    /// Starts a thread for each of the two executors.
    pub fn start<D, H>(device: D, host: H) -> Result<Self, AgentError>
    where
        D: Executor<Context = OrderContext>,
        H: Executor<Context = OrderContext>,
    {
        let (sender, finished) = tokio::sync::mpsc::unbounded_channel();
        let device = Lane::start("device", device, sender.clone())?;
        let host = Lane::start("host", host, sender)?;
        let (speaker, words) = tokio::sync::mpsc::unbounded_channel();
        Ok(Self {
            words,
            speaker,
            device,
            host,
            finished,
        })
    }
}

/// A worker between its threads and its coordinator.
pub struct Server {
    /// Who we are.
    pub identity: Identity,
    /// The models that are here.
    pub shelf: Arc<Shelf>,
    /// The coordinator, ready to be dialled.
    pub dialler: Dialler,
    /// How long the first contact may take.
    pub patience: Duration,
    /// The threads that work.
    pub lanes: Lanes,
    /// What is in hand.
    pub ledger: Ledger,
}

impl Server {
    /// Serves until `drain` has ended or, once it has begun, nothing is left in hand.
    pub async fn serve(mut self, mut drain: Drain) -> Result<(), AgentError> {
        let started = Instant::now();
        let mut met = false;
        let mut backoff = BACKOFF_FIRST;
        loop {
            if self.may_leave(&drain) {
                self.give_up();
                return Ok(());
            }
            let connected = tokio::select! {
                connected = self.connect(met) => connected,
                stage = drain.next() => {
                    self.stand(stage);
                    continue;
                }
            };
            let lost = match connected {
                Ok(mut connection) => {
                    tracing::info!(worker = connection.terms.worker, "connected");
                    (met, backoff) = (true, BACKOFF_FIRST);
                    match self.exchange(&mut connection, &mut drain).await {
                        Ok(()) => {
                            connection.close().await;
                            return Ok(());
                        }
                        Err(reason) => reason,
                    }
                }
                Err(reason) => reason,
            };
            let lost = match lost {
                // Waiting does not help; once we were let in, it may: tokens are renewed.
                LostConnection::Barred(error) if !met => return Err(error.into()),
                LostConnection::NameTaken(reason) if !met && started.elapsed() >= self.patience => {
                    return Err(AgentError::Refused {
                        url: self.dialler.url().to_owned(),
                        reason,
                    });
                }
                LostConnection::Refused(reason) if !met => {
                    return Err(AgentError::Refused {
                        url: self.dialler.url().to_owned(),
                        reason,
                    });
                }
                LostConnection::Artifacts(reason) => {
                    return Err(AgentError::Artifacts {
                        url: self.dialler.url().to_owned(),
                        reason,
                    });
                }
                other => other,
            };
            if !met && started.elapsed() >= self.patience {
                return Err(AgentError::Unreachable {
                    url: self.dialler.url().to_owned(),
                    reason: lost.to_string(),
                });
            }
            tracing::warn!("no connection to the coordinator ({lost}); trying again");
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                stage = drain.next() => self.stand(stage),
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Registers; at first only where the artifacts can be reached. Later they are not asked for: a
    /// store that is away for all is waited for.
    async fn connect(&self, met: bool) -> Result<Connection, LostConnection> {
        if !met {
            connection::check_artifacts(&self.dialler).await?;
        }
        Connection::open(&self.dialler, self.registration()).await
    }

    fn may_leave(&self, drain: &Drain) -> bool {
        drain.has_ended() || (drain.has_begun() && self.ledger.is_idle())
    }

    fn registration(&self) -> v1::Register {
        v1::Register {
            name: self.identity.name.clone(),
            version: task::ENGINE.to_owned(),
            device: self.identity.device.clone(),
            isa: self.identity.isa.clone(),
            threads: self.identity.threads,
            memory_bytes: host::memory_bytes(),
            running: self.ledger.in_hand(),
            instance: self.identity.instance.clone(),
            models: self.shelf.held(),
            takes_paths: self.shelf.takes_paths(),
            ranks: self.identity.ranks,
            gang_address: (self.identity.gang_address)
                .map_or_else(String::new, |address| address.to_string()),
            machine: self.identity.machine.clone(),
        }
    }

    /// Works over one connection until it breaks or we leave.
    async fn exchange(
        &mut self,
        connection: &mut Connection,
        drain: &mut Drain,
    ) -> Result<(), LostConnection> {
        self.ledger.begin_anew();
        for report in self.ledger.reports(connection.terms.epoch) {
            connection.send(report).await?;
        }
        let mut told = 0;
        let mut ticker = tokio::time::interval(connection.terms.heartbeat);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.may_leave(drain) {
            tokio::select! {
                message = connection.receive() => {
                    self.obey(message?, connection, drain.has_begun());
                }
                Some((key, outcome)) = self.lanes.finished.recv() => {
                    self.settle(&key, outcome);
                    // A fault of the model comes before the failure that it led to.
                    for message in self.shelf.news(&mut told) {
                        let message = Some(message);
                        connection.send(v1::WorkerMessage { message }).await?;
                    }
                    if let Some(report) = self.ledger.report(&key, connection.terms.epoch) {
                        connection.send(report).await?;
                    }
                }
                Some((gang, word)) = self.lanes.words.recv() => {
                    connection.send(gang_message(gang, word)).await?;
                }
                _ = ticker.tick() => {
                    let leaving = drain.has_begun();
                    connection.send(self.heartbeat(connection, leaving)).await?;
                    for message in self.shelf.news(&mut told) {
                        let message = Some(message);
                        connection.send(v1::WorkerMessage { message }).await?;
                    }
                    for lines in self.ledger.new_lines() {
                        connection.send(lines).await?;
                    }
                }
                stage = drain.next() => {
                    self.stand(stage);
                    // At once, or work might be given to us that others could do meanwhile.
                    connection.send(self.heartbeat(connection, true)).await?;
                }
            }
        }
        self.give_up();
        // What was acknowledged is not said again; what was not may have been lost.
        for report in self.ledger.reports(connection.terms.epoch) {
            connection.send(report).await?;
        }
        Ok(())
    }

    /// Lets go of what is not done, and says so.
    fn give_up(&mut self) {
        for key in self.ledger.give_up() {
            let (job, task) = (&key.job, &key.task);
            tracing::warn!(%job, %task, "given up: it goes on elsewhere from what is stored of it");
        }
    }

    /// Does what a stage of leaving asks for.
    fn stand(&self, stage: Stage) {
        match stage {
            Stage::Begun => tracing::info!("stopping: nothing new is taken"),
            Stage::Over => {
                tracing::info!("the time to finish is up: what is not done is stored as it is");
                self.ledger.leave();
            }
            Stage::Ended => tracing::info!("leaving"),
        }
    }

    /// Notes what a thread has finished.
    fn settle(&mut self, key: &Key, outcome: Outcome) {
        if outcome == Err(TaskError::Followed) {
            tracing::debug!(job = %key.job, task = %key.task, "the gang is over");
        } else if outcome == Err(TaskError::Cancelled) {
            tracing::info!(job = %key.job, task = %key.task, "stopped: it was taken back");
        } else if let Err(TaskError::Left(left)) = &outcome {
            let stored = left.is_some();
            tracing::info!(job = %key.job, task = %key.task, stored, "left for another worker");
        } else if let Err(error) = &outcome {
            tracing::warn!(job = %key.job, task = %key.task, "failed: {error}");
        }
        self.ledger.finish(key, outcome);
    }

    fn heartbeat(&self, connection: &Connection, leaving: bool) -> v1::WorkerMessage {
        let heartbeat = v1::Heartbeat {
            epoch: connection.terms.epoch,
            running: self.ledger.in_hand(),
            peak_rss_bytes: host::peak_rss_bytes(),
            leaving,
        };
        v1::WorkerMessage {
            message: Some(v1::worker_message::Message::Heartbeat(heartbeat)),
        }
    }

    fn obey(&mut self, message: Message, connection: &Connection, draining: bool) {
        match message {
            Message::Assign(assign) if !draining => self.take(&assign, connection),
            // It comes back to the farm when we are gone.
            Message::Assign(_) => tracing::info!("an assignment came while stopping: not taken"),
            Message::Revoke(v1::Revoke { job, task, token }) => {
                self.ledger.revoke(&Key::from_parts(job, task, token));
            }
            Message::Ack(v1::Ack { job, task, token }) => {
                self.ledger.acknowledge(&Key::from_parts(job, task, token));
            }
            Message::Roster(v1::Roster { gang, seats, key }) => {
                match seats.iter().map(|seat| seat.parse()).collect() {
                    Ok(seats) => self.ledger.order(gang, GangOrder::Roster { seats, key }),
                    Err(_) => tracing::error!(gang, "a gang's addresses cannot be read"),
                }
            }
            Message::Go(v1::Go { gang }) => self.ledger.order(gang, GangOrder::Go),
            Message::Welcome(_) => tracing::warn!("a second welcome on one connection: ignored"),
        }
    }

    fn take(&mut self, assign: &v1::Assign, connection: &Connection) {
        let assignment: task::Assignment = match serde_json::from_str(&assign.assignment_json) {
            Ok(assignment) => assignment,
            // Without the ids there is nobody to answer to; the lease will run out.
            Err(error) => return tracing::error!("an assignment cannot be read: {error}"),
        };
        let key = Key::of(&assignment);
        let Some(control) = self.ledger.start(key.clone(), assignment.share) else {
            return;
        };
        control.connect(key.token, self.lanes.speaker.clone());
        let lane = match assignment.work.lane() {
            task::Lane::Device => &self.lanes.device,
            task::Lane::Host => &self.lanes.host,
        };
        let context = OrderContext {
            artifacts: connection.terms.artifacts.clone(),
            traceparent: assign.traceparent.clone(),
            worker: self.identity.name.clone(),
        };
        tracing::debug!(job = %key.job, task = %key.task, attempt = assignment.attempt, "taken");
        if !lane.order(assignment, context, control) {
            // Only a second panic inside the handling of a panic ends a lane's thread.
            tracing::error!("a lane's thread is gone: leaving, so that the worker is replaced");
            std::process::exit(70);
        }
    }
}

fn gang_message(gang: FencingToken, word: GangWord) -> v1::WorkerMessage {
    use v1::worker_message::Message;
    let gang = gang.0;
    let message = Some(match word {
        GangWord::Seated { seats, key } => {
            let seats = seats.iter().map(ToString::to_string).collect();
            Message::Seated(v1::Seated { gang, seats, key })
        }
        GangWord::Joined => Message::Joined(v1::Joined { gang }),
    });
    v1::WorkerMessage { message }
}

/// Checks an address and the files that go with it.
pub fn dialler(dial: &Dial) -> Result<Dialler, AgentError> {
    connection::dialler(dial)
}
