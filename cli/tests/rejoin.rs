//! `longtake stitch --job`: the stored segments of a job, joined anew.

mod support;

use longtake_common::Frame;
use longtake_common::media::open_video;
use serde_json::Value;
use std::path::Path;
use support::{Guard, SMALL_FILM, Service, json, longtake, render_small, run, stderr, wait_for};

fn frames(path: &Path) -> Vec<Frame> {
    let film = open_video(path).expect("a film");
    film.collect::<Result<_, _>>().expect("its frames")
}

fn numbers(report: &Value, list: &str, key: &str) -> Vec<u64> {
    let items = report[list].as_array().expect("a list").iter();
    items
        .map(|item| item[key].as_u64().expect("a number"))
        .collect()
}

#[test]
fn a_render_is_joined_again_from_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (_, film) = render_small(folder, "film.mp4", &["--state=state"]);
    let job = film["job"].as_str().expect("a job");
    let rejoin = |flags: &[&str]| {
        let base = ["stitch", "--job", job, "--state=state", "--json"];
        json(&run(folder, base.iter().chain(flags)))
    };
    let original = frames(&folder.join("film.mp4"));

    // The method of the render: the same pictures, and nothing was encoded twice.
    let report = rejoin(&["-o", "flow.mp4"]);
    assert_eq!(report["job"], job);
    assert_eq!(report["frames"], 120);
    assert_eq!(
        numbers(&report, "seams", "frame"),
        numbers(&film, "seams", "frame")
    );
    assert!(frames(&folder.join("flow.mp4")) == original);

    // Another method: other seams, the same interiors to the bit.
    let report = rejoin(&["-o", "cut.mp4", "--method=cut", "--report=cut.json"]);
    assert!(folder.join("cut.json").is_file());
    let cut = frames(&folder.join("cut.mp4"));
    assert_eq!(cut.len(), original.len());
    let firsts = numbers(&report, "seams", "frame");
    let overlaps = numbers(&report, "seams", "overlap_frames");
    let relaxes = numbers(&report, "seams", "relax_frames");
    let in_seam = |frame: usize| {
        // A seam is encoded with up to eight frames before it.
        (0..firsts.len()).any(|i| {
            let first = firsts[i] as usize;
            (first - 8..first + (overlaps[i] + relaxes[i]) as usize).contains(&frame)
        })
    };
    let equal = |frame: usize| cut[frame] == original[frame];
    assert!((0..120).all(|frame| in_seam(frame) || equal(frame)));
    assert!(!(0..120).all(equal), "cuts look like flow");

    // Another codec: pictures without loss, through the same joins.
    let report = rejoin(&["-o", "pictures/%06d.png", "--method=crossfade"]);
    let notices = report["notices"].to_string();
    assert!(notices.contains("stored as H.264"), "{notices}");
    assert_eq!(frames(&folder.join("pictures/%06d.png")).len(), 120);

    for (flags, part) in [
        (&["--job", "j-0000000000", "--state=state"][..], job),
        (&["--job", job], "give --state DIR"),
        (&["--job", job, "--state=nowhere"], "nowhere"),
        (&["--job", job, "--state=."], "holds no render"),
    ] {
        let out = run(folder, ["stitch", "-o", "x.mp4"].iter().chain(flags));
        assert_eq!(out.status.code(), Some(1), "{flags:?}");
        assert!(stderr(&out).contains(part), "{flags:?}: {}", stderr(&out));
    }
    let both = ["stitch", "a.mp4", "b.mp4", "--job", job, "-o", "x.mp4"];
    assert_eq!(run(folder, both).status.code(), Some(2));
    assert!(!folder.join("x.mp4").exists());
}

#[test]
fn what_is_there_of_an_unfinished_job_is_joined() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let farm = Service::coordinator(folder, &[]);
    let ask = |args: &[&str]| {
        run(
            folder,
            args.iter()
                .copied()
                .chain(["--coordinator", &farm.url, "--json"]),
        )
    };
    let flags = SMALL_FILM[1..].iter().copied();
    let submit: Vec<&str> = ["submit"].into_iter().chain(flags).collect();
    let job = json(&ask(&submit))["job"]
        .as_str()
        .expect("a job")
        .to_owned();
    let too_early = ask(&["stitch", "--job", &job, "-o", "part.mp4"]);
    assert_eq!(too_early.status.code(), Some(1));
    assert!(
        stderr(&too_early).contains("not decoded yet"),
        "{}",
        stderr(&too_early)
    );

    let mut worker = longtake(folder);
    worker.args(["worker", "--threads=1", "--coordinator", &farm.url]);
    let worker = Guard(worker.spawn().expect("a worker"));
    wait_for("a segment", || {
        let status = json(&ask(&["status", &job]));
        (status["segments_done"].as_u64() >= Some(2)).then_some(())
    });
    json(&ask(&["cancel", &job]));
    drop(worker);
    let report = json(&ask(&[
        "stitch",
        "--job",
        &job,
        "-o",
        "part.mp4",
        "--method=crossfade",
    ]));
    let segments = report["clips"].as_array().expect("segments").len();
    assert!((1..=5).contains(&segments), "{report}");
    let count = frames(&folder.join("part.mp4")).len() as u64;
    assert_eq!(report["frames"].as_u64(), Some(count));
    // Windows of 33 frames that share nine.
    assert_eq!(count, (segments as u64 * 24 + 9).min(120));
    assert_eq!(numbers(&report, "seams", "frame").len(), segments - 1);
}
