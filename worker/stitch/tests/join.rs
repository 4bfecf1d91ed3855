//! Joins: what must hold for any input, and that seams of known kinds disappear.

mod common;

use common::{Ball, on_threads, picture, texture};
use longtake_common::Frame;
use longtake_stitch::{JoinParams, Method, SeamScorer, StitchError, join};

const METHODS: [Method; 3] = [Method::Flow, Method::Crossfade, Method::Cut];

fn params(overlap_frames: usize, relax_frames: usize, method: Method) -> JoinParams {
    JoinParams {
        overlap_frames,
        relax_frames,
        method,
    }
}

/// A texture that glides; `shift` pixels off, brighter by `gain`.
fn glide(
    width: u32,
    height: u32,
    frames: std::ops::Range<u32>,
    shift: f64,
    gain: f64,
) -> Vec<Frame> {
    frames
        .map(|t| {
            picture(width, height, |x, y| {
                texture(x + 1.5 * f64::from(t) + shift, y + 0.5 * shift)
                    .map(|v| (30.0 + 0.7 * v * gain).min(255.0))
            })
        })
        .collect()
}

#[test]
fn equal_windows_come_out_as_they_went_in() {
    let frames = glide(64, 48, 0..9, 0.0, 1.0);
    for method in METHODS {
        assert_eq!(
            join(&[], &frames[..5], &frames, &params(5, 4, method)).unwrap(),
            frames
        );
    }
    // One value of one frame differs: the first and the last are as they were, and what is steadied
    // in between stays what it was but for rounding.
    let mut other = frames.clone();
    other[2].data_mut()[0] ^= 1;
    let joined = join(&[], &frames[..5], &other, &params(5, 4, Method::Flow)).unwrap();
    assert_eq!(joined[0], frames[0]);
    assert_eq!(joined[8], frames[8]);
    for (joined, frame) in joined.iter().zip(&frames) {
        assert!(mean_difference(joined, frame) < 1.0);
    }
}

#[test]
fn lengths_and_the_last_frame_are_kept() {
    for method in METHODS {
        for (overlap, relax) in [(1, 0), (1, 3), (2, 0), (5, 0), (5, 1), (9, 6)] {
            let left = glide(48, 40, 0..overlap, 0.0, 1.0);
            let right = glide(48, 40, 0..overlap + relax, 2.0, 1.1);
            let (overlap, relax) = (overlap as usize, relax as usize);
            let joined = join(&[], &left, &right, &params(overlap, relax, method)).unwrap();
            assert_eq!(joined.len(), overlap + relax);
            assert_eq!(joined.last(), right.last(), "{method} {overlap}+{relax}");
        }
    }
}

#[test]
fn a_lead_comes_first_and_calm_begins_in_it() {
    let still = glide(64, 48, 0..1, 0.0, 1.0);
    let (left, right) = (noisy(&still[0], 17, 1), noisy(&still[0], 32, 2));
    for method in METHODS {
        let joined = join(&left[..8], &left[8..], &right, &params(9, 23, method)).unwrap();
        assert_eq!(joined.len(), 8 + 9 + 23);
        assert_eq!(
            (&joined[0], &joined[39]),
            (&left[0], &right[31]),
            "{method}"
        );
        let flow = method == Method::Flow;
        assert_eq!(joined[1..8] != left[1..8], flow, "{method}");
        assert_eq!(joined[17..24] != right[9..16], flow, "{method}");
    }
    let joined = join(&left[..8], &left[8..], &right, &params(9, 23, Method::Flow)).unwrap();
    let change = |k: usize| mean_difference(&joined[k], &joined[k + 1]);
    let untouched = change(38);
    // Into the overlap, inside it and out of it, less changes than elsewhere.
    for k in 7..17 {
        assert!(
            change(k) < 0.9 * untouched,
            "{k}: {} of {untouched}",
            change(k)
        );
    }
}

/// The picture again and again, each time with a noise of its own.
fn noisy(still: &Frame, count: usize, seed: u32) -> Vec<Frame> {
    let mut state = seed;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as i32 % 13 - 6
    };
    (0..count)
        .map(|_| {
            let mut frame = still.clone();
            for v in frame.data_mut() {
                *v = (i32::from(*v) + noise()).clamp(0, 255) as u8;
            }
            frame
        })
        .collect()
}

