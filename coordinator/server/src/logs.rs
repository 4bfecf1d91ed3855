//! What tasks say: kept while they run, and brought to users with what is stored of those before.

use crate::request::{Mailbox, Request};
use longtake_common::artifact::ArtifactStore;
use longtake_common::ids::{FencingToken, Hash, JobId, TaskId};
use longtake_core::{LogView, windows_of};
use longtake_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// Most bytes that are kept of the tasks in hand; the oldest go first.
const LIVE_BYTES_MAX: usize = 16 << 20;
/// Most bytes of one of them.
const TASK_BYTES_MAX: usize = 256 << 10;
/// How often those who follow get something new.
const FOLLOW_PERIOD: Duration = Duration::from_millis(300);
/// Lines in one message.
const LINES_IN_MESSAGE: usize = 256;

/// The lines of tasks that are in somebody's hands, or were when he was lost.
#[derive(Debug, Default)]
pub struct LiveLogs {
    tries: BTreeMap<FencingToken, LiveLog>,
    bytes: usize,
}

/// The lines of one try at a task.
#[derive(Clone, Debug)]
pub struct LiveLog {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
    /// Under which it was given out.
    pub token: FencingToken,
    /// Number of the first of `lines`.
    pub first: usize,
    /// JSON objects.
    pub lines: Vec<String>,
    bytes: usize,
}

impl LiveLogs {
    /// Adds what is new of `said`. What does not follow on what is there is of no use.
    pub fn add(&mut self, said: LiveLog) {
        let token = said.token;
        let live = self.tries.entry(token).or_insert_with(|| LiveLog {
            first: 0,
            lines: Vec::new(),
            bytes: 0,
            ..said.clone()
        });
        let Some(known) = live.lines.len().checked_sub(said.first) else {
            return;
        };
        for line in said.lines.into_iter().skip(known) {
            if live.bytes + line.len() > TASK_BYTES_MAX {
                break;
            }
            live.bytes += line.len();
            self.bytes += line.len();
            live.lines.push(line);
        }
        while self.bytes > LIVE_BYTES_MAX
            && let Some((_, oldest)) = self.tries.pop_first()
        {
            self.bytes -= oldest.bytes;
        }
    }

    /// Forgets a try whose log is stored.
    pub fn end(&mut self, token: FencingToken) {
        if let Some(ended) = self.tries.remove(&token) {
            self.bytes -= ended.bytes;
        }
    }

    /// The lines of a job that whoever has seen so many of each try has not seen.
    pub fn of(&self, job: &JobId, seen: &BTreeMap<FencingToken, usize>) -> Vec<LiveLog> {
        let of_job = self.tries.values().filter(|live| live.job == *job);
        let unseen = of_job.map(|live| {
            let first = seen.get(&live.token).copied().unwrap_or(0);
            let lines = live.lines.get(first..).unwrap_or_default().to_vec();
            LiveLog {
                first,
                lines,
                ..live.clone()
            }
        });
        unseen.filter(|live| !live.lines.is_empty()).collect()
    }
}

/// What there is to be read of a job.
pub struct JobLogs {
    /// Stored logs.
    pub stored: Vec<LogView>,
    /// New lines of tasks that are not stored.
    pub live: Vec<LiveLog>,
    /// Nothing more will come.
    pub ended: bool,
}

/// Somebody who reads the logs of a job.
pub struct Reader {
    actor: Mailbox,
    artifacts: ArtifactStore,
    job: JobId,
    segment: Option<u32>,
    task: Option<TaskId>,
    /// Lines that were sent of tries while they ran.
    seen: BTreeMap<FencingToken, usize>,
    /// Stored logs that were sent.
    read: BTreeSet<Hash>,
}

type Lines = mpsc::Sender<Result<v1::LogLines, Status>>;

impl Reader {
    /// A reader that has seen nothing.
    pub fn new(actor: Mailbox, artifacts: ArtifactStore, request: &v1::LogsRequest) -> Self {
        Self {
            actor,
            artifacts,
            job: JobId(request.job.clone()),
            segment: request.segment,
            task: request.task.clone().map(TaskId),
            seen: BTreeMap::new(),
            read: BTreeSet::new(),
        }
    }

