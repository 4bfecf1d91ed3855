//! What the benches on a GPU share: flags, repeated timing, reports.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use longtake_cuda::{AttentionBits, CudaBackend, CudaOptions, Precision};
use serde::Serialize;
use std::collections::BTreeMap;

/// Bits of the repeating layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// 8 bits with a scale a row
    Fp8,
    /// bf16
    Bf16,
}

/// Flags of a bench that draws a window with random weights of the true size.
#[derive(clap::Args)]
pub struct WindowArgs {
    /// Draw the weights (none are shipped)
    #[arg(long, required = true)]
    random_weights: bool,
    /// Picture size
    #[arg(long, value_name = "WxH", default_value = "1216x704")]
    pub size: String,
    /// Pictures, 8k+1
    #[arg(long, value_name = "N", default_value_t = 121)]
    frames: usize,
}

impl WindowArgs {
    /// Frames, height and width of the window's latent.
    pub fn latent_cells(&self) -> Result<[usize; 3]> {
        latent_cells(&self.size, self.frames)
    }
}

/// Latent cells of pictures.
pub fn latent_cells(size: &str, frames: usize) -> Result<[usize; 3]> {
    let parse = || -> Option<[usize; 2]> {
        let (width, height) = size.split_once('x')?;
        Some([width.parse().ok()?, height.parse().ok()?])
    };
    let Some([width, height]) = parse() else {
        bail!("--size {size}: WIDTHxHEIGHT is expected");
    };
    if frames % 8 != 1 || width == 0 || height == 0 || width % 32 != 0 || height % 32 != 0 {
        bail!("--size {size} --frames {frames}: multiples of 32, and 8k+1 frames, are needed");
    }
    Ok([frames / 8 + 1, height / 32, width / 32])
}

/// Flags of every bench on a GPU.
#[derive(clap::Args)]
pub struct GpuArgs {
    /// Device
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Bits of the layers that repeat from block to block
    #[arg(long, value_name = "BITS", default_value = "fp8")]
    pub precision: Bits,
    /// Bits of self-attention
    #[arg(long, value_name = "BITS", default_value = "bf16")]
    pub attention: Bits,
    /// Measured runs, after three that warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Most of the device's memory to take, like 16GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::bytes)]
    max_vram: Option<u64>,
    /// Compare with the figures in a file that an earlier run or the PyTorch script wrote
    #[arg(long, value_name = "FILE")]
    against: Option<std::path::PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

impl GpuArgs {
    /// Opens the device.
    pub fn open(&self) -> Result<CudaBackend> {
        let precision = match self.precision {
            Bits::Fp8 => Precision::Fp8,
            Bits::Bf16 => Precision::Bf16,
        };
        let options = CudaOptions {
            ordinal: self.device,
            precision,
            attention: match self.attention {
                Bits::Fp8 => AttentionBits::Fp8,
                Bits::Bf16 => AttentionBits::Bf16,
            },
            memory_limit: self.max_vram.map(|bytes| bytes as usize),
            ..CudaOptions::default()
        };
        let backend =
            CudaBackend::open(options).context("open the GPU; `longtake doctor` says more")?;
        Ok(backend)
    }
}

/// Milliseconds of repeated runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// The middle one.
    pub median_ms: f64,
    /// A tenth is faster.
    pub p10_ms: f64,
    /// A tenth is slower.
    pub p90_ms: f64,
}

impl Times {
    /// Those of runs that took so long, at least one.
    pub fn of(ms: Vec<f64>) -> Self {
        Self {
            median_ms: quantile(ms.clone(), 0.5),
            p10_ms: quantile(ms.clone(), 0.1),
            p90_ms: quantile(ms, 0.9),
        }
    }
}

/// The value below which a share of the values lies; there is at least one.
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// Times `runs` calls by the device's own clock after `warm` that do not count.
pub fn time(
    b: &CudaBackend,
    warm: u32,
    runs: u32,
    mut f: impl FnMut() -> Result<()>,
) -> Result<Times> {
    for _ in 0..warm {
        f()?;
    }
    b.synchronize()?;
    let mut marks = Vec::new();
    for _ in 0..runs {
        let before = b.mark()?;
        f()?;
        marks.push((before, b.mark()?));
    }
    let mut ms = Vec::new();
    for (before, after) in &marks {
        ms.push(f64::from(b.elapsed_ms(before, after)?));
    }
    Ok(Times::of(ms))
}