fn mean_difference(a: &Frame, b: &Frame) -> f64 {
    let pairs = a.data().iter().zip(b.data());
    let sum: u32 = pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    f64::from(sum) / a.data().len() as f64
}

#[test]
fn tiny_pictures_do_not_fail() {
    for (w, h) in [(1, 1), (1, 7), (5, 2), (9, 9), (16, 17)] {
        for method in METHODS {
            let (left, right) = (glide(w, h, 0..3, 0.0, 1.0), glide(w, h, 0..5, 1.0, 1.2));
            let joined = join(&[], &left, &right, &params(3, 2, method)).unwrap();
            assert_eq!(joined[4], right[4]);
        }
    }
}

#[test]
fn wrong_input_is_named() {
    let frames = glide(16, 16, 0..6, 0.0, 1.0);
    let p = params(4, 2, Method::Flow);
    assert_eq!(
        join(&[], &[], &frames, &params(0, 6, Method::Flow)),
        Err(StitchError::NoOverlap)
    );
    let count = |side, found, expected| {
        Err(StitchError::FrameCount {
            side,
            found,
            expected,
        })
    };
    assert_eq!(join(&[], &frames[..3], &frames, &p), count("left", 3, 4));
    assert_eq!(
        join(&[], &frames[..4], &frames[..5], &p),
        count("right", 5, 6)
    );
    let mut odd = frames.clone();
    odd[3] = Frame::black(16, 8);
    let error = join(&[], &frames[..4], &odd, &p).unwrap_err();
    assert!(error.to_string().contains("frame 7 is 16x8"), "{error}");
    assert!(
        "fade"
            .parse::<Method>()
            .unwrap_err()
            .to_string()
            .contains("crossfade")
    );
}

