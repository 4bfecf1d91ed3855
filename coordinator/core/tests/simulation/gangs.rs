//! Tasks that several processes do together.

use super::*;
use longtake_common::task::Share;

/// How far a process is with what it has in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Taken,
    Seated,
    /// It knows where the others are.
    Called,
    Joined,
    /// It leads, and all are there.
    Going,
}

/// Work in a process's hands.
pub struct Held {
    pub work: Work,
    pub share: Option<Share>,
    pub stage: Stage,
    /// Once it is done.
    pub output: Option<TaskOutput>,
}

impl Held {
    pub fn new(assignment: &Assignment) -> Self {
        Self {
            work: assignment.work.clone(),
            share: assignment.share,
            stage: Stage::Taken,
            output: None,
        }
    }

    /// The share of a gang of several processes.
    pub fn part(&self) -> Option<Share> {
        self.share.filter(|share| !share.is_whole())
    }

    /// Whether its gang needs the coordinator to come together.
    fn is_forming(&self) -> bool {
        self.part().is_some_and(|share| match share.follows() {
            true => self.stage < Stage::Joined,
            false => self.stage < Stage::Going,
        })
    }
}

/// The most ranks that processes like these give to one gang.
pub fn most_ranks(processes: &[Process]) -> u32 {
    let of = |isa: &str| -> u32 {
        let alike = processes.iter().filter(|process| process.info.isa == isa);
        alike.map(|process| process.info.ranks).sum()
    };
    of("avx2").max(of("avx512"))
}

impl Simulation {
    /// Goes on with a part of a gang. Returns true when it may be finished like any other work.
    pub(super) fn take_part(&mut self, at: usize, key: &Key) -> bool {
        let Some(share) = self.processes[at].held[key].part() else {
            return true;
        };
        let is_whole = self.is_whole(key, share);
        let process = &mut self.processes[at];
        let held = process.held.get_mut(key).expect("picked");
        let gang = key.2;
        match held.stage {
            Stage::Taken => {
                let Some(link) = &mut process.link else {
                    return false;
                };
                held.stage = Stage::Seated;
                let seat = |rank| ([127, 0, 0, 1], rank as u16).into();
                link.to_core.push_back(Event::Seated {
                    worker: link.worker.clone(),
                    gang,
                    seats: (share.first..share.first + share.own).map(seat).collect(),
                    key: match share.follows() {
                        true => Vec::new(),
                        false => vec![7],
                    },
                });
            }
            Stage::Called => {
                let Some(link) = &mut process.link else {
                    return false;
                };
                held.stage = Stage::Joined;
                let worker = link.worker.clone();
                link.to_core.push_back(Event::Joined { worker, gang });
            }
            Stage::Joined | Stage::Going if !is_whole => {
                // Those that are left notice. Only the first rank has something to say of it.
                match share.follows() {
                    true => drop(self.processes[at].held.remove(key)),
                    false => self.fail(at, key.clone(), Blame::Gang),
                }
            }
            Stage::Going => return true,
            Stage::Seated | Stage::Joined => {}
        }
        false
    }

    /// Whether all ranks of a gang have joined and are still there.
    fn is_whole(&self, key: &Key, share: Share) -> bool {
        let held = self.processes.iter().filter_map(|p| p.held.get(key));
        let there = held.filter(|held| held.stage >= Stage::Joined);
        there
            .filter_map(Held::part)
            .map(|part| part.own)
            .sum::<u32>()
            == share.ranks
    }

    pub(super) fn hear_of_gang(&mut self, at: usize, effect: Effect) {
        let (Effect::Roster { gang, .. } | Effect::Go { gang, .. }) = effect else {
            panic!("{effect:?} is not for workers");
        };
        let mut held = self.processes[at].held.iter_mut();
        let Some((_, held)) = held.find(|((.., token), _)| *token == gang) else {
            return;
        };
        let share = held.part().expect("of a gang");
        match effect {
            Effect::Roster { seats, key, .. } => {
                assert_eq!(held.stage, Stage::Seated, "all have said so");
                let ports: Vec<u32> = seats.iter().map(|seat| seat.port().into()).collect();
                assert_eq!(ports, (0..share.ranks).collect::<Vec<_>>(), "by rank");
                assert_eq!(key, [7], "the first one's");
                held.stage = Stage::Called;
            }
            _ => {
                assert_eq!((held.stage, share.first), (Stage::Joined, 0));
                held.stage = Stage::Going;
            }
        }
    }

