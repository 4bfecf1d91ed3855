//! `bench quality`: what one pipeline file loses and gains against another, by whole films that the
//! program's own command line renders.

use crate::terminal::print;
use anyhow::{Context, Result, bail};
use longtake_common::media::open_video;
use longtake_stitch::Comparison;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Flags of `bench quality`.
#[derive(clap::Args)]
pub struct QualityArgs {
    /// Pipeline file that is the measure: a name under configs/ or a YAML file
    #[arg(long, value_name = "NAME|YAML")]
    a: String,
    /// Pipeline file that is measured by it
    #[arg(long, value_name = "NAME|YAML")]
    b: String,
    /// Prompts, one a line; the number of the line is the seed
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Prompts to render, from the top of the file
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// More flags of `render` for both, after --
    #[arg(last = true)]
    flags: Vec<String>,
}

/// Both films of one prompt.
#[derive(Serialize)]
struct Pair {
    prompt: String,
    /// PSNR over R, G and B in dB; null where the films are equal.
    psnr_rgb: Option<f64>,
    ssim: f64,
    a_seconds: f64,
    b_seconds: f64,
}

#[derive(Serialize)]
struct QualityJson {
    a: String,
    b: String,
    prompts: usize,
    /// Of the pairs that differ; null when none does.
    psnr_rgb_median: Option<f64>,
    psnr_rgb_least: Option<f64>,
    ssim_median: f64,
    ssim_least: f64,
    /// Median of the seconds of A over those of B.
    speed_up: f64,
    a_peak_bytes: u64,
    b_peak_bytes: u64,
    pairs: Vec<Pair>,
}

/// What `render` says of a film.
struct Film {
    pictures: PathBuf,
    seconds: f64,
    peak_bytes: u64,
}

/// Renders and compares.
pub fn run(args: &QualityArgs) -> Result<()> {
    let text = std::fs::read_to_string(&args.prompts)
        .with_context(|| format!("read the prompts in {}", args.prompts.display()))?;
    let prompts: Vec<&str> = text.lines().take(args.count).collect();
    if prompts.is_empty() {
        bail!("{} has no prompt", args.prompts.display());
    }
    let folder = tempfile::tempdir().context("make a folder for the films")?;
    let (mut pairs, mut peaks) = (Vec::new(), [0, 0]);
    for (seed, prompt) in prompts.into_iter().enumerate() {
        let render = |name: &str, config: &str| {
            film(prompt, seed, config, &folder.path().join(name), args)
                .with_context(|| format!("render '{prompt}' as {config} says"))
        };
        let (a, b) = (render("a", &args.a)?, render("b", &args.b)?);
        peaks = [peaks[0].max(a.peak_bytes), peaks[1].max(b.peak_bytes)];
        pairs.push(compared(prompt, &a, &b)?);
        for film in [a, b] {
            std::fs::remove_dir_all(film.pictures.parent().unwrap_or(folder.path()))?;
        }
    }
    let json = summary(args, pairs, peaks);
    match args.json {
        true => print(serde_json::to_string(&json)?),
        false => print(text_of(&json)),
    }
}

/// Renders one film as pictures, which lose nothing, with this very program.
fn film(
    prompt: &str,
    seed: usize,
    config: &str,
    folder: &Path,
    args: &QualityArgs,
) -> Result<Film> {
    let pictures = folder.join("film").join("%06d.png");
    std::fs::create_dir_all(folder.join("film"))?;
    let out = Command::new(std::env::current_exe().context("find this program")?)
        .args(["render", prompt, "--config", config, "--json"])
        .args(["--seed", &seed.to_string()])
        .arg("-o")
        .arg(&pictures)
        .arg("--state")
        .arg(folder.join("state"))
        .args(&args.flags)
        .env_remove("LONGTAKE_COORDINATOR")
        .stderr(Stdio::inherit())
        .output()
        .context("start the render")?;
    if !out.status.success() {
        bail!("the render ended with {}", out.status);
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let report: Value = serde_json::from_str(text.trim()).context("read the render's report")?;
    let (Some(seconds), Some(peak_bytes)) = (
        report["seconds_total"].as_f64(),
        report["peak_rss_bytes"].as_u64(),
    ) else {
        bail!("the render's report says neither seconds nor memory: {report}");
    };
    Ok(Film {
        pictures,
        seconds,
        peak_bytes,
    })
}

fn compared(prompt: &str, a: &Film, b: &Film) -> Result<Pair> {
    let mut comparison = Comparison::new();
    for pair in open_video(&a.pictures)?.zip(open_video(&b.pictures)?) {
        comparison.push(&pair.0?, &pair.1?)?;
    }
    let quality = comparison.finish();
    Ok(Pair {
        prompt: prompt.to_owned(),
        psnr_rgb: quality.psnr_rgb.is_finite().then_some(quality.psnr_rgb),
        ssim: quality.ssim,
        a_seconds: a.seconds,
        b_seconds: b.seconds,
    })
}

/// The middle one, or the lower of both.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

fn summary(args: &QualityArgs, pairs: Vec<Pair>, peaks: [u64; 2]) -> QualityJson {
    let psnr: Vec<f64> = pairs.iter().filter_map(|pair| pair.psnr_rgb).collect();
    let ssim: Vec<f64> = pairs.iter().map(|pair| pair.ssim).collect();
    let least = |values: &[f64]| values.iter().copied().reduce(f64::min);
    let speed_ups = pairs.iter().map(|pair| pair.a_seconds / pair.b_seconds);
    QualityJson {
        a: args.a.clone(),
        b: args.b.clone(),
        prompts: pairs.len(),
        psnr_rgb_least: least(&psnr),
        psnr_rgb_median: median(psnr),
        ssim_least: least(&ssim).unwrap_or(1.0),
        ssim_median: median(ssim).unwrap_or(1.0),
        speed_up: median(speed_ups.collect()).unwrap_or(1.0),
        a_peak_bytes: peaks[0],
        b_peak_bytes: peaks[1],
        pairs,
    }
}

fn text_of(json: &QualityJson) -> String {
    let db = |value: Option<f64>| value.map_or("equal".to_owned(), |db| format!("{db:.2} dB"));
    let mut text = String::new();
    for pair in &json.pairs {
        text += &format!(
            "{:>10}  SSIM {:.4}  {:6.2} s  {:6.2} s  {}\n",
            db(pair.psnr_rgb),
            pair.ssim,
            pair.a_seconds,
            pair.b_seconds,
            pair.prompt
        );
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    text + &format!(
        "{} against {} over {} prompts: PSNR {} in the middle, {} at least; SSIM {:.4}, {:.4}; {:.2} \
         times as fast; {:.0} MiB, {:.0} MiB",
        json.b,
        json.a,
        json.prompts,
        db(json.psnr_rgb_median),
        db(json.psnr_rgb_least),
        json.ssim_median,
        json.ssim_least,
        json.speed_up,
        mib(json.a_peak_bytes),
        mib(json.b_peak_bytes)
    )
}
