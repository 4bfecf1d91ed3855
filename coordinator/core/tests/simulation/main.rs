//! Random histories: workers that vanish, come back, report twice, late or wrongly, and a
//! coordinator that is killed between any two steps. A failing seed replays exactly.

mod gangs;
mod invariants;
mod losses;
mod messages;
mod random;
#[path = "../support/mod.rs"]
mod support;
mod work;

use gangs::{Held, most_ranks};
use longtake_common::ids::{Epoch, FencingToken, Hash, JobId, TaskId, WorkerId};
use longtake_common::spec::{Continuity, JobSpec};
use longtake_common::task::{Assignment, Lane, TaskOutput, Work};
use longtake_core::plan::Source;
use longtake_core::{
    Blame, Core, Effect, Effects, Event, JobState, JobView, Limits, Running, WorkerInfo,
    WorkerState, plan, result_key,
};
use messages::{done, held, job};
use random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use support::{result, spec, worker_info};

type Key = (JobId, TaskId, FencingToken);

/// A connection; what is under way on it is lost when it breaks.
struct Link {
    worker: WorkerId,
    to_core: VecDeque<Event>,
    to_worker: VecDeque<Effect>,
}

/// A worker process.
struct Process {
    info: WorkerInfo,
    link: Option<Link>,
    held: BTreeMap<Key, Held>,
}

