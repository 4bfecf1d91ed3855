use super::*;
use crate::ids::Hash;
use crate::sampling::{GuidanceStep, Schedule};

fn parse(text: &str) -> Result<Pipeline, String> {
    Pipeline::parse(text, Path::new("test.yaml")).map_err(|error| error.to_string())
}

fn configs() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn found(name: &str) -> Result<ModelRef, std::convert::Infallible> {
    Ok(ModelRef::new(name, Hash::of(name.as_bytes())))
}

fn sampling(pipeline: &Pipeline) -> Sampling {
    let Ok(sampling) = pipeline.sampling(found);
    sampling
}

fn shipped(name: &str) -> Pipeline {
    Pipeline::read(&configs().join(format!("{name}.yaml"))).expect("readable")
}

#[test]
fn the_tiny_model_is_sampled_as_it_was_distilled() {
    let pipeline = shipped("ltxv-tiny");
    assert_eq!(pipeline.model(), "ltxv-tiny");
    assert_eq!(
        (pipeline.width, pipeline.height, pipeline.frame_rate),
        (256, 160, 24.0)
    );
    let Schedule::Timesteps(timesteps) = sampling(&pipeline).first_pass.schedule else {
        panic!("timesteps are listed");
    };
    assert_eq!(timesteps.len(), 8);
}

/// Figures of the official files, by name: (family, version, kinds).
const OFFICIAL: [(&str, &str, &[&str]); 3] = [
    (
        "13b",
        "0.9.8",
        &["dev", "dev-fp8", "distilled", "distilled-fp8"],
    ),
    (
        "13b",
        "0.9.7",
        &["dev", "dev-fp8", "distilled", "distilled-fp8"],
    ),
    ("2b", "0.9.8", &["distilled", "distilled-fp8"]),
];

#[test]
fn the_official_files_say_what_they_say() {
    for (family, version, kinds) in OFFICIAL {
        for kind in kinds {
            let name = format!("ltxv-{family}-{version}-{kind}");
            let pipeline = shipped(&name);
            assert_eq!(pipeline.checkpoint_path, format!("{name}.safetensors"));
            let fp8 = kind.ends_with("fp8");
            let precision = if fp8 {
                Precision::Float8E4m3fn
            } else {
                Precision::Bfloat16
            };
            assert_eq!(pipeline.precision, Some(precision), "{name}");
            assert_eq!(pipeline.enhancement.words_threshold, 120);
            assert_eq!(pipeline.negative_prompt, OFFICIAL_NEGATIVE);
            assert!(pipeline.notices().is_empty());
            let sampling = sampling(&pipeline);
            assert_eq!(
                (sampling.decode_timestep, sampling.decode_noise_scale),
                (0.05, 0.025)
            );
            assert_eq!(sampling.text_tokens, 256);
            let second = sampling.second_pass.as_ref().expect("multi-scale");
            assert_eq!(second.downscale_factor, 0.6666666);
            let upscaler = format!("ltxv-spatial-upscaler-{version}.safetensors");
            assert_eq!(second.upscaler.location, upscaler);
            match kind.starts_with("distilled") {
                true => check_distilled(&sampling, second, version == "0.9.8" && family == "13b"),
                false => check_dev(&sampling, second),
            }
        }
    }
}

fn check_distilled(sampling: &Sampling, second: &SecondPass, tone_mapped: bool) {
    let first = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725];
    assert_eq!(
        sampling.first_pass.schedule,
        Schedule::Timesteps(first.into())
    );
    let last = Schedule::Timesteps(vec![0.9094, 0.725, 0.4219]);
    assert_eq!(second.pass.schedule, last);
    for pass in sampling.passes() {
        let plain = GuidanceStep {
            skip_block_list: vec![42],
            ..GuidanceStep::plain(1.0)
        };
        assert_eq!(pass.guidance.steps, [plain]);
    }
    assert_eq!(sampling.first_pass.tone_map_compression_ratio, 0.0);
    let ratio = if tone_mapped { 0.6 } else { 0.0 };
    assert_eq!(second.pass.tone_map_compression_ratio, ratio);
}

