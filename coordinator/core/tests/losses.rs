//! What is made again when the artifact store has lost something, and what is not.

mod support;

use longtake_common::ids::{Hash, JobId};
use longtake_common::task::Assignment;
use longtake_core::{Blame, Event, JobState};
use support::*;

fn finished() -> (Farm, JobId) {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(288));
    farm.attach("w", vec![]);
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
    farm.assigned.clear();
    (farm, job)
}

fn lost(artifact: Hash, wanted_of: Option<&JobId>) -> Event {
    Event::Lost {
        artifacts: vec![artifact],
        wanted_of: wanted_of.cloned(),
    }
}

/// The worker does not find these inputs.
fn misses(farm: &mut Farm, assignment: &Assignment, inputs: Vec<Hash>) {
    farm.handle(Event::Failed {
        worker: longtake_common::ids::WorkerId("w".into()),
        job: assignment.job.clone(),
        task: assignment.task.clone(),
        token: assignment.token,
        error: "not there".into(),
        blame: Blame::Inputs(inputs),
        log: None,
    });
}

#[test]
fn only_the_lost_part_of_a_film_is_made_again() {
    let (mut farm, job) = finished();
    let before = farm.view(&job);
    farm.handle(lost(before.video.expect("a film"), Some(&job)));
    assert_eq!(farm.view(&job).state, JobState::Running);
    farm.run();
    assert_eq!(farm.log(), ["w mux"]);
    let after = farm.view(&job);
    assert_eq!((after.state, after.video), (JobState::Done, before.video));
    // Lost once more, with a chunk that the film is made of, and after a restart.
    farm.assigned.clear();
    farm.handle(lost(before.video.expect("a film"), Some(&job)));
    let (_, mux) = farm.latest("mux");
    misses(&mut farm, &mux, vec![before.chunks[1]]);
    farm.restart();
    farm.attach("w#2", vec![]);
    farm.run();
    assert_eq!(farm.log(), ["w mux", "w seam/0", "w#2 mux"]);
    assert_eq!(farm.view(&job).chunks, before.chunks);
}

#[test]
fn what_nobody_needs_is_not_made_again() {
    let (mut farm, job) = finished();
    let latents = farm.view(&job).segments[1].latents.expect("latents");
    farm.handle(lost(latents, None));
    farm.handle(lost(Hash::of(b"never heard of"), Some(&job)));
    let view = farm.view(&job);
    assert_eq!(
        (view.state, view.segments[1].latents),
        (JobState::Done, None)
    );
    assert!(farm.assigned.is_empty());
    // A retake of that window makes its own; a user who wants the old ones gets them.
    let (mut farm, job) = finished();
    farm.handle(lost(latents, Some(&job)));
    farm.run();
    assert_eq!(farm.log(), ["w denoise/1"]);
    assert_eq!(farm.view(&job).segments[1].latents, Some(latents));
}

#[test]
fn a_loss_is_not_the_fault_of_the_task_that_notices() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(288));
    farm.attach("w", vec![]);
    let (_, text) = farm.latest("text");
    farm.done("w", &text);
    for _ in 0..5 {
        let (_, denoise) = farm.latest("denoise/0");
        misses(&mut farm, &denoise, denoise.work.inputs());
        let (_, text) = farm.latest("text");
        farm.done("w", &text);
    }
    assert_eq!(farm.view(&job).state, JobState::Running);
    // A store that keeps nothing ends it all the same.
    let (_, denoise) = farm.latest("denoise/0");
    misses(&mut farm, &denoise, denoise.work.inputs());
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Failed);
    assert!(
        view.error.contains("what text made was lost") && view.error.contains("6 times"),
        "{}",
        view.error
    );
    farm.command(Event::Retry { job: job.clone() });
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
}

#[test]
fn inputs_that_nothing_here_makes_fail_like_anything_else() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(288));
    farm.attach("w", vec![]);
    for _ in 0..3 {
        let (_, text) = farm.latest("text");
        misses(&mut farm, &text, vec![Hash::of(b"a picture")]);
    }
    let error = farm.view(&job).error;
    assert_eq!(error, "text failed on w after 3 tries: not there");
}

#[test]
fn a_full_disk_makes_its_worker_rest_and_the_job_wait() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(288));
    farm.attach("w", vec![]);
    for _ in 0..10 {
        let (_, text) = farm.latest("text");
        farm.handle(Event::Failed {
            worker: longtake_common::ids::WorkerId("w".into()),
            job: text.job.clone(),
            task: text.task.clone(),
            token: text.token,
            error: "no space left".into(),
            blame: Blame::Place,
            log: None,
        });
        let given_out = farm.assigned.len();
        assert!(farm.explain(&job)[0].contains("w has no room to work: no space left"));
        assert!(farm.view(&job).notices[0].contains("no space left"));
        for _ in 0..4 {
            farm.pass(1000);
            farm.heartbeat("w", vec![]);
        }
        assert_eq!(farm.assigned.len(), given_out, "it rests");
        farm.pass(1500);
        assert_eq!(farm.assigned.len(), given_out + 1);
    }
    // Others go on meanwhile.
    let (_, text) = farm.latest("text");
    farm.heartbeat("w", vec![running(&text, 0.1)]);
    farm.run();
    let view = farm.view(&job);
    assert_eq!((view.state, view.notices.len()), (JobState::Done, 0));
}
