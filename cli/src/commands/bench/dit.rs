//! `bench dit`: one denoising step of the transformer, with random weights of the true size.

use super::gpu::{Bits, GpuArgs, Parts, Report, WindowArgs, time};
use super::random_model::{RandomFile, normals};
use anyhow::{Context, Result, bail};
use longtake_cuda::{CudaBackend, CudaTensor};
use longtake_ltx::Prompt;
use longtake_ltx::config::TransformerConfig;
use longtake_ltx::names::Part;
use longtake_ltx::transformer::{Around, Perturbation, Transformer};
use longtake_ltx::weights::{Scrutiny, Weights};
use longtake_tensor::{Backend, Loader, Recording, Rope, Shape};
use std::time::Instant;

/// Tokens of a prompt.
const TEXT_TOKENS: usize = 256;

/// Flags of `bench dit`.
#[derive(clap::Args)]
pub struct DitArgs {
    /// Model to take the sizes of: ltxv-13b-0.9.8-distilled or ltxv-2b-0.9.8-distilled
    #[arg(long, value_name = "NAME", default_value = "ltxv-13b-0.9.8-distilled")]
    model: String,
    #[command(flatten)]
    window: WindowArgs,
    /// Tokens, instead of --size and --frames
    #[arg(long, value_name = "N", conflicts_with_all = ["size", "frames"])]
    tokens: Option<usize>,
    /// Fewer blocks than the model has; figures are of these alone
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// Layers, heads, channels of a head.
pub fn sizes(model: &str) -> Result<[usize; 3]> {
    match model {
        name if name.starts_with("ltxv-13b") => Ok([48, 32, 128]),
        name if name.starts_with("ltxv-2b") => Ok([28, 32, 64]),
        other => bail!("--model {other}: ltxv-13b-… and ltxv-2b-… are known"),
    }
}

/// A step's operands.
struct Step {
    x: CudaTensor,
    sinusoid: CudaTensor,
    rope: Rope<CudaBackend>,
    prompt: Prompt,
}

impl Step {
    fn random(b: &CudaBackend, tokens: usize, dim: usize) -> Result<Self> {
        let angles = normals(17, tokens * dim / 2);
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a)).collect();
            b.upload(Shape::from([tokens, dim / 2]), &values)
        };
        Ok(Self {
            x: b.upload(Shape::from([tokens, 128]), &normals(11, tokens * 128))?,
            sinusoid: b.upload(Shape::from([1, 256]), &normals(12, 256))?,
            rope: Rope {
                cos: table(f32::cos)?,
                sin: table(f32::sin)?,
            },
            prompt: Prompt {
                tokens: TEXT_TOKENS,
                channels: 4096,
                states: normals(13, TEXT_TOKENS * 4096),
                mask: vec![1.0; TEXT_TOKENS],
                cut_from: None,
            },
        })
    }
}

/// Measures and prints.
pub fn run(args: &DitArgs) -> Result<()> {
    let [all, heads, head_dim] = sizes(&args.model)?;
    let layers = args.layers.unwrap_or(all).min(all);
    let tokens = match args.tokens {
        Some(tokens) => tokens,
        None => args.window.latent_cells()?.iter().product(),
    };
    let dim = heads * head_dim;
    let opening = Instant::now();
    let b = args.gpu.open()?;
    let opening = opening.elapsed();
    let folder = tempfile::tempdir().context("make a folder for the weights")?;
    let file = folder.path().join("diffusion_pytorch_model.safetensors");
    RandomFile::transformer(layers, dim).write(&file, 1)?;
    // As if the file had been there: writing it does not count.
    let start = Instant::now() - opening;
    let config = TransformerConfig {
        num_layers: layers,
        num_attention_heads: heads,
        attention_head_dim: head_dim,
        cross_attention_dim: dim,
        ..TransformerConfig::default()
    };
    let weights = Weights::open(
        folder.path(),
        "diffusion_pytorch_model",
        Part::Transformer,
        Scrutiny::Headers,
    )?;
    let transformer = Transformer::load(&b, &weights, &config)?;
    b.synchronize()?;
    crate::terminal::remark(format_args!(
        "loaded in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    let step = Step::random(&b, tokens, dim)?;
    let text = transformer.text_context(&b, &step.prompt)?;
    let index = b.upload_index(&vec![0; tokens])?;
    let recording = Recording::default();
    let mut first = None;
    let one = || -> Result<CudaTensor> {
        let inputs = [&step.x, &step.sinusoid];
        Ok(b.recorded(&recording, &inputs, |inputs| {
            let around = Around {
                text: &text,
                index: &index,
                rope: &step.rope,
                perturbation: Perturbation::NONE,
                shard: None,
            };
            transformer.forward_at(&b, &inputs[0], &inputs[1], &around)
        })?)
    };
    let times = time(&b, 3, args.gpu.runs, || {
        let v = one()?;
        if first.is_none() {
            let finite = b.download(&v)?.iter().all(|v| v.is_finite());
            if !finite {
                bail!("the step gave values that are not finite");
            }
            first = Some(start.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    let peak_bytes = b.device_used_bytes()?;
    let parts = Parts::of(&b, || {
        let around = Around {
            text: &text,
            index: &index,
            rope: &step.rope,
            perturbation: Perturbation::NONE,
            shard: None,
        };
        let v = transformer.forward_at(&b, &step.x, &step.sinusoid, &around)?;
        Ok(b.settle(&v)?)
    })?;
    let per_layer = 28.0 * (tokens * dim * dim) as f64 // q, k, v, out, q, out, and 8 of the MLP
        + 4.0 * (tokens * tokens * dim) as f64
        + 4.0 * (tokens * TEXT_TOKENS * dim) as f64;
    let bits = match args.gpu.precision {
        Bits::Fp8 if b.options().rows_scaled => "fp8",
        Bits::Fp8 => "fp8-expanded",
        Bits::Bf16 => "bf16",
    };
    let attention = match args.gpu.attention {
        Bits::Fp8 => ", fp8 attention",
        Bits::Bf16 => "",
    };
    let report = Report {
        key: format!("dit {tokens} {bits}{attention}"),
        device: b.device_name().to_owned(),
        tflops: per_layer * layers as f64 / times.median_ms / 1e9,
        times,
        peak_bytes,
        parts: parts.ms,
        rates: parts.rates,
        first_result_s: first.unwrap_or_default(),
        ratio: None,
    };
    report.print(&args.gpu)
}