#[test]
fn threads_do_not_change_a_bit() {
    let (left, right) = (
        glide(120, 90, 0..5, 0.0, 1.0),
        glide(120, 90, 0..12, 1.7, 1.05),
    );
    let run = |threads| {
        on_threads(threads, || {
            join(&[], &left, &right, &params(5, 7, Method::Flow))
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(7));
}

fn mean_luma(frame: &Frame) -> f64 {
    let sum: f64 = frame
        .data()
        .chunks_exact(3)
        .map(|p| 0.2126 * f64::from(p[0]) + 0.7152 * f64::from(p[1]) + 0.0722 * f64::from(p[2]))
        .sum();
    sum * 3.0 / frame.data().len() as f64
}

/// A film with a seam at frame 24, and its score.
fn film(
    left: &[Frame],
    right: &[Frame],
    method: Method,
) -> (Vec<Frame>, longtake_common::task::SeamScore) {
    let (overlap, relax) = (9, 15);
    let head = &right[..overlap + relax];
    let joined = join(&[], &left[24..], head, &params(overlap, relax, method)).unwrap();
    let film: Vec<Frame> = left[..24]
        .iter()
        .chain(&joined)
        .chain(&right[overlap + relax..])
        .cloned()
        .collect();
    let mut scorer = SeamScorer::new(24.0, &[(24, overlap as u32)], method).unwrap();
    film.iter().for_each(|f| scorer.push(f).unwrap());
    let score = scorer.finish().unwrap().remove(0);
    (film, score)
}

#[test]
fn drift_and_exposure_disappear_and_detail_stays() {
    let left = glide(160, 120, 0..33, 0.0, 1.0);
    let right = glide(160, 120, 24..72, 2.5, 1.12);
    let (flow_film, flow) = film(&left, &right, Method::Flow);
    let (_, fade) = film(&left, &right, Method::Crossfade);
    let (_, cut) = film(&left, &right, Method::Cut);
    assert!(cut.seam_ratio > 1.2, "{cut:?}");
    assert!(fade.sharpness < 0.92, "a dissolve must show: {fade:?}");
    assert!(flow.sharpness >= 0.92, "{flow:?}");
    assert!(
        flow.seam_ratio < cut.seam_ratio && flow.warp_ratio <= 1.2,
        "{flow:?}"
    );
    let lumas: Vec<f64> = flow_film.iter().map(mean_luma).collect();
    let steps = lumas.windows(2).map(|w| (w[1] - w[0]).abs());
    // The windows differ by about 11 levels; over 24 frames no step is larger than one.
    assert!(steps.fold(0.0, f64::max) < 1.0);
}

/// Centre of gravity of what is redder than the background.
fn red_centre(frame: &Frame) -> (f64, f64) {
    let (mut sum, mut x, mut y) = (0.0, 0.0, 0.0);
    for (i, p) in frame.data().chunks_exact(3).enumerate() {
        let m = (f64::from(p[0]) - 60.0).max(0.0);
        let w = frame.width() as usize;
        (sum, x, y) = (sum + m, x + m * (i % w) as f64, y + m * (i / w) as f64);
    }
    (x / sum, y / sum)
}

#[test]
fn a_ball_glides_through_the_seam() {
    let ball = |t: u32, dx: f64, radius: f64| {
        let (colour, ground) = ([230.0, 26.0, 26.0], [13.0, 20.0, 77.0]);
        Ball {
            radius,
            x: 40.0 + 1.67 * f64::from(t) + dx,
            y: 60.0,
            colour,
            ground,
        }
        .draw(224, 128)
    };
    let left: Vec<Frame> = (0..33).map(|t| ball(t, 0.0, 18.0)).collect();
    let right: Vec<Frame> = (24..72).map(|t| ball(t, 2.5, 18.4)).collect();
    let (film, score) = film(&left, &right, Method::Flow);
    assert!(
        score.seam_ratio <= 1.15 && score.warp_ratio <= 1.2 && score.sharpness >= 0.92,
        "{score:?}"
    );
    for (t, pair) in film.windows(2).enumerate() {
        let ((x0, y0), (x1, y1)) = (red_centre(&pair[0]), red_centre(&pair[1]));
        assert!(
            (x1 - x0 - 1.67).abs() < 0.5 && (y1 - y0).abs() < 0.25,
            "step {t}: {}",
            x1 - x0
        );
    }
}

#[test]
fn unrelated_windows_dissolve_quickly_and_unbent() {
    let left = glide(128, 96, 0..17, 0.0, 1.0);
    let flat: Vec<Frame> = (0..20).map(|_| picture(128, 96, |_, y| [y; 3])).collect();
    let joined = join(&[], &left, &flat, &params(17, 3, Method::Flow)).unwrap();
    let distance = |a: &Frame, b: &Frame| {
        a.data()
            .iter()
            .zip(b.data())
            .map(|(a, b)| f64::from(a.abs_diff(*b)))
            .sum::<f64>()
            / a.data().len() as f64
    };
    // Early frames are the left window, late ones the right, nearly untouched.
    assert!(
        distance(&joined[1], &left[1]) < 6.0,
        "{}",
        distance(&joined[1], &left[1])
    );
    assert!(
        distance(&joined[16], &flat[16]) < 6.0,
        "{}",
        distance(&joined[16], &flat[16])
    );
}

/// Mean difference of two frames, over all samples.
fn step(a: &Frame, b: &Frame) -> f64 {
    let pairs = a.data().iter().zip(b.data());
    let sum: f64 = pairs
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        .sum();
    sum / a.data().len() as f64
}

#[test]
fn flicker_is_calmer_in_the_overlap_than_in_either_window() {
    let grainy = |frames: Vec<Frame>, mut seed: u32| -> Vec<Frame> {
        let mut grain = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) % 9
        };
        frames
            .into_iter()
            .map(|mut frame| {
                for v in frame.data_mut() {
                    *v = v.saturating_add(grain() as u8);
                }
                frame
            })
            .collect()
    };
    let still = || vec![glide(96, 64, 0..1, 0.0, 1.0).remove(0); 9];
    let (left, right) = (grainy(still(), 1), grainy(still(), 2));
    let joined = join(&[], &left, &right, &params(9, 0, Method::Flow)).unwrap();
    let typical = |film: &[Frame]| -> f64 {
        let steps: Vec<f64> = film.windows(2).map(|w| step(&w[0], &w[1])).collect();
        steps[1..steps.len() - 1].iter().sum::<f64>() / (steps.len() - 2) as f64
    };
    let (calm, before) = (typical(&joined), typical(&left).min(typical(&right)));
    assert!(calm < 0.6 * before, "{calm} against {before}");
}
