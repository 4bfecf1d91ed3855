//! Judges what the product renders with ltxv-tiny, from the finished films alone. The figures of
//! `docs/bench.md` come from here.

use clap::{Parser, Subcommand};
use longtake_common::media::open_video;
use longtake_tests::detect::{Track, continuity, look};
use longtake_tests::held::{self, Held};
use longtake_tests::product::{Report, render};
use longtake_tests::prompts::{Wanted, held_out};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Size of the films that are judged.
const SIZE: &str = "256x160";
/// Frames of the overlap between windows that the product uses by default.
const OVERLAP_FRAMES: u32 = 17;

#[derive(Parser)]
#[command(about = "Judges films that longtake renders with ltxv-tiny")]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Keep the films in this folder.
    #[arg(long, global = true)]
    keep: Option<PathBuf>,
    /// More flags for `longtake render`, after `--`.
    #[arg(last = true, global = true)]
    flags: Vec<String>,
}

#[derive(Subcommand)]
enum What {
    /// One window for each held-out prompt: does it show what the prompt says?
    Prompts {
        /// Prompts to render, from the top of the list.
        #[arg(long, default_value_t = 100)]
        count: usize,
    },
    /// Long films: one colour, one shape, one motion, and no seam to point at?
    Continuity {
        /// Films to render, each with a prompt of its own.
        #[arg(long, default_value_t = 10)]
        films: usize,
        /// Length of each.
        #[arg(long, default_value_t = 12.0)]
        seconds: f64,
        /// Prompts to pass over at the top of the list.
        #[arg(long, default_value_t = 0)]
        skip: usize,
    },
    /// Films with a given first frame, a second one within, and a clip at either end: are they met?
    Held {
        /// Prompts, each of which is rendered four times, from the top of the list.
        #[arg(long, default_value_t = 10)]
        count: usize,
    },
    /// Judge the motion in a film that is already there.
    Film {
        /// The film.
        path: PathBuf,
        /// First frames of its overlaps.
        #[arg(long)]
        seam: Vec<u32>,
    },
    /// Peak memory of a short and of a long film.
    Memory {
        /// Length of the long one, in seconds.
        #[arg(long, default_value_t = 180.0)]
        seconds: f64,
    },
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let temporary = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let folder = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
    let flags: Vec<&str> = args.flags.iter().map(String::as_str).collect();
    let result = match args.what {
        What::Prompts { count } => prompts(folder, count, &flags),
        What::Continuity {
            films,
            seconds,
            skip,
        } => films_hold(folder, films, seconds, skip, &flags),
        What::Held { count } => pictures_are_met(folder, count, &flags),
        What::Film { path, seam } => {
            let seams: Vec<_> = seam.iter().map(|&f| (f, OVERLAP_FRAMES)).collect();
            Ok(motion_json(&watch(&path)?, &seams))
        }
        What::Memory { seconds } => memory(folder, seconds, &flags),
    }?;
    println!("{result}");
    Ok(())
}

/// Looks at every frame of a film.
fn watch(film: &Path) -> Result<Track, String> {
    let reader = open_video(film).map_err(|e| e.to_string())?;
    let info = reader.info().clone();
    let mut track = Track::new(info.width, info.height, info.fps.unwrap_or(24.0));
    for frame in reader {
        track.push(look(&frame.map_err(|e| e.to_string())?));
    }
    Ok(track)
}

fn prompts(folder: &Path, count: usize, flags: &[&str]) -> Result<Value, String> {
    const JUDGED: [&str; 6] = [
        "colour",
        "background",
        "direction",
        "shape",
        "speed",
        "size",
    ];
    let mut right = [0usize; JUDGED.len()];
    let mut steady = 0;
    let wanted: Vec<Wanted> = held_out().into_iter().take(count).collect();
    for (seed, want) in wanted.iter().enumerate() {
        let track = film(
            folder,
            want,
            seed,
            &["--frames", "121", "--workers", "1"],
            flags,
        )?
        .1;
        let got = [
            (track.majority(|s| s.colour).0 == want.colour),
            (track.majority(|s| s.background).0 == want.background),
            (track.direction() == Some(want.direction.as_str())),
            (track.majority(|s| s.shape).0 == want.shape),
            (track.speed() == Some(want.speed.as_str())),
            (track.majority(|s| s.size()).0 == want.size),
        ];
        let kept = continuity(&track, &[]).holds();
        steady += usize::from(kept);
        right
            .iter_mut()
            .zip(got)
            .for_each(|(n, hit)| *n += usize::from(hit));
        let missed: Vec<_> = JUDGED
            .iter()
            .zip(got)
            .filter(|(_, hit)| !hit)
            .map(|(n, _)| *n)
            .collect();
        if !missed.is_empty() || !kept {
            eprintln!("{seed}: {}: missed {missed:?}, steady {kept}", want.prompt);
        }
    }
    let share = |n: usize| (100.0 * n as f64 / wanted.len() as f64).round() / 100.0;
    let mut out = json!({"prompts": wanted.len(), "steady": share(steady)});
    for (name, n) in JUDGED.iter().zip(right) {
        out[*name] = json!(share(n));
    }
    Ok(out)
}

