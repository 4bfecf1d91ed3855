//! Tasks that several workers do together: how their ranks find each other, and what ends it.
//!
//! Every worker of a gang gets the same assignment, each with its share of the ranks. The worker with
//! rank 0 holds the task and answers for it; the device lanes of the others follow. A gang forms in two
//! steps: all ranks have loaded what they need and can be reached, whereupon all are told where the
//! others are; all have joined, whereupon the first is told to begin. The token of the assignment is the
//! gang's name in every message: none before had it, so that what comes too late is about no gang.
//!
//! Whatever goes wrong with a part of it ends the whole gang. All its workers are told to stop, and the
//! task is queued again. Gangs are not stored: a coordinator that starts anew learns of those that
//! are at work from their workers.

use crate::dag::TaskKind;
use crate::effects::{Effect, Effects, Running};
use crate::gather::Team;
use crate::handle::Claim;
use crate::state::{Core, Status};
use longtake_common::ids::{FencingToken, JobId, WorkerId};
use longtake_common::task::{Lane, Share};
use std::net::SocketAddr;

/// Several workers at one task.
#[derive(Clone, Debug)]
pub(crate) struct Gang {
    pub job: JobId,
    pub kind: TaskKind,
    members: Vec<Member>,
    phase: Phase,
}

#[derive(Clone, Debug)]
struct Member {
    worker: WorkerId,
    share: Share,
    /// Where its ranks are reached, once that is known.
    seats: Vec<SocketAddr>,
    joined: bool,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Not all can be reached yet. The first worker's key is kept for the others.
    Seating { key: Vec<u8>, until_ms: u64 },
    /// All know of each other, and not all have joined.
    Joining { until_ms: u64 },
    /// At work.
    Going,
}

impl Gang {
    fn member(&mut self, worker: &WorkerId) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.worker == *worker)
    }

    pub(crate) fn is_seating(&self) -> bool {
        matches!(self.phase, Phase::Seating { .. })
    }

    /// Those that the gang waits for.
    pub(crate) fn missing(&self) -> Vec<&WorkerId> {
        let is_missing = |member: &&Member| match self.phase {
            Phase::Seating { .. } => member.seats.is_empty(),
            Phase::Joining { .. } => !member.joined,
            Phase::Going => false,
        };
        let missing = self.members.iter().filter(is_missing);
        missing.map(|member| &member.worker).collect()
    }

    fn until_ms(&mut self) -> Option<&mut u64> {
        match &mut self.phase {
            Phase::Seating { until_ms, .. } | Phase::Joining { until_ms } => Some(until_ms),
            Phase::Going => None,
        }
    }
}

impl Core {
    /// Which ranks of a task under `token` a worker is.
    pub(crate) fn share(&self, token: Option<FencingToken>, worker: &WorkerId) -> Option<Share> {
        let gang = self.gangs.get(&token?)?;
        let mut members = gang.members.iter();
        let member = members.find(|member| member.worker == *worker);
        member.map(|member| member.share)
    }

    /// The name of the worker with this rank of a task's gang.
    pub(crate) fn peer(&self, id: &JobId, kind: TaskKind, rank: u32) -> Option<String> {
        let gang = self.gangs.get(&self.jobs[id].tasks[&kind].record.token?)?;
        let mut members = gang.members.iter();
        let member = members.find(|Member { share, .. }| {
            (share.first..share.first.saturating_add(share.own)).contains(&rank)
        });
        let state = self.workers.get(&member?.worker)?;
        Some(state.info.name.clone())
    }

    /// Has workers form a gang under a token that was just made. The first holds the task already.
    pub(crate) fn form(
        &mut self,
        now_ms: u64,
        token: FencingToken,
        id: &JobId,
        kind: TaskKind,
        team: &Team,
    ) {
        let member = |(worker, share): &(WorkerId, Option<Share>)| {
            Some(Member {
                worker: worker.clone(),
                share: (*share)?,
                seats: Vec::new(),
                joined: false,
            })
        };
        let gang = Gang {
            job: id.clone(),
            kind,
            members: team.iter().filter_map(member).collect(),
            phase: Phase::Seating {
                key: Vec::new(),
                until_ms: now_ms + self.limits.seat_ms,
            },
        };
        self.gangs.insert(token, gang);
        for (worker, _) in &team[1..] {
            self.follow(worker, token);
        }
    }