struct Simulation {
    random: Random,
    core: Core,
    records: BTreeMap<String, Vec<u8>>,
    now_ms: u64,
    epoch: u64,
    limits: Limits,
    processes: Vec<Process>,
    /// Ends of connections that the coordinator has yet to notice.
    broken: Vec<WorkerId>,
    next_link: u64,
    nonce: u64,
    last_token: FencingToken,
    /// Of the last assignment of each task.
    latest: BTreeMap<(JobId, TaskId), FencingToken>,
    /// Jobs that were seen at their end, and how they ended.
    ended: BTreeMap<JobId, JobState>,
    /// Jobs that a user cancelled, and has not tried again since.
    cancelled: BTreeSet<JobId>,
    /// Films before their last retakes, and the windows that were retaken since.
    retaken: BTreeMap<JobId, (Vec<Hash>, BTreeSet<u32>)>,
    /// Artifacts that the store has lost.
    lost: BTreeSet<Hash>,
    /// Results that were forgotten.
    forgotten: BTreeSet<String>,
    restarts: usize,
    retakes: usize,
    /// Losses that somebody noticed.
    losses: usize,
    /// Assignments of work that somebody had begun.
    gone_on: usize,
    /// Ranks of the jobs that want some.
    ranks: u32,
    /// Gangs of several processes that were given out.
    gangs: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        // High enough that bad luck alone never ends a job: liveness is checked below.
        let limits = Limits {
            failures_max: 10_000,
            losses_max: 10_000,
            remakes_max: 10_000,
            adopt_ms: if random.chance(50) { 3000 } else { 0 },
            ..Limits::default()
        };
        let mut fx = Effects::new();
        let core = Core::restore(0, Epoch(1), limits, [], &mut fx).expect("nothing to restore");
        let process = |i| Process {
            info: WorkerInfo {
                isa: if i % 3 == 2 { "avx512" } else { "avx2" }.into(),
                ranks: 1 + (i as u32 * 7 + seed as u32) % 3,
                gang_address: Some([10, 0, 0, i as u8].into()),
                machine: format!("m{}", i / 2),
                ..worker_info(&format!("w{i}"))
            },
            link: None,
            held: BTreeMap::new(),
        };
        let count = 1 + random.below(4);
        let processes: Vec<_> = (0..count).map(process).collect();
        let ranks = 1 + random.below(most_ranks(&processes) as usize) as u32;
        Self {
            random,
            core,
            records: BTreeMap::new(),
            now_ms: 0,
            epoch: 1,
            limits,
            processes,
            ranks,
            gangs: 0,
            broken: Vec::new(),
            next_link: 0,
            nonce: 0,
            last_token: FencingToken(0),
            latest: BTreeMap::new(),
            ended: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            retaken: BTreeMap::new(),
            lost: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            gone_on: 0,
            restarts: 0,
            retakes: 0,
            losses: 0,
        }
    }

    /// The coordinator handles an event, or is killed while doing so.
    fn handle(&mut self, event: Event, killed_percent: usize) {
        let mut fx = Effects::new();
        self.core.handle(self.now_ms, event, &mut fx);
        if self.random.chance(killed_percent) {
            return self.restart(); // before the commit: as if the event had never come
        }
        self.commit(&mut fx);
        if self.random.chance(killed_percent) {
            return self.restart(); // after it: nobody hears of what was stored
        }
        self.run_effects(fx.take());
        self.check();
    }

    fn commit(&mut self, fx: &mut Effects) {
        for (key, value) in fx.take_writes() {
            let Some(value) = value else {
                let forgotten = key.starts_with("memo/");
                assert!(forgotten || key.starts_with("drained/"), "{key} is removed");
                self.records.remove(&key);
                self.forgotten.insert(key);
                continue;
            };
            if key.starts_with("memo/") {
                // Workers make different bytes each time, so this would be another result.
                let before = self.records.get(&key);
                assert!(
                    before.is_none_or(|before| *before == value),
                    "{key} changed"
                );
            }
            self.records.insert(key, value);
        }
    }

    fn restart(&mut self) {
        self.restarts += 1;
        self.epoch += 1;
        for process in &mut self.processes {
            process.link = None;
        }
        self.broken.clear();
        let mut fx = Effects::new();
        let records = self.records.clone();
        let core = Core::restore(
            self.now_ms,
            Epoch(self.epoch),
            self.limits,
            records,
            &mut fx,
        );
        self.core = core.expect("its own records");
        self.commit(&mut fx);
        self.run_effects(fx.take());
        self.check();
    }

    fn run_effects(&mut self, effects: Vec<Effect>) {
        self.check_gangs(&effects);
        for effect in effects {
            let worker = match &effect {
                Effect::Assign { worker, assignment } => {
                    self.check_assignment(worker, assignment);
                    worker
                }
                Effect::Revoke { worker, .. }
                | Effect::Roster { worker, .. }
                | Effect::Go { worker, .. } => worker,
                Effect::Ack {
                    worker,
                    job,
                    task,
                    token,
                } => {
                    let latest = self.latest[&(job.clone(), task.clone())];
                    assert_eq!(
                        *token, latest,
                        "a report of {task} under an older token is taken"
                    );
                    worker
                }
                Effect::Disconnect { worker } => {
                    for process in &mut self.processes {
                        process.link.take_if(|link| link.worker == *worker);
                    }
                    continue;
                }
                _ => continue,
            };
            let links = self
                .processes
                .iter_mut()
                .filter_map(|process| process.link.as_mut());
            for link in links.filter(|link| link.worker == *worker) {
                link.to_worker.push_back(effect.clone());
            }
        }
    }

    // ---- what happens ----

    fn submit(&mut self, number: usize) {
        let spec = job(number);
        let id = JobId(format!("j{}", self.nonce));
        self.nonce += 1;
        let spec = Box::new(spec);
        let isa = None;
        let ranks = (number == 3).then_some(self.ranks);
        let event = Event::Submit {
            job: id,
            spec,
            isa,
            ranks,
        };
        self.handle(event, 2);
    }

    fn connect(&mut self, at: usize) {
        let process = &mut self.processes[at];
        if let Some(link) = process.link.take() {
            self.broken.push(link.worker);
        }
        let worker = WorkerId(format!("{}#{}", process.info.name, self.next_link));
        self.next_link += 1;
        let in_hand = held(process);
        let attach = Event::Attach {
            worker: worker.clone(),
            info: process.info.clone(),
            running: in_hand,
        };
        let mut to_core = VecDeque::from([attach]);
        for (key, held) in &process.held {
            let output = held.output.clone();
            to_core.extend(output.map(|output| done(&worker, key, output)));
        }
        let to_worker = VecDeque::new();
        process.link = Some(Link {
            worker,
            to_core,
            to_worker,
        });
        self.give_up_forming(at);
    }

    fn break_link(&mut self, at: usize) {
        if let Some(link) = self.processes[at].link.take() {
            // Half of the time nobody notices, and only the lease ends it.
            if self.random.chance(50) {
                self.broken.push(link.worker);
            }
        }
    }

    fn deliver_to_core(&mut self, at: usize, killed_percent: usize) -> bool {
        let link = self.processes[at].link.as_mut();
        let Some(event) = link.and_then(|link| link.to_core.pop_front()) else {
            return false;
        };
        if matches!(
            &event,
            Event::Failed {
                blame: Blame::Inputs(_),
                ..
            }
        ) {
            self.expect_loss();
        }
        self.handle(event, killed_percent);
        true
    }

    fn deliver_to_worker(&mut self, at: usize) -> bool {
        let process = &mut self.processes[at];
        let Some(effect) = process
            .link
            .as_mut()
            .and_then(|link| link.to_worker.pop_front())
        else {
            return false;
        };
        match effect {
            Effect::Assign { assignment, .. } => {
                let held = Held::new(&assignment);
                let Assignment {
                    job, task, token, ..
                } = *assignment;
                process.held.insert((job, task, token), held);
            }
            Effect::Revoke {
                job, task, token, ..
            } => {
                process.held.remove(&(job, task, token));
            }
            Effect::Ack {
                job, task, token, ..
            } => {
                let held = process.held.remove(&(job.clone(), task, token));
                if let Some(held) = held.filter(|held| held.output.is_some()) {
                    let key = self.memo_key(&job, &held.work);
                    assert!(
                        self.records.contains_key(&key) || self.forgotten.contains(&key),
                        "acknowledged before it was stored"
                    );
                }
            }
            other => self.hear_of_gang(at, other),
        }
        true
    }

    fn step(&mut self) {
        let at = self.random.below(self.processes.len());
        match self.random.below(100) {
            0..30 => {
                self.deliver_to_core(at, 1);
            }
            30..55 => {
                self.deliver_to_worker(at);
            }
            55..70 => self.finish(at),
            70..72 => {
                if let Some(key) = self.pick(at, false) {
                    let blame = self.bad_luck(at, &key);
                    self.fail(at, key, blame);
                }
            }
            72..82 => self.heartbeat(at),
            82..85 => self.break_link(at),
            85..88 => {
                if self.processes[at].link.is_none() || self.random.chance(10) {
                    self.connect(at);
                }
            }
            88 => {
                self.break_link(at);
                self.processes[at].held.clear(); // the process is killed and started again
            }
            89..91 => {
                if let Some(key) = self.pick(at, true) {
                    self.report(at, &key); // once more
                }
            }
            91..94 => {
                if let Some(worker) = self.broken.pop() {
                    self.handle(Event::Detach { worker }, 1);
                }
            }
            94..97 => {
                self.now_ms += if self.random.chance(3) { 20_000 } else { 250 };
                self.handle(Event::Tick, 1);
            }
            97 => {
                let number = self.random.below(4);
                self.submit(number);
            }
            _ => self.command(),
        }
    }

    /// A user or an operator does something, sensible or not.
    fn command(&mut self) {
        let jobs: Vec<_> = self.core.jobs().cloned().collect();
        if jobs.is_empty() {
            return;
        }
        let job = jobs[self.random.below(jobs.len())].clone();
        let name = self.processes[self.random.below(self.processes.len())]
            .info
            .name
            .clone();
        match self.random.below(50) {
            0 => self.cancel(job),
            40..45 => self.lose(&job),
            45..50 => {
                self.fetch(&job);
            }
            1..8 => self.handle(Event::Pause { job }, 1),
            8..20 => self.handle(Event::Resume { job }, 1),
            20..25 => self.reopen(Event::Retry { job: job.clone() }, &job),
            25..32 => self.retake(&job),
            32..35 => self.handle(Event::Drain { name }, 1),
            _ => self.handle(Event::Undrain { name }, 1),
        }
    }

    fn cancel(&mut self, job: JobId) {
        if !self.ended.contains_key(&job) {
            self.cancelled.insert(job.clone());
        }
        self.handle(Event::Cancel { job }, 0);
    }

    /// A job that has ended may go on after this.
    fn reopen(&mut self, event: Event, job: &JobId) {
        if self.core.refusal(&event).is_none() {
            self.ended.remove(job);
            self.cancelled.remove(job);
        }
        self.handle(event, 0);
    }

    fn retake(&mut self, job: &JobId) {
        let view = self.core.view(self.now_ms, job).expect("listed");
        let window = self.random.below(view.segments.len()) as u32;
        let event = Event::Retake {
            job: job.clone(),
            window,
            seed: self.random.chance(20).then_some(7),
            prompt: self.random.chance(30).then(|| "a blue square".to_owned()),
        };
        if self.core.refusal(&event).is_none() {
            let entry = self.retaken.entry(job.clone());
            let (_, windows) = entry.or_insert((view.chunks, BTreeSet::new()));
            windows.insert(window);
        }
        self.reopen(event, job);
    }

    /// Nothing bad happens any more: everything has to end.
    fn settle(&mut self) {
        for number in 0..4 {
            let event = Event::Submit {
                job: JobId(format!("last{number}")),
                spec: Box::new(job(number)),
                isa: None,
                ranks: (number == 3).then_some(self.ranks),
            };
            self.handle(event, 0);
        }
        self.settle_jobs();
    }

    fn settle_jobs(&mut self) {
        for job in self.core.jobs().cloned().collect::<Vec<_>>() {
            self.handle(Event::Resume { job }, 0);
        }
        for name in self
            .processes
            .iter()
            .map(|p| p.info.name.clone())
            .collect::<Vec<_>>()
        {
            self.handle(Event::Undrain { name }, 0);
        }
        for at in 0..self.processes.len() {
            self.connect(at);
        }
        for _ in 0..2000 {
            for at in 0..self.processes.len() {
                if self.processes[at].link.is_none() {
                    self.connect(at);
                }
                self.heartbeat(at);
                while self.deliver_to_core(at, 0) {}
                while self.deliver_to_worker(at) {}
                self.finish(at);
            }
            self.now_ms += 250;
            self.handle(Event::Tick, 0);
            if self.core.jobs().all(|job| self.ended.contains_key(job)) {
                return;
            }
        }
        let open = self.core.jobs().filter(|job| self.core.is_open(job));
        let why = open.map(|job| (job, self.core.explain(self.now_ms, job)));
        panic!("jobs are left: {:#?}", why.collect::<Vec<_>>());
    }
}

