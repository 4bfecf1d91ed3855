//! One film is of one engine: what an upgrade does to the jobs of the one before.

mod support;

use longtake_common::ids::{Hash, JobId};
use longtake_common::task::ENGINE;
use longtake_core::{Event, JobState};
use support::*;

/// The records as another engine would have left them: its name, and other keys for its work.
fn upgrade(farm: &mut Farm) {
    let keys = farm.records.keys();
    let of_memo = keys.filter_map(|key| key.strip_prefix("memo/"));
    let renamed: Vec<(String, String)> = of_memo
        .map(|key| (key.to_owned(), Hash::of(key.as_bytes()).to_string()))
        .chain([(ENGINE.to_owned(), "0.0.9+engine.1".to_owned())])
        .collect();
    let changed = |text: &str| {
        let change = |text: String, (from, to): &(String, String)| text.replace(from, to);
        renamed.iter().fold(text.to_owned(), change)
    };
    let records = std::mem::take(&mut farm.records);
    farm.records = records
        .into_iter()
        .map(|(key, value)| {
            let value = String::from_utf8(value).expect("JSON");
            (changed(&key), changed(&value).into_bytes())
        })
        .collect();
    farm.restart();
}

#[test]
fn an_unfinished_film_begins_anew() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(288));
    farm.attach("w", vec![]);
    for task in ["text", "denoise/0", "decode/0"] {
        let (worker, assignment) = farm.latest(task);
        farm.done(&worker, &assignment);
    }
    assert!(farm.view(&job).segments[0].done);
    upgrade(&mut farm);
    let view = farm.view(&job);
    assert!(!view.segments[0].done && view.engine == ENGINE, "{view:?}");
    farm.assigned.clear();
    farm.attach("w#2", vec![]);
    farm.run();
    assert_eq!(farm.view(&job).state, JobState::Done);
    assert_eq!(farm.assigned.len(), 10, "every task: {:?}", farm.log());
    // Only once: the next coordinator goes on.
    farm.restart();
    assert_eq!(farm.view(&job).state, JobState::Done);
}

#[test]
fn a_complete_film_stays_and_is_not_mixed() {
    let mut farm = Farm::new();
    let (job, _) = farm.submit("j", spec(288));
    farm.attach("w", vec![]);
    farm.run();
    let film = farm.view(&job).video.expect("a film");
    upgrade(&mut farm);
    let view = farm.view(&job);
    assert_eq!((view.state, view.video), (JobState::Done, Some(film)));
    assert_eq!(view.engine, "0.0.9+engine.1");
    let refused = farm.refused(Event::Retake {
        job: JobId("j".into()),
        window: 1,
        seed: None,
        prompt: None,
    });
    assert!(
        refused.contains("rendered by longtake 0.0.9+engine.1"),
        "{refused}"
    );
    farm.handle(Event::Lost {
        artifacts: vec![film],
        wanted_of: Some(job.clone()),
    });
    let view = farm.view(&job);
    assert_eq!(view.state, JobState::Failed);
    assert!(view.error.contains("submit it again"), "{}", view.error);
}
