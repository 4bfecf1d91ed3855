//! Windows that several workers share: who is taken, who waits, and what ends a gang.

mod support;

use longtake_common::ids::{FencingToken, JobId, WorkerId};
use longtake_common::spec::{Continuity, JobSpec};
use longtake_common::task::{Assignment, Share};
use longtake_core::{Blame, Effect, Event, JobState, WorkerInfo};
use support::{Farm, spec, told, worker_info};

fn worker(id: &str, ranks: u32) -> WorkerInfo {
    WorkerInfo {
        ranks,
        gang_address: Some([10, 0, 0, 1].into()),
        machine: id.to_owned(),
        ..worker_info(id)
    }
}

fn submit(farm: &mut Farm, id: &str, spec: JobSpec, ranks: u32) -> Result<JobId, String> {
    let job = JobId(id.into());
    let effects = farm.handle(Event::Submit {
        job: job.clone(),
        spec: Box::new(spec),
        isa: None,
        ranks: Some(ranks),
    });
    let refused = effects.into_iter().find_map(|effect| match effect {
        Effect::Refused { error, .. } => Some(error),
        _ => None,
    });
    refused.map_or(Ok(job), Err)
}

/// Windows that do not wait for each other.
fn apart(frames: u32) -> JobSpec {
    JobSpec {
        continuity: Continuity::None,
        ..spec(frames)
    }
}

/// A farm of these workers, in which the text of a gang job is there and its first window is given out.
fn at_denoise(workers: &[(&str, u32)], ranks: u32) -> (Farm, JobId) {
    let mut farm = Farm::new();
    for (id, ranks) in workers {
        farm.attach_as(id, worker(id, *ranks), vec![]);
    }
    let job = submit(&mut farm, "j1", spec(100), ranks).expect("taken");
    let (id, text) = farm.latest("text");
    assert_eq!(
        text.share.map(|share| share.ranks),
        Some(1),
        "one rank encodes text"
    );
    farm.done(&id, &text);
    (farm, job)
}

/// Who has which ranks of the latest gang.
fn shares(farm: &Farm, task: &str) -> Vec<(String, Share)> {
    let (_, latest) = farm.latest(task);
    let of_gang = farm
        .assigned
        .iter()
        .filter(|(_, a)| a.token == latest.token);
    of_gang
        .map(|(worker, a)| (worker.0.clone(), a.share.expect("of a gang")))
        .collect()
}

fn seat(farm: &mut Farm, id: &str, token: FencingToken, ranks: u16) -> Vec<Effect> {
    farm.handle(Event::Seated {
        worker: WorkerId(id.into()),
        gang: token,
        seats: (0..ranks)
            .map(|i| ([10, 0, 0, 1], 4000 + i).into())
            .collect(),
        key: format!("key of {id}").into_bytes(),
    })
}

fn join(farm: &mut Farm, id: &str, token: FencingToken) -> Vec<Effect> {
    let worker = WorkerId(id.into());
    farm.handle(Event::Joined {
        worker,
        gang: token,
    })
}

fn blame(farm: &mut Farm, id: &str, assignment: &Assignment, blame: Blame) -> Vec<Effect> {
    farm.handle(Event::Failed {
        worker: WorkerId(id.into()),
        job: assignment.job.clone(),
        task: assignment.task.clone(),
        token: assignment.token,
        error: "rank 2 of 4 has gone".into(),
        blame,
        log: None,
    })
}

#[test]
fn one_worker_that_gives_all_comes_before_several() {
    let check = |workers: &[(&str, u32)], ranks, expected: &[(&str, u32, u32)]| {
        let (farm, _) = at_denoise(workers, ranks);
        let shares = shares(&farm, "denoise/0");
        let shares: Vec<_> = (shares.iter())
            .map(|(id, share)| (id.as_str(), share.first, share.own))
            .collect();
        assert_eq!(shares, expected, "{workers:?} for {ranks}");
    };
    check(&[("a", 1), ("b", 4), ("c", 2)], 2, &[("c", 0, 2)]);
    check(&[("a", 1), ("b", 2), ("c", 4)], 4, &[("c", 0, 4)]);
    check(
        &[("a", 1), ("b", 2), ("c", 2)],
        4,
        &[("b", 0, 2), ("c", 2, 2)],
    );
    check(&[("a", 3), ("b", 2)], 4, &[("a", 0, 3), ("b", 3, 1)]);
    check(&[("a", 2)], 1, &[("a", 0, 1)]);
}