fn check_dev(sampling: &Sampling, second: &SecondPass) {
    let first = &sampling.first_pass;
    assert_eq!(
        (&first.schedule, first.skip_final_steps),
        (&Schedule::Steps(30), 3)
    );
    assert!(first.guidance.cfg_star_rescale && second.pass.guidance.cfg_star_rescale);
    let steps = &first.guidance.steps;
    let scales: Vec<_> = steps.iter().map(|s| s.guidance_scale).collect();
    assert_eq!(scales, [1.0, 1.0, 6.0, 8.0, 6.0, 1.0, 1.0]);
    let at = first.guidance.at(0.985).expect("steps");
    assert_eq!(
        (at.timestep, at.stg_scale, at.rescaling_scale),
        (0.985, 4.0, 0.5)
    );
    assert_eq!(at.skip_block_list, [28]);
    assert_eq!(steps[1].skip_block_list, [11, 25, 35, 39]);
    assert!(steps[0].skip_block_list.is_empty());
    assert_eq!(
        (&second.pass.schedule, second.pass.skip_initial_steps),
        (&Schedule::Steps(30), 17)
    );
    let step = &second.pass.guidance.steps[0];
    assert_eq!(
        (step.stg_scale, step.skip_block_list.as_slice()),
        (1.0, [27].as_slice())
    );
}

#[test]
fn every_known_key_is_read() {
    for key in FILE_KEYS
        .iter()
        .chain(&PASS_KEYS)
        .filter(|key| !key.ends_with("_pass"))
    {
        // A wrong type for all of them: what matters is that somebody looks at the value.
        let other = if *key == "checkpoint_path" {
            ""
        } else {
            "checkpoint_path: m\n"
        };
        let error = parse(&format!("{other}{key}: {{a: [b]}}")).expect_err(key);
        assert!(error.contains(key), "{key}: {error}");
    }
}

/// What a film is sampled by when the file says `text` beside the least that it has to say.
fn sampled_with(text: &str) -> Sampling {
    let file = format!(
        "pipeline_type: multi-scale\ncheckpoint_path: m\nspatial_upscaler_model_path: u\n\
         downscale_factor: 0.6\n{text}"
    );
    sampling(&parse(&file).unwrap_or_else(|e| panic!("{file}: {e}")))
}

#[test]
fn every_key_changes_how_a_film_is_sampled() {
    // What a pass needs for the key to matter, the key, two values.
    let of_a_pass = [
        ("", "timesteps", "[1.0, 0.5]", "[1.0, 0.6]"),
        ("", "num_inference_steps", "8", "9"),
        (
            "num_inference_steps: 9",
            "skip_initial_inference_steps",
            "1",
            "2",
        ),
        (
            "num_inference_steps: 9",
            "skip_final_inference_steps",
            "1",
            "2",
        ),
        ("num_inference_steps: 9", "strength", "0.9", "0.5"),
        ("num_inference_steps: 9", "guidance_scale", "2", "3"),
        ("num_inference_steps: 9", "stg_scale", "0.5", "1"),
        ("num_inference_steps: 9", "rescaling_scale", "0.5", "0.7"),
        (
            "guidance_scale: [1, 2]\n  num_inference_steps: 9",
            "guidance_timesteps",
            "[1.0, 0.9]",
            "[1.0, 0.8]",
        ),
        (
            "stg_scale: 1\n  num_inference_steps: 9",
            "skip_block_list",
            "[1]",
            "[2]",
        ),
        (
            "guidance_scale: 2\n  num_inference_steps: 9",
            "cfg_star_rescale",
            "true",
            "false",
        ),
        (
            "num_inference_steps: 9",
            "stochastic_sampling",
            "true",
            "false",
        ),
        (
            "num_inference_steps: 9",
            "tone_map_compression_ratio",
            "0.1",
            "0.2",
        ),
        ("num_inference_steps: 9", "checkpoint_path", "a", "b"),
    ];
    for (beside, key, one, other) in of_a_pass {
        let passes = ["first_pass", "second_pass"];
        for pass in passes {
            let with = |value| {
                let rest = passes.iter().find(|p| **p != pass).expect("the other one");
                sampled_with(&format!(
                    "{pass}:\n  {beside}\n  {key}: {value}\n{rest}:\n  num_inference_steps: 4\n"
                ))
            };
            assert_ne!(with(one), with(other), "{key} of {pass}");
        }
    }
    let of_the_file = [
        ("spatial_upscaler_model_path", "a", "b"),
        ("downscale_factor", "0.5", "0.7"),
        ("sampler", "uniform", "linear-quadratic"),
        ("stg_mode", "attention_skip", "residual"),
        ("use_teacache", "true", "false"),
        ("teacache_threshold", "0.1", "0.2"),
        ("decode_timestep", "0.1", "0.2"),
        ("decode_noise_scale", "0.1", "0.2"),
        ("text_tokens", "64", "128"),
    ];
    for (key, one, other) in of_the_file {
        let with = |value| {
            let least = "pipeline_type: multi-scale\nuse_teacache: true\ncheckpoint_path: m\n\
                         spatial_upscaler_model_path: u\ndownscale_factor: 0.6\nfirst_pass:\n  \
                         num_inference_steps: 9\nsecond_pass:\n  num_inference_steps: 4\n";
            let kept: Vec<_> = least
                .lines()
                .filter(|line| !line.starts_with(key))
                .collect();
            let file = format!("{}\n{key}: {value}\n", kept.join("\n"));
            sampling(&parse(&file).unwrap_or_else(|e| panic!("{file}: {e}")))
        };
        assert_ne!(with(one), with(other), "{key}");
    }
}

