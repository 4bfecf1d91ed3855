//! `bench e2e`: from a prompt to decoded pictures through the whole model, with random weights of the
//! true size.

use super::gpu::{Bits, GpuArgs, WindowArgs};
use super::random_model::write_model;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use longtake_cuda::CudaBackend;
use longtake_ltx::config::PipelineClass;
use longtake_ltx::upsampler::LatentUpsampler;
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{
    DecodeRequest, DenoiseRequest, Denoised, Drawn, Encoded, Latents, Model, Pass, Prompt, Steps,
};
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Instant;

/// Noise levels of the distilled model's passes, as in its pipeline file.
const FIRST_PASS: [f32; 7] = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725];
const SECOND_PASS: [f32; 3] = [0.9094, 0.725, 0.4219];
/// Noise levels of a single pass.
const SINGLE_PASS: [f32; 8] = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219];
/// `downscale_factor` of the pipeline file.
const DOWNSCALE: f64 = 0.6666666;
const TEXT_TOKENS: usize = 256;
const FPS: f64 = 30.0;

/// Passes of a render.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Passes {
    /// One at full size
    Single,
    /// One at two thirds, upsampled to twice its sides, and a second one there
    Multi,
}

/// Flags of `bench e2e`.
#[derive(clap::Args)]
pub struct EndToEndArgs {
    /// Model to take the sizes of: ltxv-13b-0.9.8-distilled or ltxv-2b-0.9.8-distilled
    #[arg(long, value_name = "NAME", default_value = "ltxv-13b-0.9.8-distilled")]
    model: String,
    #[command(flatten)]
    window: WindowArgs,
    /// Passes
    #[arg(long, value_name = "PASSES", default_value = "multi")]
    passes: Passes,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// Seconds of a render, and what it took.
#[derive(Clone, Debug, Default, Serialize)]
struct EndToEnd {
    key: String,
    device: String,
    /// From the prompt to pictures in host memory, weights loaded.
    seconds: f64,
    text_s: f64,
    first_pass_s: f64,
    upsample_s: f64,
    second_pass_s: f64,
    decode_s: f64,
    /// Text, first pass, and that decoded.
    preview_s: f64,
    /// The same for the whole of the first render, which makes plans and graphs.
    first_seconds: f64,
    load_s: f64,
    peak_bytes: usize,
    /// Times that weights were moved to host memory, in all renders.
    put_away: usize,
}

struct Bench<'a> {
    args: &'a EndToEndArgs,
    model: Model<CudaBackend>,
    upsampler: Option<LatentUpsampler<CudaBackend>>,
    full: [usize; 3],
}

fn timed<T>(seconds: &mut f64, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let out = f()?;
    *seconds += start.elapsed().as_secs_f64();
    Ok(out)
}

