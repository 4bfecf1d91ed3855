//! Coordinator, workers and users as separate processes.

mod support;

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Output;
use support::{Guard, SMALL_FILM, json, longtake, render_small, run, signal, stderr, wait_for};

/// A coordinator in a folder.
struct Farm<'a> {
    folder: &'a Path,
    coordinator: Guard,
    url: String,
}

impl<'a> Farm<'a> {
    /// Starts a coordinator that listens on `listen`.
    fn start(folder: &'a Path, listen: &str) -> Self {
        let mut command = longtake(folder);
        command.args(["coordinator", "--listen", listen]);
        command.args(["--state", "file:state", "--artifacts", "file:artifacts"]);
        let mut child = command.spawn().expect("a coordinator");
        let log = BufReader::new(child.stderr.take().expect("stderr"));
        let mut lines = log.lines().map_while(Result::ok);
        let url = lines.find_map(|line| line.strip_prefix("coordinator at ").map(str::to_owned));
        // Somebody has to read on, or the coordinator would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            folder,
            coordinator: Guard(child),
            url: url.expect("the coordinator's address"),
        }
    }

    fn worker(&self) -> Guard {
        let log = fs::File::create(self.folder.join("worker.log")).expect("a log");
        let mut command = longtake(self.folder);
        command
            .args(["worker", "--coordinator", &self.url, "--threads", "1"])
            .stderr(log);
        Guard(command.spawn().expect("a worker"))
    }

    /// Runs a user's command.
    fn run(&self, args: &[&str]) -> Output {
        run(
            self.folder,
            args.iter().chain(&["--coordinator", &self.url, "--json"]),
        )
    }

    /// Runs a user's command that should succeed.
    fn ask(&self, args: &[&str]) -> Value {
        json(&self.run(args))
    }

    /// Submits the small film with more flags; returns the job's name.
    fn submit(&self, flags: &[&str]) -> String {
        let reply = self.ask(&[&["submit"], &SMALL_FILM[1..], flags].concat());
        reply["job"].as_str().expect("a job").to_owned()
    }
}

#[test]
fn a_job_goes_through_a_farm() {
    let folder = tempfile::tempdir().expect("a folder");
    let film = |name: &str| fs::read(folder.path().join(name)).expect("the film");
    let (alone, _) = render_small(folder.path(), "alone.mp4", &[]);
    let farm = Farm::start(folder.path(), "127.0.0.1:0");
    let job = farm.submit(&[]);
    let queued = farm.ask(&["status", &job]);
    assert_eq!(
        (&queued["state"], &queued["segments_total"]),
        (&"queued".into(), &5.into())
    );

    let _worker = farm.worker();
    let watched = farm.ask(&["watch", &job]);
    assert_eq!(
        (&watched["state"], &watched["segments_done"]),
        (&"done".into(), &5.into())
    );
    assert_eq!(farm.ask(&["status", &job]), watched);
    assert_eq!(
        farm.ask(&["list"])["jobs"].as_array().map(Vec::len),
        Some(1)
    );

    // The same job again, waited for and fetched: the farm's film is the one made alone.
    farm.submit(&["--wait", "-o", "farm.mp4"]);
    assert!(
        film("farm.mp4") == alone,
        "the farm's film differs from the one made alone"
    );
    let mut render = longtake(folder.path());
    render.env("LONGTAKE_COORDINATOR", &farm.url);
    let report = json(
        &render
            .args(SMALL_FILM)
            .args(["-o", "r.mp4", "--json"])
            .output()
            .expect("runs"),
    );
    assert_eq!(report["segments"][0]["reused"], true, "{report}");
    assert!(film("r.mp4") == alone);

    let unknown = farm.run(&["status", "j-ffffffffff"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        stderr(&unknown).contains("j-ffffffffff"),
        "{}",
        stderr(&unknown)
    );
}

#[test]
fn a_job_that_waits_can_be_cancelled() {
    let folder = tempfile::tempdir().expect("a folder");
    let farm = Farm::start(folder.path(), "127.0.0.1:0");
    let job = farm.submit(&[]);
    assert_eq!(farm.ask(&["cancel", &job])["state"], "cancelled");
    assert_eq!(farm.ask(&["status", &job])["state"], "cancelled");
}

#[test]
fn a_worker_outlives_its_coordinator() {
    let folder = tempfile::tempdir().expect("a folder");
    let (alone, _) = render_small(folder.path(), "alone.mp4", &[]);
    let first = Farm::start(folder.path(), "127.0.0.1:0");
    let _worker = first.worker();
    let job = first.submit(&[]);
    wait_for("the job to run", || {
        (first.ask(&["status", &job])["state"] != "queued").then_some(())
    });
    signal(first.coordinator.0.id(), "KILL");
    let listen = first
        .url
        .strip_prefix("http://")
        .expect("an address")
        .to_owned();
    drop(first);
    let second = Farm::start(folder.path(), &listen);
    second.submit(&["--wait", "-o", "farm.mp4"]);
    let film = fs::read(folder.path().join("farm.mp4")).expect("the film");
    assert!(film == alone, "a dead coordinator changed the film");
}
