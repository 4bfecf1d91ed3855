//! The one task that owns the core.
//!
//! Takes what has arrived, lets the core handle it, commits the records of all of it at once, and
//! then answers: the more there is to do, the more goes into one commit.

use crate::logs::{JobLogs, LiveLogs};
use crate::metrics::{Counters, count};
use crate::request::{Answer, Connection, Mailbox, Request, Submitted};
use crate::store::{StateError, StateStore};
use crate::{HEARTBEAT_MS, LEASE_MS, TICK_MS};
use longtake_common::ids::{FencingToken, JobId, TaskId, WorkerId};
use longtake_common::spec::JobSpec;
use longtake_common::task::Assignment;
use longtake_common::telemetry;
use longtake_core::{Core, Effect, Effects, Event, JobState, JobView, Running, WorkerInfo};
use longtake_proto::v1;
use longtake_proto::v1::coordinator_message::Message as ToWorker;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests and reports that wait for the actor; more make their senders wait.
const MAILBOX_SIZE: usize = 1024;
/// Most of them in one commit.
const BATCH_SIZE: usize = 256;
/// Messages that wait for one worker's connection; a worker that lets more pile up is dropped.
const OUTBOX_SIZE: usize = 256;

/// The actor's end.
struct Link {
    outbox: mpsc::Sender<v1::CoordinatorMessage>,
    _open: watch::Sender<()>,
}

/// Owner of the core.
pub struct Actor {
    core: Core,
    store: Arc<dyn StateStore>,
    mailbox: mpsc::Receiver<Request>,
    started: Instant,
    artifacts_url: String,
    next_worker: u64,
    links: BTreeMap<WorkerId, Link>,
    watchers: BTreeMap<JobId, watch::Sender<JobView>>,
    /// The trace of each job that was submitted in this term.
    traces: BTreeMap<JobId, String>,
    live_logs: LiveLogs,
    counters: Arc<Counters>,
    fx: Effects,
    effects: Vec<Effect>,
    answers: Vec<Answer>,
}

impl Actor {
    /// An actor and the way to reach it. `fx` is what restoring the core led to.
    pub fn new(
        core: Core,
        store: Arc<dyn StateStore>,
        artifacts_url: String,
        started: Instant,
        counters: Arc<Counters>,
        fx: Effects,
    ) -> (Self, Mailbox) {
        let (sender, mailbox) = mpsc::channel(MAILBOX_SIZE);
        let sender = Mailbox::new(sender, &store);
        let actor = Self {
            core,
            store,
            mailbox,
            started,
            artifacts_url,
            next_worker: 0,
            links: BTreeMap::new(),
            watchers: BTreeMap::new(),
            traces: BTreeMap::new(),
            live_logs: LiveLogs::default(),
            counters,
            fx,
            effects: Vec::new(),
            answers: Vec::new(),
        };
        (actor, sender)
    }

