//! Times the transformer's forward pass and the VAE's decoding of one window.
//!
//! `time_parts MODEL_DIR [THREADS [LATENT_FRAMES HEIGHT WIDTH]]`; prints JSON with the best and
//! the median of several runs, in seconds. `tests/golden/time_reference.py` runs it beside diffusers.

use longtake_cpu::{CpuBackend, Isa};
use longtake_ltx::Model;
use longtake_ltx::embeddings::{Positions, rope};
use longtake_ltx::rng::TorchRng;
use longtake_ltx::transformer::TokenTimesteps;
use longtake_tensor::{Backend, Loader, Shape};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

const RUNS: usize = 9;
const TEXT_TOKENS: usize = 64;
const FPS: f64 = 24.0;

/// Best and median seconds of `work`.
fn time(mut work: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<[f64; 2], Box<dyn Error>> {
    work()?;
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok([seconds[0], seconds[RUNS / 2]])
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = args
        .first()
        .ok_or("usage: time_parts MODEL_DIR [THREADS [FRAMES HEIGHT WIDTH]]")?;
    let number = |i: usize, default| {
        args.get(i)
            .map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (threads, frames) = (number(1, 2)?, number(2, 16)?);
    let (height, width) = (number(3, 5)?, number(4, 8)?);

    let start = Instant::now();
    let b = CpuBackend::new(threads, Isa::detect())?;
    let model = Model::load(Path::new(dir), b.clone())?;
    let load = start.elapsed().as_secs_f64();

    let prompt = model.encode_prompt(
        "a red circle moves left",
        TEXT_TOKENS,
        model.config().pipeline,
    )?;
    let (transformer, config) = (model.transformer()?, model.config());
    let channels = config.transformer.in_channels;
    let tokens = frames * height * width;
    let [time_ratio, space_ratio] = config.vae.ratios();
    let class = config.pipeline;
    let positions = Positions {
        in_front: Vec::new(),
        frames,
        height,
        width,
        fps: FPS,
        class,
        causal: true,
        time_ratio,
        space_ratio,
    };
    let rotation = rope(&b, &positions, config.transformer.inner_dim())?;
    let text = transformer.text_context(&b, &prompt)?;
    let noise = TorchRng::new(0).randn(tokens * channels);
    let x = b.upload(Shape::from([tokens, channels]), &noise)?;
    let index = b.upload_index(&vec![0; tokens])?;
    let timesteps = TokenTimesteps {
        distinct: vec![725.0],
        index,
    };
    let dit = time(|| {
        transformer.forward(&b, &x, &text, &timesteps, &rotation)?;
        Ok(())
    })?;
    let z = b.reshape(&x, Shape::from([frames, height, width, channels]))?;
    let vae = time(|| {
        model.decoder()?.forward(&b, &z, 0.05)?;
        Ok(())
    })?;
    let isa = b.isa();
    println!(
        "{{\"isa\":\"{isa}\",\"threads\":{threads},\"tokens\":{tokens},\"load\":{load:.4},\
         \"dit\":{dit:?},\"vae\":{vae:?}}}"
    );
    Ok(())
}