    fn follow(&mut self, worker: &WorkerId, token: FencingToken) {
        let state = self.workers.get_mut(worker);
        let state = state.expect("only attached workers are in gangs");
        let is_free = !state.lanes.contains_key(&Lane::Device);
        let before = state.follows.replace(token);
        assert!(
            is_free && before.is_none_or(|before| before == token),
            "a lane does one thing at a time"
        );
        self.refresh(worker);
    }

    fn leave(&mut self, worker: &WorkerId, token: FencingToken) {
        if let Some(state) = self.workers.get_mut(worker)
            && state.follows == Some(token)
        {
            state.follows = None;
            self.refresh(worker);
        }
    }

    /// A worker's ranks can be reached.
    pub(crate) fn seated(
        &mut self,
        now_ms: u64,
        worker: &WorkerId,
        token: FencingToken,
        seats: Vec<SocketAddr>,
        key: Vec<u8>,
        fx: &mut Effects,
    ) {
        let until_ms = now_ms + self.limits.join_ms;
        let Some(gang) = self.gangs.get_mut(&token).filter(|gang| gang.is_seating()) else {
            return; // of a gang that has ended
        };
        let Some(member) = gang.member(worker) else {
            return;
        };
        let share = member.share;
        if seats.len() != share.own as usize {
            let story = format!(
                "{worker} gave {} addresses for {} ranks",
                seats.len(),
                share.own
            );
            return self.lose_gang(token, story, fx);
        }
        member.seats = seats;
        if !share.follows()
            && let Phase::Seating { key: kept, .. } = &mut gang.phase
        {
            *kept = key;
        }
        if !gang.missing().is_empty() {
            return;
        }
        let Phase::Seating { key, .. } =
            std::mem::replace(&mut gang.phase, Phase::Joining { until_ms })
        else {
            return;
        };
        let seats: Vec<_> = gang.members.iter().flat_map(|m| m.seats.clone()).collect();
        for member in &gang.members {
            fx.push(Effect::Roster {
                worker: member.worker.clone(),
                gang: token,
                seats: seats.clone(),
                key: key.clone(),
            });
        }
    }

    /// A worker's ranks have joined the others.
    pub(crate) fn joined(&mut self, worker: &WorkerId, token: FencingToken, fx: &mut Effects) {
        let Some(gang) = self.gangs.get_mut(&token) else {
            return;
        };
        if !matches!(gang.phase, Phase::Joining { .. }) {
            return;
        }
        if let Some(member) = gang.member(worker) {
            member.joined = true;
        }
        if gang.missing().is_empty() {
            gang.phase = Phase::Going;
            let worker = gang.members[0].worker.clone();
            fx.push(Effect::Go {
                worker,
                gang: token,
            });
        }
    }

    /// A worker that came back has ranks of a gang in hand. It keeps them while the task is in the same
    /// gang's hands.
    pub(crate) fn rejoin(&mut self, worker: &WorkerId, running: &Running, share: Share) -> bool {
        let (id, token) = (&running.job, running.token);
        let Claim::Current(kind) = self.claim(id, &running.task, token) else {
            return false;
        };
        let status = &self.jobs[id].tasks[&kind].status;
        let is_at_work = matches!(status, Status::Running(_) | Status::Orphan { .. });
        let state = &self.workers[worker];
        let is_free = !state.lanes.contains_key(&Lane::Device)
            && state.follows.is_none_or(|gang| gang == token);
        if !is_at_work || !is_free {
            return false;
        }
        if let Some(before) = self.enter(worker, token, id, kind, share) {
            self.leave(&before, token);
        }
        self.follow(worker, token);
        true
    }

