//! `bench text`: one prompt through the text encoder, on the processor with a model that is there, or
//! on a GPU with random weights of T5-XXL's size.

use super::gpu::{Bits, GpuArgs, Parts, Report, Times, time};
use super::random_model::{RandomFile, t5_xxl};
use crate::terminal::remark;
use anyhow::{Context, Result, bail};
use longtake_common::model::find_model;
use longtake_cpu::{CpuBackend, Isa};
use longtake_ltx::Model;
use longtake_ltx::config::{PipelineClass, T5Config};
use longtake_ltx::names::Part;
use longtake_ltx::t5::T5Encoder;
use longtake_ltx::weights::{Scrutiny, Weights};
use std::collections::BTreeMap;
use std::time::Instant;

/// Words that the smallest model knows, too.
const PROMPT: &str = "a big red ball rolls quickly right over a navy background";
/// Runs that do not count.
const WARM: u32 = 3;

/// Flags of `bench text`.
#[derive(clap::Args)]
pub struct TextArgs {
    /// Draw the weights of T5-XXL, which every official model has, and encode on a GPU; without it
    /// the processor encodes with a model's own
    #[arg(long)]
    random_weights: bool,
    /// Diffusers folder, or a name under configs/models [default: ltxv-tiny]; with --random-weights
    /// ltxv-13b-… or ltxv-2b-…, which makes no difference
    #[arg(long, value_name = "NAME|DIR")]
    model: Option<String>,
    /// Tokens of the prompt, padding among them
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=4096))]
    tokens: u32,
    /// Threads of the processor; 0 is all of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: u16,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// Operations of one prompt: products of the layers, and of attention.
fn flops(config: &T5Config, tokens: usize) -> f64 {
    let inner = config.num_heads * config.d_kv;
    let matrices = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff;
    let layer = 2 * tokens * matrices + 4 * tokens * tokens * inner;
    (layer * config.num_layers) as f64
}

/// Measures and prints.
pub fn run(args: &TextArgs) -> Result<()> {
    let report = match args.random_weights {
        true => on_gpu(args)?,
        false => on_cpu(args)?,
    };
    report.print(&args.gpu)
}

fn finite(states: &[f32]) -> Result<()> {
    match states.iter().all(|v| v.is_finite()) {
        true => Ok(()),
        false => bail!("the encoder gave values that are not finite"),
    }
}

/// T5-XXL on a GPU. Half of the tokens are padding, as of a usual prompt.
fn on_gpu(args: &TextArgs) -> Result<Report> {
    if let Some(model) = &args.model {
        super::dit::sizes(model)?;
    }
    let config = t5_xxl(32128);
    let opening = Instant::now();
    let b = args.gpu.open()?;
    let opening = opening.elapsed();
    let folder = tempfile::tempdir().context("make a folder for the weights")?;
    RandomFile::t5(&config).write(&folder.path().join("model.safetensors"), 1)?;
    // As if the file had been there: writing it does not count.
    let start = Instant::now() - opening;
    let weights = Weights::open(folder.path(), "model", Part::TextEncoder, Scrutiny::Headers)?;
    let encoder = T5Encoder::load(&b, weights, &config)?;
    b.synchronize()?;
    remark(format_args!(
        "loaded in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    let tokens = args.tokens as usize;
    let ids: Vec<u32> = (0..args.tokens).map(|i| (i * 7919 + 3) % 32128).collect();
    let mask: Vec<f32> = (0..tokens)
        .map(|i| if i < tokens / 2 { 1.0 } else { 0.0 })
        .collect();
    let one = || anyhow::Ok(encoder.forward(&b, &ids, Some(&mask))?);
    finite(&one()?)?;
    let first_result_s = start.elapsed().as_secs_f64();
    let times = time(&b, WARM, args.gpu.runs, || one().map(drop))?;
    let peak_bytes = b.device_used_bytes()?;
    let parts = Parts::of(&b, || one().map(drop))?;
    let bits = match args.gpu.precision {
        Bits::Fp8 if b.options().rows_scaled => "fp8",
        Bits::Fp8 => "fp8-expanded",
        Bits::Bf16 => "bf16",
    };
    Ok(Report {
        key: format!("text {tokens} {bits}"),
        device: b.device_name().to_owned(),
        tflops: flops(&config, tokens) / times.median_ms / 1e9,
        times,
        peak_bytes,
        parts: parts.ms,
        rates: parts.rates,
        first_result_s,
        ratio: None,
    })
}

/// A model's own encoder on the processor, from words to states.
fn on_cpu(args: &TextArgs) -> Result<Report> {
    let start = Instant::now();
    let name = args.model.as_deref().unwrap_or("ltxv-tiny");
    let b = CpuBackend::new(args.threads.into(), Isa::detect())?;
    let model = Model::load(&find_model(name)?, b.clone())?;
    let tokens = args.tokens as usize;
    let encode = || anyhow::Ok(model.encode_prompt(PROMPT, tokens, PipelineClass::Official)?);
    finite(&encode()?.states)?;
    let first_result_s = start.elapsed().as_secs_f64();
    for _ in 0..WARM {
        encode()?;
    }
    let mut ms = Vec::new();
    for _ in 0..args.gpu.runs {
        let begun = Instant::now();
        encode()?;
        ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let times = Times::of(ms);
    // One encoder call alone: what is left of the median is cutting the prompt into tokens.
    let encoder = model.text_encoder()?;
    let (ids, mask) = (vec![1; tokens], vec![1.0; tokens]);
    let mut alone = Vec::new();
    for _ in 0..args.gpu.runs {
        let begun = Instant::now();
        encoder.forward(&b, &ids, Some(&mask))?;
        alone.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let encoder_ms = Times::of(alone).median_ms;
    let config = &model.config().text_encoder;
    Ok(Report {
        key: format!("text {tokens} f32 {name}"),
        device: format!("cpu {} x {}", b.isa().name(), b.threads()),
        tflops: flops(config, tokens) / times.median_ms / 1e9,
        times,
        peak_bytes: usize::try_from(longtake_agent::host::peak_rss_bytes())?,
        parts: [("text encoder".to_owned(), encoder_ms)].into(),
        rates: BTreeMap::new(),
        first_result_s,
        ratio: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_encoder_can_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let config = T5Config {
            d_model: 64,
            d_kv: 16,
            d_ff: 96,
            num_layers: 2,
            num_heads: 4,
            ..t5_xxl(100)
        };
        RandomFile::t5(&config)
            .write(&folder.path().join("model.safetensors"), 1)
            .unwrap();
        let weights =
            Weights::open(folder.path(), "model", Part::TextEncoder, Scrutiny::Values).unwrap();
        let b = CpuBackend::new(1, Isa::detect()).unwrap();
        let encoder = T5Encoder::load(&b, weights, &config).unwrap();
        let states = encoder.forward(&b, &[1, 2, 99], None).unwrap();
        assert_eq!(states.len(), 3 * 64);
        finite(&states).unwrap();
    }

    #[test]
    fn work_of_the_largest_encoder_is_its_weights_twice_a_token() {
        // 4.7 billion weights without the table of words, each used once a token.
        let work = flops(&t5_xxl(32128), 1);
        assert!((9.2e9..9.7e9).contains(&work), "{work}");
    }
}
