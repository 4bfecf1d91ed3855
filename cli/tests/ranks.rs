//! Windows shared by several processes: nobody can tell from a film how many there were, nor who died.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use support::{
    Guard, SMALL_FILM, Service, children, is_alive, json, longer_film, longtake, render,
    render_small, run, signal, start, stderr, wait_for,
};

#[test]
fn ranks_do_not_show_in_a_film() {
    let folder = tempfile::tempdir().expect("a folder");
    let (alone, _) = render_small(folder.path(), "alone.mp4", &[]);
    for ranks in ["--ranks=2", "--ranks=4"] {
        let (shared, report) = render_small(folder.path(), "shared.mp4", &[ranks]);
        assert!(shared == alone, "{ranks}");
        assert_eq!(report["segments"][0]["attempts"], 1, "{report}");
    }
}

#[test]
fn counts_that_do_not_work_are_refused_before_anything_is_rendered() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |flags: &[&str], parts: &[&str]| {
        let end = ["-o", "a.mp4"];
        let out = run(folder.path(), SMALL_FILM.iter().chain(flags).chain(&end));
        assert!(!out.status.success(), "{flags:?}");
        for part in parts {
            assert!(stderr(&out).contains(part), "{flags:?}: {}", stderr(&out));
        }
        assert!(
            fs::read_dir(folder.path())
                .expect("a folder")
                .next()
                .is_none()
        );
    };
    refused(
        &["--ranks=3"],
        &["4 attention heads", "3 ranks", "1, 2, 4 work"],
    );
    refused(&["--ranks=0"], &["--ranks"]);
    refused(
        &["--ranks=2", "--device=cuda:0"],
        &["--ranks 2", "--device cpu"],
    );
}

/// The ranks' processes of a render with one worker.
fn ranks(render: &Child) -> Option<Vec<u32>> {
    let &worker = children(render.id()).first()?;
    let is_rank = |pid: &u32| {
        let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
        line.is_ok_and(|line| line.windows(5).any(|part| part == b"rank\0"))
    };
    Some(children(worker).into_iter().filter(is_rank).collect())
}

#[test]
fn a_film_whose_ranks_die_and_hang_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let film: Vec<&str> = longer_film().into_iter().chain(["--ranks=4"]).collect();
    let (whole, _) = render(folder.path(), &film, "whole.mp4", &[]);
    let mut process = start(folder.path(), &film, "harmed.mp4");
    let progress = BufReader::new(process.stderr.take().expect("stderr"));
    // Read to the end, or the render would block on a full pipe.
    let windows = Arc::new(AtomicUsize::new(0));
    let (seen, (sender, story)) = (windows.clone(), mpsc::channel());
    std::thread::spawn(move || {
        for line in progress.lines().map_while(Result::ok) {
            let done = line
                .split_once(" of ")
                .and_then(|(l, _)| l.rsplit(' ').next());
            let done = done.and_then(|done| done.parse().ok());
            seen.fetch_max(done.unwrap_or(0), Ordering::Relaxed);
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut all = Vec::new();
    // Each after another window, so that each comes to a gang at work.
    for (window, (number, harm)) in [(0, "KILL"), (2, "STOP"), (1, "KILL")]
        .into_iter()
        .enumerate()
    {
        wait_for("another window", || {
            (windows.load(Ordering::Relaxed) > window).then_some(())
        });
        let standing = wait_for("three other ranks", || {
            let here = ranks(&process)?;
            (here.len() == 3 && here.iter().all(|&pid| is_alive(pid))).then_some(here)
        });
        signal(standing[number], harm);
        all.extend(standing.iter().copied());
        wait_for("another process in its place", || {
            let here = ranks(&process)?;
            (here.len() == 3 && !here.contains(&standing[number])).then_some(())
        });
    }
    let ended = process.wait().expect("the render ends");
    let story: Vec<String> = story.iter().collect();
    assert!(ended.success(), "{}", story.join("\n"));
    let harmed = fs::read(folder.path().join("harmed.mp4")).expect("the film");
    assert!(harmed == whole, "lost ranks changed the film");
    wait_for("all ranks to leave", || {
        all.iter().all(|&pid| !is_alive(pid)).then_some(())
    });
}

/// A worker of two ranks.
fn worker(folder: &Path, url: &str, name: &str) -> Guard {
    let log = fs::File::create(folder.join(format!("{name}.log"))).expect("a log");
    let mut command = longtake(folder);
    command
        .args(["worker", "--coordinator", url, "--name", name])
        .args(["--threads=2", "--ranks=2"])
        .stderr(log);
    Guard(command.spawn().expect("a worker"))
}

#[test]
fn the_ranks_of_a_window_are_of_several_workers() {
    let folder = tempfile::tempdir().expect("a folder");
    let farm = Service::coordinator(folder.path(), &[]);
    let list = || {
        let list = run(
            folder.path(),
            ["workers", "list", "--json", "--coordinator", &farm.url],
        );
        json(&list)["workers"].as_array().expect("workers").clone()
    };
    let flags = ["--ranks=4", "--coordinator", &farm.url];
    let _left = worker(folder.path(), &farm.url, "left");
    wait_for("a worker", || (list().len() == 1).then_some(()));
    let film = SMALL_FILM.iter().chain(&flags).chain(&["-o", "none.mp4"]);
    let out = run(folder.path(), film);
    let story = stderr(&out);
    assert!(!out.status.success(), "{story}");
    for part in ["4 ranks", "left gives 2", "--ranks 2 or fewer"] {
        assert!(story.contains(part), "{story}");
    }
    let _right = worker(folder.path(), &farm.url, "right");
    wait_for("another worker", || (list().len() == 2).then_some(()));
    let (shared, _) = render_small(folder.path(), "shared.mp4", &flags);
    let (alone, _) = render_small(folder.path(), "alone.mp4", &[]);
    assert!(shared == alone, "the film shows how many ranks there were");
    let log = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a log");
    let logs = log("left.log") + &log("right.log");
    assert!(logs.contains("a gang of 4 ranks stands"), "{logs}");
    wait_for("all ranks to be free", || {
        list()
            .iter()
            .all(|worker| worker["state"] == "idle")
            .then_some(())
    });
}

#[test]
fn addresses_that_ranks_cannot_have_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |flags: &[&str], part: &str| {
        let start = [
            "worker",
            "--coordinator=http://127.0.0.1:1",
            "--gang-address",
        ];
        let out = run(folder.path(), start.iter().chain(flags));
        assert!(!out.status.success(), "{flags:?}");
        assert!(stderr(&out).contains(part), "{flags:?}: {}", stderr(&out));
    };
    refused(&["10.1.2.3"], "in the clear");
    refused(
        &["192.0.2.1", "--insecure"],
        "has to be an address of this machine",
    );
    refused(
        &["0.0.0.0", "--insecure"],
        "no address that others can dial",
    );
    refused(&["here"], "invalid");
}
