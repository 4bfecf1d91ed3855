//! What to do when the artifact store has lost something: results that name it are forgotten, and
//! made again where somebody needs them.
//!
//! Nobody looks whether everything that is known is still stored; that would cost as much as
//! reading it all. A loss is noticed by the worker or the user who wants the artifact, and only what
//! leads to that one is done again.

use crate::dag::TaskKind;
use crate::effects::Effects;
use crate::state::{Core, Job, Status, StoredState, Task};
use longtake_common::ids::{Hash, JobId};
use std::collections::BTreeSet;

impl Core {
    /// Whether some result names the artifact.
    pub fn knows(&self, artifact: Hash) -> bool {
        let mut results = self.memo.values();
        results.any(|output| output.artifacts.values().any(|hash| *hash == artifact))
    }

    /// Whether a job is under way.
    pub fn is_open(&self, job: &JobId) -> bool {
        self.jobs.get(job).is_some_and(Job::is_open)
    }

    /// Whether inputs of a task that were lost can be made again, or are being made already.
    pub(crate) fn can_remake(&self, id: &JobId, kind: TaskKind, lost: &[Hash]) -> bool {
        lost.iter().any(|hash| self.knows(*hash)) || self.jobs[id].missing(kind) > 0
    }

    /// Forgets the results that name one of `lost`. Open jobs make them again, and so do complete
    /// ones whose film or chunks were lost, or whose lost part somebody wants to fetch: `wanted_of`.
    pub(crate) fn forget(&mut self, lost: &[Hash], wanted_of: Option<&JobId>, fx: &mut Effects) {
        let results = self.memo.iter().filter(|(_, output)| {
            let mut artifacts = output.artifacts.values();
            artifacts.any(|hash| lost.contains(hash))
        });
        let keys: BTreeSet<Hash> = results.map(|(key, _)| *key).collect();
        for &key in &keys {
            self.memo.remove(&key);
            fx.remove_memo(key);
        }
        for id in self.job_by_seq.values().cloned().collect::<Vec<_>>() {
            let kinds = self.jobs[&id].made(&keys);
            if !kinds.is_empty() {
                self.set_back(&id, &kinds, wanted_of == Some(&id), fx);
            }
        }
    }

    /// Takes the results of `kinds` from a job, and has it go on if it should.
    fn set_back(&mut self, id: &JobId, kinds: &[TaskKind], wanted: bool, fx: &mut Effects) {
        let mut remade = None;
        let remakes_max = self.limits.remakes_max;
        for &kind in kinds {
            let task = self.task_mut(id, kind);
            task.set_back(0);
            task.record.finish = None;
            // Its worker may still say what it made then.
            task.record.token = None;
            task.record.remakes += 1;
            if task.record.remakes > remakes_max {
                remade = Some((kind, task.record.remakes));
            }
            fx.write_task(id, kind, &task.record);
        }
        fx.changed(id);
        let whole = self.film_is_whole(&self.jobs[id]);
        if let Some(error) = self.jobs[id].refuse_old(id).filter(|_| wanted || !whole) {
            return self.fail_job(id, error, fx);
        }
        let job = self.job_mut(id);
        if job.record.state == StoredState::Done && (wanted || !whole) {
            job.record.state = StoredState::Open;
            job.record.paused = false;
            fx.write_job(id, &job.record);
        }
        if !job.is_open() {
            return; // whoever has it go on finds out what is missing
        }
        match remade {
            None => self.resettle(id, fx),
            Some((kind, times)) => {
                let error = format!(
                    "what {kind} made was lost in the artifact store {times} times: see to the store, then try again"
                );
                self.fail_job(id, error, fx);
            }
        }
    }

    /// Sorts out anew which tasks of a job can begin.
    fn resettle(&mut self, id: &JobId, fx: &mut Effects) {
        let ready = |(&kind, task): (&TaskKind, &_)| is_ready(task).then_some(kind);
        for kind in self.jobs[id]
            .tasks
            .iter()
            .filter_map(ready)
            .collect::<Vec<_>>()
        {
            self.withdraw(id, kind, fx);
        }
        self.open_all(id, fx);
    }

    /// Whether the film and its chunks, which are fetched and joined by themselves too, are known.
    fn film_is_whole(&self, job: &Job) -> bool {
        self.output(&job.tasks[&TaskKind::Mux]).is_some() && self.chunks(job).is_some()
    }
}

fn is_ready(task: &Task) -> bool {
    task.status == Status::Ready
}

impl Job {
    /// The finished tasks whose results have these names.
    fn made(&self, keys: &BTreeSet<Hash>) -> Vec<TaskKind> {
        let by = |(&kind, task): (&TaskKind, &Task)| {
            let finish = task.record.finish.as_ref()?;
            keys.contains(&finish.key).then_some(kind)
        };
        self.tasks.iter().filter_map(by).collect()
    }
}
