//! `bench`: figures of this build on this machine. What each means is in `docs/bench.md`.

mod dispatch;
mod farm;
mod load;

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
}

/// Measures.
pub async fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Dispatch(args) => dispatch::run(args).await,
    }
}
