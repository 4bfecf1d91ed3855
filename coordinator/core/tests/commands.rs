//! What users and operators ask for, one rule at a time.

mod support;

use longtake_common::ids::{Hash, JobId};
use longtake_common::spec::{Continuity, JobSpec};
use longtake_common::task::Work;
use longtake_core::{Event, JobState, WorkerInfo, WorkerState};
use support::*;

/// Five windows.
const FRAMES: u32 = 500;

/// A finished film of five windows.
fn finished() -> (Farm, JobId) {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("w", vec![]);
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
    (farm, job)
}

fn retake(job: &JobId, window: u32) -> Event {
    Event::Retake {
        job: job.clone(),
        window,
        seed: None,
        prompt: None,
    }
}

fn chunks(farm: &Farm, job: &JobId) -> Vec<Hash> {
    farm.view(job).chunks
}

/// Places at which two films differ.
fn differing(before: &[Hash], after: &[Hash]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    (0..before.len())
        .filter(|&i| before[i] != after[i])
        .collect()
}

#[test]
fn a_retake_renders_one_window_and_its_seams() {
    let (mut farm, job) = finished();
    let (before, first) = (chunks(&farm, &job), farm.assigned.len());
    farm.command(retake(&job, 2));
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Running);
    assert!(view.video.is_none() && view.progress < 1.0);
    assert_eq!(
        view.segments[2].chunks,
        [],
        "the old take is not shown as the new one"
    );
    farm.run();
    let expected = ["denoise/2", "decode/2", "seam/1", "seam/2", "mux"];
    let expected: Vec<_> = expected.iter().map(|task| format!("w {task}")).collect();
    assert_eq!(farm.log()[first..], expected);
    let after = chunks(&farm, &job);
    // interior/0 seam/0 interior/1 seam/1 interior/2 seam/2 interior/3 ...
    assert_eq!(differing(&before, &after), [3, 4, 5]);
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Done);
    assert_eq!(
        (view.segments[2].take, view.segments[2].seed),
        (1, 7 + 2 + 5)
    );
    assert!(
        view.segments[2]
            .chunks
            .iter()
            .map(|chunk| chunk.chunk)
            .eq(after[3..6].iter().copied())
    );
    // The window is held to the end of the one before; the one after keeps what it was held to.
    let (_, denoise) = farm.latest("denoise/2");
    let Work::Denoise { conditioning, .. } = denoise.work else {
        panic!()
    };
    let before = result(&farm.latest("denoise/1").1.work).artifacts["tail"];
    assert_eq!(conditioning, Some(before));
}

#[test]
fn retakes_in_a_row_give_new_takes_and_lead_back() {
    let (mut farm, job) = finished();
    let original = chunks(&farm, &job);
    let mut seen = vec![original.clone()];
    for number in 1..=3 {
        farm.command(retake(&job, 2));
        farm.run();
        let now = chunks(&farm, &job);
        assert!(!seen.contains(&now), "take {number} is new");
        assert_eq!(differing(&original, &now), [3, 4, 5]);
        seen.push(now);
    }
    // The first seed again: everything is in the store, nothing is rendered.
    let count = farm.assigned.len();
    farm.command(Event::Retake {
        job: job.clone(),
        window: 2,
        seed: Some(9),
        prompt: None,
    });
    assert_eq!(farm.view(&job).state, JobState::Done);
    assert_eq!(
        (farm.assigned.len(), chunks(&farm, &job)),
        (count, original)
    );
}

#[test]
fn a_retake_with_another_prompt_keeps_the_seed() {
    let (mut farm, job) = finished();
    let first = farm.assigned.len();
    let event = Event::Retake {
        job: job.clone(),
        window: 0,
        seed: None,
        prompt: Some("a blue square".into()),
    };
    farm.command(event);
    farm.restart();
    farm.pass(5000);
    farm.attach("w#2", vec![]);
    farm.run();
    let log: Vec<_> = farm.log()[first..]
        .iter()
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .collect();
    let mut tasks = log.clone();
    tasks.dedup();
    // Given out before the restart and once more after it.
    assert_eq!(
        tasks,
        ["text/0", "denoise/0", "decode/0", "seam/0", "mux"],
        "{log:?}"
    );
    let view = farm.view(&job);
    assert_eq!(
        (view.segments[0].seed, view.segments[0].prompt.as_deref()),
        (7, Some("a blue square"))
    );
    let Work::Mux { metadata, .. } = farm.latest("mux").1.work else {
        panic!()
    };
    assert_eq!(metadata.prompts[&0], "a blue square");
    // The next one without a prompt keeps it.
    farm.command(retake(&job, 0));
    farm.run();
    assert_eq!(
        farm.view(&job).segments[0].prompt.as_deref(),
        Some("a blue square")
    );
    assert_ne!(farm.view(&job).segments[0].seed, 7);
}

