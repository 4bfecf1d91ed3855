//! A coordinator on loopback, a user and workers that make up results without a model.
#![allow(dead_code)] // each test file uses its part of this

use futures::Stream;
use longtake_common::artifact::{ArtifactStore, file_url};
use longtake_common::ids::Hash;
use longtake_common::spec::{Codec, Continuity, JobSpec, ModelRef, Sampling, Schedule};
use longtake_common::task::{Assignment, TaskOutput, Work};
use longtake_proto::v1;
use longtake_proto::v1::coordinator_message::Message as FromCoordinator;
use longtake_proto::v1::jobs_client::JobsClient;
use longtake_proto::v1::worker_message::Message as ToCoordinator;
use longtake_proto::v1::workers_client::WorkersClient;
use longtake_server::{Access, Config, Coordinator, Handle, LEASE_MS, StartError};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Longest wait for anything; far more than it takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn config(folder: &Path) -> Config {
    Config {
        listen: "127.0.0.1:0".parse().expect("address"),
        state: file_url(folder).expect("UTF-8"),
        artifacts: file_url(&folder.join("artifacts")).expect("UTF-8"),
        insecure: false,
        adopt_ms: LEASE_MS,
        access: Access::default(),
    }
}

pub async fn start(folder: &Path) -> Result<Handle, StartError> {
    Coordinator::start(config(folder)).await
}

pub async fn user(handle: &Handle) -> JobsClient<Channel> {
    JobsClient::connect(handle.url()).await.expect("connect")
}

/// 288 frames: windows at 0, 104 and 208.
pub fn spec() -> JobSpec {
    JobSpec {
        prompt: "a red circle moves right".into(),
        negative: String::new(),
        frames: 288,
        width: 256,
        height: 160,
        fps: 24.0,
        seed: 7,
        model: ModelRef::new("ltxv-tiny", Hash::of(b"model")),
        continuity: Continuity::Chain,
        segment_frames: 121,
        overlap_frames: 17,
        sampling: Sampling::plain(Schedule::Timesteps(vec![1.0, 0.5]), 1.0, 32),
        codec: Codec::H264,
        conditioning: Vec::new(),
        previews: false,
        shots: Vec::new(),
    }
}

pub async fn submit(user: &mut JobsClient<Channel>, spec: &JobSpec) -> v1::SubmitReply {
    let spec = Some(longtake_server::convert::spec_to_proto(spec));
    user.submit(v1::SubmitRequest {
        spec,
        isa: None,
        ranks: None,
    })
    .await
    .expect("submit")
    .into_inner()
}

/// A worker's connection.
pub struct Worker {
    send: mpsc::Sender<v1::WorkerMessage>,
    receive: Streaming<v1::CoordinatorMessage>,
    pub welcome: v1::Welcome,
    artifacts: ArtifactStore,
}

pub fn register(name: &str, running: Vec<v1::Running>) -> v1::Register {
    v1::Register {
        ranks: 1,
        gang_address: String::new(),
        machine: String::new(),
        name: name.into(),
        version: longtake_common::task::ENGINE.into(),
        device: "cpu".into(),
        isa: "scalar".into(),
        threads: 1,
        memory_bytes: 1 << 30,
        running,
        instance: name.into(),
        models: Vec::new(),
        takes_paths: true,
    }
}

fn stream(
    first: ToCoordinator,
) -> (
    mpsc::Sender<v1::WorkerMessage>,
    impl Stream<Item = v1::WorkerMessage>,
) {
    let (send, messages) = mpsc::channel(16);
    send.try_send(v1::WorkerMessage {
        message: Some(first),
    })
    .expect("room");
    (send, ReceiverStream::new(messages))
}

impl Worker {
    pub async fn attach(handle: &Handle, register: v1::Register) -> Result<Self, Status> {
        let mut client = WorkersClient::connect(handle.url()).await.expect("connect");
        let (send, messages) = stream(ToCoordinator::Register(register));
        let mut receive = client.attach(messages).await?.into_inner();
        let Some(FromCoordinator::Welcome(welcome)) =
            receive.message().await?.and_then(|m| m.message)
        else {
            panic!("a welcome comes first");
        };
        let artifacts = ArtifactStore::open(&welcome.artifacts).expect("artifacts");
        Ok(Self {
            send,
            receive,
            welcome,
            artifacts,
        })
    }

