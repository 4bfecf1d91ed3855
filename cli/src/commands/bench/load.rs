//! Workers that are connections and nothing else: what they are given they report as done at once.

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
    /// How long a report took to be acknowledged, in milliseconds.
    decisions_ms: mpsc::UnboundedReceiver<f64>,
}

/// What workers did.
pub struct Load {
    /// From sending each report to its acknowledgement: by then the coordinator has decided what
    /// follows from it, stored that, and sent it.
    pub decisions_ms: Vec<f64>,
}

impl Workers {
    /// Connects `count` workers, over a connection each.
    pub async fn attach(url: &str, count: u32) -> Result<Self> {
        let (sender, decisions_ms) = mpsc::unbounded_channel();
        let (mut connecting, mut running) = (JoinSet::new(), JoinSet::new());
        for index in 0..count {
            if connecting.len() == CONNECTING_MAX {
                start(&mut connecting, &mut running).await?;
            }
            let (url, sender) = (url.to_owned(), sender.clone());
            connecting.spawn(async move { Worker::attach(url, index, sender).await });
        }
        while !connecting.is_empty() {
            start(&mut connecting, &mut running).await?;
        }
        Ok(Self {
            running,
            decisions_ms,
        })
    }

    /// Works until so many reports were acknowledged.
    pub async fn work(&mut self, tasks: usize) -> Result<Load> {
        let mut decisions_ms = Vec::with_capacity(tasks);
        while decisions_ms.len() < tasks {
            tokio::select! {
                Some(decision_ms) = self.decisions_ms.recv() => decisions_ms.push(decision_ms),
                Some(ended) = self.running.join_next() => {
                    ended?.context("a worker ended")?;
                    bail!("a worker ended");
                }
            }
        }
        Ok(Load { decisions_ms })
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
    decisions_ms: mpsc::UnboundedSender<f64>,
    /// When the result under each token was reported.
    reported: HashMap<u64, (v1::Running, Instant)>,
}

impl Worker {
    async fn attach(
        url: String,
        index: u32,
        decisions_ms: mpsc::UnboundedSender<f64>,
    ) -> Result<Self> {
        let (outbox, messages) = mpsc::channel(OUTBOX_LENGTH);
        let register = v1::Register {
            name: format!("bench-{index}"),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: "cpu".to_owned(),
            isa: "scalar".to_owned(),
            threads: 1,
            memory_bytes: 8 << 30,
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
                decisions_ms,
                reported: HashMap::new(),
            }),
            _ => bail!("the coordinator's first message is no welcome"),
        }
    }

    async fn work(mut self) -> Result<()> {
        let mut ticker = tokio::time::interval(self.heartbeat);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = self.inbox.message() => {
                    let received = received?.ok_or_else(|| anyhow!("the connection was closed"))?;
                    self.obey(received).await?;
                }
                _ = ticker.tick() => {
                    let heartbeat = v1::Heartbeat {
                        epoch: self.epoch,
                        running: self.reported.values().map(|(held, _)| held.clone()).collect(),
                        peak_rss_bytes: 1,
                        leaving: false,
                    };
                    self.outbox.send(message(ToCoordinator::Heartbeat(heartbeat))).await?;
                }
            }
        }
    }

    async fn obey(&mut self, received: v1::CoordinatorMessage) -> Result<()> {
        match received.message {
            Some(FromCoordinator::Assign(assign)) => {
                let assignment: Assignment = serde_json::from_str(&assign.assignment_json)?;
                let running = v1::Running {
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
                let reported = (running, Instant::now());
                self.reported.insert(assignment.token.0, reported);
                self.outbox.send(message(ToCoordinator::Done(done))).await?;
            }
            Some(FromCoordinator::Ack(ack)) => {
                if let Some((_, then)) = self.reported.remove(&ack.token) {
                    let decision_ms = then.elapsed().as_secs_f64() * 1e3;
                    // Nobody listens any more once the measurement is over.
                    let _ = self.decisions_ms.send(decision_ms);
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
fn output(work: &Work) -> TaskOutput {
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
