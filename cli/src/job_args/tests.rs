use super::*;
use clap::Parser;
use longtake_common::sampling::Guidance;
use longtake_common::spec::Schedule;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    job: JobArgs,
}

fn wanted(flags: &[&str]) -> Result<Wanted> {
    let line = ["test", "a red circle"].iter().chain(flags);
    Flags::try_parse_from(line)?
        .job
        .wanted(Codec::H264, Weights::Ignored)
}

#[test]
fn the_defaults_are_those_of_the_shipped_pipeline_file() {
    let spec = wanted(&[]).expect("valid").spec;
    assert_eq!(
        (spec.width, spec.height, spec.fps, spec.frames),
        (256, 160, 24.0, 120)
    );
    assert_eq!((spec.segment_frames, spec.overlap_frames), (121, 17));
    assert!(matches!(spec.sampling.first_pass.schedule, Schedule::Timesteps(t) if t.len() == 8));
}

#[test]
fn flags_go_where_they_belong() {
    let spec = wanted(&[
        "--frames",
        "60",
        "--size",
        "64x64",
        "--fps",
        "12.5",
        "--seed",
        "7",
        "--steps",
        "3",
        "--guidance-scale",
        "2.5",
        "--text-tokens",
        "48",
        "--continuity",
        "none",
        "--segment-frames",
        "33",
        "--overlap-frames",
        "9",
        "--negative",
        "blur",
    ])
    .expect("valid")
    .spec;
    assert_eq!(
        (spec.frames, spec.width, spec.height, spec.fps),
        (60, 64, 64, 12.5)
    );
    assert_eq!((spec.seed, spec.continuity), (7, Continuity::None));
    assert!(
        matches!(spec.sampling.first_pass.schedule, Schedule::Timesteps(t) if t == [1.0, 0.975, 0.4219])
    );
    assert_eq!(
        (spec.sampling.first_pass.guidance, spec.sampling.text_tokens),
        (Guidance::plain(2.5), 48)
    );
    assert_eq!((spec.segment_frames, spec.overlap_frames), (33, 9));
    assert_eq!(spec.negative, "blur");
}

#[test]
fn prompts_along_the_timeline_are_shots() {
    let flags = [
        "--frames=240",
        "--prompt-at",
        "2.5",
        "rain",
        "--prompt-at",
        "5",
        "sun",
    ];
    let spec = wanted(&flags).expect("valid").spec;
    let shots = spec.shots.iter();
    let shots: Vec<_> = shots.map(|s| (s.first_frame, s.prompt.as_str())).collect();
    assert_eq!(shots, [(60, "rain"), (120, "sun")]);
    assert!(
        spec.shots
            .iter()
            .all(|s| s.transition == Transition::Continuous)
    );
    for bad in ["-1", "x", "900"] {
        let flags = ["--frames=240", "--prompt-at", bad, "rain"];
        assert!(wanted(&flags).is_err(), "{bad}");
    }
}

#[test]
fn a_reference_brings_its_length_of_prompts() {
    let of = |flags: &[&str]| {
        let flags: Vec<_> = ["--config=ltxv-2b-0.9.8-distilled"]
            .iter()
            .chain(flags)
            .collect();
        let flags: Vec<&str> = flags.into_iter().copied().collect();
        wanted(&flags).expect("valid").spec.sampling
    };
    let sampling = of(&["--reference=comfy"]);
    assert_eq!(sampling.reference, Some(Reference::Comfy));
    assert_eq!(sampling.text_tokens, 128);
    assert_eq!(of(&["--reference=diffusers"]).text_tokens, 256);
    assert_eq!(
        of(&["--reference=comfy", "--text-tokens=64"]).text_tokens,
        64
    );
    let tiny = wanted(&["--reference=official"])
        .expect("valid")
        .spec
        .sampling;
    assert_eq!(tiny.text_tokens, 32, "the pipeline file names it");
}

#[test]
fn a_size_that_is_rounded_up_is_said() {
    let notices = wanted(&["--size", "250x150"]).expect("valid").notices;
    assert_eq!(notices.len(), 1);
    assert!(notices[0].contains("256x160"), "{notices:?}");
    assert!(
        wanted(&["--size", "256x160"])
            .expect("valid")
            .notices
            .is_empty()
    );
}

#[test]
fn bad_figures_are_refused_before_anything_starts() {
    let cases: &[(&[&str], &str)] = &[
        (&["--size", "0x160"], "width 0"),
        (&["--size", "-64x64"], "width -64"),
        (&["--frames", "0"], "0 frames"),
        (&["--frames=-5"], "-5 frames"),
        (&["--seconds", "0"], "0 seconds"),
        (&["--segment-frames", "120"], "113 or 121"),
        (&["--overlap-frames", "16"], "9 or 17"),
        (&["--steps", "0"], "0 steps"),
        (&["--steps", "-1"], "-1 steps"),
        (&["--steps", "9"], "--steps 1 to 8"),
        (&["--text-tokens", "-1"], "-1 text tokens"),
        (&["--fps", "0"], "0 frames a second"),
        (&["--config", "no-such"], "no-such"),
        (&["--model", "/no/such/folder"], "/no/such/folder"),
    ];
    for (flags, part) in cases {
        let error = wanted(flags).expect_err(part).to_string();
        assert!(error.contains(part), "{flags:?}: {error}");
    }
}

#[test]
fn what_is_not_built_is_unknown() {
    for flags in [
        ["--image", "a.png"],
        ["--reference-video", "x"],
        ["--ranks", "2"],
        ["--continuity", "lockstep"],
    ] {
        assert!(wanted(&flags).is_err(), "{flags:?}");
    }
}
