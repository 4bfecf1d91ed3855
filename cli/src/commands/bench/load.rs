//! Workers that are connections and nothing else: what they are given they report as done at once, or
//! after they have slept over it.

use anyhow::{Context, Result, anyhow, bail};
use longtake_common::Hash;
use longtake_common::task::{Assignment, TaskOutput, Work};
use longtake_proto::v1;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use v1::coordinator_message::Message as FromCoordinator;
use v1::worker_message::Message as ToCoordinator;
use v1::workers_client::WorkersClient;

/// Workers that connect at a time.
const CONNECTING_MAX: usize = 64;
/// Messages on their way out.
const OUTBOX_LENGTH: usize = 64;

/// Many workers.
pub struct Workers {
    running: JoinSet<Result<()>>,
    acknowledged: mpsc::UnboundedReceiver<Acknowledged>,
}

/// A report that the coordinator has acknowledged.
struct Acknowledged {
    decision_ms: f64,
    slept: Option<(Instant, Instant)>,
}

/// What workers did.
#[derive(Default)]
pub struct Load {
    /// From sending each report to its acknowledgement: by then the coordinator has decided what
    /// follows from it, stored that, and sent it.
    pub decisions_ms: Vec<f64>,
    /// From when to when somebody slept over a window.
    slept: Vec<(Instant, Instant)>,
}

impl Load {
    /// How much of the time `workers` slept over windows while there were windows for all: from the
    /// first one that was given out to the last one. `None` when nobody slept.
    pub fn busy_share(&self, workers: u32) -> Option<f64> {
        let begun = || self.slept.iter().map(|(begin, _)| *begin);
        let (first, last) = (begun().min()?, begun().max()?);
        let time = last.duration_since(first).as_secs_f64() * f64::from(workers);
        let slept = |(begin, end): &(Instant, Instant)| {
            let end = (*end).min(last);
            end.saturating_duration_since(*begin).as_secs_f64()
        };
        let busy: f64 = self.slept.iter().map(slept).sum();
        (time > 0.0).then(|| busy / time)
    }
}

impl Workers {
    /// Connects `count` workers, over a connection each, that sleep for so long over each window.
    pub async fn attach(url: &str, count: u32, sleep: Duration) -> Result<Self> {
        let (sender, acknowledged) = mpsc::unbounded_channel();
        let (mut connecting, mut running) = (JoinSet::new(), JoinSet::new());
        for index in 0..count {
            if connecting.len() == CONNECTING_MAX {
                start(&mut connecting, &mut running).await?;
            }
            let (url, sender) = (url.to_owned(), sender.clone());
            connecting.spawn(async move { Worker::attach(url, index, sleep, sender).await });
        }
        while !connecting.is_empty() {
            start(&mut connecting, &mut running).await?;
        }
        Ok(Self {
            running,
            acknowledged,
        })
    }

    /// Works until so many reports were acknowledged.
    pub async fn work(&mut self, tasks: usize) -> Result<Load> {
        let mut load = Load::default();
        while load.decisions_ms.len() < tasks {
            tokio::select! {
                Some(report) = self.acknowledged.recv() => {
                    load.decisions_ms.push(report.decision_ms);
                    load.slept.extend(report.slept);
                }
                Some(ended) = self.running.join_next() => {
                    ended?.context("a worker ended")?;
                    bail!("a worker ended");
                }
            }
        }
        Ok(load)
    }
}

/// Lets the next worker that is connected begin.
async fn start(
    connecting: &mut JoinSet<Result<Worker>>,
    running: &mut JoinSet<Result<()>>,
) -> Result<()> {
    if let Some(worker) = connecting.join_next().await {
        running.spawn(worker?.context("connect a worker")?.work());
    }
    Ok(())
}

/// One connection.
struct Worker {
    epoch: u64,
    heartbeat: Duration,
    outbox: mpsc::Sender<v1::WorkerMessage>,
    inbox: Streaming<v1::CoordinatorMessage>,
    acknowledged: mpsc::UnboundedSender<Acknowledged>,
    sleep: Duration,
    /// What it has in hand, by token.
    held: HashMap<u64, Held>,
    /// The window that it sleeps over, and until when.
    asleep: Option<(u64, tokio::time::Instant)>,
}

/// An assignment.
struct Held {
    running: v1::Running,
    done: v1::Done,
    taken: Instant,
    reported: Option<Instant>,
    sleeps: bool,
}

