//! What users and operators ask for.

use crate::dag;
use crate::effects::{Effect, Effects, Event};
use crate::plan::Take;
use crate::record::PLAN_VERSION;
use crate::state::{Core, Job, JobRecord, Status, StoredState, Task, TaskRecord};
use longtake_common::ids::JobId;
use longtake_common::request::PROMPT_BYTES_MAX;
use longtake_common::spec::JobSpec;
use longtake_common::task::ENGINE;
use std::collections::BTreeMap;

impl Core {
    /// Why a user's or operator's event would not be followed, as a sentence for him; `None` when
    /// it would be. Jobs that are not there are not told of here, nor are submissions.
    pub fn refusal(&self, event: &Event) -> Option<String> {
        match event {
            Event::Pause { job } => self.jobs.get(job)?.refuse_pause(job),
            Event::Resume { job } => self.jobs.get(job)?.refuse_resume(job),
            Event::Retry { job } => {
                let of = self.jobs.get(job)?;
                of.refuse_retry(job)
                    .or_else(|| self.refuse_models(&of.record.spec))
            }
            Event::Retake {
                job,
                window,
                prompt,
                ..
            } => self
                .jobs
                .get(job)?
                .refuse_retake(job, *window, prompt.as_deref()),
            Event::Drain { name } => self.refuse_worker(name, false),
            Event::Undrain { name } => self.refuse_worker(name, true),
            _ => self.refuse_model_command(event),
        }
    }

    pub(crate) fn command(&mut self, event: Event, fx: &mut Effects) {
        if self.refusal(&event).is_some() {
            return;
        }
        match event {
            Event::Submit {
                job,
                spec,
                isa,
                ranks,
            } => self.submit(job, *spec, isa, ranks, fx),
            Event::Drain { name } => self.set_drained(name, true, fx),
            Event::Undrain { name } => self.set_drained(name, false, fx),
            Event::Cancel { job } if self.jobs.get(&job).is_some_and(Job::is_open) => {
                self.end_job(&job, StoredState::Cancelled, String::new(), fx);
            }
            Event::Pause { job } if self.has_job(&job) => self.pause(&job, fx),
            Event::Resume { job } if self.has_job(&job) => self.resume(&job, fx),
            Event::Retry { job } if self.has_job(&job) => self.retry(&job, fx),
            Event::Retake {
                job,
                window,
                seed,
                prompt,
            } if self.has_job(&job) => self.retake(&job, window, seed, prompt, fx),
            _ => self.model_command(event, fx),
        }
    }

    fn submit(
        &mut self,
        proposed: JobId,
        spec: JobSpec,
        isa: Option<String>,
        ranks: Option<u32>,
        fx: &mut Effects,
    ) {
        if let Err(error) = spec.check() {
            return fx.push(Effect::Refused {
                proposed,
                error: error.to_string(),
            });
        }
        if let Some(error) = self.refuse_unknown_level(isa.as_deref()) {
            return fx.push(Effect::Refused { proposed, error });
        }
        if let Some(error) = self.refuse_models(&spec) {
            return fx.push(Effect::Refused { proposed, error });
        }
        let mut jobs = self.jobs.iter();
        if let Some((id, _)) = jobs.find(|(_, job)| job.is_open() && job.serves(&spec, &isa)) {
            let job = id.clone();
            if let Some(error) = self.set_ranks(&job, ranks, fx) {
                return fx.push(Effect::Refused { proposed, error });
            }
            self.mark_reused(&job, fx);
            return fx.push(Effect::Submitted {
                proposed,
                job,
                continued: true,
            });
        }
        if self.jobs.contains_key(&proposed) {
            let error = format!("the job id {proposed} is in use: submit again");
            return fx.push(Effect::Refused { proposed, error });
        }
        let record = JobRecord {
            seq: self.next_seq,
            plan_version: PLAN_VERSION,
            engine: ENGINE.to_owned(),
            spec,
            state: StoredState::Open,
            error: String::new(),
            paused: false,
            isa,
            ranks,
            takes: BTreeMap::new(),
        };
        let job = Job::new(record);
        let isa = job.record.isa.as_deref();
        let refusal = (self.refuse_absent_level(isa))
            .or_else(|| self.refuse_memory(isa, &job))
            .or_else(|| self.refuse_ranks(isa, &job));
        if let Some(error) = refusal {
            return fx.push(Effect::Refused { proposed, error });
        }
        self.next_seq += 1;
        fx.write_meta(self);
        fx.write_job(&proposed, &job.record);
        self.job_by_seq.insert(job.record.seq, proposed.clone());
        self.jobs.insert(proposed.clone(), job);
        self.open_all(&proposed, fx);
        fx.changed(&proposed);
        fx.push(Effect::Submitted {
            job: proposed.clone(),
            proposed,
            continued: false,
        });
    }