#[test]
fn a_retaken_film_is_not_what_a_new_submission_gets() {
    let (mut farm, job) = finished();
    let original = chunks(&farm, &job);
    farm.command(retake(&job, 2));
    let (other, continued) = farm.submit("again", spec(FRAMES));
    assert!(!continued);
    farm.run();
    assert_eq!(chunks(&farm, &other), original);
    assert_ne!(chunks(&farm, &job), original);
}

#[test]
fn a_retake_that_fails_goes_on_with_retry_or_with_another_take() {
    for other_window in [false, true] {
        let (mut farm, job) = finished();
        let before = chunks(&farm, &job);
        farm.command(retake(&job, 2));
        let (_, denoise) = farm.latest("denoise/2");
        farm.failed("w", &denoise, false);
        assert_eq!(farm.view(&job).state, JobState::Failed);
        if other_window {
            farm.command(retake(&job, 1));
        } else {
            farm.command(Event::Retry { job: job.clone() });
        }
        farm.run();
        let view = farm.view(&job);
        assert_eq!(view.state, JobState::Done, "{}", view.error);
        let expected: &[usize] = if other_window {
            &[1, 2, 3, 4, 5]
        } else {
            &[3, 4, 5]
        };
        assert_eq!(differing(&before, &view.chunks), expected);
        // A report from before is nobody's.
        assert_eq!(told(&farm.done("w", &denoise)), ["w: revoke denoise/2"]);
    }
}

#[test]
fn commands_that_make_no_sense_are_refused_with_the_way_out() {
    let (mut farm, done) = finished();
    let (open, _) = farm.submit(
        "open",
        JobSpec {
            seed: 99,
            ..spec(FRAMES)
        },
    );
    let (cancelled, _) = farm.submit(
        "gone",
        JobSpec {
            seed: 100,
            ..spec(FRAMES)
        },
    );
    farm.command(Event::Cancel {
        job: cancelled.clone(),
    });
    let job = |job: &JobId| job.clone();
    let table = [
        (
            retake(&done, 5),
            "job j has no segment 5: it has 5, numbered from 0",
        ),
        (retake(&open, 1), "job open is running: wait until it ends"),
        (
            retake(&cancelled, 1),
            "'longtake retry gone' goes on with it",
        ),
        (
            Event::Pause { job: job(&done) },
            "job j is done: there is nothing to pause",
        ),
        (
            Event::Resume {
                job: job(&cancelled),
            },
            "cancelled, not paused: 'longtake retry gone'",
        ),
        (
            Event::Retry { job: job(&done) },
            "job j is done: there is nothing to try again",
        ),
        (
            Event::Retry { job: job(&open) },
            "only a failed or cancelled job",
        ),
        (
            Event::Drain { name: "x".into() },
            "there is no worker 'x' here",
        ),
        (
            Event::Undrain { name: "x".into() },
            "there is no worker 'x' here",
        ),
    ];
    for (event, expected) in table {
        let refusal = farm.refused(event.clone());
        assert!(refusal.contains(expected), "{event:?}: {refusal}");
    }
}

#[test]
fn a_paused_job_finishes_what_runs_and_waits() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    let (later, _) = farm.submit(
        "later",
        JobSpec {
            seed: 99,
            ..spec(100)
        },
    );
    farm.attach("w", vec![]);
    farm.command(Event::Pause { job: job.clone() });
    assert_eq!(farm.view(&job).state, JobState::Paused);
    let (worker, text) = farm.latest("text");
    let effects = farm.done(&worker, &text);
    assert_eq!(told(&effects), ["w: ack text", "w: assign denoise/0"]);
    assert_eq!(
        farm.assigned.last().expect("one").1.job,
        later,
        "others go on"
    );
    farm.restart();
    farm.pass(5000);
    farm.attach("w#2", vec![]);
    farm.run();
    assert_eq!(farm.view(&later).state, JobState::Done);
    assert_eq!(farm.view(&job).state, JobState::Paused);
    assert!(farm.explain(&job)[0].contains("longtake resume j"));
    farm.command(Event::Resume { job: job.clone() });
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
}

