//! What the shipped model makes of a long take, measured on finished films: one motion across every
//! seam with `chain`, two that have nothing to do with each other without, and memory that does not
//! grow with the length.
//!
//! The prompt is one that ltxv-tiny was not trained on, and its seed one with which it draws the
//! shape well all the way (a shape of uniform colour, larger than a token, that moves by less than
//! a pixel a frame). So what breaks here was broken by the joining of windows, not by a model of two
//! million parameters that loses its thread; `judge continuity` shows how often that happens.

use longtake_common::media::open_video;
use longtake_tests::detect::{Continuity, MOST_DEVIATION_PX, Track, continuity, look};
use longtake_tests::product::{Report, render};
use std::path::Path;

const PROMPT: &str = "a big blue ball rolls slowly left over a black background";
const SEED: &str = "3";
const OVERLAP_FRAMES: u32 = 17;
/// Three windows of 65 frames that share 17.
const FILM: [&str; 8] = [
    "--size=256x160",
    "--frames=161",
    "--segment-frames=65",
    "--overlap-frames=17",
    "--workers=2",
    "--threads=1",
    "--seed",
    SEED,
];

/// Renders the film with `continuity` and looks at every frame.
fn film(folder: &Path, continuity_flag: &str) -> (Report, Continuity) {
    let path = folder.join(format!("{continuity_flag}.mp4"));
    let flags = [&FILM[..], &["--continuity", continuity_flag]].concat();
    let report = render(PROMPT, &path, &flags).expect("rendered");
    let reader = open_video(&path).expect("the film");
    let mut track = Track::new(report.width, report.height, report.fps);
    for frame in reader {
        track.push(look(&frame.expect("a frame")));
    }
    assert_eq!(track.sightings().len(), 161);
    let seams: Vec<_> = report
        .seams
        .iter()
        .map(|seam| (seam.frame, OVERLAP_FRAMES))
        .collect();
    assert_eq!(seams, [(48, OVERLAP_FRAMES), (96, OVERLAP_FRAMES)]);
    let found = continuity(&track, &seams);
    (report, found)
}

#[test]
fn a_chained_film_is_one_motion_and_an_unchained_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (report, chained) = film(folder.path(), "chain");
    assert!(chained.holds(), "{chained:?}");
    assert_eq!((chained.colour, chained.shape), ("blue", "ball"));
    for seam in &report.seams {
        // Bounds of docs/quality.md.
        assert!(seam.seam_ratio <= 1.15, "{seam:?}");
        assert!(seam.warp_ratio <= 1.2, "{seam:?}");
        assert!(seam.sharpness >= 0.92, "{seam:?}");
    }
    // The judge must be able to say no: windows that know nothing of each other put the ball
    // anywhere.
    let (_, unchained) = film(folder.path(), "none");
    let worst = unchained
        .seams
        .iter()
        .map(|seam| seam.deviation_px)
        .fold(0.0, f64::max);
    assert!(worst > MOST_DEVIATION_PX, "{unchained:?}");
}

#[test]
fn memory_does_not_grow_with_the_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let peak = |frames: &str| {
        let path = folder.path().join(format!("{frames}.mp4"));
        let flags = [
            "--size=128x96",
            "--segment-frames=65",
            "--overlap-frames=17",
            "--workers=1",
            "--threads=2",
            "--frames",
            frames,
        ];
        let report = render(PROMPT, &path, &flags).expect("rendered");
        report.peak_rss_bytes as f64
    };
    // Three windows meet every kind of work; twelve of them are four times as much of each.
    let (short, long) = (peak("161"), peak("644"));
    assert!(
        long <= 1.15 * short,
        "{:.0} MiB for 161 frames, {:.0} MiB for 644",
        short / f64::from(1 << 20),
        long / f64::from(1 << 20)
    );
}
