//! Films from real processes: what they consist of, and that nobody can tell from them who died
//! while they were made.

mod support;

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::time::Duration;
use support::{
    SMALL_FILM, children, is_alive, json, longer_film, render, render_small, run, signal, start,
    stderr, wait_for,
};

#[test]
fn a_film_comes_with_its_report_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let latents = ["--save-latents", "latents.safetensors"];
    let (film, report) = render_small(folder.path(), "a.mp4", &latents);
    assert!(film.len() > 1000);
    assert_eq!(
        (&report["frames"], &report["width"]),
        (&120.into(), &64.into())
    );
    let level = report["isa"].as_str().expect("a level");
    assert!(["avx512", "avx2", "scalar"].contains(&level), "{report}");
    assert_eq!(report["engine"], longtake_common::task::ENGINE);
    let segments = report["segments"].as_array().expect("segments");
    assert_eq!(segments.len(), 5);
    for (index, segment) in segments.iter().enumerate() {
        assert_eq!(segment["seed"], 3 + index as u64);
        assert_eq!(
            (&segment["attempts"], &segment["reused"]),
            (&1.into(), &false.into())
        );
        assert!(
            segment["worker"]
                .as_str()
                .expect("a name")
                .starts_with("worker-")
        );
        for phase in [
            "text", "pass1", "upsample", "pass2", "decode", "encode", "total",
        ] {
            assert!(segment["seconds"][phase].is_f64(), "{phase} in {segment}");
        }
        let file = folder
            .path()
            .join(format!("latents.{index:04}.safetensors"));
        assert!(fs::metadata(file).expect("latents").len() > 0);
    }
    let seams = report["seams"].as_array().expect("seams");
    let frames: Vec<_> = seams
        .iter()
        .map(|seam| seam["frame"].as_u64().expect("a frame"))
        .collect();
    assert_eq!(frames, [24, 48, 72, 96]);
    assert!(
        seams
            .iter()
            .all(|seam| seam["seam_ratio"].as_f64().is_some_and(|ratio| ratio > 0.0))
    );
    assert!(
        report["peak_rss_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 20 << 20)
    );

    let written: Value =
        serde_json::from_slice(&fs::read(folder.path().join("a.mp4.json")).expect("the report"))
            .expect("JSON");
    assert_eq!(written, report);
    let mut names: Vec<String> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| !name.ends_with(".safetensors"))
        .collect();
    names.sort();
    assert_eq!(names, ["a.mp4", "a.mp4.json"]);
}

#[test]
fn the_film_is_the_same_whoever_makes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, _) = render_small(
        folder.path(),
        "one.mp4",
        &["--workers", "1", "--threads", "2"],
    );
    let (three, _) = render_small(folder.path(), "three.mp4", &["--workers", "3"]);
    assert!(one == three, "one worker and three make different films");
    let (other, _) = render_small(folder.path(), "other.mp4", &[]);
    assert!(one == other, "the same command twice makes different films");
}

