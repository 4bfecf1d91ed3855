//! Parity with diffusers and transformers: `tests/golden/make.py` made the references.
//!
//! Relative error: norm of the difference over norm of the reference, per tensor, at most 1e-4.

mod common;

use common::{golden, model_copy};
use longtake_cpu::CpuBackend;
use longtake_ltx::config::{PipelineClass, SchedulerConfig};
use longtake_ltx::embeddings::{Positions, rope};
use longtake_ltx::rng::TorchRng;
use longtake_ltx::schedule::Schedule;
use longtake_ltx::tokenizer::Tokenizer;
use longtake_ltx::transformer::TokenTimesteps;
use longtake_ltx::{DecodeRequest, DenoiseRequest, Latents, Model, Prompt, Steps, Video};
use longtake_ltx::{Drawn, Encoded, Held, Pass, Pictures};
use longtake_tensor::{Backend, Loader, Shape};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::ops::ControlFlow;

const TOLERANCE: f64 = 1e-4;

fn model() -> Model<CpuBackend> {
    Model::load(&golden("model"), common::backend(2)).expect("the golden model loads")
}

/// Tensors of a golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Self {
        Self(std::fs::read(golden(&format!("{name}.safetensors"))).expect("golden file"))
    }

    fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).expect("golden file");
        let view = file.tensor(name).expect("golden tensor");
        (view.shape().to_vec(), view.data().to_vec())
    }

    fn values(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bytes) = self.bytes(name);
        (
            shape,
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
        )
    }

    fn video(&self, name: &str) -> Video {
        let (shape, rgb) = self.bytes(name);
        Video {
            frames: shape[0],
            height: shape[1],
            width: shape[2],
            rgb,
        }
    }
}

fn relative_error(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(
        &mut ours
            .iter()
            .zip(reference)
            .map(|(&a, &b)| f64::from(a) - f64::from(b)),
    );
    difference / norm(&mut reference.iter().map(|&v| f64::from(v)))
}

fn assert_close(name: &str, ours: &[f32], reference: &[f32]) {
    let error = relative_error(ours, reference);
    println!("{name}: relative error {error:.1e}");
    assert!(
        error <= TOLERANCE,
        "{name}: relative error {error:.1e} is above {TOLERANCE:.0e}"
    );
}

#[derive(Deserialize)]
struct About {
    seed: u64,
    prompt: String,
    negative: String,
    text_tokens: usize,
    timesteps: Vec<f32>,
    fps: f64,
    randn_counts: Vec<usize>,
}

fn about() -> About {
    serde_json::from_slice(&std::fs::read(golden("golden.json")).expect("golden.json"))
        .expect("golden.json")
}

#[test]
fn randn_is_torchs() {
    let (file, counts) = (Golden::read("randn"), about().randn_counts);
    let mut worst = 0.0f32;
    for seed in [0, 42, (1 << 32) - 1, (1 << 40) + 5] {
        let (_, reference) = file.values(&seed.to_string());
        let mut rng = TorchRng::new(seed);
        let ours: Vec<f32> = counts.iter().flat_map(|&n| rng.randn(n)).collect();
        assert_eq!(ours.len(), reference.len());
        worst = ours
            .iter()
            .zip(&reference)
            .fold(worst, |w, (a, b)| w.max((a - b).abs()));
    }
    println!("randn: largest difference {worst:.1e}");
    assert!(worst <= 2e-6, "largest difference {worst:.1e}");
}

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    ids: Vec<u32>,
    repeat: Option<usize>,
    length: Option<usize>,
    cut: Option<usize>,
}

