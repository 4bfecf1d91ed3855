//! What TeaCache saves on a model, and what it costs: a window with it against the same without.

use crate::error::{AgentError, story};
use crate::work::{decode_request, model_pass};
use longtake_common::sampling::{Sampling, TeaCache};
use longtake_common::task::Window;
use longtake_cpu::{CpuBackend, Isa};
use longtake_ltx::{BlockCount, DenoiseRequest, Model, ModelFiles, Prompt, Video};
use std::ops::ControlFlow;
use std::time::Instant;

/// A window to be rendered twice, by the first pass of a sampling.
#[derive(Clone, Debug)]
pub struct TeaCacheTrial {
    /// How it is sampled.
    pub sampling: Sampling,
    /// See [`TeaCache::threshold`].
    pub threshold: f32,
    /// What to show.
    pub prompt: String,
    /// What to steer away from.
    pub negative: String,
    /// Latent frames, rows and columns.
    pub latent: [usize; 3],
    /// Frames a second.
    pub fps: f64,
    /// Seed of the noise.
    pub seed: u64,
}

/// How both went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeaCacheFigures {
    /// Block evaluations without the cache.
    pub blocks_plain: usize,
    /// Block evaluations with it.
    pub blocks_computed: usize,
    /// Block evaluations that were taken over.
    pub blocks_reused: usize,
    /// PSNR of the pictures with it against those without, in dB.
    pub psnr_db: f64,
    /// Seconds of denoising without it.
    pub seconds_plain: f64,
    /// Seconds of denoising with it.
    pub seconds: f64,
}

struct Prompts {
    prompt: Prompt,
    negative: Prompt,
}

/// Renders a window with and without TeaCache on all cores of the CPU.
///
/// # Errors
/// When the model cannot be loaded, or does not take such a window.
pub fn measure_tea_cache(
    files: &ModelFiles,
    trial: &TeaCacheTrial,
) -> Result<TeaCacheFigures, AgentError> {
    let bad = |error: &dyn std::error::Error| AgentError::Model(story(error));
    let backend = CpuBackend::new(0, Isa::detect()).map_err(|error| bad(&error))?;
    let model = Model::load(files, backend).map_err(|error| bad(&error))?;
    let tokens = trial.sampling.text_tokens as usize;
    let class = model.config().pipeline;
    let encode = |text: &str| model.encode_prompt(text, tokens, class);
    let prompts = Prompts {
        prompt: encode(&trial.prompt).map_err(|error| bad(&error))?,
        negative: encode(&trial.negative).map_err(|error| bad(&error))?,
    };
    let run = |cache| render(&model, trial, &prompts, cache).map_err(|error| bad(&error));
    let (plain, blocks_plain, seconds_plain) = run(None)?;
    let threshold = trial.threshold;
    let (cached, blocks, seconds) = run(Some(TeaCache { threshold }))?;
    Ok(TeaCacheFigures {
        blocks_plain: blocks_plain.computed,
        blocks_computed: blocks.computed,
        blocks_reused: blocks.reused,
        psnr_db: psnr_db(&plain, &cached),
        seconds_plain,
        seconds,
    })
}

fn render(
    model: &Model<CpuBackend>,
    trial: &TeaCacheTrial,
    prompts: &Prompts,
    cache: Option<TeaCache>,
) -> longtake_ltx::Result<(Video, BlockCount, f64)> {
    let mut sampling = trial.sampling.first_only();
    sampling.first_pass.teacache = cache;
    let class = model.config().pipeline;
    let pass = model_pass(&sampling, &sampling.first_pass, class);
    let request = DenoiseRequest {
        negative: Some(&prompts.negative),
        ..DenoiseRequest::new(
            class,
            trial.latent,
            trial.fps,
            trial.seed,
            &pass,
            &prompts.prompt,
        )
    };
    let started = Instant::now();
    let denoised = model.denoise(&request, &mut |_, _| ControlFlow::Continue(()))?;
    let seconds = started.elapsed().as_secs_f64();
    let frames = 8 * (trial.latent[0] as u32 - 1) + 1;
    let window = Window {
        index: 0,
        first_frame: 0,
        frames,
        visible_frames: frames,
        seed: trial.seed,
    };
    let decode = decode_request(model, &window, &sampling, denoised.drawn);
    let video = model.decode(&denoised.latents, &decode)?;
    Ok((video, denoised.blocks, seconds))
}

fn psnr_db(a: &Video, b: &Video) -> f64 {
    let pairs = a.rgb.iter().zip(&b.rgb);
    let squares: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    -10.0 * (squares / a.rgb.len().max(1) as f64 / 255f64.powi(2)).log10()
}