#[test]
fn bad_files_are_answered_with_the_way_out() {
    let two = "checkpoint_path: m\nspatial_upscaler_model_path: u\n";
    for (text, expected) in [
        (
            "checkpoint_path: m\nguidance_scales: 2",
            "unknown key 'guidance_scales': did you mean 'guidance_scale'?",
        ),
        (
            "checkpoint_path: m\ntimestep: [1]",
            "did you mean 'timesteps'?",
        ),
        (
            "checkpoint_path: m\nsecond_pass: {tone_map: 1}\nfirst_pass: {}",
            "'second_pass.tone_map': did you mean",
        ),
        (
            "checkpoint_path: m\nguidance_scale: high",
            "guidance_scale: 'high', which is out of range: use 1",
        ),
        (
            "checkpoint_path: m\nguidance_scale: []",
            "guidance_scale: []",
        ),
        (
            "checkpoint_path: m\nwidth: -5",
            "width: -5, which is out of range: use a whole number from 1",
        ),
        (
            "checkpoint_path: m\nnum_inference_steps: 0",
            "num_inference_steps: 0, which is out of range",
        ),
        (
            "checkpoint_path: m\npipeline_type: tiled",
            "use base or multi-scale",
        ),
        (
            "checkpoint_path: m\nsampler: euler",
            "use from_checkpoint, uniform or linear-quadratic",
        ),
        ("checkpoint_path: m\nprecision: int8", "use float8_e4m3fn"),
        ("checkpoint_path: m\nstg_mode: blur", "use attention_values"),
        (
            "checkpoint_path: m\ntimesteps: [0.5, 0.9]",
            "a list of falling numbers",
        ),
        (
            "timesteps: [1.0]",
            "has no checkpoint_path: add the model's name or path",
        ),
        ("just text", "lines 'key: value'"),
        ("a: [", "cannot use the pipeline file test.yaml"),
        ("checkpoint_path: m\ncheckpoint_path: n", "duplicate"),
        (
            "checkpoint_path: m\npipeline_type: multi-scale",
            "needs first_pass and second_pass",
        ),
        (
            "checkpoint_path: m\npipeline_type: base\nfirst_pass: {}",
            "base has one pass",
        ),
        (
            "checkpoint_path: m\nfirst_pass: {}\nsecond_pass: {}",
            "need a spatial_upscaler_model_path",
        ),
        (
            "checkpoint_path: m\ntimesteps: [1, 0.5]\nnum_inference_steps: 3",
            "lists 2 timesteps but has num_inference_steps: 3",
        ),
        (
            &format!(
                "{two}first_pass: {{timesteps: [1], skip_final_inference_steps: 1}}\nsecond_pass: {{}}"
            ),
            "in first_pass: it lists timesteps",
        ),
        (
            "checkpoint_path: m\nnum_inference_steps: 3\nskip_initial_inference_steps: 3",
            "leaves none",
        ),
        (
            "checkpoint_path: m\nstg_scale: [1, 2]",
            "stg_scale has 2 values, but there are no guidance_timesteps",
        ),
        (
            "checkpoint_path: m\nstg_scale: [1, 2]\nguidance_timesteps: [1, 0.5, 0.2]",
            "stg_scale has 2 values for 3",
        ),
        (
            "checkpoint_path: m\nskip_block_list: [1, [2]]",
            "a list of blocks",
        ),
        (
            "checkpoint_path: m\npipeline_config: no-such",
            "pipeline_config: no-such, a file that cannot be used",
        ),
    ] {
        let error = parse(text).expect_err(text);
        assert!(
            error.contains(expected),
            "{error:?} does not say {expected:?}"
        );
    }
}

