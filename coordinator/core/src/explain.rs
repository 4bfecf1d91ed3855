//! Why a job is where it is: an answer to "why is this waiting?".

use crate::dag::{self, TaskKind};
use crate::state::{Core, Job, Status, StoredState, Task};
use crate::view::JobState;
use crate::workers::Worker;
use longtake_common::ids::{JobId, WorkerId};
use longtake_common::task::Lane;

/// Most tasks of one sort that are named one by one.
const NAMED_MAX: usize = 4;

/// What there is to say about a job, in sentences for its user, the most important first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// How far the job is.
    pub state: JobState,
    /// Sentences.
    pub reasons: Vec<String>,
}

impl Core {
    /// Explains a job's state, if there is such a job.
    pub fn explain(&self, now_ms: u64, id: &JobId) -> Option<Explanation> {
        let job = self.jobs.get(id)?;
        let reasons = match job.record.state {
            StoredState::Open => self.explain_open(now_ms, id, job),
            StoredState::Done => vec![format!(
                "the film is complete: 'longtake download {id}' fetches it"
            )],
            StoredState::Failed => vec![
                job.record.error.clone(),
                format!("'longtake retry {id}' goes on from what is stored"),
            ],
            StoredState::Cancelled => vec![format!(
                "a user cancelled it: 'longtake retry {id}' goes on from what is stored"
            )],
        };
        Some(Explanation {
            state: job.state(),
            reasons,
        })
    }

    fn explain_open(&self, now_ms: u64, id: &JobId, job: &Job) -> Vec<String> {
        let mut reasons = Vec::new();
        if job.record.paused {
            reasons.push(format!(
                "it is paused: nothing more of it is given out until 'longtake resume {id}'"
            ));
        }
        let with = |wanted: fn(&Status) -> bool| {
            let tasks = job
                .tasks
                .iter()
                .filter(move |(_, task)| wanted(&task.status));
            tasks.collect::<Vec<_>>()
        };
        let ready = with(|status| *status == Status::Ready);
        if !job.record.paused && !ready.is_empty() {
            reasons.extend(self.explain_ready(id, job, &ready));
        }
        let running = with(|status| matches!(status, Status::Running(_)));
        for (kind, task) in running {
            reasons.push(running_sentence(*kind, task));
            reasons.extend(self.fetching_sentence(job, task));
            reasons.extend(self.forming_sentence(job, *kind));
        }
        for (kind, task) in with(|status| matches!(status, Status::Orphan { .. })) {
            reasons.extend(orphan_sentence(now_ms, *kind, task));
        }
        let waiting = with(|status| matches!(status, Status::Waiting(_)));
        reasons.extend(waiting_sentence(job, &waiting));
        reasons.extend(
            job.tasks
                .iter()
                .filter_map(|(kind, task)| failure_sentence(*kind, task)),
        );
        reasons
    }

    /// Why tasks that have all they need are in nobody's hands.
    fn explain_ready(&self, id: &JobId, job: &Job, ready: &[(&TaskKind, &Task)]) -> Vec<String> {
        let mut reasons = Vec::new();
        for lane in [Lane::Device, Lane::Host] {
            let of_lane = ready
                .iter()
                .filter(|(_, task)| task.work.is_some_and(|(_, of)| of == lane));
            let (gangs, kinds): (Vec<_>, Vec<_>) =
                (of_lane.map(|(kind, _)| **kind)).partition(|kind| job.gang(*kind).is_some());
            if let Some(&first) = gangs.first() {
                let obstacle = self.gang_obstacle(id, job, first);
                let obstacle = obstacle.unwrap_or_else(|| self.obstacle(id, job, lane));
                reasons.push(format!("{} {obstacle}", names(&gangs)));
            }
            if !kinds.is_empty() {
                reasons.push(format!(
                    "{} {}",
                    names(&kinds),
                    self.obstacle(id, job, lane)
                ));
            }
        }
        reasons
    }

    /// What stands between a ready task and a worker.
    fn obstacle(&self, id: &JobId, job: &Job, lane: Lane) -> String {
        if self.workers.is_empty() {
            return "can begin, but no worker is connected: start one with 'longtake worker'"
                .to_owned();
        }
        let (fitting, others): (Vec<_>, Vec<_>) = self
            .workers
            .iter()
            .partition(|(_, worker)| self.fits(worker, lane, job));
        let has_level = |worker: &Worker| worker.has_level(lane, job);
        let of_level = others.iter().map(|(_, worker)| *worker);
        let largest = of_level.filter(|worker| has_level(worker));
        if let (true, Some(largest)) = (
            fitting.is_empty(),
            largest.max_by_key(|worker| (worker.has_memory(job), worker.info.memory_bytes)),
        ) {
            return match largest.has_memory(job) {
                true => model_sentence(job),
                false => Self::memory_sentence(job, largest),
            };
        }
        if fitting.is_empty() {
            let isa = job.record.isa.as_deref().unwrap_or_default();
            let others = others
                .iter()
                .map(|(_, worker)| format!("{} ({})", worker.info.name, worker.info.isa));
            return format!(
                "can begin, but the job is rendered on {isa} and no worker of that level is connected, only {}",
                some(others.collect())
            );
        }
        let accepting: Vec<_> = fitting
            .into_iter()
            .filter(|(worker, _)| self.accepts(worker))
            .collect();
        if let (true, Some(trouble)) = (accepting.is_empty(), self.troubles().next()) {
            return format!("can begin, but {trouble}");
        }
        if accepting.is_empty() {
            return "can begin, but every worker that could do it is drained or about to leave: \
                    'longtake workers resume NAME' lets one work again"
                .to_owned();
        }
        let is_free = |worker: &WorkerId| self.free[&lane].contains(worker);
        if let (true, Some(kept)) = (
            accepting.iter().any(|(worker, _)| is_free(worker)),
            self.kept_sentence(id),
        ) {
            return kept;
        }
        let busy = accepting.iter().filter_map(|(worker, state)| {
            let followed = state.follows.and_then(|gang| self.gangs.get(&gang));
            let followed = followed.map(|gang| (gang.job.clone(), gang.kind));
            let followed = followed.as_ref().filter(|_| lane == Lane::Device);
            let (of, kind) = state.lanes.get(&lane).or(followed)?;
            let job = if of == id {
                String::new()
            } else {
                format!(" of {of}")
            };
            let percent = self.percent(of, *kind);
            Some(format!(
                "{} does {kind}{job} ({percent}%)",
                self.name(worker)
            ))
        });
        format!(
            "can begin, but all workers are busy: {}",
            some(busy.collect())
        )
    }

