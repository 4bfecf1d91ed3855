//! `plan`: the windows of a job, offline and without weights.

use crate::job_args::{JobArgs, Weights};
use anyhow::Result;
use longtake_common::spec::Codec;
use serde::Serialize;

/// Flags of `plan`.
#[derive(clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A plan as the JSON has it.
#[derive(Serialize)]
struct PlanJson {
    frames: u32,
    windows: Vec<WindowJson>,
}

#[derive(Serialize)]
struct WindowJson {
    index: u32,
    first_frame: u32,
    /// As visible in the film.
    frames: u32,
    seed: u64,
}

/// Prints the windows.
pub fn run(args: &PlanArgs) -> Result<()> {
    let wanted = args.job.wanted(Codec::H264, Weights::Ignored)?;
    for notice in &wanted.notices {
        eprintln!("note: {notice}");
    }
    let plan = longtake_core::plan(&wanted.spec);
    if args.json {
        let windows = plan.windows.iter().map(|window| WindowJson {
            index: window.index,
            first_frame: window.first_frame,
            frames: window.visible_frames,
            seed: window.seed,
        });
        let json = PlanJson {
            frames: wanted.spec.frames,
            windows: windows.collect(),
        };
        println!("{}", serde_json::to_string(&json)?);
        return Ok(());
    }
    println!(
        "{} frames in {} windows:",
        wanted.spec.frames,
        plan.windows.len()
    );
    for window in &plan.windows {
        let last = window.first_frame + window.visible_frames - 1;
        println!(
            "  {:4}  frames {:6} to {last:6}  ({} rendered)  seed {}",
            window.index, window.first_frame, window.frames, window.seed
        );
    }
    Ok(())
}
