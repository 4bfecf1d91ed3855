//! What every plan has in common, and a few in full.

mod support;

use longtake_common::spec::{Continuity, Shot, Transition};
use longtake_core::plan;
use longtake_core::plan::{LEAD_FRAMES_MAX, RELAX_FRAMES_MAX, Source};
use proptest::prelude::*;
use support::spec;

/// `first frames visible` of each window.
fn windows(frames: u32) -> Vec<(u32, u32, u32)> {
    let plan = plan(&spec(frames));
    plan.windows
        .iter()
        .map(|w| (w.first_frame, w.frames, w.visible_frames))
        .collect()
}

#[test]
fn films_are_cut_into_windows() {
    type Row = (u32, &'static [(u32, u32, u32)]);
    let table: &[Row] = &[
        (1, &[(0, 1, 1)]),
        (2, &[(0, 9, 2)]),
        (9, &[(0, 9, 9)]),
        (120, &[(0, 121, 120)]),
        (121, &[(0, 121, 121)]),
        // One frame more than a window: the second is as short as can be, 17 shared and 8 new.
        (122, &[(0, 121, 121), (104, 25, 18)]),
        (225, &[(0, 121, 121), (104, 121, 121)]),
        (226, &[(0, 121, 121), (104, 121, 121), (208, 25, 18)]),
        (288, &[(0, 121, 121), (104, 121, 121), (208, 81, 80)]),
    ];
    for (frames, expected) in table {
        assert_eq!(&windows(*frames), expected, "{frames} frames");
    }
}

#[test]
fn a_border_of_shots_is_where_a_window_ends() {
    let shot = |first_frame, transition| Shot {
        first_frame,
        transition,
        prompt: format!("at {first_frame}"),
        negative: None,
        seed: None,
    };
    let film = longtake_common::JobSpec {
        shots: vec![
            shot(130, Transition::Continuous),
            shot(200, Transition::Cut),
        ],
        ..spec(300)
    };
    let plan = plan(&film);
    let places: Vec<_> = (plan.windows.iter())
        .map(|w| (w.first_frame, w.frames, w.visible_frames))
        .collect();
    assert_eq!(
        places,
        [
            // Of the first shot's 130 frames the second window would have 26, too few for an
            // overlap at either end: the two share them.
            (0, 73, 73),
            (56, 81, 74),
            (113, 89, 87),
            (200, 105, 100),
        ]
    );
    assert_eq!(plan.overlaps(), [(56, 17), (113, 17)]);
    assert_eq!(plan.cut_frames(), [200]);
}

#[test]
fn chunks_follow_each_other() {
    let spans = plan(&spec(288)).spans();
    let spans: Vec<_> = spans
        .iter()
        .map(|s| (s.first_frame, s.frames, s.source))
        .collect();
    let expected = [
        (0, 96, Source::Interior(0)),
        (96, 8 + 17 + 48, Source::Seam(0)),
        (169, 31, Source::Interior(1)),
        (200, 8 + 17 + 48, Source::Seam(1)),
        (273, 15, Source::Interior(2)),
    ];
    assert_eq!(spans, expected);
}

#[test]
fn the_longest_films_are_planned_at_once() {
    let plan = plan(&spec(1_000_000));
    assert_eq!(
        plan.spans().iter().map(|span| span.frames).sum::<u32>(),
        1_000_000
    );
}

prop_compose! {
    fn any_spec()(
        overlap_k in 1u32..8,
        more_k in 0u32..20,
        frames in 1u32..4000,
        seed: u64,
        chain: bool,
    ) -> longtake_common::JobSpec {
        let overlap_frames = 8 * overlap_k + 1;
        // The smallest window that two overlaps fit into, and more.
        let segment_frames = 8 * (2 * overlap_k + 1 + more_k) + 1;
        let continuity = if chain { Continuity::Chain } else { Continuity::None };
        longtake_common::JobSpec { overlap_frames, segment_frames, seed, continuity, ..spec(frames) }
    }
}

prop_compose! {
    /// A film whose shots keep the rules: (frames, is a cut, has a seed) of each after the first.
    fn any_film()(
        overlap_k in 1u32..4,
        more_k in 0u32..12,
        first in 1u32..300,
        later in proptest::collection::vec((1u32..300, any::<bool>(), any::<bool>()), 1..6),
    ) -> longtake_common::JobSpec {
        let overlap_frames = 8 * overlap_k + 1;
        let segment_frames = 8 * (3 * overlap_k + 1 + more_k) + 1;
        let mut frames = first.max(overlap_frames);
        let mut shots = Vec::new();
        for (index, (length, is_cut, has_seed)) in later.into_iter().enumerate() {
            shots.push(Shot {
                first_frame: frames,
                transition: if is_cut { Transition::Cut } else { Transition::Continuous },
                prompt: format!("shot {}", index % 3),
                negative: None,
                seed: has_seed.then_some(1000 * index as u64),
            });
            frames += length.max(overlap_frames);
        }
        longtake_common::JobSpec { overlap_frames, segment_frames, shots, ..spec(frames) }
    }
}

proptest! {
    #[test]
    fn a_film_of_shots_shows_every_frame_once_and_every_prompt_from_its_border(spec in any_film()) {
        prop_assert_eq!(spec.check(), Ok(()));
        let plan = plan(&spec);
        let overlap = spec.overlap_frames;
        let mut next = 0;
        for span in plan.spans() {
            prop_assert_eq!(span.first_frame, next);
            next += span.frames;
        }
        prop_assert_eq!(next, spec.frames);
        for pair in plan.windows.windows(2) {
            let (end, index) = (pair[0].first_frame + pair[0].visible_frames, pair[1].index);
            let shared = if plan.continues(index) { overlap } else { 0 };
            prop_assert_eq!(end - pair[1].first_frame, shared);
        }
        for window in &plan.windows {
            prop_assert!(window.frames % 8 == 1 && window.frames <= spec.segment_frames);
            prop_assert!((window.visible_frames..window.visible_frames + 8).contains(&window.frames));
            let shares = plan.shares(window.index);
            let sum = shares.head_frames + shares.relax_frames + shares.interior_frames
                + shares.lead_frames + shares.tail_frames;
            prop_assert_eq!(sum, window.visible_frames);
        }
        for (number, shot) in (1..).zip(&spec.shots) {
            let is_own = |index: &&u32| plan.shots[**index as usize] == number;
            let indices: Vec<u32> = (0..plan.window_count()).collect();
            let own: Vec<u32> = indices.iter().filter(is_own).copied().collect();
            let first = &plan.windows[own[0] as usize];
            let is_cut = shot.transition == Transition::Cut;
            prop_assert_eq!(plan.cuts.contains(&first.index), is_cut);
            let before = if is_cut { 0 } else { overlap };
            prop_assert_eq!(first.first_frame + before, shot.first_frame);
            for (j, index) in own.iter().enumerate() {
                let job_seed = spec.seed.wrapping_add((*index).into());
                let seed = shot.seed.map_or(job_seed, |seed| seed + j as u64);
                prop_assert_eq!(plan.windows[*index as usize].seed, seed);
                prop_assert_eq!(plan.prompt(&spec, *index), &shot.prompt);
            }
        }
    }

    #[test]
    fn windows_cover_the_film_and_share_their_overlaps(spec in any_spec()) {
        prop_assert!(spec.check().is_ok());
        let plan = plan(&spec);
        let (first, last) = (&plan.windows[0], plan.windows.last().expect("never empty"));
        prop_assert_eq!(first.first_frame, 0);
        prop_assert_eq!(last.first_frame + last.visible_frames, spec.frames);
        for (i, window) in plan.windows.iter().enumerate() {
            prop_assert_eq!(window.index as usize, i);
            prop_assert_eq!(window.frames % 8, 1);
            prop_assert!(window.frames <= spec.segment_frames);
            prop_assert!(window.visible_frames <= window.frames);
            prop_assert!(window.frames < window.visible_frames + 8, "no latent is rendered in vain");
            prop_assert_eq!(window.seed, spec.seed.wrapping_add(i as u64));
        }
        for pair in plan.windows.windows(2) {
            let end = pair[0].first_frame + pair[0].frames;
            prop_assert_eq!(pair[0].visible_frames, pair[0].frames);
            prop_assert_eq!(end - pair[1].first_frame, spec.overlap_frames);
            prop_assert!(pair[1].first_frame + pair[1].visible_frames > end, "it adds a frame");
            prop_assert!(pair[1].frames >= spec.overlap_frames + 8);
        }
    }

    #[test]
    fn chunks_show_every_frame_once(spec in any_spec()) {
        let plan = plan(&spec);
        let mut next = 0;
        for span in plan.spans() {
            prop_assert_eq!(span.first_frame, next);
            prop_assert!(span.frames > 0);
            next += span.frames;
            let (from, window, lead) = match span.source {
                Source::Interior(index) => (index, index, 0),
                Source::Seam(index) => (index, index + 1, plan.shares(index).lead_frames),
            };
            // What a chunk shows was rendered by the windows that it is made from.
            let window = &plan.windows[window as usize];
            prop_assert!(span.first_frame + lead >= window.first_frame);
            prop_assert!(next <= window.first_frame + window.visible_frames);
            if let Source::Seam(_) = span.source {
                let left = &plan.windows[from as usize];
                prop_assert_eq!(left.first_frame + left.frames, span.first_frame + lead + spec.overlap_frames);
                prop_assert!(span.frames <= LEAD_FRAMES_MAX + spec.overlap_frames + RELAX_FRAMES_MAX);
                let inner = left.visible_frames - spec.overlap_frames * (1 + u32::from(from > 0));
                prop_assert!(lead > 0 || inner < 4);
            }
        }
        prop_assert_eq!(next, spec.frames);
    }

    #[test]
    fn shares_add_up(spec in any_spec()) {
        let plan = plan(&spec);
        for window in &plan.windows {
            let shares = plan.shares(window.index);
            let sum = shares.head_frames + shares.relax_frames + shares.interior_frames
                + shares.lead_frames + shares.tail_frames;
            prop_assert_eq!(sum, window.visible_frames);
            // Corrections fade out over as many frames as there are, up to the limit.
            let fades = shares.relax_frames >= RELAX_FRAMES_MAX - 1 || shares.interior_frames <= 2;
            prop_assert!(window.index == 0 || fades);
        }
    }
}
