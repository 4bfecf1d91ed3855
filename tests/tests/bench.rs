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
