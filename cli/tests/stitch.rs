//! `longtake stitch` as a user runs it.

mod support;

use longtake_common::media::{Ffmpeg, open_video, write_png_sequence};
use longtake_common::{Frame, Sample, media::MediaError};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use support::{json, root, run, stderr};

/// Frames of the clip that the tests cut.
fn cup() -> Vec<Frame> {
    let clip = open_video(root().join("tests/clips/cup.mp4")).expect("the clip");
    clip.collect::<Result<_, _>>().expect("its frames")
}

fn pictures<S: Sample>(folder: &Path, name: &str, frames: &[Frame<S>]) -> String {
    let all = frames.iter().map(Ok::<_, MediaError>);
    write_png_sequence(&folder.join(name), all).expect("pictures");
    format!("{name}/%06d.png")
}

fn frames_of(path: &Path) -> Vec<Frame> {
    let film = open_video(path).expect("the film");
    film.collect::<Result<_, _>>().expect("its frames")
}

/// All samples of a film, as ffmpeg decodes them.
fn deep_frames_of(path: &Path) -> Vec<Frame<u16>> {
    let ffmpeg = Ffmpeg::find().expect("ffmpeg is missing: cargo xtask test installs it");
    let info = ffmpeg.probe(path).expect("a film");
    assert!(info.is_deep, "{}", path.display());
    let frames = ffmpeg.read(path, &info).expect("a film");
    frames.collect::<Result<_, _>>().expect("its frames")
}

/// Pictures of a slow ramp that moves, with a hundred times as many shades as 8 bits have.
fn ramp(frame: usize) -> Frame<u16> {
    let (width, height) = (640, 32);
    let shade = |x: usize| 12_001 + 61 * ((x + 3 * frame) % 640) as u16;
    let samples = (0..3 * width * height).map(|i| shade(i / 3 % width) + 7 * (i % 3) as u16);
    Frame::from_samples(width as u32, height as u32, samples.collect()).expect("a picture")
}

/// Nothing but `names` is in the folder: no half-written film.
fn holds_only(folder: &Path, names: &[&str]) {
    let entries = std::fs::read_dir(folder).expect("a folder");
    for entry in entries {
        let name = entry.expect("an entry").file_name();
        assert!(names.iter().any(|n| name == *n), "{name:?} was left");
    }
}

/// A clip with a tone, made by ffmpeg from frames of the test clip.
fn with_tone(folder: &Path, name: &str, range: Range<usize>, fps: u32) {
    let source = root().join("tests/clips/cup.mp4");
    let trim = format!(
        "trim=start_frame={}:end_frame={},setpts=N/{fps}/TB",
        range.start, range.end
    );
    let seconds = range.len() as f64 / f64::from(fps);
    let tone = format!("sine=frequency=440:sample_rate=44100:duration={seconds}");
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-i"])
        .arg(source)
        .args([
            "-f",
            "lavfi",
            "-i",
            &tone,
            "-vf",
            &trim,
            "-r",
            &fps.to_string(),
        ])
        .args(["-c:v", "libx264", "-crf", "12", "-c:a", "aac", "-shortest"])
        .arg(folder.join(name))
        .status();
    assert!(
        status
            .expect("ffmpeg runs: cargo xtask test installs it")
            .success()
    );
}

#[test]
fn overlaps_of_picture_sequences_are_found_and_joined() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let cup = cup();
    let a = pictures(folder, "a", &cup[..60]);
    let b = pictures(folder, "b", &cup[47..95]);
    let c = pictures(folder, "c", &cup[86..]);
    let flags = [
        "--overlap",
        "auto",
        "--report",
        "r.json",
        "-o",
        "out/%06d.png",
        "--json",
    ];
    let report = json(&run(folder, ["stitch", &a, &b, &c].iter().chain(&flags)));
    assert_eq!(report["frames"], 120);
    let seams = report["seams"].as_array().expect("seams");
    let places: Vec<_> = seams
        .iter()
        .map(|s| (s["frame"].as_u64(), s["overlap_frames"].as_u64()))
        .collect();
    assert_eq!(places, [(Some(47), Some(13)), (Some(86), Some(9))]);
    for seam in seams {
        assert!(
            seam["confidence"].as_f64().expect("a confidence") > 0.5,
            "{seam}"
        );
        assert!(seam["seam_ratio"].as_f64().is_some() && seam["method"] == "flow");
    }
    // Parts of one clip join to that clip, bit for bit.
    assert_eq!(frames_of(&folder.join("out/%06d.png")), cup);
    let written: Value =
        serde_json::from_slice(&std::fs::read(folder.join("r.json")).expect("a report"))
            .expect("JSON");
    assert_eq!(written, report);
    holds_only(folder, &["a", "b", "c", "out", "r.json"]);
}

