//! `plan` and `doctor`: what can be said without rendering.

mod support;

use serde_json::json as value;
use support::{SMALL_FILM, json, longtake, run, stderr};

#[test]
fn a_plan_lists_every_window_without_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = run(
        folder.path(),
        [
            "plan",
            "a red circle",
            "--seconds",
            "12",
            "--seed",
            "7",
            "--json",
        ],
    );
    let plan = json(&out);
    let expected = value!([
        { "index": 0, "first_frame": 0, "frames": 121, "seed": 7 },
        { "index": 1, "first_frame": 104, "frames": 121, "seed": 8 },
        { "index": 2, "first_frame": 208, "frames": 80, "seed": 9 },
    ]);
    assert_eq!(
        (&plan["frames"], &plan["windows"]),
        (&value!(288), &expected)
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        0,
        "nothing is left"
    );
}

#[test]
fn a_plan_follows_the_flags_of_render() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = [
        "--frames",
        "60",
        "--segment-frames",
        "33",
        "--overlap-frames",
        "9",
        "--size",
        "60x64",
    ];
    let out = run(folder.path(), ["plan", "x", "--json"].iter().chain(&flags));
    assert!(
        stderr(&out).contains("rendered at 64x64 and cropped"),
        "{}",
        stderr(&out)
    );
    let first_frames: Vec<u64> = json(&out)["windows"]
        .as_array()
        .expect("windows")
        .iter()
        .map(|window| window["first_frame"].as_u64().expect("a number"))
        .collect();
    assert_eq!(first_frames, [0, 24, 48]);
}

#[test]
fn a_plan_knows_where_the_film_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let odd = ["plan", "x", "--size", "65x61", "--json", "-o"];
    let pictures = run(folder.path(), odd.iter().chain(&["frames/%06d.png"]));
    assert_eq!(json(&pictures)["frames"], 120);
    let film = run(folder.path(), odd.iter().chain(&["film.mp4"]));
    assert!(stderr(&film).contains("65x61"), "{}", stderr(&film));
    assert_eq!(film.status.code(), Some(1));
    let bad = run(folder.path(), odd.iter().chain(&["fr/%s.png"]));
    assert_eq!(bad.status.code(), Some(1));
}

#[test]
fn a_plan_says_what_a_render_takes_and_the_render_how_far_that_was_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let ask = |flags: &[&str]| {
        let state = folder.path().join("home");
        let mut command = longtake(folder.path());
        let film = SMALL_FILM[1..]
            .iter()
            .chain(&["--workers=2", "--threads=1"]);
        command.env("XDG_STATE_HOME", state).args(&flags[..1]);
        json(
            &command
                .args(film)
                .args(&flags[1..])
                .arg("--json")
                .output()
                .expect("it runs"),
        )
    };
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let assumed = ask(&["plan"])["estimate"].clone();
    assert_eq!(
        (&assumed["measured"], &assumed["workers"]),
        (&value!(false), &value!(2))
    );
    let basis = assumed["basis"].as_str().expect("a sentence");
    assert!(basis.contains("nothing was measured"), "{basis}");

    let report = ask(&["render", "-o", "film.mp4", "--state=state"]);
    let first = &report["estimate"];
    assert_eq!(first["low_s"], assumed["eta_s"]["low"]);
    let middle = (number(&first["low_s"]) * number(&first["high_s"])).sqrt();
    let off = number(&report["seconds_total"]) / middle;
    assert!((number(&first["off"]) / off - 1.0).abs() < 1e-6, "{first}");

    let plan = ask(&["plan"]);
    let measured = &plan["estimate"];
    assert_eq!(measured["measured"], true, "{measured}");
    let range = |value: &serde_json::Value| (number(&value["low"]), number(&value["high"]));
    for key in ["eta_s", "device_s"] {
        let (low, high) = range(&measured[key]);
        assert!(0.0 < low && low < high, "{measured}");
    }
    assert!(number(&measured["worker_memory_bytes"]) > 1e7, "{measured}");
    // What the render has stored lies between the bounds.
    let stored: u64 = walk(&folder.path().join("state/artifacts"));
    let (least, most) = range(&plan["artifact_bytes"]);
    assert!(
        least <= stored as f64 && stored as f64 <= most,
        "{stored}: {plan}"
    );
}

/// Bytes of all files below a folder.
fn walk(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata().expect("metadata") {
        data if data.is_dir() => walk(&entry.path()),
        data => data.len(),
    };
    entries.map(size).sum()
}

#[test]
fn a_healthy_machine_passes_the_doctor() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = json(&run(folder.path(), ["doctor", "--json"]));
    assert_eq!(report["ok"], true, "{report}");
    let names: Vec<_> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .collect();
    assert!(
        names
            .iter()
            .any(|check| check["name"] == "model" && check["level"] == "ok")
    );
    assert!(
        names
            .iter()
            .any(|check| check["name"] == "gpu" && check["level"] == "warn")
    );
    let sick = run(folder.path(), ["doctor", "--output", "missing"]);
    assert_eq!(sick.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&sick.stdout).contains("FAIL"),
        "{}",
        stderr(&sick)
    );
}
