//! One event after the other.

use crate::dag::{self, TaskKind};
use crate::effects::{Blame, Effect, Effects, Event, Running};
use crate::state::{Core, Finish, Halfway, Status};
use crate::workers::{Worker, WorkerInfo};
use longtake_common::ids::{FencingToken, JobId, TaskId, WorkerId};
use longtake_common::task::{Lane, Share, TaskOutput};
use std::collections::BTreeSet;

/// Where a report stands against what the core knows.
pub(crate) enum Claim {
    /// It is about work that was given out last under this token and is not done.
    Current(TaskKind),
    /// It is about the result that was taken: an earlier answer got lost.
    Settled,
    /// The task was given out again since, or there is no such task, or nobody wants it any more.
    Stale,
}

impl Core {
    /// Takes note of an event and of the time in milliseconds, which never runs backwards. What
    /// follows is added to `fx`: store its writes first, then run its effects.
    pub fn handle(&mut self, now_ms: u64, event: Event, fx: &mut Effects) {
        match event {
            Event::Submit { .. }
            | Event::Cancel { .. }
            | Event::Pause { .. }
            | Event::Resume { .. }
            | Event::Retry { .. }
            | Event::Retake { .. }
            | Event::Drain { .. }
            | Event::Undrain { .. }
            | Event::AddModel { .. }
            | Event::RemoveModel { .. }
            | Event::ModelFault { .. } => self.command(event, fx),
            Event::Attach {
                worker,
                info,
                running,
            } => self.attach(now_ms, worker, info, running, fx),
            Event::Detach { worker } => self.lose_worker(&worker, fx),
            Event::Heartbeat {
                worker,
                running,
                peak_rss_bytes,
                leaving,
            } => {
                if self.sign_of_life(now_ms, &worker, peak_rss_bytes, leaving, fx) {
                    self.name_work(now_ms, &worker, running, fx);
                }
            }
            Event::Done {
                worker,
                job,
                task,
                token,
                output,
            } => {
                self.done(now_ms, worker, job, task, token, *output, fx);
            }
            Event::Failed {
                worker,
                job,
                task,
                token,
                error,
                blame,
                log,
            } => {
                if let Some(kind) = self.answer(&worker, &job, &task, token, fx) {
                    self.keep_log(&job, kind, log);
                    self.failed(&worker, &job, kind, error, blame, fx);
                }
            }
            Event::Seated {
                worker,
                gang,
                seats,
                key,
            } => self.seated(now_ms, &worker, gang, seats, key, fx),
            Event::Joined { worker, gang } => self.joined(&worker, gang, fx),
            Event::WorkerModels {
                worker,
                models,
                fetching,
            } => self.note_models(&worker, models, fetching),
            Event::Lost {
                artifacts,
                wanted_of,
            } => self.forget(&artifacts, wanted_of.as_ref(), fx),
            Event::Tick => self.tick(now_ms, fx),
        }
        self.schedule(now_ms, fx);
    }

    fn attach(
        &mut self,
        now_ms: u64,
        worker: WorkerId,
        mut info: WorkerInfo,
        running: Vec<Running>,
        fx: &mut Effects,
    ) {
        if self.workers.contains_key(&worker) {
            // Ids are not used twice. Keeping neither of the two is safe, whatever went wrong.
            self.lose_worker(&worker, fx);
            return fx.push(Effect::Disconnect { worker });
        }
        let earlier = self.earlier_connections(&info);
        let instance = info.instance.clone();
        let models = std::mem::take(&mut info.models);
        self.workers
            .insert(worker.clone(), Worker::new(now_ms, info));
        self.note_models(&worker, models, None);
        self.refresh(&worker);
        for running in running {
            if !self.adopt(now_ms, &worker, &running, fx) {
                let Running {
                    job, task, token, ..
                } = running;
                fx.push(Effect::Revoke {
                    worker: worker.clone(),
                    job,
                    task,
                    token,
                });
            }
        }
        // The same process had a connection that broke without a word. What it still has, it has
        // named, so nothing is lost with that one.
        for before in earlier {
            self.lose_worker(&before, fx);
            fx.push(Effect::Disconnect { worker: before });
        }
        self.absolve(&instance, fx);
    }

