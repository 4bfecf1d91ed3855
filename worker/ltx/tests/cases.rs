//! Whole renders of the golden model against diffusers and Lightricks' code: the cases of
//! `tests/golden/cases.py`. Same seed, no noise handed over; latents within 1e-3 (relative norm of
//! the difference), frames at 50 dB or better.

mod common;

use common::{backend, golden, model_copy};
use longtake_cpu::CpuBackend;
use longtake_ltx::config::PipelineClass;
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{
    DecodeRequest, DenoiseRequest, Denoised, Drawn, Encoded, Guidance, GuidanceStep, Held,
    LatentUpsampler, Latents, Model, Pass, Pictures, Prompt, Sampler, Steps, StgMode, Video,
};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const LATENTS_ERROR_MAX: f64 = 1e-3;
const FRAMES_DB_MIN: f64 = 50.0;
/// Frames of a case that are kept.
const KEPT: usize = 4;

/// One number for all steps, or a list.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum PerStep<T> {
    One(T),
    List(Vec<T>),
}

impl<T: Clone> PerStep<T> {
    fn at(&self, i: usize) -> T {
        match self {
            Self::One(value) => value.clone(),
            Self::List(values) => values[i].clone(),
        }
    }
}

/// `case.json`: the arguments of `reference.py`.
#[derive(Deserialize)]
struct Case {
    pipeline: String,
    scheduler: Option<String>,
    seed: u64,
    width: usize,
    height: usize,
    frames: usize,
    fps: f64,
    prompt: String,
    negative: String,
    text_tokens: usize,
    steps: usize,
    timesteps: Option<Vec<f32>>,
    skip_initial: usize,
    skip_final: usize,
    sampler: String,
    guidance: PerStep<f32>,
    cfg_star: bool,
    stg_mode: String,
    stg_scale: PerStep<f32>,
    rescaling_scale: PerStep<f32>,
    skip_blocks: Option<PerStep2>,
    guidance_timesteps: Option<Vec<f32>>,
    stochastic: bool,
    image_cond_noise_scale: f32,
    condition: Vec<String>,
    #[serde(default)]
    reference_stride: usize,
    #[serde(default)]
    reference_strength: f32,
    input_video: bool,
    decode_timestep: f32,
    decode_noise_scale: f32,
    tone_map: f32,
    multi_scale: bool,
    downscale_factor: f64,
    second_timesteps: Option<Vec<f32>>,
    second_skip_initial: usize,
}

/// Blocks for all steps, or a list of such.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum PerStep2 {
    All(Vec<usize>),
    Each(Vec<Vec<usize>>),
}

/// The moving pattern of `reference.py`.
fn clip(frames: usize, width: usize, height: usize, seed: usize) -> Video {
    let mut rgb = Vec::with_capacity(frames * width * height * 3);
    for t in 0..frames {
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let w = (t * 3 + x * (c + 2) + y * (5 - c) + seed * 17 + c * 40) % 256;
                    rgb.push(if w < 128 { 2 * w } else { 511 - 2 * w } as u8);
                }
            }
        }
    }
    Video {
        frames,
        height,
        width,
        rgb,
    }
}

impl Case {
    fn class(&self) -> PipelineClass {
        match self.pipeline.as_str() {
            "basic" => PipelineClass::Plain,
            "condition" => PipelineClass::Condition,
            "official" => PipelineClass::Official,
            "comfy" => PipelineClass::Comfy,
            other => panic!("{other}"),
        }
    }

    /// The golden model with the scheduler of the case.
    fn model(&self) -> Model<CpuBackend> {
        let condition = self.scheduler.as_deref().unwrap_or(&self.pipeline) == "condition";
        let dir = model_copy();
        if !condition {
            let scheduler = dir.path().join("scheduler/scheduler_config.json");
            std::fs::copy(golden("plain/scheduler_config.json"), scheduler).expect("scheduler");
        }
        Model::load(dir.path(), backend(2)).expect("the golden model loads")
    }

    fn guidance(&self) -> Guidance {
        let timesteps = self.guidance_timesteps.clone().unwrap_or(vec![0.0]);
        let step = |(i, &timestep): (usize, &f32)| GuidanceStep {
            timestep,
            guidance_scale: self.guidance.at(i),
            stg_scale: self.stg_scale.at(i),
            rescaling_scale: self.rescaling_scale.at(i),
            skip_blocks: match &self.skip_blocks {
                None => Vec::new(),
                Some(PerStep2::All(blocks)) => blocks.clone(),
                Some(PerStep2::Each(blocks)) => blocks[i].clone(),
            },
        };
        Guidance {
            steps: timesteps.iter().enumerate().map(step).collect(),
            cfg_star_rescale: self.cfg_star,
            stg_mode: match self.stg_mode.as_str() {
                "attention_values" => StgMode::AttentionValues,
                "attention_skip" => StgMode::AttentionSkip,
                "residual" => StgMode::Residual,
                "transformer_block" => StgMode::TransformerBlock,
                other => panic!("{other}"),
            },
        }
    }

