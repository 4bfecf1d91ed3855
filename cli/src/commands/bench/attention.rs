//! `bench attention`: self-attention of a window alone, and whether its 8-bit form is good enough.

use super::gpu::{Bits, GpuArgs, Parts, Report, time};
use super::random_model::normals;
use anyhow::{Result, bail};
use longtake_cpu::{CpuBackend, Isa};
use longtake_tensor::{AttentionBias, Backend, Loader, Rope, Shape};

/// Largest relative error of attention in 8 bits, and least cosine, against f32.
const GATE_ERROR: f64 = 6e-2;
const GATE_COSINE: f64 = 0.998;
/// Of so many channels one is an outlier, so many times as large.
const OUTLIER_EVERY: usize = 100;
const OUTLIER_FACTOR: f32 = 20.0;

/// Flags of `bench attention`.
#[derive(clap::Args)]
pub struct AttentionArgs {
    /// Tokens of the window
    #[arg(long, value_name = "N", default_value_t = 13376)]
    tokens: usize,
    /// Heads
    #[arg(long, value_name = "N", default_value_t = 32)]
    heads: usize,
    /// Channels of a head
    #[arg(long, value_name = "N", default_value_t = 128)]
    head_dim: usize,
    /// Also compare two heads with f32 on the CPU, on queries and keys with outlier channels, and
    /// fail when they differ by more than 8 bits may
    #[arg(long)]
    gate: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// Normed and rotated queries and keys with outlier channels, and values, all attended to.
fn attend<B: Backend>(b: &B, tokens: usize, heads: usize, head_dim: usize) -> Result<B::Tensor> {
    let d = heads * head_dim;
    let tensor = |seed, outliers: bool| {
        let mut values = normals(seed, tokens * d);
        if outliers {
            for row in values.chunks_exact_mut(d) {
                row.iter_mut()
                    .step_by(OUTLIER_EVERY)
                    .for_each(|v| *v *= OUTLIER_FACTOR);
            }
        }
        b.upload(Shape::from([tokens, d]), &values)
    };
    let ones = b.upload(Shape::from([d]), &vec![1.0; d])?;
    let angles = normals(17, tokens * d / 2);
    let table = |f: fn(f32) -> f32| {
        let values: Vec<f32> = angles.iter().map(|&a| f(a)).collect();
        b.upload(Shape::from([tokens, d / 2]), &values)
    };
    let rope = Rope {
        cos: table(f32::cos)?,
        sin: table(f32::sin)?,
    };
    let q = b.qk_norm_rope(tensor(31, true)?, &ones, 1e-5, Some(&rope))?;
    let k = b.qk_norm_rope(tensor(32, true)?, &ones, 1e-5, Some(&rope))?;
    let (v, scale) = (tensor(33, false)?, 1.0 / (head_dim as f32).sqrt());
    Ok(b.attention(&q, &k, &v, heads, scale, &AttentionBias::NONE)?)
}

/// `|a - b| / |b|` and the cosine between them.
fn compare(a: &[f32], b: &[f32]) -> [f64; 2] {
    let (mut difference, mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        difference += (a - b) * (a - b);
        aa += a * a;
        bb += b * b;
        ab += a * b;
    }
    [(difference / bb).sqrt(), ab / (aa * bb).sqrt()]
}

/// Measures and prints.
pub fn run(args: &AttentionArgs) -> Result<()> {
    let AttentionArgs {
        tokens,
        heads,
        head_dim,
        ..
    } = *args;
    let b = args.gpu.open()?;
    if args.gate {
        let cpu = CpuBackend::new(0, Isa::detect())?;
        let right = cpu.download(&attend(&cpu, tokens, 2, head_dim)?)?;
        let found = b.download(&attend(&b, tokens, 2, head_dim)?)?;
        let [error, cosine] = compare(&found, &right);
        crate::terminal::remark(format_args!(
            "relative error {error:.2e} of {GATE_ERROR:.1e}, cosine {cosine:.5} of {GATE_COSINE}"
        ));
        // A NaN fails as well.
        if !(error <= GATE_ERROR && cosine >= GATE_COSINE) {
            bail!("attention differs too much from f32: {error:.2e}, cosine {cosine:.5}");
        }
    }
    let d = heads * head_dim;
    let shape = Shape::from([tokens, d]);
    let tensor = |seed| b.upload(shape, &normals(seed, tokens * d));
    let (q, k, v) = (tensor(31)?, tensor(32)?, tensor(33)?);
    let ones = b.upload(Shape::from([d]), &vec![1.0; d])?;
    let angle = b.upload(Shape::from([tokens, d / 2]), &vec![0.5; tokens * d / 2])?;
    let rope = Rope {
        cos: angle.clone(),
        sin: angle,
    };
    let one = || -> Result<()> {
        let q = b.qk_norm_rope(q.clone(), &ones, 1e-5, Some(&rope))?;
        let k = b.qk_norm_rope(k.clone(), &ones, 1e-5, Some(&rope))?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        b.attention(&q, &k, &v, heads, scale, &AttentionBias::NONE)?;
        Ok(())
    };
    let times = time(&b, 3, args.gpu.runs, one)?;
    let peak_bytes = b.device_used_bytes()?;
    let parts = Parts::of(&b, one)?;
    let bits = match args.gpu.attention {
        Bits::Fp8 => "fp8",
        Bits::Bf16 => "bf16",
    };
    let flops = 4.0 * (tokens * tokens * d) as f64;
    Report {
        key: format!("attention {tokens} {bits}"),
        device: b.device_name().to_owned(),
        tflops: flops / times.median_ms / 1e9,
        times,
        peak_bytes,
        parts: parts.ms,
        rates: parts.rates,
        first_result_s: 0.0,
        ratio: None,
    }
    .print(&args.gpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_seen() {
        let [error, cosine] = compare(&[1.0, 0.0], &[1.0, 1.0]);
        assert!((error - 0.5f64.sqrt()).abs() < 1e-9 && (cosine - 0.5f64.sqrt()).abs() < 1e-9);
        assert!(compare(&[f32::NAN], &[1.0])[0].is_nan());
    }
}
