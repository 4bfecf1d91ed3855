//! Films of several shots: each shows its own prompt from its first frame on, a continuous
//! transition goes on with the take, and a cut begins another.

use longtake_common::media::open_video;
use longtake_tests::detect::{Sighting, look};
use longtake_tests::product::{Report, last_json, longtake};
use std::path::{Path, PathBuf};

/// Frames within which the model turns what is there into what the prompt asks for.
const TURNING_FRAMES: usize = 17;

fn example() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the workspace")
        .join("configs/films/three-shots.yaml")
}

fn render(film: &Path, output: &Path, flags: &[&str]) -> Report {
    let mut command = longtake();
    command.args(["render", "--json", "-f"]).arg(film);
    let out = command.arg("-o").arg(output).args(flags).output();
    last_json(&out.expect("longtake starts")).expect("rendered")
}

fn sightings(film: &Path) -> Vec<Option<Sighting>> {
    let frames = open_video(film).expect("the film");
    frames.map(|frame| look(&frame.expect("a frame"))).collect()
}

/// Share of frames that show `colour`, `shape` and `background`.
fn share(seen: &[Option<Sighting>], colour: &str, shape: &str, background: &str) -> f64 {
    let fits = |sighting: &&Option<Sighting>| {
        sighting.is_some_and(|s| (s.colour, s.shape, s.background) == (colour, shape, background))
    };
    seen.iter().filter(fits).count() as f64 / seen.len() as f64
}

#[test]
fn every_shot_of_the_example_shows_its_prompt() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("film.mp4");
    let report = render(&example(), &path, &["--workers=2", "--threads=1"]);
    let seen = sightings(&path);
    assert_eq!((report.frames, seen.len()), (228, 228));
    // The second shot begins with what it shares with the first; the third shares nothing.
    let places: Vec<_> = (report.segments.iter())
        .map(|segment| (segment.first_frame, segment.frames, segment.seed))
        .collect();
    assert_eq!(places, [(0, 72, 11), (55, 113, 12), (168, 60, 5)]);
    let seams: Vec<_> = report.seams.iter().map(|seam| seam.frame).collect();
    assert_eq!(seams, [55]);

    let (first, second, third) = (&seen[..72], &seen[72 + TURNING_FRAMES..168], &seen[168..]);
    for (shot, colour, shape, background) in [
        (first, "red", "ball", "navy"),
        (second, "yellow", "ball", "navy"),
        (third, "green", "square", "brown"),
    ] {
        let share = share(shot, colour, shape, background);
        assert!(share >= 0.9, "{colour} {shape}: {share} of {shot:?}");
    }
    // The take runs on: where the prompt changes the shape is where it was.
    let (before, after) = (seen[71].expect("a shape"), seen[72].expect("a shape"));
    let (dx, dy) = (
        torus(before.x, after.x, 256.0),
        torus(before.y, after.y, 160.0),
    );
    assert!(dx.abs() < 4.0 && dy.abs() < 4.0, "{before:?} {after:?}");
    // The cut is hard: one frame is all of the one shot, the next all of the other.
    let around = [seen[167], seen[168]].map(|sighting| sighting.expect("a shape"));
    assert_eq!(around.map(|s| s.background), ["navy", "brown"]);
    assert_eq!(around.map(|s| s.colour), ["yellow", "green"]);
}

/// Shortest way from `a` to `b` on a circle.
fn torus(a: f64, b: f64, length: f64) -> f64 {
    (b - a + 0.5 * length).rem_euclid(length) - 0.5 * length
}

#[test]
fn a_film_is_the_same_whoever_renders_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "
size: 64x64
seed: 4
segment_frames: 33
overlap_frames: 9
shots:
  - {prompt: a red ball, frames: 30}
  - {prompt: a blue square, frames: 29}
  - {prompt: a red ball, frames: 21, transition: cut}
  - {prompt: a blue square, frames: 10, seed: 9}
";
    let film = folder.path().join("film.yaml");
    std::fs::write(&film, text).expect("written");
    let render = |name: &str, flags: &[&str]| {
        let path = folder.path().join(name);
        let report = render(&film, &path, flags);
        (std::fs::read(&path).expect("the film"), report)
    };
    let (alone, report) = render("a.mp4", &["--workers=1"]);
    let (together, _) = render("b.mp4", &["--workers=3", "--threads=1"]);
    assert!(alone == together, "the bytes depend on the workers");
    assert_eq!(report.frames, 90);
    let (other, _) = render("c.mp4", &["--workers=2", "--seed=5"]);
    assert!(alone != other, "a flag wins over the file");
}

#[test]
fn a_bad_film_file_is_refused_with_shot_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let film = folder.path().join("film.yaml");
    let cases = [
        (
            "shots:\n- {prompt: x, frames: 24, sed: 3}\n",
            "line 2: the key 'sed' is unknown in shot 1: did you mean 'seed'?",
        ),
        (
            "shots:\n- {prompt: x, duration: 0}\n",
            "line 2: shot 1 is empty",
        ),
        (
            "shots:\n- {prompt: x, duration: 5}\n- {prompt: y, duration: 5, start: 4}\n",
            "line 3: shot 2 starts at 4 s, but shot 1 lasts until 5.000 s",
        ),
        (
            "shots:\n- {prompt: x, frames: 10}\n- {prompt: y, duration: 5}\n",
            "line 2: shot 1 has 10 frames, too few for the next shot to go on from",
        ),
        (
            "segment_frames: 41\nshots:\n- {prompt: x, duration: 5}\n- {prompt: y, duration: 5}\n",
            "41 segment frames are too few for continuous transitions",
        ),
        (
            "size: big\nshots:\n- {prompt: x, duration: 5}\n",
            "the size 'big' is not WIDTHxHEIGHT",
        ),
        (
            "fps: 0\nshots:\n- {prompt: x, duration: 5}\n",
            "0 frames a second are out of range",
        ),
        (
            "config: no-such\nshots:\n- {prompt: x, duration: 5}\n",
            "no-such",
        ),
    ];
    for (text, part) in cases {
        std::fs::write(&film, text).expect("written");
        let out = longtake().args(["plan", "-f"]).arg(&film).output();
        let out = out.expect("longtake starts");
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(error.contains(part), "{text}\n{error}");
    }
    for flags in [&["a prompt"][..], &["--seconds=3"], &["--frames=30"]] {
        let out = longtake()
            .args(["plan", "-f"])
            .arg(&film)
            .args(flags)
            .output();
        assert_eq!(
            out.expect("longtake starts").status.code(),
            Some(2),
            "{flags:?}"
        );
    }
}