    /// What there is of the job, `None` when there is no such job.
    pub async fn look(&self) -> Result<Option<JobLogs>, Status> {
        let (job, seen) = (self.job.clone(), self.seen.clone());
        self.actor
            .ask(|reply| Request::Logs { job, seen, reply })
            .await
    }

    /// Sends what `logs` has and, to one who follows, what comes, until the job ends or nobody
    /// listens any more.
    pub async fn send(mut self, mut logs: JobLogs, follow: bool, to: Lines) {
        loop {
            let ended = logs.ended;
            if self.send_once(logs, &to).await.is_none() || ended || !follow {
                return;
            }
            tokio::time::sleep(FOLLOW_PERIOD).await;
            logs = match self.look().await {
                Ok(Some(logs)) => logs,
                Ok(None) => return,
                Err(status) => {
                    // Nobody may be left to hear of it.
                    let _ = to.send(Err(status)).await;
                    return;
                }
            };
        }
    }

    async fn send_once(&mut self, logs: JobLogs, to: &Lines) -> Option<()> {
        for stored in logs.stored {
            if self.wants(&stored.task) && self.read.insert(stored.log) {
                let lines = self.fetch(&stored).await;
                send(to, lines).await?;
            }
        }
        for live in logs.live {
            self.seen.insert(live.token, live.first + live.lines.len());
            if self.wants(&live.task) {
                send(to, live.lines).await?;
            }
        }
        Some(())
    }

    /// The lines of a stored log that were not sent while its task ran.
    async fn fetch(&self, stored: &LogView) -> Vec<String> {
        let seen = stored.token.and_then(|token| self.seen.get(&token));
        match self.artifacts.get(stored.log).await {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let lines = text.lines().skip(seen.copied().unwrap_or(0));
                lines.map(str::to_owned).collect()
            }
            Err(error) => {
                let line = serde_json::json!({
                    "level": "WARN",
                    "task": stored.task.0,
                    "message": format!("what this task said cannot be read: {error}"),
                });
                vec![line.to_string()]
            }
        }
    }

    fn wants(&self, task: &TaskId) -> bool {
        let of_segment = |index: u32| windows_of(task).contains(&index);
        self.segment.is_none_or(of_segment)
            && self.task.as_ref().is_none_or(|wanted| wanted == task)
    }
}

async fn send(to: &Lines, lines: Vec<String>) -> Option<()> {
    for lines in lines.chunks(LINES_IN_MESSAGE) {
        let lines = lines.to_vec();
        to.send(Ok(v1::LogLines { lines })).await.ok()?;
    }
    Some(())
}

/// Lines that a worker has sent.
pub fn said(log: v1::Log) -> LiveLog {
    LiveLog {
        job: JobId(log.job),
        task: TaskId(log.task),
        token: FencingToken(log.token),
        first: usize::try_from(log.first).unwrap_or(usize::MAX),
        lines: log.lines,
        bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(token: u64, first: u64, lines: &[&str]) -> LiveLog {
        said(v1::Log {
            job: "j".into(),
            task: "denoise/1".into(),
            token,
            first,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        })
    }

    #[test]
    fn lines_are_kept_once_and_in_order() {
        let mut live = LiveLogs::default();
        let job = JobId("j".into());
        let all = |live: &LiveLogs, seen: usize| -> Vec<String> {
            let seen = BTreeMap::from([(FencingToken(1), seen)]);
            live.of(&job, &seen)
                .into_iter()
                .flat_map(|live| live.lines)
                .collect()
        };
        live.add(log(1, 0, &["a", "b"]));
        live.add(log(1, 1, &["b", "c"])); // after a new connection
        live.add(log(1, 7, &["x"])); // a gap
        assert_eq!(all(&live, 0), ["a", "b", "c"]);
        assert_eq!(all(&live, 2), ["c"]);
        assert!(live.of(&JobId("k".into()), &BTreeMap::new()).is_empty());
        live.end(FencingToken(1));
        assert!(all(&live, 0).is_empty() && live.bytes == 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut live = LiveLogs::default();
        let line = "x".repeat(100 << 10);
        for token in 0..200 {
            live.add(log(token, 0, &[line.as_str(); 5]));
        }
        assert!(live.bytes <= LIVE_BYTES_MAX);
        assert!(live.tries.values().all(|live| live.bytes <= TASK_BYTES_MAX));
        assert!(
            !live.tries.contains_key(&FencingToken(0)),
            "the oldest go first"
        );
    }
}
