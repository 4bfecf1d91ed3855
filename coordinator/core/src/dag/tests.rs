use super::*;
use crate::plan::{Take, plan};
use longtake_common::sampling::SecondPass;
use longtake_common::spec::{Codec, ModelRef, Sampling, Schedule, Shot, Transition};

pub(crate) fn spec(frames: u32, continuity: Continuity) -> JobSpec {
    JobSpec {
        prompt: String::new(),
        negative: String::new(),
        frames,
        width: 64,
        height: 64,
        fps: 24.0,
        seed: 0,
        model: ModelRef::new("m", Hash::of(b"m")),
        continuity,
        segment_frames: 121,
        overlap_frames: 17,
        sampling: Sampling::plain(Schedule::Steps(1), 1.0, 1),
        codec: Codec::H264,
        shots: Vec::new(),
        conditioning: Vec::new(),
        previews: false,
    }
}

fn take(prompt: &str) -> Take {
    Take {
        number: 1,
        seed: 9,
        prompt: Some(prompt.to_owned()),
    }
}

#[test]
fn a_retake_touches_the_window_and_what_is_made_of_it() {
    let mut plan = plan(&spec(500, Continuity::Chain));
    let names = |plan: &Plan, index| {
        let kinds = retaken(plan, index).into_iter();
        kinds.map(|kind| kind.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&plan, 2),
        ["denoise/2", "decode/2", "seam/1", "seam/2", "mux"]
    );
    plan.apply(0, &take("blue"));
    assert_eq!(
        names(&plan, 0),
        ["text/0", "denoise/0", "decode/0", "seam/0", "mux"]
    );
    let last = plan.window_count() - 1;
    assert_eq!(
        names(&plan, last)[2..],
        [format!("seam/{}", last - 1), "mux".to_owned()]
    );
}

/// A film of four shots: two show the same, one begins with a cut.
fn film(continuity: Continuity) -> JobSpec {
    let shot = |first_frame, transition, prompt: &str| Shot {
        first_frame,
        transition,
        prompt: prompt.to_owned(),
        negative: None,
        seed: None,
    };
    JobSpec {
        shots: vec![
            shot(200, Transition::Continuous, "two"),
            shot(250, Transition::Cut, "three"),
            shot(500, Transition::Continuous, "two"),
        ],
        ..spec(600, continuity)
    }
}

#[test]
fn a_prompt_is_encoded_once_and_a_cut_begins_a_chain() {
    let film = film(Continuity::Chain);
    let plan = plan(&film);
    let names = |kinds: Vec<TaskKind>| kinds.iter().map(TaskKind::to_string).collect::<Vec<_>>();
    let first = |shot| {
        plan.shots
            .iter()
            .position(|of| *of == shot)
            .expect("a window") as u32
    };
    let texts = tasks(&plan).filter(|kind| matches!(kind, TaskKind::Text | TaskKind::ShotText(_)));
    assert_eq!(names(texts.collect()), ["text", "shot/1", "shot/2"]);
    for (shot, text) in [(1, "shot/1"), (2, "shot/2"), (3, "shot/1")] {
        let inputs = names(inputs(&film, &plan, TaskKind::Denoise(first(shot))));
        let before = format!("denoise/{}", first(shot) - 1);
        let expected = if shot == 2 {
            vec![text.to_owned()]
        } else {
            vec![text.to_owned(), before]
        };
        assert_eq!(inputs, expected, "shot {shot}");
    }
    let seam_at_cut = TaskKind::Seam(first(2) - 1);
    assert!(tasks(&plan).all(|kind| kind != seam_at_cut));
    let retaken = names(retaken(&plan, first(2)));
    assert_eq!(
        retaken[..2],
        [
            format!("denoise/{}", first(2)),
            format!("decode/{}", first(2))
        ]
    );
    assert_eq!(
        retaken[2..],
        [format!("seam/{}", first(2)), "mux".to_owned()]
    );
}