#[test]
fn given_overlaps_and_methods_make_a_film_without_ffmpeg() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let cup = cup();
    let a = pictures(folder, "a", &cup[..50]);
    let b = pictures(folder, "b", &cup[40..90]);
    let c = pictures(folder, "c", &cup[85..]);
    for method in ["flow", "crossfade", "cut"] {
        let out = support::longtake(folder)
            .args([
                "stitch",
                &a,
                &b,
                &c,
                "--overlap",
                "10,5",
                "--method",
                method,
            ])
            .args(["-o", "film.mp4", "--json", "--fps", "25"])
            .env("PATH", folder)
            .output()
            .expect("the program starts");
        let report = json(&out);
        assert_eq!(
            (&report["frames"], &report["fps"]),
            (&120.into(), &25.0.into())
        );
        assert_eq!(report["seams"][1]["method"], method);
        assert!(stderr(&out).contains("ffmpeg"), "{}", stderr(&out));
        assert_eq!(report["sound"], "none");
        assert_eq!(frames_of(&folder.join("film.mp4")).len(), 120);
    }
    let refused = support::longtake(folder)
        .args(["stitch", &a, &b, "--overlap", "10", "-o", "film.mov"])
        .env("PATH", folder)
        .output()
        .expect("the program starts");
    assert!(!refused.status.success() && stderr(&refused).contains("ffmpeg"));
    holds_only(folder, &["a", "b", "c", "film.mp4"]);
}