#[test]
fn tokens_are_those_of_transformers() {
    let tokenizer = Tokenizer::load(&golden("model/tokenizer/spiece.model")).expect("tokenizer");
    let cases: Vec<TokenizerCase> =
        serde_json::from_slice(&std::fs::read(golden("tokenizer.json")).expect("cases"))
            .expect("cases");
    let mut wrong = Vec::new();
    for case in &cases {
        let ours = match (case.repeat, case.cut) {
            (Some(times), _) => {
                let ids = tokenizer.encode(&case.text.repeat(times)).expect("tokens");
                assert_eq!(Some(ids.len()), case.length);
                let once = &case.ids[..case.ids.len() - 1];
                assert!(
                    ids[..ids.len() - 1]
                        .chunks(once.len())
                        .all(|chunk| chunk == once)
                );
                continue;
            }
            (_, Some(length)) => {
                tokenizer
                    .encode_padded(&case.text, length)
                    .expect("tokens")
                    .ids
            }
            _ => tokenizer.encode(&case.text).expect("tokens"),
        };
        if ours != case.ids {
            wrong.push(format!(
                "{:?}: {ours:?}, transformers {:?}",
                case.text, case.ids
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[derive(Deserialize)]
struct ScheduleCase {
    pipeline: String,
    steps: usize,
    tokens: usize,
    timesteps: Vec<f32>,
    sigmas: Vec<f32>,
}

#[test]
fn schedules_are_those_of_diffusers() {
    let cases: Vec<ScheduleCase> =
        serde_json::from_slice(&std::fs::read(golden("schedule.json")).expect("cases"))
            .expect("cases");
    for case in cases {
        let (class, folder) = match case.pipeline.as_str() {
            "plain" => (PipelineClass::Plain, "plain"),
            _ => (PipelineClass::Condition, "model/scheduler"),
        };
        let config = golden(folder).join("scheduler_config.json");
        let config = SchedulerConfig::read(&config).expect("scheduler");
        let ours = Schedule::new(
            &config,
            class,
            &Pass::plain(Steps::Count(case.steps), 1.0),
            case.tokens,
        );
        let ours = ours.expect("schedule");
        let name = format!("{} {} steps", case.pipeline, case.steps);
        assert_close(
            &format!("{name}, timesteps"),
            &ours.timesteps,
            &case.timesteps,
        );
        assert_close(&format!("{name}, sigmas"), &ours.sigmas, &case.sigmas);
    }
}

#[test]
fn text_states_match() {
    let (file, about, model) = (Golden::read("text"), about(), model());
    for (name, text) in [("prompt", about.prompt.as_str()), ("empty", "")] {
        let prompt = model
            .encode_prompt(text, about.text_tokens, model.config().pipeline)
            .expect("prompt");
        assert_eq!(prompt.cut_from, None);
        let (_, masked) = file.values(&format!("{name}.masked"));
        assert_close(&format!("text, {name}"), &prompt.states, &masked);
    }
    let plain = plain_model();
    let prompt = plain
        .encode_prompt(&about.prompt, about.text_tokens, plain.config().pipeline)
        .expect("prompt");
    let (_, unmasked) = file.values("prompt.unmasked");
    assert_close("text, unmasked", &prompt.states, &unmasked);
}

#[test]
fn far_positions_share_a_bucket() {
    let (file, model) = (Golden::read("text"), model());
    let vocab = model.config().text_encoder.vocab_size as u32;
    let ids: Vec<u32> = (0..300).map(|i| i % vocab).collect();
    let states = model
        .text_encoder()
        .expect("text encoder")
        .forward(model.backend(), &ids, None)
        .expect("states");
    let (shape, reference) = file.values("long.last");
    assert_close(
        "text, 300 tokens",
        &states[states.len() - shape[0] * shape[1]..],
        &reference,
    );
}

#[test]
fn rotations_match_at_full_width() {
    let (file, b) = (Golden::read("rope"), common::backend(2));
    let positions = Positions {
        in_front: Vec::new(),
        causal: true,
        frames: 2,
        height: 2,
        width: 1,
        fps: 30.0,
        class: PipelineClass::Condition,
        time_ratio: 8,
        space_ratio: 32,
    };
    let ours = rope(&b, &positions, 2048).expect("rope");
    assert_close(
        "rope, cos",
        &b.download(&ours.cos).expect("cos"),
        &file.values("cos").1,
    );
    assert_close(
        "rope, sin",
        &b.download(&ours.sin).expect("sin"),
        &file.values("sin").1,
    );
}

#[test]
fn transformer_matches_with_timesteps_by_token() {
    let (file, model) = (Golden::read("transformer"), model());
    let (b, transformer) = (model.backend(), model.transformer().expect("transformer"));
    let (shape, x) = file.values("x");
    let (states_shape, states) = file.values("states");
    let (_, mask) = file.values("mask");
    let prompt = Prompt {
        tokens: states_shape[0],
        channels: states_shape[1],
        states,
        mask,
        cut_from: None,
    };
    let text = transformer.text_context(b, &prompt).expect("text");
    let x = b.upload(Shape::new(&shape), &x).expect("x");
    let window = |class, fps| Positions {
        in_front: Vec::new(),
        causal: true,
        frames: 3,
        height: 2,
        width: 3,
        fps,
        class,
        time_ratio: 8,
        space_ratio: 32,
    };
    let dim = transformer.config().inner_dim();

    let (_, timesteps) = file.values("timestep");
    let mut distinct: Vec<f32> = Vec::new();
    let index: Vec<u32> = timesteps
        .iter()
        .map(|t| {
            let known = distinct.iter().position(|d| d == t);
            known.unwrap_or_else(|| {
                distinct.push(*t);
                distinct.len() - 1
            }) as u32
        })
        .collect();
    assert_eq!(distinct.len(), 3);
    let index = b.upload_index(&index).expect("index");
    let tokens = TokenTimesteps { distinct, index };
    let rotation = rope(b, &window(PipelineClass::Condition, about().fps), dim).expect("rope");
    let v = transformer
        .forward(b, &x, &text, &tokens, &rotation)
        .expect("velocity");
    let v = b.download(&v).expect("velocity");
    assert_close(
        "transformer, timesteps by token",
        &v,
        &file.values("per_token").1,
    );

    let tokens = TokenTimesteps {
        distinct: vec![987.5],
        index: vec![0; shape[0]],
    };
    let rotation = rope(b, &window(PipelineClass::Plain, 25.0), dim).expect("rope");
    let v = transformer
        .forward(b, &x, &text, &tokens, &rotation)
        .expect("velocity");
    let v = b.download(&v).expect("velocity");
    assert_close("transformer, one timestep", &v, &file.values("uniform").1);
}

#[test]
fn vae_matches_both_ways() {
    let (file, model) = (Golden::read("vae"), model());
    let encoded = model
        .encode(&Pictures::from(&file.video("pictures")))
        .expect("latents")
        .mode;
    let (shape, reference) = file.values("encoded");
    assert_eq!(
        shape,
        [
            1,
            encoded.channels,
            encoded.frames,
            encoded.height,
            encoded.width
        ]
    );
    assert_close("VAE encoder", &encoded.values, &reference);

    let (shape, values) = file.values("z");
    let [_, channels, frames, height, width] = shape[..] else {
        panic!("{shape:?}")
    };
    let z = Latents {
        channels,
        frames,
        height,
        width,
        values,
    };
    let b = model.backend();
    let z = b
        .upload(
            Shape::from([frames, height, width, channels]),
            &z.to_tokens(),
        )
        .expect("z");
    let decoder = model.decoder().expect("decoder");
    let pictures = decoder.forward(b, &z, 0.05).expect("pictures");
    let (_, reference) = file.values("decoded");
    assert_close(
        "VAE decoder",
        &b.download(&pictures).expect("pictures"),
        &reference,
    );
}

/// The golden model under `LTXPipeline` with the scheduler of LTX-Video 0.9.
fn plain_model() -> Model<CpuBackend> {
    let dir = model_copy();
    std::fs::write(
        dir.path().join("model_index.json"),
        r#"{"_class_name": "LTXPipeline"}"#,
    )
    .expect("index");
    let scheduler = dir.path().join("scheduler/scheduler_config.json");
    std::fs::copy(golden("plain/scheduler_config.json"), scheduler).expect("scheduler");
    Model::load(dir.path(), common::backend(2)).expect("the plain model loads")
}

fn go_on(_: usize, _: usize) -> ControlFlow<longtake_ltx::Stop> {
    ControlFlow::Continue(())
}

#[test]
fn guided_denoising_and_decoding_match() {
    let (file, about, model) = (Golden::read("pipeline"), about(), model());
    let prompt = model
        .encode_prompt(&about.prompt, about.text_tokens, model.config().pipeline)
        .expect("prompt");
    let negative = model
        .encode_prompt(&about.negative, about.text_tokens, model.config().pipeline)
        .expect("negative");
    let steps = Steps::Timesteps(about.timesteps);
    let class = model.config().pipeline;
    let pass = Pass::plain(steps, 2.5);
    let request = DenoiseRequest {
        negative: Some(&negative),
        ..DenoiseRequest::new(class, [2, 2, 2], about.fps, about.seed, &pass, &prompt)
    };
    let latents = model
        .denoise(&request, &mut go_on)
        .expect("latents")
        .latents;
    assert_close(
        "guided latents",
        &latents.values,
        &file.values("guided.latents").1,
    );

    let decode = DecodeRequest {
        class,
        seed: about.seed,
        drawn: Drawn::NOTHING,
        timestep: 0.05,
        noise_scale: 0.025,
        tone_map: 0.0,
    };
    let video = model.decode(&latents, &decode).expect("video");
    let reference = file.video("guided.pictures");
    assert_eq!((video.frames, video.height, video.width), (9, 64, 64));
    let different: Vec<u8> = video
        .rgb
        .iter()
        .zip(&reference.rgb)
        .map(|(a, b)| a.abs_diff(*b))
        .filter(|d| *d > 0)
        .collect();
    println!(
        "guided pictures: {} of {} samples differ",
        different.len(),
        video.rgb.len()
    );
    // Values next to the middle between two levels may fall to either side.
    assert!(different.iter().all(|&d| d == 1) && different.len() * 1000 < video.rgb.len());
    let levels: std::collections::BTreeSet<u8> = video.rgb.iter().copied().collect();
    assert!(levels.len() > 100, "the pictures are not flat");
}

#[test]
fn held_latents_match_and_stay() {
    let (file, about, model) = (Golden::read("pipeline"), about(), model());
    let held = model
        .encode(&Pictures::from(&file.video("held.pictures")))
        .expect("held");
    let held = Encoded {
        spread: None,
        ..held
    };
    let prompt = model
        .encode_prompt(&about.prompt, about.text_tokens, model.config().pipeline)
        .expect("prompt");
    let class = model.config().pipeline;
    let pass = Pass::plain(Steps::Count(6), 1.0);
    let items = [Held {
        encoded: &held,
        frame: 0,
        strength: 1.0,
        noised: false,
        reference_stride: None,
    }];
    let request = DenoiseRequest {
        held: &items,
        ..DenoiseRequest::new(class, [3, 2, 2], about.fps, about.seed, &pass, &prompt)
    };
    let latents = model
        .denoise(&request, &mut go_on)
        .expect("latents")
        .latents;
    assert_close(
        "held latents",
        &latents.values,
        &file.values("held.latents").1,
    );
    assert_eq!(latents.slice(0, held.mode.frames), held.mode);
}

#[test]
fn plain_pipeline_matches() {
    let (file, about, model) = (Golden::read("pipeline"), about(), plain_model());
    let prompt = model
        .encode_prompt(&about.prompt, about.text_tokens, model.config().pipeline)
        .expect("prompt");
    let class = model.config().pipeline;
    let pass = Pass::plain(Steps::Count(4), 1.0);
    let request = DenoiseRequest::new(class, [3, 2, 2], 25.0, about.seed, &pass, &prompt);
    let latents = model
        .denoise(&request, &mut go_on)
        .expect("latents")
        .latents;
    assert_close(
        "plain latents",
        &latents.values,
        &file.values("plain.latents").1,
    );
}