#[test]
fn a_job_that_failed_or_was_cancelled_goes_on_from_what_is_stored() {
    for cancel in [false, true] {
        let mut farm = Farm::new();
        let (job, _) = farm.submit("j", spec(FRAMES));
        farm.attach("w", vec![]);
        for task in ["text", "denoise/0"] {
            let (worker, assignment) = farm.latest(task);
            farm.done(&worker, &assignment);
        }
        let (_, next) = farm.latest("decode/0");
        if cancel {
            farm.command(Event::Cancel { job: job.clone() });
        } else {
            farm.failed("w", &next, false);
        }
        let given_out = farm.assigned.len();
        farm.restart();
        farm.attach("w#2", vec![]);
        farm.command(Event::Retry { job: job.clone() });
        assert_eq!(farm.view(&job).error, "");
        farm.run();
        assert_eq!(farm.log()[given_out], "w#2 decode/0", "the rest was there");
        assert_eq!(farm.view(&job).state, JobState::Done);
    }
}

#[test]
fn a_drained_worker_gets_nothing_new() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let state = |farm: &Farm| farm.core.workers().map(|w| w.state).collect::<Vec<_>>();
    assert_eq!(state(&farm), [WorkerState::Busy]);
    farm.command(Event::Drain { name: "a".into() });
    assert_eq!(state(&farm), [WorkerState::Draining]);
    let (_, text) = farm.latest("text");
    assert_eq!(
        told(&farm.done("a", &text)),
        ["a: ack text"],
        "it finishes what it has"
    );
    assert_eq!(state(&farm), [WorkerState::Drained]);
    assert!(farm.explain(&job)[0].contains("every worker that could do it is drained"));
    // It stays drained when it connects again, and when the coordinator is started again.
    farm.detach("a");
    farm.attach("a#2", vec![]);
    farm.restart();
    farm.attach("a#3", vec![]);
    assert_eq!(
        (state(&farm), farm.assigned.len()),
        (vec![WorkerState::Drained], 1)
    );
    assert_eq!(
        told(&farm.command(Event::Undrain { name: "a".into() })),
        ["a#3: assign denoise/0"]
    );
    assert!(!farm.records.keys().any(|key| key.starts_with("drained/")));
}

#[test]
fn a_worker_that_leaves_gets_nothing_new() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    let event = Event::Heartbeat {
        worker: longtake_common::ids::WorkerId("a".into()),
        running: vec![running(&text, 0.5)],
        peak_rss_bytes: 0,
        leaving: true,
    };
    farm.handle(event);
    farm.attach("b", vec![]);
    assert_eq!(
        told(&farm.done("a", &text)),
        ["a: ack text", "b: assign denoise/0"]
    );
}

#[test]
fn two_processes_of_one_name_are_kept_apart() {
    let mut farm = Farm::new();
    farm.submit("j", spec(FRAMES));
    let info = |instance: &str| WorkerInfo {
        instance: instance.into(),
        ..worker_info("a")
    };
    farm.attach_as("a#1", info("one"), vec![]);
    let refusal = farm.core.refuse_attach(&info("two")).expect("a refusal");
    assert!(refusal.contains("another --name"), "{refusal}");
    // The same process after its connection broke: it keeps its work.
    assert_eq!(farm.core.refuse_attach(&info("one")), None);
    let (_, text) = farm.latest("text");
    let effects = farm.attach_as("a#2", info("one"), vec![running(&text, 0.5)]);
    assert_eq!(told(&effects), ["a#1: disconnect"]);
    assert_eq!(told(&farm.done("a#2", &text))[0], "a#2: ack text");
    assert_eq!(farm.core.workers().count(), 1);
}

#[test]
fn a_job_stays_on_one_instruction_set_level() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit(
        "j",
        JobSpec {
            continuity: Continuity::None,
            ..spec(FRAMES)
        },
    );
    let other = |isa: &str| WorkerInfo {
        isa: isa.into(),
        ..worker_info("b")
    };
    farm.attach("a", vec![]);
    farm.attach_as("b", other("avx512"), vec![]);
    farm.restart();
    farm.pass(5000);
    farm.attach("a#2", vec![]);
    farm.attach_as("b#2", other("avx512"), vec![]);
    farm.run();
    let view = farm.view(&job);
    assert_eq!(
        (view.state, view.isa.as_deref()),
        (JobState::Done, Some("avx2"))
    );
    for (worker, assignment) in &farm.assigned {
        let on_b = worker.0.starts_with('b');
        let host = matches!(assignment.work, Work::Seam { .. } | Work::Mux { .. });
        assert!(!on_b || host, "{worker} {}", assignment.task);
    }
}

