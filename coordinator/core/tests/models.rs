//! Names for models, who has them, and models that are not to be used.

mod support;

use longtake_common::Hash;
use longtake_common::ids::{JobId, WorkerId};
use longtake_common::model::Role;
use longtake_core::{Effect, Event, Fault, Fetching, StoredModel, StoredPart, WorkerInfo};
use support::{Farm, spec, worker_info};

/// The model of [`spec`].
fn model() -> Hash {
    Hash::of(b"model")
}

fn add(name: &str, bytes: &[u8]) -> Event {
    Event::AddModel {
        name: name.into(),
        model: StoredModel {
            hash: Hash::of(bytes),
            bytes: 10,
            files: 1,
            parts: Vec::new(),
        },
    }
}

fn remove(name: &str) -> Event {
    Event::RemoveModel { name: name.into() }
}

fn without_model(id: &str) -> WorkerInfo {
    WorkerInfo {
        takes_paths: false,
        ..worker_info(id)
    }
}

fn with_model(id: &str) -> WorkerInfo {
    WorkerInfo {
        models: [model()].into(),
        ..without_model(id)
    }
}

fn submit(farm: &mut Farm, id: &str) -> Result<JobId, String> {
    let effects = farm.handle(Event::Submit {
        job: JobId(id.into()),
        spec: Box::new(spec(121)),
        isa: None,
        ranks: None,
    });
    let answer = effects.into_iter().find_map(|effect| match effect {
        Effect::Submitted { job, .. } => Some(Ok(job)),
        Effect::Refused { error, .. } => Some(Err(error)),
        _ => None,
    });
    answer.expect("an answer")
}

#[test]
fn whoever_has_the_model_is_asked_first() {
    let mut farm = Farm::new();
    farm.command(add("m", b"model"));
    farm.attach_as("a", without_model("a"), vec![]);
    farm.attach_as("b", with_model("b"), vec![]);
    farm.submit("j", spec(121));
    assert_eq!(farm.log(), ["b text"]);
    // The other one fetches it rather than being idle.
    farm.submit(
        "k",
        longtake_common::JobSpec {
            seed: 9,
            prompt: "other".into(),
            ..spec(121)
        },
    );
    assert_eq!(farm.log(), ["b text", "a text"]);
}

#[test]
fn a_model_that_is_not_stored_is_left_to_those_who_have_it() {
    let mut farm = Farm::new();
    farm.attach_as("a", without_model("a"), vec![]);
    farm.attach_as("b", with_model("b"), vec![]);
    let (job, _) = farm.submit("j", spec(121));
    farm.submit(
        "k",
        longtake_common::JobSpec {
            prompt: "other".into(),
            ..spec(121)
        },
    );
    assert_eq!(farm.log(), ["b text"]);
    farm.detach("b");
    assert_eq!(farm.log(), ["b text"], "the other one could only fail");
    let reasons = farm.explain(&job);
    assert!(reasons[0].contains("models add"), "{reasons:?}");
    farm.attach("own", vec![]);
    assert_eq!(
        farm.log(),
        ["b text", "own text"],
        "it looks under the job's path"
    );
}

#[test]
fn a_job_waits_for_a_worker_with_the_model() {
    let mut farm = Farm::new();
    farm.attach_as("a", without_model("a"), vec![]);
    let other = WorkerInfo {
        isa: "scalar".into(),
        ..with_model("b")
    };
    farm.attach_as("b", other, vec![]);
    let event = Event::Submit {
        job: JobId("j".into()),
        spec: Box::new(spec(121)),
        isa: Some("avx2".into()),
        ranks: None,
    };
    farm.handle(event);
    assert_eq!(farm.log(), [""; 0]);
    let reasons = farm.explain(&JobId("j".into()));
    assert!(reasons[0].contains("models add"), "{reasons:?}");
    let models = Event::WorkerModels {
        worker: WorkerId("a".into()),
        models: [model()].into(),
        fetching: None,
    };
    farm.handle(models);
    assert_eq!(farm.log(), ["a text"]);
}

#[test]
fn names_outlive_the_coordinator_and_do_not_collide() {
    let mut farm = Farm::new();
    farm.command(add("m", b"model"));
    farm.command(add("m", b"model"));
    let refusal = farm.refused(add("m", b"another"));
    assert!(
        refusal.contains("another model") && refusal.contains("--name"),
        "{refusal}"
    );
    farm.command(add("n", b"model"));
    farm.restart();
    farm.refused(add("m", b"another"));
    let names: Vec<_> = farm.core.models().map(|model| model.name).collect();
    assert_eq!(names, ["m", "n"]);
    farm.command(remove("m"));
    assert!(farm.core.is_stored(model()));
    farm.command(add("m", b"another"));
    assert!(farm.refused(remove("no-such")).contains("models list"));
    for bad in [
        "",
        ".m",
        "-m",
        "a/b",
        "a b",
        "../a",
        "a\n",
        &"a".repeat(65),
        &model().to_string(),
    ] {
        assert!(
            farm.refused(add(bad, b"x")).contains("no name for a model"),
            "{bad}"
        );
    }
}

#[test]
fn a_model_in_use_is_not_removed() {
    let mut farm = Farm::new();
    farm.command(add("m", b"model"));
    farm.command(add("n", b"model"));
    let (job, _) = farm.submit("j", spec(121));
    farm.command(remove("m"));
    let refusal = farm.refused(remove("n"));
    assert!(refusal.contains(&job.0), "{refusal}");
    farm.command(Event::Cancel { job });
    farm.command(remove("n"));
    assert!(!farm.core.is_stored(model()));
}

