//! `bench`: figures of this build on this machine. What each means is in `docs/bench.md`.

mod attention;
mod decode;
mod dispatch;
mod dit;
mod e2e;
mod farm;
mod gpu;
mod load;
mod model;
mod ops;
mod quality;
mod random_model;
mod scaling;
mod schedule;
mod stitch;
mod tea_cache;
mod text;

use anyhow::Result;
use clap::Subcommand;

/// Flags of `bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure how fast a coordinator gives out work, every step of it stored
    Dispatch(dispatch::DispatchArgs),
    /// Measure how fast the farm's brain decides, without store and network
    Schedule(schedule::ScheduleArgs),
    /// Measure joining two clips and encoding the film
    Stitch(stitch::StitchBenchArgs),
    /// Measure how long a checkpoint takes until it is ready to compute, and its memory
    Model(model::ModelBenchArgs),
    /// Measure what TeaCache saves on a model, and what it costs
    #[command(name = "teacache")]
    TeaCache(tea_cache::TeaCacheArgs),
    /// Measure what one pipeline file loses and gains against another, film by film
    Quality(quality::QualityArgs),
    /// Measure a denoising step of the transformer on a GPU
    Dit(dit::DitArgs),
    /// Measure a whole render on a GPU, from the prompt to decoded pictures
    E2e(e2e::EndToEndArgs),
    /// Measure decoding a window on a GPU
    Vae(decode::VaeArgs),
    /// Measure encoding a prompt, on the processor or a GPU
    Text(text::TextArgs),
    /// Measure self-attention on a GPU, and judge its 8-bit form
    Attention(attention::AttentionArgs),
    /// Say what sharing a window among ranks brings, on paper, beside what was measured
    Scaling(scaling::ScalingArgs),
    /// Compare every operation of the GPU with the CPU's
    Ops(ops::OpsArgs),
}

/// Measures.
pub async fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Dispatch(args) => dispatch::run(args).await,
        What::Stitch(args) => tokio::task::block_in_place(|| stitch::run(&args)),
        What::Schedule(args) => schedule::run(&args),
        What::Model(args) => model::run(&args),
        What::TeaCache(args) => tokio::task::block_in_place(|| tea_cache::run(&args)),
        What::Quality(args) => tokio::task::block_in_place(|| quality::run(&args)),
        What::Dit(args) => tokio::task::block_in_place(|| dit::run(&args)),
        What::E2e(args) => tokio::task::block_in_place(|| e2e::run(&args)),
        What::Vae(args) => tokio::task::block_in_place(|| decode::run(&args)),
        What::Text(args) => tokio::task::block_in_place(|| text::run(&args)),
        What::Attention(args) => tokio::task::block_in_place(|| attention::run(&args)),
        What::Scaling(args) => scaling::run(&args),
        What::Ops(args) => tokio::task::block_in_place(|| ops::run(&args)),
    }
}