    /// Gangs that were still forming do not survive a connection.
    pub(super) fn give_up_forming(&mut self, at: usize) {
        let held = self.processes[at].held.iter();
        let forming = held.filter(|(_, held)| held.is_forming());
        for key in forming.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.fail(at, key, Blame::Gang);
        }
    }

    /// What goes wrong with a part of a gang.
    pub(super) fn bad_luck(&mut self, at: usize, key: &Key) -> Blame {
        let part = self.processes[at].held[key].part();
        match part {
            Some(share) if self.random.chance(30) => {
                Blame::Peer(self.random.below(share.ranks as usize) as u32)
            }
            Some(_) if self.random.chance(60) => Blame::Gang,
            _ => match self.random.below(10) {
                0..3 => Blame::Place,
                3..6 => Blame::Leaving(self.left_of(at, key)),
                _ => Blame::Try,
            },
        }
    }

    /// Every gang is given out as a whole, to processes of one level.
    pub(super) fn check_gangs(&mut self, effects: &[Effect]) {
        let mut gangs: BTreeMap<FencingToken, Vec<(&WorkerId, Option<Share>)>> = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        for effect in effects {
            if let Effect::Assign { worker, assignment } = effect {
                let gang = gangs.entry(assignment.token).or_default();
                gang.push((worker, assignment.share));
                wanted.insert(
                    assignment.token,
                    self.job_record(&assignment.job)["ranks"].clone(),
                );
            }
        }
        for (token, members) in gangs {
            let (_, first) = members[0];
            let Some(first) = first else {
                assert_eq!(members.len(), 1, "{token} is half a gang");
                continue;
            };
            let mut next = 0;
            let mut levels = BTreeSet::new();
            for (worker, share) in &members {
                let share = share.expect("of a gang");
                assert_eq!((share.ranks, share.first), (first.ranks, next), "{token}");
                let name = worker.0.split('#').next().unwrap_or_default();
                let mut processes = self.processes.iter();
                let info = &processes.find(|p| p.info.name == name).expect("one").info;
                assert!(
                    (1..=info.ranks).contains(&share.own) || first.ranks == 1,
                    "{token}"
                );
                levels.insert(info.isa.clone());
                next += share.own;
            }
            assert_eq!(next, first.ranks, "{token} is half a gang");
            assert_eq!(levels.len(), 1, "{token} is of several levels");
            let workers: BTreeSet<_> = members.iter().map(|(worker, _)| worker).collect();
            assert_eq!(workers.len(), members.len(), "{token} has a worker twice");
            assert!(first.ranks == 1 || wanted[&token] == first.ranks);
            self.gangs += usize::from(members.len() > 1);
        }
    }

    /// No rank is of two tasks, and no two workers are one rank.
    pub(super) fn check_ranks(&self) {
        let mut taken = BTreeSet::new();
        for worker in self.core.workers() {
            let is_device = |id: &TaskId| !id.0.starts_with("seam") && !id.0.starts_with("mux");
            let device = worker.tasks.iter().filter(|task| is_device(&task.task));
            assert!(device.count() <= 1, "{} is in two gangs", worker.worker);
            for task in worker.tasks {
                let Some(share) = task.share else { continue };
                for rank in share.first..share.first + share.own {
                    let seat = (task.job.clone(), task.task.clone(), rank);
                    assert!(
                        taken.insert(seat),
                        "rank {rank} of {} is taken twice",
                        task.task
                    );
                }
            }
        }
    }

    /// When all is done, every rank is free.
    pub(super) fn check_all_free(&self) {
        for worker in self.core.workers() {
            assert!(worker.tasks.is_empty(), "{worker:?} has lost ranks");
            assert_eq!(worker.state, WorkerState::Idle, "{worker:?}");
        }
    }
}