    /// A worker came back with work in hand. It keeps what nobody else was given since.
    fn adopt(
        &mut self,
        now_ms: u64,
        worker: &WorkerId,
        running: &Running,
        fx: &mut Effects,
    ) -> bool {
        if let Some(share) = running.share.filter(Share::follows) {
            return self.rejoin(worker, running, share);
        }
        let id = &running.job;
        let kind = match self.claim(id, &running.task, running.token) {
            Claim::Current(kind) => kind,
            // Its report will come again and be answered then.
            Claim::Settled => return true,
            Claim::Stale => return false,
        };
        let task = &self.jobs[id].tasks[&kind];
        let Some((_, lane)) = task.work else {
            return false;
        };
        let state = &self.workers[worker];
        let follows = lane == Lane::Device && state.follows.is_some();
        if follows || state.lanes.contains_key(&lane) {
            return false;
        }
        self.unlink(id, kind);
        self.hold(now_ms, worker, id, kind);
        if let Some(share) = running.share.filter(|share| !share.is_whole()) {
            self.enter(worker, running.token, id, kind, share);
        }
        let info = &self.workers[worker].info;
        let (name, instance) = (info.name.clone(), info.instance.clone());
        let task = self.task_mut(id, kind);
        task.progress = if running.progress > 0.0 {
            running.progress.min(1.0)
        } else {
            0.0
        };
        task.record.in_flight = true;
        task.record.worker = name;
        // It was not lost after all.
        task.record.lost_with.remove(&instance);
        fx.write_task(id, kind, &task.record);
        fx.changed(id);
        true
    }

    pub(crate) fn claim(&self, id: &JobId, task: &TaskId, token: FencingToken) -> Claim {
        let found = TaskKind::parse(&task.0).and_then(|kind| {
            let job = self.jobs.get(id)?;
            Some((kind, job, job.tasks.get(&kind)?))
        });
        match found {
            Some((_, _, task)) if task.record.token != Some(token) => Claim::Stale,
            Some((_, _, task)) if task.status == Status::Done => Claim::Settled,
            Some((kind, job, task)) if job.is_open() && task.is_as_given() => Claim::Current(kind),
            _ => Claim::Stale,
        }
    }

    /// Answers a report. Returns the task if the report is to be acted upon.
    fn answer(
        &self,
        worker: &WorkerId,
        job: &JobId,
        task: &TaskId,
        token: FencingToken,
        fx: &mut Effects,
    ) -> Option<TaskKind> {
        let claim = self.claim(job, task, token);
        let (worker, job, task) = (worker.clone(), job.clone(), task.clone());
        match claim {
            Claim::Stale => {
                fx.push(Effect::Revoke {
                    worker,
                    job,
                    task,
                    token,
                });
                None
            }
            Claim::Settled => {
                fx.push(Effect::Ack {
                    worker,
                    job,
                    task,
                    token,
                });
                None
            }
            Claim::Current(kind) => {
                fx.push(Effect::Ack {
                    worker,
                    job,
                    task,
                    token,
                });
                Some(kind)
            }
        }
    }

