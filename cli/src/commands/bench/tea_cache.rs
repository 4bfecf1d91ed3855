//! `bench teacache`: how many block evaluations TeaCache saves on a model, and how far its pictures
//! are from those without it.

use super::gpu::latent_cells;
use crate::terminal::print;
use anyhow::{Context, Result, bail};
use longtake_agent::{ModelFiles, TeaCacheTrial, measure_tea_cache};
use longtake_common::model::{find_config, find_model};
use longtake_common::pipeline::{Pipeline, TEACACHE_THRESHOLD_DEFAULT};
use longtake_common::sampling::Schedule;
use longtake_common::spec::ModelRef;

/// Flags of `bench teacache`.
#[derive(clap::Args)]
pub struct TeaCacheArgs {
    /// Pipeline file: a name under configs/ or a YAML file
    #[arg(long, value_name = "NAME|YAML", default_value = "ltxv-tiny")]
    config: String,
    /// Model [default: the pipeline file's]
    #[arg(long, value_name = "FILE|DIR")]
    model: Option<String>,
    /// Text encoder of a checkpoint that has none beside it
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<String>,
    /// Steps of the model's own schedule, as a dev model is sampled
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Classifier-free guidance
    #[arg(long, value_name = "G", default_value_t = 2.0)]
    guidance_scale: f32,
    /// Accumulated change of the blocks' input from which on they are computed again
    #[arg(long, value_name = "T", default_value_t = TEACACHE_THRESHOLD_DEFAULT)]
    threshold: f32,
    /// Picture size
    #[arg(long, value_name = "WxH", default_value = "256x160")]
    size: String,
    /// Pictures, 8k+1
    #[arg(long, value_name = "N", default_value_t = 25)]
    frames: usize,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// What to show
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "a red circle moves left on a white background"
    )]
    prompt: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: &TeaCacheArgs) -> Result<()> {
    let pipeline = Pipeline::read(&find_config(&args.config)?)?;
    let unread = |name: &str| anyhow::Ok(ModelRef::new(name, longtake_common::Hash::of(b"")));
    let mut sampling = pipeline.sampling(unread)?.first_only();
    sampling.first_pass.schedule = Schedule::Steps(args.steps);
    (
        sampling.first_pass.skip_initial_steps,
        sampling.first_pass.skip_final_steps,
    ) = (0, 0);
    if !(args.threshold > 0.0 && (1.0..=100.0).contains(&args.guidance_scale)) {
        bail!("a threshold above 0 and a guidance scale from 1 to 100 are needed");
    }
    for step in &mut sampling.first_pass.guidance.steps {
        step.guidance_scale = args.guidance_scale;
    }
    let model = args.model.as_deref().unwrap_or(pipeline.model());
    let files = ModelFiles {
        text_encoder: args.text_encoder.as_deref().map(find_model).transpose()?,
        ..ModelFiles::from(&find_model(model)?)
    };
    let trial = TeaCacheTrial {
        sampling,
        threshold: args.threshold,
        prompt: args.prompt.clone(),
        negative: pipeline.negative_prompt.clone(),
        latent: latent_cells(&args.size, args.frames)?,
        fps: pipeline.frame_rate,
        seed: args.seed,
    };
    let figures = measure_tea_cache(&files, &trial).context("render the window")?;
    let saving = figures.blocks_plain as f64 / figures.blocks_computed.max(1) as f64;
    match args.json {
        true => print(serde_json::json!({
            "threshold": args.threshold,
            "steps": args.steps,
            "blocks_plain": figures.blocks_plain,
            "blocks_computed": figures.blocks_computed,
            "blocks_reused": figures.blocks_reused,
            "saving": saving,
            "psnr_db": figures.psnr_db,
            "seconds_plain": figures.seconds_plain,
            "seconds": figures.seconds,
        })),
        false => print(format_args!(
            "{} of {} block evaluations ({saving:.2} times fewer), {:.1} dB from the render without; \
             {:.1} s instead of {:.1} s",
            figures.blocks_computed,
            figures.blocks_plain,
            figures.psnr_db,
            figures.seconds,
            figures.seconds_plain
        )),
    }
}
