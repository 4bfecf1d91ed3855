//! A farm on a real etcd and a real S3-speaking server, in which everything goes wrong.

use longtake_tests::farm::Farm;
use longtake_tests::product::{last_json, longtake};
use longtake_tests::services::free_address;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One round of what `cargo xtask scenario` plays ten times with a longer film: workers on machines
/// of their own join, leave, die and are cut off, coordinator and etcd are killed, and the film is
/// the one that is made alone.
#[test]
fn a_film_survives_every_part_of_its_farm() {
    let mut scenario = Command::new(env!("CARGO_BIN_EXE_scenario"));
    let out = scenario
        .args(["--short", "--rounds=1", "--seed=1"])
        .output();
    let report: Value = last_json(&out.expect("it runs")).unwrap_or_else(|story| panic!("{story}"));
    let rounds = report["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 2, "none and chain: {report}");
    for round in rounds {
        assert_eq!(round["equal"], true, "{round}");
        assert_eq!(round["events"].as_array().map(Vec::len), Some(9), "{round}");
    }
}

#[test]
fn a_coordinator_whose_state_store_is_away_says_so_and_tells_nobody_what_is_not_stored() {
    let mut farm = Farm::start(IpAddr::V4(Ipv4Addr::LOCALHOST));
    wait_for("the coordinator to be ready", || {
        farm.page("/readyz").contains(" 200 ").then_some(())
    });
    farm.etcd.freeze();
    let film = ["submit", "a red circle", "--size=64x64", "--frames=9"];
    let mut submit = farm.start_command("submit", &film);
    wait_for("it to notice", || {
        let answer = farm.page("/readyz");
        let noticed = answer.contains(" 503 ") && answer.contains("state store unreachable");
        noticed.then_some(())
    });
    assert!(submit.is_running(), "{}", farm.log("submit"));
    // Neither its end nor the store's changes what comes of the job.
    farm.etcd.kill();
    farm.etcd.restart();
    let ended = wait_for("the answer", || submit.ended());
    assert!(ended.success(), "{}", farm.log("submit"));
    wait_for("the coordinator to be ready again", || {
        farm.page("/readyz").contains(" 200 ").then_some(())
    });
    farm.kill_coordinator();
    farm.start_coordinator();
    let jobs = wait_for("the next coordinator", || {
        let out = farm.command(&["list"]).output().expect("longtake runs");
        last_json::<Value>(&out).ok()
    });
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs}");
}

#[test]
fn a_coordinator_without_its_stores_says_which_and_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let dead = free_address().to_string();
    let state = format!("file:{}", folder.path().join("state").display());
    let artifacts = format!("file:{}", folder.path().join("artifacts").display());
    let run = |state: &str, artifacts: &str, environment: &[(&str, &str)]| {
        let mut command = longtake();
        command.args(["coordinator", "--listen", "127.0.0.1:0", "--state", state]);
        command
            .args(["--artifacts", artifacts])
            .envs(environment.iter().copied());
        let out = command.output().expect("longtake runs");
        assert_eq!(out.status.code(), Some(1));
        let story = String::from_utf8_lossy(&out.stderr).into_owned();
        let errors: Vec<_> = story
            .lines()
            .filter(|line| line.starts_with("error:"))
            .collect();
        assert_eq!(errors.len(), 1, "{story}");
        errors[0].to_owned()
    };
    let error = run(&format!("etcd://{dead}"), &artifacts, &[]);
    assert!(
        error.contains("cannot reach") && error.contains(&dead),
        "{error}"
    );
    let endpoint = format!("http://{dead}");
    let mut environment = vec![("AWS_ENDPOINT_URL", endpoint.as_str())];
    let error = run(&state, "s3://bucket/farm", &environment);
    assert!(error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    environment.extend([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let error = run(&state, "s3://bucket/farm", &environment);
    assert!(
        error.contains("s3://bucket/farm") && error.contains("AWS_ENDPOINT_URL"),
        "{error}"
    );
}
