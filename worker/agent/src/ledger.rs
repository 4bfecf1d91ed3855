//! What a worker has in hand: tasks that run and results that the coordinator has not yet
//! acknowledged. Survives reconnections; knows no socket and no clock.

use crate::control::{Control, GangOrder};
use crate::error::TaskError;
use longtake_common::task::{Assignment, Share, TaskOutput};
use longtake_common::{FencingToken, Hash, JobId, TaskId};
use longtake_proto::v1;
use std::collections::BTreeMap;

/// An assignment's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
    /// The assignment of it.
    pub token: FencingToken,
}

impl Key {
    /// The identity of `assignment`.
    pub fn of(assignment: &Assignment) -> Self {
        Self {
            job: assignment.job.clone(),
            task: assignment.task.clone(),
            token: assignment.token,
        }
    }

    /// From the fields of a message.
    pub fn from_parts(job: String, task: String, token: u64) -> Self {
        Self {
            job: JobId(job),
            task: TaskId(task),
            token: FencingToken(token),
        }
    }
}

/// What came of an assignment.
pub type Outcome = Result<TaskOutput, TaskError>;

/// A result on its way.
#[derive(Debug)]
struct Report {
    outcome: Outcome,
    log: Option<Hash>,
    share: Option<Share>,
}

/// Tasks in hand.
#[derive(Debug, Default)]
pub struct Ledger {
    running: BTreeMap<Key, (Control, Option<Share>)>,
    unacknowledged: BTreeMap<Key, Report>,
    /// Log lines that were sent over the connection that there is.
    lines_sent: BTreeMap<Key, usize>,
}

impl Ledger {
    /// Notes that `key` starts, or our share of it. Returns the string to hold it by, or `None` when it is in hand
    /// already, as after a repeated message.
    pub fn start(&mut self, key: Key, share: Option<Share>) -> Option<Control> {
        if self.running.contains_key(&key) || self.unacknowledged.contains_key(&key) {
            return None;
        }
        let control = Control::default();
        self.running.insert(key, (control.clone(), share));
        Some(control)
    }

    /// Notes the result of `key`. Returns whether it is to be reported: a task that was taken back
    /// is nobody's any more, and what followed in a gang has nothing to tell.
    pub fn finish(&mut self, key: &Key, outcome: Outcome) -> bool {
        self.lines_sent.remove(key);
        let held = self.running.remove(key);
        let held = held.filter(|(control, _)| !control.is_cancelled());
        let Some((control, share)) = held.filter(|_| outcome != Err(TaskError::Followed)) else {
            return false;
        };
        let report = Report {
            outcome,
            log: control.stored_log(),
            share,
        };
        self.unacknowledged.insert(key.clone(), report);
        true
    }

    /// Asks all tasks to stop where others can go on.
    pub fn leave(&self) {
        for (control, _) in self.running.values() {
            control.leave();
        }
    }

    /// Lets go of all tasks that still run. Returns those that have to be reported as left.
    pub fn give_up(&mut self) -> Vec<Key> {
        let running = self.running.iter();
        let kept: Vec<_> = running.map(|(k, (c, _))| (k.clone(), c.kept())).collect();
        let left = kept.into_iter().filter_map(|(key, kept)| {
            let is_ours = self.finish(&key, Err(TaskError::Left(kept)));
            is_ours.then_some(key)
        });
        left.collect()
    }

    /// The coordinator has taken `key` back.
    pub fn revoke(&mut self, key: &Key) {
        if let Some((control, _)) = self.running.get(key) {
            control.cancel();
        }
        self.unacknowledged.remove(key);
    }

    /// The coordinator has stored the result of `key`.
    pub fn acknowledge(&mut self, key: &Key) {
        self.unacknowledged.remove(key);
    }

