//! State as records, and back: what a coordinator that was killed goes on from.
//!
//! | key               | value                                                        |
//! |-------------------|--------------------------------------------------------------|
//! | `meta`            | next fencing token, next job number                           |
//! | `job/JOB`         | the spec and how the job ended                                |
//! | `task/JOB/TASK`   | attempts, latest token, result; absent until first given out  |
//! | `memo/KEY`        | the result of the work with that key                          |
//! | `drained/NAME`    | nothing: the worker of that name gets no new work             |
//! | `model/NAME`      | the stored model of that name                                 |
//! | `fault/HASH`      | why the model with that hash is not to be used                |
//!
//! Values are JSON. A record for each task keeps a commit small however long the film is.

use crate::dag::TaskKind;
use crate::effects::Effects;
use crate::models::{Fault, StoredModel};
use crate::state::{Core, Job, JobRecord, Limits, Status, StoredState, TaskRecord};
use longtake_common::ids::{Epoch, Hash, JobId};
use longtake_common::task::{ENGINE, TaskOutput};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Raised whenever the planner would cut the same job otherwise.
pub(crate) const PLAN_VERSION: u32 = 1;

/// Where the names of drained workers stand.
const DRAINED: &str = "drained/";

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    next_token: u64,
    next_seq: u64,
}

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the stored record '{key}': {source}; the database is damaged or of another version, start with another --state"
)]
pub struct RestoreError {
    key: String,
    source: serde_json::Error,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data with text keys")
}

impl Effects {
    pub(crate) fn write_meta(&mut self, core: &Core) {
        let meta = Meta {
            next_token: core.next_token,
            next_seq: core.next_seq,
        };
        self.write("meta".to_owned(), json(&meta));
    }

    pub(crate) fn write_job(&mut self, id: &JobId, job: &JobRecord) {
        self.write(format!("job/{id}"), json(job));
    }

    pub(crate) fn write_task(&mut self, job: &JobId, kind: TaskKind, task: &TaskRecord) {
        self.write(format!("task/{job}/{kind}"), json(task));
    }

    pub(crate) fn write_drained(&mut self, name: &str, drained: bool) {
        let key = format!("{DRAINED}{name}");
        if drained {
            self.write(key, json(&()));
        } else {
            self.remove(key);
        }
    }

    pub(crate) fn write_model(&mut self, name: &str, model: &StoredModel) {
        self.write(format!("model/{name}"), json(model));
    }

    pub(crate) fn remove_model(&mut self, name: &str) {
        self.remove(format!("model/{name}"));
    }

    pub(crate) fn write_fault(&mut self, hash: Hash, fault: Option<&Fault>) {
        let key = format!("fault/{hash}");
        match fault {
            Some(fault) => self.write(key, json(&fault)),
            None => self.remove(key),
        }
    }

    pub(crate) fn remove_memo(&mut self, key: Hash) {
        self.remove(format!("memo/{key}"));
    }

