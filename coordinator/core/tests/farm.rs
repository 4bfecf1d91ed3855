//! Scheduling, leases, retries and restarts, one rule at a time.

mod support;

use longtake_common::ids::{Epoch, JobId, WorkerId};
use longtake_common::spec::{Continuity, JobSpec};
use longtake_common::task::{TaskOutput, Work};
use longtake_core::{Core, Effect, Effects, Event, JobState, Limits};
use support::*;

/// Three windows.
const FRAMES: u32 = 288;

#[test]
fn one_worker_finishes_a_window_before_the_next() {
    let mut farm = Farm::new();
    let (job, continued) = farm.submit("j", spec(FRAMES));
    assert!(!continued);
    assert_eq!(farm.view(&job).state, JobState::Queued);
    farm.attach("w", vec![]);
    assert_eq!(farm.view(&job).state, JobState::Running);
    farm.run();
    // The host lane joins while the device lane renders.
    let expected = [
        "text",
        "denoise/0",
        "decode/0",
        "denoise/1",
        "decode/1",
        "denoise/2",
        "seam/0",
        "decode/2",
        "seam/1",
        "mux",
    ];
    let expected: Vec<_> = expected.iter().map(|task| format!("w {task}")).collect();
    assert_eq!(farm.log(), expected);
    let view = farm.view(&job);
    assert_eq!(
        (view.state, view.progress, view.eta_s),
        (JobState::Done, 1.0, None)
    );
    assert_eq!(view.chunks.len(), 5);
    assert!(view.video.is_some());
}

#[test]
fn two_workers_decode_while_the_chain_goes_on() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    farm.attach("b", vec![]);
    farm.run();
    let log = farm.log();
    let at = |entry: &str| {
        log.iter()
            .position(|logged| logged == entry)
            .unwrap_or(usize::MAX)
    };
    assert!(at("b decode/0") < at("a denoise/2"), "{log:?}");
}

#[test]
fn independent_windows_are_finished_one_by_one() {
    let mut farm = Farm::new();
    farm.submit(
        "j",
        JobSpec {
            continuity: Continuity::None,
            ..spec(FRAMES)
        },
    );
    farm.attach("w", vec![]);
    farm.run();
    let log = farm.log();
    assert_eq!(
        log[1..4],
        ["w denoise/0", "w decode/0", "w denoise/1"].map(String::from)
    );
    let (_, second) = farm.latest("denoise/1");
    assert!(matches!(
        second.work,
        Work::Denoise {
            conditioning: None,
            tail_frames: None,
            ..
        }
    ));
}

#[test]
fn work_carries_the_results_of_its_inputs() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("w", vec![]);
    farm.run();
    let artifact = |task: &str, name: &str| result(&farm.latest(task).1.work).artifacts[name];
    let (_, denoise) = farm.latest("denoise/1");
    let Work::Denoise {
        window,
        text,
        conditioning,
        tail_frames,
        ..
    } = denoise.work
    else {
        panic!()
    };
    assert_eq!(
        (window.first_frame, window.frames, window.seed),
        (104, 121, 8)
    );
    assert_eq!(text, artifact("text", "text"));
    assert_eq!(
        (conditioning, tail_frames),
        (Some(artifact("denoise/0", "tail")), Some(17))
    );
    let (_, last) = farm.latest("denoise/2");
    assert!(matches!(
        last.work,
        Work::Denoise {
            tail_frames: None,
            ..
        }
    ));
    let (_, decode) = farm.latest("decode/1");
    let Work::Decode {
        latents,
        head_frames,
        relax_frames,
        lead_frames,
        tail_frames,
        ..
    } = decode.work
    else {
        panic!()
    };
    assert_eq!(latents, artifact("denoise/1", "latents"));
    assert_eq!((head_frames, relax_frames), (17, 48));
    assert_eq!((lead_frames, tail_frames), (8, 17));
    let (_, seam) = farm.latest("seam/1");
    let Work::Seam {
        left,
        right,
        lead_frames,
        relax_frames,
        ..
    } = seam.work
    else {
        panic!()
    };
    assert_eq!(left, artifact("decode/1", "tail"));
    assert_eq!((right, relax_frames), (artifact("decode/2", "head"), 48));
    assert_eq!(lead_frames, 8);
    let (_, mux) = farm.latest("mux");
    let Work::Mux { chunks, seams, .. } = mux.work else {
        panic!()
    };
    let expected = [
        artifact("decode/0", "interior"),
        artifact("seam/0", "chunk"),
        artifact("decode/1", "interior"),
        artifact("seam/1", "chunk"),
        artifact("decode/2", "interior"),
    ];
    assert_eq!(chunks, expected);
    assert_eq!(seams, [(104, 17), (208, 17)]);
}