#[test]
fn a_gang_begins_when_all_have_joined() {
    let (mut farm, job) = at_denoise(&[("a", 2), ("b", 2)], 4);
    let (_, assignment) = farm.latest("denoise/0");
    let token = assignment.token;
    assert_eq!(shares(&farm, "denoise/0").len(), 2);
    assert_eq!(seat(&mut farm, "b", token, 2), []);
    let reasons = farm.explain(&job).join("\n");
    assert!(
        reasons.contains("the gang of denoise/0 forms: a has yet to load"),
        "{reasons}"
    );
    assert_eq!(join(&mut farm, "b", token), [], "too early");
    let told = seat(&mut farm, "a", token, 2);
    let rosters = told.iter().map(|effect| match effect {
        Effect::Roster {
            worker, seats, key, ..
        } => {
            assert_eq!((seats.len(), &key[..]), (4, &b"key of a"[..]));
            worker.0.as_str()
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(rosters.collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(join(&mut farm, "a", token), []);
    let reasons = farm.explain(&job).join("\n");
    assert!(reasons.contains("b has yet to join"), "{reasons}");
    let go = Effect::Go {
        worker: WorkerId("a".into()),
        gang: token,
    };
    assert_eq!(join(&mut farm, "b", token), [go]);
    assert_eq!(join(&mut farm, "b", token), [], "said twice");
    // Only the one that leads has a result, and the other is free for what comes next.
    let effects = farm.done("a", &assignment);
    let effects = support::told(&effects);
    assert!(
        effects.contains(&"b: revoke denoise/0".to_owned()),
        "{effects:?}"
    );
    assert_eq!(
        shares(&farm, "decode/0").len(),
        2,
        "the next gang has both again"
    );
}

#[test]
fn a_lost_part_ends_the_gang_and_is_no_failure() {
    type Harm = fn(&mut Farm, &Assignment) -> Vec<Effect>;
    let harms: [(&str, Harm, &[&str]); 5] = [
        (
            "the leader says so",
            |farm, a| blame(farm, "a", a, Blame::Gang),
            &["a: ack", "b: revoke", "c: revoke"],
        ),
        (
            "another says so",
            |farm, a| blame(farm, "b", a, Blame::Gang),
            &["a: revoke", "b: ack", "c: revoke"],
        ),
        (
            "another leaves",
            |farm, _| farm.detach("b"),
            &["a: revoke", "c: revoke"],
        ),
        (
            "the leader leaves",
            |farm, _| farm.detach("a"),
            &["b: revoke", "c: revoke"],
        ),
        (
            "odd seats",
            |farm, a| seat(farm, "c", a.token, 2),
            &["a: revoke", "b: revoke", "c: revoke"],
        ),
    ];
    for (what, harm, expected) in harms {
        let (mut farm, job) = at_denoise(&[("a", 1), ("b", 1), ("c", 1)], 3);
        let (_, before) = farm.latest("denoise/0");
        let effects = told(&harm(&mut farm, &before));
        for part in expected {
            let line = format!("{part} denoise/0");
            assert!(effects.contains(&line), "{what}: {line} of {effects:?}");
        }
        for id in ["a", "b", "c"] {
            farm.attach_as(&format!("{id}#2"), worker(&format!("{id}2"), 1), vec![]);
        }
        let (_, after) = farm.latest("denoise/0");
        assert!(after.token > before.token, "{what}");
        // What comes of the gang before is not heard any more.
        let (leader, share) = shares(&farm, "denoise/0").remove(0);
        assert_eq!(share.own, 1);
        assert_eq!(seat(&mut farm, &leader, before.token, 1), [], "{what}");
        let stale = told(&blame(&mut farm, &leader, &before, Blame::Gang));
        assert_eq!(stale, [format!("{leader}: revoke denoise/0")], "{what}");
        assert_eq!(farm.view(&job).state, JobState::Running);
        let reasons = farm.explain(&job).join("\n");
        assert!(!reasons.contains("failed"), "{what}: {reasons}");
    }
}

#[test]
fn what_loses_its_gang_again_and_again_fails() {
    let (mut farm, job) = at_denoise(&[("a", 1), ("b", 1)], 2);
    for _ in 0..=farm.limits.losses_max {
        let (id, assignment) = farm.latest("denoise/0");
        blame(&mut farm, &id, &assignment, Blame::Gang);
    }
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Failed);
    assert!(
        view.error.contains("rank 2 of 4 has gone"),
        "{}",
        view.error
    );
}

#[test]
fn who_cannot_be_reached_is_named_and_avoided() {
    let (mut farm, job) = at_denoise(&[("a", 1), ("b", 1), ("c", 1)], 2);
    let (_, first) = farm.latest("denoise/0");
    blame(&mut farm, "a", &first, Blame::Peer(1));
    let again: Vec<_> = shares(&farm, "denoise/0")
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(again, ["a", "c"], "b is avoided");
    let (_, second) = farm.latest("denoise/0");
    blame(&mut farm, "a", &second, Blame::Peer(1));
    let (_, third) = farm.latest("denoise/0");
    blame(&mut farm, "a", &third, Blame::Peer(1));
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Failed);
    assert!(view.error.contains("b cannot be reached"), "{}", view.error);
    assert!(view.error.contains("--gang-address"), "{}", view.error);
}

#[test]
fn a_gang_that_does_not_come_together_is_given_up() {
    let (mut farm, _) = at_denoise(&[("a", 1), ("b", 1)], 2);
    let (_, assignment) = farm.latest("denoise/0");
    seat(&mut farm, "a", assignment.token, 1);
    seat(&mut farm, "b", assignment.token, 1);
    join(&mut farm, "a", assignment.token);
    let mut late = Vec::new();
    for _ in 0..farm.limits.join_ms / 1000 {
        for (id, share) in shares(&farm, "denoise/0") {
            let (_, assignment) = farm.latest("denoise/0");
            let running = longtake_core::Running {
                share: Some(share),
                ..support::running(&assignment, 0.0)
            };
            late.extend(told(&farm.heartbeat(&id, vec![running])));
        }
        late.extend(told(&farm.pass(1000)));
    }
    let expected = ["a: revoke denoise/0", "b: revoke denoise/0"];
    assert_eq!(
        late.iter()
            .filter(|line| line.contains("revoke"))
            .collect::<Vec<_>>(),
        expected
    );
    assert!(farm.latest("denoise/0").1.token > assignment.token);
}

#[test]
fn single_tasks_do_not_overtake_a_gang_for_ever() {
    let mut farm = Farm::new();
    for id in ["a", "b"] {
        farm.attach_as(id, worker(id, 1), vec![]);
    }
    // The older job keeps one busy; the gang comes next, then a job of many single windows.
    farm.submit("old", spec(100));
    let gang = submit(
        &mut farm,
        "gang",
        JobSpec {
            seed: 5,
            ..spec(100)
        },
        2,
    )
    .expect("taken");
    let many = JobSpec {
        seed: 9,
        prompt: "another".into(),
        ..apart(2000)
    };
    farm.submit("many", many);
    let mut rounds = 0;
    while farm
        .assigned
        .iter()
        .all(|(_, a)| a.job != gang || a.task.0 != "denoise/0")
    {
        // Whoever began first is done first, so that never both are free.
        let held: Vec<_> = farm.core.holdings().collect();
        let is_held = |(worker, a): &&(WorkerId, Assignment)| {
            let mut held = held.iter();
            held.any(|(id, _, job, task)| (*id, *job, task) == (worker, &a.job, &a.task))
        };
        let oldest = farm
            .assigned
            .iter()
            .filter(is_held)
            .min_by_key(|(_, a)| a.token);
        let (worker, assignment) = oldest.expect("somebody works").clone();
        farm.done(&worker.0, &assignment);
        rounds += 1;
        assert!(rounds < 12, "the gang waits behind {:?}", farm.log());
    }
}

#[test]
fn what_is_kept_for_a_gang_is_told() {
    let mut farm = Farm::new();
    for id in ["a", "b"] {
        farm.attach_as(id, worker(id, 1), vec![]);
    }
    farm.submit("old", spec(100));
    let (first, text) = farm.latest("text");
    farm.done(&first, &text);
    let gang = submit(
        &mut farm,
        "gang",
        JobSpec {
            seed: 5,
            ..spec(100)
        },
        2,
    )
    .expect("taken");
    let later = JobSpec {
        seed: 6,
        ..spec(100)
    };
    let (later, _) = farm.submit("later", later);
    let reasons = farm.explain(&gang).join("\n");
    assert!(
        reasons.contains(
            "denoise/0 wants 2 ranks at once, and 1 are free (1 of b); a does denoise/0 of old"
        ),
        "{reasons}"
    );
    let reasons = farm.explain(&later).join("\n");
    assert!(
        reasons.contains("b is kept for denoise/0 of gang"),
        "{reasons}"
    );
}

#[test]
fn more_ranks_than_one_gang_can_have_are_refused() {
    let refused = |workers: &[WorkerInfo], ranks, parts: &[&str]| {
        let mut farm = Farm::new();
        for info in workers {
            farm.attach_as(&info.name.clone(), info.clone(), vec![]);
        }
        let error = submit(&mut farm, "j1", spec(100), ranks).expect_err("refused");
        for part in parts {
            assert!(error.contains(part), "{part} of: {error}");
        }
        assert!(farm.records.is_empty());
    };
    refused(
        &[worker("a", 2), worker("b", 1)],
        4,
        &["4 ranks", "at most 3", "--ranks 3 or fewer", "a gives 2"],
    );
    let other = WorkerInfo {
        isa: "avx512".into(),
        ..worker("b", 2)
    };
    refused(
        &[worker("a", 2), other],
        4,
        &["at most 2", "of one level", "b gives 2 on avx512"],
    );
    let hidden = |id: &str| WorkerInfo {
        gang_address: Some([127, 0, 0, 1].into()),
        ..worker(id, 2)
    };
    refused(
        &[hidden("a"), hidden("b")],
        4,
        &["at most 2", "on its machine", "--gang-address"],
    );
    let gpu = |id: &str| WorkerInfo {
        gang_address: None,
        ..worker(id, 1)
    };
    refused(&[gpu("a"), gpu("b")], 2, &["at most 1", "by itself"]);
    // Two workers on one machine reach each other, wherever else they are reached from.
    let mut farm = Farm::new();
    for id in ["a", "b"] {
        let info = WorkerInfo {
            machine: "m".into(),
            ..hidden(id)
        };
        farm.attach_as(id, info, vec![]);
    }
    submit(&mut farm, "j1", spec(100), 4).expect("taken");
}

#[test]
fn a_job_for_a_gang_takes_a_level_that_has_one() {
    let mut farm = Farm::new();
    farm.attach_as(
        "a",
        WorkerInfo {
            isa: "avx512".into(),
            ..worker("a", 1)
        },
        vec![],
    );
    farm.attach_as("b", worker("b", 2), vec![]);
    submit(&mut farm, "j1", spec(100), 2).expect("taken");
    assert_eq!(
        farm.latest("text").0,
        "b",
        "a could never share the windows"
    );
}

#[test]
fn gangs_outlive_a_coordinator() {
    let (mut farm, job) = at_denoise(&[("a", 2), ("b", 2), ("c", 1)], 4);
    let (_, assignment) = farm.latest("denoise/0");
    let parts = shares(&farm, "denoise/0");
    farm.restart();
    let part = |i: usize| longtake_core::Running {
        share: Some(parts[i].1),
        ..support::running(&assignment, 0.5)
    };
    // The one that follows may be back first.
    let back = farm.attach_as("b#2", worker("b", 2), vec![part(1)]);
    assert_eq!(told(&back), [""; 0]);
    farm.attach_as("a#2", worker("a", 2), vec![part(0)]);
    farm.attach_as("c#2", worker("c", 1), vec![]);
    let busy: Vec<_> = farm
        .core
        .workers()
        .map(|w| (w.worker.0, w.tasks.len()))
        .collect();
    assert_eq!(
        busy,
        [("a#2".into(), 1), ("b#2".into(), 1), ("c#2".into(), 0)]
    );
    farm.done("a#2", &assignment);
    assert_eq!(shares(&farm, "decode/0").len(), 2);
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
    // Nobody follows in a gang whose first rank does not come back.
    let (mut farm, _) = at_denoise(&[("a", 2), ("b", 2)], 4);
    farm.restart();
    farm.attach_as("b#2", worker("b", 2), vec![part(1)]);
    let late = told(&farm.pass(farm.limits.adopt_ms + 500));
    assert!(
        late.contains(&"b#2: revoke denoise/0".to_owned()),
        "{late:?}"
    );
}

#[test]
fn an_equal_job_goes_on_with_other_ranks() {
    let (mut farm, job) = at_denoise(&[("a", 1), ("b", 1)], 2);
    let same = submit(&mut farm, "j2", spec(100), 1).expect("taken");
    assert_eq!(same, JobId("j2".into()));
    let (id, assignment) = farm.latest("denoise/0");
    farm.done(&id, &assignment);
    assert_eq!(
        shares(&farm, "decode/0"),
        [(
            "a".into(),
            Share {
                ranks: 1,
                first: 0,
                own: 1
            }
        )]
    );
    let error = submit(&mut farm, "j3", spec(100), 3).expect_err("too many");
    assert!(error.contains("at most 2"), "{error}");
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
}
