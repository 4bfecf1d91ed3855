//! A worker that could not reach what others store is told so before it takes anything.

use longtake_tests::local::{Farm, environment, product, sentence};
use longtake_tests::services::S3;
use std::process::Command;

#[test]
fn a_worker_that_cannot_reach_the_artifacts_takes_nothing() {
    let farm = Farm::start(true);
    let refused = |part: &str, change: &dyn Fn(&mut Command)| {
        let mut command = product(&farm.path(""));
        command.envs(environment(&farm.store));
        command.args(["worker", "--coordinator", &farm.url()]);
        change(&mut command);
        let said = sentence(&command.output().expect("runs"));
        assert!(said.contains("cannot work for the coordinator"), "{said}");
        assert!(said.contains(part), "{said}");
    };
    refused("http://127.0.0.1:1", &|worker| {
        worker.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    });
    refused("there are no credentials", &|worker| {
        worker.env_remove("AWS_ACCESS_KEY_ID");
    });
    // A bucket of the same name in another place.
    let other = S3::start(&farm.path(""));
    let endpoint = other.environment()[0].1.clone();
    refused("something else here", &|worker| {
        worker.env("AWS_ENDPOINT_URL", &endpoint);
    });
    let workers = farm.ask(&["workers", "list"]);
    assert_eq!(workers["workers"], serde_json::json!([]));
}