    pub(crate) fn write_memo(&mut self, key: Hash, output: &TaskOutput) {
        self.write(format!("memo/{key}"), json(output));
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RestoreError> {
    serde_json::from_slice(value).map_err(|source| RestoreError {
        key: key.to_owned(),
        source,
    })
}

/// A key that is not one of ours, in the words of the error for values.
fn bad_key(key: &str) -> RestoreError {
    let source = serde::de::Error::custom("its name means nothing here");
    RestoreError {
        key: key.to_owned(),
        source,
    }
}

impl Core {
    /// Goes on from stored records, or begins when there are none.
    ///
    /// `epoch` is greater than that of every coordinator before. Effects may come of it: what one
    /// job has done may just be what another waits for.
    pub fn restore(
        now_ms: u64,
        epoch: Epoch,
        limits: Limits,
        records: impl IntoIterator<Item = (String, Vec<u8>)>,
        fx: &mut Effects,
    ) -> Result<Self, RestoreError> {
        let mut core = Self::empty(now_ms, epoch, limits);
        let mut tasks: BTreeMap<JobId, BTreeMap<TaskKind, TaskRecord>> = BTreeMap::new();
        for (key, value) in records {
            // A name may hold anything, slashes too.
            if let Some(name) = key.strip_prefix(DRAINED) {
                core.drained.insert(name.to_owned());
                continue;
            }
            let parts: Vec<&str> = key.splitn(3, '/').collect();
            match parts[..] {
                ["meta"] => {
                    let meta: Meta = parse(&key, &value)?;
                    (core.next_token, core.next_seq) = (meta.next_token, meta.next_seq);
                }
                ["memo", hash] => {
                    let hash = hash.parse().map_err(|_| bad_key(&key))?;
                    core.memo.insert(hash, parse(&key, &value)?);
                }
                ["model", name] => {
                    core.models.insert(name.to_owned(), parse(&key, &value)?);
                }
                ["fault", hash] => {
                    let hash = hash.parse().map_err(|_| bad_key(&key))?;
                    core.faults.insert(hash, parse(&key, &value)?);
                }
                ["job", id] => {
                    let record: JobRecord = parse(&key, &value)?;
                    // The planner relies on the rules; a damaged record must not get past them.
                    record.spec.check().map_err(|error| RestoreError {
                        key: key.clone(),
                        source: serde::de::Error::custom(error),
                    })?;
                    core.job_by_seq.insert(record.seq, JobId(id.to_owned()));
                    core.jobs.insert(JobId(id.to_owned()), Job::new(record));
                }
                ["task", job, task] => {
                    let kind = TaskKind::parse(task).ok_or_else(|| bad_key(&key))?;
                    let of_job = tasks.entry(JobId(job.to_owned())).or_default();
                    of_job.insert(kind, parse(&key, &value)?);
                }
                _ => return Err(bad_key(&key)),
            }
        }
        for id in core.job_by_seq.values().cloned().collect::<Vec<_>>() {
            core.restore_job(now_ms, &id, tasks.remove(&id).unwrap_or_default(), fx);
        }
        Ok(core)
    }

    fn restore_job(
        &mut self,
        now_ms: u64,
        id: &JobId,
        records: BTreeMap<TaskKind, TaskRecord>,
        fx: &mut Effects,
    ) {
        let (memo, job) = (&self.memo, self.jobs.get_mut(id).expect("just inserted"));
        if job.is_open() && job.record.plan_version != PLAN_VERSION {
            let error = "it was planned by another version of longtake: submit it again";
            self.fail_job(id, error.to_owned(), fx);
            return;
        }
        // A film that is not complete begins anew: one film is of one engine.
        let begins_anew = job.record.state != StoredState::Done && job.record.engine != ENGINE;
        if begins_anew {
            ENGINE.clone_into(&mut job.record.engine);
            fx.write_job(id, &job.record);
        }
        for (kind, mut record) in records {
            let Some(task) = job.tasks.get_mut(&kind) else {
                continue;
            };
            if begins_anew {
                // Its worker has to be of this engine, too.
                (record.finish, record.token) = (None, None);
                record.in_flight = false;
                fx.write_task(id, kind, &record);
            }
            let done = record
                .finish
                .as_ref()
                .is_some_and(|finish| memo.contains_key(&finish.key));
            task.record = record;
            if done {
                task.status = Status::Done;
                task.progress = 1.0;
                job.left -= 1;
            } else {
                task.record.finish = None;
            }
        }
        if job.record.state != StoredState::Open {
            return;
        }
        for kind in job.recount() {
            self.open_restored(now_ms, id, kind, fx);
        }
    }

    /// Queues a task with all inputs; one that was given out before waits for its worker first.
    fn open_restored(&mut self, now_ms: u64, id: &JobId, kind: TaskKind, fx: &mut Effects) {
        self.open_task(id, kind, fx);
        let Some(job) = self.jobs.get(id).filter(|job| job.is_open()) else {
            return;
        };
        let task = &job.tasks[&kind];
        if task.status == Status::Ready && task.record.in_flight && self.limits.adopt_ms > 0 {
            self.withdraw(id, kind, fx);
            let until_ms = now_ms + self.limits.adopt_ms;
            self.task_mut(id, kind).status = Status::Orphan { until_ms };
            self.orphans.insert((id.clone(), kind));
        }
    }
}
