//! When things are done: a film can be watched early, and is complete no later for it.
//!
//! The core under a clock of its own, with workers whose tasks take set times.

mod support;

use longtake_common::JobSpec;
use longtake_common::ids::{JobId, WorkerId};
use longtake_common::spec::{Shot, Transition};
use longtake_common::task::Assignment;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use support::*;

/// How long tasks take, in ms. The text takes 50, the mux 100.
#[derive(Clone, Copy, Debug)]
struct Times {
    denoise_ms: u64,
    decode_ms: u64,
    seam_ms: u64,
}

impl Times {
    fn of(self, task: &str) -> u64 {
        match task.split('/').next().expect("a name") {
            "text" => 50,
            "denoise" => self.denoise_ms,
            "decode" => self.decode_ms,
            "seam" => self.seam_ms,
            _ => 100,
        }
    }
}

/// When each task of each job was done.
type Log = BTreeMap<(usize, String), u64>;

/// Runs chains of `windows` windows on so many workers.
fn run(jobs: usize, windows: u32, workers: usize, times: Times) -> Log {
    let mut farm = Farm::new();
    let frames = 104 * (windows - 1) + 121;
    let named = |job: usize| format!("j{job}");
    for job in 0..jobs {
        let mut spec = spec(frames);
        spec.seed = 1000 * (job as u64 + 1);
        spec.prompt = named(job);
        farm.submit(&named(job), spec);
    }
    for worker in 0..workers {
        farm.attach(&format!("w{worker}"), vec![]);
    }
    let mut log = Log::new();
    let mut under_way: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut noted = 0;
    loop {
        for (index, (_, assignment)) in farm.assigned.iter().enumerate().skip(noted) {
            let end_ms = farm.now_ms + times.of(&assignment.task.0);
            under_way.push(Reverse((end_ms, index)));
        }
        noted = farm.assigned.len();
        let Some(Reverse((now_ms, index))) = under_way.pop() else {
            return log;
        };
        farm.now_ms = now_ms;
        let (WorkerId(worker), assignment): (WorkerId, Assignment) = farm.assigned[index].clone();
        farm.done(&worker, &assignment);
        let job = (0..jobs).find(|job| assignment.job == JobId(named(*job)));
        log.insert((job.expect("ours"), assignment.task.0), now_ms);
    }
}

/// A job, what sort of task, a window.
type Place = (usize, u32, u32);
/// Ends of tasks, the next one first.
type Ends = BinaryHeap<Reverse<(u64, Place)>>;

/// The end of the last of these chains when their links always come first: older jobs before newer
/// ones, then all links, then everything else in order. Nothing like this is in the product.
fn chain_first_end_ms(jobs: usize, windows: u32, workers: usize, times: Times) -> u64 {
    let mut waiting: BTreeMap<Place, Vec<Place>> = BTreeMap::new();
    let (text, denoise, decode, seam, mux) = (0, 1, 2, 3, 4);
    for job in 0..jobs {
        waiting.insert((job, text, 0), vec![]);
        for window in 0..windows {
            let before = window.checked_sub(1).map_or((text, 0), |w| (denoise, w));
            waiting.insert((job, denoise, window), vec![(job, before.0, before.1)]);
            waiting.insert((job, decode, window), vec![(job, denoise, window)]);
            if window + 1 < windows {
                let sides = [window, window + 1].map(|w| (job, decode, w));
                waiting.insert((job, seam, window), sides.to_vec());
            }
        }
        let parts = waiting
            .keys()
            .filter(|(of, rank, _)| *of == job && *rank >= decode);
        waiting.insert((job, mux, 0), parts.copied().collect());
    }
    let names = ["text", "denoise", "decode", "seam", "mux"];
    let is_host = |rank: u32| rank >= seam;
    let (mut free, mut now_ms, mut done) = ([workers; 2], 0, BTreeSet::new());
    let mut under_way = Ends::new();
    loop {
        // In the order of their keys: job, rank, window.
        for (task, inputs) in waiting.clone() {
            let lane = usize::from(is_host(task.1));
            if free[lane] > 0 && inputs.iter().all(|input| done.contains(input)) {
                free[lane] -= 1;
                waiting.remove(&task);
                under_way.push(Reverse((now_ms + times.of(names[task.1 as usize]), task)));
            }
        }
        let Some(Reverse((end_ms, task))) = under_way.pop() else {
            return now_ms;
        };
        now_ms = end_ms;
        free[usize::from(is_host(task.1))] += 1;
        done.insert(task);
    }
}

