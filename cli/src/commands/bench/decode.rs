//! `bench vae`: decoding a window's latents to 8-bit pictures, with random weights of the true size.

use super::gpu::{GpuArgs, Parts, Report, WindowArgs, time};
use super::random_model::{RandomFile, normals, vae_config};
use anyhow::{Context, Result};
use longtake_ltx::names::Part;
use longtake_ltx::pipeline::pictures;
use longtake_ltx::vae::Decoder;
use longtake_ltx::weights::{Scrutiny, Weights};
use longtake_tensor::{Loader, Shape};
use std::time::Instant;

/// Flags of `bench vae`.
#[derive(clap::Args)]
pub struct VaeArgs {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// Measures and prints.
pub fn run(args: &VaeArgs) -> Result<()> {
    let [frames, height, width] = args.window.latent_cells()?;
    let opening = Instant::now();
    let b = args.gpu.open()?;
    let opening = opening.elapsed();
    let folder = tempfile::tempdir().context("make a folder for the weights")?;
    let file = folder.path().join("diffusion_pytorch_model.safetensors");
    RandomFile::decoder().write(&file, 1)?;
    // As if the file had been there: writing it does not count.
    let start = Instant::now() - opening;
    let config = vae_config();
    let weights = Weights::open(
        folder.path(),
        "diffusion_pytorch_model",
        Part::Vae,
        Scrutiny::Headers,
    )?;
    let decoder = Decoder::load(&b, &weights, &config)?;
    let latents = normals(7, frames * height * width * 128);
    let latents = b.upload(Shape::from([frames, height, width, 128]), &latents)?;
    let samples = ((frames - 1) * 8 + 1) * height * width * 32 * 32 * 3;
    let decode = || -> Result<()> {
        let rgb = pictures(&b, &decoder, &latents, 0.05, samples)?.rgb;
        anyhow::ensure!(rgb.len() == samples, "{} samples came out", rgb.len());
        Ok(())
    };
    let mut first = None;
    let times = time(&b, 2, args.gpu.runs, || {
        decode()?;
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        Ok(())
    })?;
    // 27 taps, two operations; cells of each stage by its convolutions' channels.
    let cells = |scale: usize| ((frames - 1) * scale + 1) * height * width * scale * scale;
    let resnets = |c: usize| 10 * c * c;
    let flops: f64 = [
        (cells(1), 128 * 1024 + resnets(1024) + 1024 * 4096),
        (cells(2), resnets(512) + 512 * 2048),
        (cells(4), resnets(256) + 256 * 1024),
        (cells(8), resnets(128) + 128 * 48),
    ]
    .iter()
    .map(|&(cells, weights)| 54.0 * cells as f64 * weights as f64)
    .sum();
    let peak_bytes = b.device_used_bytes()?;
    let parts = Parts::of(&b, || {
        decode()?;
        Ok(())
    })?;
    let report = Report {
        key: format!("vae {}", args.window.size),
        device: b.device_name().to_owned(),
        tflops: flops / times.median_ms / 1e9,
        times,
        peak_bytes,
        parts: parts.ms,
        rates: parts.rates,
        first_result_s: first.unwrap_or_default(),
        ratio: None,
    };
    report.print(&args.gpu)
}
