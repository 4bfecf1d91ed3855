//! `bench dispatch` on both state stores.

use longtake_tests::product::{last_json, longtake};
use serde_json::Value;

#[test]
fn dispatches_are_counted_on_both_stores() {
    for state in ["file", "etcd"] {
        let mut command = longtake();
        command.args(["bench", "dispatch", "--workers=8", "--tasks=700", "--json"]);
        let out = command
            .args(["--state", state])
            .output()
            .expect("longtake runs");
        let report: Value = last_json(&out).unwrap_or_else(|story| panic!("{state}: {story}"));
        let number = |name: &str| {
            report[name]
                .as_f64()
                .unwrap_or_else(|| panic!("{name}: {report}"))
        };
        assert!((697.0..=700.0).contains(&number("tasks")), "{report}");
        assert!(number("dispatches_per_second") > 0.0, "{report}");
        let (p50, p99) = (number("decision_ms_p50"), number("decision_ms_p99"));
        assert!(p50 > 0.0 && p50 <= p99, "{report}");
        // More than a process needs to start, far less than a farm's machine has.
        assert!((4e6..1e9).contains(&number("rss_bytes")), "{report}");
    }
}

#[test]
fn workers_that_sleep_are_kept_busy() {
    let out = longtake()
        .args(["bench", "dispatch", "--workers=8", "--tasks=160", "--json"])
        .args(["--sleep-ms=200", "--idle=1"])
        .output();
    let report: Value =
        last_json(&out.expect("longtake runs")).unwrap_or_else(|story| panic!("{story}"));
    let share = report["busy_share"].as_f64().expect("a share");
    assert!(share > 0.0 && share <= 1.0, "{report}");
    // Fifty-three sleeps of 0.2 s by eight workers take that long, however fast the machine is.
    assert!(report["seconds"].as_f64() > Some(1.3), "{report}");
    assert!(report["idle_cores"].as_f64() < Some(1.0), "{report}");
}

#[test]
fn a_bench_that_cannot_start_says_why() {
    for (flags, hint) in [
        (["--state", "mysql://x"], "etcd://HOST:PORT"),
        (["--tasks", "0"], "--tasks"),
    ] {
        let out = longtake().args(["bench", "dispatch"]).args(flags).output();
        let out = out.expect("longtake runs");
        let story = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && story.contains(hint), "{story}");
    }
}

/// Runs a bench that prints one JSON object.
#[track_caller]
fn figures(flags: &[&str]) -> Value {
    let mut command = longtake();
    let home = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    command.env("LONGTAKE_HOME", home).arg("bench").args(flags);
    let out = command.arg("--json").output().expect("longtake runs");
    last_json(&out).unwrap_or_else(|story| panic!("{flags:?}: {story}"))
}

/// The figures that every bench of something repeated has.
#[track_caller]
fn spread(report: &Value) -> f64 {
    let of = |name: &str| {
        report[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {report}"))
    };
    let (p10, median, p90) = (of("p10_ms"), of("median_ms"), of("p90_ms"));
    assert!(0.0 < p10 && p10 <= median && median <= p90, "{report}");
    median
}

#[test]
fn decisions_are_counted_without_a_store() {
    let report = figures(&["schedule", "--workers=16", "--tasks=1300"]);
    let tasks = report["tasks"].as_f64().expect("a number");
    assert!((1297.0..=1300.0).contains(&tasks), "{report}");
    assert_eq!(report["decision_ms_p50"], spread(&report));
    assert!(
        report["decision_ms_p99"].as_f64() >= report["p90_ms"].as_f64(),
        "{report}"
    );
    // Decisions a second are those of the time that was spent on them, by part.
    let parts = report["parts"].as_object().expect("parts");
    let seconds: f64 = parts.values().filter_map(Value::as_f64).sum::<f64>() / 1e3;
    let rate = report["decisions_per_second"].as_f64().expect("a number");
    assert!((rate * seconds / tasks - 1.0).abs() < 1e-6, "{report}");
}

#[test]
fn a_prompt_is_encoded_on_the_processor() {
    let report = figures(&["text", "--tokens=64", "--runs=5", "--threads=1"]);
    let median = spread(&report);
    assert_eq!(report["key"], "text 64 f32 ltxv-tiny");
    let device = report["device"].as_str().expect("a device");
    assert!(
        device.starts_with("cpu ") && device.ends_with(" x 1"),
        "{report}"
    );
    assert!(report["tflops"].as_f64() > Some(0.0), "{report}");
    // Encoding alone is a part of it, and more than a process needs is in memory.
    assert!(
        report["parts"]["text encoder"].as_f64() > Some(0.0),
        "{report}"
    );
    assert!(report["peak_bytes"].as_f64() > Some(4e6), "{report}");
    // Loading comes before the first result.
    assert!(
        report["first_result_s"].as_f64() > Some(median / 1e3 / 10.0),
        "{report}"
    );
}

#[test]
fn clips_are_joined_and_a_seam_is_taken_apart() {
    let flags = [
        "stitch",
        "--size=96x64",
        "--frames=33",
        "--overlap=9",
        "--runs=3",
    ];
    let report = figures(&flags);
    let median = spread(&report);
    let of = |name: &str| {
        report[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {report}"))
    };
    // Two clips less what they share; eight frames, the overlap, and what is left of 48 after it.
    assert_eq!((of("frames"), of("seam_frames")), (57.0, 41.0));
    assert!(
        (of("frames_per_second") * median / 57e3 - 1.0).abs() < 1e-6,
        "{report}"
    );
    let parts = report["parts"].as_object().expect("parts");
    for part in ["flow", "exposure", "blend", "steady", "encode"] {
        assert!(parts[part].as_f64() > Some(0.0), "{part}: {report}");
    }
    let sum: f64 = parts.values().filter_map(Value::as_f64).sum();
    assert!(
        (sum / of("ms_per_seam_frame") - 1.0).abs() < 1e-6,
        "{report}"
    );
    // Without a look at the motion there is none to find.
    let plain = figures(&[&flags[..], &["--method=crossfade"]].concat());
    assert_eq!(plain["parts"]["flow"], 0.0);
    assert!(plain["parts"]["blend"].as_f64() > Some(0.0), "{plain}");
}

#[test]
fn a_bench_of_an_unknown_model_says_why() {
    for (flags, hint) in [
        (&["text", "--model", "no-such"][..], "no-such"),
        (
            &["text", "--random-weights", "--model", "no-such"],
            "ltxv-13b-",
        ),
        (&["text", "--tokens", "0"], "--tokens"),
        (&["schedule", "--workers", "0"], "--workers"),
        (&["stitch", "--overlap", "121"], "--overlap"),
        (&["stitch", "--size", "100x100"], "--size"),
    ] {
        let out = longtake().arg("bench").args(flags).output();
        let out = out.expect("longtake runs");
        let story = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && story.contains(hint),
            "{flags:?}: {story}"
        );
    }
}
