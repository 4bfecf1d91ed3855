//! Who does what: queues of ready tasks, and giving them to workers with a free lane.

use crate::dag::{self, TaskKind};
use crate::effects::{Effect, Effects};
use crate::gather::Team;
use crate::state::{Core, Finish, Job, LANES, Place, Status, StoredState, Task};
use crate::workers::Worker;
use longtake_common::ids::{FencingToken, Hash, JobId, WorkerId};
use longtake_common::spec::Continuity;
use longtake_common::task::{Assignment, Lane, Share, Work};
use std::collections::BTreeSet;
use std::ops::Bound;

/// Name of the result of `work` as workers of one instruction-set level make it. What the model
/// computes differs in the last bits from level to level; joining and packing does not.
pub fn result_key(work: &Work, isa: Option<&str>) -> Hash {
    let key = work.key();
    match (work.lane(), isa) {
        (Lane::Device, Some(isa)) => Hash::of(format!("{key} {isa}").as_bytes()),
        _ => key,
    }
}

impl Core {
    pub(crate) fn job_mut(&mut self, id: &JobId) -> &mut Job {
        self.jobs.get_mut(id).expect("jobs are never removed")
    }

    pub(crate) fn task_mut(&mut self, id: &JobId, kind: TaskKind) -> &mut Task {
        self.job_mut(id)
            .tasks
            .get_mut(&kind)
            .expect("tasks of a plan never change")
    }

    fn build(&self, job: &Job, kind: TaskKind) -> Result<Work, dag::MissingInput> {
        dag::work(&job.record.spec, &job.plan, kind, |input| {
            self.output(&job.tasks[&input])
        })
    }

    /// A task has all its inputs: queue it, or finish it when its result is known.
    pub(crate) fn open_task(&mut self, id: &JobId, kind: TaskKind, fx: &mut Effects) {
        let mut opened = vec![kind];
        while let Some(kind) = opened.pop() {
            let job = &self.jobs[id];
            if !job.is_open() {
                return;
            }
            let work = match self.build(job, kind) {
                Ok(work) => work,
                Err(error) => return self.fail_job(id, error.to_string(), fx),
            };
            let (key, lane) = (result_key(&work, job.record.isa.as_deref()), work.lane());
            let place = self.place(job, kind);
            let task = self.task_mut(id, kind);
            task.work = Some((key, lane));
            if self.memo.contains_key(&key) {
                let finish = Finish {
                    key,
                    reused: true,
                    elapsed_ms: None,
                };
                opened.extend(self.finish_task(id, kind, finish, fx));
            } else {
                self.task_mut(id, kind).status = Status::Ready;
                self.enqueue(lane, place);
            }
        }
    }

    /// Puts a ready task into its queue, unless its job is paused.
    pub(crate) fn enqueue(&mut self, lane: Lane, place: Place) {
        let job = &self.jobs[&self.job_by_seq[&place.seq]];
        if job.may_run() {
            self.queue(lane).insert(place);
        }
    }

    /// Marks a task as done. Returns the tasks that have all their inputs now.
    fn finish_task(
        &mut self,
        id: &JobId,
        kind: TaskKind,
        finish: Finish,
        fx: &mut Effects,
    ) -> Vec<TaskKind> {
        let job = self.job_mut(id);
        let task = job
            .tasks
            .get_mut(&kind)
            .expect("tasks of a plan never change");
        task.status = Status::Done;
        task.progress = 1.0;
        task.record.finish = Some(finish);
        task.record.halfway = None;
        task.record.in_flight = false;
        fx.write_task(id, kind, &task.record);
        fx.changed(id);
        job.left -= 1;
        if job.left == 0 {
            job.record.state = StoredState::Done;
            fx.write_job(id, &job.record);
        }
        let mut opened = Vec::new();
        for next in dag::dependents(&job.record.spec, &job.plan, kind) {
            let task = job
                .tasks
                .get_mut(&next)
                .expect("tasks of a plan never change");
            if let Status::Waiting(missing) = &mut task.status {
                *missing -= 1;
                if *missing == 0 {
                    opened.push(next);
                }
            }
        }
        opened
    }

