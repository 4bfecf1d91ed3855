//! Where the logs of a job's tasks are.

use crate::dag::TaskKind;
use crate::state::{Core, Task};
use longtake_common::ids::{FencingToken, Hash, JobId, TaskId};
use serde::{Deserialize, Serialize};

/// Logs of failed tries that are kept of one task, the latest.
const FAILED_MAX: usize = 8;

/// What was said during a try that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedTry {
    pub attempt: u32,
    pub token: FencingToken,
    pub log: Hash,
}

/// The log of one try at a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogView {
    /// The task.
    pub task: TaskId,
    /// Under which it was given out, if it was for this job.
    pub token: Option<FencingToken>,
    /// The artifact with its lines.
    pub log: Hash,
}

/// The windows that a task is part of; none for those of the whole film.
pub fn windows_of(task: &TaskId) -> Vec<u32> {
    match TaskKind::parse(&task.0) {
        Some(
            TaskKind::OwnText(index)
            | TaskKind::Denoise(index)
            | TaskKind::Preview(index)
            | TaskKind::Refine(index)
            | TaskKind::Decode(index),
        ) => vec![index],
        Some(TaskKind::Seam(index)) => vec![index, index + 1],
        Some(TaskKind::Text | TaskKind::ShotText(_) | TaskKind::Mux) | None => vec![],
    }
}

impl Core {
    /// The logs of a job's tasks that are stored, in the order of the tasks, the latest try last.
    pub fn logs(&self, id: &JobId) -> Option<Vec<LogView>> {
        let job = self.jobs.get(id)?;
        let tasks = job.tasks.iter();
        Some(
            tasks
                .flat_map(|(kind, task)| self.logs_of(*kind, task))
                .collect(),
        )
    }

    fn logs_of(&self, kind: TaskKind, task: &Task) -> Vec<LogView> {
        let view = |token, log| LogView {
            task: kind.id(),
            token,
            log,
        };
        let failed = task.record.failed_tries.iter();
        let mut logs: Vec<_> = failed
            .map(|failed| view(Some(failed.token), failed.log))
            .collect();
        let log = self.output(task).and_then(|output| output.log);
        let reused = task
            .record
            .finish
            .as_ref()
            .is_some_and(|finish| finish.reused);
        let token = task.record.token.filter(|_| !reused);
        logs.extend(log.map(|log| view(token, log)));
        logs
    }

    /// Keeps the log of a try that has just failed. Its record is written later.
    pub(crate) fn keep_log(&mut self, id: &JobId, kind: TaskKind, log: Option<Hash>) {
        let record = &mut self.task_mut(id, kind).record;
        let (Some(log), Some(token)) = (log, record.token) else {
            return;
        };
        let attempt = record.attempts;
        if record.failed_tries.len() >= FAILED_MAX {
            record.failed_tries.remove(0);
        }
        record.failed_tries.push(FailedTry {
            attempt,
            token,
            log,
        });
    }
}
