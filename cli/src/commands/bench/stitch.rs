//! `bench stitch`: two clips of a moving world through the stitcher and the encoder, and what a frame
//! of the seam between them takes, part by part.

use super::gpu::{Times, latent_cells};
use crate::terminal::print;
use anyhow::{Result, bail};
use longtake_common::Frame;
use longtake_common::media::ChunkEncoder;
use longtake_stitch::{Chain, JoinParams, JoinPart, JoinTimes, Method, join_timed};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

const FPS: f64 = 24.0;
/// Frames that the seam task is given before the overlap, and after it at most.
const LEAD_FRAMES: usize = 8;
const RELAX_FRAMES: usize = 48;
/// The second clip is brighter by so much, and displaced.
const GAIN: f32 = 1.04;
const SHIFT_PX: f32 = 2.5;

/// Flags of `bench stitch`.
#[derive(clap::Args)]
pub struct StitchBenchArgs {
    /// Picture size
    #[arg(long, value_name = "WxH", default_value = "704x480")]
    size: String,
    /// Frames of each of the two clips, 8k+1
    #[arg(long, value_name = "N", default_value_t = 121)]
    frames: usize,
    /// Frames that both clips show
    #[arg(long, value_name = "N", default_value_t = 17)]
    overlap: usize,
    /// How they are joined: flow, crossfade or cut
    #[arg(long, value_name = "METHOD", default_value = "flow")]
    method: Method,
    /// Threads; 0 is one for each processor
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: u16,
    /// Measured runs
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    key: String,
    device: String,
    /// Of the film: reading nothing, joining and encoding all of it.
    #[serde(flatten)]
    times: Times,
    frames: usize,
    frames_per_second: f64,
    /// Frames that a seam task makes: before the overlap, of it, and after it.
    seam_frames: usize,
    /// Of them on one thread, and where that goes.
    ms_per_seam_frame: f64,
    parts: BTreeMap<&'static str, f64>,
    peak_bytes: u64,
}

/// Measures and prints.
pub fn run(args: &StitchBenchArgs) -> Result<()> {
    let [_, height, width] = latent_cells(&args.size, args.frames)?;
    if args.overlap == 0 || args.overlap >= args.frames {
        bail!(
            "--overlap {}: 1 to {} frames can be shared",
            args.overlap,
            args.frames - 1
        );
    }
    let world = World {
        width: width * 32,
        height: height * 32,
    };
    let first = args.frames - args.overlap;
    let left: Vec<Frame> = (0..args.frames).map(|k| world.frame(k, 1.0, 0.0)).collect();
    let right: Vec<Frame> = (first..first + args.frames)
        .map(|k| world.frame(k, GAIN, SHIFT_PX))
        .collect();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.into())
        .build()?;
    let (mut ms, mut frames) = (Vec::new(), 0);
    for _ in 0..args.runs {
        let begun = Instant::now();
        frames = pool.install(|| film(&left, &right, args))?;
        ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let times = Times::of(ms);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let (seam_frames, parts) = one.install(|| seam(&left, &right, args))?;
    let report = Report {
        key: format!(
            "stitch {} {} {} of {}",
            args.size, args.method, args.overlap, args.frames
        ),
        device: format!("cpu x {}", pool.current_num_threads()),
        times,
        frames,
        frames_per_second: frames as f64 / times.median_ms * 1e3,
        seam_frames,
        ms_per_seam_frame: parts.values().sum(),
        parts,
        peak_bytes: longtake_agent::host::peak_rss_bytes(),
    };
    if args.json {
        return print(serde_json::to_string(&report)?);
    }
    print(format_args!(
        "{} on {}: {:.1} frames a second ({} frames in {:.0} ms, {:.0} to {:.0}), {:.2} GiB\n\
         a frame of the seam, on one thread: {:.1} ms ({} frames)",
        report.key,
        report.device,
        report.frames_per_second,
        report.frames,
        times.median_ms,
        times.p10_ms,
        times.p90_ms,
        report.peak_bytes as f64 / f64::from(1 << 30),
        report.ms_per_seam_frame,
        report.seam_frames,
    ))?;
    for (part, ms) in &report.parts {
        print(format_args!(
            "  {ms:9.3} ms {:5.1}%  {part}",
            100.0 * ms / report.ms_per_seam_frame
        ))?;
    }
    Ok(())
}

