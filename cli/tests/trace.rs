//! Traces that nobody takes, and logs that programs can read.

mod support;

use support::{Service, json, longtake, wait_for};

#[test]
fn a_collector_that_is_away_does_not_hold_up_a_command() {
    let temporary = tempfile::tempdir().expect("a folder");
    let farm = Service::coordinator(temporary.path(), &[]);
    let started = std::time::Instant::now();
    let mut list = longtake(temporary.path());
    list.args([
        "list",
        "--json",
        "--coordinator",
        &farm.url,
        "--otlp",
        "http://127.0.0.1:9",
    ]);
    json(&list.output().expect("runs"));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    let mut list = longtake(temporary.path());
    let out = list
        .args(["list", "--otlp", "collector"])
        .output()
        .expect("runs");
    assert!(
        support::stderr(&out).contains("http://host:4317"),
        "{}",
        support::stderr(&out)
    );
}

#[test]
fn logs_are_json_objects_on_demand() {
    let temporary = tempfile::tempdir().expect("a folder");
    let flags = ["--log-format".to_owned(), "json".to_owned()];
    let farm = Service::coordinator(temporary.path(), &flags);
    let line = wait_for("a log line", || {
        let lines = farm.log.lock().expect("no panic");
        lines.iter().find(|line| line.starts_with('{')).cloned()
    });
    let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(object["level"], "INFO");
    assert_eq!(object["fields"]["message"], "coordinator started");
    assert!(
        object["fields"]["addr"]
            .as_str()
            .is_some_and(|a| a.starts_with("127.0.0.1:"))
    );
}