    /// A task's result is there: finishes it, and opens and perhaps finishes what waited for it.
    pub(crate) fn complete(
        &mut self,
        id: &JobId,
        kind: TaskKind,
        finish: Finish,
        fx: &mut Effects,
    ) {
        for next in self.finish_task(id, kind, finish, fx) {
            self.open_task(id, next, fx);
        }
    }

    pub(crate) fn queue(&mut self, lane: Lane) -> &mut std::collections::BTreeSet<Place> {
        self.ready.get_mut(&lane).expect("every lane has a queue")
    }

    /// Takes a task out of its queue, its workers' hands or the orphans; whoever follows in its gang is
    /// told. Its token stays current. Says whether a gang has ended by this.
    pub(crate) fn withdraw(&mut self, id: &JobId, kind: TaskKind, fx: &mut Effects) -> bool {
        self.unlink(id, kind);
        let token = self.jobs[id].tasks[&kind].record.token;
        token.is_some_and(|token| self.dissolve(token, fx))
    }

    /// The same but for its gang, which goes on.
    pub(crate) fn unlink(&mut self, id: &JobId, kind: TaskKind) {
        let job = &self.jobs[id];
        let (place, task) = (self.place(job, kind), &job.tasks[&kind]);
        let Some((_, lane)) = task.work else { return };
        match task.status.clone() {
            Status::Ready => {
                self.queue(lane).remove(&place);
            }
            Status::Running(worker) => self.release(&worker, lane),
            Status::Orphan { .. } => {
                self.orphans.remove(&(id.clone(), kind));
            }
            Status::Waiting(_) | Status::Done => {}
        }
    }

    /// The worker's lane is free again. It may be gone already.
    fn release(&mut self, worker: &WorkerId, lane: Lane) {
        if let Some(state) = self.workers.get_mut(worker) {
            state.lanes.remove(&lane);
            self.refresh(worker);
        }
    }

    /// Puts a task that was withdrawn back into its queue, or has it wait for inputs that were lost
    /// meanwhile.
    pub(crate) fn requeue(&mut self, id: &JobId, kind: TaskKind, fx: &mut Effects) {
        let missing = self.jobs[id].missing(kind);
        self.task_mut(id, kind).set_back(missing);
        if missing == 0 {
            self.open_task(id, kind, fx);
        }
    }

    /// Gives the task to the worker under a token that is current already (or was just made so).
    pub(crate) fn hold(&mut self, now_ms: u64, worker: &WorkerId, id: &JobId, kind: TaskKind) {
        let task = self.task_mut(id, kind);
        task.status = Status::Running(worker.clone());
        task.seen_ms = now_ms;
        let (_, lane) = task.work.expect("it was queued");
        let state = self
            .workers
            .get_mut(worker)
            .expect("only attached workers get work");
        let before = state.lanes.insert(lane, (id.clone(), kind));
        assert!(before.is_none(), "a lane does one thing at a time");
        self.refresh(worker);
    }

    /// Gives ready tasks to free workers until one of them runs out.
    pub(crate) fn schedule(&mut self, now_ms: u64, fx: &mut Effects) {
        // A result that was known already opens tasks at places that were passed.
        while self.schedule_once(now_ms, fx) {}
    }