/// Joins and encodes both clips; how many frames the film has.
fn film(left: &[Frame], right: &[Frame], args: &StitchBenchArgs) -> Result<usize> {
    let mut encoder = encoder(&left[0])?;
    let mut chain = Chain::new(args.method, &[args.overlap])?;
    let mut frames = 0;
    let mut encode = |chain: &mut Chain| -> Result<()> {
        while let Some((frame, _)) = chain.pop() {
            encoder.push(&frame)?;
            frames += 1;
        }
        Ok(())
    };
    for clip in [left, right] {
        for frame in clip {
            chain.push(frame.clone())?;
            encode(&mut chain)?;
        }
        chain.end_clip()?;
        encode(&mut chain)?;
    }
    encoder.finish()?;
    Ok(frames)
}

/// Joins the clips as a seam task does; its frames, and milliseconds of one of them by part.
fn seam(
    left: &[Frame],
    right: &[Frame],
    args: &StitchBenchArgs,
) -> Result<(usize, BTreeMap<&'static str, f64>)> {
    let (overlap, first) = (args.overlap, left.len() - args.overlap);
    let relax = RELAX_FRAMES.min(right.len() - overlap);
    let params = JoinParams {
        overlap_frames: overlap,
        relax_frames: relax,
        method: args.method,
    };
    let lead = &left[first.saturating_sub(LEAD_FRAMES)..first];
    let times = JoinTimes::default();
    let joined = join_timed(
        lead,
        &left[first..],
        &right[..overlap + relax],
        &params,
        &times,
    )?;
    let mut encoder = encoder(&left[0])?;
    let begun = Instant::now();
    for frame in &joined {
        encoder.push(frame)?;
    }
    encoder.finish()?;
    let encode_ms = begun.elapsed().as_secs_f64() * 1e3;
    let each = |ms: f64| ms / joined.len() as f64;
    let mut parts: BTreeMap<_, _> = JoinPart::ALL
        .map(|part| (part.name(), each(times.ms(part))))
        .into();
    parts.insert("encode", each(encode_ms));
    Ok((joined.len(), parts))
}

fn encoder(frame: &Frame) -> Result<ChunkEncoder> {
    Ok(ChunkEncoder::new(frame.width(), frame.height(), FPS)?)
}

/// A textured background that drifts, and balls that roll over it at different speeds.
struct World {
    width: usize,
    height: usize,
}

impl World {
    /// What it looks like at a moment, brighter by `gain` and `shift` pixels to the right.
    fn frame(&self, moment: usize, gain: f32, shift: f32) -> Frame {
        let (width, height, time) = (self.width, self.height, moment as f32);
        let mut data = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            for x in 0..width {
                let (x, y) = (x as f32 - shift, y as f32);
                data.extend(
                    self.color(x, y, time)
                        .map(|c| (c * gain).clamp(0.0, 255.0) as u8),
                );
            }
        }
        Frame::from_rgb8(width as u32, height as u32, data).expect("so many values")
    }

    fn color(&self, x: f32, y: f32, time: f32) -> [f32; 3] {
        let (width, height) = (self.width as f32, self.height as f32);
        for ball in 0..4 {
            let index = ball as f32;
            let radius = height / (6.0 + 2.0 * index);
            let speed = 1.0 + 1.5 * index;
            let center_x = (width * 0.2 * (index + 1.0) + speed * time) % width;
            let center_y = height * (0.25 + 0.17 * index);
            let (dx, dy) = (x - center_x, y - center_y);
            let distance = (dx * dx + dy * dy).sqrt() / radius;
            if distance < 1.0 {
                // A light on it, so that it is no flat disc.
                let light = 1.2 - 0.6 * distance;
                let mut color = [40.0, 40.0, 40.0];
                color[ball % 3] = 190.0;
                return color.map(|c| c * light);
            }
        }
        let texture =
            noise((x - 0.5 * time) / 9.0, y / 9.0) + 0.5 * noise((x - 0.5 * time) / 3.0, y / 3.0);
        [
            60.0 + 60.0 * texture,
            70.0 + 50.0 * texture,
            90.0 + 40.0 * texture,
        ]
    }
}

/// Smooth values between 0 and 1 that depend on the place alone.
fn noise(x: f32, y: f32) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (x - left, y - top);
    let at = |dx: i64, dy: i64| {
        let (x, y) = (left as i64 + dx, top as i64 + dy);
        let mixed = (x.wrapping_mul(0x1f12_3bb5) ^ y.wrapping_mul(0x5f35_6495)) as u32;
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d);
        (mixed >> 16) as f32 / 65535.0
    };
    let row = |dy| at(0, dy) + fx * (at(1, dy) - at(0, dy));
    row(0) + fy * (row(1) - row(0))
}
