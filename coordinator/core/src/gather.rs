//! Which workers' ranks make a gang, and what a gang that waits keeps free for itself.
//!
//! A gang takes the device lanes of all its workers at once or of none. The ranks of a gang are of one
//! level, and all reach each other: they are a worker's own, or of workers of one machine, or of
//! workers that are reached from everywhere. Of what is free, the fewest workers are taken, and those of
//! one machine before others.
//!
//! The first task in the queue that waits for a gang keeps what is free of its circle from all that
//! comes after it, or single tasks would overtake it for ever. Only one task does so at a time and
//! nothing is remembered of it, so that two gangs cannot wait for each other.

use crate::dag::{self, TaskKind};
use crate::explain::some;
use crate::state::{Core, Job, Status};
use crate::workers::Worker;
use longtake_common::ids::{JobId, WorkerId};
use longtake_common::task::{Lane, Share};
use std::collections::{BTreeMap, BTreeSet};

/// Workers that take up a task, the one that leads first. Without a share, it is one that does it as it
/// likes.
pub(crate) type Team = Vec<(WorkerId, Option<Share>)>;

/// A worker that may be part of a gang.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    id: &'a WorkerId,
    ranks: u32,
    lacks_model: bool,
}

/// How far the ranks of a gang are from each other, the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Worker,
    Machine,
    Network,
}

/// What workers that can be in one gang have in common: reach, level, and the worker or machine.
type Circle<'a> = (Reach, &'a str, &'a str);

impl Worker {
    /// Ranks of a gang that it can be.
    fn ranks(&self) -> u32 {
        self.info.ranks.max(1)
    }

    fn circles<'a>(&'a self, id: &'a WorkerId) -> impl Iterator<Item = Circle<'a>> {
        let (isa, address) = (self.info.isa.as_str(), self.info.gang_address);
        let own = (Reach::Worker, isa, id.0.as_str());
        let machine = (Reach::Machine, isa, self.info.machine.as_str());
        let network = (Reach::Network, isa, "");
        let others = address.map(|_| machine).into_iter();
        let all = address.filter(|address| !address.is_loopback());
        [own].into_iter().chain(others).chain(all.map(|_| network))
    }
}

/// Takes as few workers as give so many ranks, and of these the ones with the least to spare.
fn pick<'a>(mut from: Vec<Candidate<'a>>, ranks: u32) -> Option<Vec<Candidate<'a>>> {
    from.sort_by_key(|candidate| (candidate.ranks, candidate.lacks_model, candidate.id));
    let (mut picked, mut left) = (Vec::new(), ranks);
    while left > 0 {
        let enough = from.iter().position(|candidate| candidate.ranks >= left);
        let most = from.last()?.ranks;
        let largest = || from.iter().position(|candidate| candidate.ranks == most);
        let candidate = from.remove(enough.or_else(largest)?);
        left = left.saturating_sub(candidate.ranks);
        picked.push(candidate);
    }
    Some(picked)
}

/// Shares out the ranks.
fn team(picked: &[Candidate<'_>], ranks: u32) -> Team {
    let mut first = 0;
    let share = |candidate: &Candidate<'_>| {
        let own = candidate.ranks.min(ranks - first);
        let share = Share { ranks, first, own };
        first += own;
        (candidate.id.clone(), Some(share))
    };
    picked.iter().map(share).collect()
}