#[test]
fn sound_is_kept_and_other_codecs_are_written_with_ffmpeg() {
    assert!(
        Ffmpeg::find().is_some(),
        "ffmpeg is missing: cargo xtask test installs it"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    with_tone(folder, "a.mp4", 0..60, 25);
    with_tone(folder, "b.mkv", 48..120, 25);
    for (name, codec, video, audio, pixels) in [
        ("h.mp4", "h264", "h264", "aac", "yuv420p"),
        ("x.mp4", "x264", "h264", "aac", "yuv420p10le"),
        ("p.mov", "prores", "prores", "pcm_s16le", "yuv422p10le"),
        ("f.mkv", "ffv1", "ffv1", "flac", "bgr0"),
    ] {
        let flags = ["--overlap", "auto", "--codec", codec, "-o", name, "--json"];
        let report = json(&run(
            folder,
            ["stitch", "a.mp4", "b.mkv"].iter().chain(&flags),
        ));
        assert_eq!(report["sound"], "kept", "{report}");
        assert_eq!(
            (&report["frames"], &report["seams"][0]["overlap_frames"]),
            (&120.into(), &12.into())
        );
        let probe = Command::new("ffprobe")
            .args([
                "-v",
                "error",
                "-count_frames",
                "-show_streams",
                "-of",
                "json",
                name,
            ])
            .current_dir(folder)
            .output()
            .expect("ffprobe runs");
        let probe: Value = serde_json::from_slice(&probe.stdout).expect("JSON");
        let streams = probe["streams"].as_array().expect("streams");
        assert_eq!(streams.len(), 2);
        assert_eq!(
            (&streams[0]["codec_name"], &streams[1]["codec_name"]),
            (&video.into(), &audio.into())
        );
        // Whoever reads it has to see the colours that it was made of.
        if codec != "ffv1" {
            for tag in ["color_space", "color_primaries", "color_transfer"] {
                assert_eq!(streams[0][tag], "bt709", "{name}: {tag}");
            }
        }
        assert_eq!(
            (&streams[0]["pix_fmt"], &streams[0]["nb_read_frames"]),
            (&pixels.into(), &"120".into())
        );
        if let Some(seconds) = streams[1]["duration"].as_str() {
            let seconds: f64 = seconds.parse().expect("seconds");
            assert!(
                (seconds - 120.0 / 25.0).abs() < 0.05,
                "{seconds} s of sound"
            );
        }
    }
    let flags = ["--overlap", "12", "-o", "out/%06d.png"];
    let lost = run(folder, ["stitch", "a.mp4", "b.mkv"].iter().chain(&flags));
    assert!(lost.status.success() && stderr(&lost).contains("sound is lost"));
    // Nobody is there to keep it, but it is known.
    with_tone(folder, "c.mp4", 48..120, 25);
    let flags = [
        "stitch",
        "a.mp4",
        "c.mp4",
        "--overlap",
        "12",
        "-o",
        "l.mp4",
        "--json",
    ];
    let without = support::longtake(folder)
        .args(flags)
        .env("PATH", folder)
        .output();
    let report = json(&without.expect("the program starts"));
    assert_eq!(
        (&report["sound"], &report["clips"][0]["sound"]),
        (&"lost".into(), &true.into())
    );
}

#[test]
fn more_than_8_bits_are_kept_wherever_the_output_holds_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let all: Vec<Frame<u16>> = (0..40).map(ramp).collect();
    let a = pictures(folder, "a", &all[..24]);
    // The second clip is a little brighter, so that a join has something to do.
    let brighter = all[16..].iter().cloned().map(|mut frame| {
        frame.data_mut().iter_mut().for_each(|s| *s += 300);
        frame
    });
    let b = pictures(folder, "b", &brighter.collect::<Vec<_>>());
    let stitch = |out: &str, flags: &[&str]| {
        let all = [
            &["stitch", &a, &b, "--overlap", "8", "-o", out, "--json"],
            flags,
        ]
        .concat();
        json(&run(folder, &all))
    };
    let report = stitch("p/%06d.png", &[]);
    assert_eq!(
        (&report["bits"], &report["frames"]),
        (&16.into(), &40.into())
    );
    let mut reader = open_video(folder.join("p")).expect("pictures");
    assert!(reader.is_deep().expect("pictures"));
    let read = std::iter::from_fn(|| reader.next_as::<u16>());
    let joined: Vec<_> = read.collect::<Result<_, _>>().expect("pictures");
    // Far from the join every sample is as it was; in it there are shades between those of 8 bits.
    assert!(joined[..8] == all[..8]);
    let shades = |frame: &Frame<u16>| frame.data().iter().copied().collect::<BTreeSet<_>>().len();
    for frame in &joined {
        assert!(shades(frame) > 1000, "{} shades", shades(frame));
    }
    // Without loss the film is the same.
    assert_eq!(stitch("f.mkv", &[])["bits"], 16);
    assert!(deep_frames_of(&folder.join("f.mkv")) == joined);
    // 10 bits have a thousand shades, 8 bits would leave less than two hundred of this ramp.
    for (name, codec) in [("p.mov", "prores"), ("x.mp4", "x264")] {
        assert_eq!(stitch(name, &["--codec", codec])["bits"], 16);
        for frame in deep_frames_of(&folder.join(name)) {
            let rows = frame.data().chunks_exact(3 * 640).take(1);
            let reds: BTreeSet<u16> = rows
                .flat_map(|row| row.iter().step_by(3).copied())
                .collect();
            assert!(reds.len() > 300, "{name}: {} shades", reds.len());
        }
    }
    // They are read again, and what holds less says so.
    let again = [
        "stitch",
        "f.mkv",
        "p.mov",
        "--overlap",
        "3",
        "-o",
        "g.mkv",
        "--json",
    ];
    assert_eq!(json(&run(folder, again))["bits"], 16);
    let report = stitch("h.mp4", &[]);
    assert_eq!(report["bits"], 8);
    let notice = report["notices"][0].as_str().expect("a notice");
    assert!(notice.contains("more than 8 bits"), "{notice}");
}

#[test]
fn clips_that_do_not_fit_are_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let cup = cup();
    let a = pictures(folder, "a", &cup[..30]);
    let b = pictures(folder, "b", &cup[60..90]);
    let small: Vec<Frame> = cup[..9].iter().map(|f| f.clone().cropped(64, 48)).collect();
    let small = pictures(folder, "small", &small);
    with_tone(folder, "a.mp4", 0..30, 25);
    with_tone(folder, "b.mp4", 20..50, 30);
    let cases: [(&[&str], &str); 8] = [
        (&[&a, &b, "--overlap", "auto"], "no overlap"),
        (&[&a, &small, "--overlap", "5"], "one size"),
        (&["a.mp4", "b.mp4", "--overlap", "5"], "one rate"),
        (&[&a, &b, "--overlap", "31"], "31"),
        (&[&a, &b, "--overlap", "5,5"], "one for each"),
        (&[&a, &b, "--overlap", "0"], "at least 1"),
        (&[&a, "gone.mp4", "--overlap", "5"], "gone.mp4"),
        (&[&a, "--overlap", "5"], "CLIP"),
    ];
    for (args, expected) in cases {
        let args = ["stitch"].iter().chain(args).chain(&["-o", "film.mp4"]);
        let out = run(folder, args);
        let text = stderr(&out);
        assert!(
            !out.status.success() && text.contains(expected),
            "{expected}: {text}"
        );
        assert!(!text.contains("panicked"), "{text}");
    }
    holds_only(folder, &["a", "b", "small", "a.mp4", "b.mp4"]);
}