/// Renders one film and looks at it.
fn film(
    folder: &Path,
    want: &Wanted,
    seed: usize,
    length: &[&str],
    flags: &[&str],
) -> Result<(Report, Track), String> {
    let output = folder.join(format!("{seed:03}.mp4"));
    let seed = seed.to_string();
    let mut all = vec!["--size", SIZE, "--seed", &seed];
    all.extend_from_slice(length);
    all.extend_from_slice(flags);
    let report = render(&want.prompt, &output, &all)?;
    let track = watch(&output)?;
    Ok((report, track))
}

/// Worst position error, in pixels, and the frames that show something else.
fn motion_json(track: &Track, seams: &[(u32, u32)]) -> Value {
    let found = continuity(track, seams);
    let worst = found
        .seams
        .iter()
        .map(|s| s.deviation_px)
        .fold(0.0, f64::max);
    json!({
        "holds": found.holds(),
        "colour": found.colour,
        "shape": found.shape,
        "frames_of_other_colour": found.other_colour,
        "frames_of_other_shape": found.other_shape,
        "deviation_px": if worst.is_finite() { json!(round(worst)) } else { json!("not seen") },
    })
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn films_hold(
    folder: &Path,
    films: usize,
    seconds: f64,
    skip: usize,
    flags: &[&str],
) -> Result<Value, String> {
    let seconds = seconds.to_string();
    let mut rows = Vec::new();
    for (index, want) in held_out().iter().enumerate().skip(skip).take(films) {
        let (report, track) = film(folder, want, index, &["--seconds", &seconds], flags)?;
        let seams: Vec<_> = report
            .seams
            .iter()
            .map(|s| (s.frame, OVERLAP_FRAMES))
            .collect();
        let worst = |of: fn(&longtake_tests::product::Seam) -> f64| {
            round(report.seams.iter().map(of).fold(0.0, f64::max))
        };
        let sharpness = report
            .seams
            .iter()
            .map(|s| s.sharpness)
            .fold(f64::INFINITY, f64::min);
        let mut row = motion_json(&track, &seams);
        row["prompt"] = json!(want.prompt);
        row["seconds"] = json!(round(report.seconds_total));
        row["seam_ratio"] = json!(worst(|s| s.seam_ratio));
        row["warp_ratio"] = json!(worst(|s| s.warp_ratio));
        row["sharpness"] = json!(round(sharpness));
        eprintln!("{row}");
        rows.push(row);
    }
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::INFINITY);
    let count = |test: &dyn Fn(&Value) -> bool| rows.iter().filter(|r| test(r)).count();
    let most = |key: &str| rows.iter().map(|r| number(r, key)).fold(0.0, f64::max);
    let mut times: Vec<f64> = rows.iter().map(|r| number(r, "seconds")).collect();
    times.sort_by(f64::total_cmp);
    Ok(json!({
        "films": rows.len(),
        "hold": count(&|r| r["holds"] == true),
        "seam_ratio_at_most_1": count(&|r| number(r, "seam_ratio") <= 1.0),
        "seam_ratio_worst": most("seam_ratio"),
        "warp_ratio_worst": most("warp_ratio"),
        "sharpness_least": rows.iter().map(|r| number(r, "sharpness")).fold(f64::INFINITY, f64::min),
        "seconds_median": times.get(times.len() / 2),
    }))
}

fn memory(folder: &Path, seconds: f64, flags: &[&str]) -> Result<Value, String> {
    let want = &held_out()[0];
    let peak = |seconds: f64| -> Result<u64, String> {
        let seconds = seconds.to_string();
        Ok(film(folder, want, 0, &["--seconds", &seconds], flags)?
            .0
            .peak_rss_bytes)
    };
    let (short, long) = (peak(12.0)?, peak(seconds)?);
    Ok(json!({
        "peak_bytes_12_s": short,
        "peak_bytes_long": long,
        "long_s": seconds,
        "ratio": round(long as f64 / short as f64),
    }))
}

fn pictures_are_met(folder: &Path, count: usize, flags: &[&str]) -> Result<Value, String> {
    let mut all = Vec::new();
    for (index, want) in held_out().iter().enumerate().take(count) {
        // Anywhere, and elsewhere each time.
        let at = ((37 * index % 256) as f64, (53 * index % 160) as f64);
        let found = held::held(folder, want, at, index, flags)?;
        eprintln!("{}", held::row(want, &found));
        all.push(found);
    }
    let least = |of: fn(&Held) -> f64| round(all.iter().map(of).fold(f64::INFINITY, f64::min));
    let hold = |of: fn(&Held) -> bool| all.iter().filter(|found| of(found)).count();
    Ok(json!({
        "prompts": all.len(),
        "first_db_least": least(|found| found.first_db),
        "keyframe_db_least": least(|found| found.keyframe_db),
        "forward_db_least": least(|found| found.forward.psnr_db),
        "forward_same": hold(|found| found.forward.same),
        "forward_hold": hold(|found| found.forward.holds),
        "backward_db_least": least(|found| found.backward.psnr_db),
        "backward_same": hold(|found| found.backward.same),
        "backward_hold": hold(|found| found.backward.holds),
    }))
}