    /// Returns true when it has to be done again.
    fn schedule_once(&mut self, now_ms: u64, fx: &mut Effects) -> bool {
        for lane in LANES {
            let mut after = Bound::Unbounded;
            let mut kept = BTreeSet::new();
            while !self.free[&lane].is_empty() {
                let queue = &self.ready[&lane];
                let Some(&place) = queue.range((after, Bound::Unbounded)).next() else {
                    break;
                };
                let id = self.job_by_seq[&place.seq].clone();
                let job = &self.jobs[&id];
                let places = self.link(place).into_iter().chain([place]);
                let mut chosen = places
                    .filter_map(|place| Some((place, self.team(lane, job, place.kind, &kept)?)));
                let Some((place, team)) = chosen.next() else {
                    if let Some(ranks) = job.gang(place.kind).filter(|_| kept.is_empty()) {
                        kept = self.keep_free(job, place.kind, ranks);
                    }
                    after = Bound::Excluded(place);
                    continue;
                };
                if lane == Lane::Device {
                    self.pin(&id, &team[0].0, fx);
                }
                let task = &self.jobs[&id].tasks[&place.kind];
                let (key, _) = task.work.expect("it was queued");
                if self.memo.contains_key(&key) {
                    // Another job has done the same since this was queued.
                    self.unlink(&id, place.kind);
                    let finish = Finish {
                        key,
                        reused: true,
                        elapsed_ms: None,
                    };
                    self.complete(&id, place.kind, finish, fx);
                    return true;
                }
                self.assign(now_ms, &team, &id, place.kind, fx);
            }
        }
        false
    }

    /// The next link of the chain that a job is, if that should be given out before the decoding at
    /// `place`. All that is left of a film waits for its chain, so where several workers are at it
    /// the chain is never held up, and the others decode beside it. A single worker that did so
    /// would decode nothing before everything is denoised, and be done no sooner.
    fn link(&self, place: Place) -> Option<Place> {
        let job = &self.jobs[&self.job_by_seq[&place.seq]];
        let is_chain = job.record.spec.continuity == Continuity::Chain;
        if !is_chain || !matches!(place.kind, TaskKind::Decode(_)) {
            return None;
        }
        let lane = Lane::Device;
        let fitting =
            |(id, worker): &(&WorkerId, &Worker)| self.accepts(id) && self.fits(worker, lane, job);
        self.workers.iter().filter(fitting).nth(1)?;
        let queue = self.ready[&lane].range((Bound::Excluded(place), Bound::Unbounded));
        let mut of_job = queue.take_while(|other| other.seq == place.seq);
        of_job.find(|other| other.kind.is_link()).copied()
    }

    /// Free workers that do a task together, all that it wants; or the one that does it alone.
    fn team(
        &self,
        lane: Lane,
        job: &Job,
        kind: TaskKind,
        kept: &BTreeSet<WorkerId>,
    ) -> Option<Team> {
        if let Some(ranks) = job.gang(kind) {
            return self.gather(job, kind, ranks, kept);
        }
        let share = job.ranks(kind).map(|ranks| Share {
            ranks,
            first: 0,
            own: ranks,
        });
        let worker = self.choose(lane, job, kind, kept)?;
        Some(vec![(worker, share)])
    }

    /// A free worker that the task has not failed on, one that has the model before one that would
    /// have to fetch it. When every worker has seen it fail, any; but not while one that has not is
    /// merely busy.
    fn choose(
        &self,
        lane: Lane,
        job: &Job,
        kind: TaskKind,
        kept: &BTreeSet<WorkerId>,
    ) -> Option<WorkerId> {
        let failed_on = &job.tasks[&kind].record.failed_on;
        let is_new = |worker: &WorkerId| !failed_on.contains(&self.workers[worker].info.name);
        let fits = |worker: &&WorkerId| {
            let state = &self.workers[*worker];
            self.fits(state, lane, job) && (lane == Lane::Host || self.may_pin(job, state))
        };
        let is_kept = |worker: &&WorkerId| kept.contains(*worker);
        let free = || self.free[&lane].iter().filter(fits).filter(|w| !is_kept(w));
        let is_held =
            lane == Lane::Device && self.holders.contains_key(&job.record.spec.model.hash);
        let has = |worker: &&WorkerId| self.workers[*worker].has_model(job) && is_new(worker);
        if is_held && let Some(worker) = free().find(has) {
            return Some(worker.clone());
        }
        if let Some(worker) = free().find(|worker| is_new(worker)) {
            return Some(worker.clone());
        }
        let first = free().next()?;
        let mut others = self.workers.keys().filter(fits);
        let is_tried = !others.any(|worker| is_new(worker) && self.accepts(worker));
        is_tried.then(|| first.clone())
    }