    pub async fn new(handle: &Handle, name: &str) -> Self {
        Self::attach(handle, register(name, vec![]))
            .await
            .expect("attach")
    }

    /// The next message, `None` when the coordinator closed the connection.
    pub async fn next(&mut self) -> Option<FromCoordinator> {
        let message = tokio::time::timeout(PATIENCE, self.receive.message()).await;
        let message = message.expect("a message in time").ok().flatten()?;
        Some(message.message.expect("a known message"))
    }

    pub async fn assignment(&mut self) -> Assignment {
        loop {
            match self.next().await.expect("open") {
                FromCoordinator::Assign(assign) => {
                    return serde_json::from_str(&assign.assignment_json).expect("assignment");
                }
                FromCoordinator::Ack(_) => {}
                other => panic!("an assignment was expected, not {other:?}"),
            }
        }
    }

    pub async fn say(&self, message: ToCoordinator) {
        self.send
            .send(v1::WorkerMessage {
                message: Some(message),
            })
            .await
            .expect("open");
    }

    pub async fn heartbeat(&self, running: Vec<v1::Running>) {
        let epoch = self.welcome.epoch;
        self.say(ToCoordinator::Heartbeat(v1::Heartbeat {
            epoch,
            running,
            peak_rss_bytes: 5000,
            leaving: false,
        }))
        .await;
    }

    /// Stores made-up artifacts and reports them.
    pub async fn finish(&self, assignment: &Assignment) {
        let mut output = TaskOutput {
            peak_rss_bytes: 4000,
            ..TaskOutput::default()
        };
        for name in output_names(&assignment.work) {
            // What equal work gives is equal, whoever does it.
            let bytes = format!("{name} of {}", assignment.work.key());
            let hash = self.artifacts.put(bytes).await.expect("put");
            output.artifacts.insert(name.to_owned(), hash);
        }
        output.seconds.insert("encode".to_owned(), 0.25);
        self.say(ToCoordinator::Done(v1::Done {
            epoch: self.welcome.epoch,
            job: assignment.job.to_string(),
            task: assignment.task.to_string(),
            token: assignment.token.0,
            output_json: serde_json::to_string(&output).expect("output"),
        }))
        .await;
    }

    /// Does whatever comes until the connection ends or the film is made.
    pub async fn work(&mut self) {
        loop {
            match self.next().await {
                Some(FromCoordinator::Assign(assign)) => {
                    let assignment: Assignment =
                        serde_json::from_str(&assign.assignment_json).expect("assignment");
                    self.finish(&assignment).await;
                }
                Some(FromCoordinator::Ack(ack)) if ack.task == "mux" => return,
                Some(_) => {}
                None => return,
            }
        }
    }
}

pub fn running(assignment: &Assignment) -> v1::Running {
    v1::Running {
        share: None,
        job: assignment.job.to_string(),
        task: assignment.task.to_string(),
        token: assignment.token.0,
        progress: 0.5,
    }
}

fn output_names(work: &Work) -> Vec<&'static str> {
    let wanted = |name, frames: u32| (frames > 0).then_some(name);
    match work {
        Work::Text { .. } => vec!["text"],
        Work::Denoise { tail_frames, .. } => ["latents"]
            .into_iter()
            .chain(tail_frames.map(|_| "tail"))
            .collect(),
        Work::Decode {
            window,
            head_frames,
            relax_frames,
            lead_frames,
            tail_frames,
            ..
        } => {
            let seams = head_frames + relax_frames + lead_frames + tail_frames;
            let interior = window.visible_frames - seams;
            [
                wanted("head", *head_frames),
                wanted("interior", interior),
                wanted("tail", *tail_frames),
            ]
            .into_iter()
            .flatten()
            .collect()
        }
        Work::Seam { .. } => vec!["chunk"],
        Work::Mux { .. } => vec!["video"],
    }
}

/// The job once `enough` says so.
pub async fn watch_until(
    user: &mut JobsClient<Channel>,
    job: &str,
    enough: impl Fn(&v1::Job) -> bool,
) -> v1::Job {
    let request = v1::JobRequest {
        job: job.to_owned(),
    };
    let mut changes = user.watch(request).await.expect("watch").into_inner();
    let wait = async {
        loop {
            let view = changes
                .message()
                .await
                .expect("watching")
                .expect("not over yet");
            if enough(&view) {
                return view;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time")
}