#[test]
fn every_history_ends_well() {
    let (mut restarts, mut assigned, mut retakes, mut losses) = (0, 0, 0, 0);
    let (mut gone_on, mut gangs) = (0, 0);
    for seed in 0..300 {
        let outcome = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            simulation.submit(0);
            for _ in 0..3000 {
                simulation.step();
            }
            simulation.settle();
            simulation.fetch_all();
            simulation.check_all_free();
            simulation.check_films();
            (
                simulation.restarts,
                simulation.last_token.0,
                simulation.retakes,
                simulation.losses,
                simulation.gone_on,
                simulation.gangs,
            )
        });
        let Ok((more_restarts, more_assigned, more_retakes, more_losses, more_gone_on, more_gangs)) =
            outcome
        else {
            panic!("seed {seed}")
        };
        gone_on += more_gone_on;
        losses += more_losses;
        gangs += more_gangs;
        restarts += more_restarts;
        assigned += more_assigned;
        retakes += more_retakes;
    }
    // Otherwise this would not have tested anything.
    assert!(restarts > 1000, "{restarts} restarts");
    assert!(assigned > 10_000, "{assigned} assignments");
    assert!(retakes > 100, "{retakes} retakes");
    assert!(losses > 300, "{losses} losses");
    assert!(gone_on > 100, "{gone_on} times gone on");
    assert!(gangs > 500, "{gangs} gangs");
}
