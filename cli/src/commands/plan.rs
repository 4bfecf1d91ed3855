//! `plan`: the windows of a job, offline and without weights.

use crate::job_args::Weights;
use crate::output::Target;
use crate::render::RenderArgs;
use crate::terminal::{print, remark};
use anyhow::Result;
use serde::Serialize;

/// Flags of `plan`: those of `render`, so that one command line serves both.
#[derive(clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    render: RenderArgs,
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
    let target = Target::parse(&args.render.output)?;
    let wanted = args.render.job.wanted(target.codec(), Weights::Ignored)?;
    for notice in &wanted.notices {
        remark(format_args!("note: {notice}"));
    }
    let plan = longtake_core::plan(&wanted.spec);
    if args.render.json {
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
        return print(serde_json::to_string(&json)?);
    }
    let mut text = format!(
        "{} frames in {} windows:",
        wanted.spec.frames,
        plan.windows.len()
    );
    for window in &plan.windows {
        let last = window.first_frame + window.visible_frames - 1;
        text += &format!(
            "\n  {:4}  frames {:6} to {last:6}  ({} rendered)  seed {}",
            window.index, window.first_frame, window.frames, window.seed
        );
    }
    print(text)
}