    fn done(
        &mut self,
        now_ms: u64,
        worker: WorkerId,
        id: JobId,
        task: TaskId,
        token: FencingToken,
        output: TaskOutput,
        fx: &mut Effects,
    ) {
        let Some(kind) = self.answer(&worker, &id, &task, token, fx) else {
            return;
        };
        let job = &self.jobs[&id];
        let expected = dag::outputs(&job.record.spec, &job.plan, kind);
        let missing = expected
            .into_iter()
            .find(|name| !output.artifacts.contains_key(*name));
        if let Some(name) = missing {
            let error = format!("the worker's result has no '{name}'");
            return self.failed(&worker, &id, kind, error, Blame::Try, fx);
        }
        self.withdraw(&id, kind, fx);
        let task = &self.jobs[&id].tasks[&kind];
        let (key, _) = task.work.expect("it was given out");
        let elapsed_ms = task
            .assigned_ms
            .map(|then_ms| now_ms.saturating_sub(then_ms));
        // The first result of equal work stays, so that everybody goes on from the same one.
        let output = self.memo.entry(key).or_insert(TaskOutput {
            worker: task.record.worker.clone(),
            ..output
        });
        fx.write_memo(key, output);
        self.complete(
            &id,
            kind,
            Finish {
                key,
                reused: false,
                elapsed_ms,
            },
            fx,
        );
    }

    fn failed(
        &mut self,
        worker: &WorkerId,
        id: &JobId,
        kind: TaskKind,
        error: String,
        blame: Blame,
        fx: &mut Effects,
    ) {
        let peer = match blame {
            Blame::Peer(rank) => self.peer(id, kind, rank),
            _ => None,
        };
        let token = self.jobs[id].tasks[&kind].record.token;
        self.recall(id, kind, Some(worker), fx);
        self.withdraw(id, kind, fx);
        if let (Blame::Gang, Some(token)) = (&blame, token) {
            return self.count_lost_gang(id, kind, token, error, fx);
        }
        let name = (self.workers.get(worker)).map(|worker| worker.info.name.clone());
        // Who cannot be reached is not asked again while there are others.
        let (name, error) = match peer {
            Some(peer) => (Some(peer.clone()), unreached(&peer, &error)),
            None => (name, error),
        };
        let task = self.task_mut(id, kind);
        task.record.in_flight = false;
        // The report is settled: a second one for the same token must not count again.
        task.record.token = None;
        if let Blame::Leaving(halfway) = &blame {
            let of = task.record.given;
            let left = of.zip(*halfway);
            let left = left.map(|(of, artifact)| Halfway { of, artifact });
            // One that has not come further keeps what was left to it.
            task.record.halfway = left.or(task.record.halfway.take());
            fx.write_task(id, kind, &task.record);
            fx.changed(id);
            return self.requeue(id, kind, fx);
        }
        task.record.last_error.clone_from(&error);
        if let Blame::Inputs(lost) = &blame
            && self.can_remake(id, kind, lost)
        {
            let task = self.task_mut(id, kind);
            fx.write_task(id, kind, &task.record);
            fx.changed(id);
            self.requeue(id, kind, fx);
            return self.forget(lost, None, fx);
        }
        // What it was done from may be why.
        self.task_mut(id, kind).record.halfway = None;
        if blame == Blame::Place {
            let task = self.task_mut(id, kind);
            fx.write_task(id, kind, &task.record);
            fx.changed(id);
            self.rest(worker, error);
            return self.requeue(id, kind, fx);
        }
        let failures_max = self.limits.failures_max;
        let task = self.task_mut(id, kind);
        task.record.failures += 1;
        task.record.failed_on.extend(name.clone());
        let failures = task.record.failures;
        fx.write_task(id, kind, &task.record);
        fx.changed(id);
        if blame != Blame::Work && failures < failures_max {
            return self.requeue(id, kind, fx);
        }
        let tries = if failures > 1 {
            format!(" after {failures} tries")
        } else {
            String::new()
        };
        let name = name.unwrap_or_else(|| "a lost worker".to_owned());
        // Nothing of it is queued or held any more, so ending the job only touches the others.
        self.task_mut(id, kind).status = Status::Waiting(0);
        self.fail_job(id, format!("{kind} failed on {name}{tries}: {error}"), fx);
    }