#[test]
fn a_broken_model_is_refused_at_once() {
    let mut farm = Farm::new();
    farm.command(add("m", b"model"));
    let fault = |reason: &str, damaged| Event::ModelFault {
        hash: model(),
        fault: Some(Fault {
            reason: reason.into(),
            damaged,
        }),
    };
    let sound = || Event::ModelFault {
        hash: model(),
        fault: None,
    };
    farm.handle(fault("chunk 3 of vae.safetensors is damaged", true));
    farm.restart();
    let error = submit(&mut farm, "j").expect_err("broken");
    assert!(
        error.contains("chunk 3") && error.contains("models add"),
        "{error}"
    );
    assert_eq!(
        farm.core.models().next().expect("m").fault.as_ref(),
        farm.core.model_fault(model())
    );
    farm.command(add("m", b"model"));
    let job = submit(&mut farm, "j").expect("mended");
    farm.command(Event::Cancel { job: job.clone() });
    farm.handle(fault("again", true));
    assert!(
        farm.refused(Event::Retry { job: job.clone() })
            .contains("again")
    );
    farm.handle(sound());
    farm.command(Event::Retry { job });
    // The right bytes that are no good stay no good, until somebody insists.
    farm.handle(fault("NaN", false));
    farm.handle(sound());
    assert!(submit(&mut farm, "k").expect_err("no good").contains("NaN"));
    farm.command(add("m", b"model"));
    submit(&mut farm, "k").expect("tried again");
}

#[test]
fn a_worker_that_fetches_is_shown() {
    let mut farm = Farm::new();
    farm.command(add("m", b"model"));
    farm.attach_as("a", without_model("a"), vec![]);
    let (job, _) = farm.submit("j", spec(121));
    farm.handle(Event::WorkerModels {
        worker: WorkerId("a".into()),
        models: [].into(),
        fetching: Some(Fetching {
            hash: model(),
            done_bytes: 5 << 20,
            total_bytes: 9 << 20,
        }),
    });
    let reasons = farm.explain(&job);
    assert!(
        reasons.contains(&"a is fetching the model: 5 of 9 MiB are there".to_owned()),
        "{reasons:?}"
    );
    assert!(farm.core.workers().next().expect("a").fetching.is_some());
}

#[test]
fn a_set_is_there_when_all_its_parts_are() {
    let part = |role, bytes: &[u8]| StoredPart {
        role,
        name: format!("{role:?}"),
        hash: Hash::of(bytes),
        bytes: 4,
    };
    let set = Event::AddModel {
        name: "set".into(),
        model: StoredModel {
            hash: Hash::of(b"set"),
            bytes: 8,
            files: 1,
            parts: vec![
                part(Role::Checkpoint, b"model"),
                part(Role::Upscaler, b"up"),
            ],
        },
    };
    let mut farm = Farm::new();
    farm.command(set);
    farm.attach_as("a", with_model("a"), vec![]);
    let shown = |farm: &Farm| farm.core.models().next().expect("the set");
    assert!(shown(&farm).workers.is_empty(), "the upscaler is not there");
    farm.handle(Event::WorkerModels {
        worker: WorkerId("a".into()),
        models: [model(), Hash::of(b"up")].into(),
        fetching: None,
    });
    assert_eq!(shown(&farm).workers, ["a"]);

    // What is stored under a name of its own is nobody else's loss.
    let job = submit(&mut farm, "j").expect("stored as a part");
    assert!(farm.refused(remove("set")).contains("is not finished"));
    farm.command(add("alone", b"model"));
    farm.command(remove("set"));
    assert!(!farm.core.is_stored(Hash::of(b"up")) && farm.core.is_stored(model()));
    farm.command(Event::Cancel { job });
    farm.handle(Event::ModelFault {
        hash: model(),
        fault: Some(Fault {
            reason: "NaN".into(),
            damaged: false,
        }),
    });
    farm.command(remove("alone"));
    assert_eq!(
        farm.core.model_fault(model()),
        None,
        "forgotten with its name"
    );
}

#[test]
fn a_job_too_large_for_every_worker_is_refused() {
    // A window of 121 frames of 256x160 is 121 * 256 * 160 * 12 bytes in f32.
    let needed = 121 * 256 * 160 * 12;
    let with_memory = |id: &str, memory_bytes| WorkerInfo {
        memory_bytes,
        ..worker_info(id)
    };
    let mut farm = Farm::new();
    let early = submit(&mut farm, "early").expect("nobody is there yet");
    farm.attach_as("small", with_memory("small", needed - 1), vec![]);
    assert!(farm.assigned.is_empty(), "it cannot do that");
    let reasons = farm.explain(&early).join(" ");
    assert!(
        reasons.contains("a window of 121 frames at 256x160"),
        "{reasons}"
    );
    farm.command(Event::Cancel { job: early });
    let refusal = submit(&mut farm, "j").expect_err("too large");
    for part in ["small", "--segment-frames", "0.1 GiB"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    farm.attach_as("large", with_memory("large", needed), vec![]);
    submit(&mut farm, "j").expect("one is large enough");
    assert!(
        farm.assigned.iter().all(|(worker, _)| worker.0 == "large"),
        "{:?}",
        farm.assigned
    );
}