#[test]
fn results_of_one_level_are_not_used_on_another() {
    let (mut farm, job) = finished();
    let submit = |isa: &str| Event::Submit {
        job: JobId(isa.into()),
        spec: Box::new(spec(FRAMES)),
        isa: Some(isa.into()),
        ranks: None,
    };
    // A worker of the other level may come as long as there is none.
    farm.detach("w");
    farm.handle(submit("avx512"));
    farm.attach("w#2", vec![]);
    let other = JobId("avx512".into());
    let reasons = farm.explain(&other);
    assert!(
        reasons[0]
            .contains("rendered on avx512 and no worker of that level is connected, only w (avx2)"),
        "{reasons:?}"
    );
    let before = farm.assigned.len();
    let info = WorkerInfo {
        isa: "avx512".into(),
        ..worker_info("x")
    };
    farm.attach_as("x", info, vec![]);
    farm.run();
    assert_eq!(farm.view(&other).state, JobState::Done);
    assert!(farm.log()[before..].contains(&"x denoise/4".to_owned()));
    // On the level that the film was made on, everything is there.
    let count = farm.assigned.len();
    farm.handle(submit("avx2"));
    let same = farm.view(&JobId("avx2".into()));
    assert_eq!((same.state, farm.assigned.len()), (JobState::Done, count));
    assert_eq!(same.video, farm.view(&job).video);
}

#[test]
fn waiting_has_reasons() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(FRAMES));
    let reasons = farm.explain(&job);
    assert_eq!(
        reasons[0],
        "text can begin, but no worker is connected: start one with 'longtake worker'"
    );
    assert_eq!(
        reasons[1],
        "denoise/0 waits for text; 14 more tasks wait for what comes before them"
    );
    farm.attach("a", vec![]);
    let (_, text) = farm.latest("text");
    farm.heartbeat("a", vec![running(&text, 0.5)]);
    assert_eq!(farm.explain(&job)[0], "text is being done by a (50%)");
    let (late, _) = farm.submit(
        "late",
        JobSpec {
            seed: 99,
            ..spec(FRAMES)
        },
    );
    assert_eq!(
        farm.explain(&late)[0],
        "text can begin, but all workers are busy: a does text of j (50%)"
    );
    farm.failed("a", &text, true);
    let last = farm.explain(&job).pop().expect("a reason");
    assert_eq!(
        last,
        "text failed once (on a), the last time with: out of memory"
    );
    farm.restart();
    let reasons = farm.explain(&job);
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("in the hands of a when the coordinator")),
        "{reasons:?}"
    );
    farm.command(Event::Cancel { job: job.clone() });
    assert!(farm.explain(&job)[0].contains("longtake retry j"));
    let (_, done) = finished();
    assert!(finished().0.explain(&done)[0].contains("longtake download j"));
}

#[test]
fn segments_can_be_shown_before_the_film_is_complete() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit(
        "j",
        JobSpec {
            continuity: Continuity::None,
            ..spec(FRAMES)
        },
    );
    farm.attach("w", vec![]);
    for task in ["text", "denoise/0", "decode/0"] {
        let (worker, assignment) = farm.latest(task);
        farm.done(&worker, &assignment);
    }
    let stretch = |farm: &Farm, window: usize| {
        let view = farm.view(&job);
        let chunks = &view.segments[window].chunks;
        for (one, next) in chunks.iter().zip(chunks.iter().skip(1)) {
            assert_eq!(one.first_frame + one.frames, next.first_frame);
        }
        let frames = chunks.iter().map(|chunk| chunk.frames).sum::<u32>();
        (chunks.first().map(|chunk| chunk.first_frame), frames)
    };
    // The interior ends where the seam's lead begins: 121 - 17 - 8.
    assert_eq!(
        (stretch(&farm, 0), stretch(&farm, 1)),
        ((Some(0), 96), (None, 0))
    );
    for task in ["denoise/1", "decode/1", "seam/0"] {
        let (worker, assignment) = farm.latest(task);
        farm.done(&worker, &assignment);
    }
    // With the seam, 8 + 17 + 48 frames more.
    assert_eq!(
        (stretch(&farm, 0), stretch(&farm, 1)),
        ((Some(0), 169), (Some(96), 104))
    );
}
