//! `plan`: the windows of a job and what it will take, without rendering and without weights.

use crate::estimate::{Estimate, Range, artifact_bytes, size};
use crate::farm_model;
use crate::job_args::Weights;
use crate::output::Target;
use crate::render::RenderArgs;
use crate::terminal::{print, remark};
use anyhow::Result;
use longtake_common::spec::JobSpec;
use longtake_core::Plan;
use serde::Serialize;

/// Flags of `plan`: those of `render`, so that one command line serves both.
#[derive(clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    render: RenderArgs,
}

/// A plan as the JSON has it.
#[derive(Serialize)]
struct PlanJson<'a> {
    frames: u32,
    windows: Vec<WindowJson>,
    /// First frames of the shots that begin with a cut.
    cuts: Vec<u32>,
    /// Null where nothing is known about the model.
    estimate: Option<&'a Estimate>,
    /// Bytes in the artifact store.
    artifact_bytes: Range,
}

#[derive(Serialize)]
struct WindowJson {
    index: u32,
    first_frame: u32,
    /// As visible in the film.
    frames: u32,
    seed: u64,
}

/// Prints the windows, and what they will take.
pub async fn run(args: &PlanArgs) -> Result<()> {
    let target = Target::parse(&args.render.output)?;
    let (job, farm) = (&args.render.job, &args.render.farm);
    let wanted = match farm_model::stored_on_farm(job, target.codec(), farm).await? {
        Some(wanted) => wanted,
        None => job.wanted(target.codec(), Weights::Ignored)?,
    };
    let wanted = args.render.previewed(wanted)?;
    for notice in &wanted.notices {
        remark(format_args!("note: {notice}"));
    }
    let (spec, plan) = (&wanted.spec, longtake_core::plan(&wanted.spec));
    let estimate = args.render.estimate(spec, &plan).await;
    let artifact_bytes = artifact_bytes(spec, &plan);
    if args.render.json {
        let windows = plan.windows.iter().map(|window| WindowJson {
            index: window.index,
            first_frame: window.first_frame,
            frames: window.visible_frames,
            seed: window.seed,
        });
        let json = PlanJson {
            frames: spec.frames,
            windows: windows.collect(),
            cuts: plan.cut_frames(),
            estimate: estimate.as_ref(),
            artifact_bytes,
        };
        return print(serde_json::to_string(&json)?);
    }
    print(windows_text(spec, &plan))?;
    print(estimate.map_or_else(
        || "time and memory: unknown, the model is not on this machine".to_owned(),
        |estimate| estimate.text(),
    ))?;
    print(format_args!(
        "disk: {} to {} of artifacts",
        size(artifact_bytes.low),
        size(artifact_bytes.high)
    ))
}

fn windows_text(spec: &JobSpec, plan: &Plan) -> String {
    let count = plan.windows.len();
    let plural = if count == 1 { "" } else { "s" };
    let mut text = format!("{} frames in {count} window{plural}:", spec.frames);
    for window in &plan.windows {
        let last = window.first_frame + window.visible_frames - 1;
        let cut = if plan.cuts.contains(&window.index) {
            "  after a cut"
        } else {
            ""
        };
        text += &format!(
            "\n  {:4}  frames {:6} to {last:6}  ({} rendered)  seed {}{cut}",
            window.index, window.first_frame, window.frames, window.seed
        );
    }
    text
}
