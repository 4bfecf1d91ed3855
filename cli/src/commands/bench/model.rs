//! `bench model`: how long a checkpoint takes until it is ready to compute.

use crate::terminal::print;
use anyhow::Result;
use longtake_agent::ModelFiles;
use longtake_common::model::find_model;

/// Flags of `bench model`.
#[derive(clap::Args)]
pub struct ModelBenchArgs {
    /// A checkpoint, its index, or a Diffusers folder; a name under configs/models or a path
    #[arg(value_name = "FILE|DIR")]
    model: String,
    /// Text encoder of a checkpoint that has none beside it
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<String>,
    /// Times that it is loaded; the last counts, when its files are in the system's cache
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    times: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures.
pub fn run(args: &ModelBenchArgs) -> Result<()> {
    let text_encoder = args.text_encoder.as_deref().map(find_model).transpose()?;
    let files = ModelFiles {
        text_encoder,
        ..ModelFiles::from(&find_model(&args.model)?)
    };
    let mut last = longtake_agent::measure_loading(&files)?;
    for _ in 1..args.times {
        last = longtake_agent::measure_loading(&files)?;
    }
    match args.json {
        true => print(serde_json::json!({
            "seconds": last.seconds,
            "anonymous_bytes": last.anonymous_bytes,
        })),
        false => print(format_args!(
            "ready after {:.2} s, {:.0} MiB resident beyond its files",
            last.seconds,
            last.anonymous_bytes as f64 / f64::from(1 << 20)
        )),
    }
}