/// The same job in two passes.
fn refined(spec: JobSpec, previews: bool) -> JobSpec {
    let sampling = &spec.sampling;
    let second_pass = Some(SecondPass {
        downscale_factor: 0.6666666,
        upscaler: ModelRef::new("u", Hash::of(b"u")),
        pass: sampling.first_pass.clone(),
    });
    let sampling = Sampling {
        second_pass,
        ..sampling.clone()
    };
    JobSpec {
        sampling,
        previews,
        ..spec
    }
}

#[test]
fn a_second_pass_is_a_task_of_its_own() {
    let refined = refined(spec(288, Continuity::Chain), true);
    let plan = plan(&refined);
    let names = |kinds: Vec<TaskKind>| {
        let names: Vec<_> = kinds.iter().map(TaskKind::to_string).collect();
        names.join(" ")
    };
    let inputs = |kind| names(inputs(&refined, &plan, kind));
    assert_eq!(inputs(TaskKind::Denoise(1)), "text refine/0");
    assert_eq!(inputs(TaskKind::Preview(1)), "denoise/1");
    assert_eq!(inputs(TaskKind::Refine(1)), "text denoise/1 refine/0");
    assert_eq!(inputs(TaskKind::Decode(1)), "refine/1");
    let made = |kind| outputs(&refined, &plan, kind).join(" ");
    assert_eq!(made(TaskKind::Denoise(0)), "latents");
    assert_eq!(made(TaskKind::Refine(0)), "latents tail tail_first");
    assert_eq!(made(TaskKind::Refine(2)), "latents");
    assert_eq!(
        names(retaken(&plan, 2)),
        "denoise/2 refine/2 preview/2 decode/2 seam/1 mux"
    );
}

#[test]
fn previews_of_all_windows_are_one_film() {
    let refined = refined(spec(288, Continuity::Chain), true);
    let plan = plan(&refined);
    let mut shown = 0;
    for index in 0..plan.window_count() {
        let Work::Decode {
            window, picture, ..
        } = preview(&refined, &plan, index, Hash::of(b"x"))
        else {
            unreachable!("a preview is decoded")
        };
        assert_eq!(window.first_frame, shown);
        assert_eq!((picture.width, picture.height), (32, 32));
        shown += window.visible_frames;
    }
    assert_eq!(shown, 288);
}

#[test]
fn dependents_are_inputs_backwards() {
    // The last stands for a film of several shots.
    for frames in [1, 121, 122, 288, 1000] {
        let links = [Continuity::Chain, Continuity::None];
        let cases = links
            .iter()
            .flat_map(|link| [0, 1, 2].map(|pass| (*link, pass)));
        for (continuity, passes) in cases {
            let spec = match (frames, passes) {
                (1000, _) => film(continuity),
                (_, 0) => spec(frames, continuity),
                (_, passes) => refined(spec(frames, continuity), passes == 2),
            };
            let mut plan = plan(&spec);
            for index in [0, 2] {
                plan.apply(index, &take("blue"));
            }
            let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
            for kind in tasks(&plan) {
                forwards.extend(
                    inputs(&spec, &plan, kind)
                        .into_iter()
                        .map(|input| (input, kind)),
                );
                backwards.extend(
                    dependents(&spec, &plan, kind)
                        .into_iter()
                        .map(|next| (kind, next)),
                );
            }
            forwards.sort();
            backwards.sort();
            assert_eq!(forwards, backwards, "{frames} frames, {continuity:?}");
        }
    }
}

#[test]
fn ids_are_read_as_they_are_written() {
    let mut plan = plan(&film(Continuity::Chain));
    plan.apply(1, &take("blue"));
    for kind in tasks(&plan) {
        assert_eq!(TaskKind::parse(&kind.to_string()), Some(kind));
    }
    for text in [
        "",
        "denoise",
        "denoise/",
        "denoise/-1",
        "denoise/+1",
        "denoise/01",
        "mux/0",
        "x/1",
    ] {
        assert_eq!(TaskKind::parse(text), None, "{text}");
    }
}