    /// Serves until `stop` resolves or the state cannot be stored any more. In the second case
    /// nobody is told anything that is not stored.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) -> Result<(), StateError> {
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                settled = self.settle() => settled?,
                // Also while the store does not answer: nobody was told of what is not stored.
                _ = &mut stop => return Ok(()),
            }
            tokio::select! {
                biased;
                _ = &mut stop => return Ok(()),
                // Before anything else, so that a core that stood still while the store did not
                // answer learns of it before it judges by the clock who is silent.
                _ = ticks.tick() => self.handle(Event::Tick),
                request = self.mailbox.recv() => match request {
                    Some(request) => self.take_batch(request),
                    None => return Ok(()),
                },
            }
        }
    }

    fn take_batch(&mut self, first: Request) {
        self.take(first);
        for _ in 1..BATCH_SIZE {
            match self.mailbox.try_recv() {
                Ok(request) => self.take(request),
                Err(_) => break,
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn handle(&mut self, event: Event) {
        self.core.handle(self.now_ms(), event, &mut self.fx);
        self.effects.append(&mut self.fx.take());
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Submit {
                spec,
                isa,
                ranks,
                trace,
                reply,
            } => self.submit((spec, isa, ranks), trace, reply),
            Request::Census { reply } => self.answers.push(Answer::Census { reply }),
            Request::Command { job, event, reply } => match self.core.refusal(&event) {
                Some(reason) => drop(reply.send(Err(reason))),
                None => {
                    self.handle(event);
                    self.answers.push(Answer::Command { job, reply });
                }
            },
            Request::Worker { name, event, reply } => match self.core.refusal(&event) {
                Some(reason) => drop(reply.send(Err(reason))),
                None => {
                    self.handle(event);
                    self.answers.push(Answer::Worker { name, reply });
                }
            },
            Request::Model {
                event,
                is_trial,
                reply,
            } => match self.core.refusal(&event) {
                Some(reason) => drop(reply.send(Err(reason))),
                None if is_trial => drop(reply.send(Ok(()))),
                None => {
                    self.handle(event);
                    self.answers.push(Answer::Model { reply });
                }
            },
            Request::Models { reply } => drop(reply.send(self.core.models().collect())),
            // Nobody acts on these in a way that would have to be stored first.
            Request::Workers { reply } => drop(reply.send(self.core.workers().collect())),
            Request::Explain { job, reply } => {
                let now_ms = self.now_ms();
                let view = self.core.view(now_ms, &job);
                let _ = reply.send(view.zip(self.core.explain(now_ms, &job)));
            }
            Request::View { job, reply } => self.answers.push(Answer::View { job, reply }),
            Request::List { reply } => self.answers.push(Answer::List { reply }),
            Request::Watch { job, reply } => self.answers.push(Answer::Watch { job, reply }),
            Request::Attach {
                info,
                running,
                reply,
            } => match self.core.refuse_attach(&info) {
                Some(reason) => drop(reply.send(Err(reason))),
                None => self.attach(info, running, reply),
            },
            Request::Logs { job, seen, reply } => drop(reply.send(self.logs(&job, &seen))),
            Request::Said(said) if self.core.has_job(&said.job) => self.live_logs.add(said),
            Request::Said(_) => {}
            Request::Lost {
                artifact,
                job,
                reply,
            } => {
                let was_known = self.core.knows(artifact);
                self.handle(Event::Lost {
                    artifacts: vec![artifact],
                    wanted_of: Some(job.clone()),
                });
                // Also when somebody else has noticed before. What is lost may be known under other
                // inputs, and the film be complete again at once.
                let view = self.core.view(self.now_ms(), &job);
                let is_whole = view.is_some_and(|view| view.state == JobState::Done);
                let is_made = self.core.is_open(&job) || (was_known && is_whole);
                self.answers.push(Answer::Lost { is_made, reply });
            }
            Request::Event(event) => {
                match &event {
                    Event::Detach { worker } => drop(self.links.remove(worker)),
                    Event::Done { .. } => count(&self.counters.results),
                    Event::Failed { .. } => count(&self.counters.failures),
                    _ => {}
                }
                if let Some(token) = stored_log(&event) {
                    self.live_logs.end(token);
                }
                self.handle(event);
            }
        }
    }

    fn logs(&self, job: &JobId, seen: &BTreeMap<FencingToken, usize>) -> Option<JobLogs> {
        let view = self.core.view(self.now_ms(), job)?;
        Some(JobLogs {
            stored: self.core.logs(job)?,
            live: self.live_logs.of(job, seen),
            ended: view.state.is_final(),
        })
    }

    fn submit(
        &mut self,
        (spec, isa, ranks): (Box<JobSpec>, Option<String>, Option<u32>),
        trace: Option<String>,
        reply: oneshot::Sender<Submitted>,
    ) {
        let job = self.new_job_id();
        let span = tracing::info_span!("plan", %job);
        telemetry::continue_trace(&span, trace.as_deref());
        self.answers.push(Answer::Submit {
            proposed: job.clone(),
            trace,
            reply,
        });
        let event = Event::Submit {
            job,
            spec,
            isa,
            ranks,
        };
        span.in_scope(|| self.handle(event));
    }

    fn new_job_id(&self) -> JobId {
        loop {
            // Seeded by the system for every process, and for every state within one.
            let random = RandomState::new().build_hasher().finish();
            let job = JobId(format!("j-{:010x}", random & 0xff_ffff_ffff));
            if !self.core.has_job(&job) {
                return job;
            }
        }
    }

    fn attach(
        &mut self,
        info: WorkerInfo,
        running: Vec<Running>,
        reply: oneshot::Sender<Result<Connection, String>>,
    ) {
        let epoch = self.core.epoch();
        let name = &info.name;
        let worker = WorkerId(format!("{name}#{epoch}.{}", self.next_worker));
        self.next_worker += 1;
        let (sender, outbox) = mpsc::channel(OUTBOX_SIZE);
        let (open_sender, open) = watch::channel(());
        let connection = Connection {
            worker: worker.clone(),
            epoch,
            outbox,
            open,
        };
        if reply.send(Ok(connection)).is_err() {
            return; // gone before it was there
        }
        tracing::info!(%worker, "worker attached");
        self.links.insert(
            worker.clone(),
            Link {
                outbox: sender,
                _open: open_sender,
            },
        );
        let welcome = v1::Welcome {
            worker: worker.to_string(),
            epoch: epoch.0,
            artifacts: self.artifacts_url.clone(),
            heartbeat_ms: HEARTBEAT_MS,
            lease_ms: LEASE_MS,
        };
        self.send(&worker, ToWorker::Welcome(welcome));
        self.handle(Event::Attach {
            worker,
            info,
            running,
        });
    }

    /// Stores what the last events led to, and only then acts on it.
    async fn settle(&mut self) -> Result<(), StateError> {
        self.note_traces();
        let writes = self.fx.take_writes();
        if !writes.is_empty() {
            self.store.commit(self.core.epoch(), writes).await?;
        }
        let mut changed = BTreeSet::new();
        let mut submitted = BTreeMap::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Submitted {
                    proposed,
                    job,
                    continued,
                } => {
                    tracing::info!(%job, continued, "job submitted");
                    submitted.insert(proposed, Ok((job, continued)));
                }
                Effect::Refused { proposed, error } => {
                    submitted.insert(proposed, Err(error));
                }
                Effect::JobChanged { job } => {
                    changed.insert(job);
                }
                other => self.tell_worker(other),
            }
        }
        self.publish(changed);
        for answer in std::mem::take(&mut self.answers) {
            self.answer(answer, &mut submitted);
        }
        Ok(())
    }

    /// A job goes on in the trace that submitted it last.
    fn note_traces(&mut self) {
        for effect in &self.effects {
            let Effect::Submitted { proposed, job, .. } = effect else {
                continue;
            };
            let trace = self.answers.iter().find_map(|answer| match answer {
                Answer::Submit {
                    proposed: asked,
                    trace,
                    ..
                } if asked == proposed => trace.clone(),
                _ => None,
            });
            if let Some(trace) = trace {
                self.traces.insert(job.clone(), trace);
            }
        }
    }

    fn assign(&mut self, worker: &WorkerId, assignment: &Assignment) {
        let (job, task) = (&assignment.job, &assignment.task);
        let span = tracing::info_span!("assign", %worker, %job, %task);
        telemetry::continue_trace(&span, self.traces.get(job).map(String::as_str));
        let assignment_json = serde_json::to_string(assignment);
        let assign = v1::Assign {
            assignment_json: assignment_json.expect("an assignment is plain data"),
            traceparent: telemetry::traceparent(&span).unwrap_or_default(),
        };
        span.in_scope(|| {
            tracing::debug!(attempt = assignment.attempt, "assign");
            count(&self.counters.assignments);
            self.send(worker, ToWorker::Assign(assign));
        });
    }

    fn tell_worker(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { worker, assignment } => self.assign(&worker, &assignment),
            Effect::Revoke {
                worker,
                job,
                task,
                token,
            } => {
                let (job, task, token) = on_wire(job, task, token);
                self.send(&worker, ToWorker::Revoke(v1::Revoke { job, task, token }));
            }
            Effect::Ack {
                worker,
                job,
                task,
                token,
            } => {
                let (job, task, token) = on_wire(job, task, token);
                self.send(&worker, ToWorker::Ack(v1::Ack { job, task, token }));
            }
            Effect::Roster {
                worker,
                gang,
                seats,
                key,
            } => {
                let seats = seats.iter().map(ToString::to_string).collect();
                let gang = gang.0;
                self.send(&worker, ToWorker::Roster(v1::Roster { gang, seats, key }));
            }
            Effect::Go { worker, gang } => {
                self.send(&worker, ToWorker::Go(v1::Go { gang: gang.0 }));
            }
            Effect::Disconnect { worker } => {
                if self.links.remove(&worker).is_some() {
                    count(&self.counters.workers_lost);
                    tracing::warn!(%worker, "worker lost");
                }
            }
            Effect::Submitted { .. } | Effect::Refused { .. } | Effect::JobChanged { .. } => {}
        }
    }

    fn send(&mut self, worker: &WorkerId, message: ToWorker) {
        let Some(link) = self.links.get(worker) else {
            return;
        };
        let sent = link.outbox.try_send(v1::CoordinatorMessage {
            message: Some(message),
        });
        // Closing its connection makes a worker attach anew, and what it was sent is found missing
        // from its heartbeats.
        match sent {
            Ok(()) => return,
            // A worker that has just left; its lease tells the rest.
            Err(TrySendError::Closed(_)) => tracing::debug!(%worker, "worker has hung up"),
            Err(TrySendError::Full(_)) => {
                tracing::warn!(%worker, "worker does not take its messages");
            }
        }
        self.links.remove(worker);
    }

    fn publish(&mut self, changed: BTreeSet<JobId>) {
        let now_ms = self.now_ms();
        self.watchers
            .retain(|_, watcher| watcher.receiver_count() > 0);
        for job in changed {
            if let Some(watcher) = self.watchers.get(&job)
                && let Some(view) = self.core.view(now_ms, &job)
            {
                watcher.send_replace(view);
            }
        }
    }

    fn answer(&mut self, answer: Answer, submitted: &mut BTreeMap<JobId, Submitted>) {
        let now_ms = self.now_ms();
        // A client that hung up is answered in vain.
        match answer {
            Answer::Census { reply } => {
                let _ = reply.send(self.core.census());
            }
            Answer::Submit {
                proposed, reply, ..
            } => {
                let result = submitted
                    .remove(&proposed)
                    .expect("every submission is answered");
                let _ = reply.send(result);
            }
            Answer::View { job, reply } => {
                let _ = reply.send(self.core.view(now_ms, &job));
            }
            Answer::Command { job, reply } => {
                let _ = reply.send(Ok(self.core.view(now_ms, &job)));
            }
            Answer::Worker { name, reply } => {
                let named = self
                    .core
                    .workers()
                    .filter(|worker| worker.info.name == name);
                let _ = reply.send(Ok(named.collect()));
            }
            Answer::Model { reply } => {
                let _ = reply.send(Ok(()));
            }
            Answer::List { reply } => {
                let jobs = self.core.jobs();
                let _ = reply.send(jobs.filter_map(|job| self.core.view(now_ms, job)).collect());
            }
            Answer::Watch { job, reply } => {
                let _ = reply.send(self.watch(now_ms, job));
            }
            Answer::Lost { is_made, reply } => {
                let _ = reply.send(is_made);
            }
        }
    }

    fn watch(&mut self, now_ms: u64, job: JobId) -> Option<watch::Receiver<JobView>> {
        let view = self.core.view(now_ms, &job)?;
        let watcher = self
            .watchers
            .entry(job)
            .or_insert_with(|| watch::Sender::new(view.clone()));
        // A sender without receivers is not kept up to date.
        watcher.send_replace(view);
        Some(watcher.subscribe())
    }
}

/// The try whose log is stored from now on.
fn stored_log(event: &Event) -> Option<FencingToken> {
    match event {
        Event::Done { token, output, .. } => output.log.and(Some(*token)),
        Event::Failed { token, log, .. } => log.and(Some(*token)),
        _ => None,
    }
}

fn on_wire(job: JobId, task: TaskId, token: FencingToken) -> (String, String, u64) {
    (job.0, task.0, token.0)
}