/// Runs of which parts are the mean.
const PART_RUNS: u32 = 3;

/// Milliseconds of one run by part, and what that makes a second where work is known.
#[derive(Debug, Default)]
pub struct Parts {
    /// By part.
    pub ms: BTreeMap<String, f64>,
    /// By part: TFLOP/s of products, GB/s of what only moves memory.
    pub rates: BTreeMap<String, String>,
}

impl Parts {
    /// Takes a run apart; `f` must launch everything itself, without replaying a graph.
    pub fn of(b: &CudaBackend, mut f: impl FnMut() -> Result<()>) -> Result<Self> {
        let mut parts = Self::default();
        let mut run = || {
            for _ in 0..PART_RUNS {
                f()?;
            }
            Ok::<_, anyhow::Error>(())
        };
        for (label, part) in b.watched(&mut run)? {
            let seconds = part.ms / 1e3;
            let rate = match (part.flops > 0.0, part.bytes > 0.0) {
                (true, _) => format!("{:.0} TFLOP/s", part.flops / seconds / 1e12),
                (_, true) => format!("{:.0} GB/s", part.bytes / seconds / 1e9),
                _ => String::new(),
            };
            let count = part.count as f64 / f64::from(PART_RUNS);
            let rate = format!("{count:.0} launches  {rate}");
            parts.rates.insert(label.clone(), rate.trim().to_owned());
            parts.ms.insert(label, part.ms / f64::from(PART_RUNS));
        }
        Ok(parts)
    }
}

/// What a bench prints.
#[derive(Serialize)]
pub struct Report {
    /// What was measured, such as `dit 13376 fp8`: figures of equal keys are compared.
    pub key: String,
    /// The device.
    pub device: String,
    #[serde(flatten)]
    pub times: Times,
    /// Useful operations over the median.
    pub tflops: f64,
    /// Device memory of the process.
    pub peak_bytes: usize,
    /// Milliseconds of a run by part.
    pub parts: BTreeMap<String, f64>,
    /// Launches of each part, and TFLOP/s or GB/s.
    pub rates: BTreeMap<String, String>,
    /// Seconds until the first result, loading included.
    pub first_result_s: f64,
    /// Median over that of `--against`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

impl Report {
    /// Prints it, compared with `--against` where that has the same key.
    pub fn print(mut self, args: &GpuArgs) -> Result<()> {
        if let Some(path) = &args.against {
            let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let other: serde_json::Value = serde_json::from_slice(&text)
                .with_context(|| format!("{} is no JSON", path.display()))?;
            let named = other
                .get("results")
                .and_then(|r| r.get(&self.key))
                .unwrap_or(&other);
            let Some(ms) = named.get("median_ms").and_then(serde_json::Value::as_f64) else {
                bail!("{} has no figure for {:?}", path.display(), self.key);
            };
            self.ratio = Some(self.times.median_ms / ms);
        }
        if args.json {
            return crate::terminal::print(serde_json::to_string(&self)?);
        }
        let Times {
            median_ms,
            p10_ms,
            p90_ms,
        } = self.times;
        crate::terminal::print(format_args!(
            "{} on {}: {median_ms:.2} ms ({p10_ms:.2} to {p90_ms:.2}), {:.*} TFLOP/s, {:.2} GiB, first result after {:.1} s",
            self.key,
            self.device,
            if self.tflops < 10.0 { 3 } else { 0 },
            self.tflops,
            self.peak_bytes as f64 / f64::from(1 << 30),
            self.first_result_s,
        ))?;
        if let Some(ratio) = self.ratio {
            crate::terminal::print(format_args!("  {ratio:.3} of the other"))?;
        }
        let mut parts: Vec<_> = self.parts.iter().collect();
        parts.sort_by(|a, b| b.1.total_cmp(a.1));
        for (part, ms) in parts {
            let share = 100.0 * ms / median_ms;
            let rate = self.rates.get(part).map_or("", String::as_str);
            crate::terminal::print(format_args!("  {ms:9.3} ms {share:5.1}%  {part:44} {rate}"))?;
        }
        Ok(())
    }
}