fn total(circle: &[Candidate<'_>]) -> u32 {
    let ranks = circle.iter().map(|candidate| candidate.ranks);
    ranks.fold(0, u32::saturating_add)
}

impl Job {
    /// Ranks that are to share a task; `None` where its worker may choose.
    pub(crate) fn ranks(&self, kind: TaskKind) -> Option<u32> {
        match kind {
            // One rank encodes text.
            TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => {
                self.record.ranks.map(|_| 1)
            }
            _ => self
                .record
                .ranks
                .filter(|_| dag::lane(kind) == Lane::Device),
        }
    }

    /// Ranks that are to share a task, where that takes a gang.
    pub(crate) fn gang(&self, kind: TaskKind) -> Option<u32> {
        self.ranks(kind).filter(|ranks| *ranks > 1)
    }
}

impl Core {
    /// Workers that can be in one gang with each other, by what they have in common.
    fn circles<'a>(
        &'a self,
        job: &Job,
        is_meant: impl Fn(&WorkerId, &Worker) -> bool,
    ) -> BTreeMap<Circle<'a>, Vec<Candidate<'a>>> {
        let mut circles: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, worker) in self
            .workers
            .iter()
            .filter(|(id, worker)| is_meant(id, worker))
        {
            let candidate = Candidate {
                id,
                ranks: worker.ranks(),
                lacks_model: !worker.has_model(job),
            };
            for circle in worker.circles(id) {
                circles.entry(circle).or_default().push(candidate);
            }
        }
        circles
    }

    /// The circles that can give a task its gang sooner or later: of workers that it has not failed on,
    /// if they can.
    fn able<'a>(
        &'a self,
        job: &Job,
        kind: TaskKind,
        ranks: u32,
    ) -> BTreeMap<Circle<'a>, Vec<Candidate<'a>>> {
        let fits = |id: &WorkerId, worker: &Worker| {
            self.accepts(id) && self.fits(worker, Lane::Device, job)
        };
        let failed_on = &job.tasks[&kind].record.failed_on;
        let mut able = self.circles(job, |id, worker| {
            fits(id, worker) && !failed_on.contains(&worker.info.name)
        });
        able.retain(|_, circle| total(circle) >= ranks);
        if able.is_empty() && !failed_on.is_empty() {
            able = self.circles(job, fits);
            able.retain(|_, circle| total(circle) >= ranks);
        }
        able
    }

    /// Free workers for a task that `ranks` ranks share, but for those in `kept`.
    pub(crate) fn gather(
        &self,
        job: &Job,
        kind: TaskKind,
        ranks: u32,
        kept: &BTreeSet<WorkerId>,
    ) -> Option<Team> {
        let is_free = |candidate: &Candidate<'_>| {
            self.free[&Lane::Device].contains(candidate.id) && !kept.contains(candidate.id)
        };
        let able = self.able(job, kind, ranks).into_iter();
        let picked = able.filter_map(|((reach, ..), circle)| {
            let free = circle.into_iter().filter(is_free).collect();
            let picked = pick(free, ranks)?;
            let lacking = picked.iter().filter(|c| c.lacks_model).count();
            Some(((picked.len(), lacking, total(&picked), reach), picked))
        });
        // The first of equals.
        let best = picked.reduce(|best, other| if other.0 < best.0 { other } else { best });
        best.map(|(_, picked)| team(&picked, ranks))
    }

    /// The free workers that a task which cannot have its gang yet keeps for it: those of the circle
    /// that lacks least.
    pub(crate) fn keep_free(&self, job: &Job, kind: TaskKind, ranks: u32) -> BTreeSet<WorkerId> {
        let is_free = |c: &Candidate<'_>| self.free[&Lane::Device].contains(c.id);
        let able = self.able(job, kind, ranks).into_values();
        let free = able.map(|circle| circle.into_iter().filter(is_free).collect::<Vec<_>>());
        let nearest = free.reduce(|best, other| {
            if total(&other) > total(&best) {
                other
            } else {
                best
            }
        });
        let kept = nearest.unwrap_or_default().into_iter();
        kept.map(|candidate| candidate.id.clone()).collect()
    }

    /// Whether a job that is of no level yet may become one of this worker's: there has to be a gang of
    /// that level.
    pub(crate) fn may_pin(&self, job: &Job, worker: &Worker) -> bool {
        let Some(ranks) = job.record.ranks.filter(|ranks| *ranks > 1) else {
            return true;
        };
        let isa = &worker.info.isa;
        job.record.isa.is_some() || {
            let circles = self.circles(job, |_, other| other.info.isa == *isa);
            circles.values().any(|circle| total(circle) >= ranks)
        }
    }

    /// The task that keeps free workers for its gang, and which.
    pub(crate) fn keeper(&self) -> Option<(&JobId, TaskKind, BTreeSet<WorkerId>)> {
        self.ready[&Lane::Device].iter().find_map(|place| {
            let id = &self.job_by_seq[&place.seq];
            let job = &self.jobs[id];
            let ranks = job.gang(place.kind)?;
            let kept = self.keep_free(job, place.kind, ranks);
            (!kept.is_empty()).then_some((id, place.kind, kept))
        })
    }

    /// Why a job is not taken whose windows more ranks are to share than the connected workers can give
    /// to one gang. Where there are no workers at all, some may yet come.
    pub(crate) fn refuse_ranks(&self, isa: Option<&str>, job: &Job) -> Option<String> {
        let ranks = job.record.ranks.filter(|ranks| *ranks > 1)?;
        let is_meant = |_: &WorkerId, worker: &Worker| isa.is_none_or(|isa| worker.info.isa == isa);
        self.too_few(job, ranks, is_meant)
    }

    /// What there is instead of so many ranks for one gang, and what would work; `None` when there are
    /// enough, or no workers.
    fn too_few(
        &self,
        job: &Job,
        ranks: u32,
        is_meant: impl Fn(&WorkerId, &Worker) -> bool,
    ) -> Option<String> {
        let circles = self.circles(job, &is_meant);
        let most = circles.values().map(|circle| total(circle)).max()?;
        if most >= ranks {
            return None;
        }
        let meant = self
            .workers
            .iter()
            .filter(|(id, worker)| is_meant(id, worker));
        let offers = meant.map(|(_, worker)| {
            let reached = match worker.info.gang_address {
                None => "by itself".to_owned(),
                Some(address) if address.is_loopback() => "reached on its machine".to_owned(),
                Some(address) => format!("reached at {address}"),
            };
            let info = &worker.info;
            format!(
                "{} gives {} on {}, {reached}",
                info.name,
                worker.ranks(),
                info.isa
            )
        });
        Some(format!(
            "{ranks} ranks are to share each window, and the connected workers give at most {most} to one gang, whose ranks are of one level and reach each other ({}): use --ranks {most} or fewer, or start more workers of a level, on several machines with --gang-address",
            some(offers.collect())
        ))
    }

    /// What stands between a ready task and its gang; `None` when no worker could be part of one.
    pub(crate) fn gang_obstacle(&self, id: &JobId, job: &Job, kind: TaskKind) -> Option<String> {
        let ranks = job.gang(kind)?;
        let is_meant = |worker: &WorkerId, state: &Worker| {
            self.accepts(worker) && self.fits(state, Lane::Device, job)
        };
        if let Some(sentence) = self.too_few(job, ranks, is_meant) {
            return Some(format!("can begin, but {sentence}"));
        }
        let meant = self
            .workers
            .iter()
            .filter(|(id, worker)| is_meant(id, worker));
        let (free, busy): (Vec<_>, Vec<_>) =
            meant.partition(|(id, _)| self.free[&Lane::Device].contains(*id));
        if free.is_empty() && busy.is_empty() {
            return None;
        }
        let count: u32 = free.iter().map(|(_, worker)| worker.ranks()).sum();
        let free = free
            .iter()
            .map(|(_, worker)| format!("{} of {}", worker.ranks(), worker.info.name));
        let free = match count {
            0 => "none is free".to_owned(),
            _ => format!("{count} are free ({})", some(free.collect())),
        };
        let busy = busy.iter().map(|(_, worker)| self.business(id, worker));
        let busy = match some(busy.collect()) {
            busy if busy.is_empty() => String::new(),
            busy => format!("; {busy}"),
        };
        Some(format!("wants {ranks} ranks at once, and {free}{busy}"))
    }

    /// What a busy worker's device does, for the owner of job `id`.
    fn business(&self, id: &JobId, worker: &Worker) -> String {
        let followed = worker.follows.and_then(|gang| self.gangs.get(&gang));
        let followed = followed.map(|gang| (&gang.job, gang.kind));
        let led = worker
            .lanes
            .get(&Lane::Device)
            .map(|(job, kind)| (job, *kind));
        match led.or(followed) {
            Some((of, kind)) if of == id => format!("{} does {kind}", worker.info.name),
            Some((of, kind)) => format!("{} does {kind} of {of}", worker.info.name),
            None => format!("{} is busy", worker.info.name),
        }
    }

    /// Why a ready task has no worker although one is free.
    pub(crate) fn kept_sentence(&self, id: &JobId) -> Option<String> {
        let (of, kind, kept) = self.keeper()?;
        let names = kept
            .iter()
            .map(|worker| self.workers[worker].info.name.clone());
        let of = match of == id {
            true => String::new(),
            false => format!(" of {of}"),
        };
        Some(format!(
            "can begin, but {} is kept for {kind}{of}, which came first and waits for a gang",
            some(names.collect())
        ))
    }

    /// What a gang that forms is still waiting for.
    pub(crate) fn forming_sentence(&self, job: &Job, kind: TaskKind) -> Option<String> {
        let task = &job.tasks[&kind];
        let gang = self.gangs.get(&task.record.token?)?;
        let missing = gang.missing();
        if !matches!(task.status, Status::Running(_)) || missing.is_empty() {
            return None;
        }
        let names = missing
            .iter()
            .map(|worker| match self.workers.get(*worker) {
                Some(state) => state.info.name.clone(),
                None => worker.to_string(),
            });
        let what = if gang.is_seating() { "load" } else { "join" };
        Some(format!(
            "the gang of {kind} forms: {} has yet to {what}",
            some(names.collect())
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_workers_with_the_least_to_spare_are_picked() {
        let ids: Vec<_> = ["a", "b", "c", "d"].map(|id| WorkerId(id.into())).into();
        let check = |offers: [u32; 4], ranks, expected: &[&str]| {
            let candidates = ids.iter().zip(offers).map(|(id, ranks)| Candidate {
                id,
                ranks,
                lacks_model: false,
            });
            let picked = pick(candidates.collect(), ranks).unwrap_or_default();
            let names: Vec<_> = picked.iter().map(|c| c.id.0.as_str()).collect();
            assert_eq!(names, expected, "{offers:?} for {ranks}");
            let shares = team(&picked, ranks);
            let own = shares.iter().map(|(_, share)| share.expect("a gang").own);
            assert_eq!(
                own.sum::<u32>(),
                if expected.is_empty() { 0 } else { ranks }
            );
        };
        check([4, 2, 1, 8], 2, &["b"]);
        check([4, 2, 1, 8], 3, &["a"]);
        check([1, 2, 2, 1], 4, &["b", "c"]);
        check([1, 3, 2, 1], 4, &["b", "a"]);
        check([1, 1, 1, 1], 4, &["a", "b", "c", "d"]);
        check([1, 1, 1, 1], 5, &[]);
    }
}