    fn first_pass(&self) -> Pass {
        let steps = match &self.timesteps {
            Some(levels) => Steps::Timesteps(levels.clone()),
            None => Steps::Count(self.steps),
        };
        Pass {
            sampler: match self.sampler.as_str() {
                "uniform" => Sampler::Uniform,
                "linear-quadratic" => Sampler::LinearQuadratic,
                _ => Sampler::FromCheckpoint,
            },
            skip_initial: self.skip_initial,
            skip_final: self.skip_final,
            guidance: self.guidance(),
            stochastic: self.stochastic,
            image_cond_noise_scale: match self.class() {
                // The image pipeline and ComfyUI's nodes have none.
                PipelineClass::Plain | PipelineClass::Comfy => 0.0,
                _ => self.image_cond_noise_scale,
            },
            ..Pass::plain(steps, 1.0)
        }
    }

    fn second_pass(&self) -> Pass {
        let steps = match &self.second_timesteps {
            Some(levels) => Steps::Timesteps(levels.clone()),
            None => Steps::Count(self.steps),
        };
        Pass {
            skip_initial: self.second_skip_initial,
            image_cond_noise_scale: self.image_cond_noise_scale,
            ..Pass::plain(steps, 1.0)
        }
    }

    /// Pixels that the model renders.
    fn padded(&self) -> [usize; 3] {
        let whole = |side: usize| side.next_multiple_of(32);
        let frames = (self.frames.max(2) - 2) / 8 * 8 + 9;
        let frames = if self.frames == 1 { 1 } else { frames };
        [frames, whole(self.height), whole(self.width)]
    }

    /// What is held, encoded for a window of `height` x `width` pixels.
    fn held(&self, model: &Model<CpuBackend>, size: [usize; 2]) -> Vec<(usize, f32, Encoded)> {
        let [_, height, width] = self.padded();
        let item = |(i, text): (usize, &String)| {
            let parts: Vec<&str> = text.split(':').collect();
            let number = |i: usize| parts[i].parse::<usize>().expect("number");
            let pictures = Pictures::from(&clip(number(1), self.width, self.height, i + 1));
            let pictures = pictures.padded(height, width).resized(size[0], size[1]);
            let encoded = model.encode(&pictures).expect("encoded");
            (number(0), parts[2].parse().expect("strength"), encoded)
        };
        self.condition.iter().enumerate().map(item).collect()
    }
}

impl Case {
    /// The reference video of an IC-LoRA, encoded.
    fn reference(&self, model: &Model<CpuBackend>, frames: usize) -> Option<Encoded> {
        let stride = self.reference_stride;
        (stride > 0).then(|| {
            let video = clip(frames, self.width / stride, self.height / stride, 7);
            model.encode(&Pictures::from(&video)).expect("encoded")
        })
    }
}

/// The prompts of a case.
struct Prompts {
    prompt: Prompt,
    negative: Prompt,
}

fn denoise(
    case: &Case,
    model: &Model<CpuBackend>,
    pass: &Pass,
    prompts: &Prompts,
    [frames, height, width]: [usize; 3],
    start: Option<&Encoded>,
    drawn: &Drawn,
) -> Denoised {
    let items = case.held(model, [height, width]);
    let reference = case.reference(model, frames);
    let mut held: Vec<Held<'_>> = items
        .iter()
        .map(|(frame, strength, encoded)| Held {
            encoded,
            frame: *frame,
            strength: *strength,
            noised: true,
            reference_stride: None,
        })
        .collect();
    held.extend(reference.as_ref().map(|encoded| Held {
        encoded,
        frame: 0,
        strength: case.reference_strength,
        noised: false,
        reference_stride: Some(case.reference_stride),
    }));
    let latent = [(frames - 1) / 8 + 1, height / 32, width / 32];
    let request = DenoiseRequest {
        drawn,
        start,
        held: &held,
        negative: Some(&prompts.negative),
        ..DenoiseRequest::new(
            case.class(),
            latent,
            case.fps,
            case.seed,
            pass,
            &prompts.prompt,
        )
    };
    model
        .denoise(&request, &mut |_, _| ControlFlow::Continue(()))
        .expect("latents")
}