#[test]
fn older_jobs_go_first() {
    let mut farm = Farm::new();
    farm.submit("z-older", spec(FRAMES));
    farm.submit(
        "a-newer",
        JobSpec {
            seed: 99,
            ..spec(FRAMES)
        },
    );
    farm.attach("w", vec![]);
    assert_eq!(farm.assigned[0].1.job.0, "z-older");
}

#[test]
fn equal_work_is_not_done_again() {
    let mut farm = Farm::new();
    let (first, _) = farm.submit("one", spec(FRAMES));
    farm.attach("w", vec![]);
    farm.run();
    let done = farm.assigned.len();
    let (again, continued) = farm.submit("two", spec(FRAMES));
    assert!(!continued, "a finished job is not continued");
    let view = farm.view(&again);
    assert_eq!((view.state, farm.assigned.len()), (JobState::Done, done));
    assert!(
        view.segments
            .iter()
            .all(|segment| segment.reused && segment.done && !segment.worker.is_empty())
    );
    assert_eq!(view.video, farm.view(&first).video);
    // A longer film shares all windows that are equal: text and the first two.
    farm.submit("three", spec(FRAMES + 104));
    farm.run();
    let log = farm.log();
    assert_eq!(log[done], "w denoise/2", "{log:?}");
}

#[test]
fn work_queued_twice_is_done_once() {
    let mut farm = Farm::new();
    farm.submit("one", spec(100));
    farm.submit(
        "two",
        JobSpec {
            seed: 99,
            ..spec(100)
        },
    );
    farm.attach("w", vec![]);
    farm.run();
    let texts = farm
        .log()
        .iter()
        .filter(|entry| entry.ends_with("text"))
        .count();
    assert_eq!(texts, 1, "both jobs have the same prompt");
}

#[test]
fn an_unfinished_job_is_continued() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("one", spec(FRAMES));
    farm.attach("w", vec![]);
    for task in ["text", "denoise/0", "decode/0", "denoise/1"] {
        let (worker, assignment) = farm.latest(task);
        farm.done(&worker, &assignment);
    }
    farm.restart();
    assert_eq!(farm.submit("two", spec(FRAMES)), (job.clone(), true));
    farm.pass(5000);
    farm.attach("w#2", vec![]);
    farm.run();
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Done);
    let reused: Vec<_> = view.segments.iter().map(|segment| segment.reused).collect();
    assert_eq!(reused, [true, false, false]);
}

#[test]
fn bad_jobs_are_refused() {
    let mut farm = Farm::new();
    let spec = Box::new(JobSpec {
        segment_frames: 120,
        ..spec(FRAMES)
    });
    let effects = farm.handle(Event::Submit {
        job: JobId("j".into()),
        spec,
        isa: None,
        ranks: None,
    });
    let [Effect::Refused { error, .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert!(error.contains("use 113 or 121"), "{error}");
    assert!(farm.records.is_empty());
}

#[test]
fn a_lost_lease_gives_the_work_to_another() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let (_, lost) = farm.latest("text");
    farm.pass(3000);
    farm.attach("b", vec![]);
    assert_eq!(farm.latest("text").0, "a", "the lease has not run out");
    farm.heartbeat("b", vec![]);
    let effects = farm.pass(250);
    assert_eq!(told(&effects), ["a: disconnect", "b: assign text"]);
    let (_, again) = farm.latest("text");
    assert!(again.token > lost.token);
    assert_eq!(again.attempt, 2);
    // The old token is good for nothing now, whatever it comes with.
    assert_eq!(told(&farm.done("a", &lost)), ["a: revoke text"]);
    assert_eq!(told(&farm.failed("a", &lost, false)), ["a: revoke text"]);
    assert_eq!(told(&farm.done("b", &again))[0], "b: ack text");
    // Nor is it once the task is done.
    assert_eq!(told(&farm.done("a", &lost)), ["a: revoke text"]);
}

#[test]
fn heartbeats_keep_the_lease() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    for _ in 0..10 {
        assert!(told(&farm.pass(2500)).is_empty());
        farm.heartbeat("a", vec![running(&text, 0.1)]);
    }
}

