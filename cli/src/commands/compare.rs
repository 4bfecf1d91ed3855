//! `compare`: how close two videos are, frame by frame.

use crate::terminal::print;
use anyhow::{Context, Result, bail};
use longtake_common::Frame;
use longtake_common::media::{VideoReader, open_video};
use longtake_stitch::{Comparison, Quality};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Flags of `compare`.
#[derive(clap::Args)]
pub struct CompareArgs {
    /// First video: MP4 with H.264, or a PNG sequence as DIR/%06d.png
    a: PathBuf,
    /// Second video
    b: PathBuf,
    /// Also write the report, with every frame, to this file
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// How close the videos are. PSNR is null where the pictures are equal.
#[derive(Serialize)]
struct ComparisonJson {
    a: VideoJson,
    b: VideoJson,
    /// Pairs compared: as many as the shorter video has.
    frames_compared: u64,
    identical: bool,
    psnr_y: Option<f64>,
    psnr_rgb: Option<f64>,
    ssim: f64,
    worst_ssim: f64,
    /// Largest difference of a sample, of 255.
    max_abs_diff: u8,
    /// Mean |dY| between neighbouring frames, largest and on average: a cut shows as a peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    per_frame: Option<Vec<FrameJson>>,
}

#[derive(Serialize)]
struct VideoJson {
    path: PathBuf,
    width: u32,
    height: u32,
    fps: Option<f64>,
    frames: u64,
    /// Change from frame to frame, of 255.
    transitions: Transitions,
}

#[derive(Clone, Serialize)]
struct FrameJson {
    frame: u64,
    psnr_y: Option<f64>,
    psnr_rgb: Option<f64>,
    ssim: f64,
    max_abs_diff: u8,
}

/// How much a video changes from frame to frame: mean |d| over all samples, of 255. A cut or a
/// visible seam is a peak.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Transitions {
    mean: f64,
    largest: f64,
    /// The frame after the largest.
    largest_at: Option<u64>,
}

/// Reads one video and watches its transitions.
struct Side {
    path: PathBuf,
    reader: VideoReader,
    last: Option<Frame>,
    frames: u64,
    total: f64,
    transitions: Transitions,
}

impl Side {
    fn open(path: &Path) -> Result<Self> {
        let reader = open_video(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            last: None,
            frames: 0,
            total: 0.0,
            transitions: Transitions::default(),
        })
    }

    /// Moves on to the next frame; false at the end.
    fn advance(&mut self) -> Result<bool> {
        let next = self.reader.next().transpose();
        let Some(frame) = next.with_context(|| format!("read {}", self.path.display()))? else {
            return Ok(false);
        };
        if let Some(last) = &self.last {
            let step = mean_abs_diff(last, &frame);
            self.total += step;
            if step > self.transitions.largest {
                self.transitions.largest = step;
                self.transitions.largest_at = Some(self.frames);
            }
        }
        self.last = Some(frame);
        self.frames += 1;
        Ok(true)
    }

    fn into_json(self) -> VideoJson {
        let info = self.reader.info();
        let steps = self.frames.saturating_sub(1).max(1) as f64;
        VideoJson {
            width: info.width,
            height: info.height,
            fps: info.fps,
            frames: self.frames,
            transitions: Transitions {
                mean: self.total / steps,
                ..self.transitions
            },
            path: self.path,
        }
    }
}

/// Compares and reports. Different videos are no error; videos that cannot be compared are.
pub fn run(args: &CompareArgs) -> Result<()> {
    let (mut a, mut b) = (Side::open(&args.a)?, Side::open(&args.b)?);
    let size = |side: &Side| (side.reader.info().width, side.reader.info().height);
    let ((aw, ah), (bw, bh)) = (size(&a), size(&b));
    if (aw, ah) != (bw, bh) {
        bail!(
            "{} is {aw}x{ah} and {} is {bw}x{bh}; only videos of one size can be compared",
            args.a.display(),
            args.b.display()
        );
    }
    if let Some(report) = &args.report {
        crate::output::check_writable(crate::output::folder_of(report))?;
    }
    let mut comparison = Comparison::new();
    let mut per_frame = Vec::new();
    loop {
        match (a.advance()?, b.advance()?) {
            (true, true) => per_frame.push(pair(&mut comparison, &a, &b)?),
            (false, false) => break,
            // The rest of the longer one still counts for its own figures.
            _ => {}
        }
    }
    finish(
        args,
        a.into_json(),
        b.into_json(),
        &comparison.finish(),
        per_frame,
    )
}