    /// A job is rendered by workers of one instruction-set level: the first worker's, unless its
    /// user has chosen.
    fn pin(&mut self, id: &JobId, worker: &WorkerId, fx: &mut Effects) {
        let isa = self.workers[worker].info.isa.clone();
        let job = self.job_mut(id);
        if job.record.isa.is_some() {
            return;
        }
        job.record.isa = Some(isa);
        fx.write_job(id, &job.record);
        // The results of what is queued now have names of their own.
        let job = &self.jobs[id];
        let named = |(&kind, task): (&TaskKind, &Task)| {
            task.work?;
            let work = self.build(job, kind).ok()?;
            let key = result_key(&work, job.record.isa.as_deref());
            Some((kind, (key, work.lane())))
        };
        let queued = job
            .tasks
            .iter()
            .filter(|(_, task)| task.status != Status::Done);
        for (kind, work) in queued.filter_map(named).collect::<Vec<_>>() {
            self.task_mut(id, kind).work = Some(work);
        }
    }

    fn assign(&mut self, now_ms: u64, team: &Team, id: &JobId, kind: TaskKind, fx: &mut Effects) {
        let worker = &team[0].0;
        let work = match self.build(&self.jobs[id], kind) {
            Ok(work) => work,
            Err(error) => return self.fail_job(id, error.to_string(), fx),
        };
        self.unlink(id, kind);
        let token = FencingToken(self.next_token);
        self.next_token += 1;
        fx.write_meta(self);
        let name = self.workers[worker].info.name.clone();
        let task = self.task_mut(id, kind);
        task.record.given = task.work.map(|(key, _)| key);
        task.assigned_ms = Some(now_ms);
        task.record.attempts += 1;
        task.record.token = Some(token);
        task.record.worker = name;
        task.record.in_flight = true;
        fx.write_task(id, kind, &task.record);
        let attempt = task.record.attempts;
        let given = task.record.given;
        let halfway = task.record.halfway.as_ref();
        let halfway = halfway.filter(|halfway| Some(halfway.of) == given);
        let halfway = halfway.map(|halfway| halfway.artifact);
        self.hold(now_ms, worker, id, kind);
        if team.len() > 1 {
            self.form(now_ms, token, id, kind, team);
        }
        for (worker, share) in team {
            let assignment = Box::new(Assignment {
                job: id.clone(),
                task: kind.id(),
                attempt,
                token,
                epoch: self.epoch,
                work: work.clone(),
                halfway,
                share: *share,
            });
            fx.push(Effect::Assign {
                worker: worker.clone(),
                assignment,
            });
        }
        fx.changed(id);
    }

    /// Ends a job that is not done, and tells its workers to stop.
    pub(crate) fn end_job(
        &mut self,
        id: &JobId,
        state: StoredState,
        error: String,
        fx: &mut Effects,
    ) {
        let kinds: Vec<_> = self.jobs[id].tasks.keys().copied().collect();
        for kind in kinds {
            self.recall(id, kind, None, fx);
            if self.jobs[id].tasks[&kind].status != Status::Done {
                let was_gang = self.withdraw(id, kind, fx);
                let task = self.task_mut(id, kind);
                task.status = Status::Waiting(usize::MAX);
                if was_gang {
                    // Its first rank alone has nothing to come back with.
                    task.record.token = None;
                    fx.write_task(id, kind, &task.record);
                }
            }
        }
        let job = self.job_mut(id);
        job.record.state = state;
        job.record.error = error;
        fx.write_job(id, &job.record);
        fx.changed(id);
    }

    pub(crate) fn fail_job(&mut self, id: &JobId, error: String, fx: &mut Effects) {
        self.end_job(id, StoredState::Failed, error, fx);
    }
}