    /// Whether nothing runs and nothing waits for an acknowledgement.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.unacknowledged.is_empty()
    }

    /// What the coordinator is told to be in hand: results on their way count, so that nobody else
    /// is given the same work.
    pub fn in_hand(&self) -> Vec<v1::Running> {
        let running = self
            .running
            .iter()
            .filter(|(_, (control, _))| !control.is_cancelled())
            .map(|(key, (control, share))| in_hand(key, control.progress(), *share));
        let reports = self.unacknowledged.iter();
        running
            .chain(reports.map(|(key, report)| in_hand(key, 1.0, report.share)))
            .collect()
    }

    /// The messages with what running tasks have said since the last time.
    pub fn new_lines(&mut self) -> Vec<v1::WorkerMessage> {
        let mut messages = Vec::new();
        for (key, (control, _)) in &self.running {
            let sent = self.lines_sent.entry(key.clone()).or_default();
            let lines = control.log().since(*sent);
            if lines.is_empty() {
                continue;
            }
            let first = *sent as u64;
            *sent += lines.len();
            let log = v1::Log {
                job: key.job.to_string(),
                task: key.task.to_string(),
                token: key.token.0,
                first,
                lines,
            };
            messages.push(v1::WorkerMessage {
                message: Some(v1::worker_message::Message::Log(log)),
            });
        }
        messages
    }

    /// A new connection knows nothing of what was said over the last one: gangs that were forming come
    /// to nothing.
    pub fn begin_anew(&mut self) {
        self.lines_sent.clear();
        for (control, _) in self.running.values() {
            control.order(GangOrder::Broken);
        }
    }

    /// Passes on what the coordinator says to a gang, if it is still in hand.
    pub fn order(&self, gang: u64, order: GangOrder) {
        let mut running = self.running.iter();
        match running.find(|(key, _)| key.token.0 == gang) {
            Some((_, (control, _))) => control.order(order),
            None => tracing::debug!(gang, "word for a gang that is over"),
        }
    }

    /// The message that reports `key`, when its result waits for an acknowledgement.
    pub fn report(&self, key: &Key, epoch: u64) -> Option<v1::WorkerMessage> {
        self.unacknowledged
            .get(key)
            .map(|report| report.message(key, epoch))
    }

    /// The messages for all results that have not been acknowledged.
    pub fn reports(&self, epoch: u64) -> Vec<v1::WorkerMessage> {
        self.unacknowledged
            .iter()
            .map(|(key, report)| report.message(key, epoch))
            .collect()
    }
}

fn in_hand(key: &Key, progress: f64, share: Option<Share>) -> v1::Running {
    v1::Running {
        job: key.job.to_string(),
        task: key.task.to_string(),
        token: key.token.0,
        progress,
        share: share.map(|share| v1::Share {
            ranks: share.ranks,
            first: share.first,
            own: share.own,
        }),
    }
}