fn pair(comparison: &mut Comparison, a: &Side, b: &Side) -> Result<FrameJson> {
    let (Some(x), Some(y)) = (&a.last, &b.last) else {
        bail!("a frame is missing")
    };
    let quality = comparison.push(x, y)?;
    Ok(FrameJson {
        frame: a.frames - 1,
        psnr_y: finite(quality.psnr_y),
        psnr_rgb: finite(quality.psnr_rgb),
        ssim: quality.ssim,
        max_abs_diff: max_abs_diff(x, y),
    })
}

fn finish(
    args: &CompareArgs,
    a: VideoJson,
    b: VideoJson,
    quality: &Quality,
    per_frame: Vec<FrameJson>,
) -> Result<()> {
    let max_abs_diff = per_frame
        .iter()
        .map(|frame| frame.max_abs_diff)
        .max()
        .unwrap_or(0);
    let mut json = ComparisonJson {
        frames_compared: quality.frames,
        identical: max_abs_diff == 0 && a.frames == b.frames,
        psnr_y: finite(quality.psnr_y),
        psnr_rgb: finite(quality.psnr_rgb),
        ssim: quality.ssim,
        worst_ssim: quality.worst_ssim,
        max_abs_diff,
        per_frame: Some(per_frame),
        a,
        b,
    };
    if let Some(path) = &args.report {
        crate::output::write_whole(
            path,
            format!("{}\n", serde_json::to_string(&json)?).as_bytes(),
        )?;
    }
    json.per_frame = None;
    if args.json {
        return print(serde_json::to_string(&json)?);
    }
    print(summary(&json))
}

fn summary(json: &ComparisonJson) -> String {
    let line = |name: &str, video: &VideoJson| {
        let largest_at = video.transitions.largest_at;
        format!(
            "{name}  {}  {}x{}  {} frames  change {:.2} on average, {:.2} at most{}\n",
            video.path.display(),
            video.width,
            video.height,
            video.frames,
            video.transitions.mean,
            video.transitions.largest,
            largest_at.map_or(String::new(), |at| format!(" (at frame {at})")),
        )
    };
    let mut text = line("A", &json.a) + &line("B", &json.b);
    if json.frames_compared < json.a.frames.max(json.b.frames) {
        text += &format!(
            "only the first {} frames are in both\n",
            json.frames_compared
        );
    }
    let psnr = |value: Option<f64>| value.map_or("equal".to_owned(), |db| format!("{db:.2} dB"));
    text + &format!(
        "PSNR Y {}, RGB {}; SSIM {:.4}, worst frame {:.4}; largest difference {} of 255{}",
        psnr(json.psnr_y),
        psnr(json.psnr_rgb),
        json.ssim,
        json.worst_ssim,
        json.max_abs_diff,
        if json.identical { "; identical" } else { "" }
    )
}

/// JSON has no infinity: equal pictures have no PSNR.
fn finite(db: f64) -> Option<f64> {
    db.is_finite().then_some(db)
}

fn mean_abs_diff(a: &Frame, b: &Frame) -> f64 {
    let total: u64 = a
        .data()
        .iter()
        .zip(b.data())
        .map(|(&a, &b)| u64::from(a.abs_diff(b)))
        .sum();
    total as f64 / a.data().len().max(1) as f64
}

fn max_abs_diff(a: &Frame, b: &Frame) -> u8 {
    a.data()
        .iter()
        .zip(b.data())
        .map(|(&a, &b)| a.abs_diff(b))
        .max()
        .unwrap_or(0)
}