    /// A worker that has to fetch the model first.
    fn fetching_sentence(&self, job: &Job, task: &Task) -> Option<String> {
        let Status::Running(worker) = &task.status else {
            return None;
        };
        let fetching = self.workers.get(worker)?.fetching.as_ref()?;
        let mut hashes = job.record.spec.model_hashes();
        hashes.any(|hash| hash == fetching.hash).then(|| {
            format!(
                "{} is fetching the model: {} of {} MiB are there",
                self.name(worker),
                fetching.done_bytes >> 20,
                fetching.total_bytes >> 20
            )
        })
    }

    /// What keeps workers from being given anything for a while.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = String> {
        self.workers.values().filter_map(|worker| {
            let (_, trouble) = worker.trouble.as_ref()?;
            let name = &worker.info.name;
            Some(format!(
                "{name} has no room to work: {trouble}; free some space, and it goes on by itself"
            ))
        })
    }

    fn name(&self, worker: &WorkerId) -> &str {
        &self.workers[worker].info.name
    }

    fn percent(&self, id: &JobId, kind: TaskKind) -> u32 {
        percent(&self.jobs[id].tasks[&kind])
    }
}

/// None of the workers that could do it has the model.
fn model_sentence(job: &Job) -> String {
    let model = &job.record.spec.model;
    format!(
        "can begin, but no worker that could do it has the model '{}' ({}), and it is not stored \
         here: 'longtake models add PATH' stores it, 'longtake worker --model PATH' has it",
        model.location,
        model.hash.short()
    )
}

fn percent(task: &Task) -> u32 {
    (100.0 * task.progress) as u32
}

fn running_sentence(kind: TaskKind, task: &Task) -> String {
    format!(
        "{kind} is being done by {} ({}%)",
        task.record.worker,
        percent(task)
    )
}

fn orphan_sentence(now_ms: u64, kind: TaskKind, task: &Task) -> Option<String> {
    let Status::Orphan { until_ms } = task.status else {
        return None;
    };
    let left_s = until_ms.saturating_sub(now_ms).div_ceil(1000);
    Some(format!(
        "{kind} was in the hands of {} when the coordinator was started again: it is kept for that \
         worker for {left_s} s more",
        task.record.worker
    ))
}

/// The first task that waits for others, and how many more there are.
fn waiting_sentence(job: &Job, waiting: &[(&TaskKind, &Task)]) -> Option<String> {
    let first = waiting
        .iter()
        .map(|(kind, _)| **kind)
        .min_by_key(|kind| kind.priority())?;
    let inputs = dag::inputs(&job.record.spec, &job.plan, first).into_iter();
    let missing: Vec<_> = inputs
        .filter(|input| job.tasks[input].status != Status::Done)
        .collect();
    let more = match waiting.len() - 1 {
        0 => String::new(),
        more => format!("; {more} more tasks wait for what comes before them"),
    };
    Some(format!("{first} waits for {}{more}", names(&missing)))
}

fn failure_sentence(kind: TaskKind, task: &Task) -> Option<String> {
    let record = &task.record;
    let times = |count: u32| {
        if count == 1 {
            "once".to_owned()
        } else {
            format!("{count} times")
        }
    };
    let unfinished = task.status != Status::Done;
    if unfinished && record.failures > 0 {
        let on: Vec<_> = record.failed_on.iter().cloned().collect();
        return Some(format!(
            "{kind} failed {} (on {}), the last time with: {}",
            times(record.failures),
            some(on),
            record.last_error
        ));
    }
    let losses = record.lost_with.len() as u32;
    (unfinished && losses > 0).then(|| match record.has_lost_gang() {
        false => format!("{kind} lost its worker {}", times(losses)),
        true => format!(
            "{kind} lost its gang or worker {}, and is done again: {}",
            times(losses),
            record.last_error
        ),
    })
}

fn names(kinds: &[TaskKind]) -> String {
    some(kinds.iter().map(TaskKind::to_string).collect())
}

/// The first few of a list, and how many more there are.
pub(crate) fn some(mut items: Vec<String>) -> String {
    let more = items.len().saturating_sub(NAMED_MAX);
    items.truncate(NAMED_MAX);
    let list = items.join(", ");
    match more {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}
