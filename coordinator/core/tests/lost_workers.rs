//! Whose fault it is when workers end with a task in hand.

mod support;

use longtake_common::ids::WorkerId;
use longtake_core::{Event, JobState, Limits, WorkerInfo};
use support::*;

/// Three windows.
const FRAMES: u32 = 288;

/// Process `n` of the worker `w`.
fn process(n: u32) -> WorkerInfo {
    WorkerInfo {
        instance: format!("process {n}"),
        ..worker_info("w")
    }
}

#[test]
fn a_task_that_kills_its_workers_fails_in_the_end() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    let losses_max = Limits::default().losses_max;
    for n in 0..=losses_max {
        let state = farm.view(&job).state.name();
        assert_eq!(state, if n == 0 { "queued" } else { "running" });
        farm.attach_as(&format!("w#{n}"), process(n), vec![]);
        farm.detach(&format!("w#{n}"));
        if n % 5 == 0 {
            farm.restart(); // the count outlives the coordinator
        }
    }
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Failed);
    let begin = format!(
        "{} workers ended without a word while they did text",
        losses_max + 1
    );
    assert!(view.error.starts_with(&begin), "{}", view.error);
    farm.command(Event::Retry { job: job.clone() });
    assert_eq!(farm.view(&job).state, JobState::Running);
}

#[test]
fn workers_that_come_back_or_leave_are_not_held_against_a_task() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    for n in 0..100 {
        // The network breaks; the process lives.
        farm.attach_as(&format!("w#{n}"), process(0), vec![]);
        farm.detach(&format!("w#{n}"));
    }
    for n in 100..200 {
        // Told to stop, and not done in time.
        let worker = WorkerId(format!("w#{n}"));
        farm.attach_as(&worker.0, process(n), vec![]);
        let (_, text) = farm.latest("text");
        farm.handle(Event::Heartbeat {
            worker: worker.clone(),
            running: vec![running(&text, 0.5)],
            peak_rss_bytes: 0,
            leaving: true,
        });
        farm.detach(&worker.0);
    }
    assert_eq!(farm.view(&job).state, JobState::Running);
    assert_eq!(farm.assigned.len(), 200);
}
