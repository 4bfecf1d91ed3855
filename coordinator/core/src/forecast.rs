//! How long a job would take: its tasks given out as the scheduler would, with known costs.

use crate::dag::{self, TaskKind};
use crate::plan::Plan;
use longtake_common::spec::{Continuity, JobSpec};
use longtake_common::task::Lane;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// What a job would take of a farm that does nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// From the first task to the film.
    pub wall_s: f64,
    /// Sum over the tasks of the device lane.
    pub device_s: f64,
    /// Sum over the tasks of the host lane.
    pub host_s: f64,
}

type Queue = BTreeSet<((u32, u32), TaskKind)>;

/// What is given out next: the first in the queue, but a chain is not held up by decoding where
/// another worker can decode beside it.
fn take(queue: &mut Queue, holds_chain: bool) -> Option<TaskKind> {
    let first = *queue.first()?;
    let is_link = |place: &&((u32, u32), TaskKind)| place.1.is_link();
    let link = match first.1 {
        TaskKind::Decode(_) if holds_chain => queue.iter().find(is_link).copied(),
        _ => None,
    };
    let place = link.unwrap_or(first);
    queue.remove(&place);
    Some(place.1)
}

/// Plays the job through on `workers` (at least 1) equal workers that are never lost; `cost` is a
/// task's seconds.
pub fn forecast(
    spec: &JobSpec,
    plan: &Plan,
    workers: usize,
    cost: impl Fn(TaskKind) -> f64,
) -> Forecast {
    let mut forecast = Forecast::default();
    let mut waiting = BTreeMap::new();
    let mut ready: BTreeMap<Lane, Queue> = BTreeMap::new();
    for kind in dag::tasks(plan) {
        let lane = dag::lane(kind);
        match lane {
            Lane::Device => forecast.device_s += cost(kind),
            Lane::Host => forecast.host_s += cost(kind),
        }
        match dag::inputs(spec, plan, kind).len() {
            0 => {
                let place = (kind.priority(), kind);
                ready.entry(lane).or_default().insert(place);
            }
            missing => drop(waiting.insert(kind, missing)),
        }
    }
    let mut free = BTreeMap::from([(Lane::Device, workers), (Lane::Host, workers)]);
    let holds_chain = spec.continuity == Continuity::Chain && workers > 1;
    // Times as whole microseconds, so that they have an order.
    let mut running = BinaryHeap::new();
    let mut now_us = 0_u64;
    loop {
        for (lane, queue) in &mut ready {
            let slots = free.get_mut(lane).expect("both lanes are there");
            while *slots > 0
                && let Some(kind) = take(queue, holds_chain)
            {
                *slots -= 1;
                let end_us = now_us.saturating_add((cost(kind) * 1e6) as u64);
                running.push(Reverse((end_us, kind)));
            }
        }
        let Some(Reverse((end_us, done))) = running.pop() else {
            break;
        };
        now_us = end_us;
        *free
            .get_mut(&dag::lane(done))
            .expect("both lanes are there") += 1;
        for next in dag::dependents(spec, plan, done) {
            let missing = waiting.get_mut(&next).expect("it waited for this one");
            *missing -= 1;
            if *missing == 0 {
                let place = (next.priority(), next);
                ready.entry(dag::lane(next)).or_default().insert(place);
            }
        }
    }
    forecast.wall_s = now_us as f64 / 1e6;
    forecast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;

    /// Five windows.
    fn spec(continuity: Continuity) -> JobSpec {
        crate::dag::tests::spec(121 + 4 * 104, continuity)
    }

    /// Denoising takes ten seconds, decoding four, the rest one.
    fn wall(continuity: Continuity, workers: usize) -> f64 {
        let spec = spec(continuity);
        let cost = |kind| match kind {
            TaskKind::Denoise(_) => 10.0,
            TaskKind::Decode(_) => 4.0,
            _ => 1.0,
        };
        let forecast = forecast(&spec, &plan(&spec), workers, cost);
        assert_eq!((forecast.device_s, forecast.host_s), (71.0, 5.0));
        forecast.wall_s
    }

    #[test]
    fn a_chain_is_serial_and_the_rest_is_done_beside_it() {
        // One worker does all of the model's work, then the last seam and the film.
        assert_eq!(wall(Continuity::Chain, 1), 71.0 + 2.0);
        assert_eq!(wall(Continuity::None, 1), 71.0 + 2.0);
        // Two of them denoise without a pause, decode the last window, join it, finish.
        assert_eq!(wall(Continuity::Chain, 2), 1.0 + 50.0 + 4.0 + 2.0);
        assert_eq!(wall(Continuity::Chain, 9), wall(Continuity::Chain, 2));
        // Without a chain, as many workers as windows need the time of one window.
        assert_eq!(wall(Continuity::None, 5), 1.0 + 10.0 + 4.0 + 2.0);
    }
}
