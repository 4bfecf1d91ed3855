//! What happens to a farm in one round of the scenario, and when: drawn from a seed.

use crate::network::Cut;
use std::fmt;
use std::time::Duration;

/// Workers at the beginning. One is drained, one killed, one cut off; another one joins.
pub const WORKERS: usize = 3;

/// How etcd is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It stands still; connections to it stay open.
    Freeze,
    /// It is killed, and started again with its data.
    Kill,
}

/// Something that happens. Workers are numbered from 0; number [`WORKERS`] is the one that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker joins.
    Join,
    /// A worker is told to stop.
    Drain(usize),
    /// A worker is killed.
    Kill(usize),
    /// A worker's network is cut.
    Cut(usize, Cut),
    /// And there again.
    Mend(usize),
    /// The coordinator is killed.
    KillCoordinator,
    /// And started again.
    StartCoordinator,
    /// etcd is stopped.
    StopEtcd(Stop),
    /// And there again.
    StartEtcd(Stop),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join => write!(f, "w{} joins", WORKERS + 1),
            Self::Drain(worker) => write!(f, "w{} drained", worker + 1),
            Self::Kill(worker) => write!(f, "w{} killed", worker + 1),
            Self::Cut(worker, Cut::Cable) => write!(f, "w{} unplugged", worker + 1),
            Self::Cut(worker, Cut::Port) => write!(f, "w{} unheard", worker + 1),
            Self::Mend(worker) => write!(f, "w{} connected", worker + 1),
            Self::KillCoordinator => write!(f, "coordinator killed"),
            Self::StartCoordinator => write!(f, "coordinator started"),
            Self::StopEtcd(Stop::Freeze) => write!(f, "etcd frozen"),
            Self::StopEtcd(Stop::Kill) => write!(f, "etcd killed"),
            Self::StartEtcd(_) => write!(f, "etcd back"),
        }
    }
}

/// How long things are gone.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// A worker's network.
    pub cut: Duration,
    /// etcd.
    pub etcd: Duration,
    /// The coordinator at most.
    pub coordinator: Duration,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Everything that happens in the round of `seed`, in order, with the time after the beginning. All
/// of it begins between a twentieth of `span` and its end.
pub fn plan(seed: u64, span: Duration, lengths: Lengths) -> Vec<(Duration, Event)> {
    let mut random = Random(seed);
    let mut victims = [0, 1, 2];
    for last in (1..WORKERS).rev() {
        victims.swap(last, random.next() as usize % (last + 1));
    }
    let [drained, killed, cut] = victims;
    let mut when = || span.mul_f64(0.05 + 0.95 * random.share());
    let [join, drain, kill, pull, shot, stop] = std::array::from_fn(|_| when());
    // Each in half of the rounds, however few they are.
    let stopped = [Stop::Freeze, Stop::Kill][(seed % 2) as usize];
    let how = [Cut::Cable, Cut::Port][(seed / 2 % 2) as usize];
    let again = lengths.coordinator.mul_f64(random.share());
    let mut steps = vec![
        (join, Event::Join),
        (drain, Event::Drain(drained)),
        (kill, Event::Kill(killed)),
        (pull, Event::Cut(cut, how)),
        (pull + lengths.cut, Event::Mend(cut)),
        (shot, Event::KillCoordinator),
        (shot + again, Event::StartCoordinator),
        (stop, Event::StopEtcd(stopped)),
        (stop + lengths.etcd, Event::StartEtcd(stopped)),
    ];
    steps.sort_by_key(|(at, _)| *at);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rounds_differ_and_everything_happens_in_each() {
        let second = Duration::from_secs(1);
        let lengths = Lengths {
            cut: second,
            etcd: 2 * second,
            coordinator: second,
        };
        let (mut orders, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..50 {
            let steps = plan(seed, 10 * second, lengths);
            assert_eq!(steps, plan(seed, 10 * second, lengths));
            let named: BTreeSet<_> = steps.iter().map(|(_, event)| event.to_string()).collect();
            assert_eq!(named.len(), 9);
            let victims: BTreeSet<_> = steps
                .iter()
                .filter_map(|(_, event)| match event {
                    Event::Drain(worker) | Event::Kill(worker) | Event::Cut(worker, _) => {
                        Some(*worker)
                    }
                    _ => None,
                })
                .collect();
            assert_eq!(victims.len(), WORKERS);
            let (first, last) = (steps[0].0, steps[8].0);
            assert!(first >= second / 2 && last <= 12 * second);
            orders.insert(format!(
                "{:?}",
                steps.iter().map(|s| s.1).collect::<Vec<_>>()
            ));
            kinds.extend(named);
        }
        assert!(orders.len() > 40, "{}", orders.len());
        assert_eq!(kinds.len(), 3 * 5 + 6, "{kinds:?}");
    }
}