    /// Notes that a worker lives. False when it is not one of ours.
    fn sign_of_life(
        &mut self,
        now_ms: u64,
        worker: &WorkerId,
        peak_rss_bytes: u64,
        leaving: bool,
        fx: &mut Effects,
    ) -> bool {
        let Some(state) = self.workers.get_mut(worker) else {
            fx.push(Effect::Disconnect {
                worker: worker.clone(),
            });
            return false;
        };
        state.last_seen_ms = now_ms;
        state.peak_rss_bytes = state.peak_rss_bytes.max(peak_rss_bytes);
        state.leaving |= leaving;
        self.refresh(worker);
        true
    }

    /// A worker names what it has in hand.
    fn name_work(
        &mut self,
        now_ms: u64,
        worker: &WorkerId,
        running: Vec<Running>,
        fx: &mut Effects,
    ) {
        for running in running {
            if !self.still_held(now_ms, worker, &running, fx) {
                let Running {
                    job, task, token, ..
                } = running;
                fx.push(Effect::Revoke {
                    worker: worker.clone(),
                    job,
                    task,
                    token,
                });
            }
        }
        self.drop_forgotten(now_ms, worker, fx);
    }

    /// Notes the progress of work that its worker named. False when it is not its work any more.
    fn still_held(
        &mut self,
        now_ms: u64,
        worker: &WorkerId,
        running: &Running,
        fx: &mut Effects,
    ) -> bool {
        if let Some(share) = running.share.filter(Share::follows) {
            let follows = self.workers[worker].follows == Some(running.token);
            return follows || self.rejoin(worker, running, share);
        }
        let kind = match self.claim(&running.job, &running.task, running.token) {
            Claim::Current(kind) => kind,
            Claim::Settled => return true,
            Claim::Stale => return false,
        };
        let task = self.task_mut(&running.job, kind);
        match &task.status {
            Status::Running(holder) if holder == worker => {
                task.seen_ms = now_ms;
                // `max` would let a NaN pass.
                if running.progress > task.progress {
                    task.progress = running.progress.min(1.0);
                    fx.changed(&running.job);
                }
                true
            }
            // Its later connection has it.
            Status::Running(_) => true,
            _ => self.adopt(now_ms, worker, running, fx),
        }
    }

    /// Work that its worker has not named for a lease is not being done.
    fn drop_forgotten(&mut self, now_ms: u64, worker: &WorkerId, fx: &mut Effects) {
        let held: Vec<_> = self.workers[worker].lanes.values().cloned().collect();
        for (id, kind) in held {
            let task = &self.jobs[&id].tasks[&kind];
            if now_ms.saturating_sub(task.seen_ms) > self.limits.lease_ms {
                self.lose_task(&id, kind, fx);
            }
        }
    }

    /// A worker is gone: others do what it had.
    fn lose_worker(&mut self, worker: &WorkerId, fx: &mut Effects) {
        let Some(state) = self.workers.get(worker) else {
            return;
        };
        let held: Vec<_> = state.lanes.values().cloned().collect();
        let (follows, name) = (state.follows, state.info.name.clone());
        for (id, kind) in held {
            self.lose_task(&id, kind, fx);
        }
        if let Some(gang) = follows {
            self.lose_gang(gang, format!("{name} was lost, which had a part in it"), fx);
        }
        self.note_models(worker, BTreeSet::new(), None);
        self.workers.remove(worker);
        for free in self.free.values_mut() {
            free.remove(worker);
        }
    }

    fn lose_task(&mut self, id: &JobId, kind: TaskKind, fx: &mut Effects) {
        let holder = match &self.jobs[id].tasks[&kind].status {
            Status::Running(worker) => self.workers.get(worker),
            _ => None,
        };
        // One that was told to stop goes when its time is up.
        let ended = holder.filter(|worker| !worker.leaving);
        let ended = ended.map(|worker| worker.info.instance.clone());
        let was_gang = self.withdraw(id, kind, fx);
        let task = self.task_mut(id, kind);
        task.record.in_flight = false;
        task.record.lost_with.extend(ended);
        if was_gang {
            // Its first rank alone has nothing to come back with.
            task.record.token = None;
        }
        self.after_loss(id, kind, fx);
    }