#[test]
fn steps_are_taken_when_no_timesteps_are_listed() {
    let steps = |text: &str| sampling(&parse(text).expect("good")).first_pass.schedule;
    assert_eq!(
        steps("checkpoint_path: m\nnum_inference_steps: 7"),
        Schedule::Steps(7)
    );
    assert_eq!(
        steps("checkpoint_path: m"),
        Schedule::Steps(pass::STEPS_DEFAULT)
    );
}

#[test]
fn passes_take_from_the_top_what_they_do_not_say() {
    let text = "checkpoint_path: m\nspatial_upscaler_model_path: u\nguidance_scale: 3\n\
                num_inference_steps: 9\nuse_teacache: true\nteacache_threshold: 0.1\n\
                first_pass: {timesteps: [1.0, 0.5]}\n\
                second_pass: {guidance_scale: [2], checkpoint_path: d, use_teacache: false}";
    let pipeline = parse(text).expect("good");
    let sampling = sampling(&pipeline);
    let second = sampling.second_pass.expect("two passes").pass;
    assert_eq!(
        sampling.first_pass.schedule,
        Schedule::Timesteps(vec![1.0, 0.5])
    );
    assert_eq!(second.schedule, Schedule::Steps(9));
    let scale = |pass: &crate::sampling::Pass| pass.guidance.steps[0].guidance_scale;
    assert_eq!((scale(&sampling.first_pass), scale(&second)), (3.0, 2.0));
    assert_eq!(sampling.first_pass.model, None);
    assert_eq!(second.model.expect("its own").location, "d");
    assert_eq!(sampling.first_pass.teacache.expect("on").threshold, 0.1);
    assert_eq!(second.teacache, None);
}

#[test]
fn a_file_can_build_on_another() {
    let folder = tempfile::tempdir().expect("folder");
    let base = configs().join("ltxv-13b-0.9.8-distilled.yaml");
    std::fs::copy(base, folder.path().join("base.yaml")).expect("copy");
    let path = folder.path().join("mine.yaml");
    let text = "pipeline_config: base.yaml\nprecision: float8_e4m3fn\nnum_inference_steps: 8\n\
                guidance_scale: 1\nseed: 42\nenable_flash_attention: true\nuse_teacache: false\n\
                second_pass: {tone_map_compression_ratio: 0.3}\n";
    std::fs::write(&path, text).expect("write");
    let pipeline = Pipeline::read(&path).expect("good");
    assert_eq!(
        (pipeline.seed, pipeline.precision),
        (Some(42), Some(Precision::Float8E4m3fn))
    );
    // The passes of the base list their timesteps, as in the official program.
    assert_eq!(pipeline.notices().len(), 1, "{:?}", pipeline.notices());
    assert!(pipeline.notices()[0].starts_with("num_inference_steps: 8 has no effect"));
    let second = sampling(&pipeline).second_pass.expect("two passes").pass;
    assert_eq!(second.tone_map_compression_ratio, 0.3);
    assert_eq!(
        second.schedule,
        Schedule::Timesteps(vec![0.9094, 0.725, 0.4219])
    );
    std::fs::write(&path, "pipeline_config: mine.yaml").expect("write");
    let error = Pipeline::read(&path).expect_err("circle");
    let mut story = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        story.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(story.contains("circle"), "{story}");
}