#[test]
fn a_film_survives_the_death_of_its_workers() {
    let folder = tempfile::tempdir().expect("a folder");
    let film = longer_film();
    let (whole, _) = render(folder.path(), &film, "whole.mp4", &[]);
    let mut process = start(folder.path(), &film, "killed.mp4");
    let pid = process.id();
    wait_for_window(&mut process);
    // One after the other, each in the middle of something.
    let mut killed = 0;
    while killed < 3 && is_alive(pid) {
        if let Some(worker) = children(pid).into_iter().find(|child| is_alive(*child)) {
            signal(worker, "KILL");
            killed += 1;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let report = json(&process.wait_with_output().expect("the render ends"));
    assert!(
        killed > 0,
        "the render was over before a worker could be killed"
    );
    let segments = report["segments"].as_array().expect("segments");
    let tried_again = |segment: &Value| segment["attempts"].as_u64() > Some(1);
    assert!(segments.iter().any(tried_again), "{segments:?}");
    let film = fs::read(folder.path().join("killed.mp4")).expect("the film");
    assert!(film == whole, "{killed} dead workers changed the film");
}

#[test]
fn a_killed_render_goes_on_with_the_same_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let film = longer_film();
    let (whole, _) = render(folder.path(), &film, "whole.mp4", &[]);
    let mut process = start(folder.path(), &film, "again.mp4");
    wait_for_window(&mut process);
    let workers = children(process.id());
    assert_eq!(workers.len(), longtake_cores().min(2));
    signal(process.id(), "KILL");
    process.wait().expect("killed");
    wait_for("the orphans to leave", || {
        workers
            .iter()
            .all(|worker| !is_alive(*worker))
            .then_some(())
    });
    assert!(
        !folder.path().join("again.mp4").exists(),
        "a half-written film under the final name"
    );

    let (again, report) = render(folder.path(), &film, "again.mp4", &[]);
    assert!(again == whole, "the interruption changed the film");
    assert!(
        !folder.path().join("again.mp4.longtake").exists(),
        "the state is left behind"
    );
    assert_eq!(
        report["segments"][0]["reused"], true,
        "the finished window was lost: {report}"
    );
}

/// Reads a render's progress until a window is done; the rest is read on in the background, or the
/// render would block on a full pipe.
fn wait_for_window(process: &mut std::process::Child) {
    let progress = BufReader::new(process.stderr.take().expect("stderr"));
    let mut lines = progress.lines().map_while(Result::ok);
    let done = lines.find(|line| line.contains(" windows") && !line.contains(" 0 of "));
    let line = done.expect("a line of progress");
    assert!(
        !line.ends_with("done"),
        "the film was over too soon: {line}"
    );
    std::thread::spawn(move || lines.for_each(drop));
}

fn longtake_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn an_interrupted_render_says_how_to_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let render = start(folder.path(), SMALL_FILM, "a.mp4");
    let pid = render.id();
    let workers = wait_for("workers", || {
        Some(children(pid)).filter(|found| !found.is_empty())
    });
    signal(pid, "INT");
    let out = render.wait_with_output().expect("the render ends");
    assert_eq!(out.status.code(), Some(130), "{}", stderr(&out));
    assert!(
        stderr(&out).contains("the same command goes on"),
        "{}",
        stderr(&out)
    );
    assert!(!stderr(&out).contains("WARN"), "{}", stderr(&out));
    assert!(
        workers.iter().all(|worker| !is_alive(*worker)),
        "a worker outlived the render"
    );
    assert!(!folder.path().join("a.mp4").exists());
}

#[test]
fn a_kept_state_is_reused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, _) = render_small(folder.path(), "a.mp4", &["--state", "state"]);
    assert!(
        folder.path().join("state").is_dir(),
        "a state that was asked for is kept"
    );
    let (second, report) = render_small(folder.path(), "b.mp4", &["--state", "state"]);
    assert!(first == second);
    let segments = report["segments"].as_array().expect("segments");
    assert!(
        segments.iter().all(|segment| segment["reused"] == true),
        "{report}"
    );
}

#[test]
fn a_film_can_be_a_sequence_of_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = run(
        folder.path(),
        SMALL_FILM
            .iter()
            .chain(&["-o", "frames/%06d.png", "--json"]),
    );
    assert_eq!(json(&out)["frames"], 120);
    let mut names: Vec<String> = fs::read_dir(folder.path().join("frames"))
        .expect("the pictures")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    assert_eq!(names.len(), 120);
    assert_eq!(
        (names[0].as_str(), names[119].as_str()),
        ("000001.png", "000120.png")
    );
    // The same film, encoded, is nearly the same.
    render_small(folder.path(), "a.mp4", &[]);
    let report = [
        "compare",
        "frames/%06d.png",
        "a.mp4",
        "--json",
        "--report",
        "compare.json",
    ];
    let compared = json(&run(folder.path(), report));
    assert_eq!(compared["frames_compared"], 120);
    assert!(
        compared["psnr_y"].as_f64().is_some_and(|db| db > 30.0),
        "{compared}"
    );
    let details: Value =
        serde_json::from_slice(&fs::read(folder.path().join("compare.json")).expect("a report"))
            .expect("JSON");
    assert_eq!(details["per_frame"].as_array().map(Vec::len), Some(120));
    let same = json(&run(folder.path(), ["compare", "a.mp4", "a.mp4", "--json"]));
    assert_eq!(
        (&same["identical"], &same["psnr_y"]),
        (&true.into(), &Value::Null)
    );
}

#[test]
fn what_was_changed_about_a_request_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let endless = "circle ".repeat(10_000);
    let small = ["--size", "60x62", "--frames", "9", "--json", "-o", "a.mp4"];
    let out = run(
        folder.path(),
        ["render", endless.as_str()].iter().chain(&small),
    );
    let report = json(&out);
    assert_eq!(
        (&report["width"], &report["height"]),
        (&60.into(), &62.into())
    );
    assert!(
        stderr(&out).contains("rendered at 64x64 and cropped"),
        "{}",
        stderr(&out)
    );
    assert!(stderr(&out).contains("was cut to 32"), "{}", stderr(&out));
    json(&run(folder.path(), ["render", ""].iter().chain(&small)));
}