    /// Has what is left of a job done by as many ranks as its user now wants, if he says. Returns why
    /// it cannot be.
    fn set_ranks(&mut self, id: &JobId, ranks: Option<u32>, fx: &mut Effects) -> Option<String> {
        ranks.filter(|_| self.jobs[id].record.ranks != ranks)?;
        let before = std::mem::replace(&mut self.job_mut(id).record.ranks, ranks);
        let job = &self.jobs[id];
        if let Some(error) = self.refuse_ranks(job.record.isa.as_deref(), job) {
            self.job_mut(id).record.ranks = before;
            return Some(error);
        }
        fx.write_job(id, &job.record);
        None
    }

    /// Whoever submits a job again sees what was there already as reused.
    fn mark_reused(&mut self, id: &JobId, fx: &mut Effects) {
        for (kind, task) in &mut self.job_mut(id).tasks {
            if let Some(finish) = task.record.finish.as_mut().filter(|finish| !finish.reused) {
                finish.reused = true;
                fx.write_task(id, *kind, &task.record);
            }
        }
        fx.changed(id);
    }

    /// Nothing more is given out; what runs is finished, for it may have cost much already.
    fn pause(&mut self, id: &JobId, fx: &mut Effects) {
        let job = &self.jobs[id];
        let queued = job.tasks.iter().filter_map(|(kind, task)| {
            let (_, lane) = task.work.filter(|_| task.status == Status::Ready)?;
            Some((lane, self.place(job, *kind)))
        });
        for (lane, place) in queued.collect::<Vec<_>>() {
            self.queue(lane).remove(&place);
        }
        self.set_paused(id, true, fx);
    }

    fn resume(&mut self, id: &JobId, fx: &mut Effects) {
        self.set_paused(id, false, fx);
        let job = &self.jobs[id];
        let ready = job.tasks.iter().filter_map(|(kind, task)| {
            let (_, lane) = task.work.filter(|_| task.status == Status::Ready)?;
            Some((lane, self.place(job, *kind)))
        });
        for (lane, place) in ready.collect::<Vec<_>>() {
            self.enqueue(lane, place);
        }
    }

    fn set_paused(&mut self, id: &JobId, paused: bool, fx: &mut Effects) {
        let job = self.job_mut(id);
        job.record.paused = paused;
        fx.write_job(id, &job.record);
        fx.changed(id);
    }

    /// What is done stays done. A worker that was away may come back with what it has.
    fn retry(&mut self, id: &JobId, fx: &mut Effects) {
        self.forgive(id, fx, |_| {});
        self.reopen(id, fx);
    }

    /// What is not done is tried as if for the first time.
    fn forgive(&mut self, id: &JobId, fx: &mut Effects, also: impl Fn(&mut TaskRecord)) {
        for (kind, task) in &mut self.job_mut(id).tasks {
            let record = &mut task.record;
            if task.status != Status::Done && record.attempts > 0 {
                (record.failures, record.remakes) = (0, 0);
                record.lost_with.clear();
                record.failed_on.clear();
                record.last_error.clear();
                also(record);
                fx.write_task(id, *kind, record);
            }
        }
    }

    fn retake(
        &mut self,
        id: &JobId,
        window: u32,
        seed: Option<u64>,
        prompt: Option<String>,
        fx: &mut Effects,
    ) {
        let job = self.job_mut(id);
        let take = job.next_take(window, seed, prompt);
        job.plan.apply(window, &take);
        job.record.takes.insert(window, take);
        for kind in dag::retaken(&job.plan, window) {
            let task = Task::new(0);
            fx.write_task(id, kind, &task.record);
            job.tasks.insert(kind, task);
        }
        // What is left of an earlier take may have other inputs now: without a token nobody can
        // come back with what was made of the old ones.
        self.forgive(id, fx, |record| {
            (record.token, record.in_flight) = (None, false);
        });
        self.reopen(id, fx);
    }

    /// An ended job goes on with what is not done.
    fn reopen(&mut self, id: &JobId, fx: &mut Effects) {
        let job = self.job_mut(id);
        job.record.state = StoredState::Open;
        job.record.paused = false;
        job.record.error.clear();
        fx.write_job(id, &job.record);
        fx.changed(id);
        self.open_all(id, fx);
    }

    /// Opens every unfinished task that waits for nothing.
    pub(crate) fn open_all(&mut self, id: &JobId, fx: &mut Effects) {
        for kind in self.job_mut(id).recount() {
            // The first may have led to the others already.
            if self.jobs[id].tasks[&kind].status == Status::Waiting(0) {
                self.open_task(id, kind, fx);
            }
        }
    }