/// The render of a case: latents and the frames that are kept.
fn render(case: &Case) -> (Latents, Video) {
    let (model, class) = (case.model(), case.class());
    let encode = |text: &str| {
        model
            .encode_prompt(text, case.text_tokens, class)
            .expect("prompt")
    };
    let prompts = Prompts {
        prompt: encode(&case.prompt),
        negative: encode(&case.negative),
    };
    let [frames, height, width] = case.padded();
    let video = case.input_video.then(|| {
        let pictures = Pictures::from(&clip(frames, case.width, case.height, 9));
        model
            .encode(&pictures.padded(height, width))
            .expect("video")
    });
    let pass = case.first_pass();
    let side = |side: usize| (side as f64 * case.downscale_factor) as usize / 32 * 32;
    let size = match case.multi_scale {
        true => [frames, side(height), side(width)],
        false => [frames, height, width],
    };
    let start = Drawn::NOTHING;
    let mut done = denoise(case, &model, &pass, &prompts, size, video.as_ref(), &start);
    if case.multi_scale {
        let path = golden("upscaler.safetensors");
        let upsampler = LatentUpsampler::load(&path, model.backend(), Scrutiny::Values);
        let upsampler = upsampler.expect("upscaler");
        let mode = model
            .upsample(&upsampler, &done.latents, 0.0)
            .expect("upsampled");
        let start = Encoded { mode, spread: None };
        let size = [frames, 2 * size[1], 2 * size[2]];
        let (pass, drawn) = (case.second_pass(), done.drawn.clone());
        done = denoise(case, &model, &pass, &prompts, size, Some(&start), &drawn);
    }
    let decode = DecodeRequest {
        class,
        seed: case.seed,
        drawn: done.drawn,
        timestep: case.decode_timestep,
        noise_scale: case.decode_noise_scale,
        tone_map: case.tone_map,
    };
    let video = model.decode(&done.latents, &decode).expect("video");
    let video = video.resized(height, width);
    let corner = [(height - case.height) / 2, (width - case.width) / 2];
    let video = video.cropped(case.frames, corner, case.height, case.width);
    (done.latents, video)
}

fn relative_error(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let square = |v: f64| v * v;
    let pairs = ours.iter().zip(reference);
    let difference: f64 = pairs
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = reference.iter().map(|&v| square(f64::from(v))).sum();
    (difference / norm).sqrt()
}

fn psnr_db(ours: &[u8], reference: &[u8]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let pairs = ours.iter().zip(reference);
    let squares: f64 = pairs.map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum();
    -10.0 * (squares / ours.len() as f64 / 255f64.powi(2)).log10()
}

/// Renders the case in `dir`, says how close it is, and fails beyond the limits.
fn check(dir: &Path) -> Result<String, String> {
    let json = std::fs::read(dir.join("case.json")).expect("case.json");
    let case: Case = serde_json::from_slice(&json).expect("case.json");
    let file = std::fs::read(dir.join("case.safetensors")).expect("case");
    let file = SafeTensors::deserialize(&file).expect("case");
    let bytes = |name: &str| file.tensor(name).expect("tensor").data();
    let reference: Vec<f32> = bytes("latents")
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let (latents, video) = render(&case);
    let error = relative_error(&latents.values, &reference);
    let kept: Vec<u8> = video.pictures().step_by(KEPT).flatten().copied().collect();
    let db = psnr_db(&kept, bytes("frames"));
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let line = format!("{name}: latents {error:.1e}, frames {db:.1} dB");
    match error <= LATENTS_ERROR_MAX && db >= FRAMES_DB_MIN {
        true => Ok(line),
        false => Err(line),
    }
}

fn cases(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden("cases")).expect("cases");
    let mut dirs: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).collect();
    dirs.retain(|dir| {
        dir.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .starts_with(prefix)
    });
    dirs.sort();
    dirs
}

fn check_all(prefix: &str, least: usize) {
    let dirs = cases(prefix);
    assert!(dirs.len() >= least, "only {} cases", dirs.len());
    let results: Vec<_> = dirs.iter().map(|dir| check(dir)).collect();
    for result in &results {
        println!("{}", result.as_ref().unwrap_or_else(|far| far));
    }
    let far: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(far.is_empty(), "{far:#?}");
}

#[test]
fn renders_match_diffusers() {
    check_all("basic", 3);
    check_all("condition", 6);
}

#[test]
fn renders_match_lightricks_code() {
    check_all("official", 11);
}

#[test]
fn what_is_held_is_mixed_in_as_comfyui_does() {
    check_all("comfy", 2);
}