    /// Notes that a worker has this share of a gang, in the place of its earlier connection, which is
    /// returned. A gang that is not known was formed before this coordinator started.
    pub(crate) fn enter(
        &mut self,
        worker: &WorkerId,
        token: FencingToken,
        id: &JobId,
        kind: TaskKind,
        share: Share,
    ) -> Option<WorkerId> {
        let gang = self.gangs.entry(token).or_insert_with(|| Gang {
            job: id.clone(),
            kind,
            members: Vec::new(),
            phase: Phase::Going,
        });
        let mut members = gang.members.iter_mut();
        match members.find(|member| member.share.first == share.first) {
            Some(member) if member.worker == *worker => None,
            Some(member) => Some(std::mem::replace(&mut member.worker, worker.clone())),
            None => {
                gang.members.push(Member {
                    worker: worker.clone(),
                    share,
                    seats: Vec::new(),
                    joined: true,
                });
                None
            }
        }
    }

    /// Tells those who follow that a gang is over, and has their lanes free again. Says whether there was
    /// such a gang.
    pub(crate) fn dissolve(&mut self, token: FencingToken, fx: &mut Effects) -> bool {
        let Some(gang) = self.gangs.remove(&token) else {
            return false;
        };
        let followers = gang.members.iter().filter(|member| member.share.follows());
        for Member { worker, .. } in followers {
            self.leave(worker, token);
            fx.push(Effect::Revoke {
                worker: worker.clone(),
                job: gang.job.clone(),
                task: gang.kind.id(),
                token,
            });
        }
        true
    }

    /// A gang has lost a part of it, or does not come together.
    pub(crate) fn lose_gang(&mut self, token: FencingToken, story: String, fx: &mut Effects) {
        let Some(gang) = self.gangs.get(&token) else {
            return;
        };
        let (id, kind) = (gang.job.clone(), gang.kind);
        self.recall(&id, kind, None, fx);
        self.withdraw(&id, kind, fx);
        self.count_lost_gang(&id, kind, token, story, fx);
    }

    /// Tells the worker that holds a task to stop, unless it is the one that knows.
    pub(crate) fn recall(
        &mut self,
        id: &JobId,
        kind: TaskKind,
        knows: Option<&WorkerId>,
        fx: &mut Effects,
    ) {
        let task = &self.jobs[id].tasks[&kind];
        if let (Status::Running(worker), Some(token)) = (&task.status, task.record.token)
            && knows != Some(worker)
        {
            fx.push(Effect::Revoke {
                worker: worker.clone(),
                job: id.clone(),
                task: kind.id(),
                token,
            });
        }
    }

    /// Queues a withdrawn task again whose gang has ended. That is no failed try, but a task may be what
    /// ends its gangs.
    pub(crate) fn count_lost_gang(
        &mut self,
        id: &JobId,
        kind: TaskKind,
        token: FencingToken,
        story: String,
        fx: &mut Effects,
    ) {
        let task = self.task_mut(id, kind);
        task.record.in_flight = false;
        task.record.token = None;
        task.record.lose_gang(token, story);
        self.after_loss(id, kind, fx);
    }

    /// Ends the gangs that do not come together in time.
    pub(crate) fn end_late_gangs(&mut self, now_ms: u64, fx: &mut Effects) {
        let late = self.gangs.iter_mut().filter_map(|(token, gang)| {
            let is_late = gang.until_ms().is_some_and(|until_ms| now_ms >= *until_ms);
            is_late.then_some(*token)
        });
        for token in late.collect::<Vec<_>>() {
            let gang = &self.gangs[&token];
            let what = if gang.is_seating() {
                "loaded"
            } else {
                "joined"
            };
            let missing = gang.missing().into_iter().map(|worker| worker.to_string());
            let missing = missing.collect::<Vec<_>>().join(", ");
            let story = format!("{missing} has not {what} in time for the gang");
            self.lose_gang(token, story, fx);
        }
    }

    /// Time in which nobody could be heard does not count.
    pub(crate) fn extend_gangs(&mut self, gap_ms: u64) {
        for until_ms in self.gangs.values_mut().filter_map(Gang::until_ms) {
            *until_ms += gap_ms;
        }
    }
}