#[test]
fn a_result_that_comes_before_anyone_else_has_the_work_is_taken() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("a#1", vec![]);
    let (_, text) = farm.latest("text");
    farm.detach("a#1");
    farm.attach("a#2", vec![running(&text, 0.9)]);
    assert_eq!(farm.assigned.len(), 1, "it keeps its work");
    assert_eq!(
        told(&farm.done("a#2", &text)),
        ["a#2: ack text", "a#2: assign denoise/0"]
    );
    // A second report of the same is acknowledged again and changes nothing.
    assert_eq!(told(&farm.done("a#2", &text)), ["a#2: ack text"]);
    assert_eq!(farm.view(&job).state, JobState::Running);
}

#[test]
fn a_worker_that_comes_back_too_late_is_told_to_stop() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a#1", vec![]);
    let (_, text) = farm.latest("text");
    farm.attach("b", vec![]);
    farm.detach("a#1");
    assert_eq!(farm.latest("text").0, "b");
    let effects = farm.attach("a#2", vec![running(&text, 0.9)]);
    assert_eq!(told(&effects), ["a#2: revoke text"]);
}

#[test]
fn work_that_its_worker_does_not_name_is_given_out_again() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let mut effects = Vec::new();
    for _ in 0..8 {
        farm.now_ms += 500;
        effects.extend(farm.heartbeat("a", vec![]));
    }
    assert_eq!(
        told(&effects),
        ["a: assign text"],
        "after a lease, the assignment must have got lost"
    );
}

#[test]
fn a_standstill_of_the_coordinator_is_not_held_against_workers() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    farm.now_ms += 60_000;
    assert!(told(&farm.handle(Event::Tick)).is_empty());
    assert!(told(&farm.pass(3000)).is_empty());
    assert_eq!(told(&farm.pass(250)), ["a: disconnect"]);
}

#[test]
fn failures_are_tried_elsewhere_and_then_reported() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    farm.attach("b", vec![]);
    let (worker, first) = farm.latest("text");
    assert_eq!(worker, "a");
    assert_eq!(
        told(&farm.failed("a", &first, true)),
        ["a: ack text", "b: assign text"]
    );
    assert_eq!(
        told(&farm.failed("a", &first, true)),
        ["a: revoke text"],
        "counted once"
    );
    let (_, second) = farm.latest("text");
    farm.failed("b", &second, true);
    let (_, third) = farm.latest("text");
    assert_eq!(third.attempt, 3, "both have failed, so any may try again");
    farm.failed("a", &third, true);
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Failed);
    assert_eq!(view.error, "text failed on a after 3 tries: out of memory");
    assert_eq!(farm.assigned.len(), 3);
}

#[test]
fn a_failed_task_waits_for_a_busy_worker_that_has_not_failed() {
    let mut farm = Farm::new();
    farm.submit(
        "j",
        JobSpec {
            continuity: Continuity::None,
            ..spec(FRAMES)
        },
    );
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    farm.done("a", &text);
    farm.attach("b", vec![]);
    let (_, zero) = farm.latest("denoise/0");
    let (_, one) = farm.latest("denoise/1");
    assert_eq!(
        told(&farm.failed("a", &zero, true)),
        ["a: ack denoise/0", "a: assign denoise/2"]
    );
    assert_eq!(
        told(&farm.done("b", &one)),
        ["b: ack denoise/1", "b: assign denoise/0"]
    );
}