#[test]
fn one_worker_shows_the_first_segment_first() {
    for decode_ms in [300, 1000, 2500] {
        let times = Times {
            denoise_ms: 1000,
            decode_ms,
            seam_ms: 200,
        };
        let log = run(1, 20, 1, times);
        let at = |task: &str| log[&(0, task.to_owned())];
        assert_eq!(at("decode/0"), 50 + 1000 + decode_ms);
        // One window after the other, each with the seam before it.
        for window in 1..20 {
            let end_ms = 50 + (window + 1) * (1000 + decode_ms);
            assert_eq!(at(&format!("decode/{window}")), end_ms);
            assert_eq!(at(&format!("seam/{}", window - 1)), end_ms + 200);
        }
        // The device never waits, so this is the least that one worker needs.
        assert_eq!(at("mux"), 50 + 20 * (1000 + decode_ms) + 200 + 100);
    }
}

#[test]
fn no_film_ends_later_than_with_its_chain_first() {
    let mut sooner = 0;
    for (jobs, workers) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 2), (3, 4)] {
        for windows in [2, 3, 7, 20] {
            for decode_ms in [250, 600, 1500, 4000] {
                for seam_ms in [100, 1300] {
                    let times = Times {
                        denoise_ms: 1001,
                        decode_ms,
                        seam_ms,
                    };
                    let case =
                        format!("{jobs} jobs, {windows} windows, {workers} workers, {times:?}");
                    let log = run(jobs, windows, workers, times);
                    let end_ms = log.values().copied().max().expect("a mux");
                    let reference_ms = chain_first_end_ms(jobs, windows, workers, times);
                    assert!(end_ms <= reference_ms, "{case}: {end_ms} > {reference_ms}");
                    sooner += usize::from(end_ms < reference_ms);
                    if jobs == 1 {
                        let first_ms = log[&(0, "decode/0".to_owned())];
                        assert_eq!(first_ms, 50 + 1001 + decode_ms, "{case}");
                    }
                }
            }
        }
    }
    assert!(sooner > 0, "seams of a single worker should end sooner");
}

#[test]
fn chains_that_cuts_part_are_expected_beside_each_other() {
    // Eight windows: one chain, or four of two windows each.
    let eta_s = |shots: Vec<Shot>| {
        let mut farm = Farm::new();
        let film = JobSpec {
            shots,
            ..spec(104 * 7 + 121)
        };
        let (job, _) = farm.submit("j", film);
        for worker in 0..8 {
            farm.attach(&format!("w{worker}"), vec![]);
        }
        for task in ["text", "denoise/0"] {
            farm.now_ms += 1000;
            let (worker, assignment) = farm.latest(task);
            farm.done(&worker, &assignment);
        }
        farm.view(&job).eta_s.expect("measured")
    };
    let shot = |first_frame| Shot {
        first_frame,
        transition: Transition::Cut,
        prompt: "a red circle".to_owned(),
        negative: None,
        seed: None,
    };
    let chain = eta_s(Vec::new());
    let cut = eta_s(vec![shot(208), shot(416), shot(624)]);
    // One after the other, they would take as long as the one chain.
    assert!(cut < 0.6 * chain, "{cut} s with cuts, {chain} s without");
}