    /// Has others do a task that was lost, unless it was lost too often.
    pub(crate) fn after_loss(&mut self, id: &JobId, kind: TaskKind, fx: &mut Effects) {
        let losses_max = self.limits.losses_max as usize;
        let task = self.task_mut(id, kind);
        let (losses, name) = (task.record.lost_with.len(), task.record.worker.clone());
        fx.write_task(id, kind, &task.record);
        fx.changed(id);
        if losses <= losses_max {
            return self.requeue(id, kind, fx);
        }
        let what = match task.record.has_lost_gang() {
            false => format!(
                "{losses} workers ended without a word while they did {kind}, the last of them {name}"
            ),
            true => format!(
                "{losses} gangs ended while they did {kind}, the last of them led by {name} ({})",
                task.record.last_error
            ),
        };
        let error = format!(
            "{what}: it may be what ends them, so see their logs (out of memory?), then 'longtake retry {id}'"
        );
        self.task_mut(id, kind).status = Status::Waiting(0);
        self.fail_job(id, error, fx);
    }

    /// A process that had been lost is back: it did not die of what it had in hand.
    fn absolve(&mut self, instance: &str, fx: &mut Effects) {
        for (id, job) in self.jobs.iter_mut().filter(|(_, job)| job.is_open()) {
            for (kind, task) in &mut job.tasks {
                if task.record.lost_with.remove(instance) {
                    fx.write_task(id, *kind, &task.record);
                }
            }
        }
    }

    fn tick(&mut self, now_ms: u64, fx: &mut Effects) {
        let gap_ms = now_ms.saturating_sub(self.last_tick_ms);
        self.last_tick_ms = now_ms;
        if gap_ms > self.limits.lease_ms / 2 {
            // It was this process that stood still, so silence says nothing about the workers.
            return self.extend_leases(gap_ms);
        }
        let lease_ms = self.limits.lease_ms;
        let workers = self.workers.iter();
        let silent =
            workers.filter(|(_, state)| now_ms.saturating_sub(state.last_seen_ms) > lease_ms);
        let lost: Vec<_> = silent.map(|(worker, _)| worker.clone()).collect();
        for worker in lost {
            self.lose_worker(&worker, fx);
            fx.push(Effect::Disconnect { worker });
        }
        self.wake(now_ms);
        self.end_late_gangs(now_ms, fx);
        for (id, kind) in self.orphans.clone() {
            let task = &self.jobs[&id].tasks[&kind];
            if matches!(task.status, Status::Orphan { until_ms } if now_ms >= until_ms) {
                if self.withdraw(&id, kind, fx) {
                    self.task_mut(&id, kind).record.token = None;
                }
                self.requeue(&id, kind, fx);
            }
        }
    }

    fn extend_leases(&mut self, gap_ms: u64) {
        self.extend_gangs(gap_ms);
        for worker in self.workers.values_mut() {
            worker.last_seen_ms += gap_ms;
            for (id, kind) in worker.lanes.values() {
                let job = self.jobs.get_mut(id).expect("jobs are never removed");
                job.tasks
                    .get_mut(kind)
                    .expect("tasks of a plan never change")
                    .seen_ms += gap_ms;
            }
        }
        for (id, kind) in self.orphans.clone() {
            if let Status::Orphan { until_ms } = &mut self.task_mut(&id, kind).status {
                *until_ms += gap_ms;
            }
        }
    }
}

fn unreached(peer: &str, error: &str) -> String {
    format!(
        "{error}: {peer} cannot be reached from there, start it with a --gang-address that the other workers reach"
    )
}
