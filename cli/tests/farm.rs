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
    let mut watch = longtake(folder.path());
    watch.args(["watch", &job, "--coordinator", &first.url]);
    let said = folder.path().join("watch.log");
    watch.stderr(fs::File::create(&said).expect("a log"));
    let watch = Guard(watch.spawn().expect("watch runs"));
    wait_for("watch to see the job", || {
        (fs::metadata(&said).expect("a log").len() > 0).then_some(())
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
    let mut watch = watch;
    let watched = wait_for("watch to end", || watch.0.try_wait().expect("a status"));
    assert!(watched.success(), "watch waits for the next coordinator");
}

/// The encoded chunks' bytes, as a whole: an MP4 keeps them behind its index.
fn pictures(film: &[u8], first: usize, count: usize) -> Vec<longtake_common::Frame> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("film.mp4");
    fs::write(&path, film).expect("a file");
    let video = longtake_common::media::open_video(&path).expect("a film");
    let frames = video.skip(first).take(count);
    frames.map(|frame| frame.expect("a picture")).collect()
}

#[test]
fn one_segment_is_made_anew_and_the_rest_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str| fs::read(folder.path().join(name)).expect("a film");
    let farm = Farm::start(folder.path(), "127.0.0.1:0");
    let job = farm.submit(&[]);
    let waiting = farm.ask(&["explain", &job]);
    let reason = waiting["reasons"][0].as_str().expect("a reason");
    assert!(reason.contains("no worker is connected"), "{reason}");
    let early = farm.run(&["download", &job, "-o", "early.mp4"]);
    assert!(stderr(&early).contains("--segment N"), "{}", stderr(&early));
    let _worker = farm.worker();
    farm.ask(&["watch", &job]);
    farm.ask(&["download", &job, "-o", "before.mp4"]);
    let segment = |index: u32, name: &str| {
        let index = index.to_string();
        let got = farm.ask(&["download", &job, "--segment", &index, "-o", name]);
        let number = |key: &str| got[key].as_u64().expect("a number") as usize;
        (number("first_frame"), number("frames"), read(name))
    };
    let segments: Vec<_> = (0..5).map(|i| segment(i, "segment.mp4")).collect();
    let (first, count, middle) = &segments[2];
    // A segment is the film's own chunks in a file that plays.
    let before = read("before.mp4");
    assert!(pictures(middle, 0, *count) == pictures(&before, *first, *count));

    let retake = ["retake", &job, "--segment=2", "--wait", "-o", "after.mp4"];
    assert_eq!(farm.ask(&retake)["state"], "done");
    let after = read("after.mp4");
    let all = 120;
    let end = first + count;
    assert!(pictures(&before, 0, *first) == pictures(&after, 0, *first));
    assert!(pictures(&before, end, all - end) == pictures(&after, end, all - end));
    assert!(pictures(&before, *first, *count) != pictures(&after, *first, *count));
    for (index, (_, _, bytes)) in segments.iter().enumerate() {
        // Neighbours show the seams, so only those beyond them are whole as they were.
        let now = segment(index as u32, "segment.mp4").2;
        assert_eq!(now == *bytes, index == 0 || index == 4, "segment {index}");
    }
    // Once more, and back to the first take: that is in the store.
    farm.ask(&["retake", &job, "--segment=2", "--wait", "-o", "again.mp4"]);
    assert!(read("again.mp4") != after);
    let back = farm.ask(&["retake", &job, "--segment=2", "--seed=5"]);
    assert_eq!(back["state"], "done", "nothing is rendered: {back}");
    farm.ask(&["download", &job, "-o", "back.mp4"]);
    assert!(read("back.mp4") == before);

    let beyond = farm.run(&["retake", &job, "--segment=5"]);
    assert_eq!(beyond.status.code(), Some(1));
    assert!(
        stderr(&beyond).contains("has no segment 5"),
        "{}",
        stderr(&beyond)
    );
}

#[test]
fn jobs_are_paused_and_tried_again_and_workers_drained() {
    let folder = tempfile::tempdir().expect("a folder");
    let farm = Farm::start(folder.path(), "127.0.0.1:0");
    let job = farm.submit(&[]);
    assert_eq!(farm.ask(&["pause", &job])["state"], "paused");
    let worker = farm.worker();
    let name = wait_for("the worker", || {
        let workers = farm.ask(&["workers", "list"]);
        workers["workers"][0]["name"].as_str().map(str::to_owned)
    });
    assert_eq!(farm.ask(&["status", &job])["state"], "paused");
    let drained = farm.ask(&["workers", "drain", &name]);
    assert_eq!(drained["workers"][0]["state"], "drained");
    assert_eq!(farm.ask(&["resume", &job])["state"], "queued");
    let reasons = farm.ask(&["explain", &job])["reasons"].to_string();
    assert!(reasons.contains("drained"), "{reasons}");
    assert_eq!(farm.ask(&["cancel", &job])["state"], "cancelled");
    assert_eq!(farm.run(&["watch", &job]).status.code(), Some(1));
    let resumed = farm.ask(&["workers", "resume", &name]);
    assert_eq!(resumed["workers"][0]["state"], "idle");
    assert_eq!(farm.ask(&["retry", &job])["error"], Value::Null);
    assert_eq!(farm.ask(&["watch", &job])["segments_done"], 5);
    let isa = farm.ask(&["explain", &job])["isa"].clone();
    assert_eq!(resumed["workers"][0]["isa"], isa);
    // A second process of the name is not taken in beside the first.
    let args = ["worker", "--coordinator", &farm.url, "--name", &name];
    let second = run(folder.path(), args);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("another --name"),
        "{}",
        stderr(&second)
    );
    // Told to stop, a worker that has nothing to do goes.
    let mut worker = worker;
    signal(worker.0.id(), "TERM");
    let status = wait_for("the worker to go", || {
        worker.0.try_wait().expect("a status")
    });
    assert!(status.success(), "{status}");
    assert!(farm.run(&["workers", "drain", "nobody"]).status.code() == Some(1));
}
