//! PSNR, SSIM and seam scores against values worked out by hand.

mod common;

use common::{picture, texture};
use longtake_common::Frame;
use longtake_stitch::{Comparison, Method, SeamScorer, StitchError};

#[test]
fn psnr_and_ssim_have_their_known_values() {
    let a = picture(40, 30, texture);
    let mut equal = Comparison::new();
    let one = equal.push(&a, &a).unwrap();
    assert!(one.psnr_y.is_infinite() && one.psnr_rgb.is_infinite());
    assert!((one.ssim - 1.0).abs() < 1e-6);
    // Off by 5 everywhere: 20 log10(255 / 5).
    let (grey, lighter) = (
        picture(40, 30, |_, _| [100.0; 3]),
        picture(40, 30, |_, _| [105.0; 3]),
    );
    let q = equal.push(&grey, &lighter).unwrap();
    assert!(
        (q.psnr_y - 34.151).abs() < 0.01 && (q.psnr_rgb - 34.151).abs() < 0.001,
        "{q:?}"
    );
    // Flat pictures differ in the mean only: (2 m n + C1) / (m m + n n + C1).
    let c1 = 2.55f64 * 2.55;
    let expected = (2.0 * 100.0 * 105.0 + c1) / (100.0f64.powi(2) + 105.0f64.powi(2) + c1);
    assert!((q.ssim - expected).abs() < 1e-3, "{} {expected}", q.ssim);
    // Over both pairs the squares are averaged: half the error is 3.01 dB more.
    let both = equal.finish();
    assert_eq!(both.frames, 2);
    assert!((both.psnr_rgb - 37.161).abs() < 0.001 && (both.worst_ssim - q.ssim).abs() < 1e-12);
    assert!(matches!(
        equal.push(&a, &Frame::black(4, 4)),
        Err(StitchError::Size { .. })
    ));
    for (w, h) in [(1, 1), (11, 10), (3, 40)] {
        let tiny = picture(w, h, texture);
        assert!((Comparison::new().push(&tiny, &tiny).unwrap().ssim - 1.0).abs() < 1e-6);
    }
}

fn glide(t: f64) -> Frame {
    picture(160, 112, |x, y| texture(x + 1.3 * t, y))
}

fn score(film: &[Frame], seams: &[(u32, u32)]) -> Vec<longtake_common::task::SeamScore> {
    let mut scorer = SeamScorer::new(24.0, seams, Method::Flow).unwrap();
    film.iter().for_each(|f| scorer.push(f).unwrap());
    scorer.finish().unwrap()
}

#[test]
fn a_film_without_seam_scores_one() {
    let film: Vec<Frame> = (0..70).map(|t| glide(f64::from(t))).collect();
    let s = &score(&film, &[(30, 9)])[0];
    assert_eq!((s.frame, s.method.as_str()), (30, "flow"));
    assert!(
        (0.9..1.05).contains(&s.seam_ratio) && (0.8..1.1).contains(&s.warp_ratio),
        "{s:?}"
    );
    assert!((0.97..1.03).contains(&s.sharpness), "{s:?}");
}

#[test]
fn cuts_and_dissolves_are_told_apart() {
    let to = |t: u32| glide(f64::from(t) + 40.0);
    let cut: Vec<Frame> = (0..70)
        .map(|t| if t < 34 { glide(f64::from(t)) } else { to(t) })
        .collect();
    let s = &score(&cut, &[(30, 9)])[0];
    assert!(
        s.seam_ratio > 1.5 && s.warp_ratio > 1.5 && s.sharpness > 0.95,
        "{s:?}"
    );
    let mix = |a: &Frame, b: &Frame, share: f64| {
        let mut out = a.clone();
        for (o, b) in out.data_mut().iter_mut().zip(b.data()) {
            *o = ((1.0 - share) * f64::from(*o) + share * f64::from(*b) + 0.5) as u8;
        }
        out
    };
    let dissolve: Vec<Frame> = (0..70u32)
        .map(|t| {
            let share = ((f64::from(t) - 29.0) / 10.0).clamp(0.0, 1.0);
            // Off by two pixels: near enough to pass for the same place.
            mix(&glide(f64::from(t)), &glide(f64::from(t) + 1.6), share)
        })
        .collect();
    let s = &score(&dissolve, &[(30, 9)])[0];
    assert!(s.sharpness < 0.92, "{s:?}");
}

#[test]
fn a_still_film_does_not_divide_by_nothing() {
    let film: Vec<Frame> = (0..60u32)
        .map(|t| {
            picture(64, 48, move |x, y| {
                [100.0 + f64::from((t * 7 + x as u32 * 5 + y as u32 * 3) % 13 / 12); 3]
            })
        })
        .collect();
    let s = &score(&film, &[(20, 9), (40, 9)]);
    assert_eq!(s.len(), 2);
    for s in s {
        assert!(
            s.seam_ratio < 1.1 && s.warp_ratio < 1.1 && s.sharpness > 0.9,
            "{s:?}"
        );
    }
    // A seam at the very start and one up to the very end have one side only.
    let film: Vec<Frame> = (0..12).map(|t| glide(f64::from(t))).collect();
    assert!(
        score(&film, &[(0, 5), (7, 5)])
            .iter()
            .all(|s| s.sharpness.is_finite())
    );
}

#[test]
fn impossible_seams_are_refused() {
    let new = |seams: &[(u32, u32)]| SeamScorer::new(24.0, seams, Method::Flow);
    assert!(matches!(new(&[(5, 0)]), Err(StitchError::NoOverlap)));
    assert!(matches!(
        new(&[(5, 9), (10, 9)]),
        Err(StitchError::SeamOrder {
            index: 1,
            frame: 10
        })
    ));
    let mut scorer = new(&[(5, 9)]).unwrap();
    scorer.push(&glide(0.0)).unwrap();
    assert!(matches!(
        scorer.push(&Frame::black(3, 3)),
        Err(StitchError::Size { .. })
    ));
    assert!(matches!(
        scorer.finish(),
        Err(StitchError::SeamBeyondEnd {
            frame: 5,
            frames: 1
        })
    ));
}
