//! Clips joined as they stream.

mod common;

use common::{picture, texture};
use longtake_common::Frame;
use longtake_stitch::chain::RELAX_FRAMES;
use longtake_stitch::{Chain, Method, Part, StitchError};

fn film(frames: u32) -> Vec<Frame> {
    (0..frames)
        .map(|t| picture(32, 24, |x, y| texture(x + 1.5 * f64::from(t), y)))
        .collect()
}

/// All frames of the joined clips, and the parts they came from.
fn stitched(chain: &mut Chain, clips: &[&[Frame]]) -> Result<Vec<(Frame, Part)>, StitchError> {
    let mut out = Vec::new();
    for clip in clips {
        for frame in *clip {
            chain.push(frame.clone())?;
            out.extend(std::iter::from_fn(|| chain.pop()));
        }
        chain.end_clip()?;
        out.extend(std::iter::from_fn(|| chain.pop()));
    }
    Ok(out)
}

#[test]
fn clips_cut_from_one_film_become_that_film() {
    let film = film(230);
    let cuts: [(&[std::ops::Range<usize>], &[usize]); 4] = [
        (&[0..100, 90..200, 183..230], &[10, 17]),
        // Overlaps side by side, no frame of its own in the middle clip.
        (&[0..20, 10..30, 20..40], &[10, 10]),
        (&[0..5, 0..9], &[5]),
        (&[0..1, 0..230], &[1]),
    ];
    for method in [Method::Flow, Method::Crossfade, Method::Cut] {
        for (ranges, overlaps) in &cuts {
            let clips: Vec<&[Frame]> = ranges.iter().map(|r| &film[r.clone()]).collect();
            let mut chain = Chain::new(method, overlaps).expect("a chain");
            let out = stitched(&mut chain, &clips).expect("a film");
            let end = ranges.last().map_or(0, |r| r.end);
            assert_eq!(out.len(), end, "{method} {ranges:?}");
            assert!(out.iter().map(|(f, _)| f).eq(&film[..end]));
            for (seam, range) in chain.seams().iter().zip(&ranges[1..]) {
                assert_eq!(seam.frame as usize, range.start);
                assert!(seam.relax_frames as usize <= RELAX_FRAMES);
                let (first, last) = (range.start, range.start + seam.overlap_frames as usize);
                let inside = out[first..last].iter().all(|(_, part)| *part == Part::Seam);
                assert!(inside, "no encoder starts afresh in an overlap");
            }
        }
    }
}

#[test]
fn frames_leave_as_soon_as_no_join_needs_them() {
    let film = film(150);
    let mut chain = Chain::new(Method::Flow, &[7, 7]).expect("a chain");
    let (mut inside, mut most) = (0usize, 0);
    for clip in [&film[..60], &film[53..130], &film[123..]] {
        for frame in clip {
            chain.push(frame.clone()).expect("room");
            inside += 1;
            while chain.pop().is_some() {
                inside -= 1;
            }
            most = most.max(inside);
        }
        chain.end_clip().expect("the clip is long enough");
    }
    assert!(
        most <= 2 * 7 + 7 + RELAX_FRAMES + 8,
        "{most} frames were held"
    );
}

#[test]
fn clips_that_cannot_be_joined_are_named() {
    let film = film(20);
    let run = |clips: &[&[Frame]], overlaps: &[usize]| {
        stitched(&mut Chain::new(Method::Flow, overlaps)?, clips).map(|out| out.len())
    };
    let short = |clip, frames, needed| {
        Err(StitchError::ClipTooShort {
            clip,
            frames,
            needed,
        })
    };
    assert_eq!(run(&[&film[..4], &film], &[5]), short(1, 4, 5));
    assert_eq!(run(&[&film, &film[..9], &film], &[5, 5]), short(2, 9, 10));
    assert_eq!(run(&[&film, &[]], &[5]), short(2, 0, 5));
    assert_eq!(run(&[&film, &film], &[0]), Err(StitchError::NoOverlap));
    let mut other = film.clone();
    other[3] = Frame::black(8, 8);
    assert!(matches!(
        run(&[&film, &other], &[5]),
        Err(StitchError::Size { .. })
    ));
}