impl Report {
    fn message(&self, key: &Key, epoch: u64) -> v1::WorkerMessage {
        use v1::worker_message::Message;
        let (job, task, token) = (key.job.to_string(), key.task.to_string(), key.token.0);
        let message = match &self.outcome {
            Ok(output) => {
                let output_json =
                    serde_json::to_string(output).expect("a task's output is plain data");
                Message::Done(v1::Done {
                    epoch,
                    job,
                    task,
                    token,
                    output_json,
                })
            }
            Err(error) => Message::Failed(v1::Failed {
                epoch,
                job,
                task,
                token,
                error: error.to_string(),
                retryable: !matches!(error, TaskError::Fatal(_)),
                log: self.log.map(|log| log.to_string()),
                lost_gang: matches!(error, TaskError::Gang(_)),
                unreached_rank: match error {
                    TaskError::Peer { rank, .. } => Some(*rank as u32),
                    _ => None,
                },
                no_room: matches!(error, TaskError::Full(_)),
                lost_inputs: match error {
                    TaskError::Inputs { lost, .. } => lost.iter().map(Hash::to_string).collect(),
                    _ => Vec::new(),
                },
                leaving: matches!(error, TaskError::Left(_)),
                halfway: match error {
                    TaskError::Left(left) => left.map(|left| left.to_string()),
                    _ => None,
                },
            }),
        };
        v1::WorkerMessage {
            message: Some(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(task: &str, token: u64) -> Key {
        Key::from_parts("j-0123456789".into(), task.into(), token)
    }

    #[test]
    fn a_result_is_kept_until_it_is_acknowledged() {
        let mut ledger = Ledger::default();
        let k = key("denoise/0", 4);
        ledger.start(k.clone(), None).expect("new");
        assert!(
            ledger.start(k.clone(), None).is_none(),
            "the same assignment twice starts once"
        );
        assert!(ledger.reports(1).is_empty());
        assert!(ledger.finish(&k, Ok(TaskOutput::default())));
        assert_eq!(ledger.reports(1).len(), 1);
        assert_eq!(
            ledger.in_hand().len(),
            1,
            "still in hand, so that nobody else gets it"
        );
        assert!(
            ledger.start(k.clone(), None).is_none(),
            "a finished assignment is not run again"
        );
        ledger.acknowledge(&k);
        assert!(ledger.is_idle());
    }

    #[test]
    fn a_result_carries_the_epoch_of_the_connection_it_is_sent_on() {
        let mut ledger = Ledger::default();
        let k = key("seam/0", 9);
        ledger.start(k.clone(), None);
        ledger.finish(&k, Err(TaskError::Fatal("broken".into())));
        let sent = ledger
            .report(&k, 7)
            .and_then(|m| m.message)
            .expect("a report");
        match sent {
            v1::worker_message::Message::Failed(failed) => {
                assert_eq!(
                    (failed.epoch, failed.token, failed.retryable),
                    (7, 9, false)
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_revoked_task_is_cancelled_and_not_reported() {
        let mut ledger = Ledger::default();
        let k = key("decode/2", 5);
        let control = ledger.start(k.clone(), None).expect("new");
        ledger.revoke(&k);
        assert!(control.is_cancelled());
        assert!(ledger.in_hand().is_empty());
        assert!(!ledger.is_idle(), "the thread has not let go of it yet");
        assert!(!ledger.finish(&k, Err(TaskError::Cancelled)));
        assert!(ledger.is_idle());
    }

    #[test]
    fn what_is_left_says_where_to_go_on() {
        let mut ledger = Ledger::default();
        let (half, slow, dropped) = (key("denoise/1", 6), key("mux", 7), key("seam/1", 8));
        let controls =
            [&half, &slow, &dropped].map(|k| ledger.start(k.clone(), None).expect("new"));
        ledger.revoke(&dropped);
        controls[1].keep(Hash::of(b"kept"));
        ledger.leave();
        assert!(controls.iter().all(Control::is_leaving));
        let stored = Hash::of(b"halfway");
        assert!(ledger.finish(&half, Err(TaskError::Left(Some(stored)))));
        assert_eq!(ledger.give_up(), [slow]);
        let left = ledger
            .reports(1)
            .into_iter()
            .map(|report| match report.message {
                Some(v1::worker_message::Message::Failed(failed)) => {
                    (failed.leaving, failed.retryable, failed.halfway)
                }
                other => panic!("{other:?}"),
            });
        let [stored, kept] = [stored, Hash::of(b"kept")].map(|hash| Some(hash.to_string()));
        assert!(left.eq([(true, true, stored), (true, true, kept)]));
    }

    #[test]
    fn a_later_assignment_of_the_same_task_is_another_one() {
        let mut ledger = Ledger::default();
        ledger.start(key("mux", 1), None).expect("new");
        ledger.revoke(&key("mux", 1));
        ledger.start(key("mux", 2), None).expect("another token");
        ledger.finish(&key("mux", 1), Err(TaskError::Cancelled));
        assert_eq!(ledger.in_hand().len(), 1);
        assert_eq!(ledger.in_hand()[0].token, 2);
    }
}
