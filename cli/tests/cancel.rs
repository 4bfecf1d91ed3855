//! A job that is cancelled lets go of its worker, also in the middle of something long.

mod support;

use std::fs::{self, File};
use support::{Guard, SMALL_FILM, Service, json, longtake, run, wait_for};

#[test]
fn a_cancelled_window_lets_go_of_its_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let farm = Service::coordinator(folder.path(), &[]);
    let log = folder.path().join("worker.log");
    let mut worker = longtake(folder.path());
    worker.args(["worker", "--coordinator", &farm.url, "--threads=1"]);
    worker.env("LONGTAKE_LOG", "info,longtake_agent=debug");
    let worker = worker.stderr(File::create(&log).expect("a log")).spawn();
    let _worker = Guard(worker.expect("a worker"));
    let ask = |args: &[&str]| {
        let at = ["--coordinator", &farm.url, "--json"];
        json(&run(folder.path(), args.iter().chain(&at)))
    };
    // One step of this takes half a minute on one thread.
    let long = ["submit", "a red circle", "--size=768x512", "--frames=121"];
    let job = ask(&long)["job"].as_str().expect("a job").to_owned();
    wait_for("the window to be denoised", || {
        let workers = ask(&["workers", "list"]);
        (workers["workers"][0]["tasks"][0]["task"] == "denoise/0").then_some(())
    });
    // Into the first step.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(ask(&["cancel", &job])["state"], "cancelled");
    let small = [&["submit", "--wait"], &SMALL_FILM[1..]].concat();
    let next = ask(&small)["job"].as_str().expect("a job").to_owned();
    assert_eq!(ask(&["status", &next])["state"], "done");

    let log = fs::read_to_string(&log).expect("the log");
    let at = |what: &dyn Fn(&str) -> bool| log.lines().position(what);
    let of = |line: &str, job: &str, task: &str| {
        line.contains(&format!("{job} ")) && line.contains(&format!("task={task}"))
            || line.contains(&format!("job={job} task={task}"))
    };
    let stopped = at(&|line| line.contains("it was taken back") && of(line, &job, "denoise/0"));
    let stopped = stopped.unwrap_or_else(|| panic!("{log}"));
    let step = at(&|line| line.contains("step 1 of"));
    assert!(
        step.is_none_or(|step| step > stopped),
        "it went on to the end of its step:\n{log}"
    );
}
