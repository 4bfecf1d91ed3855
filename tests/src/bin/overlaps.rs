//! Cuts clips in two at many places, with every overlap from 5 to 48 frames, also after gain and
//! noise, and asks `longtake_stitch` for the overlap. Prints one JSON object; fails on a miss.
//!
//! `CLIP` may be followed by `@FIRST..END` (frames), to stay within one shot.

use clap::Parser;
use longtake_common::Frame;
use longtake_common::media::open_video;
use longtake_stitch::{Sketch, find_overlap};
use serde_json::json;
use std::ops::{Range, RangeInclusive};

const OVERLAPS: RangeInclusive<usize> = 5..=48;
/// Frames of each part at least, and so from either end of the clip to the cut.
const PART_FRAMES: usize = 56;

#[derive(Parser)]
#[command(about = "Measures how often the overlap of clips is found")]
struct Args {
    /// Clips: H.264 in MP4 or PNG sequences; also from LONGTAKE_CLIPS, separated by colons
    clips: Vec<String>,
    /// Places to cut each clip at
    #[arg(long, default_value_t = 8)]
    cuts: usize,
}

/// What is done to the right part before its overlap is looked for.
const CHANGES: [(&str, f64, f64); 4] = [
    ("none", 1.0, 0.0),
    ("gain of 8%", 1.08, 0.0),
    ("noise of 2%", 1.0, 0.02 * 255.0),
    ("both", 1.08, 0.02 * 255.0),
];

fn main() -> Result<(), String> {
    let args = Args::parse();
    let mut clips = args.clips;
    if clips.is_empty() {
        let named = std::env::var("LONGTAKE_CLIPS").unwrap_or_default();
        clips = named
            .split(':')
            .filter(|c| !c.is_empty())
            .map(str::to_owned)
            .collect();
    }
    if clips.is_empty() {
        return Err("give clips, or name them in LONGTAKE_CLIPS".to_owned());
    }
    let (mut tried, mut missed) = (0, 0);
    let mut least: f64 = 1.0;
    for clip in &clips {
        let frames = read(clip)?;
        for (change, gain, noise) in CHANGES {
            let result = sweep(&frames, args.cuts, gain, noise)?;
            eprintln!(
                "{clip}, {change}: {} of {} found, least confidence {:.3}",
                result.tried - result.misses.len(),
                result.tried,
                result.least_confidence
            );
            result.misses.iter().for_each(|miss| eprintln!("  {miss}"));
            tried += result.tried;
            missed += result.misses.len();
            least = least.min(result.least_confidence);
        }
    }
    println!(
        "{}",
        json!({"tried": tried, "missed": missed, "least_confidence": least})
    );
    if missed > 0 {
        return Err(format!("{missed} of {tried} overlaps were not found"));
    }
    Ok(())
}

struct Outcome {
    tried: usize,
    misses: Vec<String>,
    least_confidence: f64,
}

/// The frames that `NAME` or `NAME@FIRST..END` means.
fn read(clip: &str) -> Result<Vec<Frame>, String> {
    let (path, range) = match clip.rsplit_once('@') {
        Some((path, range)) => (path, Some(parse(range)?)),
        None => (clip, None),
    };
    let reader = open_video(path).map_err(|e| e.to_string())?;
    let range = range.unwrap_or(0..usize::MAX);
    let frames = reader.skip(range.start).take(range.end - range.start);
    frames
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{path}: {e}"))
}

fn parse(range: &str) -> Result<Range<usize>, String> {
    let wrong = || format!("'{range}' is no range of frames like 80..137");
    let (first, end) = range.split_once("..").ok_or_else(wrong)?;
    match (first.parse(), end.parse()) {
        (Ok(first), Ok(end)) if first < end => Ok(first..end),
        _ => Err(wrong()),
    }
}

fn sweep(frames: &[Frame], cuts: usize, gain: f64, noise: f64) -> Result<Outcome, String> {
    let mut random = Random(0x5eed);
    let plain: Vec<Sketch> = frames.iter().map(Sketch::new).collect();
    let altered: Vec<Sketch> = frames
        .iter()
        .map(|frame| Sketch::new(&random.altered(frame, gain, noise)))
        .collect();
    let room = frames
        .len()
        .checked_sub(PART_FRAMES)
        .filter(|&r| r >= PART_FRAMES);
    let last = room.unwrap_or(frames.len().saturating_sub(1));
    let first = PART_FRAMES.min(last);
    let mut out = Outcome {
        tried: 0,
        misses: Vec::new(),
        least_confidence: 1.0,
    };
    for cut in 0..cuts {
        // The left part ends at `end`, the right one begins `overlap` frames before.
        let end = first + (last - first) * cut / cuts.saturating_sub(1).max(1);
        for overlap in OVERLAPS.filter(|&overlap| overlap <= end) {
            let right = end - overlap;
            out.tried += 1;
            match find_overlap(&plain[..end], &altered[right..]) {
                Ok(found) if found.frames == overlap => {
                    out.least_confidence = out.least_confidence.min(found.confidence);
                }
                Ok(found) => out.misses.push(format!(
                    "end {end}, overlap {overlap}: found {} ({:.3})",
                    found.frames, found.confidence
                )),
                Err(why) => out
                    .misses
                    .push(format!("end {end}, overlap {overlap}: {why}")),
            }
        }
    }
    if out.tried == 0 {
        return Err("the clip is too short to be cut".to_owned());
    }
    Ok(out)
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn even(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, of deviation 1: the sum of twelve even numbers.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.even()).sum::<f64>() - 6.0
    }

    fn altered(&mut self, frame: &Frame, gain: f64, noise: f64) -> Frame {
        let mut out = frame.clone();
        for value in out.data_mut() {
            let grain = if noise > 0.0 {
                noise * self.normal()
            } else {
                0.0
            };
            *value = (f64::from(*value) * gain + grain + 0.5).clamp(0.0, 255.0) as u8;
        }
        out
    }
}
