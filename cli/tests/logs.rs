//! What tasks say is kept with their results and can be read, also while they run.

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use support::{Guard, SMALL_FILM, Service, json, longtake, run, stderr};

#[test]
fn logs_are_kept_and_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let farm = Service::coordinator(folder.path(), &[]);
    let ask = |args: &[&str]| {
        run(
            folder.path(),
            args.iter().chain(&["--coordinator", &farm.url]),
        )
    };
    let submit = [&["submit", "--json"], &SMALL_FILM[1..]].concat();
    let job = json(&ask(&submit))["job"]
        .as_str()
        .expect("a job")
        .to_owned();
    let mut follow = longtake(folder.path());
    follow.args(["logs", &job, "-f", "--json", "--coordinator", &farm.url]);
    let mut follow = Guard(follow.spawn().expect("starts"));
    let followed = BufReader::new(follow.0.stdout.take().expect("stdout"));
    let mut worker = longtake(folder.path());
    worker.args(["worker", "--name=w", "--coordinator", &farm.url]);
    let _worker = Guard(
        worker
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("a worker"),
    );
    // Ends by itself when the job does; the last object is the job's.
    let parse = |line: String| serde_json::from_str::<Value>(&line).expect("JSON");
    let mut live: Vec<Value> = followed.lines().map_while(Result::ok).map(parse).collect();
    let last = live.pop().expect("the job");
    assert_eq!(
        (&last["job"], &last["state"]),
        (&job.as_str().into(), &"done".into())
    );

    let lines = |flags: &[&str]| {
        let out = ask(&[&["logs", &job, "--json"], flags].concat());
        assert!(out.status.success(), "{}", stderr(&out));
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        let mut lines: Vec<Value> = text.lines().map(|line| parse(line.to_owned())).collect();
        lines.pop();
        lines
    };
    let stored = lines(&[]);
    let sorted = |lines: &[Value]| {
        let mut lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        lines.sort();
        lines
    };
    assert_eq!(
        sorted(&live),
        sorted(&stored),
        "whoever follows misses nothing"
    );
    let ends = |task: &str| {
        let of_task = stored.iter().filter(|line| line["task"] == task);
        of_task
            .filter(|line| line["message"] == "done")
            .cloned()
            .collect::<Vec<_>>()
    };
    for task in ["text", "denoise/0", "decode/4", "seam/3", "mux"] {
        let [end] = &ends(task)[..] else {
            panic!("{task}: {stored:?}")
        };
        assert_eq!((&end["worker"], &end["attempt"]), (&"w".into(), &1.into()));
        assert_eq!(
            (&end["level"], &end["job"]),
            (&"INFO".into(), &job.as_str().into())
        );
        assert!(
            end["seconds"]["total"].as_f64().is_some_and(|s| s >= 0.0),
            "{end}"
        );
    }
    assert!(ends("denoise/1")[0]["seconds"]["pass1"].is_f64());
    let steps = stored.iter().filter(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["task"] == "denoise/0" && message.starts_with("step ")
    });
    assert!(steps.count() > 1);
    for line in lines(&["--segment=2"]) {
        let task = line["task"].as_str().expect("a task").to_owned();
        let own = ["denoise/2", "decode/2", "seam/1", "seam/2"];
        assert!(own.contains(&task.as_str()), "{task}");
    }
    assert!(
        lines(&["--task=mux"])
            .iter()
            .all(|line| line["task"] == "mux")
    );
    let readable = ask(&["logs", &job, "--task", "denoise/0"]);
    let text = String::from_utf8(readable.stdout).expect("UTF-8");
    assert!(text.contains(" denoise/0 w#1: done "), "{text}");
    assert_eq!(ask(&["logs", "j-ffffffffff"]).status.code(), Some(1));
}
