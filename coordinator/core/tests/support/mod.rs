//! A core with a database in memory and workers that make up results.
#![allow(dead_code)] // each test file uses its part

use longtake_common::ids::{Epoch, FencingToken, Hash, JobId, TaskId, WorkerId};
use longtake_common::spec::{Codec, Continuity, JobSpec, ModelRef, Sampling, Schedule};
use longtake_common::task::{Assignment, TaskOutput, Work};
use longtake_core::{Blame, Core, Effect, Effects, Event, JobView, Limits, Running, WorkerInfo};
use std::collections::BTreeMap;

pub fn spec(frames: u32) -> JobSpec {
    JobSpec {
        prompt: "a red circle moves right".into(),
        negative: String::new(),
        frames,
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

/// What any worker makes of a work: the same for equal work.
pub fn result(work: &Work) -> TaskOutput {
    let mut output = TaskOutput::default();
    let names: &[&str] = match work {
        Work::Text { .. } => &["text"],
        Work::Denoise {
            tail_frames: Some(_),
            first_pass: Some(_),
            ..
        } => &["latents", "tail", "tail_first"],
        Work::Denoise {
            tail_frames: Some(_),
            ..
        } => &["latents", "tail"],
        Work::Denoise { .. } => &["latents"],
        Work::Decode { .. } => &["head", "interior", "tail"],
        Work::Seam { .. } => &["chunk"],
        Work::Mux { .. } => &["video"],
    };
    for name in names {
        let artifact = Hash::of(format!("{name} of {}", work.key()).as_bytes());
        output.artifacts.insert((*name).to_owned(), artifact);
    }
    output.seconds.insert("pass1".to_owned(), 1.5);
    output
}

/// A core and everything around it, in one place and without time of its own.
pub struct Farm {
    pub core: Core,
    pub records: BTreeMap<String, Vec<u8>>,
    pub now_ms: u64,
    pub limits: Limits,
    epoch: u64,
    /// Assignments as workers got them, in order.
    pub assigned: Vec<(WorkerId, Assignment)>,
}

impl Farm {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let mut fx = Effects::new();
        let core = Core::restore(0, Epoch(1), limits, [], &mut fx).expect("nothing to restore");
        Self {
            core,
            records: BTreeMap::new(),
            now_ms: 0,
            limits,
            epoch: 1,
            assigned: Vec::new(),
        }
    }

    fn store(&mut self, fx: &mut Effects) -> Vec<Effect> {
        for (key, value) in fx.take_writes() {
            match value {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        let effects = fx.take();
        for effect in &effects {
            if let Effect::Assign { worker, assignment } = effect {
                self.assigned.push((worker.clone(), (**assignment).clone()));
            }
        }
        effects
    }

    /// Handles an event and stores what follows.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut fx = Effects::new();
        self.core.handle(self.now_ms, event, &mut fx);
        self.store(&mut fx)
    }

    /// The coordinator dies and another one starts from what is stored.
    pub fn restart(&mut self) -> Vec<Effect> {
        self.epoch += 1;
        let mut fx = Effects::new();
        let records = self.records.clone();
        let restored = Core::restore(
            self.now_ms,
            Epoch(self.epoch),
            self.limits,
            records,
            &mut fx,
        );
        self.core = restored.expect("its own records");
        self.store(&mut fx)
    }

    pub fn submit(&mut self, id: &str, spec: JobSpec) -> (JobId, bool) {
        let event = Event::Submit {
            job: JobId(id.into()),
            spec: Box::new(spec),
            isa: None,
            ranks: None,
        };
        let effects = self.handle(event);
        let submitted = effects.into_iter().find_map(|effect| match effect {
            Effect::Submitted { job, continued, .. } => Some((job, continued)),
            _ => None,
        });
        submitted.expect("a good job")
    }

    pub fn attach(&mut self, id: &str, running: Vec<Running>) -> Vec<Effect> {
        self.attach_as(id, worker_info(id), running)
    }

    pub fn attach_as(&mut self, id: &str, info: WorkerInfo, running: Vec<Running>) -> Vec<Effect> {
        let worker = WorkerId(id.into());
        self.handle(Event::Attach {
            worker,
            info,
            running,
        })
    }

    pub fn detach(&mut self, id: &str) -> Vec<Effect> {
        self.handle(Event::Detach {
            worker: WorkerId(id.into()),
        })
    }

    pub fn heartbeat(&mut self, id: &str, running: Vec<Running>) -> Vec<Effect> {
        self.handle(Event::Heartbeat {
            worker: WorkerId(id.into()),
            running,
            peak_rss_bytes: 0,
            leaving: false,
        })
    }

    /// Has a command followed.
    pub fn command(&mut self, event: Event) -> Vec<Effect> {
        assert_eq!(self.core.refusal(&event), None);
        self.handle(event)
    }

    /// Why a command is not followed. It changes nothing then.
    pub fn refused(&mut self, event: Event) -> String {
        let refusal = self.core.refusal(&event).expect("a refusal");
        let before = self.records.clone();
        self.handle(event);
        assert_eq!(before, self.records, "{refusal}");
        refusal
    }

    /// What there is to say about a job.
    pub fn explain(&self, job: &JobId) -> Vec<String> {
        self.core.explain(self.now_ms, job).expect("a job").reasons
    }

    pub fn done(&mut self, id: &str, assignment: &Assignment) -> Vec<Effect> {
        self.handle(Event::Done {
            worker: WorkerId(id.into()),
            job: assignment.job.clone(),
            task: assignment.task.clone(),
            token: assignment.token,
            output: Box::new(result(&assignment.work)),
        })
    }

    pub fn failed(&mut self, id: &str, assignment: &Assignment, retryable: bool) -> Vec<Effect> {
        self.handle(Event::Failed {
            worker: WorkerId(id.into()),
            job: assignment.job.clone(),
            task: assignment.task.clone(),
            token: assignment.token,
            error: "out of memory".into(),
            blame: if retryable { Blame::Try } else { Blame::Work },
            log: None,
        })
    }

    /// Lets `ms` pass in ticks of 250 ms.
    pub fn pass(&mut self, ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..ms / 250 {
            self.now_ms += 250;
            effects.extend(self.handle(Event::Tick));
        }
        effects
    }

    pub fn view(&self, job: &JobId) -> JobView {
        self.core.view(self.now_ms, job).expect("a job")
    }

    /// The latest assignment of a task.
    pub fn latest(&self, task: &str) -> (String, Assignment) {
        let mut assigned = self.assigned.iter().rev();
        let found = assigned.find(|(_, assignment)| assignment.task.0 == task);
        let (worker, assignment) = found.unwrap_or_else(|| panic!("{task} was not given out"));
        (worker.0.clone(), assignment.clone())
    }

    /// Finishes whatever is given out until nothing more is.
    pub fn run(&mut self) {
        let mut next = 0;
        while next < self.assigned.len() {
            let (worker, assignment) = self.assigned[next].clone();
            self.done(&worker.0, &assignment);
            next += 1;
        }
    }

    /// `worker task` for each assignment.
    pub fn log(&self) -> Vec<String> {
        let assigned = self.assigned.iter();
        assigned
            .map(|(worker, assignment)| format!("{worker} {}", assignment.task))
            .collect()
    }
}

/// A process of a name for each id `NAME#NUMBER`.
pub fn worker_info(id: &str) -> WorkerInfo {
    WorkerInfo {
        name: id.split('#').next().unwrap_or(id).to_owned(),
        isa: "avx2".into(),
        device: "cpu".into(),
        takes_paths: true,
        ranks: 1,
        ..WorkerInfo::default()
    }
}

pub fn running(assignment: &Assignment, progress: f64) -> Running {
    Running {
        job: assignment.job.clone(),
        task: assignment.task.clone(),
        token: assignment.token,
        progress,
        share: assignment.share,
    }
}

/// `ack task`, `revoke task`, `assign task`, `disconnect worker`: what workers are told.
pub fn told(effects: &[Effect]) -> Vec<String> {
    let say = |effect: &Effect| match effect {
        Effect::Assign { worker, assignment } => {
            Some(format!("{worker}: assign {}", assignment.task))
        }
        Effect::Revoke { worker, task, .. } => Some(format!("{worker}: revoke {task}")),
        Effect::Ack { worker, task, .. } => Some(format!("{worker}: ack {task}")),
        Effect::Disconnect { worker } => Some(format!("{worker}: disconnect")),
        _ => None,
    };
    effects.iter().filter_map(say).collect()
}

pub fn token(value: u64) -> FencingToken {
    FencingToken(value)
}

pub fn task(id: &str) -> TaskId {
    TaskId(id.into())
}