    fn refuse_worker(&self, name: &str, drained: bool) -> Option<String> {
        let is_known = self.workers.values().any(|worker| worker.info.name == name)
            || (drained && self.drained.contains(name));
        (!is_known).then(|| {
            format!(
                "there is no worker '{name}' here: 'longtake workers list' shows those there are"
            )
        })
    }

    fn set_drained(&mut self, name: String, drained: bool, fx: &mut Effects) {
        fx.write_drained(&name, drained);
        if drained {
            self.drained.insert(name.clone());
        } else {
            self.drained.remove(&name);
        }
        let named = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.info.name == name);
        for worker in named.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.refresh(&worker);
        }
    }
}

impl Job {
    /// Whether this job makes the very film that is asked for. One with a window that was rendered
    /// anew makes another.
    fn serves(&self, spec: &JobSpec, isa: &Option<String>) -> bool {
        let fits = isa.is_none() || *isa == self.record.isa;
        fits && self.record.takes.is_empty() && self.record.spec == *spec
    }

    fn refuse_pause(&self, id: &JobId) -> Option<String> {
        (!self.is_open()).then(|| {
            format!(
                "job {id} is {}: there is nothing to pause",
                self.state().name()
            )
        })
    }

    fn refuse_resume(&self, id: &JobId) -> Option<String> {
        match self.record.state {
            StoredState::Open => None,
            StoredState::Done => Some(format!("job {id} is done: there is nothing to resume")),
            StoredState::Failed | StoredState::Cancelled => Some(format!(
                "job {id} is {}, not paused: 'longtake retry {id}' goes on with it",
                self.state().name()
            )),
        }
    }

    fn refuse_retry(&self, id: &JobId) -> Option<String> {
        match self.record.state {
            StoredState::Done => Some(format!("job {id} is done: there is nothing to try again")),
            StoredState::Open => Some(format!(
                "job {id} is {}: only a failed or cancelled job can be tried again",
                self.state().name()
            )),
            StoredState::Failed | StoredState::Cancelled => self.refuse_old(id),
        }
    }

    fn refuse_retake(&self, id: &JobId, window: u32, prompt: Option<&str>) -> Option<String> {
        let count = self.plan.window_count();
        let size = prompt.map_or(0, str::len);
        if window >= count {
            return Some(format!(
                "job {id} has no segment {window}: it has {count}, numbered from 0"
            ));
        }
        if size > PROMPT_BYTES_MAX {
            return Some(format!(
                "the prompt has {size} bytes, more than the {PROMPT_BYTES_MAX} that are taken: shorten it"
            ));
        }
        if self.is_open() {
            return Some(format!(
                "job {id} is {}: wait until it ends ('longtake watch {id}'), then retake",
                self.state().name()
            ));
        }
        let was_complete = self.record.state == StoredState::Done || !self.record.takes.is_empty();
        if !was_complete {
            return Some(format!(
                "job {id} is {} and its film was never complete: 'longtake retry {id}' goes on with it",
                self.state().name()
            ));
        }
        self.refuse_old(id)
    }

    /// Why nothing more of the job can be made: it would not fit what is there.
    pub(crate) fn refuse_old(&self, id: &JobId) -> Option<String> {
        let engine = &self.record.engine;
        if self.record.plan_version != PLAN_VERSION {
            return Some(format!(
                "job {id} was planned by another version of longtake: submit it again"
            ));
        }
        (engine != ENGINE).then(|| {
            format!(
                "job {id} was rendered by longtake {engine}, and this is {ENGINE}: one film is of one engine, so submit it again"
            )
        })
    }

    fn next_take(&self, window: u32, seed: Option<u64>, prompt: Option<String>) -> Take {
        let before = self.record.takes.get(&window);
        let number = before.map_or(0, |take| take.number) + 1;
        let windows = &self.plan.windows;
        let current = windows[window as usize].seed;
        // First windows draw from seed + index, so whole rounds of the windows never meet them;
        // shots with seeds of their own may lie in the way.
        let fresh = (u64::from(number)..).map(|round| {
            let offset = u64::from(window) + round * windows.len() as u64;
            self.record.spec.seed.wrapping_add(offset)
        });
        let mut fresh = fresh.filter(|seed| windows.iter().all(|window| window.seed != *seed));
        let fresh = fresh.next().expect("there are more seeds than windows");
        let unless_given = if prompt.is_some() { current } else { fresh };
        Take {
            number,
            seed: seed.unwrap_or(unless_given),
            prompt: prompt.or_else(|| before.and_then(|take| take.prompt.clone())),
        }
    }
}