impl Worker {
    async fn attach(
        url: String,
        index: u32,
        sleep: Duration,
        acknowledged: mpsc::UnboundedSender<Acknowledged>,
    ) -> Result<Self> {
        let (outbox, messages) = mpsc::channel(OUTBOX_LENGTH);
        let register = v1::Register {
            name: format!("bench-{index}"),
            version: longtake_common::task::ENGINE.to_owned(),
            device: "cpu".to_owned(),
            isa: "scalar".to_owned(),
            threads: 1,
            memory_bytes: 8 << 30,
            takes_paths: true,
            ..Default::default()
        };
        outbox
            .send(message(ToCoordinator::Register(register)))
            .await?;
        let mut client = WorkersClient::connect(url).await?;
        let mut inbox = client
            .attach(ReceiverStream::new(messages))
            .await?
            .into_inner();
        match inbox.message().await?.and_then(|message| message.message) {
            Some(FromCoordinator::Welcome(welcome)) => Ok(Self {
                epoch: welcome.epoch,
                heartbeat: Duration::from_millis(welcome.heartbeat_ms.max(20)),
                outbox,
                inbox,
                acknowledged,
                sleep,
                held: HashMap::new(),
                asleep: None,
            }),
            _ => bail!("the coordinator's first message is no welcome"),
        }
    }

    async fn work(mut self) -> Result<()> {
        let mut ticker = tokio::time::interval(self.heartbeat);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.asleep.map(|(_, until)| until);
            let slept = async {
                match wake {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = slept => {
                    if let Some((token, _)) = self.asleep.take() {
                        self.report(token).await?;
                    }
                }
                received = self.inbox.message() => {
                    let received = received?.ok_or_else(|| anyhow!("the connection was closed"))?;
                    self.obey(received).await?;
                }
                _ = ticker.tick() => {
                    let heartbeat = v1::Heartbeat {
                        epoch: self.epoch,
                        running: self.held.values().map(|held| held.running.clone()).collect(),
                        peak_rss_bytes: 1,
                        leaving: false,
                    };
                    self.outbox.send(message(ToCoordinator::Heartbeat(heartbeat))).await?;
                }
            }
        }
    }

    async fn report(&mut self, token: u64) -> Result<()> {
        if let Some(held) = self.held.get_mut(&token) {
            held.reported = Some(Instant::now());
            let done = held.done.clone();
            self.outbox.send(message(ToCoordinator::Done(done))).await?;
        }
        Ok(())
    }

    async fn obey(&mut self, received: v1::CoordinatorMessage) -> Result<()> {
        match received.message {
            Some(FromCoordinator::Assign(assign)) => {
                let assignment: Assignment = serde_json::from_str(&assign.assignment_json)?;
                let running = v1::Running {
                    share: None,
                    job: assignment.job.to_string(),
                    task: assignment.task.to_string(),
                    token: assignment.token.0,
                    progress: 1.0,
                };
                let done = v1::Done {
                    epoch: self.epoch,
                    job: running.job.clone(),
                    task: running.task.clone(),
                    token: running.token,
                    output_json: serde_json::to_string(&output(&assignment.work))?,
                };
                let token = assignment.token.0;
                let sleeps =
                    !self.sleep.is_zero() && matches!(assignment.work, Work::Denoise { .. });
                let held = Held {
                    running,
                    done,
                    taken: Instant::now(),
                    reported: None,
                    sleeps,
                };
                self.held.insert(token, held);
                if sleeps {
                    self.asleep = Some((token, tokio::time::Instant::now() + self.sleep));
                } else {
                    self.report(token).await?;
                }
            }
            Some(FromCoordinator::Ack(ack)) => {
                let held = self.held.remove(&ack.token);
                if let Some((reported, held)) = held.and_then(|held| Some((held.reported?, held))) {
                    let acknowledged = Acknowledged {
                        decision_ms: reported.elapsed().as_secs_f64() * 1e3,
                        slept: held.sleeps.then_some((held.taken, reported)),
                    };
                    // Nobody listens any more once the measurement is over.
                    let _ = self.acknowledged.send(acknowledged);
                }
            }
            Some(FromCoordinator::Revoke(revoke)) => {
                bail!("{} of {} was taken away", revoke.task, revoke.job)
            }
            _ => {}
        }
        Ok(())
    }
}

fn message(message: ToCoordinator) -> v1::WorkerMessage {
    v1::WorkerMessage {
        message: Some(message),
    }
}

/// A result of the usual shape and size; nobody reads the artifacts that it names.
pub fn output(work: &Work) -> TaskOutput {
    let names: &[&str] = match work {
        Work::Text { .. } => &["text"],
        Work::Denoise { .. } => &["latents", "tail"],
        Work::Decode { .. } => &["head", "interior", "tail"],
        Work::Seam { .. } => &["chunk"],
        Work::Mux { .. } => &["video"],
    };
    let key = work.key();
    let artifact = |name: &&str| {
        (
            (*name).to_owned(),
            Hash::of(format!("{name} {key}").as_bytes()),
        )
    };
    TaskOutput {
        artifacts: names.iter().map(artifact).collect(),
        seconds: [("pass1".to_owned(), 1.25), ("total".to_owned(), 1.5)].into(),
        peak_rss_bytes: 1 << 30,
        ..Default::default()
    }
}