#[test]
fn what_no_worker_can_do_fails_the_job_at_once() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit(
        "j",
        JobSpec {
            continuity: Continuity::None,
            ..spec(FRAMES)
        },
    );
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    farm.done("a", &text);
    farm.attach("b", vec![]);
    let (_, zero) = farm.latest("denoise/0");
    let effects = farm.failed("a", &zero, false);
    assert_eq!(
        told(&effects),
        ["a: ack denoise/0", "b: revoke denoise/1"],
        "the others are stopped"
    );
    assert_eq!(
        farm.view(&job).error,
        "denoise/0 failed on a: out of memory"
    );
    farm.restart();
    assert_eq!(farm.view(&job).state, JobState::Failed);
}

#[test]
fn a_result_without_its_artifacts_is_a_failure() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    for _ in 0..3 {
        let (_, text) = farm.latest("text");
        farm.handle(Event::Done {
            worker: WorkerId("a".into()),
            job: text.job,
            task: text.task,
            token: text.token,
            output: Box::new(TaskOutput::default()),
        });
    }
    assert!(
        farm.view(&job)
            .error
            .contains("the worker's result has no 'text'")
    );
}

#[test]
fn cancelling_stops_the_workers() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    let effects = farm.handle(Event::Cancel { job: job.clone() });
    assert_eq!(told(&effects), ["a: revoke text"]);
    assert_eq!(told(&farm.done("a", &text)), ["a: revoke text"]);
    farm.restart();
    farm.attach("b", vec![]);
    assert_eq!(farm.view(&job).state, JobState::Cancelled);
    assert_eq!(farm.assigned.len(), 1);
    assert!(!farm.submit("again", spec(FRAMES)).1);
}

#[test]
fn after_a_restart_work_waits_for_its_worker() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    farm.restart();
    farm.attach("b", vec![]);
    assert_eq!(farm.assigned.len(), 1, "a may come back with it");
    farm.attach("a#2", vec![running(&text, 0.5)]);
    farm.done("a#2", &text);
    assert_eq!(farm.latest("denoise/0").1.epoch, Epoch(2));
    assert_eq!(farm.view(&job).segments[0].attempts, 1);
}

#[test]
fn after_a_restart_work_does_not_wait_for_ever() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let (_, old) = farm.latest("text");
    farm.restart();
    farm.pass(2750);
    farm.attach("b", vec![]);
    assert_eq!(farm.assigned.len(), 1);
    assert_eq!(told(&farm.pass(250)), ["b: assign text"]);
    assert!(farm.latest("text").1.token > old.token);
    let mut farm = Farm::with(Limits {
        adopt_ms: 0,
        ..Limits::default()
    });
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    farm.restart();
    assert_eq!(
        told(&farm.attach("b", vec![])),
        ["b: assign text"],
        "nobody can come back"
    );
}

#[test]
fn damaged_records_are_named() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    for (key, value) in [
        ("meta", "{"),
        ("job/j", "{}"),
        ("memo/xyz", "{}"),
        ("task/j/denoise/x", "{}"),
        ("unheard/of", "{}"),
    ] {
        let mut records = farm.records.clone();
        records.insert(key.to_owned(), value.as_bytes().to_vec());
        let mut fx = Effects::new();
        let restored = Core::restore(0, Epoch(2), Limits::default(), records, &mut fx);
        let error = restored.expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn estimates_come_from_what_was_measured() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    assert_eq!(farm.view(&job).eta_s, None);
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    assert_eq!(farm.view(&job).eta_s, None, "nothing is measured");
    farm.now_ms += 100;
    farm.done("a", &text);
    let (_, zero) = farm.latest("denoise/0");
    farm.now_ms += 1000;
    farm.heartbeat("a", vec![running(&zero, 0.5)]);
    let before = farm.view(&job);
    farm.now_ms += 1000;
    farm.done("a", &zero);
    let after = farm.view(&job);
    assert!(after.progress > before.progress);
    let (before, after) = (
        before.eta_s.expect("measured"),
        after.eta_s.expect("measured"),
    );
    assert!(
        (before - after - 1.0).abs() < 0.1,
        "{before} s, then {after} s, a second later"
    );
    // 202 frames to denoise at 2 s for 121, and about as much again for the rest.
    assert!((5.0..12.0).contains(&after), "{after}");
}
