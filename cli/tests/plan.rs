//! `plan` and `doctor`: what can be said without rendering.

mod support;

use serde_json::json as value;
use support::{json, run, stderr};

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
    let expected = value!({ "frames": 288, "windows": [
        { "index": 0, "first_frame": 0, "frames": 121, "seed": 7 },
        { "index": 1, "first_frame": 104, "frames": 121, "seed": 8 },
        { "index": 2, "first_frame": 208, "frames": 80, "seed": 9 },
    ]});
    assert_eq!(json(&out), expected);
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
