//! Overlaps are found in moving textures whose overlap is known, and only there.

mod common;

use common::{picture, texture};
use longtake_common::Frame;
use longtake_stitch::{FoundOverlap, NoMatch, Sketch, find_overlap};

/// A camera that wanders over a texture, never twice at one speed.
fn film(frames: std::ops::Range<u32>, seed: f64) -> Vec<Frame> {
    frames
        .map(|t| {
            let t = f64::from(t);
            let (x, y) = (0.4 * t + 6.0 * (t / 9.0).sin(), 4.0 * (t / 13.0).cos());
            picture(160, 96, |px, py| texture(px + x + seed, py + y))
        })
        .collect()
}

/// The frame brighter by `gain`, with even noise of about `noise` levels.
fn altered(frame: &Frame, gain: f64, noise: f64, seed: u64) -> Frame {
    let mut out = frame.clone();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for value in out.data_mut() {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let even = (state >> 40) as f64 / f64::from(1 << 24) - 0.5;
        *value = (f64::from(*value) * gain + noise * even * 12f64.sqrt()).clamp(0.0, 255.0) as u8;
    }
    out
}

fn sketches(frames: &[Frame]) -> Vec<Sketch> {
    frames.iter().map(Sketch::new).collect()
}

fn found(left: &[Frame], right: &[Frame]) -> Result<FoundOverlap, NoMatch> {
    find_overlap(&sketches(left), &sketches(right))
}

#[test]
fn the_true_overlap_is_found_despite_gain_and_noise() {
    let film = film(0..110, 0.0);
    let noisy: Vec<Frame> = film
        .iter()
        .enumerate()
        .map(|(i, f)| altered(f, 1.08, 5.1, i as u64 + 1))
        .collect();
    let (plain, noisy) = (sketches(&film), sketches(&noisy));
    for overlap in [3, 5, 8, 17, 31, 48] {
        for right in [&plain, &noisy] {
            let found = find_overlap(&plain[..60], &right[60 - overlap..]).expect("an overlap");
            assert_eq!(found.frames, overlap);
            assert!(found.confidence > 0.8, "{overlap}: {}", found.confidence);
        }
    }
}

#[test]
fn no_overlap_is_an_answer() {
    let one = film(0..60, 0.0);
    // Another place, the moment after, a gap, and too little.
    assert_eq!(found(&one, &film(0..60, 900.0)), Err(NoMatch::Different));
    assert_eq!(found(&one[..30], &one[30..]), Err(NoMatch::Different));
    assert_eq!(found(&one[..25], &one[33..]), Err(NoMatch::Different));
    assert_eq!(found(&one[..2], &one), Err(NoMatch::TooShort));
    let still = vec![one[0].clone(); 20];
    assert!(matches!(found(&still, &still), Err(NoMatch::Ambiguous(..))));
    let black = vec![Frame::black(64, 48); 20];
    assert!(found(&black, &black).is_err());
    assert!(found(&one, &black).is_err());
}

#[test]
fn threads_do_not_change_the_answer() {
    let film = film(0..50, 0.0);
    let run = |threads| {
        common::on_threads(threads, || found(&film[..30], &film[19..])).expect("an overlap")
    };
    assert_eq!(run(1), run(3));
    assert_eq!(run(1).frames, 11);
}
