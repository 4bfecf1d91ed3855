//! Jobs that name an instruction-set level.

mod support;

use longtake_common::ids::JobId;
use longtake_core::{Effect, Event, WorkerInfo};
use support::{Farm, spec, worker_info};

fn submit(farm: &mut Farm, isa: &str) -> Result<(), String> {
    let event = Event::Submit {
        job: JobId(format!("j-{isa}")),
        spec: Box::new(spec(121)),
        isa: Some(isa.to_owned()),
        ranks: None,
    };
    let mut effects = farm.handle(event).into_iter();
    let answer = effects.find_map(|effect| match effect {
        Effect::Submitted { .. } => Some(Ok(())),
        Effect::Refused { error, .. } => Some(Err(error)),
        _ => None,
    });
    answer.expect("an answer")
}

fn worker(id: &str, isa: &str) -> WorkerInfo {
    WorkerInfo {
        isa: isa.into(),
        ..worker_info(id)
    }
}

#[test]
fn a_level_that_no_worker_can_have_is_refused_at_once() {
    let mut farm = Farm::new();
    for wrong in [
        "mips",
        "sm_90",
        "sm_90x",
        "sm_x132",
        "sm_90x132p",
        "sm_90xp1",
        "AVX2",
        "",
    ] {
        let error = submit(&mut farm, wrong).expect_err(wrong);
        let named = format!("'{wrong}'");
        assert!(
            error.contains(&named) && error.contains("avx512, avx2, scalar"),
            "{error}"
        );
    }
    for level in ["avx512", "avx2", "scalar", "sm_90x132", "sm_90x132p128"] {
        submit(&mut farm, level).expect("a worker of that level may come");
    }
}

#[test]
fn a_level_that_no_connected_worker_has_is_refused_at_once() {
    let mut farm = Farm::new();
    submit(&mut farm, "avx512").expect("nobody is there yet");
    farm.attach_as("a", worker("a", "avx2"), vec![]);
    farm.attach_as("g", worker("g", "sm_90x132"), vec![]);
    for absent in ["scalar", "sm_80x108"] {
        let error = submit(&mut farm, absent).expect_err(absent);
        for part in [absent, "a (avx2)", "g (sm_90x132)", "--isa"] {
            assert!(error.contains(part), "{error}");
        }
    }
    for level in ["avx2", "sm_90x132"] {
        submit(&mut farm, level).expect("there is one of that level");
    }
    submit(&mut farm, "avx512").expect("it is the job that is there already");
    // One that is drained now can be told to work again; one that is gone cannot.
    farm.command(Event::Drain { name: "g".into() });
    submit(&mut farm, "sm_90x132").expect("it may go on");
    farm.detach("g");
    submit(&mut farm, "sm_80x108").expect_err("a is still there");
    farm.detach("a");
    submit(&mut farm, "sm_80x108").expect("nobody is there");
}
