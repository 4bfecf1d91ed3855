//! How workers come and go, as real processes: they join, fall silent, outlive their coordinator, and
//! leave when told to. Prints how long each took; docs/bench.md has the figures.

use longtake_tests::farm::Farm;
use longtake_tests::product::{last_json, render};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);
const PROMPT: &str = "a red circle moves to the right on a blue background";
/// A film of fifteen windows.
const FILM: &[&str] = &[
    "--size=64x64",
    "--frames=360",
    "--segment-frames=33",
    "--overlap-frames=9",
    "--continuity=none",
    "--seed=3",
];

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

fn ask(farm: &Farm, args: &[&str]) -> Value {
    let out = farm.command(args).output().expect("longtake runs");
    last_json(&out).unwrap_or_else(|story| panic!("{story}"))
}

/// What the farm has given to a worker; `None` when it does not know the worker.
fn held(farm: &Farm, name: &str) -> Option<BTreeSet<String>> {
    let list = ask(farm, &["workers", "list"]);
    let workers = list["workers"].as_array().expect("workers");
    let worker = workers.iter().find(|worker| worker["name"] == name)?;
    let tasks = worker["tasks"].as_array().expect("tasks").iter();
    let name = |task: &Value| task["task"].as_str().expect("a name").to_owned();
    Some(tasks.map(name).collect())
}

fn wait_for_work(farm: &Farm, name: &str) -> BTreeSet<String> {
    wait_for("work for the worker", || {
        held(farm, name).filter(|tasks| !tasks.is_empty())
    })
}

/// Whether a worker's log says that it has taken this try of a task.
fn has_taken(farm: &Farm, name: &str, task: &str, attempt: u32) -> bool {
    let words = format!("task={task} attempt={attempt}");
    let log = farm.log(name);
    log.lines().any(|line| line.ends_with(&words))
}

fn submit(farm: &Farm, film: &[&str]) {
    ask(farm, &[&["submit", PROMPT], film].concat());
}

/// Waits for the film, and compares it with the one that is made alone.
fn finish(farm: &Farm, film: &[&str]) {
    let (alone, made) = ["alone.mp4", "farm.mp4"]
        .map(|name| farm.folder().join(name))
        .into();
    render(PROMPT, &alone, &[film, &["--workers=1"]].concat()).expect("the film");
    let path = made.to_str().expect("UTF-8");
    ask(
        farm,
        &[&["submit", PROMPT], film, &["--wait", "-o", path]].concat(),
    );
    let read = |path| std::fs::read(path).expect("a film");
    assert!(read(&alone) == read(&made), "the farm's film differs");
}

fn farm() -> Farm {
    Farm::start(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[test]
fn workers_join_fall_silent_and_leave() {
    let farm = farm();
    submit(&farm, FILM);
    let started = Instant::now();
    let first = farm.worker("first", None);
    wait_for("its first work", || {
        has_taken(&farm, "first", "text", 1).then_some(())
    });
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("first work {seconds:.2} s after a worker's start");

    wait_for("windows", || {
        has_taken(&farm, "first", "denoise/1", 1).then_some(())
    });
    first.signal("STOP");
    let stopped = Instant::now();
    let lost = wait_for_work(&farm, "first");
    wait_for("its loss", || held(&farm, "first").is_none().then_some(()));
    let seconds = stopped.elapsed().as_secs_f64();
    eprintln!("lost {seconds:.2} s after it fell silent");

    let mut second = farm.worker("second", None);
    for task in &lost {
        wait_for("another to take its work", || {
            has_taken(&farm, "second", task, 2).then_some(())
        });
    }
    first.signal("CONT");
    wait_for("it to come back", || held(&farm, "first"));

    // Told to stop, a worker finishes what it has: nobody does that again.
    let last = wait_for_work(&farm, "second");
    second.signal("TERM");
    let status = wait_for("it to leave", || second.ended());
    assert!(status.success(), "{}", farm.log("second"));
    assert!(farm.log("second").contains("nothing new is taken"));
    finish(&farm, FILM);
    for task in &last {
        let again = (2..4).any(|attempt| has_taken(&farm, "first", task, attempt));
        assert!(
            !again || lost.contains(task),
            "{task} was lost: {}",
            farm.log("second")
        );
    }
}

#[test]
fn a_worker_without_its_coordinator_goes_on_and_brings_its_results() {
    let mut farm = farm();
    submit(&farm, FILM);
    let mut worker = farm.worker("worker", None);
    wait_for("windows", || {
        has_taken(&farm, "worker", "denoise/1", 1).then_some(())
    });
    wait_for_work(&farm, "worker");
    farm.kill_coordinator();
    // Long enough for what it has in hand to be done, with nobody to tell.
    std::thread::sleep(Duration::from_secs(1));
    assert!(worker.is_running(), "{}", farm.log("worker"));
    farm.start_coordinator();
    wait_for("it to come back", || {
        let log = farm.log("worker");
        (log.matches(": connected ").count() == 2).then_some(())
    });
    finish(&farm, FILM);
    let log = farm.log("worker");
    let again = log.lines().find(|line| line.ends_with(" attempt=2"));
    assert_eq!(again, None, "what it had in hand was not asked for again");
}

/// Words of a log after `begin`, up to the end of their line.
fn said(log: &str, begin: &str) -> Option<String> {
    let (_, after) = log.split_once(begin)?;
    after.lines().next().map(str::to_owned)
}

#[test]
fn a_worker_that_has_to_leave_stores_what_it_has_done() {
    // One window of steps that take a while each.
    const LONG: &[&str] = &["--size=384x256", "--frames=97", "--seed=5"];
    let farm = farm();
    submit(&farm, LONG);
    let mut hasty = farm.worker_with("hasty", None, &["--drain-seconds=0"]);
    wait_for("a window that is under way", || {
        let list = ask(&farm, &["workers", "list"]);
        let task = &list["workers"][0]["tasks"][0];
        let progress = task["progress"].as_f64().filter(|done| *done > 0.1);
        progress.filter(|_| task["task"] == "denoise/0")
    });
    hasty.signal("TERM");
    let status = wait_for("it to leave", || hasty.ended());
    let log = farm.log("hasty");
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("nothing new is taken").count(), 1, "{log}");
    let stored = said(&log, "stored after ").unwrap_or_else(|| panic!("nothing stored: {log}"));
    let step = stored.split(',').next().expect("a step");

    // Nobody was lost, and nobody does those steps again.
    let shown = farm.page("/metrics");
    assert!(shown.contains("longtake_workers_lost_total 0\n"), "{shown}");
    let _patient = farm.worker("patient", None);
    finish(&farm, LONG);
    let log = farm.log("patient");
    assert_eq!(
        said(&log, "going on after ").as_deref(),
        Some(step),
        "{log}"
    );
}