impl Bench<'_> {
    fn denoise(
        &self,
        latent: [usize; 3],
        levels: &[f32],
        prompt: &Prompt,
        start: Option<&Encoded>,
    ) -> Result<Denoised> {
        let mut pass = Pass::plain(Steps::Timesteps(levels.to_vec()), 1.0);
        pass.strength = 1.0;
        let class = PipelineClass::Official;
        let request = DenoiseRequest {
            start,
            ..DenoiseRequest::new(class, latent, FPS, 1, &pass, prompt)
        };
        let denoised = self
            .model
            .denoise(&request, &mut |_, _| ControlFlow::Continue(()))?;
        if denoised.latents.values.iter().any(|v| !v.is_finite()) {
            bail!("the latents are not finite");
        }
        Ok(denoised)
    }

    fn decode(&self, latents: &Latents, drawn: &Drawn) -> Result<()> {
        let request = DecodeRequest {
            class: PipelineClass::Official,
            seed: 1,
            drawn: drawn.clone(),
            timestep: 0.05,
            noise_scale: 0.025,
            tone_map: 0.0,
        };
        let video = self.model.decode(latents, &request)?;
        if video.rgb.is_empty() {
            bail!("nothing was decoded");
        }
        Ok(())
    }

    fn render(&self, with_preview: bool) -> Result<EndToEnd> {
        let mut r = EndToEnd::default();
        let class = PipelineClass::Official;
        let text = "a red ball moves to the right";
        let prompt = timed(&mut r.text_s, || {
            Ok(self.model.encode_prompt(text, TEXT_TOKENS, class)?)
        })?;
        let [frames, height, width] = self.full;
        let Some(upsampler) = &self.upsampler else {
            let done = timed(&mut r.first_pass_s, || {
                self.denoise(self.full, &SINGLE_PASS, &prompt, None)
            })?;
            timed(&mut r.decode_s, || self.decode(&done.latents, &done.drawn))?;
            r.seconds = r.text_s + r.first_pass_s + r.decode_s;
            return Ok(r);
        };
        let small = |cells: usize| ((cells * 32) as f64 * DOWNSCALE) as usize / 32;
        let first_size = [frames, small(height), small(width)];
        let first = timed(&mut r.first_pass_s, || {
            self.denoise(first_size, &FIRST_PASS, &prompt, None)
        })?;
        if with_preview {
            let mut decode = 0.0;
            timed(&mut decode, || self.decode(&first.latents, &first.drawn))?;
            r.preview_s = r.text_s + r.first_pass_s + decode;
        }
        let large = timed(&mut r.upsample_s, || {
            Ok(self.model.upsample(upsampler, &first.latents, 0.0)?)
        })?;
        let start = Encoded {
            mode: large,
            spread: None,
        };
        let second_size = [frames, 2 * first_size[1], 2 * first_size[2]];
        let second = timed(&mut r.second_pass_s, || {
            self.denoise(second_size, &SECOND_PASS, &prompt, Some(&start))
        })?;
        timed(&mut r.decode_s, || {
            self.decode(&second.latents, &second.drawn)
        })?;
        r.seconds = r.text_s + r.first_pass_s + r.upsample_s + r.second_pass_s + r.decode_s;
        Ok(r)
    }
}

/// Measures and prints.
pub fn run(args: &EndToEndArgs) -> Result<()> {
    let sizes = super::dit::sizes(&args.model)?;
    let full = args.window.latent_cells()?;
    let b = args.gpu.open()?;
    let folder = tempfile::tempdir().context("make a folder for the weights")?;
    write_model(folder.path(), sizes)?;
    let loading = Instant::now();
    let model = Model::load(folder.path(), b.clone())?;
    let upsampler = match args.passes {
        Passes::Single => None,
        Passes::Multi => {
            let path = folder.path().join("upscaler.safetensors");
            Some(LatentUpsampler::load(&path, &b, Scrutiny::Headers)?)
        }
    };
    b.synchronize()?;
    let load_s = loading.elapsed().as_secs_f64();
    let bench = Bench {
        args,
        model,
        upsampler,
        full,
    };
    let first = bench.render(true)?;
    let mut runs = Vec::new();
    for _ in 0..args.gpu.runs.min(5) {
        runs.push(bench.render(false)?);
    }
    runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let mut result = runs.swap_remove(runs.len() / 2);
    result.preview_s = bench.render(true)?.preview_s;
    result.first_seconds = first.seconds;
    result.load_s = load_s;
    let bits = |bits| match bits {
        Bits::Fp8 => "fp8",
        Bits::Bf16 => "bf16",
    };
    let passes = match bench.args.passes {
        Passes::Single => "single",
        Passes::Multi => "multi",
    };
    result.key = format!(
        "e2e {} {} {passes} {}, {} attention",
        args.model,
        args.window.size,
        bits(args.gpu.precision),
        bits(args.gpu.attention)
    );
    result.device = b.device_name().to_owned();
    result.peak_bytes = b.peak_bytes();
    result.put_away = b.put_away().0;
    let text = serde_json::to_string(&result)?;
    if args.gpu.json {
        return crate::terminal::print(text);
    }
    crate::terminal::print(format_args!(
        "{}: {:.2} s (text {:.3}, first pass {:.2}, upsampling {:.3}, second pass {:.2}, decoding {:.2}), preview \
         {:.2} s, peak {:.1} GiB, first render {:.1} s, loading {:.1} s",
        result.key,
        result.seconds,
        result.text_s,
        result.first_pass_s,
        result.upsample_s,
        result.second_pass_s,
        result.decode_s,
        result.preview_s,
        result.peak_bytes as f64 / f64::from(1 << 30),
        result.first_seconds,
        result.load_s,
    ))
}
